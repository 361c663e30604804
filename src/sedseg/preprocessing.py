"""Photo -> the tensor a model was made for (SED, section 4: the test protocol)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MEAN = (122.7709383, 116.7460125, 104.09373615)
STD = (68.5005327, 66.6321579, 70.3231630)
"""Of CLIP's training photos, RGB, 0 to 255; all models here use them."""


def normalise(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) RGB, 0 to 255, any type -> float32, as CLIP's photos were normalised."""
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return (pixels.float() - mean) / std


@dataclass(frozen=True)
class Preprocessing:
    """How large a photo is shown to the model.

    Attributes:
        shortest_side: pixels of the shorter side after the first resize (bilinear, on 8 bits).
        longest_side: the longer side is at most this.
        square: then resized to this side without regard to the aspect ratio, as the paper's test
            protocol does (768); None keeps the aspect.
    """

    shortest_side: int = 640
    longest_side: int = 2560
    square: int | None = 768

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the photo after the first resize."""
        scale = min(self.shortest_side / min(height, width), self.longest_side / max(height, width))
        return max(round(height * scale), 1), max(round(width * scale), 1)

    def __call__(self, photo: Image.Image) -> Tensor:
        """An RGB photo -> (3, H', W') float32, normalised."""
        height, width = self.size(photo.height, photo.width)
        resized = photo.resize((width, height), Image.Resampling.BILINEAR)
        pixels = normalise(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
        if self.square is None:
            return pixels
        side = (self.square, self.square)
        return F.interpolate(pixels[None], side, mode="bilinear", align_corners=False)[0]
