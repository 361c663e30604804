"""Photos as they come: files, bytes, Pillow images, arrays, tensors -> upright RGB."""

from __future__ import annotations

import glob
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sedseg.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

PhotoSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor"
MAX_PIXELS = 178_956_970
"""The largest photo file that is opened (a square of 13,377 pixels): where Pillow, too, refuses.

A small file can claim any size, so without a limit one file could take all the memory.
"""

OVERLAY_SUFFIX, LABELS_SUFFIX = ".overlay.png", ".labels.png"
"""Endings of the pictures sedseg writes; a folder's photos are those without."""

# Formats Pillow recognises but reads through another program, or not at all.
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_WHOLE_RANGE = {np.dtype(np.uint8): 1.0, np.dtype(np.uint16): 257.0}


def read_photo(source: PhotoSource) -> Image.Image:
    """Read a photo of any common kind.

    Files, bytes and Pillow images are turned upright as their EXIF orientation says, transparency
    is laid over white, 16 bits are scaled to 8 (65,535 -> 255), and the first frame of an
    animation is taken.

    Args:
        source: a path; the bytes of a file; a Pillow image; a numpy array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4); or a torch tensor with the channels first, (3, H, W), or
            (H, W). Arrays and tensors are RGB, either uint8, uint16 or floats from 0 to 1.

    Returns:
        An RGB Pillow image, upright.

    Raises:
        InputError: there is no such file, it is no photo, it is cut short, it has more than
            :data:`MAX_PIXELS` pixels; or an array's shape, type or range leaves open what is
            meant.
    """
    if isinstance(source, Image.Image):
        with _explained("The Pillow image"):
            return _to_rgb(source, "The Pillow image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "The photo given as bytes")
    if isinstance(source, (str, os.PathLike)):
        return _decode(_existing_file(Path(source)), str(source))
    if isinstance(source, np.ndarray):
        return _from_array(source, "The array")
    if hasattr(source, "detach"):  # a tensor, without importing torch for those who have none
        return _from_tensor(source)
    raise InputError(
        f"A photo cannot be a {type(source).__name__}; give a path, the bytes of a file, a Pillow "
        "image, a numpy array or a torch tensor."
    )


def find_photos(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The photo files meant by files, folders and glob patterns.

    A file is taken whatever its name. A folder stands for the photos directly in it (not in its
    subfolders: ``folder/**`` asks for those): files with a suffix that Pillow reads, that are
    not hidden and not written by sedseg. A pattern stands for such files among its matches.

    Returns:
        Existing files, sorted, each once.

    Raises:
        InputError: one of ``paths`` stands for no photo.
    """
    found: dict[Path, Path] = {}
    for given in map(str, paths):
        path = Path(given).expanduser()
        if path.is_dir():
            matches = _photos_among(path.iterdir())
        elif path.exists():
            matches = [path]
        elif glob.has_magic(given):
            matches = _photos_among(map(Path, glob.iglob(str(path), recursive=True)))
        else:
            raise InputError(
                f"{given}: there is no such file or folder. (If it is a class, put quotes round "
                'the whole list: --classes "sky, tree".)'
            )
        if not matches:
            raise InputError(f"{given}: there is no photo here, by the suffixes of its files.")
        for match in matches:
            found.setdefault(match.resolve(), match)
    if not found:
        raise InputError("No photo was given; name at least one file, folder or pattern.")
    return sorted(found.values())


def _photos_among(paths: Iterable[Path]) -> list[Path]:
    formats = Image.registered_extensions()  # loads all plugins, so that Image.OPEN is complete
    suffixes = {s for s, f in formats.items() if f in Image.OPEN and f not in _UNREADABLE}
    return [
        p
        for p in paths
        if p.suffix.lower() in suffixes
        and not p.name.startswith(".")
        and not p.name.endswith((OVERLAY_SUFFIX, LABELS_SUFFIX))
        and p.is_file()
    ]


def _existing_file(path: Path) -> Path:
    path = path.expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a photo; give a file in it.")
    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    return path


def _decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    with _explained(name), warnings.catch_warnings():
        # Pillow warns from half its limit on; ours is stated, and an error.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file) as photo:
            if photo.width * photo.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _to_rgb(photo, name)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What Pillow raises, as a sentence that names the photo."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name} has more than {MAX_PIXELS:,} pixels, the most that sedseg reads; shrink it."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image that Pillow can read.") from error
    except PermissionError as error:
        raise InputError(f"{name} may not be read; check its permissions.") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise InputError(f"{name} is damaged or cut short: {reason}.") from error


def _to_rgb(photo: Image.Image, name: str) -> Image.Image:
    photo.load()
    upright = ImageOps.exif_transpose(photo)
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        return _from_array(_deep_grey(upright), name)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    return upright.convert("RGB")


def _deep_grey(photo: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits; Pillow may hold 16 bits in 32-bit integers."""
    pixels = np.asarray(photo)
    if photo.mode != "F" and pixels.min() >= 0 and pixels.max() <= 65_535:
        return pixels.astype(np.uint16)
    return pixels


def _from_tensor(tensor: Tensor) -> Image.Image:
    if tensor.ndim not in (2, 3):
        raise InputError(
            f"A photo's tensor is (3, H, W) or (H, W), not {tuple(tensor.shape)}; "
            "give a batch as a list of photos."
        )
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    if tensor.ndim == 3:
        if tensor.shape[0] not in (1, 3, 4):
            raise InputError(
                f"A photo's tensor has its channels first, (3, H, W), not {tuple(tensor.shape)}; "
                "permute it, or give a numpy array (H, W, 3)."
            )
        tensor = tensor.permute(1, 2, 0)
    return _from_array(tensor.numpy(), "The tensor")


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    """(H, W) or (H, W, 1 | 3 | 4) -> an RGB image."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise InputError(
            f"{name} has the shape {pixels.shape}; a photo's is (H, W, 3), (H, W, 4) or (H, W)."
        )
    if not pixels.size:
        raise InputError(f"{name} has no pixels: its shape is {pixels.shape}.")
    image = Image.fromarray(_to_uint8(pixels, name))
    return _to_rgb(image, name)


def _to_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype in _WHOLE_RANGE:
        scale = _WHOLE_RANGE[pixels.dtype]
        return np.ascontiguousarray(pixels if scale == 1 else np.rint(pixels / scale), np.uint8)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(
            f"{name} is of type {pixels.dtype}, whose range is not clear; "
            "give uint8 (0 to 255), uint16 (0 to 65,535) or floats from 0 to 1."
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # a little for rounding; NaN fails too
        raise InputError(
            f"{name} has floats from {low:g} to {high:g}; floats are expected from 0 to 1, "
            "so divide by the largest possible value."
        )
    return np.asarray(np.rint(np.clip(pixels, 0, 1) * 255), np.uint8)
