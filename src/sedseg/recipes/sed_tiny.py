"""sed-tiny: a SED small enough to come inside the package."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sedseg.data.augment import Augment
from sedseg.data.examples import Batch, ClassSampling, ExampleStream, Source
from sedseg.data.folder import UNLABELLED, FolderDataset, open_all
from sedseg.errors import InputError
from sedseg.model.config import SEDConfig
from sedseg.model.decoder import DecoderOutput
from sedseg.model.sed import SED
from sedseg.preprocessing import MEAN, STD, Preprocessing
from sedseg.recipes.sed_tiny_words import SYNONYMS, foreign_words
from sedseg.training.losses import dice_loss, losses
from sedseg.training.recipe import ParameterGroup, Recipe, RecipeInputs
from sedseg.weights import load_model

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

_TEMPERATURE = 0.05  # of cosines; the best and the second word are about a quarter apart

_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)

_EMPHASIS = {"camvid": 3.0, "labelme_facade": 2.0, "clothing": 2.5, "lobby": 1.5, "food": 1.3}
_BY_CLASS = 0.5


def sed_tiny(inputs: RecipeInputs) -> Recipe:
    """The default model, trained on 21 small sets of labelled photos.

        sedseg train sed_tiny --data DATA --pretrained mobilenetv2_100_imagenet.safetensors
            --text-tower text_tower.safetensors --output runs/sed-tiny

    Without ``--text-tower`` it takes the one of the sed-tiny in the package. ``--pretrained`` may
    also name a sed-tiny to go on from ("sed-tiny", or a file). 1,000 steps take 22 minutes on two
    cores with AMX; how the one in the package came about, and what it reached, is in
    docs/models/sed-tiny.md.

    An ImageNet encoder knows no words, and there are six thousand photos, not a hundred thousand;
    so it differs from the paper's recipe: the skip features pass their gradient on to the
    encoder, whose trunk learns at an eighth of the decoder's rate, not a hundredth, and whose new
    projection learns nearly as fast as the decoder; the trunk's batch norms, which come folded,
    keep their statistics (with nothing to normalise it, a faster trunk forgets what it knows);
    one template, the bare name; twelve words are asked of a crop:
    eleven of the set's own classes at most, the rest words of other sets that are safe negatives;
    every second crop shows a class drawn first, each as likely as another; names give way to
    synonyms three times in ten; unlabelled pixels do not count; and the loss has three more terms
    (:func:`objective`).
    """
    train = open_all(inputs.data, "train")
    sources = tuple(
        Source(
            d,
            sqrt(len(d)) * _EMPHASIS.get(d.name, 1.0),
            foreign_words(d.name, d.vocabulary.names),
            _BY_CLASS,
        )
        for d in train
    )
    iterations, batch_size = inputs.iterations or 5000, 10
    examples = ExampleStream(
        sources,
        Augment(crop=256, shortest_side=352, longest_side=1024, scales=(0.6, 1.5)),
        ClassSampling(own=11, total=12, synonyms=SYNONYMS, swap=0.3),
        ignored_count=False,
        cache=True,
    )

    def initialise(model: SED) -> None:
        if inputs.pretrained is None:
            raise InputError(
                "sed_tiny starts from an ImageNet MobileNetV2 or goes on from a sed-tiny; give "
                "either with --pretrained."
            )
        if _is_mobilenet(Path(inputs.pretrained)):
            load_mobilenet(model, Path(inputs.pretrained))
            packaged, _ = load_model("sed-tiny")
            model.text_encoder.load_state_dict(packaged.text_encoder.state_dict())
        else:
            earlier, _ = load_model(inputs.pretrained, CONFIG)
            model.load_state_dict(earlier.state_dict())
        if inputs.text_tower:
            load_text_tower(model, inputs.text_tower)

    return Recipe(
        name="sed-tiny",
        config=CONFIG,
        preprocessing=Preprocessing(shortest_side=384, longest_side=1024, square=None),
        examples=examples,
        validation=tuple(v for v in open_all(inputs.data, "val") if _measured(v)),
        groups=(
            ParameterGroup(lambda model: model.decoder, 1.2e-3),
            ParameterGroup(lambda model: model.encoder.visual.get_submodule("head"), 1e-3),
            ParameterGroup(lambda model: model.encoder.visual.get_submodule("trunk"), 1.5e-4),
        ),
        initialise=initialise,
        freeze_norms=True,
        iterations=iterations,
        batch_size=batch_size,
        weight_decay=0.01,
        warmup=50,
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
    """The binary cross-entropies, auxiliary ones at 0.4, and half of each of three more losses.

    Those are a Dice term, and which word of the list a pixel is (softmax over classes) as the
    logits say and as the cost map alone says. The last teaches the encoder words directly, where
    otherwise it would learn them through the whole decoder.
    """
    labels = batch.labels[:, ::2, ::2]
    counted = None if batch.counted is None else batch.counted[:, :, ::2, ::2]
    found = losses(output, labels, UNLABELLED, counted)
    auxiliary = found.aux_0 + found.aux_1 + found.aux_2
    dice = dice_loss(output, labels, UNLABELLED, counted)
    choice = choice_loss(output.logits, labels, counted)
    coarse = None if counted is None else counted[:, :, 2::4, 2::4]
    assert output.cost is not None
    words = choice_loss(output.cost.mean(2) / _TEMPERATURE, labels[:, 2::4, 2::4], coarse)
    return found.logits + 0.4 * auxiliary + 0.5 * (dice + choice + words)


def choice_loss(maps: Tensor, labels: Tensor, counted: Tensor | None) -> Tensor:
    """Cross-entropy of the softmax over classes, mean over labelled pixels.

    A class's pixels weigh as one over the square root of its share of the crop, so that poles are
    learned beside buildings.

    Args:
        maps: (B, T, h, w), resized bilinearly to the labels' size.
        labels: (B, H, W), ``UNLABELLED`` where no class of the list is true or nothing known.
        counted: (B, T, H, W) bool, the classes a pixel chooses from; None: all.
    """
    maps = F.interpolate(maps.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    if counted is not None:
        maps = maps.masked_fill(~counted, -30.0)
    known = labels != UNLABELLED
    index = labels.long().where(known, 0)
    pixels = F.one_hot(index, maps.shape[1]).mul(known[..., None]).sum((1, 2), keepdim=True)
    weight = pixels.clamp(min=1).rsqrt().squeeze(1).squeeze(1).gather(1, index.flatten(1))
    weight = weight.view_as(labels) * known
    each = F.cross_entropy(maps, index, reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1e-6)


def load_mobilenet(model: SED, path: Path) -> None:
    """Put ImageNet weights into the trunk, and the change of normalisation into its first layer."""
    trunk = model.encoder.visual.get_submodule("trunk")
    weights = _tensors(path)
    stem = weights["conv_stem.weight"]
    ratio = torch.tensor(STD) / torch.tensor(_IMAGENET_STD)
    shift = (torch.tensor(MEAN) - torch.tensor(_IMAGENET_MEAN)) / torch.tensor(_IMAGENET_STD)
    weights["bn1.bias"] = weights["bn1.bias"] + (stem.sum((2, 3)) @ shift) * weights["bn1.weight"]
    weights["conv_stem.weight"] = stem * ratio.view(1, 3, 1, 1)
    trunk.load_state_dict(weights)


def _is_mobilenet(path: Path) -> bool:
    return path.is_file() and "conv_stem.weight" in _tensors(path)


def load_text_tower(model: SED, path: Path) -> None:
    """Put the distilled text tower (recipes/text_tower.py) into the model.

    Raises:
        InputError: the file is no text tower of this size.
    """
    clip = model.text_encoder.clip
    missing, unknown = clip.load_state_dict(_tensors(path), strict=False)
    if unknown or set(missing) - {"logit_scale"}:
        raise InputError(f"{path} is no text tower of sed-tiny; make it with text_tower.py.")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a safetensors file: {error}.") from error


def _measured(dataset: FolderDataset) -> bool:
    return dataset.name != "coco_stuff_sample"  # one photo: it says nothing
