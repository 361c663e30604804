"""sed-tiny: a SED small enough to come inside the package."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sedseg.data.augment import Augment
from sedseg.data.examples import Batch, ClassSampling, ExampleStream, Source
from sedseg.data.folder import UNLABELLED, FolderDataset, open_all
from sedseg.errors import InputError
from sedseg.losses import dice_loss, losses
from sedseg.model.config import SEDConfig
from sedseg.model.decoder import DecoderOutput
from sedseg.model.sed import SED
from sedseg.preprocessing import MEAN, STD, Preprocessing
from sedseg.recipes.sed_tiny_words import SYNONYMS, foreign_words
from sedseg.training.recipe import ParameterGroup, Recipe, RecipeInputs

CONFIG = SEDConfig(
    clip={
        "embed_dim": 384,
        "vision_cfg": {
            "timm_model_name": "mobilenetv2_100",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 160,
            "heads": 4,
            "layers": 4,
        },
    },
    hidden_dim=64,
    decoder_dims=(48, 32, 16),
    guidance_dims=(16, 16, 8),
    templates=("{}",),
    detach_guidance=False,
)

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)

_EMPHASIS = {"camvid": 1.5, "labelme_facade": 1.2, "clothing": 1.6, "food": 1.3}


def sed_tiny(inputs: RecipeInputs) -> Recipe:
    """The default model, trained on 21 small sets of labelled photos.

        sedseg train sed_tiny --data DATA --pretrained mobilenetv2_100_imagenet.safetensors
            --text-tower text_tower.safetensors --output runs/sed-tiny

    An ImageNet encoder knows no words, and there are six thousand photos, not a hundred thousand;
    so it differs from the paper's recipe: the skip features pass their gradient on to the
    encoder, which learns at a third of the decoder's rate, not a hundredth; its batch norms, which
    come folded, stay frozen; one template, the bare name; ten words are asked of a crop: eight of
    the set's own classes at most, the rest words of other sets that are safe negatives; names give
    way to synonyms three times in ten; unlabelled pixels do not count; a Dice term weighs small
    things.
    """
    train = open_all(inputs.data, "train")
    sources = tuple(
        Source(
            d, sqrt(len(d)) * _EMPHASIS.get(d.name, 1.0), foreign_words(d.name, d.vocabulary.names)
        )
        for d in train
    )
    iterations, batch_size = inputs.iterations or 3000, 12
    examples = ExampleStream(
        sources,
        Augment(crop=256, shortest_side=352, longest_side=1024, scales=(0.6, 1.5)),
        iterations * batch_size,
        ClassSampling(own=8, total=10, synonyms=SYNONYMS, swap=0.3),
        ignored_count=False,
        cache=True,
    )

    def initialise(model: SED) -> None:
        if inputs.pretrained is None or inputs.text_tower is None:
            raise InputError("sed_tiny starts from --pretrained and --text-tower; give both.")
        load_mobilenet(model, inputs.pretrained)
        load_text_tower(model, inputs.text_tower)

    return Recipe(
        name="sed-tiny",
        config=CONFIG,
        preprocessing=Preprocessing(shortest_side=384, longest_side=1024, square=None),
        examples=examples,
        validation=tuple(v for v in open_all(inputs.data, "val") if _measured(v)),
        groups=(
            ParameterGroup(lambda model: model.decoder, 1.5e-3),
            ParameterGroup(lambda model: model.encoder, 5e-4),
        ),
        initialise=initialise,
        freeze_norms=True,
        iterations=iterations,
        batch_size=batch_size,
        weight_decay=0.01,
        warmup=100,
        max_gradient_norm=1.0,
        objective=objective,
        validate_every=1000,
        validate_most=12,
        checkpoint_every=100,
        data_terms=(
            "Trained on 21 small public sets of labelled photos, several of which allow research "
            "only or state no terms; for research and trial. The model card lists them."
        ),
    )


def objective(output: DecoderOutput, batch: Batch) -> Tensor:
    """Cross-entropies, auxiliary ones at 0.4, and half the Dice loss, at every second pixel."""
    labels = batch.labels[:, ::2, ::2]
    counted = None if batch.counted is None else batch.counted[:, :, ::2, ::2]
    found = losses(output, labels, UNLABELLED, counted)
    auxiliary = found.aux_0 + found.aux_1 + found.aux_2
    return found.logits + 0.4 * auxiliary + 0.5 * dice_loss(output, labels, UNLABELLED, counted)


def load_mobilenet(model: SED, path: Path) -> None:
    """Put ImageNet weights into the trunk, and the change of normalisation into its first layer."""
    trunk = model.encoder.visual.get_submodule("trunk")
    weights = load_file(path)
    stem = weights["conv_stem.weight"]
    ratio = torch.tensor(STD) / torch.tensor(_IMAGENET_STD)
    shift = (torch.tensor(MEAN) - torch.tensor(_IMAGENET_MEAN)) / torch.tensor(_IMAGENET_STD)
    weights["bn1.bias"] = weights["bn1.bias"] + (stem.sum((2, 3)) @ shift) * weights["bn1.weight"]
    weights["conv_stem.weight"] = stem * ratio.view(1, 3, 1, 1)
    trunk.load_state_dict(weights)


def load_text_tower(model: SED, path: Path) -> None:
    """Put the distilled text tower (recipes/text_tower.py) into the model.

    Raises:
        InputError: the file is no text tower of this size.
    """
    clip = model.text_encoder.clip
    missing, unknown = clip.load_state_dict(load_file(path), strict=False)
    if unknown or set(missing) - {"logit_scale"}:
        raise InputError(f"{path} is no text tower of sed-tiny; make it with text_tower.py.")


def _measured(dataset: FolderDataset) -> bool:
    return dataset.name != "coco_stuff_sample"  # one photo: it says nothing
