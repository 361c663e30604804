"""Writes miniatures of the benchmarks, laid out and encoded as their own sites do.

The codes are written out by hand here and, as labels, in the tests that read them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask


def write_photo(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.stem)).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_label(path: Path, codes: list, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(codes, np.uint8))
    if palette:
        image = image.convert("P")
        image.putdata(np.array(codes, np.uint8).ravel().tolist())
        image.putpalette([(37 * i) % 256 for i in range(768)])
    image.save(path)


def coco_stuff(root: Path, codes: list, names=("000000000139",), split: str = "val") -> None:
    for name in names:
        write_photo(root / f"{split}2017/{name}.jpg", len(codes), len(codes[0]))
        write_label(root / f"stuffthingmaps/{split}2017/{name}.png", codes)


def ade20k_150(root: Path, codes: list) -> None:
    top, name = root / "ADEChallengeData2016", "ADE_val_00000001"
    write_photo(top / f"images/validation/{name}.jpg", len(codes), len(codes[0]))
    write_label(top / f"annotations/validation/{name}.png", codes)


def ade20k_847(root: Path, colours: np.ndarray, photo: np.ndarray, name: str) -> None:
    """Colours and photo: (H, W, 3) uint8."""
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(folder / f"{name}.jpg", quality=100, subsampling=0)
    Image.fromarray(colours).save(folder / f"{name}_seg.png")
    Image.fromarray(colours).save(folder / f"{name}_parts_1.png")
    Image.fromarray(colours[..., 0]).save(folder / name / f"instance_000_{name}.png")


def voc(root: Path, codes: list, names: dict, labels: str = "SegmentationClass") -> None:
    """Names: of each list."""
    top = root / "VOCdevkit/VOC2012"
    for listed, members in names.items():
        lists = top / "ImageSets/Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{listed}.txt").write_text("".join(f"{m}\n" for m in members))
        for name in (Path(m.split()[0]).stem for m in members):
            write_photo(top / f"JPEGImages/{name}.jpg", len(codes), len(codes[0]))
            write_label(top / f"{labels}/{name}.png", codes, palette=True)


def context_59(root: Path, name: str, masks: list[tuple[int, list]], phase: str = "val") -> None:
    """Masks: (category id, rows of 0 and 1), in the order they are painted."""
    top = root / "VOCdevkit/VOC2010"
    height, width = len(masks[0][1]), len(masks[0][1][0])
    write_photo(top / f"JPEGImages/{name}.jpg", height, width)
    record = {"file_name": f"{name}.jpg", "phase": phase, "image_id": 7}
    annotations = []
    for category, rows in masks:
        runs = mask.encode(np.asfortranarray(np.array(rows, np.uint8)))
        runs["counts"] = runs["counts"].decode()
        annotations.append({"image_id": 7, "category_id": category, "segmentation": runs})
    merged = {
        "images": [{**record, "height": height, "width": width}],
        "annos_segmentation": annotations,
    }
    (top / "trainval_merged.json").write_text(json.dumps(merged))


def context_459(root: Path, codes: list, names: tuple[str, ...]) -> None:
    from scipy.io import savemat

    for name in names:
        photo = root / f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg"
        write_photo(photo, len(codes), len(codes[0]))
        (root / "trainval").mkdir(exist_ok=True)
        savemat(root / f"trainval/{name}.mat", {"LabelMap": np.array(codes, np.uint16)})
