"""The class lists of the benchmarks, under the names of :data:`LABEL_SETS`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from sedseg.errors import InputError

LABEL_SETS = (
    "ade20k-150",
    "ade20k-847",
    "coco-stuff",
    "pascal-context-59",
    "pascal-context-459",
    "pascal-voc-20",
    "pascal-voc-20b",
)


@dataclass(frozen=True)
class LabelSet:
    """The T classes of a benchmark, in the order of their train ids.

    Attributes:
        name: one of :data:`LABEL_SETS`.
        title: what it is, in a line.
        synonyms: the words of each class, as the benchmark's authors list them.
        raw_ids: what stands for each class in the benchmark's own label files. Classes that share
            a raw id are scored as one: in pascal-voc-20b, 39 words stand for the background.
    """

    name: str
    title: str
    synonyms: tuple[tuple[str, ...], ...]
    raw_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.synonyms)

    @property
    def scored_raw_ids(self) -> tuple[int, ...]:
        """The raw id of each scored class."""
        return tuple(dict.fromkeys(self.raw_ids))

    @property
    def scored_as(self) -> tuple[int, ...]:
        """For each of the T classes, the index of the class it is scored as."""
        scored = {raw: index for index, raw in enumerate(self.scored_raw_ids)}
        return tuple(scored[raw] for raw in self.raw_ids)

    @property
    def scored_names(self) -> tuple[str, ...]:
        """The name of each scored class; "background" for words scored as one."""
        return tuple(
            self.synonyms[self.raw_ids.index(raw)][0]
            if self.raw_ids.count(raw) == 1
            else "background"
            for raw in self.scored_raw_ids
        )


@cache
def label_set(name: str) -> LabelSet:
    """The label set of that name.

    Raises:
        InputError: there is none.
    """
    if name not in LABEL_SETS:
        raise InputError(f"No label set is named {name!r}; known are {', '.join(LABEL_SETS)}.")
    title, *rows = _lines(name)
    pairs = [row.split("\t") for row in rows]
    return LabelSet(
        name,
        title.removeprefix("# "),
        tuple(tuple(words.split("|")) for _, words in pairs),
        tuple(int(raw) for raw, _ in pairs),
    )


@cache
def pascal_context_validation() -> tuple[str, ...]:
    """The ids of PASCAL-Context's 5,104 validation photos, such as "2008_000002"."""
    years = (line.split("\t") for line in _lines("pascal-context-val")[1:])
    return tuple(f"{year}_{int(n):06}" for year, numbers in years for n in numbers.split())


def _lines(name: str) -> list[str]:
    file = resources.files("sedseg") / "assets" / "label_sets" / f"{name}.tsv"
    return file.read_text(encoding="utf-8").splitlines()
