"""Photos as they come are read right, or refused in one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sedseg.errors import InputError
from sedseg.photos import MAX_PIXELS, find_photos, read_photo

RED_BLUE = np.zeros((4, 6, 3), np.uint8)
RED_BLUE[:, :3], RED_BLUE[:, 3:] = (200, 0, 0), (0, 0, 90)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(source: object) -> np.ndarray:
    photo = read_photo(source)  # type: ignore[arg-type]
    assert photo.mode == "RGB"
    return np.asarray(photo)


def a_pixel(source: object) -> list[int]:
    return pixels(source)[0, 0].tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    turned = {
        1: RED_BLUE,
        2: RED_BLUE[:, ::-1],
        3: RED_BLUE[::-1, ::-1],
        4: RED_BLUE[::-1],
        5: RED_BLUE.transpose(1, 0, 2),
        6: np.rot90(RED_BLUE),
        7: RED_BLUE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RED_BLUE, -1),
    }[orientation]  # as the camera's sensor holds what stands upright as RED_BLUE
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turned))
    np.testing.assert_array_equal(pixels(encoded(stored, exif=exif)), RED_BLUE)


def test_modes_become_rgb_over_white() -> None:
    rgb = Image.fromarray(RED_BLUE)
    assert a_pixel(encoded(Image.new("L", (3, 2), 77))) == [77, 77, 77]
    assert a_pixel(encoded(Image.new("1", (3, 2), 1))) == [255, 255, 255]
    assert a_pixel(encoded(Image.new("RGBA", (3, 2), (200, 0, 0, 0)))) == [255, 255, 255]
    assert a_pixel(encoded(Image.new("RGBA", (3, 2), (0, 0, 0, 128)))) == [127, 127, 127]
    assert a_pixel(encoded(Image.new("LA", (3, 2), (0, 0)))) == [255, 255, 255]
    assert a_pixel(encoded(rgb.quantize(4))) == [200, 0, 0]
    transparent_index = rgb.quantize(4)
    index = transparent_index.getpixel((0, 0))
    assert a_pixel(encoded(transparent_index, transparency=index)) == [255, 255, 255]
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(np.subtract(a_pixel(cmyk), (255, 0, 0))).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 257, 32_768, 65_535]], np.uint16)
    expected = [[0, 1, 128, 255]]
    for form in ("PNG", "TIFF"):
        assert pixels(encoded(Image.fromarray(deep), form))[..., 0].tolist() == expected
    assert pixels(Image.fromarray(deep.astype(np.int32)))[..., 0].tolist() == expected
    assert pixels(deep)[..., 0].tolist() == expected
    with pytest.raises(InputError, match="int32"):
        read_photo(Image.fromarray(np.array([[0, 100_000]], np.int32)))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue", "lime")]
    for form in ("GIF", "WEBP", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert a_pixel(data) == [255, 0, 0], form


def test_arrays_and_tensors() -> None:
    chw = torch.from_numpy(RED_BLUE).permute(2, 0, 1)
    for same in (
        RED_BLUE,
        RED_BLUE / 255,
        (RED_BLUE / 255).astype(np.float16),
        np.dstack([RED_BLUE, np.full((4, 6), 255, np.uint8)]),
        np.asfortranarray(RED_BLUE),
        chw,
        chw / 255,
        (chw / 255).double().requires_grad_(),
    ):
        np.testing.assert_array_equal(pixels(same), RED_BLUE)
    grey = RED_BLUE[..., 0]
    for same_grey in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(pixels(same_grey)[..., 2], grey)
    assert pixels(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("ambiguous", "said"),
    [
        (RED_BLUE.astype(np.int64), "int64"),
        (RED_BLUE > 0, "bool"),
        (RED_BLUE.astype(np.float32), "from 0 to 200"),
        (np.full((2, 2, 3), np.nan), "nan"),
        (RED_BLUE / -255, "-0.78"),
        (RED_BLUE.transpose(2, 0, 1), r"\(3, 4, 6\)"),
        (RED_BLUE[None], r"\(1, 4, 6, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (torch.zeros(4, 6, 3, dtype=torch.uint8)[:2], r"\(2, 6, 3\)"),
        (torch.zeros(1, 3, 4, 6), "list of photos"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
def test_what_is_ambiguous_is_refused(ambiguous: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_photo(ambiguous)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_named(tmp_path: Path, form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    path = tmp_path / f"cut.{form.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"cut.{form.lower()} is damaged or cut short: .+\\.$"):
        read_photo(path)


def test_what_is_no_photo_is_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("a shopping list")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (text, empty):
        with pytest.raises(InputError, match=f"{path.name} is not an image"):
            read_photo(path)
    with pytest.raises(InputError, match="bytes is not an image"):
        read_photo(b"a shopping list")
    with pytest.raises(InputError, match=r"missing\.png: there is no such file"):
        read_photo(str(tmp_path / "missing.png"))
    with pytest.raises(InputError, match="is a folder"):
        read_photo(tmp_path)


def claimed_size(width: int, height: int) -> bytes:
    """A tiny PNG of one bit a pixel, all black, that says to be this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * min(height, 9_000))  # enough for those read
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_108_megapixels_are_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert read_photo(claimed_size(12_000, 9_000)).size == (12_000, 9_000)
    assert not recwarn.list


@pytest.mark.parametrize("side", [13_500, 40_000])
def test_a_decompression_bomb_is_refused(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert side**2 > MAX_PIXELS
    with pytest.raises(InputError, match=r"more than 178,956,970 pixels"):
        read_photo(claimed_size(side, side))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # whatever the program around has set
    with pytest.raises(InputError, match=r"more than 178,956,970 pixels"):
        read_photo(claimed_size(side, side))


def test_finding_photos(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    names = ("b.JPG", "a.png", ".hidden.png", "notes.txt", "old.overlay.png", "old.labels.png")
    for name in names:
        (tmp_path / name).touch()
    (inner / "c.webp").touch()
    (tmp_path / "[1].png").touch()

    def found(*given: Path | str) -> list[str]:
        return [str(p.relative_to(tmp_path)) for p in find_photos(given)]

    assert found(tmp_path) == ["[1].png", "a.png", "b.JPG"]
    assert found(tmp_path / "**") == ["[1].png", "a.png", "b.JPG", "inner/c.webp"]
    assert found(tmp_path / "*.png", tmp_path, tmp_path / "a.png") == found(tmp_path)
    assert found(tmp_path / "[1].png") == ["[1].png"]  # a name, though it looks like a pattern
    assert found(tmp_path / "notes.txt") == ["notes.txt"]  # named outright: reading will tell
    for nothing in (tmp_path / "*.gif", tmp_path / "gone.png"):
        with pytest.raises(InputError, match=nothing.name.replace("*", r"\*")):
            find_photos([nothing])
    with pytest.raises(InputError, match="No photo was given"):
        find_photos([])
