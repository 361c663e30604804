"""The training losses (SED.md section 5 of the design; paper, section 3.3).

Dimensions: B images, T classes, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from sedseg.model.decoder import DecoderOutput


class Losses(NamedTuple):
    """Binary cross-entropies, scalars; ``sum(losses)`` is what the paper minimises."""

    logits: Tensor
    aux_0: Tensor
    aux_1: Tensor
    aux_2: Tensor


def losses(output: DecoderOutput, labels: Tensor, ignore_index: int = 255) -> Losses:
    """Compare the logits and the three auxiliary maps with the labels.

    Each map is resized bilinearly to the labels' size; then the mean over all pixels and classes
    of the binary cross-entropy against one-hot labels is taken. Ignored pixels have an all-zero
    target and do count, as in the public code.

    Args:
        output: of a dense forward pass (no rejection).
        labels: (B, H, W) class indices, ``ignore_index`` where unlabelled.
        ignore_index: the label of unlabelled pixels.
    """
    classes = output.logits.shape[1]
    known = labels != ignore_index
    target = F.one_hot(labels.long().where(known, classes), classes + 1)[..., :-1]
    target = target.permute(0, 3, 1, 2).to(output.logits.dtype)
    return Losses(
        *(
            F.binary_cross_entropy_with_logits(
                F.interpolate(maps, target.shape[-2:], mode="bilinear", align_corners=False), target
            )
            for maps in (output.logits, *output.aux)
        )
    )
