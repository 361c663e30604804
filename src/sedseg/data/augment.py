"""Random crops for training, photo and labels together (torchvision v2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from sedseg.data.folder import UNLABELLED

PADDING = 128
"""Grey value of what lies outside the photo in a crop."""


@dataclass(frozen=True)
class Augment:
    """Resize, crop, distort the colours as SSD does, flip (SED, section 4).

    Attributes:
        crop: side of the square crop, pixels.
        shortest_side: the photo's shorter side before cropping, pixels.
        longest_side: its longer side is at most this.
        scales: the shorter side is multiplied by a factor drawn from this range, uniformly on a
            logarithmic scale; (1, 1) in the paper.
    """

    crop: int = 768
    shortest_side: int = 768
    longest_side: int = 2666
    scales: tuple[float, float] = (1.0, 1.0)

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(3, H, W) uint8 and (H, W) -> (3, crop, crop) uint8 and (crop, crop), same types."""
        height, width = image.shape[-2:]
        low, high = (math.log(scale) for scale in self.scales)
        side = self.shortest_side * math.exp(_between(low, high))
        scale = min(side / min(height, width), self.longest_side / max(height, width))
        size = [max(round(height * scale), 1), max(round(width * scale), 1)]
        transform = v2.Compose(
            [
                v2.Resize(size, antialias=True),
                v2.RandomCrop(
                    self.crop,
                    pad_if_needed=True,
                    fill={tv_tensors.Image: PADDING, tv_tensors.Mask: UNLABELLED},
                ),
                v2.RandomHorizontalFlip(),
            ]
        )
        image, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(labels[None]))
        return distort_colours(image.as_subclass(Tensor)), mask[0].as_subclass(Tensor)


def distort_colours(image: Tensor) -> Tensor:
    """SSD's colour distortion (Liu et al., 2016, and its code).

    Each with probability one half: brightness by up to 32 of 255, contrast and saturation by a
    factor from 0.5 to 1.5, hue by up to 36 degrees; contrast before or after the last two.

    Args:
        image: (3, H, W) uint8.
    """
    pixels = image.float() / 255
    contrast_first = _chance()
    if _chance():
        pixels = (pixels + _between(-32, 32) / 255).clamp(0, 1)
    if contrast_first and _chance():
        pixels = (pixels * _between(0.5, 1.5)).clamp(0, 1)
    if _chance():
        pixels = v2.functional.adjust_saturation(pixels, _between(0.5, 1.5))
    if _chance():
        pixels = v2.functional.adjust_hue(pixels, _between(-0.1, 0.1))
    if not contrast_first and _chance():
        pixels = (pixels * _between(0.5, 1.5)).clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8)


def _chance() -> bool:
    return float(torch.rand(())) < 0.5


def _between(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
