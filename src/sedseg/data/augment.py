"""Random crops for training, photo and labels together (torchvision v2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from sedseg.data.folder import UNLABELLED

PADDING = 128
"""Grey value of what lies outside the photo in a crop."""

SSD_JITTER: tuple[dict[str, float], ...] = (
    {"brightness": 0.125},
    {"contrast": 0.5},
    {"saturation": 0.5},
    {"hue": 0.05},
)
"""The colour distortions of SSD (Liu et al., 2016), each with probability one half."""


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
        low, high = (torch.tensor(s).log() for s in self.scales)
        side = self.shortest_side * float(torch.empty(1).uniform_(float(low), float(high)).exp())
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
                *(v2.RandomApply([v2.ColorJitter(**jitter)], p=0.5) for jitter in SSD_JITTER),
                v2.RandomHorizontalFlip(),
            ]
        )
        image, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(labels[None]))
        return image.as_subclass(Tensor), mask[0].as_subclass(Tensor)
