"""What a training run is: everything that decides its result, as one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sedseg.data.examples import Batch, ExampleStream
from sedseg.data.folder import UNLABELLED, FolderDataset
from sedseg.model.config import SEDConfig
from sedseg.model.decoder import DecoderOutput
from sedseg.model.sed import SED
from sedseg.preprocessing import Preprocessing
from sedseg.training.losses import losses


@dataclass(frozen=True)
class RecipeInputs:
    """What the command line gives a recipe.

    Attributes:
        data: the folder of the data set, or of several.
        pretrained: weights to start from, a file or a name; what they are, the recipe says.
        text_tower: likewise for a text tower.
        iterations: replaces the recipe's own number.
    """

    data: Path
    pretrained: str | None = None
    text_tower: Path | None = None
    iterations: int | None = None


@dataclass(frozen=True)
class ParameterGroup:
    """A part of the model that is trained; parts in no group are frozen.

    Attributes:
        part: the module, given the model.
        learning_rate: its peak.
    """

    part: Callable[[SED], nn.Module]
    learning_rate: float


def paper_objective(output: DecoderOutput, batch: Batch) -> Tensor:
    """The sum of the four binary cross-entropies (SED, section 3.3)."""
    return torch.stack(losses(output, batch.labels, UNLABELLED, batch.counted)).sum()


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        name: of the model.
        config, preprocessing: what the model is and how large it sees photos at test.
        examples: the stream.
        validation: sets measured now and then.
        groups: what is trained, and how fast.
        initialise: puts pretrained weights into a new model.
        freeze_norms: keep the statistics of the encoder's batch norms (scale and shift learn).
        iterations: optimiser steps.
        batch_size: examples a step, over all processes.
        accumulate: parts a step's examples are split into, to save memory.
        weight_decay: of AdamW; 0 on norms and embeddings.
        warmup: steps of linear warm-up before the cosine decay to 0.
        max_gradient_norm: over the whole model.
        precision: "bf16" or "no".
        objective: the loss, from the output and the batch.
        validate_every, validate_most: steps between validations, and photos of a set at most.
        checkpoint_every: steps between checkpoints.
        data_terms: of the training data; kept with the weights.
        known: classes that the model knew before, when it is trained further.
        seed: of the initial weights and of dropout.
    """

    name: str
    config: SEDConfig
    preprocessing: Preprocessing
    examples: ExampleStream
    groups: tuple[ParameterGroup, ...]
    iterations: int
    batch_size: int
    validation: tuple[FolderDataset, ...] = ()
    initialise: Callable[[SED], None] | None = None
    freeze_norms: bool = False
    accumulate: int = 1
    weight_decay: float = 1e-4
    warmup: int = 0
    max_gradient_norm: float = 0.01
    precision: str = "bf16"
    objective: Callable[[DecoderOutput, Batch], Tensor] = paper_objective
    validate_every: int = 5000
    validate_most: int = 100
    checkpoint_every: int = 1000
    data_terms: str = "not stated"
    known: tuple[str, ...] = ()
    seed: int = 0

    def training_classes(self) -> tuple[str, ...]:
        """Every class name known before or in the training data, once."""
        names = (n for s in self.examples.sources for n in s.dataset.vocabulary.names)
        return tuple(dict.fromkeys((*self.known, *names)))


def optimiser_groups(model: SED, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW's parameter groups; freezes what belongs to none.

    Norms and embeddings, known by their module's type, are not decayed.
    """
    model.requires_grad_(False)
    groups = []
    for group in recipe.groups:
        part = group.part(model)
        part.requires_grad_(True)
        kept_free = {id(p) for p in _norm_and_embedding_parameters(part)}
        for decay in (recipe.weight_decay, 0.0):
            chosen = [p for p in part.parameters() if (id(p) in kept_free) == (decay == 0.0)]
            groups.append({"params": chosen, "lr": group.learning_rate, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def _norm_and_embedding_parameters(part: nn.Module) -> Iterator[nn.Parameter]:
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.Embedding)
    for module in part.modules():
        if isinstance(module, kinds):
            yield from module.parameters(recurse=False)
