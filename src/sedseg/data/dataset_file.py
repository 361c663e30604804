"""``dataset.json``: what a folder of labelled photos says of itself beside its class list.

    {"benchmark": "coco-stuff", "ignore_label": 255, "splits": {"val": {"photos": 5000,
     "expected": 5000}}}

A prepared benchmark has all of it. A folder of one's own needs none, or ``ignore_label`` alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sedseg.errors import InputError
from sedseg.label_sets import LABEL_SETS
from sedseg.storage import replacing

DATASET_FILE = "dataset.json"


@dataclass(frozen=True)
class SplitCount:
    """How many photos a prepared split has, and how many the benchmark's authors name."""

    photos: int
    expected: int


@dataclass(frozen=True)
class DatasetFile:
    """The content of a ``dataset.json``.

    Attributes:
        benchmark: the label set's name, where the folder was prepared from a benchmark's files.
        ignore_label: the label of unlabelled pixels, besides 255 (16-bit: 65535).
        splits: those that are prepared whole, by name.
    """

    benchmark: str | None = None
    ignore_label: int | None = None
    splits: dict[str, SplitCount] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> DatasetFile:
        """The folder's; an empty one where it has none.

        Raises:
            InputError: the file is not of this form.
        """
        path = folder / DATASET_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as JSON ({error}); write it anew.") from error
        if not isinstance(content, dict):
            raise InputError(f'{path} holds no JSON object; write {{"ignore_label": 255}}.')
        benchmark, ignored = content.get("benchmark"), content.get("ignore_label")
        if benchmark is not None and benchmark not in LABEL_SETS:
            raise InputError(
                f'"benchmark" in {path} is {benchmark!r}; give one of {", ".join(LABEL_SETS)}.'
            )
        if ignored is not None and not (_is_count(ignored) and ignored <= 65535):
            raise InputError(
                f'"ignore_label" in {path} is {ignored!r}; it must be a number from 0 to 65535.'
            )
        return cls(benchmark, ignored, _splits(content.get("splits", {}), path))

    def write(self, folder: Path) -> None:
        """Write it into the folder, whole or not at all."""
        with replacing(folder / DATASET_FILE) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def _splits(content: Any, path: Path) -> dict[str, SplitCount]:
    try:
        splits = {n: SplitCount(c["photos"], c["expected"]) for n, c in content.items()}
    except (AttributeError, KeyError, TypeError):
        splits = None
    if splits is None or not all(
        _is_count(count) for split in splits.values() for count in (split.photos, split.expected)
    ):
        raise InputError(
            f'"splits" in {path} must give "photos" and "expected" of each split, two numbers.'
        )
    return splits


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
