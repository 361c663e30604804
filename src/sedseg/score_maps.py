"""From the model's coarse scores to the photo's own size, strip by strip.

All classes of a large photo do not fit in memory at once (150 classes of 108 megapixels are
65 GB), so the scores stay at the model's resolution and are enlarged a few rows at a time.

Dimensions: T classes, K classes that were not rejected, h w coarse pixels, H W photo pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_ELEMENTS = 2**23
"""Scores enlarged at once, 32 MB: enough to keep the processor busy, few enough for its caches."""


@dataclass(frozen=True, eq=False)
class ScoreMaps:
    """The score of every class at every pixel of a photo, 0 to 1, without storing them all.

    Attributes:
        coarse: (K, h, w) scores, float32.
        rows: (K,) the class of each row of ``coarse``; the other classes were rejected, score 0.
        shape: (T, H, W).
        absence: a class that the model was not asked for: at each pixel its score is 1 minus the
            largest score among the other classes. None if there is no such class.
    """

    coarse: Tensor
    rows: tuple[int, ...]
    shape: tuple[int, int, int]
    absence: int | None = None

    def best(self, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best class of every pixel.

        Args:
            threshold: a pixel whose best score is less gets no class.

        Returns:
            (H, W) class indices, -1 for none, int16 (int32 from 32,767 classes on); and (H, W)
            the best score, rounded to float16.
        """
        classes, height, width = self.shape
        index_type = np.int16 if classes < np.iinfo(np.int16).max else np.int32
        mask = np.empty((height, width), index_type)
        score = np.empty((height, width), np.float16)
        contenders = _contenders(self.coarse)
        for start, stop in self._strips():
            rows = _rows_within(contenders, height, start, stop)
            value, winner = self._enlarged(start, stop, rows).max(0)
            of_row = [*(self.rows[row] for row in rows.tolist()), self.absence or 0]
            index = torch.tensor(of_row, device=winner.device)[winner]
            if threshold is not None:
                index[value < threshold] = -1
            mask[start:stop] = index.cpu().numpy()
            score[start:stop] = value.half().cpu().numpy()
        return mask, score

    def full(self) -> np.ndarray:
        """(T, H, W) float32: all scores. Mind the memory: four bytes a class and pixel."""
        full = np.zeros(self.shape, np.float32)
        classes = [*self.rows, *([] if self.absence is None else [self.absence])]
        every = torch.arange(len(self.rows), device=self.coarse.device)
        for start, stop in self._strips():
            full[classes, start:stop] = self._enlarged(start, stop, every).cpu().numpy()
        return full

    def of(self, index: int) -> np.ndarray:
        """(H, W) float32: the scores of one class."""
        _, height, width = self.shape
        if index == self.absence:
            every = torch.arange(len(self.rows), device=self.coarse.device)
            strips = [self._enlarged(*strip, every)[-1] for strip in self._strips()]
            return np.asarray(torch.cat(strips).cpu())
        if index not in self.rows:
            return np.zeros((height, width), np.float32)
        row = self.rows.index(index)
        alone = ScoreMaps(self.coarse[row : row + 1], (0,), (1, height, width))
        return np.asarray(alone.full()[0])

    def cpu(self) -> ScoreMaps:
        """The same in the processor's memory."""
        return dataclasses.replace(self, coarse=self.coarse.cpu())

    def _strips(self) -> list[tuple[int, int]]:
        """The photo's rows in strips, from one row to before another."""
        _, height, width = self.shape
        step = max(STRIP_ELEMENTS // (len(self.rows) * width), 1)
        return [(start, min(start + step, height)) for start in range(0, height, step)]

    def _enlarged(self, start: int, stop: int, rows: Tensor) -> Tensor:
        """(len(rows), stop - start, W) scores of ``rows``, and after them the absence's if any."""
        _, height, width = self.shape
        scores = enlarge_rows(self.coarse, height, width, start, stop, rows)
        if self.absence is None:
            return scores
        return torch.cat([scores, 1 - scores.amax(0, keepdim=True)])


def enlarge_rows(
    maps: Tensor, height: int, width: int, start: int, stop: int, which: Tensor
) -> Tensor:
    """Rows ``start`` to ``stop`` of ``maps[which]`` (K, h, w) enlarged to (K, height, width).

    The same numbers as ``F.interpolate(maps[which], (height, width), mode="bilinear",
    align_corners=False)``, which cannot be asked for some rows only: bilinear interpolation is
    linear along each side, so the rows are weighted here and the columns by torch.
    """
    coarse_height = maps.shape[-2]
    scale = torch.tensor(float(coarse_height), device=maps.device) / height
    centre = torch.arange(start, stop, dtype=torch.float32, device=maps.device) + 0.5
    position = (centre * scale - 0.5).clamp(min=0)
    above = position.long()
    below = (above + 1).clamp(max=coarse_height - 1)
    weight = (position - above)[:, None]
    which = which[:, None]
    rows = torch.lerp(maps[which, above], maps[which, below], weight)
    return F.interpolate(rows, width, mode="linear", align_corners=False)


def _contenders(coarse: Tensor) -> Tensor:
    """(K, h') bool: which classes can be the best of some pixel between two coarse rows.

    Between four coarse pixels a class scores no more than the largest of its four scores, and the
    best class no less than the largest, over the classes, of their smallest of four. Most classes
    lose to that nearly everywhere, and need not be enlarged there.
    """
    cell = (min(coarse.shape[1], 2), min(coarse.shape[2], 2))
    most = F.max_pool2d(coarse, cell, stride=1)
    least = -F.max_pool2d(-coarse, cell, stride=1)
    rounding = 1e-5  # of the enlarging
    return (most >= least.amax(0) - rounding).any(2)


def _rows_within(contenders: Tensor, height: int, start: int, stop: int) -> Tensor:
    """The classes that contend for pixels of the photo's rows ``start`` to ``stop``."""
    scale = contenders.shape[1] / height
    # One row more on either side: cells lie half a pixel off, and there is one fewer than pixels.
    first, last = int(start * scale) - 1, int(stop * scale) + 2
    return contenders[:, max(first, 0) : last].any(1).nonzero()[:, 0]
