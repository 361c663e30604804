"""Reading a weights file, whatever it is called: sedseg's own or the authors', known by content."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sedseg.errors import InputError
from sedseg.model_info import ModelInfo

METADATA_KEY = "sedseg"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
"""What weights files are usually called: to find one in a folder, not to tell their format."""


class Checkpoint(NamedTuple):
    """``tensors`` have our names if there is an ``info``, the authors' names if there is none."""

    tensors: dict[str, Tensor]
    info: ModelInfo | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors file or a PyTorch checkpoint; tensors are mapped where possible.

    A checkpoint is read with ``weights_only``: it cannot run code.

    Raises:
        InputError: the file is something else, truncated, or holds more than tensors and numbers.
    """
    if file_format(path, str(path)) == "safetensors":
        return _read_safetensors(path)
    return Checkpoint(_state_dict(_read_pickle(path), path), None)


def read_info(path: Path) -> ModelInfo:
    """What a file saved by sedseg says of its model; reads no tensor.

    Raises:
        InputError: sedseg did not save the file.
    """
    if file_format(path, str(path)) == "safetensors":
        with _opened(path) as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        if text is not None:
            return ModelInfo.from_json(text)
    raise InputError(f"{path} was not saved by sedseg; `sedseg convert {path} OUT` makes it so.")


def file_format(path: Path, name: str) -> str:
    """Tell "safetensors", "zip" and "pickle" (the latter two are PyTorch's) by the first bytes.

    Args:
        path: the file.
        name: what to call it in the error.

    Raises:
        InputError: it is something else, or plainly incomplete.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}.") from error
    if size == 0:
        raise InputError(f"{name} is empty; download it again.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):  # the table of contents is at the end
            raise InputError(f"{name} is truncated at {size} bytes; download it again.")
        with zipfile.ZipFile(path) as archive:
            if not any(member.endswith("/data.pkl") for member in archive.namelist()):
                raise InputError(f"{name} is a zip archive, not weights; unpack it first.")
        return "zip"
    if head[:1] == b"\x80" and head[1:2] < b"\x06":
        return "pickle"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(
            f"{name} is a web page, not weights; Google Drive and others send one instead of a "
            "large file: download it again with a browser, or check the address."
        )
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{name} is a Git LFS pointer, not weights; `git lfs pull` fetches them.")
    raise InputError(
        f"{name} holds no weights: it is neither a safetensors file nor a PyTorch checkpoint."
    )


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(
            f"{path} is a truncated or damaged safetensors file; download it again."
        ) from error


def _read_safetensors(path: Path) -> Checkpoint:
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = (file.metadata() or {}).get(METADATA_KEY)
    return Checkpoint(tensors, None if text is None else ModelInfo.from_json(text))


def _read_pickle(path: Path) -> Any:
    with torch.serialization.safe_globals(_numpy_numbers()):
        try:
            with contextlib.suppress(RuntimeError):  # PyTorch before 1.6 wrote unmappable files
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damage surfaces as almost any exception
            found = re.search(r"GLOBAL (\w[\w.]*\w)", str(error))
            if found:
                raise InputError(
                    f"{path} holds the Python object {found[1]}, which could run code, so it is "
                    "not read; keep only the tensors: torch.save({'model': model.state_dict()}, "
                    "'...')."
                ) from error
            raise InputError(
                f"{path} is a truncated or damaged PyTorch checkpoint; download it again."
            ) from error


def _numpy_numbers() -> list[Any]:
    """Training frameworks keep the best score beside the weights as a numpy number: harmless."""
    scalar: Any = np.float64().__reduce__()[0]  # numpy 1 and 2 keep it in different modules
    names = [(scalar, f"numpy.{part}.multiarray.scalar") for part in ("core", "_core")]
    return [np.dtype, *names, *(type(np.dtype(t)) for t in (np.float64, np.float32, np.int64))]


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of ``{"model": {...}, ...}`` or of a bare state dict.

    A prefix "module." of all names, left by distributed training, is taken off.
    """
    for key in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items())
    ):
        raise InputError(f"{path} holds no state dict (names and tensors), so no weights of SED.")
    prefix = "module." if all(name.startswith("module.") for name in loaded) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in loaded.items()}
