"""A benchmark's files as shipped -> the folder format of :mod:`sedseg.data.folder`."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sedseg.data.benchmarks.layouts import Originals
from sedseg.data.benchmarks.table import Benchmark, Split, benchmark, datasets_root
from sedseg.data.dataset_file import DATASET_FILE, DatasetFile, SplitCount
from sedseg.data.folder import ORIENTATION, photo_size
from sedseg.errors import InputError
from sedseg.storage import locked, replacing

Progress = Callable[[str, int, int], None]
"""Told the split, how many of its photos are done, and of how many."""


class Prepared(NamedTuple):
    """A split that is ready.

    made: photos of it that this run converted. note: a sentence on those that are missing, if any.
    """

    split: str
    folder: Path
    photos: int
    expected: int
    made: int
    note: str


def prepared_folder(name: str, root: Path | str | None = None) -> Path:
    """Where a prepared benchmark lies, to be opened with ``FolderDataset``.

    Raises:
        InputError: there is no such benchmark, or it is not prepared.
    """
    row, root = benchmark(name), datasets_root(root)
    folder = root / row.name
    if DatasetFile.read(folder).benchmark != row.name:
        raise InputError(
            f"{row.name} is not prepared in {root}; run sedseg datasets prepare {row.name} "
            f"--root {root}."
        )
    return folder


def prepare(
    name: str,
    root: Path | str | None = None,
    split: str = "val",
    progress: Progress | None = None,
) -> tuple[Prepared, ...]:
    """Bring a benchmark's photos and labels into ROOT/NAME.

    What is done already is not done again, so an interrupted run goes on where it was. A split
    counts as ready, and can be opened, when all its photos that are there are done.

    Args:
        name: of the benchmark.
        root: the folder that holds the files as shipped; see :func:`datasets_root`.
        split: "val", "train" or "all".
        progress: called for every photo that is done, and once before.

    Returns:
        The splits prepared.

    Raises:
        InputError: files are missing (each has a sentence, before anything is written); a file
            cannot be read or written; a label and its photo differ in size.
    """
    row, root = benchmark(name), datasets_root(root)
    names = tuple(row.photos) if split == "all" else (split,)
    wanted = [row.form(one, root) for one in names]
    folder = root / row.name
    before = DatasetFile.read(folder)
    if before.benchmark != row.name and _has_other_classes(folder, row):
        raise InputError(f"{folder} is a data set of your own; rename it, or give another --root.")
    wanted_anew = [form for form in wanted if not _is_ready(form, before)]
    missing = [(form.name, piece) for form in wanted_anew for piece in form.missing(root)]
    if missing:
        raise InputError(
            "\n".join(f"{row.name} {of}: {piece.asked_for(root)}" for of, piece in missing)
        )
    with _said_of(folder), locked(folder / DATASET_FILE):
        return tuple(
            _prepare_split(row, form, root, progress)
            if form in wanted_anew
            else _ready(form.name, folder, before.splits[form.name])
            for form in wanted
        )


def _is_ready(form: Split, file: DatasetFile) -> bool:
    """Whether nothing is left to do, now or when more photos are there."""
    count = file.splits.get(form.name)
    return count is not None and count.photos >= form.photos


def _ready(split: str, folder: Path, count: SplitCount) -> Prepared:
    return Prepared(split, folder, count.photos, count.expected, made=0, note="")


def _has_other_classes(folder: Path, row: Benchmark) -> bool:
    classes = folder / "classes.txt"
    return classes.is_file() and classes.read_bytes() != row.classes_file.encode()


def _prepare_split(row: Benchmark, form: Split, root: Path, progress: Progress | None) -> Prepared:
    pieces = {key: piece.find(root) for key, piece in form.pieces.items()}
    originals = row.layout({key: path for key, path in pieces.items() if path}, form.name)
    if not originals.photos:
        raise InputError(
            f"{row.name} {form.name}: no photo has a label; {originals.missing[0]} is missing, "
            "for example."
        )
    folder = root / row.name
    out = folder / form.name
    for kind in ("images", "labels"):
        (out / kind).mkdir(parents=True, exist_ok=True)
        for left in (out / kind).glob(".*.part"):  # by a run that was killed
            left.unlink()
    done = _stems(out / "images") & _stems(out / "labels")
    left_to_do = [name for name in originals.photos if name not in done]
    _convert_all(row, originals, left_to_do, out, progress)
    photos = len(originals.photos)
    _write(folder / "classes.txt", row.classes_file.encode())
    splits = {**DatasetFile.read(folder).splits, form.name: SplitCount(photos, form.photos)}
    DatasetFile(row.name, row.ignore_label, splits).write(folder)
    note = _note(row, form, originals) if photos < form.photos else ""
    return Prepared(form.name, folder, photos, form.photos, len(left_to_do), note)


def _stems(folder: Path) -> set[str]:
    return {name.rpartition(".")[0] for name in os.listdir(folder)}


def _note(row: Benchmark, form: Split, originals: Originals) -> str:
    photos = len(originals.photos)
    said = (
        f"{row.name} {form.name} has {photos:,} of {form.photos:,} photos; "
        f"missing: {form.photos - photos:,}"
    )
    if originals.missing:
        said += f" (for example {originals.missing[0]})"
    origins = " and ".join(dict.fromkeys(piece.origin for piece in form.pieces.values()))
    return f"{said}. They come with {origins}; unpack that anew, then run this again."


def _convert_all(
    row: Benchmark, originals: Originals, names: list[str], out: Path, progress: Progress | None
) -> None:
    """Convert in parallel; when one fails, or at Ctrl-C, only those begun are brought to an end."""
    total = len(originals.photos)
    done = total - len(names)
    if progress:
        progress(out.name, done, total)
    label_of_code = row.label_of_code()
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        futures = [pool.submit(_convert, row, originals, n, label_of_code, out) for n in names]
        for number, future in enumerate(as_completed(futures), done + 1):
            future.result()
            if progress:
                progress(out.name, number, total)
    finally:
        pool.shutdown(cancel_futures=True)


def _convert(
    row: Benchmark, originals: Originals, name: str, label_of_code: np.ndarray, out: Path
) -> None:
    """Write a photo, then its label: a label that is there means that both are."""
    photo = originals.photos[name]
    labels = label_of_code.take(originals.codes(name), mode="clip")
    pixels = _smaller(photo, row.longest_side) if row.longest_side else None
    height, width = photo_size(photo, whole=True) if pixels is None else pixels.source_size
    if labels.shape != (height, width):
        raise InputError(
            f"{photo} has {width}x{height} pixels, its label in {originals.label(name)} "
            f"{labels.shape[1]}x{labels.shape[0]}; unpack {row.name}'s own files anew."
        )
    if pixels is None:
        _link(photo, out / "images" / photo.name)
    else:
        _write(out / "images" / f"{name}.png", _as_png(pixels.array))
        labels = _nearest(labels, pixels.array.shape[:2])
    _write(out / "labels" / f"{name}.png", _as_png(labels))


class _Smaller(NamedTuple):
    """(h, w, 3) uint8, and the height and width it was made from."""

    array: np.ndarray
    source_size: tuple[int, int]


def _smaller(path: Path, longest_side: int) -> _Smaller | None:
    """The photo with its longest side as given; None if it needs no change.

    As the labels do, it goes by the pixels in the file and not by the EXIF orientation; a turned
    photo therefore changes, so that its tag is lost.
    """
    try:
        with Image.open(path) as photo:
            width, height = photo.size
            scale = min(1.0, longest_side / max(height, width))
            if scale == 1 and photo.getexif().get(ORIENTATION, 1) == 1:
                return None
            pixels = np.array(photo.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is damaged or cut short; unpack it anew.") from error
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    # Without antialiasing, as OpenCV resizes; Pillow would smooth.
    resized = F.interpolate(channels_first, size, mode="bilinear", align_corners=False)
    array = resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return _Smaller(array, (height, width))


def _nearest(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(H, W) -> (h, w): the pixel at the upper left of each, as OpenCV takes it."""
    rows, columns = (np.arange(n) * old // n for n, old in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]


def _as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _link(photo: Path, path: Path) -> None:
    """The same file under a second name; a copy where the file system cannot."""
    try:
        os.link(photo.resolve(), path)
    except FileExistsError:
        pass  # by a run that ended before the label was written
    except OSError:
        _write(path, photo.read_bytes())


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def _said_of(folder: Path) -> Iterator[None]:
    """What the file system refuses, as a sentence."""
    try:
        yield
    except OSError as error:
        refused = error.filename or folder
        reason = error.strerror or error
        raise InputError(f"{refused} cannot be read or written: {reason}.") from error
