"""Benchmarks as their sites ship them -> the folder format: codes, sizes, counts, resuming."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import miniature_benchmarks as miniature
from labelled_photos import write_set
from sedseg import InputError
from sedseg.data.benchmarks import BENCHMARKS, benchmark, prepare, prepared_folder, table
from sedseg.data.folder import UNLABELLED, FolderDataset, scored_words
from sedseg.label_sets import LABEL_SETS, label_set

X = UNLABELLED
VAL = "2008_000002"  # of PASCAL-Context's validation photos


def read(root: Path, name: str, split: str = "val") -> list[list[int]]:
    """The labels of a split's only photo, through FolderDataset, whose checks pass."""
    dataset = FolderDataset.open(prepared_folder(name, root), split)
    dataset.check()
    assert dataset.benchmark == name
    (example,) = list(dataset)
    assert example[0].shape[1:] == example[1].shape
    return example[1].tolist()


def file_says(root: Path, name: str) -> dict:
    return json.loads((root / name / "dataset.json").read_text())


def depth(root: Path, name: str) -> np.dtype:
    (path,) = (root / name / "val/labels").iterdir()
    return np.array(Image.open(path)).dtype


def test_the_table_has_a_row_for_each_label_set() -> None:
    assert {row.name for row in BENCHMARKS} == set(LABEL_SETS)
    for row in BENCHMARKS:
        assert row.ignore_label >= len(row.label_set.scored_raw_ids)
        assert set(row.photos) == {"val", "train"}


def test_coco_stuff_codes_are_category_ids_less_one(tmp_path: Path) -> None:
    # Person is 1, bicycle 2, banner (the first stuff, after 80 things) 92, wood 182. There is no
    # category 12, so stop sign, 13, is the twelfth.
    miniature.coco_stuff(tmp_path, [[0, 1, 10], [11, 12, 91], [181, 255, 200]])
    prepare("coco-stuff", tmp_path)
    assert read(tmp_path, "coco-stuff") == [[0, 1, 10], [X, 11, 80], [170, X, X]]
    names = [words[0] for words in scored_words(label_set("coco-stuff"))]
    assert [names[i] for i in (0, 1, 11, 170)] == ["person", "bicycle", "stop sign", "wood"]
    assert depth(tmp_path, "coco-stuff") == np.uint8
    assert file_says(tmp_path, "coco-stuff")["ignore_label"] == 255


def test_ade20k_150_codes_begin_at_one(tmp_path: Path) -> None:
    miniature.ade20k_150(tmp_path, [[0, 1, 2, 3], [149, 150, 151, 255]])
    prepare("ade20k-150", tmp_path)
    assert read(tmp_path, "ade20k-150") == [[X, 0, 1, 2], [148, 149, X, X]]


def test_ade20k_847_codes_are_in_red_and_green(tmp_path: Path) -> None:
    # wall 2978 = 11 * 256 + 162; building 312 = 1 * 256 + 56; sky 2420 = 9 * 256 + 116;
    # adding machine 3148 = 12 * 256 + 76. Red's last digit and blue say nothing of the class.
    colours = [
        [(110, 162, 1), (119, 162, 2), (10, 56, 255), (15, 56, 3)],
        [(90, 116, 9), (120, 76, 1), (0, 0, 0), (0, 1, 0)],
        [(111, 163, 1), (119, 161, 2), (29, 255, 1), (255, 255, 255)],
    ]
    miniature.ade20k_847(
        tmp_path, np.array(colours, np.uint8), np.zeros((3, 4, 3), np.uint8), "ADE_val_00000001"
    )
    prepare("ade20k-847", tmp_path)
    # None of these is a class: 11 * 256 + 163, 11 * 256 + 161, 2 * 256 + 255, 25 * 256 + 255.
    assert not {2979, 2977, 767, 6655, 0, 1} & set(label_set("ade20k-847").raw_ids)
    assert read(tmp_path, "ade20k-847") == [[0, 0, 1, 1], [2, 846, X, X], [X, X, X, X]]
    assert depth(tmp_path, "ade20k-847") == np.uint16
    vocabulary = FolderDataset.open(tmp_path / "ade20k-847", "val").vocabulary
    assert vocabulary.synonyms == label_set("ade20k-847").synonyms


def test_large_photos_of_ade20k_847_are_made_smaller_without_loss(tmp_path: Path) -> None:
    photo, colours = np.zeros((4, 1024, 3), np.uint8), np.zeros((4, 1024, 3), np.uint8)
    photo[:, :512] = 200
    colours[:, 0::2], colours[:, 1::2] = (110, 162, 0), (10, 56, 0)
    colours[1] = (90, 116, 0)
    miniature.ade20k_847(tmp_path, colours, photo, "large")
    miniature.ade20k_847(tmp_path, colours[:, :512], photo[:, :512], "small")
    prepare("ade20k-847", tmp_path)
    large, small = list(FolderDataset.open(tmp_path / "ade20k-847", "val"))
    # Every second pixel of every second row, none of them mixed from two classes.
    assert large[1].tolist() == [[0] * 512] * 2
    assert small[1].shape == (4, 512)
    source = Image.open(next(tmp_path.rglob("ADE/validation/*/*/large.jpg")))
    pixels = np.asarray(source, np.float64)
    mean = (pixels[0::2, 0::2] + pixels[0::2, 1::2] + pixels[1::2, 0::2] + pixels[1::2, 1::2]) / 4
    made = large[0].permute(1, 2, 0).numpy()
    assert np.abs(made - mean).max() <= 0.5
    assert (tmp_path / "ade20k-847/val/images/large.png").is_file()
    linked = tmp_path / "ade20k-847/val/images/small.jpg"
    assert linked.samefile(next(tmp_path.rglob("ADE/validation/*/*/small.jpg")))
    assert not linked.is_symlink()


def test_ade20k_847_goes_by_the_pixels_in_the_file(tmp_path: Path) -> None:
    miniature.ade20k_847(
        tmp_path, np.full((2, 4, 3), (110, 162, 0), np.uint8), np.zeros((2, 4, 3), np.uint8), "x"
    )
    path = next(tmp_path.rglob("street/x.jpg"))
    photo = Image.open(path)
    photo.getexif()[0x0112] = 6  # "turn by 90 degrees", which the label does not know of
    photo.save(path, exif=photo.getexif())
    prepare("ade20k-847", tmp_path)
    assert read(tmp_path, "ade20k-847") == [[0] * 4] * 2


@pytest.mark.parametrize(
    ("name", "labels"),
    [("pascal-voc-20", [[X, 0, 19], [1, X, X]]), ("pascal-voc-20b", [[20, 0, 19], [1, X, X]])],
)
def test_voc_codes_are_indices_of_the_palette(
    tmp_path: Path, name: str, labels: list[list[int]]
) -> None:
    miniature.voc(tmp_path, [[0, 1, 20], [2, 255, 21]], {"val": ["2007_000033"]})
    prepare(name, tmp_path)
    assert read(tmp_path, name) == labels
    names = FolderDataset.open(tmp_path / name, "val").vocabulary.names
    assert names == label_set(name).scored_names
    assert (tmp_path / name / "classes.txt").read_text().split("\n")[0] == "aeroplane"


def test_voc_trains_on_the_augmented_set_where_it_is(tmp_path: Path) -> None:
    miniature.voc(tmp_path, [[1, 2]], {"train": ["a"], "val": ["v"]})
    (plain,) = prepare("pascal-voc-20", tmp_path, "train")
    assert (plain.photos, plain.expected) == (1, 1464)
    paths = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in "ab"]
    miniature.voc(tmp_path, [[1, 2]], {"trainaug": paths}, "SegmentationClassAug")
    (augmented,) = prepare("pascal-voc-20", tmp_path, "train")
    assert (augmented.photos, augmented.expected, augmented.made) == (2, 10582, 1)


def test_pascal_context_59_paints_masks_in_order(tmp_path: Path) -> None:
    # Aeroplane is 2 and the first class, wood 458 and the last; accordion, 1, is none of the 59.
    masks = [
        (2, [[1, 1, 1, 0], [1, 1, 1, 0]]),
        (458, [[0, 1, 0, 0], [0, 1, 0, 0]]),
        (1, [[0, 0, 0, 0], [1, 0, 0, 0]]),
    ]
    miniature.context_59(tmp_path, VAL, masks)
    prepare("pascal-context-59", tmp_path)
    assert read(tmp_path, "pascal-context-59") == [[0, 58, 0, X], [X, 58, 0, X]]


def test_pascal_context_59_train_is_by_phase(tmp_path: Path) -> None:
    miniature.context_59(tmp_path, "2008_000015", [(2, [[1, 0]])], phase="train")
    prepare("pascal-context-59", tmp_path, "train")
    assert read(tmp_path, "pascal-context-59", "train") == [[0, X]]


def test_pascal_context_459_ignores_its_own_number(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    miniature.context_459(tmp_path, [[1, 256, 459], [0, 460, 2]], (VAL, "2008_000015"))
    prepare("pascal-context-459", tmp_path, "all")
    labels = [[0, 255, 458], [X, X, 1]]
    assert read(tmp_path, "pascal-context-459") == labels
    assert read(tmp_path, "pascal-context-459", "train") == labels
    stored = np.array(Image.open(tmp_path / f"pascal-context-459/val/labels/{VAL}.png"))
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[0, 255, 458], [459, 459, 1]]
    assert file_says(tmp_path, "pascal-context-459")["ignore_label"] == 459


def test_without_scipy_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy")
    miniature.context_459(tmp_path, [[1, 2]], (VAL,))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match=r'pip install "sedseg\[eval\]"'):
        prepare("pascal-context-459", tmp_path)
    assert not (tmp_path / "pascal-context-459/val").exists()


NAMES = ("a", "b", "c", "d")


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    miniature.coco_stuff(tmp_path, [[0, 1]], NAMES)
    out = tmp_path / "coco-stuff/val"

    def stop(split: str, number: int, total: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("coco-stuff", tmp_path, progress=stop)
    assert not (tmp_path / "coco-stuff/dataset.json").exists()
    with pytest.raises(InputError, match="is not prepared in"):
        prepared_folder("coco-stuff", tmp_path)
    for path in sorted((out / "labels").glob("*.png"))[2:]:  # begun when the others were stopped
        path.unlink()
    (out / "labels/.c.png.0123.part").write_bytes(b"half")  # as kill -9 leaves one
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(before) == 2
    told = []
    (made,) = prepare("coco-stuff", tmp_path, progress=lambda *said: told.append(said))
    assert made.made == 2
    assert told == [("val", 2, 4), ("val", 3, 4), ("val", 4, 4)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(p.name for p in (out / "labels").iterdir()) == [f"{n}.png" for n in NAMES]
    assert len(FolderDataset.open(tmp_path / "coco-stuff", "val")) == 4


def test_a_file_system_without_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    miniature.coco_stuff(tmp_path, [[0, 1]], ("a",))
    prepare("coco-stuff", tmp_path)
    original, copy = tmp_path / "val2017/a.jpg", tmp_path / "coco-stuff/val/images/a.jpg"
    assert copy.read_bytes() == original.read_bytes()
    assert not copy.samefile(original)


def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        prepare("pascal-context-59", tmp_path, "all")
    lines = str(raised.value).splitlines()
    assert len(lines) == 4
    for line, name, origin in zip(
        lines,
        ["VOCdevkit/VOC2010/JPEGImages", "VOCdevkit/VOC2010/trainval_merged.json"] * 2,
        ["VOCtrainval_03-May-2010.tar", "detail-api"] * 2,
        strict=True,
    ):
        assert f"so that {tmp_path / name} is there" in line
        assert origin in line
    assert not list(tmp_path.iterdir())


def test_fewer_photos_than_expected_are_prepared_and_told_of(tmp_path: Path) -> None:
    miniature.coco_stuff(tmp_path, [[0, 1]], ("a", "b"))
    (tmp_path / "stuffthingmaps/val2017/b.png").unlink()
    (made,) = prepare("coco-stuff", tmp_path)
    assert (made.photos, made.expected) == (1, 5000)
    assert "1 of 5,000 photos; missing: 4,999" in made.note
    assert "stuffthingmaps/val2017/b.png)" in made.note
    assert "stuffthingmaps_trainval2017.zip" in made.note
    assert file_says(tmp_path, "coco-stuff")["splits"] == {"val": {"photos": 1, "expected": 5000}}
    miniature.coco_stuff(tmp_path, [[0, 1]], ("b",))
    assert prepare("coco-stuff", tmp_path)[0].photos == 2


def test_a_whole_split_needs_its_originals_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = benchmark("coco-stuff")
    small = replace(row, splits=tuple(replace(s, photos=1) for s in row.splits))
    monkeypatch.setattr(table, "BENCHMARKS", (small,))
    miniature.coco_stuff(tmp_path, [[0, 1]], ("a",))
    assert prepare("coco-stuff", tmp_path)[0].note == ""
    (tmp_path / "stuffthingmaps").rename(tmp_path / "elsewhere")
    (again,) = prepare("coco-stuff", tmp_path)
    assert (again.photos, again.made) == (1, 0)
    with pytest.raises(InputError, match=r"^coco-stuff train: photos not found.*[^\n]*\n"):
        prepare("coco-stuff", tmp_path, "all")


def test_a_label_of_another_size_is_named_with_its_photo(tmp_path: Path) -> None:
    miniature.ade20k_150(tmp_path, [[1, 2]])
    miniature.write_photo(next(tmp_path.rglob("*.jpg")), 3, 2)
    with pytest.raises(
        InputError, match=r"00000001\.jpg has 2x3 pixels, its label in .*00000001\.png 2x1"
    ):
        prepare("ade20k-150", tmp_path)
    assert not (tmp_path / "ade20k-150/dataset.json").exists()


def test_a_label_with_colours_is_no_label(tmp_path: Path) -> None:
    miniature.ade20k_150(tmp_path, [[1, 2]])
    label = next(tmp_path.rglob("*.png"))
    Image.open(label).convert("RGB").save(label)
    with pytest.raises(InputError, match=r"00000001\.png has colours"):
        prepare("ade20k-150", tmp_path)


def test_a_folder_of_one_s_own_is_not_overwritten(tmp_path: Path) -> None:
    miniature.coco_stuff(tmp_path, [[0, 1]], ("a",))
    own = write_set(tmp_path / "coco-stuff", photos=1)
    with pytest.raises(InputError, match="coco-stuff is a data set of your own; rename it"):
        prepare("coco-stuff", tmp_path)
    assert (own / "classes.txt").read_text() == "red\ngreen\nbackground"


def test_the_root_may_be_the_site_s_own_folder(tmp_path: Path) -> None:
    miniature.voc(tmp_path, [[1, 2]], {"val": ["a"]})
    for folder in ("VOCdevkit", "VOCdevkit/VOC2012"):
        assert prepare("pascal-voc-20", tmp_path / folder)[0].photos == 1


def test_label_maps_unpacked_beside_the_photos_are_found(tmp_path: Path) -> None:
    miniature.coco_stuff(tmp_path, [[0, 1]], ("a",))
    (tmp_path / "stuffthingmaps/val2017/a.png").rename(tmp_path / "val2017/a.png")
    assert prepare("coco-stuff", tmp_path)[0].photos == 1


def test_names_roots_and_splits_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEDSEG_DATASETS", raising=False)
    with pytest.raises(InputError, match="did you mean 'ade20k-150'"):
        prepare("ade-150", tmp_path)
    with pytest.raises(InputError, match="give --root DIR"):
        prepare("coco-stuff")
    with pytest.raises(InputError, match="is missing; make it"):
        prepare("coco-stuff", tmp_path / "none")
    with pytest.raises(InputError, match="has no split 'test'; choose val, train or all"):
        prepare("coco-stuff", tmp_path, "test")
    monkeypatch.setenv("SEDSEG_DATASETS", str(tmp_path))
    with pytest.raises(InputError, match=r"is not prepared in .*; run sedseg datasets prepare"):
        prepared_folder("coco-stuff")


def test_a_benchmark_s_training_photos_are_not_carved(tmp_path: Path) -> None:
    miniature.coco_stuff(tmp_path, [[0, 1]], NAMES, split="train")
    prepare("coco-stuff", tmp_path, "train")
    assert len(FolderDataset.open(tmp_path / "coco-stuff", "train")) == 4
    with pytest.raises(InputError, match=r"split 'val' of .* is not prepared"):
        FolderDataset.open(tmp_path / "coco-stuff", "val")


def test_a_folder_of_one_s_own_may_name_its_ignored_label(tmp_path: Path) -> None:
    root = write_set(tmp_path / "shapes")
    (root / "dataset.json").write_text('{"ignore_label": 2}')
    dataset = FolderDataset.open(root, "train")
    dataset.check()
    assert set(dataset[0][1].unique().tolist()) == {0, 1, UNLABELLED}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"ignore_label": "255"}',
        '{"ignore_label": -1}',
        '{"benchmark": "coco"}',
        '{"benchmark": ["coco-stuff"]}',
        '{"splits": {"val": 3}}',
        '{"splits": {"val": {"photos": "3", "expected": 3}}}',
    ],
)
def test_a_broken_dataset_file_is_named(tmp_path: Path, content: str) -> None:
    root = write_set(tmp_path / "shapes")
    (root / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"shapes/dataset\.json"):
        FolderDataset.open(root, "train")
