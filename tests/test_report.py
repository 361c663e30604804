"""The report: its numbers, its pages, and that a browser shows it."""

import csv
import importlib.util
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from labelled_photos import write_set
from sedseg.data.folder import FolderDataset
from sedseg.errors import InputError
from sedseg.evaluation import plots
from sedseg.evaluation.metrics import ConfusionMatrix
from sedseg.evaluation.report import require_report, write_report
from sedseg.evaluation.results import Evaluation, Measured, PhotoScore

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

NAMES = ("red", "green <script>alert(1)</script>", "background")
COUNTS = [[80, 15, 5, 0], [10, 40, 0, 0], [0, 0, 200, 50]]


def _predict(index: int, top_k: int | None) -> np.ndarray:
    """All background, but for a red strip that is wrong on most of it."""
    mask = np.full((64 + 8 * (index % 3), 96), 2, np.int16)
    mask[:20] = 0
    mask[-4:] = -1
    return mask


def _evaluation(dataset: FolderDataset, names=NAMES, counts=COUNTS, settings=(2, None)):
    scores = [0.5, 0.9, math.nan, 0.1, 0.7, 0.3]
    photos = tuple(
        PhotoScore(i, path, score, score)
        for i, (path, score) in enumerate(zip(dataset.photos, scores, strict=True))
    )
    total = len(names) + 4
    measured = tuple(
        Measured(
            top_k,
            ConfusionMatrix(torch.tensor(counts)),
            (total, total, total) if top_k is None else (5.5, 4.0, 3.0),
            0.5 if top_k is None else 0.25,
            photos,
        )
        for top_k in settings
    )
    return Evaluation(
        model="a model",
        weights="model.safetensors",
        dataset="shapes",
        split="train",
        classes=tuple(names),
        prompts=tuple((name,) for name in (*names, "a", "b", "c", "d")),
        scored_as=(*range(len(names)), -1, -1, -1, -1),
        settings={"protocol": "paper", "scales": [0.5, 1.0], "flip": False},
        notes=("Two photos are <b>missing</b>.",),
        measured=measured,
        similarity=torch.full((len(names), len(names)), 0.5).fill_diagonal_(1),
    )


@pytest.fixture
def dataset(tmp_path: Path) -> FolderDataset:
    write_set(tmp_path / "shapes", photos=6, split="test")
    return FolderDataset.open(tmp_path / "shapes", "test")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_numbers_beside_the_page(dataset, tmp_path):
    evaluation = _evaluation(dataset)
    files = write_report(evaluation, dataset, _predict, tmp_path / "new" / "report")
    assert sorted(files) == sorted((tmp_path / "new" / "report").iterdir())

    record = json.loads(files.record.read_text(encoding="utf-8"))
    assert {
        k: v for k, v in record.items() if k != "results"
    }.items() <= evaluation.record().items()
    assert [p["miou"] for p in record["results"][0]["per_photo"]] == [0.5, 0.9, None, 0.1, 0.7, 0.3]

    classes = _rows(files.per_class)
    assert [(r["top_k"], r["index"]) for r in classes] == [
        (k, i) for k in ("2", "none") for i in "012"
    ]
    assert float(classes[0]["iou"]) == pytest.approx(80 / 110)
    assert float(classes[2]["accuracy"]) == pytest.approx(200 / 250)
    assert classes[1]["class"] == NAMES[1]
    assert classes[1]["pixels"] == "50"

    assert [r["miou"] for r in _rows(files.photos)][:4] == ["0.5", "0.9", "", "0.1"]
    with files.confusion.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header[1:] == [*NAMES, "(no scored class)"]
    assert [[int(n) for n in line[1:]] for line in lines] == COUNTS

    first, dense = _rows(files.tradeoff)
    assert (first["top_k"], first["kept_1"], first["seconds_per_photo"]) == ("2", "5.5", "0.25")
    assert float(dense["miou_ground_truth"]) == pytest.approx(
        evaluation.measured[0].matrix.miou_ground_truth
    )
    with Image.open(files.tradeoff_plot) as plot:
        assert plot.format == "PNG"


def test_the_page_loads_nothing_and_escapes_names(dataset, tmp_path):
    page = write_report(_evaluation(dataset), dataset, _predict, tmp_path / "out").html.read_text(
        encoding="utf-8"
    )
    assert not re.search(r"https?://|<script|<link|<iframe|@import|url\(", page)
    sources = re.findall(r'src="([^"]{0,20})', page)
    assert len(sources) == 2 + 5 * 4  # two plots; of five photos with a score, four pictures
    assert all(source.startswith("data:image/") for source in sources)
    assert "green &lt;script&gt;" in page
    assert "Two photos are &lt;b&gt;missing" in page
    assert "mIoU (ground truth)" in page
    assert "mIoU (union)" in page


def test_only_the_photos_shown_are_segmented_at_the_first_setting(dataset, tmp_path):
    asked = []

    def predict(index, top_k):
        asked.append((index, top_k))
        return _predict(index, top_k)

    page = write_report(_evaluation(dataset), dataset, predict, tmp_path / "out", most=2).html
    # The best first, then the worst first; the photo without a labelled pixel is neither.
    assert asked == [(1, 2), (4, 2), (3, 2), (5, 2)]
    shown = re.findall(r"<h4>(\d+)\.png", page.read_text(encoding="utf-8"))
    assert shown == ["001", "004", "003", "005"]


def test_wrong_pixels_are_marked_and_unlabelled_ones_left_out():
    photo = Image.new("RGB", (3, 1), (90, 90, 90))
    truth, predicted = np.array([[0, 1, -1]]), np.array([[0, 0, 0]])
    colours = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    wrong = np.asarray(plots.photo_panels(photo, truth, predicted, colours).wrong)
    assert tuple(wrong[0, 1]) == plots.WRONG_COLOUR
    assert tuple(wrong[0, 2]) == plots.LEFT_OUT_COLOUR
    assert len(set(wrong[0, 0].tolist())) == 1  # grey


def test_photos_are_shrunk_for_the_page():
    photo = Image.new("RGB", (2000, 1000))
    mask = np.zeros((1000, 2000), np.int16)
    panels = plots.photo_panels(photo, mask, mask, np.zeros((1, 3), np.uint8))
    assert {panel.size for panel in panels} == {(480, 240)}


def test_a_long_list_opens_with_its_ends_and_holds_all(dataset, tmp_path):
    names = [f"class {i}" for i in range(70)]
    counts = np.zeros((70, 71), np.int64)
    for i in range(70):
        counts[i, i], counts[i, 70] = i, 70 - i  # IoU i / 70
    evaluation = _evaluation(dataset, names, counts.tolist())
    page = write_report(evaluation, dataset, _predict, tmp_path / "out", most=1).html.read_text(
        encoding="utf-8"
    )
    before, after = page.split("<details>")
    table = r'<th scope="row">.*?<span>(class \d+)</span>'
    assert re.findall(table, before) == [f"class {i}" for i in (*range(69, 54, -1), *range(15))]
    assert re.findall(table, after) == [f"class {i}" for i in range(69, -1, -1)]


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_failed_write_leaves_the_old_report_whole(dataset, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    write_report(_evaluation(dataset), dataset, _predict, folder)
    old = _contents(folder)
    write = Path.write_bytes

    def full_disk(path, content):
        if "tradeoff" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    counts = [[row[i] + 7 for i in range(4)] for row in COUNTS]
    with pytest.raises(InputError, match="cannot be written to: No space left"):
        write_report(_evaluation(dataset, counts=counts), dataset, _predict, folder)
    assert _contents(folder) == old


def test_one_setting_leaves_no_trade_off_of_an_earlier_run(dataset, tmp_path):
    folder = tmp_path / "out"
    write_report(_evaluation(dataset), dataset, _predict, folder)
    files = write_report(_evaluation(dataset, settings=(None,)), dataset, _predict, folder)
    assert files.tradeoff is None
    assert files.tradeoff_plot is None
    assert not list(folder.glob("tradeoff*"))


def test_a_missing_library_is_named_before_the_run(monkeypatch):
    require_report()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name)
    )
    with pytest.raises(InputError, match=r'pip install "sedseg\[eval\]"'):
        require_report()


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not on the PATH")
def test_a_browser_shows_it(dataset, tmp_path):
    page = write_report(_evaluation(dataset), dataset, _predict, tmp_path / "out").html
    picture = tmp_path / "page.png"

    def browse(*options: str) -> str:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [*command, profile, "--window-size=1280,4000", *options, page.as_uri()],
            capture_output=True,
            timeout=200,
            check=True,
        )
        return done.stdout.decode()

    document = browse("--dump-dom")
    assert "<title>a model on shapes</title>" in document
    assert "green &lt;script&gt;alert(1)&lt;/script&gt;" in document

    browse(f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    # The pictures are shown, the policy that forbids all loads notwithstanding: wrong pixels red.
    assert (np.abs(pixels - plots.WRONG_COLOUR).max(2) < 12).mean() > 0.005
    assert (pixels.min(2) > 240).mean() > 0.3  # paper
