"""Category early rejection (SED, section 3.4).

Dimensions: B images, T classes, h w pixels of the decoder's current stage.
"""

from __future__ import annotations

import torch
from torch import Tensor


def surviving_classes(logits: Tensor, kept: Tensor, top_k: int) -> Tensor:
    """The classes that are among the ``top_k`` best at one pixel at least.

    Args:
        logits: (B, T, h, w) auxiliary logits; -inf where a class is rejected already.
        kept: (B, T) bool, the classes alive so far.
        top_k: k, at least 1.

    Returns:
        (B, T) bool, a subset of ``kept``; each image has its own.
    """
    best = logits.topk(min(top_k, logits.shape[1]), dim=1).indices
    survivors = torch.zeros_like(kept).scatter_(1, best.flatten(1), True)
    return survivors & kept
