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
"""Of CLIP's training photos, RGB, 0 to 255."""

_MULTIPLE = 32


@dataclass(frozen=True)
class Preprocessing:
    """How large a photo is shown to the model.

    Attributes:
        shortest_side: pixels of the shorter side after the first resize (bilinear, on 8 bits).
        longest_side: the longer side is at most this.
        square: then resized to this side without regard to the aspect ratio, as the paper's test
            protocol does (768); None keeps the aspect, to the nearest multiple of 32, which is
            what the encoder's coarsest level needs.
        mean, std: the pixels' normalisation, RGB, 0 to 255.
    """

    shortest_side: int = 640
    longest_side: int = 2560
    square: int | None = 768
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        for field in ("mean", "std"):  # JSON has lists only
            object.__setattr__(self, field, tuple(getattr(self, field)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """(..., 3, H, W) RGB, 0 to 255, any type -> float32."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return (pixels.float() - mean) / std

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the photo after the first resize."""
        scale = min(self.shortest_side / min(height, width), self.longest_side / max(height, width))
        step = _MULTIPLE if self.square is None else 1
        height, width = (max(round(s * scale / step), 1) * step for s in (height, width))
        return height, width

    def __call__(self, photo: Image.Image) -> Tensor:
        """An RGB photo -> (3, H', W') float32, normalised."""
        height, width = self.size(photo.height, photo.width)
        resized = photo.resize((width, height), Image.Resampling.BILINEAR)
        pixels = self.normalise(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
        if self.square is None:
            return pixels
        side = (self.square, self.square)
        return F.interpolate(pixels[None], side, mode="bilinear", align_corners=False)[0]
