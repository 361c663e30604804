"""`sedseg benchmark`: both paths in one run, and one JSON document."""

import json

import pytest

from sedseg.cli import main
from sedseg.evaluation.speed import STAGES


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["sedseg", "benchmark", "--model", "sed-tiny", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


def test_both_paths_with_every_part_timed(monkeypatch, capsys):
    words = ("--classes", "6", "--top-k", "none,2", "--kept", "3", "--size", "96")
    status, said = run(monkeypatch, capsys, *words, "--repeats", "2", "--batch", "2", "--json")
    assert not status
    found = json.loads(said.out)
    assert {"name", "threads", "torch"} <= set(found["machine"])
    paths = [(row["path"], row["top_k"], row["kept"]) for row in found["rows"]]
    assert paths == [("plain", None, 6), ("fast", None, 6), ("plain", 2, 3), ("fast", 2, 3)]
    for row in found["rows"]:
        assert row["dtype"] == "float32" or row["path"] == "fast"
        assert row["repeats"] == 2
        assert row["least_s"] <= row["total_s"] <= row["most_s"]
        parts = [row[f"{stage}_s"] for stage in STAGES]
        assert all(part > 0 for part in parts)
        assert sum(parts) == pytest.approx(row["total_s"], rel=0.5)
        assert row["images_per_s"] == pytest.approx(2 / row["total_s"])
    plain, fast = found["rows"][:2]
    assert fast["times_plain"] == pytest.approx(plain["total_s"] / fast["total_s"])


def test_what_does_not_fit_in_memory_is_not_run(monkeypatch, capsys):
    monkeypatch.setattr("sedseg.evaluation.speed.free_memory", lambda: 500_000)
    status, said = run(
        monkeypatch, capsys, "--classes", "3", "--top-k", "none", "--size", "96", "--repeats", "1"
    )
    assert not status
    assert "plain, T=3: not run, it needs about" in said.out
    assert "fast" in said.out


def test_numbers_that_are_none(monkeypatch, capsys):
    status, said = run(monkeypatch, capsys, "--classes", "many")
    assert status == 2
    assert "--classes is 'many'" in said.err
