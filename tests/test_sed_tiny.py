"""The model inside the package, on real photos."""

import os
import re
import shlex
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sedseg
from sedseg.cli import main
from sedseg.model_zoo import EMBEDDED

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SEDSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def segmenter():
    return sedseg.load("sed-tiny")


def test_it_is_small_and_says_what_it_is(segmenter):
    assert EMBEDDED["sed-tiny"].stat().st_size <= 25e6
    info = segmenter.info
    assert info.knows_background
    assert {"car", "horse", "floor", "jeans"} <= set(info.training_classes)
    assert "research" in info.data_terms
    assert 0 < info.figures["miou"] < 1


def test_it_works_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    result = sedseg.load("sed-tiny")(EXAMPLES / "cat.jpg", "cat, car")
    assert result.mask.shape == (300, 451)


def test_the_palace(segmenter):
    result = segmenter(EXAMPLES / "palace.jpg", "sky, building|palace, tree, pavement")
    sky, building, tree = (result.mask == i for i in (0, 1, 2))
    assert sky[:40].mean() > 0.9
    assert building[100:320, 110:290].mean() > 0.9
    assert tree[350:].mean() > 0.7  # below the lake, which sed-tiny takes for sky
    assert sky[350:].mean() < 0.05


def test_the_cat_by_its_name_and_by_another(segmenter):
    for word in ("cat", "kitten"):
        mask = segmenter(EXAMPLES / "cat.jpg", [word, "background"]).mask
        assert (mask == 0)[60:260, 100:350].mean() > 0.7, word


def test_the_astronaut_is_a_person_and_no_animal(segmenter):
    result = segmenter(EXAMPLES / "astronaut.jpg", "person, tiger, road, plate, background")
    assert (result.mask == 0)[150:, 150:330].mean() > 0.6
    assert result.areas["tiger"].share < 0.05


def test_rejecting_early_hardly_changes_the_answer(segmenter):
    photo = EXAMPLES / "palace.jpg"
    dense = segmenter(photo, "ade20k-150", top_k=None)
    fast = segmenter(photo, "ade20k-150", top_k=8)
    assert sum(map(len, fast.rejected)) > 30
    assert (dense.mask == fast.mask).mean() > 0.85


def test_a_list_of_photos_equals_each_alone(segmenter):
    photos = [EXAMPLES / name for name in ("palace.jpg", "cat.jpg", "palace.jpg")]
    together = segmenter(photos, "sky, cat, building")
    for photo, result in zip(photos, together, strict=True):
        alone = segmenter(photo, "sky, cat, building")
        assert (alone.mask == result.mask).mean() > 0.995


def test_the_readme_s_first_command_makes_its_picture(tmp_path, monkeypatch, capsys):
    line = re.search(r"pip install \. && (sedseg segment .*)", README)[1]
    words = shlex.split(line)
    assert words[-2:] == ["--output", "out/"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [*words[:-1], str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "sky" in out
    assert "building" in out
    made = np.asarray(Image.open(tmp_path / "palace.overlay.png").convert("RGB"), np.int16)
    shown = np.asarray(Image.open(ROOT / "docs/images/palace.overlay.png").convert("RGB"), np.int16)
    assert made.shape == shown.shape
    assert (abs(made - shown).max(-1) < 40).mean() > 0.97


def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    monkeypatch.setattr(Image.Image, "show", lambda self: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    exec(compile(code, "README.md", "exec"), {})
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".png", ".json"}


def test_the_wheel_carries_the_model_the_words_and_the_types(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, env={**os.environ})
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "sedseg/assets/sed-tiny.safetensors",
        "sedseg/assets/label_sets/ade20k-847.tsv",
        "sedseg/py.typed",
    } <= names
    assert wheel.stat().st_size < 26e6
