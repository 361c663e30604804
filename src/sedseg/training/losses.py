"""The training losses (SED, section 3.3).

Dimensions: B images, T classes, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sedseg.model.decoder import DecoderOutput


class Losses(NamedTuple):
    """Binary cross-entropies, scalars; ``sum(losses)`` is what the paper minimises."""

    logits: Tensor
    aux_0: Tensor
    aux_1: Tensor
    aux_2: Tensor


def losses(
    output: DecoderOutput, labels: Tensor, ignore_index: int = 255, counted: Tensor | None = None
) -> Losses:
    """Compare the logits and the three auxiliary maps with the labels.

    Each map is resized bilinearly to the labels' size; then the mean over all pixels and classes
    of the binary cross-entropy against one-hot labels is taken. Ignored pixels have an all-zero
    target and do count, as in the public code, unless ``counted`` says otherwise.

    Args:
        output: of a dense forward pass (no rejection).
        labels: (B, H, W) class indices, ``ignore_index`` where unlabelled.
        ignore_index: the label of unlabelled pixels.
        counted: (B, T, H, W) bool, the pixels and classes the mean is taken over; None: all.
    """
    rows = output.kept[:, -1]
    target = _one_hot(labels, rows.shape[1], ignore_index)[rows].to(output.logits.dtype)
    weight = None if counted is None else counted[rows].to(target.dtype)
    if weight is not None:
        weight = weight * (weight.numel() / weight.sum().clamp(min=1))
    return Losses(
        *(
            F.binary_cross_entropy_with_logits(_resize(maps[rows], target), target, weight)
            for maps in (output.logits, *output.aux)
        )
    )


def dice_loss(
    output: DecoderOutput, labels: Tensor, ignore_index: int = 255, counted: Tensor | None = None
) -> Tensor:
    """1 - soft Dice of the logits, mean over the classes present (Milletari et al., 2016).

    Arguments as of :func:`losses`. Unlike cross-entropy it weighs a small object as a large one.
    """
    rows = output.kept[:, -1]
    target = _one_hot(labels, rows.shape[1], ignore_index)[rows].to(output.logits.dtype)
    scores = _resize(output.logits[rows], target).sigmoid()
    if counted is not None:
        scores = scores * counted[rows]
    size = target.sum((1, 2))
    dice = 2 * (scores * target).sum((1, 2)) / (scores.sum((1, 2)) + size).clamp(min=1)
    present = size > 0
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def _one_hot(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """(B, H, W) indices -> (B, T, H, W) bool, all False where ignored."""
    indices = torch.arange(classes, device=labels.device).view(-1, 1, 1)
    return (labels[:, None] == indices) & (labels != ignore_index)[:, None]


def _resize(maps: Tensor, like: Tensor) -> Tensor:
    """(N, h, w) maps -> the height and width of ``like``, bilinearly."""
    return F.interpolate(maps[None], like.shape[-2:], mode="bilinear", align_corners=False)[0]
