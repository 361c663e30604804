"""Evaluating a model on labelled photos.

Dimensions: S scored classes, T prompts, H W pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor

from sedseg.ahead import ahead
from sedseg.asked_words import AskedWords
from sedseg.devices import choose_device
from sedseg.evaluation.metrics import ConfusionMatrix
from sedseg.evaluation.results import Evaluation, Measured, PhotoScore
from sedseg.evaluation.task import EvaluationTask
from sedseg.evaluation.views import Views, score
from sedseg.model.sed import SED
from sedseg.segmenter import Segmenter


class _Counted(NamedTuple):
    """One photo at one setting of early rejection."""

    score: PhotoScore
    kept: tuple[int, ...]
    seconds: float


class Part(NamedTuple):
    """What one process found at one setting of early rejection."""

    matrix: ConfusionMatrix
    photos: list[_Counted]


def evaluate(
    segmenter: Segmenter,
    task: EvaluationTask,
    *,
    top_ks: Sequence[int | None] = (None,),
    views: Views | None = None,
    photos: Sequence[int] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a model, on one process or on all that ``accelerate launch`` started.

    Each process takes its share of the photos, none twice, and all get the whole result.

    Args:
        segmenter: the model.
        task: photos, labels and words; its labels are checked by ``task.dataset.check()``.
        top_ks: settings of early rejection, all measured in one pass; None rejects nothing.
        views: how the model sees the photos; default: as it was made for, whole and once.
        photos: which, by index; None: all.
        progress: called after each photo of this process.

    Raises:
        InputError: a photo or a label cannot be read.
    """
    views = views or Views(segmenter.info.preprocessing)
    words = segmenter.words(task.prompts)
    state = processes()
    indices = list(range(len(task.dataset)) if photos is None else photos)
    share = indices[state.process_index :: state.num_processes]
    parts = measure(segmenter.network, words, task, views, top_ks, share, progress)
    by_process: list[list[Part]] = gather_object([parts])
    own = tuple(i for i, scored in enumerate(task.scored_as) if scored >= 0)
    return Evaluation(
        model=segmenter.info.name,
        weights=segmenter.source,
        dataset=task.dataset.name,
        split=task.split,
        classes=task.classes,
        prompts=task.prompts.synonyms,
        scored_as=task.scored_as,
        settings=_settings(segmenter, views, state.num_processes),
        notes=(*task.notes, *_partial(len(indices), task)),
        measured=tuple(
            _joined(top_k, [parts[i] for parts in by_process]) for i, top_k in enumerate(top_ks)
        ),
        similarity=_similarity(
            segmenter.text_embeddings.embeddings(task.prompts)[list(own)],
            [task.scored_as[i] for i in own],
            len(task.classes),
        ),
    )


def processes() -> PartialState:
    """Those that evaluate together: this one, or all that ``accelerate launch`` started."""
    # Several CPU processes must be called so, else each takes itself for the only one.
    return PartialState(cpu=choose_device().type == "cpu")


def measure(
    network: SED,
    words: AskedWords,
    task: EvaluationTask,
    views: Views,
    top_ks: Sequence[int | None],
    photos: Iterable[int],
    progress: Callable[[], None] = lambda: None,
) -> list[Part]:
    """Segment photos and count, for each setting of early rejection; see :func:`evaluate`."""
    scored_as = np.array([*task.scored_as, -1])  # the last for pixels without a prompt
    parts = [Part(ConfusionMatrix.empty(len(task.classes)), []) for _ in top_ks]
    for index, reading in ahead(task.dataset.__getitem__, photos):
        image, labels = reading.result()
        photo = _picture(image)
        for part, found in zip(parts, score(network, photo, words, views, top_ks), strict=True):
            before = time.perf_counter()
            mask = scored_as[found.maps.best()[0]]
            seconds = found.seconds + time.perf_counter() - before
            one = ConfusionMatrix.of(labels, torch.from_numpy(mask), len(task.classes))
            part.matrix.counts.add_(one.counts)
            scores = (one.miou_ground_truth, one.pixel_accuracy)
            photo_score = PhotoScore(index, task.dataset.photos[index], *scores)
            part.photos.append(_Counted(photo_score, found.kept, seconds))
        progress()
    return parts


def predict(
    segmenter: Segmenter, task: EvaluationTask, views: Views, index: int, top_k: int | None
) -> np.ndarray:
    """(H, W) scored class of every pixel of a photo, -1 for none: what was counted."""
    image, _ = task.dataset[index]
    words = segmenter.words(task.prompts)
    (found,) = score(segmenter.network, _picture(image), words, views, [top_k])
    return np.array([*task.scored_as, -1])[found.maps.best()[0]]


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _joined(top_k: int | None, parts: Sequence[Part]) -> Measured:
    photos = sorted((c for part in parts for c in part.photos), key=lambda c: c.score.index)
    stages = zip(*(counted.kept for counted in photos), strict=True)
    first, second, third = (statistics.mean(stage) for stage in stages)
    return Measured(
        top_k=top_k,
        matrix=sum((part.matrix for part in parts[1:]), start=parts[0].matrix),
        kept=(first, second, third),
        seconds=statistics.median(counted.seconds for counted in photos),
        photos=tuple(counted.score for counted in photos),
    )


def _partial(photos: int, task: EvaluationTask) -> tuple[str, ...]:
    total = len(task.dataset)
    return (f"{photos:,} of the {total:,} photos were segmented.",) if photos < total else ()


def _settings(segmenter: Segmenter, views: Views, processes: int) -> dict[str, Any]:
    shown = {name: value for name, value in asdict(views).items() if name != "preprocessing"}
    return {
        "protocol": views.protocol,
        **asdict(views.preprocessing),
        **shown,
        "dtype": str(segmenter.dtype).removeprefix("torch."),
        "device": str(segmenter.device),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _similarity(text: Tensor, scored_as: Sequence[int], classes: int) -> Tensor:
    """(T, P, C) -> (S, S) cosines; where several prompts are one class, the largest."""
    mean = F.normalize(text.float().mean(1), dim=-1)
    rows = torch.tensor(scored_as)
    found = torch.full((classes, len(rows)), -1.0)
    found.scatter_reduce_(0, rows[:, None].expand(-1, len(rows)), mean @ mean.T, "amax")
    both = torch.full((classes, classes), -1.0)
    return both.scatter_reduce_(1, rows.expand(classes, -1), found, "amax")
