"""The pixel-text cost map (SED, section 3.2).

Dimensions: B images, T classes, P prompt templates, C embedding channels, h w = H/32 W/32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cost_map(dense: Tensor, text: Tensor) -> Tensor:
    """Cosine similarity of every pixel with every prompt of every class.

    CLIP's logit scale is not applied.

    Args:
        dense: (B, C, h, w) image embedding of each pixel.
        text: (T, P, C) text embeddings of length 1, or (B, T, P, C) where each image has its own.

    Returns:
        (B, T, P, h, w) in [-1, 1].
    """
    dense = F.normalize(dense, dim=1)
    if text.ndim == 3:
        text = text.expand(len(dense), -1, -1, -1)
    return torch.einsum("bchw,btpc->btphw", dense, text.to(dense.dtype))
