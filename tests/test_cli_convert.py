"""`sedseg convert`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sedseg import SED
from sedseg.cli import main
from sedseg.model.official import official_name
from sedseg.weights import load_model
from test_official import CONFIG, assert_same_weights


@pytest.fixture
def sedseg(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["sedseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


def test_converts_and_says_what_it_found(
    sedseg: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SED(CONFIG).eval()
    theirs = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": theirs}, tmp_path / "own.pth")
    (tmp_path / "own.json").write_text(json.dumps(CONFIG.to_dict()))
    out = tmp_path / "own.safetensors"

    assert sedseg("convert", tmp_path / "own.pth", out, "--model", tmp_path / "own.json") == 0
    assert f"{len(theirs)} tensors, every one mapped" in capsys.readouterr().out
    assert_same_weights(load_model(out)[0], model)

    assert sedseg("convert", out, tmp_path / "again.safetensors") == 2
    assert "is in sedseg's own form already" in capsys.readouterr().err
    assert not (tmp_path / "again.safetensors").exists()


def test_a_wrong_file_or_model_is_one_sentence(
    sedseg: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    for arguments, sentence in (
        ((tmp_path / "page.pth", tmp_path / "out"), "is a web page, not weights"),
        ((tmp_path / "absent.pth", tmp_path / "out"), "absent.pth cannot be read: No such file"),
        ((tmp_path / "page.pth", tmp_path), "is a folder"),
    ):
        assert sedseg("convert", *arguments) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error
