"""Checkpoints in the form that the paper's authors publish."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from golden_model import TINY
from sedseg import SED, InputError
from sedseg.model.official import official_name
from sedseg.model_zoo import PUBLISHED
from sedseg.weights import convert, load_model

CONFIG = TINY


@pytest.fixture(scope="module")
def model() -> SED:
    return SED(CONFIG).eval()


@pytest.fixture
def published(model: SED) -> dict[str, torch.Tensor]:
    return {official_name(name): tensor for name, tensor in model.state_dict().items()}


@pytest.fixture
def checkpoint(published: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "model_final.pth"
    torch.save({"model": published, "iteration": 79999}, path)
    return path


def assert_same_weights(ours: SED, theirs: SED) -> None:
    expected = theirs.state_dict()
    actual = ours.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("size", ["base", "large"])
def test_every_published_name_and_shape_is_mapped(size: str) -> None:
    packed = Path(__file__).parent / "golden" / f"official_keys_{size}.json.gz"
    published = json.loads(gzip.decompress(packed.read_bytes()))
    with torch.device("meta"):
        ours = SED(PUBLISHED[f"sed-{size}"].config).state_dict()
    shapes = {official_name(name): list(tensor.shape) for name, tensor in ours.items()}
    assert len(shapes) == len(ours)
    assert shapes == published


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_published_model_is_recognised_by_its_shapes(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = Path(__file__).parent / "golden" / f"official_keys_{size}.json.gz"
    shapes = json.loads(gzip.decompress(packed.read_bytes()))
    # Tensors without memory: every element is the same number.
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save({"model": tensors}, tmp_path / "model.pth")
    written = {}
    monkeypatch.setattr("sedseg.weights._write", lambda t, info, path: written.update(t))
    (tmp_path / "out").touch()
    found = convert(tmp_path / "model.pth", tmp_path / "out")
    assert found.info.name == f"sed-{size}"
    assert found.info.config == PUBLISHED[f"sed-{size}"].config
    assert found.tensors == len(written) == len(shapes)
    assert found.info.training_classes == ()  # the shape does not tell who trained it
    named = convert(tmp_path / "model.pth", tmp_path / "out", f"sed-{size}")
    assert len(named.info.training_classes) == 171


def test_a_checkpoint_of_another_configuration_converts_and_loads(
    model: SED, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "folder" / "own.safetensors"
    made = convert(checkpoint, out, CONFIG)
    assert made.tensors == len(model.state_dict())
    assert made.size == out.stat().st_size
    loaded, info = load_model(out)
    assert info.config == CONFIG
    assert_same_weights(loaded, model)
    assert_same_weights(load_model(checkpoint, CONFIG)[0], model)  # and without converting


def test_the_forms_that_training_leaves(
    model: SED, published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "any.name"
    forms = (
        published,
        {f"module.{name}": tensor for name, tensor in published.items()},
        {"model": published, "sem_seg/mIoU": np.float64(31.8), "optimizer": {"state": {}}},
        {"model": {name: tensor.half() for name, tensor in published.items()}},
    )
    for form in forms[:3]:
        torch.save(form, path)
        assert_same_weights(load_model(path, CONFIG)[0], model)
    torch.save(forms[0], path, _use_new_zipfile_serialization=False)  # as before PyTorch 1.6
    assert_same_weights(load_model(path, CONFIG)[0], model)
    torch.save(forms[3], path)
    assert {p.dtype for p in load_model(path, CONFIG)[0].parameters()} == {torch.float32}


def test_a_name_too_few_too_many_or_misshapen_is_an_error_that_says_which(
    published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    name = "sem_seg_head.predictor.transformer.head0.bias"
    path, out = tmp_path / "model.pth", tmp_path / "out.safetensors"
    for changed in (
        {key: tensor for key, tensor in published.items() if key != name},
        {**published, name + "2": torch.zeros(1)},
        {**published, name: torch.zeros(2)},
    ):
        torch.save({"model": changed}, path)
        with pytest.raises(InputError, match=name):
            convert(path, out, CONFIG)
    assert not out.exists()


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def wrong_file(kind: str, checkpoint: Path) -> bytes:
    good = checkpoint.read_bytes()
    buffer = io.BytesIO()
    if kind == "picture":
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
    elif kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "web page":
        buffer.write(b"<!DOCTYPE html><html><head><title>Google Drive</title></html>")
    elif kind == "truncated":
        buffer.write(good[: len(good) // 2])
    elif kind == "truncated old format":
        torch.save({"a": torch.ones(99)}, buffer, _use_new_zipfile_serialization=False)
        buffer.seek(-200, os.SEEK_END)
        buffer.truncate()
    elif kind == "another model":
        torch.save({"conv1.weight": torch.ones(1)}, buffer)
    elif kind == "no state dict":
        torch.save([1, 2], buffer)
    elif kind == "code":
        torch.save({"model": Code()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("picture", "neither a safetensors file nor a PyTorch checkpoint"),
        ("zip", "zip archive"),
        ("web page", "web page"),
        ("truncated", "truncated"),
        ("truncated old format", "not read|truncated"),
        ("another model", "conv1.weight"),
        ("no state dict", "no state dict"),
        ("code", "mkdir, which could run code"),
        ("empty", "is empty"),
    ],
)
def test_a_wrong_file_gets_one_sentence(
    kind: str, sentence: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "wrong.pth"
    path.write_bytes(wrong_file(kind, checkpoint))
    with pytest.raises(InputError, match=sentence) as caught:
        load_model(path)
    assert "wrong.pth" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
