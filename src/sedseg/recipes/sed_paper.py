"""The paper's two models, as the paper trains them (SED, section 4)."""

from __future__ import annotations

import open_clip

from sedseg.data.augment import Augment
from sedseg.data.examples import ExampleStream, Source
from sedseg.data.folder import open_all
from sedseg.errors import InputError
from sedseg.model.sed import SED
from sedseg.model_zoo import PUBLISHED
from sedseg.preprocessing import Preprocessing
from sedseg.training.recipe import ParameterGroup, Recipe, RecipeInputs


def sed_base(inputs: RecipeInputs) -> Recipe:
    """SED with CLIP ConvNeXt-B.

        accelerate launch --num_processes 4 -m sedseg train sed_base --data coco-stuff
            --output runs/sed-base

    The data: COCO-Stuff train2017 (118,287 photos, 171 classes) in the folder format. The paper
    used 4 GPUs and reports mIoU 31.8 on ADE20K-150, 18.6 on PASCAL-Context-459, 57.7 on -59.
    ``--pretrained`` names a file of the CLIP weights; without it open_clip downloads them.
    """
    return _paper(inputs, "sed-base", "convnext_base_w_320", "laion_aesthetic_s13b_b82k")


def sed_large(inputs: RecipeInputs) -> Recipe:
    """SED with CLIP ConvNeXt-L, stochastic depth 0.1 in its trunk, dropout 0.1 in its projection.

        accelerate launch --num_processes 4 -m sedseg train sed_large --data coco-stuff
            --output runs/sed-large

    As :func:`sed_base`; the paper reports 35.3, 22.1 and 60.9.
    """
    return _paper(inputs, "sed-large", "convnext_large_d_320", "laion2b_s29b_b131k_ft_soup")


def _paper(inputs: RecipeInputs, name: str, clip: str, weights: str) -> Recipe:
    iterations, batch_size, rate = inputs.iterations or 80_000, 4, 2e-4
    sources = tuple(Source(dataset) for dataset in open_all(inputs.data, "train"))
    examples = ExampleStream(sources, Augment())

    def initialise(model: SED) -> None:
        load_clip(model, clip, str(inputs.pretrained or weights))

    return Recipe(
        name=name,
        config=PUBLISHED[name].config,
        preprocessing=Preprocessing(),
        examples=examples,
        validation=tuple(open_all(inputs.data, "val")),
        groups=(
            ParameterGroup(lambda model: model.decoder, rate),
            ParameterGroup(lambda model: model.encoder, 0.01 * rate),
        ),
        initialise=initialise,
        iterations=iterations,
        batch_size=batch_size,
        data_terms="COCO-Stuff: annotations CC BY 4.0, photos under Flickr's terms.",
    )


def load_clip(model: SED, name: str, weights: str) -> None:
    """Put open_clip's pretrained weights (a tag that open_clip knows, or a file) into a model.

    Raises:
        InputError: they are not to be had, or are another model's.
    """
    try:
        clip = open_clip.create_model(name, pretrained=weights)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"The CLIP weights {weights!r} of {name} cannot be loaded ({error}); "
            "download them and give the file with --pretrained."
        ) from error
    ours = {
        f"encoder.{key}" if key.startswith("visual.") else f"text_encoder.clip.{key}": tensor
        for key, tensor in clip.state_dict().items()
    }
    missing, unknown = model.load_state_dict(ours, strict=False)
    strangers = [key for key in (*missing, *unknown) if not key.startswith("decoder.")]
    if strangers:
        raise InputError(f"The weights {weights!r} are not those of {name}: see {strangers[0]}.")
