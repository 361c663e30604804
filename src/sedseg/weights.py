"""Models and their weights: load by name, path, URL or repository; save; convert the authors'."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sedseg.checkpoints import METADATA_KEY, SUFFIXES, read_checkpoint, read_info
from sedseg.download import from_drive, from_hub, from_url, weights_in
from sedseg.errors import InputError
from sedseg.model.config import SEDConfig
from sedseg.model.official import from_official, official_name
from sedseg.model.sed import SED
from sedseg.model_info import ModelInfo
from sedseg.model_zoo import EMBEDDED, PUBLISHED, PublishedModel
from sedseg.preprocessing import Preprocessing
from sedseg.storage import cache_folder, locked, replacing

__all__ = ["Converted", "ModelInfo", "convert", "load_model", "named_config", "save_model"]

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Converted(NamedTuple):
    """What :func:`convert` made."""

    info: ModelInfo
    tensors: int
    size: int
    """Bytes of the file written."""


def load_model(source: str | Path, config: SEDConfig | None = None) -> tuple[SED, ModelInfo]:
    """Load a model.

    Args:
        source: a name ("sed-tiny", "sed-base", "sed-large"); the path of a file, or of a folder
            with a ``model.safetensors``; an http(s) URL; or a Hugging Face repository
            "user/name". Files saved by sedseg and the authors' checkpoints are told apart by
            content. A name goes before a path; write "./sed-base" for a path of that name.
        config: the shape of an authors' style checkpoint that is neither sed-base nor sed-large.

    Returns:
        The model in evaluation mode, float32, on the CPU; and what is known of it.

    Raises:
        InputError: there is no such model, it cannot be fetched, or the file holds none.
    """
    path = _local_file(source)
    tensors, info = read_checkpoint(path)
    if info is None:
        tensors, info = _from_official(tensors, path, config)
    with _WithoutRandomFill():
        model = SED(info.config)
    wide = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    try:
        model.load_state_dict(wide, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(f"The weights in {path} do not fit its own configuration.") from error
    return model.eval(), info


def save_model(
    model: SED, info: ModelInfo, path: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write one safetensors file with the weights, and ``info`` in its metadata.

    Args:
        model: on any device.
        info: kept as JSON; its ``config`` must be the model's.
        path: replaced if it exists; never seen half written.
        dtype: store kernels and matrices in this type (float16 halves the file); the few numbers
            in biases, norms and statistics stay as they are. Loading gives float32 either way.

    Raises:
        InputError: ``info`` describes another model.
    """
    if info.config != model.config:
        raise InputError(f"The model is not the {info.name!r} that its information describes.")
    tensors = {name: _narrow(tensor, dtype) for name, tensor in model.state_dict().items()}
    _write(tensors, info, Path(path))


def convert(
    official: str | Path, out: str | Path, model: str | Path | SEDConfig | None = None
) -> Converted:
    """Turn a checkpoint in the authors' form into a file of sedseg's, strictly.

    Args:
        official: the checkpoint, a pickle ``{"model": state_dict, ...}`` or a state dict.
        out: the safetensors file to write.
        model: a name: these are that model's published weights; a configuration or a JSON file of
            one: these are weights of that shape. None: the shape is recognised, and nothing more
            than the shape is taken to be known.

    Raises:
        InputError: the file is no such checkpoint or does not fit the model, name by name.
    """
    path, out = Path(official).expanduser(), Path(out).expanduser()
    if out.is_dir():
        raise InputError(
            f"{out} is a folder; name the file to write, such as {out}/sed.safetensors."
        )
    tensors, info = read_checkpoint(path)
    if info is not None:
        raise InputError(f"{path} is in sedseg's own form already ({info.name}); use it as it is.")
    published = PUBLISHED.get(model) if isinstance(model, str) else None
    if published is None and isinstance(model, str | Path):
        model = named_config(model)
    config = published.config if published else model
    assert config is None or isinstance(config, SEDConfig)
    ours, info = _from_official(tensors, path, config)
    info = published.info() if published else info
    _write(ours, info, out)
    return Converted(info, len(ours), out.stat().st_size)


def named_config(model: str | Path) -> SEDConfig:
    """The configuration of a named model, of a file saved by sedseg, or in a JSON file.

    Raises:
        InputError: there is no such model or file, or the JSON is no configuration.
    """
    if model in PUBLISHED:
        return PUBLISHED[str(model)].config
    path = _embedded(str(model)) if model in EMBEDDED else Path(model).expanduser()
    if not path.is_file():
        raise InputError(f"There is no configuration {str(model)!r}.{_nearest(str(model))}")
    if path.suffix != ".json":
        return read_info(path).config
    try:
        return SEDConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is no configuration of SED in JSON ({error}).") from error


class _WithoutRandomFill(TorchFunctionMode):
    """Leave new parameters unfilled, as loaded ones replace all of them.

    Filling takes most of the time that loading takes, and would draw from the caller's random
    numbers.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        fills = func in (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_)
        if fills or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _local_file(source: str | Path) -> Path:
    if isinstance(source, str):
        if source in EMBEDDED:
            return _embedded(source)
        if source in PUBLISHED:
            return _fetched(PUBLISHED[source])
        if source.startswith(("http://", "https://")):
            return from_url(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return weights_in(path)
    if path.exists():
        return path
    if (
        isinstance(source, str)
        and _REPOSITORY.fullmatch(source)
        and not source.lower().endswith(SUFFIXES)
    ):
        return from_hub(source)
    raise InputError(f"There is no model or file {str(source)!r}.{_nearest(str(source))}")


def _nearest(name: str) -> str:
    names = [*EMBEDDED, *PUBLISHED]
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Give a file, a URL, a Hugging Face repository, or one of {', '.join(names)}."


def _embedded(name: str) -> Path:
    path = EMBEDDED[name]
    if not path.exists():
        raise InputError(f"This installation lacks {name}'s weights ({path}); install sedseg anew.")
    return path


def _fetched(model: PublishedModel) -> Path:
    """The converted weights of a published model, from the cache, or fetched first."""
    path = cache_folder("weights") / f"{model.name}.safetensors"
    if path.exists():
        return path
    by_hand = (
        f"download {model.address} with a browser and type "
        f"`sedseg convert FILE {path} --model {model.name}`"
    )
    with locked(path):
        if not path.exists():
            original = path.with_suffix(".pth")
            from_drive(model.drive_id, original, by_hand)
            try:
                convert(original, path, model.name)
            except InputError as error:
                original.unlink()
                raise InputError(
                    f"Google Drive sent no {model.name}: {error} Or {by_hand}."
                ) from error
            original.unlink()
    return path


def _from_official(
    theirs: Mapping[str, Tensor], path: Path, config: SEDConfig | None
) -> tuple[dict[str, Tensor], ModelInfo]:
    """Rename the authors' tensors, every one, and tell which model they are."""
    if config is None:
        blanks = {model.name: _blank(model.config) for model in PUBLISHED.values()}
        name = max(blanks, key=lambda name: _matches(theirs, blanks[name]))
        config, ours = PUBLISHED[name].config, blanks[name]
        taken_for = f"{name}, as no configuration is named (--model)"
        if _matches(theirs, ours) == 0:
            raise InputError(
                f"{path} holds the weights of something else than SED (such as "
                f"{next(iter(theirs))!r}), or of an unknown configuration; name that with --model."
            )
    else:
        name, ours, taken_for = path.stem, _blank(config), "a model of the configuration given"
    try:
        renamed = from_official(theirs, ours)
    except InputError as error:
        raise InputError(f"{path} was taken for {taken_for}: {error}") from error
    return renamed, ModelInfo(name=name, config=config, preprocessing=Preprocessing())


def _blank(config: SEDConfig) -> dict[str, Tensor]:
    """The names and shapes of a model's tensors: no memory, little time."""
    with torch.device("meta"):
        return SED(config).state_dict()


def _matches(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> int:
    """Of how many tensors name and shape agree."""
    shapes = {official_name(name): tensor.shape for name, tensor in ours.items()}
    return sum(tensor.shape == shapes.get(name) for name, tensor in theirs.items())


def _narrow(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(dtype)
    return narrow if narrow.isfinite().all() else tensor


def _write(tensors: Mapping[str, Tensor], info: ModelInfo, path: Path) -> None:
    plain = {name: _own(tensor.detach().cpu()) for name, tensor in tensors.items()}
    try:
        with replacing(path) as partial:
            save_file(plain, partial, metadata={"format": "pt", METADATA_KEY: info.to_json()})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be written: {error}.") from error


def _own(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: safetensors writes no views."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
