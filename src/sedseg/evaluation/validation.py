"""Mean IoU of a model on folders of labelled photos, as training measures it now and then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from sedseg.asked_words import AskedWords
from sedseg.data.folder import FolderDataset
from sedseg.evaluation.evaluate import measure
from sedseg.evaluation.task import EvaluationTask
from sedseg.evaluation.views import Views
from sedseg.model.sed import SED
from sedseg.preprocessing import Preprocessing


def validate(
    model: SED, datasets: Sequence[FolderDataset], preprocessing: Preprocessing, most: int
) -> Iterator[tuple[str, float]]:
    """Yield (set, mIoU over the classes present in the ground truth); of several, ("mean", mIoU).

    Args:
        model: in eval mode, where it is; its own type of number is used.
        datasets: the validation split of each set.
        preprocessing: how large the model sees photos.
        most: photos of a set at most, spread evenly.
    """
    found = []
    for dataset in datasets:
        photos = spread(len(dataset), most)
        vocabulary = dataset.vocabulary
        with torch.inference_mode():
            text = model.encode_text(vocabulary.synonyms)
        words = AskedWords(vocabulary, text, tuple(range(len(vocabulary))))
        task = EvaluationTask.of(dataset)
        (part,) = measure(model, words, task, Views(preprocessing), [None], photos)
        found.append(part.matrix.miou_ground_truth)
        yield dataset.name, found[-1]
    if len(found) > 1:
        yield "mean", sum(found) / len(found)


def spread(photos: int, most: int) -> range:
    """The indices of at most so many photos, spread evenly."""
    return range(0, photos, max(1, -(-photos // most)))
