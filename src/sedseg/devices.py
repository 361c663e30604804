"""Which device to compute on, and in which type of number."""

from __future__ import annotations

import torch

from sedseg.errors import InputError

# Not float16: its range is too small for sums over hundreds of classes.
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device meant; for None a GPU if there is one, else the CPU.

    Raises:
        InputError: there is no such device here.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(1, device=wanted)
    except Exception as error:  # torch raises AssertionError, RuntimeError and others here
        present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        present += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(
            f"The device {str(device)!r} is not available here; choose from {', '.join(present)}."
        ) from error
    return wanted


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The type meant; for None bfloat16 where ``device`` is fast with it, else float32.

    Raises:
        InputError: it is neither float32 nor bfloat16.
    """
    if dtype is None:
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    if isinstance(dtype, str):
        dtype = _DTYPES.get(dtype.removeprefix("torch."), dtype)
    if dtype not in _DTYPES.values():
        raise InputError(f"The type {dtype!r} is none of {', '.join(_DTYPES)}.")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, and not by way of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, check, bool)() for check in checks)
    return False
