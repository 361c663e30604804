"""Mean IoU of a model on folders of labelled photos, as training runs it now and then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sedseg.data.folder import FolderDataset
from sedseg.evaluation.metrics import ConfusionMatrix
from sedseg.model.sed import SED
from sedseg.preprocessing import Preprocessing


@torch.inference_mode()
def confusion(
    model: SED,
    dataset: FolderDataset,
    preprocessing: Preprocessing,
    *,
    classes: Sequence[str | Sequence[str]] | None = None,
    top_k: int | None = None,
    photos: Iterable[int] | None = None,
) -> ConfusionMatrix:
    """Segment photos of a data set and count.

    Args:
        model: in eval mode, where it is; its own type of number is used.
        dataset: photos and labels.
        preprocessing: how large the model sees them.
        classes: other words for the data set's classes, in its order.
        top_k: early rejection; None: dense.
        photos: which photos, by index; None: all.
    """
    parameter = next(model.parameters())
    text = model.encode_text(classes or dataset.vocabulary.synonyms)
    matrix = ConfusionMatrix.empty(len(dataset.vocabulary))
    for index in range(len(dataset)) if photos is None else photos:
        image, labels = dataset[index]
        pixels = preprocessing(Image.fromarray(image.permute(1, 2, 0).numpy()))
        out = model(pixels[None].to(parameter), text, top_k=top_k)
        matrix.add(labels, _mask(out.logits, labels))
    return matrix


def _mask(logits: Tensor, labels: Tensor) -> Tensor:
    size = (labels.shape[-2], labels.shape[-1])
    scores = F.interpolate(
        logits.float().sigmoid(), size=size, mode="bilinear", align_corners=False
    )
    return scores[0].argmax(0).cpu()


def validate(
    model: SED, datasets: Sequence[FolderDataset], preprocessing: Preprocessing, most: int
) -> Iterator[tuple[str, float]]:
    """Yield (set, mIoU over the classes present in the ground truth); of several, ("mean", mIoU).

    Args:
        model, preprocessing: as of :func:`confusion`.
        datasets: the validation split of each set.
        most: photos of a set at most, spread evenly.
    """
    found = []
    for dataset in datasets:
        step = max(1, -(-len(dataset) // most))
        photos = range(0, len(dataset), step)
        found.append(confusion(model, dataset, preprocessing, photos=photos).miou_ground_truth)
        yield dataset.name, found[-1]
    if len(found) > 1:
        yield "mean", sum(found) / len(found)
