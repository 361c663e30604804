"""The benchmarks, one row each: what their sites ship, where it lies, how many photos there are."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sedseg.data.benchmarks import layouts
from sedseg.data.benchmarks.layouts import Layout
from sedseg.data.folder import UNLABELLED, scored_words
from sedseg.errors import InputError
from sedseg.label_sets import LabelSet, label_set


@dataclass(frozen=True)
class Piece:
    """A folder or a file that a site ships.

    Attributes:
        what: its name in a sentence.
        origin: the archive and the site it comes from.
        places: where it may lie below the root, the usual place first.
        holds: for a folder, a pattern that some file in it matches.
    """

    what: str
    origin: str
    places: tuple[str, ...]
    holds: str = ""

    def find(self, root: Path) -> Path | None:
        """Where it lies, if it does."""
        for place in self.places:
            for path in _readings(root, place):
                if path.is_file() if not self.holds else any(path.rglob(self.holds)):
                    return path
        return None

    def asked_for(self, root: Path) -> str:
        """What to do to have it."""
        first, *others = self.places
        also = f" (or {', '.join(others)})" if others else ""
        return f"{self.what} not found; get {self.origin}, so that {root / first} is there{also}."


@dataclass(frozen=True)
class Split:
    """A split in one of the forms it is shipped in.

    Attributes:
        name: "val" or "train".
        photos: how many the authors name.
        pieces: what the layout reads.
    """

    name: str
    photos: int
    pieces: Mapping[str, Piece]

    def missing(self, root: Path) -> list[Piece]:
        """The pieces that are not there."""
        return [piece for piece in self.pieces.values() if piece.find(root) is None]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: of the label set, of the command's argument and of the folder written.
        layout: reads the files as shipped.
        splits: "val" and "train"; of several forms of one split, the best comes first.
        ignore_label: written for pixels that are not scored.
        longest_side: larger photos are made smaller, to so many pixels.
    """

    name: str
    layout: Layout
    splits: tuple[Split, ...]
    ignore_label: int = 255
    longest_side: int | None = None

    @property
    def label_set(self) -> LabelSet:
        """The classes; its raw ids are the codes in the files as shipped."""
        return label_set(self.name)

    @property
    def photos(self) -> dict[str, int]:
        """How many photos each split has, in its best form."""
        return {name: self.forms(name)[0].photos for name in ("val", "train")}

    @property
    def classes_file(self) -> str:
        """The text of ``classes.txt``: the scored classes with their synonyms."""
        return "".join("|".join(words) + "\n" for words in scored_words(self.label_set))

    def label_of_code(self) -> np.ndarray:
        """(65536,) the label of each raw id, ``ignore_label`` of those that are no class."""
        known = self.label_set.scored_raw_ids
        kind = np.uint8 if self.ignore_label == 255 else np.uint16
        labels = np.full(UNLABELLED + 1, self.ignore_label, kind)
        labels[list(known)] = np.arange(len(known))
        return labels

    def forms(self, name: str) -> list[Split]:
        """The forms of a split, the best first."""
        return [split for split in self.splits if split.name == name]

    def form(self, name: str, root: Path) -> Split:
        """The best form of a split whose pieces are all there, or else the last."""
        forms = self.forms(name)
        if not forms:
            raise InputError(f"{self.name} has no split {name!r}; choose val, train or all.")
        return next((split for split in forms if not split.missing(root)), forms[-1])


def benchmark(name: str) -> Benchmark:
    """The row of that name.

    Raises:
        InputError: there is none.
    """
    known = {row.name: row for row in BENCHMARKS}
    plain = name.strip().casefold().replace("_", "-")
    if plain in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    guess = f"did you mean {near[0]!r}? Known are" if near else "known are"
    raise InputError(f"No benchmark is named {name!r}; {guess} {', '.join(known)}.")


def datasets_root(given: Path | str | None = None) -> Path:
    """The folder of all data sets: the one given, or what ``SEDSEG_DATASETS`` names.

    Raises:
        InputError: neither is there.
    """
    chosen = given or os.environ.get("SEDSEG_DATASETS")
    if not chosen:
        raise InputError(
            "Say where the data sets lie: give --root DIR, or set the variable SEDSEG_DATASETS."
        )
    root = Path(chosen).expanduser()
    if not root.is_dir():
        raise InputError(f"The folder of data sets {root} is missing; make it or name another.")
    return root


def _readings(root: Path, place: str) -> Iterator[Path]:
    """The place below ``root``; also where ``root`` is itself, by its name, a folder of it."""
    parts, own = Path(place).parts, Path(os.path.abspath(root)).parts
    for n in range(len(parts)):
        if own[len(own) - n :] == parts[:n]:
            yield root.joinpath(*parts[n:])


def _below(folders: tuple[str, ...], place: str) -> tuple[str, ...]:
    return tuple(f"{folder}{place}" for folder in folders)


def _coco(split: str, photos: int) -> Split:
    folder = f"{split}2017"
    at = ("", "images/", "coco/", "coco/images/")
    usual = ("stuffthingmaps/", "stuffthingmaps_trainval2017/", "annotations/")
    maps = (*usual, "coco/stuffthingmaps/", "coco/annotations/", "")
    pieces = {
        "photos": Piece(
            "photos", f"{folder}.zip from https://cocodataset.org", _below(at, folder), "*.jpg"
        ),
        "labels": Piece(
            "label maps",
            "stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff",
            _below(maps, folder),
            "*.png",
        ),
    }
    return Split(split, photos, pieces)


def _ade20k_150(split: str, folder: str, photos: int) -> Split:
    origin = "ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu"
    top = "ADEChallengeData2016"
    pieces = {
        "photos": Piece("photos", origin, (f"{top}/images/{folder}",), "*.jpg"),
        "labels": Piece("label maps", origin, (f"{top}/annotations/{folder}",), "*.png"),
    }
    return Split(split, photos, pieces)


def _ade20k_847(split: str, folder: str, photos: int) -> Split:
    origin = (
        "ADE20K_2021_17_01.zip (after registration) from "
        "https://groups.csail.mit.edu/vision/datasets/ADE20K"
    )
    place = f"ADE20K_2021_17_01/images/ADE/{folder}"
    return Split(split, photos, {"photos": Piece("photos with labels", origin, (place,), "*.jpg")})


def _voc(split: str, photos: int, names: str, labels: str, labels_origin: str = "") -> Split:
    origin = "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
    other, top = labels_origin or origin, ("VOCdevkit/VOC2012/", "VOC2012/")
    pieces = {
        "photos": Piece("photos", origin, _below(top, "JPEGImages"), "*.jpg"),
        "labels": Piece("label maps", other, _below(top, labels), "*.png"),
        "list": Piece(
            f"list {names}.txt", other, _below(top, f"ImageSets/Segmentation/{names}.txt")
        ),
    }
    return Split(split, photos, pieces)


def _context(split: str, photos: int, key: str, labels: Piece) -> Split:
    origin = "VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010"
    places = _below(("VOCdevkit/VOC2010/", "VOC2010/"), "JPEGImages")
    pieces = {"photos": Piece("photos", origin, places, "*.jpg"), key: labels}
    return Split(split, photos, pieces)


_IN_VOC_2010 = ("VOCdevkit/VOC2010/", "VOC2010/", "")
_CONTEXT_JSON = Piece(
    "trainval_merged.json",
    "trainval_merged.json of PASCAL in Detail (linked from https://github.com/zhanghang1989/detail-api)",
    _below(_IN_VOC_2010, "trainval_merged.json"),
)
_CONTEXT_MAT = Piece(
    "label maps",
    "trainval.tar.gz from https://www.cs.stanford.edu/~roozbeh/pascal-context",
    _below(_IN_VOC_2010, "trainval"),
    "*.mat",
)
_SBD = (
    "the augmented training set (Hariharan et al., 2011: the Semantic Boundaries Dataset) as PNGs"
)
_VOC_SPLITS = (
    _voc("val", 1449, "val", "SegmentationClass"),
    _voc("train", 10582, "trainaug", "SegmentationClassAug", _SBD),
    _voc("train", 1464, "train", "SegmentationClass"),
)

BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark("coco-stuff", layouts.same_names, (_coco("val", 5000), _coco("train", 118287))),
    Benchmark(
        "ade20k-150",
        layouts.same_names,
        (_ade20k_150("val", "validation", 2000), _ade20k_150("train", "training", 20210)),
    ),
    Benchmark(
        "ade20k-847",
        layouts.ade20k_full,
        (_ade20k_847("val", "validation", 2000), _ade20k_847("train", "training", 25574)),
        ignore_label=65535,
        longest_side=512,
    ),
    Benchmark(
        "pascal-context-59",
        layouts.context_json,
        (
            _context("val", 5104, "annotations", _CONTEXT_JSON),
            _context("train", 4998, "annotations", _CONTEXT_JSON),
        ),
    ),
    Benchmark(
        "pascal-context-459",
        layouts.context_mat,
        # All of the 10,103 that are not in the list of validation photos.
        (
            _context("val", 5104, "labels", _CONTEXT_MAT),
            _context("train", 4999, "labels", _CONTEXT_MAT),
        ),
        ignore_label=459,
    ),
    Benchmark("pascal-voc-20", layouts.listed, _VOC_SPLITS),
    Benchmark("pascal-voc-20b", layouts.listed, _VOC_SPLITS),
)
