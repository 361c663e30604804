"""How each benchmark's own site lays out photos and labels, and how it encodes classes.

Each layout takes the folders and files that the table found, and the split's name. Dimensions: H W
pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sedseg.errors import InputError
from sedseg.label_sets import pascal_context_validation

Pieces = Mapping[str, Path]


class Originals(NamedTuple):
    """A split as its site ships it.

    photos: those that have a label, by name. label: name -> the file it is in. codes: name ->
    (H, W) integers, the site's own codes (raw ids); raises InputError for a file that cannot be
    read. missing: files that the split calls for and that are not there.
    """

    photos: dict[str, Path]
    label: Callable[[str], Path]
    codes: Callable[[str], np.ndarray]
    missing: tuple[Path, ...]


Layout = Callable[[Pieces, str], Originals]


def same_names(pieces: Pieces, split: str) -> Originals:
    """COCO-Stuff and ADEChallengeData2016: NAME.jpg in one folder, NAME.png in another."""
    photos, labels = pieces["photos"], pieces["labels"]
    names = _stems(photos.glob("*.jpg")) | _stems(labels.glob("*.png"))
    return _of_names(sorted(names), photos, labels)


def listed(pieces: Pieces, split: str) -> Originals:
    """PASCAL VOC: a text file names the photos of a split.

    Lists of the augmented training set write the paths of photo and label instead of the name.
    """
    lines = pieces["list"].read_text(encoding="utf-8").splitlines()
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    return _of_names(names, pieces["photos"], pieces["labels"])


def ade20k_full(pieces: Pieces, split: str) -> Originals:
    """ADE20K_2021_17_01: X.jpg beside X_seg.png, in a folder for each scene."""
    found = sorted(p for p in pieces["photos"].rglob("*.jpg") if not p.name.startswith("."))
    labels = {p.stem: p.with_name(f"{p.stem}_seg.png") for p in found}
    photos = {p.stem: p for p in found if labels[p.stem].is_file()}
    missing = tuple(label for name, label in labels.items() if name not in photos)
    return Originals(photos, labels.__getitem__, lambda name: _ade20k_codes(labels[name]), missing)


def context_mat(pieces: Pieces, split: str) -> Originals:
    """PASCAL-Context's 459 classes: NAME.mat with a ``LabelMap``."""
    photos, labels = pieces["photos"], pieces["labels"]
    _require_scipy()
    held_out = pascal_context_validation()
    names: Iterable[str] = held_out
    if split != "val":
        names = sorted(_stems(labels.glob("*.mat")) - set(held_out))
    return _of_names(names, photos, labels, ".mat", _mat_codes)


def context_json(pieces: Pieces, split: str) -> Originals:
    """PASCAL-Context's 59 classes: one JSON file of run-length masks for all photos."""
    path = pieces["annotations"]
    try:
        with path.open("rb") as file:
            merged = json.load(file)
        records = {Path(image["file_name"]).stem: image for image in merged["images"]}
        names = list(pascal_context_validation())
        if split != "val":
            names = sorted(name for name, r in records.items() if r["phase"] == "train")
        ids = {records[name]["image_id"] for name in names if name in records}
        masks: dict[Any, list[dict[str, Any]]] = {i: [] for i in ids}
        for annotation in merged["annos_segmentation"]:
            if annotation["image_id"] in ids:
                masks[annotation["image_id"]].append(annotation)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not PASCAL in Detail's trainval_merged.json, or cut short ({error!r}); "
            "fetch it anew."
        ) from error

    def codes(name: str) -> np.ndarray:
        record = records[name]
        try:
            return _painted(masks[record["image_id"]], (record["height"], record["width"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"The masks of {name} in {path} are damaged ({error!r}).") from error

    there = {name: pieces["photos"] / f"{name}.jpg" for name in names}
    photos = {n: p for n, p in there.items() if n in records and p.is_file()}
    missing = tuple(p for n, p in there.items() if n not in photos)
    return Originals(photos, lambda name: path, codes, missing)


def _stems(paths: Iterable[Path]) -> set[str]:
    return {path.stem for path in paths if not path.name.startswith(".")}


def _of_names(
    names: Iterable[str],
    photo_folder: Path,
    label_folder: Path,
    suffix: str = ".png",
    read: Callable[[Path], np.ndarray] | None = None,
) -> Originals:
    """Photos NAME.jpg and labels NAME + suffix in two folders; PNGs by default."""
    read = read or _png_codes

    def label_of(name: str) -> Path:
        return label_folder / f"{name}{suffix}"

    photos: dict[str, Path] = {}
    missing: list[Path] = []
    for name in names:
        photo = photo_folder / f"{name}.jpg"
        lacking = [path for path in (photo, label_of(name)) if not path.is_file()]
        missing += lacking
        if not lacking:
            photos[name] = photo
    return Originals(photos, label_of, lambda name: read(label_of(name)), tuple(missing))


def _png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            return np.array(opened)  # of a palette image: the indices
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a PNG; unpack it anew.") from error


def _png_codes(path: Path) -> np.ndarray:
    codes = _png(path)
    if codes.ndim != 2:
        raise InputError(
            f"{path} has colours where class numbers are expected; unpack the benchmark's own file."
        )
    return codes


def _ade20k_codes(path: Path) -> np.ndarray:
    """The class is in the red and green channels: R / 10, rounded down, times 256, plus G."""
    colours = _png(path)
    if colours.ndim != 3:
        raise InputError(f"{path} has no colours, which encode ADE20K's classes; unpack it anew.")
    red, green = colours[..., 0].astype(np.int32), colours[..., 1].astype(np.int32)
    return red // 10 * 256 + green


def _painted(annotations: Iterable[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Masks as category ids, later over earlier; 0 where there is none."""
    from pycocotools import mask

    codes = np.zeros(size, np.int32)
    for annotation in annotations:
        runs = annotation["segmentation"]
        if isinstance(runs["counts"], list):
            runs = mask.frPyObjects(runs, *runs["size"])
        codes[mask.decode(runs).astype(bool)] = annotation["category_id"]
    return codes


def _require_scipy() -> None:
    try:
        import scipy.io  # noqa: F401
    except ImportError as error:
        raise InputError(
            'PASCAL-Context 459 comes as .mat files, which SciPy reads; pip install "sedseg[eval]".'
        ) from error


def _mat_codes(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)["LabelMap"]).astype(np.int32)
    except Exception as error:  # SciPy raises whatever a damaged file leads it to
        raise InputError(f"{path} has no LabelMap that SciPy can read; unpack it anew.") from error
