"""A segmentation as a picture: class colours, overlay, legend."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RING = 24
"""Colours that are easily told apart; a longer class list also gets closer ones."""

NEAR = 0.16
"""Colours closer than this, in OKLab, are mistaken for each other on a photo."""

# Picked so that the commonest words get different colours, and sky, trees and water fitting ones.
_SALT = (39_393).to_bytes(8, "big")

BACKGROUND_COLOUR, UNLABELLED_COLOUR = (70, 70, 70), (255, 255, 255)
_LEGEND_TEXT, _LEGEND_PAPER = (30, 30, 30), (255, 255, 255)
_LONGEST_NAME = 36  # letters; a longer name loses its middle (the JSON has it whole)


class LegendEntry(NamedTuple):
    """One line of a legend: a colour, a name, and the share of the photo, 0 to 1."""

    colour: tuple[int, int, int]
    name: str
    share: float


def class_colours(names: Sequence[str]) -> np.ndarray:
    """A colour for each class, all different.

    The name picks the colour, so that a class keeps it from photo to photo, and from list to list
    too unless a name before it has taken that colour or one near it: then it gets the free colour
    farthest from all taken.

    Returns:
        (T, 3) uint8 RGB.
    """
    palette = _distinct_colours(max(RING, len(names)))
    lab = _oklab(palette / 255)
    distance = np.full(len(palette), np.inf)  # of each colour to the nearest one taken
    colours = np.empty((len(names), 3), np.uint8)
    for i, name in enumerate(names):
        if name.casefold() == "background":
            colours[i] = BACKGROUND_COLOUR
            continue
        digest = hashlib.blake2b(name.casefold().encode(), digest_size=8, salt=_SALT).digest()
        slot = int.from_bytes(digest, "big") % RING
        if distance[slot] < NEAR:
            ring = distance[:RING]
            slot = int((ring if ring.max() > 0 else distance).argmax())
        colours[i] = palette[slot]
        distance = np.minimum(distance, np.sqrt(np.square(lab - lab[slot]).sum(1)))
    return colours


def draw_overlay(
    photo: Image.Image,
    mask: np.ndarray,
    colours: np.ndarray,
    legend: Sequence[LegendEntry] = (),
    opacity: float = 0.5,
) -> Image.Image:
    """Lay class colours over a photo, with thin contours, and put the legend beside or below it.

    Args:
        photo: RGB.
        mask: (H, W) class indices; where -1, the photo shows as it is.
        colours: (T, 3) uint8.
        legend: the lines to write; none, and the picture has the photo's size.
        opacity: of the colours, 0 (photo alone) to 1 (colours alone).

    Returns:
        An RGB image.
    """
    alphas = np.full(len(colours) + 1, round(opacity * 255), np.uint8)
    alphas[-1] = 0  # index -1 is the last: unlabelled
    alpha = alphas[mask]
    contour = _contours(mask, width=max(1, round(min(photo.size) / 400)))
    if opacity > 0:
        alpha[contour] = max(round(opacity * 255), 160)
    tones = np.concatenate([colours, np.zeros((1, 3), np.uint8)])[mask]
    tones[contour] = 255
    picture = Image.composite(Image.fromarray(tones), photo, Image.fromarray(alpha))
    return _with_legend(picture, legend) if legend else picture


def _contours(mask: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: within ``width`` pixels left of or above another class."""
    contour = np.zeros(mask.shape, bool)
    if width < mask.shape[1]:
        contour[:, :-width] |= mask[:, :-width] != mask[:, width:]
    if width < mask.shape[0]:
        contour[:-width] |= mask[:-width] != mask[width:]
    return contour


def _with_legend(picture: Image.Image, entries: Sequence[LegendEntry]) -> Image.Image:
    """Beside or below: whichever makes the smaller picture."""
    size = int(min(max(min(picture.size) / 26, 14), 160))
    font = ImageFont.load_default(size)
    lines = [(e.colour, _shortened(e.name), _percent(e.share)) for e in entries]
    name_width = max(font.getlength(name) for _, name, _ in lines)
    share_width = max(font.getlength(share) for _, _, share in lines)
    row, pad = round(size * 1.5), size
    column = round(size * 1.5 + name_width + size * 0.8 + share_width)

    def canvas(columns: int, beside: bool) -> tuple[int, int]:
        width = columns * (column + pad) + pad
        height = -(-len(lines) // columns) * row + 2 * pad
        if beside:
            return picture.width + width, max(picture.height, height)
        return max(picture.width, width), picture.height + height

    options = [(n, beside) for n in range(1, len(lines) + 1) for beside in (True, False)]
    columns, beside = min(options, key=lambda o: (np.prod(canvas(*o)), o))
    image = Image.new("RGB", canvas(columns, beside), _LEGEND_PAPER)
    image.paste(picture)
    draw = ImageDraw.Draw(image)
    left, top = (picture.width, 0) if beside else (0, picture.height)
    per_column = -(-len(lines) // columns)
    for i, (colour, name, share) in enumerate(lines):
        x = left + pad + (i // per_column) * (column + pad)
        y = top + pad + (i % per_column) * row
        swatch = (x, y + row // 2 - size // 2, x + size, y + row // 2 + size // 2)
        draw.rectangle(swatch, fill=colour, outline=_LEGEND_TEXT)
        middle = y + row // 2
        draw.text((x + round(size * 1.5), middle), name, _LEGEND_TEXT, font, anchor="lm")
        draw.text((x + column, middle), share, _LEGEND_TEXT, font, anchor="rm")
    return image


def _shortened(name: str) -> str:
    if len(name) <= _LONGEST_NAME:
        return name
    half = _LONGEST_NAME // 2
    return f"{name[:half].rstrip()} … {name[-half:].lstrip()}"


def _percent(share: float) -> str:
    percent = share * 100
    return "<0.1%" if 0 < percent < 0.1 else f"{percent:.1f}%"


@functools.cache
def _distinct_colours(count: int) -> np.ndarray:
    """(count, 3) uint8: each in turn the farthest from all before it, as the eye sees them.

    Distances are in OKLab (Björn Ottosson, 2020), where equal distances look equally different;
    very dark, very light and greyish colours are left out, as photos are full of them.
    """
    levels = np.linspace(0, 255, max(12, int(np.ceil(count ** (1 / 3) * 2))))
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(rgb / 255)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    suitable = (lab[:, 0] > 0.42) & (lab[:, 0] < 0.92) & (chroma > 0.09)
    rgb, lab = rgb[suitable], lab[suitable]
    chosen = [int(chroma[suitable].argmax())]
    distance = np.full(len(lab), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.square(lab - lab[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return np.asarray(np.rint(rgb[chosen]), np.uint8)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """(N, 3) sRGB, 0 to 1 -> (N, 3) OKLab."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.asarray(np.cbrt(linear @ np.transpose(to_lms)) @ np.transpose(to_lab))
