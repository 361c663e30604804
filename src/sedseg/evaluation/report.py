"""The report of an evaluation: one HTML page, and its numbers as JSON and CSV.

Dimensions: S scored classes, T prompts, H W pixels.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sedseg.data.folder import FolderDataset
from sedseg.drawing import class_colours
from sedseg.errors import InputError
from sedseg.evaluation import plots
from sedseg.evaluation.results import DEFINITIONS, Evaluation, Measured, PhotoScore
from sedseg.storage import replacing

Predict = Callable[[int, "int | None"], np.ndarray]
"""(a photo's index in the data set, top_k) -> (H, W) scored class indices, -1 for none."""

_TITLES = {
    "miou_ground_truth": "mIoU (ground truth)",
    "miou_union": "mIoU (union)",
    "pixel_accuracy": "Pixel accuracy",
    "mean_accuracy": "Mean accuracy",
    "frequency_weighted_iou": "Frequency-weighted IoU",
}
_CLASSES_AT_ONCE = 60  # of a longer list the page opens with the ends
_CLASSES_AT_AN_END = 15
_PAIRS = 20
_LEGEND_LINES = 24


class ReportFiles(NamedTuple):
    """Where :func:`write_report` wrote; None: there was no trade-off to show."""

    html: Path
    record: Path
    per_class: Path
    photos: Path
    confusion: Path
    tradeoff: Path | None
    tradeoff_plot: Path | None


class _ClassRow(NamedTuple):
    name: str
    colour: str
    iou: float
    accuracy: float
    pixels: int


class _LegendLine(NamedTuple):
    """A class in a photo; shares are of the photo's pixels, 0 to 1."""

    name: str
    colour: str
    truth: float
    predicted: float


@dataclass(frozen=True)
class _ShownPhoto:
    score: PhotoScore
    pictures: tuple[tuple[str, str, str], ...]  # title, data URI, alternative text
    legend: tuple[_LegendLine, ...]
    more: int  # classes that the legend leaves out


def require_report(folder: Path | None = None) -> None:
    """Check that a report can be written; call it before a long run.

    Args:
        folder: where to; made if need be.

    Raises:
        InputError: Jinja2 or matplotlib is not installed; the folder cannot be written to.
    """
    if not all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib")):
        raise InputError('The report needs Jinja2 and matplotlib; pip install "sedseg[eval]".')
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"{folder} cannot be written to: {error.strerror}.") from error


def write_report(
    evaluation: Evaluation, dataset: FolderDataset, predict: Predict, folder: Path, most: int = 4
) -> ReportFiles:
    """Write ``report.html``, ``evaluation.json`` and the CSV files.

    Classes, confused pairs and photos are shown for the first setting measured. Everything is made
    before the first file is replaced, so that a report which fails leaves the one before whole.

    Args:
        evaluation: what was found.
        dataset: the photos it was found on; labels are scored class indices.
        predict: segments a photo; called for the photos shown alone.
        folder: where to; made if need be.
        most: photos shown at most, of the best and of the worst each.

    Raises:
        InputError: Jinja2 or matplotlib is not installed; a photo cannot be read; the folder
            cannot be written to.
    """
    require_report()
    first = evaluation.measured[0]
    traded = len(evaluation.measured) > 1
    contents: dict[str, bytes] = {
        "report.html": _page(evaluation, dataset, predict, most).encode(),
        "evaluation.json": _record(evaluation).encode(),
        "per_class.csv": _csv(_class_lines(evaluation)),
        "photos.csv": _csv(_photo_lines(evaluation)),
        "confusion.csv": _csv(_confusion_lines(evaluation, first)),
    }
    tradeoff_files = ("tradeoff.csv", "tradeoff.png")
    if traded:
        drawings = (plots.tradeoff(evaluation), plots.kept_prompts(evaluation))
        numbers, plot = tradeoff_files
        contents[numbers] = _csv(_tradeoff_lines(evaluation))
        contents[plot] = plots.as_png(*drawings)
    try:
        # Left in reverse order, and only when all are written: the page is renamed last.
        with contextlib.ExitStack() as stack:
            for name, content in contents.items():
                stack.enter_context(replacing(folder / name)).write_bytes(content)
        if not traded:  # those of an earlier evaluation would belie this one
            for name in tradeoff_files:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror or error}.") from error
    always = [folder / name for name in contents if name not in tradeoff_files]
    return ReportFiles(*always, *((folder / n) if traded else None for n in tradeoff_files))


def _record(evaluation: Evaluation) -> str:
    record = evaluation.record()
    for result, measured in zip(record["results"], evaluation.measured, strict=True):
        result["per_photo"] = [
            {
                "index": score.index,
                "photo": str(score.photo),
                "miou": _or(None, score.miou),
                "pixel_accuracy": _or(None, score.pixel_accuracy),
            }
            for score in measured.photos
        ]
    return json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _class_lines(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    yield "top_k", "index", "class", "iou", "accuracy", "pixels"
    for measured in evaluation.measured:
        for index, row in enumerate(_class_rows(evaluation, measured)):
            figures = (_or("", row.iou), _or("", row.accuracy))
            yield _word(measured.top_k), index, row.name, *figures, row.pixels


def _photo_lines(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    yield "top_k", "index", "photo", "miou", "pixel_accuracy"
    for measured in evaluation.measured:
        for score in measured.photos:
            figures = (_or("", score.miou), _or("", score.pixel_accuracy))
            yield _word(measured.top_k), score.index, score.photo, *figures


def _confusion_lines(evaluation: Evaluation, measured: Measured) -> Iterable[Sequence[Any]]:
    yield "truth \\ predicted", *evaluation.classes, "(no scored class)"
    for name, counts in zip(evaluation.classes, measured.matrix.counts.tolist(), strict=True):
        yield name, *counts


def _tradeoff_lines(evaluation: Evaluation) -> Iterable[Sequence[Any]]:
    kept = ("kept_1", "kept_2", "kept_3")
    yield "top_k", *evaluation.measured[0].figures, *kept, "seconds_per_photo"
    for measured in evaluation.measured:
        figures = [_or("", value) for value in measured.figures.values()]
        yield _word(measured.top_k), *figures, *measured.kept, measured.seconds


def _csv(lines: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()


def _word(top_k: int | None) -> str:
    return "none" if top_k is None else str(top_k)


def _or(otherwise: Any, value: float) -> Any:
    return otherwise if math.isnan(value) else value


def _page(evaluation: Evaluation, dataset: FolderDataset, predict: Predict, most: int) -> str:
    import jinja2

    first = evaluation.measured[0]
    rows = [r for r in _class_rows(evaluation, first) if not math.isnan(r.iou)]
    # Of the classes with nothing right, those with most pixels matter most.
    rows.sort(key=lambda row: (-row.iou, row.pixels))
    best, worst = _ranked(first.photos, most)
    colours = class_colours(evaluation.classes)

    def shown(scores: Sequence[PhotoScore]) -> list[_ShownPhoto]:
        return [
            _shown_photo(score, dataset, predict(score.index, first.top_k), evaluation, colours)
            for score in scores
        ]

    many = len(rows) > _CLASSES_AT_ONCE
    traded = len(evaluation.measured) > 1
    drawings = (plots.tradeoff(evaluation), plots.kept_prompts(evaluation)) if traded else ()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(percent=_percent, shown=_shown, seconds=_seconds)
    source = resources.files("sedseg") / "assets" / "report.html.j2"
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        evaluation=evaluation,
        first=first,
        rejection=plots.rejection,
        titles=_TITLES,
        definitions=DEFINITIONS,
        plots=[plots.as_svg(drawing) for drawing in drawings],
        overview=plots.as_svg(plots.sorted_iou([r.iou for r in rows])) if many else None,
        rows=rows,
        ends=(rows[:_CLASSES_AT_AN_END], rows[-_CLASSES_AT_AN_END:]) if many else None,
        pairs=evaluation.most_confused(first, _PAIRS),
        usual_similarity=_usual_similarity(evaluation),
        best=shown(best),
        worst=shown(worst),
    )


def _class_rows(evaluation: Evaluation, measured: Measured) -> list[_ClassRow]:
    """In the order of the classes."""
    matrix = measured.matrix
    colours = map(_hex, class_colours(evaluation.classes))
    columns = (matrix.iou.tolist(), matrix.accuracy.tolist(), matrix.truth_pixels.tolist())
    return [_ClassRow(*row) for row in zip(evaluation.classes, colours, *columns, strict=True)]


def _ranked(photos: Sequence[PhotoScore], most: int) -> tuple[list[PhotoScore], list[PhotoScore]]:
    """The best, the best first, and the worst, the worst first; none is both."""
    ranked = sorted((p for p in photos if not math.isnan(p.miou)), key=lambda p: -p.miou)
    middle = -(-len(ranked) // 2)
    return ranked[: min(most, middle)], ranked[middle:][::-1][:most]


def _shown_photo(
    score: PhotoScore,
    dataset: FolderDataset,
    predicted: np.ndarray,
    evaluation: Evaluation,
    colours: np.ndarray,
) -> _ShownPhoto:
    pixels, labels = dataset[score.index]
    truth = labels.numpy()
    truth = np.where((truth >= 0) & (truth < len(colours)), truth, -1)
    photo = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    panels = plots.photo_panels(photo, truth, predicted, colours)
    shares = [_shares(mask, len(colours)) for mask in (truth, predicted)]
    order = np.argsort(-np.maximum(*shares), kind="stable")
    legend = [
        _LegendLine(evaluation.classes[i], _hex(colours[i]), *(float(s[i]) for s in shares))
        for i in order
        if any(s[i] for s in shares)
    ]
    name = score.photo.name
    titles = ("Photo", "Truth", "Prediction", "Wrong pixels")
    alternatives = (
        f"The photo {name}",
        f"Truth of {name}: {_told((line.name, line.truth) for line in legend)}",
        f"Prediction for {name}: {_told((line.name, line.predicted) for line in legend)}",
        f"Wrong pixels of {name}: {_percent(1 - score.pixel_accuracy)} of those labelled",
    )
    uris = map(plots.as_jpeg, panels)
    pictures = tuple(zip(titles, uris, alternatives, strict=True))
    more = max(0, len(legend) - _LEGEND_LINES)
    return _ShownPhoto(score, pictures, tuple(legend[:_LEGEND_LINES]), more)


def _told(shares: Iterable[tuple[str, float]]) -> str:
    """The largest classes of a mask, for those who do not see it."""
    largest = sorted(((n, s) for n, s in shares if s), key=lambda pair: -pair[1])[:6]
    return ", ".join(f"{name} {_percent(share)}" for name, share in largest) or "no class"


def _shares(mask: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(mask[mask >= 0], minlength=classes) / mask.size


def _usual_similarity(evaluation: Evaluation) -> float | None:
    """The median over pairs of different classes; None where there is no pair."""
    similarity = evaluation.similarity.float().cpu().numpy()
    pairs = similarity[~np.eye(len(similarity), dtype=bool)]
    return float(np.median(pairs)) if pairs.size else None


def _hex(colour: np.ndarray) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour.tolist())


def _percent(share: float) -> str:
    if math.isnan(share):
        return "–"  # noqa: RUF001
    percent = share * 100
    return "<0.1%" if 0 < percent < 0.1 else f"{percent:.1f}%"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _shown(value: Any) -> str:
    """A setting, for the eye."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    return str(value)
