"""What lies below the root of the data sets: benchmarks, ready or not, and folders of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sedseg.data.benchmarks.table import BENCHMARKS, Benchmark
from sedseg.data.dataset_file import DatasetFile, SplitCount
from sedseg.errors import InputError
from sedseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class Found:
    """A data set.

    Attributes:
        name: of the benchmark or the folder.
        classes: how many, as scored; None where ``classes.txt`` is faulty.
        folder: where it lies once prepared.
        splits: photos of each split that is ready; of a folder of one's own ``expected`` equals
            ``photos``.
        needs: sentences on what is not ready.
    """

    name: str
    classes: int | None
    folder: Path
    splits: dict[str, SplitCount]
    needs: tuple[str, ...]


def find_benchmarks(root: Path) -> list[Found]:
    """Every row of the table."""
    return [_benchmark(row, root) for row in BENCHMARKS]


def find_folders(root: Path) -> list[Found]:
    """The folders directly below ``root`` that have a ``classes.txt`` and are no benchmark."""
    known = {row.name for row in BENCHMARKS}
    folders = (path.parent for path in sorted(root.glob("*/classes.txt")))
    return [_own(folder) for folder in folders if folder.name not in known]


def _benchmark(row: Benchmark, root: Path) -> Found:
    folder = root / row.name
    classes = len(row.label_set.scored_raw_ids)
    try:
        splits = DatasetFile.read(folder).splits
    except InputError as error:
        return Found(row.name, classes, folder, {}, (str(error),))
    needs: list[str] = []
    for name in row.photos:
        form = row.form(name, root)
        count = splits.get(name)
        if count is None:
            origins = dict.fromkeys(piece.origin for piece in form.missing(root))
            command = f"run sedseg datasets prepare {row.name} --split {name} --root {root}"
            needs.append(f"{name}: {'get ' + ' and '.join(origins) if origins else command}")
        elif count.photos < count.expected:
            needs.append(f"{name}: photos missing: {count.expected - count.photos:,}")
    return Found(row.name, classes, folder, splits, tuple(needs))


def _own(folder: Path) -> Found:
    needs: tuple[str, ...] = ()
    classes = None
    try:
        classes = len(Vocabulary.of(folder / "classes.txt"))
        DatasetFile.read(folder)
    except InputError as error:
        needs = (str(error),)
    counts = {images.parent.name: _photos(images) for images in sorted(folder.glob("*/images"))}
    splits = {split: SplitCount(n, n) for split, n in counts.items()}
    return Found(folder.name, classes, folder, splits, needs)


def _photos(folder: Path) -> int:
    return sum(not path.name.startswith(".") for path in folder.iterdir())
