"""What an evaluation found.

Dimensions: S scored classes, T prompts (the words asked; several may be scored as one class).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sedseg.evaluation.metrics import ConfusionMatrix

_PAIRS = 50


@dataclass(frozen=True)
class PhotoScore:
    """How well one photo was segmented.

    Attributes:
        index: of the photo in the data set.
        photo: its path.
        miou: over the classes present in its own labels, 0 to 1; nan without a labelled pixel.
        pixel_accuracy: 0 to 1; nan likewise.
    """

    index: int
    photo: Path
    miou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class Measured:
    """The result at one setting of early rejection.

    Attributes:
        top_k: k; None: nothing rejected.
        matrix: (S, S + 1) pixels.
        kept: the mean number of the T prompts alive after each of the three rejections.
        seconds: median over photos, from the decoded photo to its mask.
        photos: each photo's score, in the data set's order.
    """

    top_k: int | None
    matrix: ConfusionMatrix
    kept: tuple[float, float, float]
    seconds: float
    photos: tuple[PhotoScore, ...]

    @property
    def figures(self) -> dict[str, float]:
        """The summary, named by definition, 0 to 1."""
        matrix = self.matrix
        return {
            "miou_ground_truth": matrix.miou_ground_truth,
            "miou_union": matrix.miou_union,
            "pixel_accuracy": matrix.pixel_accuracy,
            "mean_accuracy": matrix.mean_accuracy,
            "frequency_weighted_iou": matrix.frequency_weighted_iou,
        }


@dataclass(frozen=True)
class Evaluation:
    """Everything about one run.

    Attributes:
        model: the model's name. weights: where it was loaded from.
        dataset: the data set's name. split: which part of it.
        classes: the S scored names.
        prompts: the T prompts, each with its synonyms. scored_as: the class of each, -1 for none
            (a distractor).
        settings: protocol, sizes, type of number, device and the like, ready for JSON.
        notes: sentences that a reader must know, such as that photos of the data set are missing.
        measured: one for each setting of early rejection, in the order asked for.
        similarity: (S, S) cosine between the classes' text embeddings (of several prompts scored
            as one, the largest).
    """

    model: str
    weights: str
    dataset: str
    split: str
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    scored_as: tuple[int, ...]
    settings: dict[str, Any]
    notes: tuple[str, ...]
    measured: tuple[Measured, ...]
    similarity: Tensor

    def record(self) -> dict[str, Any]:
        """Ready for JSON: what was evaluated and, for each ``top_k``, everything but the photos.

        IoU and accuracy of a class are None where they are undefined.
        """
        return {
            "model": self.model,
            "weights": self.weights,
            "dataset": self.dataset,
            "split": self.split,
            "photos": len(self.measured[0].photos),
            "classes": len(self.classes),
            "prompts": len(self.prompts),
            "settings": self.settings,
            "notes": list(self.notes),
            "definitions": DEFINITIONS,
            "results": [self._result(measured) for measured in self.measured],
        }

    def _result(self, measured: Measured) -> dict[str, Any]:
        matrix = measured.matrix
        columns = (matrix.iou.tolist(), matrix.accuracy.tolist(), matrix.truth_pixels.tolist())
        rows = zip(self.classes, *columns, strict=True)
        return {
            "top_k": measured.top_k,
            **{name: _or_none(value) for name, value in measured.figures.items()},
            "kept": list(measured.kept),
            "seconds_per_photo": measured.seconds,
            "per_class": [
                {"class": name, "iou": _or_none(iou), "accuracy": _or_none(accuracy), "pixels": n}
                for name, iou, accuracy, n in rows
            ],
            "most_confused": self.most_confused(measured, _PAIRS),
        }

    def most_confused(self, measured: Measured, most: int) -> list[dict[str, Any]]:
        """The pairs (truth, predicted) of most pixels; predicted is None for no class."""
        pairs = []
        for truth, predicted, pixels, share in measured.matrix.most_confused(most):
            known = predicted < len(self.classes)
            pairs.append(
                {
                    "truth": self.classes[truth],
                    "predicted": self.classes[predicted] if known else None,
                    "pixels": pixels,
                    "share": share,
                    "similarity": float(self.similarity[truth, predicted]) if known else None,
                }
            )
        return pairs


DEFINITIONS = {
    "miou_ground_truth": "mean IoU over the classes present in the ground truth (detectron2 since "
    "July 2022; the paper's tables)",
    "miou_union": "the sum of the same IoUs over the number of classes present in ground truth or "
    "prediction (detectron2 before July 2022)",
    "pixel_accuracy": "correct pixels over labelled pixels",
    "mean_accuracy": "mean over the classes present of correct pixels over labelled pixels",
    "frequency_weighted_iou": "mean IoU weighted by the classes' pixels in the ground truth",
    "share": "of the true class's pixels",
    "similarity": "cosine of the text embeddings",
    "kept": "mean number of prompts alive after each of the three rejections",
}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
