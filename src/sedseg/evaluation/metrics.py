"""One confusion matrix, and what is read from it.

Dimensions: T classes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConfusionMatrix:
    """Pixels counted by (truth, prediction).

    Attributes:
        counts: (T, T + 1) int64; the last column counts pixels that were given no class.
    """

    counts: Tensor

    @classmethod
    def empty(cls, classes: int) -> ConfusionMatrix:
        """All zero."""
        return cls(torch.zeros(classes, classes + 1, dtype=torch.int64))

    def add(self, labels: Tensor, mask: Tensor) -> None:
        """Count a photo.

        Args:
            labels: (H, W) truth; what is outside 0 .. T-1 is left out.
            mask: (H, W) predicted class, -1 for none.
        """
        classes = len(self.counts)
        known = (labels >= 0) & (labels < classes)
        predicted = mask[known].long()
        predicted = predicted.where(predicted >= 0, classes)
        pairs = labels[known].long() * (classes + 1) + predicted
        self.counts.add_(torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts))

    @property
    def iou(self) -> Tensor:
        """(T,) float64 intersection over union, 0 to 1; nan for a class nowhere seen."""
        hits, _, union = self._sums()
        return hits / union.where(union > 0, torch.nan)

    @property
    def miou_ground_truth(self) -> float:
        """Mean IoU over the classes present in the ground truth (the field's since 2022)."""
        hits, truth, union = self._sums()
        return float((hits / union)[truth > 0].mean())

    @property
    def miou_union(self) -> float:
        """Sum of the same IoUs over the number of classes in ground truth or prediction."""
        hits, truth, union = self._sums()
        return float((hits / union)[truth > 0].sum() / (union > 0).sum())

    @property
    def pixel_accuracy(self) -> float:
        """The share of labelled pixels that got their class, 0 to 1."""
        hits, truth, _ = self._sums()
        return float(hits.sum() / truth.sum())

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.counts.double()
        hits, truth = counts[:, :-1].diagonal(), counts.sum(1)
        return hits, truth, truth + counts[:, :-1].sum(0) - hits
