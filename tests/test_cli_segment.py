"""``sedseg segment``: files, tables, JSON, exit statuses; one bad photo costs no other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from golden_model import TINY
from sedseg.cli import main
from sedseg.cli.segment import output_stems
from sedseg.model.sed import SED
from sedseg.preprocessing import Preprocessing
from sedseg.weights import ModelInfo, save_model

WORDS = "sky, road|street, car"


class Ran(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(TINY, templates=2)
    path = tmp_path_factory.mktemp("model") / "toy.safetensors"
    torch.manual_seed(0)
    save_model(SED(config), ModelInfo("toy", config, Preprocessing(64, 256, None)), path)
    return path


@pytest.fixture
def command(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Run ``sedseg segment`` in ``tmp_path``, where three photos are, one of them damaged."""
    monkeypatch.setenv("SEDSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("trip").mkdir()
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        pixels = np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(Path("trip", name))
    cut = Path("trip/b.png").read_bytes()
    Path("trip/b.png").write_bytes(cut[: len(cut) // 2])

    def run(*arguments: str, model: bool = True) -> Ran:
        given = [*arguments, "--model", str(weights), "--device", "cpu"] if model else arguments
        monkeypatch.setattr(sys, "argv", ["sedseg", "segment", *given])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        captured = capsys.readouterr()
        return Ran(int(code or 0), captured.out, captured.err)

    return run


def test_one_photo(command: Command) -> None:
    ran = command("trip/a.png", "--classes", WORDS)
    assert ran.status == 0
    assert sorted(p.name for p in Path("sedseg-output").iterdir()) == [
        "a.json", "a.labels.png", "a.overlay.png",
    ]  # fmt: skip
    record = json.loads(Path("sedseg-output/a.json").read_text())
    labels = np.asarray(Image.open("sedseg-output/a.labels.png"))
    for entry in record["classes"]:
        assert entry["pixels"] == (labels == entry["index"]).sum()
        if entry["pixels"]:
            assert f"{entry['share']:.1%}" in ran.out
            assert entry["name"] in ran.out


def test_a_bad_photo_costs_no_other(command: Command) -> None:
    ran = command("trip", "--classes", WORDS, "--output", "out")
    assert ran.status == 1
    assert {p.name for p in Path("out").glob("*.json")} == {"a.json", "c.json"}
    errors = [line for line in ran.err.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert "trip/b.png is damaged or cut short" in errors[0]
    assert "3/3" in ran.err  # the progress bar
    assert "2 done, 1 failed" in ran.out


def test_a_defect_on_one_photo_costs_no_other(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sedseg.segmenter import Segmenter

    call = Segmenter.__call__

    seen = []

    def breaks(self: Segmenter, photo: Any, *args: Any, **more: Any) -> Any:
        seen.append(photo)
        if len(seen) == 1:
            raise MemoryError
        return call(self, photo, *args, **more)

    monkeypatch.setattr(Segmenter, "__call__", breaks)
    ran = command("trip/a.png", "trip/c.png", "--classes", WORDS, "--quiet")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert "trip/a.png: there is not enough memory" in ran.err
    assert Path("sedseg-output/c.json").exists()


def test_resume(command: Command) -> None:
    photos = ("trip/a.png", "trip/c.png")
    command(*photos, "--classes", WORDS)
    Path("sedseg-output/c.labels.png").unlink()
    before = Path("sedseg-output/a.json").stat().st_mtime_ns
    again = json.loads(command(*photos, "--classes", WORDS, "--resume", "--json").out)
    assert [photo["status"] for photo in again["photos"]] == ["skipped", "done"]
    assert Path("sedseg-output/a.json").stat().st_mtime_ns == before
    assert Path("sedseg-output/c.labels.png").exists()
    for other in (
        ["--classes", "sky, car"],
        ["--classes", WORDS.replace("street", "lane")],
        ["--classes", WORDS, "--top-k", "none"],
    ):
        anew = json.loads(command(*photos, *other, "--resume", "--json").out)
        assert [photo["status"] for photo in anew["photos"]] == ["done", "done"]


def test_resume_does_not_take_one_photo_for_another(command: Command) -> None:
    Path("other").mkdir()
    Path("other/a.png").write_bytes(Path("trip/c.png").read_bytes())
    command("trip/a.png", "--classes", WORDS)
    again = json.loads(command("other/a.png", "--classes", WORDS, "--resume", "--json").out)
    assert again["photos"][0]["status"] == "done"


def test_json_is_one_document(command: Command) -> None:
    ran = command("trip", "--classes", WORDS, "--json")
    assert ran.status == 1
    document = json.loads(ran.out)
    assert (document["done"], document["skipped"], document["failed"]) == (2, 0, 1)
    good, bad, _ = document["photos"]
    assert (good["photo"], good["width"], good["height"]) == ("trip/a.png", 64, 48)
    assert sum(entry["pixels"] for entry in good["classes"]) == 64 * 48
    assert all(Path(good[kind]).exists() for kind in ("overlay", "labels", "record"))
    assert bad["photo"] == "trip/b.png"
    assert "damaged" in bad["error"]
    wrong = command("trip", "--classes", "sky,,car", "--json")
    assert wrong.status == 2
    assert "empty name" in json.loads(wrong.out)["error"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trip/a.png"], "--classes"),
        (["trip/a.png", "--classes", "a,b", "--classes-file", "f.txt"], "either --classes"),
        (["trip/a.png", "--classes-file", "f.txt"], "f.txt"),
        (["nowhere.png", "--classes", WORDS], "nowhere.png: there is no such file"),
        (["trip/*.gif", "--classes", WORDS], r"trip/*.gif: there is no photo"),
        (["trip/a.png", "--classes", WORDS, "--top-k", "0"], "--top-k is '0'"),
        (["trip/a.png", "--classes", WORDS, "--threshold", "7"], "threshold is 7"),
        (["trip/a.png", "--classes", WORDS, "--opacity", "-1"], "opacity is -1"),
        (["trip/a.png", "--classes", WORDS, "--output", "trip/a.png"], "cannot be made"),
        (["trip/a.png", "--classes", "background"], "name at least one other"),
        (["trip/a.png", "--classes", WORDS, "--device", "tpu"], "'tpu' is not available"),
        (["trip/a.png", "--classes", WORDS, "--threshold", "high"], "valid number"),
        (["trip/a.png", "--clases", WORDS], "No such option"),
        ([], "PHOTO"),
    ],
)
def test_wrong_input_is_one_sentence(command: Command, arguments: list[str], said: str) -> None:
    ran = command(*arguments, model="tpu" not in arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("Error: ")
    assert ran.err.count("\n") == 1
    assert said in ran.err


def test_near_synonyms_are_a_note_not_a_line_of_code(command: Command) -> None:
    err = command("trip/a.png", "--classes", "sky, car, tree, dog, cat, wall").err
    assert err.startswith("Note: Classes the model can hardly tell apart")
    assert ".py" not in err


def test_names_of_results_do_not_collide(tmp_path: Path) -> None:
    def stems(*paths: str) -> list[str]:
        return output_stems([tmp_path / path for path in paths])

    assert stems("a/x.jpg", "a/y.jpg", "b/z.png") == ["x", "y", "z"]
    assert stems("a/x.jpg", "b/x.jpg", "b/y.png") == ["a-x.jpg", "b-x.jpg", "y"]
    assert stems("x.jpg", "x.png") == ["x.jpg", "x.png"]
    assert stems("a/X.jpg", "b/x.jpg") == ["a-X.jpg", "b-x.jpg"]  # one file where case is ignored
    assert stems("a-b/x.jpg", "a/b-x.jpg", "a/b/x.jpg") == ["a-b-x.jpg", "b-x", "a-b-x.jpg-2"]


def test_help_gives_an_example() -> None:
    code = (
        "import sys; sys.argv = ['sedseg', 'segment', '--help']; import sedseg.cli as c; c.main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'sedseg segment street.jpg --classes "sky, building, road|street, car"' in shown.stdout
