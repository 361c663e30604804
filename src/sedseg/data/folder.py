"""The folder format for labelled photos.

    ROOT/classes.txt              one class a line; the line's number, from 0, is its label
    ROOT/SPLIT/images/NAME.*      photos in any format Pillow reads
    ROOT/SPLIT/labels/NAME.png    8- or 16-bit class indices; 255 (16-bit: 65535) = unlabelled
    ROOT/dataset.json             optional: {"ignore_label": N}, a further label for unlabelled

A set without a ``val`` folder has a deterministic tenth of ``train`` carved off for validation,
scene by scene.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sedseg.data.dataset_file import DatasetFile
from sedseg.errors import InputError
from sedseg.label_sets import LabelSet, label_set
from sedseg.photos import read_photo
from sedseg.vocabulary import Vocabulary

UNLABELLED = 65535
"""The label of unlabelled pixels once read, whatever the file's depth (8-bit files say 255)."""

ORIENTATION = 0x0112
"""The EXIF tag that says how a photo is turned; 1 is upright."""

_FRAMES_A_SCENE = 20


@dataclass(frozen=True)
class FolderDataset(Dataset):
    """Labelled photos of one split.

    Attributes:
        name: the folder's name.
        vocabulary: the classes; a label is an index into it.
        photos, labels: paths, in the order of the file names.
        ignore_label: what the files say for unlabelled besides 255 (16-bit: 65535).
        benchmark: the label set's name, where `sedseg datasets prepare` made the folder.
    """

    name: str
    vocabulary: Vocabulary
    photos: tuple[Path, ...]
    labels: tuple[Path, ...]
    ignore_label: int | None = None
    benchmark: str | None = None

    @classmethod
    def open(cls, root: Path | str, split: str) -> FolderDataset:
        """List a split; nothing is decoded yet (see :meth:`check`).

        Args:
            root: the folder with ``classes.txt``.
            split: a folder in it; or "train" and "val" of a set that has no ``val`` folder.

        Raises:
            InputError: a folder, ``classes.txt`` or a photo's label is missing; ``dataset.json``
                is broken; the split of a benchmark is not prepared to its end.
        """
        root = Path(root)
        if not (root / "classes.txt").is_file():
            raise InputError(f"{root} has no classes.txt; write one class a line into it.")
        file = DatasetFile.read(root)
        if file.benchmark and split not in file.splits:
            raise InputError(
                f"The split {split!r} of {root} is not prepared; run sedseg datasets prepare "
                f"{file.benchmark} --split {split} --root {root.parent}."
            )
        # A benchmark has a validation split of its own, whether that is prepared or not.
        may_carve = file.benchmark is None and not (root / "val").is_dir()
        carved = split in ("train", "val") and may_carve
        folder = root / ("train" if carved else split)
        if not (folder / "images").is_dir():
            raise InputError(f"{folder / 'images'} is missing; put the photos of the split there.")
        photos = sorted(p for p in (folder / "images").iterdir() if not p.name.startswith("."))
        if carved:
            held_out = _held_out([p.stem for p in photos])
            photos = [p for p in photos if (p.stem in held_out) == (split == "val")]
        if not photos:
            raise InputError(f"{folder / 'images'} holds no photo for the split {split!r}.")
        for one, next_ in itertools.pairwise(sorted(photos, key=lambda p: p.stem)):
            if one.stem == next_.stem:
                raise InputError(
                    f"{one} and {next_.name} would have one label; give one another name."
                )
        labels = [folder / "labels" / f"{p.stem}.png" for p in photos]
        for photo, label in zip(photos, labels, strict=True):
            if not label.is_file():
                raise InputError(f"{photo} has no label; {label} is missing.")
        if file.benchmark:  # unchecked, for ADE20K's 847 names hold words twice
            vocabulary = Vocabulary(scored_words(label_set(file.benchmark)))
            lines = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
            if lines != ["|".join(words) for words in vocabulary.synonyms]:
                raise InputError(
                    f"{root / 'classes.txt'} is not {file.benchmark}'s any more; prepare it again, "
                    "or give other words for its classes where it is evaluated."
                )
        else:
            vocabulary = Vocabulary.of(root / "classes.txt")
        return cls(
            root.name, vocabulary, tuple(photos), tuple(labels), file.ignore_label, file.benchmark
        )

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A photo (3, H, W) uint8 RGB and its labels (H, W) int32, ``UNLABELLED`` where unknown."""
        image = torch.from_numpy(np.array(read_photo(self.photos[index]))).permute(2, 0, 1)
        return image, torch.from_numpy(self._read_labels(index))

    def classes_shown(self, threads: int = 4) -> list[set[int]]:
        """The labels in each photo; reads every label file."""
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(
                lambda i: set(np.unique(self._read_labels(i)).tolist()), range(len(self))
            )
            return [labels - {UNLABELLED} for labels in found]

    def _read_labels(self, index: int) -> np.ndarray:
        return read_labels(self.labels[index], self.ignore_label)

    def check(self, photos: Sequence[int] | None = None, threads: int = 4) -> None:
        """Read every photo and label, so that a long run does not stop half way.

        Args:
            photos: which, by index; None: all.
            threads: that read.

        Raises:
            InputError: names the file whose label is outside the class list, whose size differs
                from its photo's, or which cannot be read.
        """
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self._check_one, range(len(self)) if photos is None else photos):
                pass

    def _check_one(self, index: int) -> None:
        photo, label = self.photos[index], self.labels[index]
        height, width = photo_size(photo, whole=True)
        indices = self._read_labels(index)
        if indices.shape != (height, width):
            raise InputError(
                f"{label} has {indices.shape[1]}x{indices.shape[0]} pixels, its photo "
                f"{width}x{height}; they must be equal."
            )
        known = indices[indices != UNLABELLED]
        if known.size and known.max() >= len(self.vocabulary):
            raise InputError(
                f"{label} holds the label {known.max()}, but classes.txt has "
                f"{len(self.vocabulary)} classes (0 to {len(self.vocabulary) - 1}); "
                "add the class or mend the label."
            )


def scored_words(labels: LabelSet) -> tuple[tuple[str, ...], ...]:
    """The words of each scored class; "background" for words that are scored as one."""
    return tuple(
        labels.synonyms[labels.raw_ids.index(raw)] if labels.raw_ids.count(raw) == 1 else (name,)
        for raw, name in zip(labels.scored_raw_ids, labels.scored_names, strict=True)
    )


def photo_size(path: Path, whole: bool = False) -> tuple[int, int]:
    """Height and width of a photo as :func:`sedseg.photos.read_photo` turns it.

    Args:
        path: the file.
        whole: see that it is not cut short, too.

    Raises:
        InputError: the file is no image, or it is damaged.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ORIENTATION, 1) >= 5  # by 90 degrees
            if whole:
                # Of a JPEG every coefficient is read, but few pixels are made.
                opened.draft("L", (max(width // 8, 1), max(height // 8, 1)))
                opened.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is no image, or damaged; mend or remove it.") from error
    return (width, height) if turned else (height, width)


def read_labels(path: Path, ignore_label: int | None = None) -> np.ndarray:
    """An 8- or 16-bit label PNG -> (H, W) int32, ``UNLABELLED`` where the file says so.

    Args:
        path: the file.
        ignore_label: a label for unlabelled pixels, besides 255 (16-bit: 65535).

    Raises:
        InputError: the file is no PNG of one channel.
    """
    try:
        with Image.open(path) as opened:
            indices = np.array(opened)
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a PNG of labels; write it anew.") from error
    if indices.ndim != 2:
        raise InputError(f"{path} has colours; a label is one channel of class indices.")
    wide = indices.dtype.itemsize > 1
    indices = indices.astype(np.int32)
    if not wide:
        indices[indices == 255] = UNLABELLED
    if ignore_label is not None:
        indices[indices == ignore_label] = UNLABELLED
    return indices


def _scene(stem: str) -> str:
    """What photos of one scene share: their name up to the last underscore, or 20 video frames."""
    frame = re.match(r"frame_?(\d+)", stem)
    if frame:
        return f"frames {int(frame[1]) // _FRAMES_A_SCENE}"
    return stem.rsplit("_", 1)[0]


def _held_out(stems: Sequence[str]) -> set[str]:
    """The stems of a tenth of the photos, whole scenes together, the same on every machine.

    Names tell scenes apart where they can. Where they cannot (IMG_0001, IMG_0002 ...), runs of
    neighbouring names stand for scenes.
    """
    wanted = max(1, round(len(stems) / 10))
    by_name = {stem: _scene(stem) for stem in stems}
    run = max(1, wanted // 3)
    by_place = {stem: f"{i // run}" for i, stem in enumerate(stems)}
    for scenes in (by_name, by_place):
        chosen = _chosen_scenes(list(scenes.values()), wanted)
        held_out = {stem for stem, scene in scenes.items() if scene in chosen}
        if len(held_out) >= wanted / 2:
            break
    return held_out


def _chosen_scenes(scene_of_each: Sequence[str], wanted: int) -> set[str]:
    """Scenes with about ``wanted`` photos in all; one of far more (a camera, mostly) is none."""
    sizes = Counter(scene_of_each)
    chosen: set[str] = set()
    taken = 0
    for scene in sorted(sizes, key=lambda s: (zlib.crc32(s.encode()), s)):
        if taken >= wanted:
            break
        if taken + sizes[scene] <= 1.5 * wanted:
            chosen.add(scene)
            taken += sizes[scene]
    return chosen


def open_all(root: Path | str, split: str) -> list[FolderDataset]:
    """Every set below ``root``, or ``root`` itself where it is one.

    Raises:
        InputError: there is none.
    """
    root = Path(root)
    if (root / "classes.txt").is_file():
        return [FolderDataset.open(root, split)]
    folders = sorted(path.parent for path in root.glob("*/classes.txt"))
    if not folders:
        raise InputError(f"{root} is no data set: neither it nor a folder in it has classes.txt.")
    return [FolderDataset.open(folder, split) for folder in folders]
