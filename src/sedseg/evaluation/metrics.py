"""One confusion matrix, and what is read from it.

Dimensions: T classes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Confusion(NamedTuple):
    """Pixels of one class that were given another: indices, pixels, and their share of ``truth``.

    ``predicted`` is T where no class was given.
    """

    truth: int
    predicted: int
    pixels: int
    share: float


@dataclass(frozen=True)
class ConfusionMatrix:
    """Pixels counted by (truth, prediction). All figures are from 0 to 1.

    Attributes:
        counts: (T, T + 1) int64; the last column counts pixels that were given no class.
    """

    counts: Tensor

    @classmethod
    def empty(cls, classes: int) -> ConfusionMatrix:
        """All zero."""
        return cls(torch.zeros(classes, classes + 1, dtype=torch.int64))

    @classmethod
    def of(cls, labels: Tensor, mask: Tensor, classes: int) -> ConfusionMatrix:
        """Of one photo; arguments as of :meth:`add`."""
        matrix = cls.empty(classes)
        matrix.add(labels, mask)
        return matrix

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

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix(self.counts + other.counts)

    @property
    def iou(self) -> Tensor:
        """(T,) float64 intersection over union; nan for a class nowhere seen."""
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
    def accuracy(self) -> Tensor:
        """(T,) float64, the share of each class's pixels that got it; nan for an absent class."""
        hits, truth, _ = self._sums()
        return hits / truth.where(truth > 0, torch.nan)

    @property
    def pixel_accuracy(self) -> float:
        """The share of labelled pixels that got their class."""
        hits, truth, _ = self._sums()
        return float(hits.sum() / truth.sum())

    @property
    def mean_accuracy(self) -> float:
        """The mean of :attr:`accuracy` over the classes present in the ground truth."""
        return float(self.accuracy.nanmean())

    @property
    def frequency_weighted_iou(self) -> float:
        """The mean IoU weighted by the classes' pixels in the ground truth."""
        hits, truth, union = self._sums()
        present = truth > 0
        return float((hits / union * truth)[present].sum() / truth.sum())

    @property
    def truth_pixels(self) -> Tensor:
        """(T,) int64, the labelled pixels of each class."""
        return self.counts.sum(1)

    def most_confused(self, most: int) -> list[Confusion]:
        """The pairs (truth, other prediction) of most pixels, the largest first."""
        wrong = self.counts.clone()
        wrong[:, :-1].fill_diagonal_(0)
        pixels, places = wrong.flatten().topk(min(most, wrong.numel()))
        of_truth = self.truth_pixels.tolist()
        pairs = (divmod(place, wrong.shape[1]) for place in places.tolist())
        return [
            Confusion(truth, predicted, n, n / of_truth[truth])
            for (truth, predicted), n in zip(pairs, pixels.tolist(), strict=True)
            if n
        ]

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        counts = self.counts.double()
        hits, truth = counts[:, :-1].diagonal(), counts.sum(1)
        return hits, truth, truth + counts[:, :-1].sum(0) - hits
