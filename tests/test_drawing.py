"""The picture of a segmentation: colours, contours, legend; and the files it is saved as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from sedseg.drawing import class_colours
from sedseg.errors import InputError
from sedseg.score_maps import ScoreMaps
from sedseg.segmentation import Segmentation

GREY = (120, 120, 120)


def segmentation(
    mask: Any, classes: tuple[str, ...] = ("sky", "road", "car"), **more: Any
) -> Segmentation:
    mask = np.asarray(mask, np.int16)
    shape = (len(classes), *mask.shape)
    maps = ScoreMaps(torch.zeros(1, 1, 1), (0,), shape)
    photo = Image.new("RGB", mask.shape[::-1], GREY)
    return Segmentation(classes, mask, mask.astype(np.float16), photo, maps, **more)


def quarters(height: int = 120, width: int = 160) -> np.ndarray:
    mask = np.zeros((height, width), np.int16)
    mask[height // 2 :] = 1
    mask[: height // 2, width // 2 :] = -1
    return mask


@pytest.mark.parametrize("count", [2, 24, 60, 847, 3000])
def test_colours_of_a_list_differ(count: int) -> None:
    colours = class_colours([f"class {i}" for i in range(count)])
    assert len(np.unique(colours, axis=0)) == count
    if count <= 24:  # and are told apart at a glance
        distance = np.abs(colours[:, None].astype(int) - colours).max(-1)
        assert distance[~np.eye(count, dtype=bool)].min() >= 40


def test_a_class_keeps_its_colour() -> None:
    here, there = class_colours(["sky", "car"]), class_colours(["grass", "sky"])
    np.testing.assert_array_equal(here[0], there[1])
    np.testing.assert_array_equal(class_colours(["Sky"])[0], here[0])


def test_overlay_blends_classes_and_leaves_the_rest() -> None:
    result = segmentation(quarters())
    plain = np.asarray(result.overlay(opacity=0.5, legend=False))
    assert plain.shape == (120, 160, 3)
    sky = (np.array(GREY) + result.colours[0]) / 2
    assert np.abs(plain[20, 20] - sky).max() <= 1
    assert plain[20, 140].tolist() == list(GREY)  # no class
    assert plain[59, 20].min() > plain[20, 20].min()  # a light contour between sky and road
    alone = np.asarray(result.overlay(opacity=0, legend=False))
    assert (alone == GREY).all()
    for opacity in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="opacity"):
            result.overlay(opacity=opacity)


@pytest.mark.parametrize("size", [(1, 1), (30, 40), (400, 40), (40, 900), (600, 800)])
def test_the_legend_never_covers_the_photo(size: tuple[int, int]) -> None:
    result = segmentation(quarters(*size), ("sky", "road " * 20, "car"))
    plain, legend = result.overlay(legend=False), result.overlay()
    assert legend.width > plain.width or legend.height > plain.height
    np.testing.assert_array_equal(np.asarray(legend.crop((0, 0, *plain.size))), np.asarray(plain))


def test_the_legend_shows_present_classes_by_area(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    import sedseg.drawing

    class Draw(sedseg.drawing.ImageDraw.ImageDraw):
        def text(self, xy: Any, text: Any, *args: Any, **kwargs: Any) -> None:
            drawn.append(text)

    monkeypatch.setattr(sedseg.drawing.ImageDraw, "Draw", Draw)
    segmentation(quarters()).overlay()
    assert drawn == ["road", "50.0%", "sky", "25.0%", "(no class)", "25.0%"]


def test_areas() -> None:
    result = segmentation(quarters(), ("sky", "road", "car"))
    assert list(result.areas) == ["road", "sky", "car"]
    assert result.areas["road"] == (9_600, 0.5)
    assert result.areas["car"] == (0, 0.0)
    assert result.unlabelled == (4_800, 0.25)
    twice = segmentation(quarters(), ("screen", "screen", "car"))  # as in ADE20K's 847
    assert twice.areas["screen"] == (14_400, 0.75)


def test_saved_files(tmp_path: Path) -> None:
    result = segmentation(quarters(), source="trip/x.jpg", settings={"model": "toy", "top_k": 8})
    files = result.save(tmp_path / "new" / "folder", "x")
    assert sorted(p.name for p in files.record.parent.iterdir()) == [
        "x.json", "x.labels.png", "x.overlay.png",
    ]  # fmt: skip
    labels = Image.open(files.labels)
    assert labels.mode == "P"
    saved = np.asarray(labels)
    np.testing.assert_array_equal(np.where(saved == 255, -1, saved.astype(int)), result.mask)
    np.testing.assert_array_equal(np.asarray(labels.convert("RGB"))[100, 5], result.colours[1])
    record = json.loads(files.record.read_text(encoding="utf-8"))
    assert (record["photo"], record["width"], record["height"]) == ("trip/x.jpg", 160, 120)
    assert (record["model"], record["top_k"]) == ("toy", 8)
    assert [c["name"] for c in record["classes"]] == ["sky", "road", "car"]
    assert [c["share"] for c in record["classes"]] == [0.25, 0.5, 0]
    assert record["classes"][1]["colour"] == "#" + bytes(result.colours[1].tolist()).hex()
    assert record["unlabelled"] == {"index": 255, "pixels": 4_800, "share": 0.25}


@pytest.mark.parametrize(("count", "mode", "none"), [(255, "P", 255), (256, "I;16", 65_535)])
def test_label_images_of_many_classes(tmp_path: Path, count: int, mode: str, none: int) -> None:
    mask = np.array([[0, count - 1, -1]])
    files = segmentation(mask, tuple(f"class {i}" for i in range(count))).save(tmp_path, "x")
    labels = Image.open(files.labels)
    assert labels.mode == mode
    assert np.asarray(labels).tolist() == [[0, count - 1, none]]
    assert json.loads(files.record.read_text())["unlabelled"]["index"] == none


def test_a_failed_save_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmentation(quarters()).save(tmp_path, "x")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    save = Image.Image.save

    def full_disk(image: Image.Image, path: Any, *args: Any, **kwargs: Any) -> None:
        save(image, path, *args, **kwargs)
        if "overlay" in str(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(InputError, match="No space left"):
        segmentation(1 - quarters()).save(tmp_path, "x")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match="stem"):
        segmentation(quarters()).save(tmp_path, "../x")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        segmentation(quarters()).save(tmp_path / "file", "x")


def test_coco_annotations() -> None:
    mask = np.random.default_rng(0).integers(-1, 3, (37, 53))
    mask[mask == 1] = 0
    result = segmentation(mask)
    annotations = json.loads(json.dumps(result.to_coco(image_id=7)))
    assert [a["category_name"] for a in annotations] == ["sky", "car"]
    for annotation in annotations:
        own = mask == annotation["category_id"]
        np.testing.assert_array_equal(coco.decode(annotation["segmentation"]), own)
        assert annotation["area"] == own.sum()
        assert (
            annotation["bbox"]
            == coco.toBbox(coco.encode(np.asfortranarray(own, np.uint8))).tolist()
        )
        assert annotation["image_id"] == 7
    whole = segmentation(np.zeros((3, 2))).to_coco()
    np.testing.assert_array_equal(coco.decode(whole[0]["segmentation"]), np.ones((3, 2)))
