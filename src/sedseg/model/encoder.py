"""The hierarchical image encoder (SED, section 3.2): a CLIP vision tower applied densely.

Dimensions: B images, C embedding channels, h w = H/32 W/32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from sedseg.errors import InputError

STRIDE = 32
"""Pixels of the image per pixel of the coarsest level."""


class EncoderOutput(NamedTuple):
    """``levels``: F2, F3, F4, F5 at strides 4, 8, 16, 32; ``dense``: (B, C, h, w)."""

    levels: tuple[Tensor, ...]
    dense: Tensor


class HierarchicalEncoder(nn.Module):
    """F2..F5 of a CLIP vision tower, and its image embedding at every pixel of F5.

    Args:
        visual: open_clip's vision tower: a ``TimmModel`` whose trunk yields levels at strides
            4, 8, 16 and 32 (ConvNeXt, MobileNet, FastViT, ResNet), or a ``ModifiedResNet``.

    Raises:
        InputError: the tower is of another kind.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        if not isinstance(visual, TimmModel | ModifiedResNet):
            raise InputError(
                f"A vision tower of type {type(visual).__name__} has no levels at strides "
                "4, 8, 16 and 32; choose a CLIP with a ConvNeXt, MobileNet, FastViT or ResNet."
            )
        self.visual = visual
        self.level_dims = self._measure_levels()

    def forward(self, images: Tensor) -> EncoderOutput:
        """(B, 3, H, W), normalised, H and W multiples of 32 -> levels and dense embedding."""
        visual: Any = self.visual
        if isinstance(visual, ModifiedResNet):
            levels = _resnet_levels(visual, images)
            # One pixel attending to itself alone: attention pooling is then the value projection.
            pool: Any = visual.attnpool
            dense = pool.c_proj(pool.v_proj(levels[-1].permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        else:
            last, levels = visual.trunk.forward_intermediates(images, indices=4)
            dense = _embed_each_pixel(visual, last)
        return EncoderOutput(tuple(levels), dense)

    def _measure_levels(self) -> tuple[int, ...]:
        training = self.training
        self.eval()
        with torch.no_grad():
            levels = self(torch.zeros(1, 3, 2 * STRIDE, 2 * STRIDE)).levels
        self.train(training)
        if [level.shape[-1] for level in levels] != [16, 8, 4, 2]:
            raise InputError("The vision tower's last four levels are not at strides 4 to 32.")
        return tuple(level.shape[1] for level in levels)


def _embed_each_pixel(visual: Any, features: Tensor) -> Tensor:
    """Apply the classifier head (norm, projection) to 1x1 maps, one for each pixel."""
    b, c, h, w = features.shape
    pixels = features.permute(0, 2, 3, 1).reshape(-1, c, 1, 1)
    embedded = visual.head(visual.trunk.forward_head(pixels))
    return embedded.reshape(b, h, w, -1).permute(0, 3, 1, 2)


def _resnet_levels(visual: Any, images: Tensor) -> list[Tensor]:
    levels = [visual.layer1(visual.stem(images))]
    for layer in (visual.layer2, visual.layer3, visual.layer4):
        levels.append(layer(levels[-1]))
    return levels
