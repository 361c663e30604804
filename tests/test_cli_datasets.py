"""``sedseg datasets``: exit statuses, what is printed where, one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import miniature_benchmarks as miniature
from labelled_photos import write_set
from sedseg.cli import main
from sedseg.data import benchmarks
from sedseg.data.benchmarks import benchmark, table


class Ran(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``sedseg datasets`` where COCO's two validation photos are the whole of them."""
    row = benchmark("coco-stuff")
    small = replace(row, splits=tuple(replace(s, photos=2) for s in row.splits))
    monkeypatch.setattr(table, "BENCHMARKS", (small, benchmark("ade20k-150")))
    monkeypatch.setattr("sedseg.data.benchmarks.survey.BENCHMARKS", table.BENCHMARKS)
    monkeypatch.setenv("SEDSEG_DATASETS", str(tmp_path))
    miniature.coco_stuff(tmp_path, [[0, 255]], ("a", "b"))

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["sedseg", "datasets", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Ran(int(end.value.code or 0), captured.out, captured.err)

    return run


def test_prepare(command: Command, tmp_path: Path) -> None:
    ran = command("prepare", "coco-stuff")
    assert ran.status == 0
    assert f"2 of 2 photos in {tmp_path / 'coco-stuff'}, 2 of them new" in ran.out
    assert "2/2" in ran.err  # the progress bar
    assert command("prepare", "coco-stuff", "--quiet") == Ran(0, "", "")


def test_fewer_photos_end_with_status_1(command: Command, tmp_path: Path) -> None:
    (tmp_path / "val2017/b.jpg").unlink()
    ran = command("prepare", "coco-stuff", "--root", str(tmp_path), "--json", "--quiet")
    assert ran.status == 1
    split = json.loads(ran.out)["splits"]["val"]
    assert (split["photos"], split["expected"], split["new"]) == (1, 2, 1)
    assert "Note: coco-stuff val has 1 of 2 photos; missing: 1" in ran.err


def test_missing_files_end_with_status_2(command: Command) -> None:
    ran = command("prepare", "ade20k-150")
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.count("ADEChallengeData2016.zip") == 2
    ran = command("prepare", "ade20k-150", "--json")
    assert ran.status == 2
    assert "ADEChallengeData2016.zip" in json.loads(ran.out)["error"]


def test_ctrl_c_prints_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(name: str, root: Any, split: str, progress: Any) -> None:
        progress("val", 1, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmarks, "prepare", stopped)
    ran = command("prepare", "coco-stuff", "--quiet")
    assert ran.status == 130
    said = "Stopped after 1 of 2 photos of val of coco-stuff; the same command goes on from there."
    assert ran.err.strip() == said


def test_list(command: Command, tmp_path: Path) -> None:
    command("prepare", "coco-stuff", "--quiet")
    write_set(tmp_path / "shapes", photos=3)
    ran = command("list")
    assert ran.status == 0
    listed, needs = ran.out.split("Not ready")
    rows = {line.split()[0]: line for line in listed.splitlines() if line.strip()}
    assert "171" in rows["coco-stuff"]
    assert "val 2 / 2" in rows["coco-stuff"]
    assert "not ready" in rows["ade20k-150"]
    assert "ade20k-150 val: get ADEChallengeData2016.zip from http://sceneparsing" in needs
    assert "train 3 / 3" in rows["shapes"]
    assert "ADEChallenge" not in command("list", "--quiet").out


def test_list_as_json(command: Command, tmp_path: Path) -> None:
    write_set(tmp_path / "shapes", classes="red\nred", photos=3)
    found = json.loads(command("list", "--json").out)
    coco, ade = found["benchmarks"]
    assert (coco["name"], coco["classes"], coco["splits"]) == ("coco-stuff", 171, {})
    assert "run sedseg datasets prepare coco-stuff --split val" in coco["needs"][0]
    assert [n.split(":")[0] for n in ade["needs"]] == ["val", "train"]
    (own,) = found["folders"]
    assert own["classes"] is None
    assert "is there twice" in own["needs"][0]
    command("prepare", "coco-stuff", "--quiet")
    coco = json.loads(command("list", "--json").out)["benchmarks"][0]
    assert coco["splits"] == {"val": {"photos": 2, "expected": 2}}
