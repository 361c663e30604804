"""How long each part of a model takes, and how much memory: the plain path beside the fast one.

Dimensions: B images, T classes, P prompt templates, C embedding channels.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from sedseg.model.sed import SED
from sedseg.score_maps import ScoreMaps

STAGES = ("encoder", "cost_map", "stage_1", "stage_2", "stage_3", "upsampling")
"""What is timed apart: ``cost_map`` is all of the decoder before its first stage; the head is in
``stage_3``."""

_LONGEST = 60.0  # seconds of repeats, after which what there is must do

# Of a class at 768x768 and 128 channels; the fast path's are values, not bytes.
_PLAIN_BYTES = 32 * 2**20
_FAST_BYTES = 0.8 * 2**20


@dataclass(frozen=True)
class Setting:
    """What is timed.

    Attributes:
        path: "plain", the paper's steps as written, in float32; or "fast".
        classes: T.
        top_k: early rejection; None: dense.
        kept: so many classes are made to survive each rejection; None: those that do.
        size: the side of the square images, pixels; the masks are of that size too.
        batch: B.
    """

    path: str
    classes: int
    top_k: int | None
    kept: int | None
    size: int
    batch: int

    def needs(self, hidden_dim: int, dtype: torch.dtype) -> int:
        """Bytes that the decoder takes at its peak, roughly."""
        left = self.classes if self.kept is None else min(self.kept, self.classes)
        share = (self.size / 768) ** 2 * hidden_dim / 128
        each = _PLAIN_BYTES if self.path == "plain" else _FAST_BYTES * dtype.itemsize
        # The plain path embeds all classes, and makes the full-size scores of all.
        first = 0.3 * each * (self.classes - left) if self.path == "plain" else 0.0
        return int((left * each + first) * self.batch * share)


class _Watch:
    """Adds up the time of each part, by hooks on the model's modules."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.parts: dict[str, float] = {}
        self._last = 0.0

    def start(self) -> None:
        self.parts = dict.fromkeys(STAGES, 0.0)
        self._last = self._now()

    def lap(self, part: str) -> None:
        """What passed since the last lap was for this part."""
        now = self._now()
        self.parts[part] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def on(self, network: SED) -> Iterator[None]:
        """While it lasts, the network's parts are timed."""
        stages: Any = network.decoder.get_submodule("stages")
        hooks = [network.encoder.register_forward_hook(self._after("encoder"))]
        hooks.append(stages[0].register_forward_pre_hook(lambda *_: self.lap("cost_map")))
        for i, stage in enumerate(stages[:2], 1):
            hooks.append(stage.register_forward_hook(self._after(f"stage_{i}")))
        hooks.append(network.decoder.register_forward_hook(self._after("stage_3")))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _after(self, part: str) -> Any:
        return lambda *_: self.lap(part)


@torch.inference_mode()
def measure(network: SED, text: Tensor, setting: Setting, repeats: int) -> dict[str, Any]:
    """Time images to masks.

    Args:
        network: in eval mode, where it is to compute; its decoder's type of number is used.
        text: (T, P, C) on the network's device.
        setting: what to time.
        repeats: after one run that is not counted; fewer where they would take over a minute.

    Returns:
        Medians in seconds, ``total_s`` with the least and the most; peak bytes beyond what was
        in use before; the classes kept.
    """
    parameter = next(network.decoder.parameters())
    shape = (setting.batch, 3, setting.size, setting.size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layout = torch.contiguous_format if setting.path == "plain" else torch.channels_last
    images = images.to(parameter.device, parameter.dtype, memory_format=layout)
    text = text.to(parameter.dtype)
    watch = _Watch(parameter.device)
    runs: list[dict[str, float]] = []
    memory = _Memory(parameter.device)
    with watch.on(network), _forced(network.decoder, setting.kept):
        began = time.perf_counter()
        while len(runs) <= repeats and (len(runs) < 2 or time.perf_counter() - began < _LONGEST):
            watch.start()
            out = network(images, text, setting.top_k)
            for logits, kept in zip(out.logits, out.kept, strict=True):
                _mask(logits, kept[-1], setting)
            watch.lap("upsampling")
            runs.append(watch.parts)
            survivors = int(out.kept[0, -1].sum())
            del out
    counted = runs[1:]
    totals = [sum(parts.values()) for parts in counted]
    total = statistics.median(totals)
    return {
        "kept": survivors,
        "total_s": total,
        "least_s": min(totals),
        "most_s": max(totals),
        "repeats": len(counted),
        "images_per_s": setting.batch / total,
        "peak_bytes": memory.peak(),
        **{f"{part}_s": statistics.median(parts[part] for parts in counted) for part in STAGES},
    }


def _mask(logits: Tensor, kept: Tensor, setting: Setting) -> None:
    """(T, h, w) logits -> the class of every pixel."""
    side = setting.size
    if setting.path == "plain":
        scores = logits[None].sigmoid()
        F.interpolate(scores, (side, side), mode="bilinear", align_corners=False)[0].argmax(0)
        return
    rows = tuple(kept.nonzero()[:, 0].tolist())
    ScoreMaps(logits[kept].float().sigmoid(), rows, (len(kept), side, side)).best()


@contextmanager
def _forced(decoder: Any, count: int | None) -> Iterator[None]:
    """While it lasts, exactly so many classes survive; random weights reject hardly any."""
    reject = decoder.reject

    def survivors(logits: Tensor, kept: Tensor, top_k: int) -> Tensor:
        alive: Tensor = reject(logits, kept, top_k)  # its time counts
        return alive if count is None else kept & (kept.cumsum(1) <= count)

    decoder.reject = survivors
    try:
        yield
    finally:
        decoder.reject = reject


class _Memory:
    """The most memory in use since it was made, beyond what was in use then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        with suppress(OSError, AttributeError):  # another system than Linux with glibc
            # Freed memory that the C library keeps would hide what the run takes.
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak from now on
            self._before = psutil.Process().memory_info().rss

    def peak(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 - self._before


def random_text(model: SED, classes: int) -> Tensor:
    """(T, P, C) vectors of length 1."""
    shape = (classes, len(model.config.prompts), model.config.clip_config["embed_dim"])
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(1)), dim=-1)


def machine(device: torch.device) -> dict[str, Any]:
    """What it was measured on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            models = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
        name = models[0] if models else name
    return {
        "date": date.today().isoformat(),
        "device": str(device),
        "name": name,
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def free_memory() -> int:
    """Bytes that a process may still take."""
    return psutil.virtual_memory().available


def settings(
    classes: Sequence[int], top_ks: Sequence[int | None], kept: int | None, size: int, batch: int
) -> list[Setting]:
    """The plain path beside the fast one, for each number of classes and each k."""
    return [
        Setting(path, count, k, None if k is None else kept, size, batch)
        for count in classes
        for k in top_ks
        for path in ("plain", "fast")
    ]
