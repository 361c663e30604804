"""How a photo is shown to the model at test: whole or through a sliding window, at one scale or
several, with its mirror image or without; and the scores of all these views put together.

Dimensions: T' classes asked of the model, H W pixels of a view, h w pixels of its scores (a
quarter of H and W).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sedseg.asked_words import AskedWords
from sedseg.errors import InputError
from sedseg.model.encoder import STRIDE
from sedseg.model.sed import SED
from sedseg.preprocessing import Preprocessing
from sedseg.score_maps import ScoreMaps

_SCORES_STRIDE = 4


@dataclass(frozen=True)
class Views:
    """How photos are shown to the model.

    Attributes:
        preprocessing: their size.
        scales: factors to that size; the scores at all of them are averaged.
        flip: average with the mirror image's scores.
        window: the side of a sliding window in pixels of the resized photo, a multiple of 32; None
            shows the photo whole. Where windows overlap, their scores are averaged.
        overlap: the share of a window that the next one covers again, 0 to below 1.

    Raises:
        InputError: one of them is out of its range.
    """

    preprocessing: Preprocessing
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    overlap: float = 1 / 3

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise InputError(f"The scales are {self.scales}; give numbers from 0.1 to 10.")
        if self.window is not None and (self.window < STRIDE or self.window % STRIDE):
            raise InputError(f"The window is {self.window} pixels; give a multiple of {STRIDE}.")
        if not 0 <= self.overlap < 1:
            raise InputError(f"The overlap is {self.overlap:g}; give a number from 0 to below 1.")

    @property
    def protocol(self) -> str:
        """What to call it: "paper" is exactly the paper's test protocol (section 4)."""
        own = self.preprocessing
        paper = Preprocessing(mean=own.mean, std=own.std)
        name = "native" if own.square is None else f"square {own.square}"
        extras = [name if own != paper else "paper"]
        extras += ["scales"] if self.scales != (1.0,) else []
        extras += ["flip"] if self.flip else []
        extras += ["window"] if self.window is not None else []
        return " + ".join(extras)

    def of(self, photo: Image.Image) -> Iterator[Tensor]:
        """The photo at each scale, (3, H, W) float32 normalised."""
        for scale in self.scales:
            yield _scaled(self.preprocessing, scale)(photo)

    def windows(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """The parts that cover a photo resized to that size."""
        if self.window is None:
            return [(slice(0, height), slice(0, width))]
        rows, columns = (self._along(side) for side in (height, width))
        return [(row, column) for row in rows for column in columns]

    def _along(self, side: int) -> list[slice]:
        window = min(self.window or side, side)
        step = max(int(window * (1 - self.overlap)) // STRIDE * STRIDE, STRIDE)
        starts = [*range(0, side - window, step), side - window]
        return [slice(start, start + window) for start in starts]


def _scaled(preprocessing: Preprocessing, scale: float) -> Preprocessing:
    square = preprocessing.square
    return replace(
        preprocessing,
        shortest_side=round(preprocessing.shortest_side * scale),
        longest_side=round(preprocessing.longest_side * scale),
        square=None if square is None else max(round(square * scale / STRIDE), 1) * STRIDE,
    )


class PhotoScores(NamedTuple):
    """What a photo scores at one setting of early rejection.

    maps: the scores. kept: (3,) number of classes alive after each rejection (in any view).
    seconds: what it took from the decoded photo on.
    """

    maps: ScoreMaps
    kept: tuple[int, ...]
    seconds: float


@torch.inference_mode()
def score(
    network: SED,
    photo: Image.Image,
    words: AskedWords,
    views: Views,
    top_ks: Sequence[int | None],
) -> Iterator[PhotoScores]:
    """Score a photo at several settings of early rejection in turn, encoding it once.

    Args:
        network: in eval mode, where it is; its own type of number is used.
        photo: RGB.
        words: on the network's device.
        views: how the network sees the photo.
        top_ks: the settings; None rejects nothing.
    """
    if views.flip or views.window is not None or len(views.scales) > 1:
        yield from _together(network, photo, words, views, top_ks)
        return
    clock = _Clock(network)
    (pixels,) = views.of(photo)
    encoded = network.encode_images(clock.placed(pixels))
    encoding = clock.lap()
    for top_k in top_ks:
        clock.lap()
        out = network.decode(encoded, words.text, top_k)
        kept = out.kept[0].cpu()
        # Rejected classes are left out before anything is done to all.
        scores = out.logits[0][kept[-1].to(out.logits.device)].float().sigmoid()
        del out
        maps = words.score_maps(scores, kept[-1], photo.height, photo.width)
        yield PhotoScores(maps, tuple(kept.sum(1).tolist()), encoding + clock.lap())


def _together(
    network: SED,
    photo: Image.Image,
    words: AskedWords,
    views: Views,
    top_ks: Sequence[int | None],
) -> list[PhotoScores]:
    """Several views; a class that one of them rejects scores 0 in it."""
    clock = _Clock(network)
    sums = [_Sum() for _ in top_ks]
    for pixels in views.of(photo):
        image = clock.placed(pixels)
        for view, mirrored in ((image, False), (image.flip(-1), True))[: 1 + views.flip]:
            maps = [_Stitched(view) for _ in top_ks]
            for rows, columns in views.windows(*view.shape[-2:]):
                encoded = network.encode_images(view[..., rows, columns])
                encoding = clock.lap()
                for top_k, stitched, total in zip(top_ks, maps, sums, strict=True):
                    out = network.decode(encoded, words.text, top_k)
                    stitched.add(out.logits[0].float().sigmoid(), rows, columns)
                    total.keep(out.kept[0].cpu())
                    total.seconds += encoding + clock.lap()
            for stitched, total in zip(maps, sums, strict=True):
                total.add(stitched.mean(), mirrored)
                total.seconds += clock.lap()
    return [total.result(words, photo) for total in sums]


class _Clock:
    """Where a network computes, and the time that passes there."""

    def __init__(self, network: SED) -> None:
        self._parameter = next(network.decoder.parameters())
        self._last = time.perf_counter()

    def placed(self, pixels: Tensor) -> Tensor:
        """(3, H, W) -> (1, 3, H, W) on the network's device, in its type of number."""
        return pixels[None].to(self._parameter, memory_format=torch.channels_last)

    def lap(self) -> float:
        """Seconds since the last lap."""
        if self._parameter.device.type == "cuda":
            torch.cuda.synchronize(self._parameter.device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before


class _Stitched:
    """The scores of one view's windows, where they overlap their mean."""

    def __init__(self, view: Tensor) -> None:
        self._size = [-(-side // _SCORES_STRIDE) for side in view.shape[-2:]]
        self._sum: Tensor | None = None
        self._count = view.new_zeros(self._size, dtype=torch.float32)

    def add(self, scores: Tensor, rows: slice, columns: slice) -> None:
        """Add scores (T', h, w) of a window at these pixels."""
        if self._sum is None:
            self._sum = scores.new_zeros(len(scores), *self._size)
        height, width = scores.shape[-2:]
        top, left = rows.start // _SCORES_STRIDE, columns.start // _SCORES_STRIDE
        self._sum[:, top : top + height, left : left + width] += scores
        self._count[top : top + height, left : left + width] += 1

    def mean(self) -> Tensor:
        """(T', h, w) of the whole view."""
        assert self._sum is not None
        return self._sum / self._count


class _Sum:
    """The scores of a photo's views so far, at the size of the largest."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._views = 0
        self._sum: Tensor | None = None
        self._kept: Tensor | None = None

    def keep(self, kept: Tensor) -> None:
        """Add (3, T') bool."""
        self._kept = kept if self._kept is None else self._kept | kept

    def add(self, scores: Tensor, mirrored: bool) -> None:
        """Add (T', h, w)."""
        scores = scores.flip(-1) if mirrored else scores
        self._views += 1
        if self._sum is None:
            self._sum = scores
            return
        larger, smaller = sorted((self._sum, scores), key=lambda s: -s.shape[-1] * s.shape[-2])
        size = larger.shape[-2:]
        if smaller.shape[-2:] != size:
            smaller = F.interpolate(smaller[None], size, mode="bilinear", align_corners=False)[0]
        self._sum = larger + smaller

    def result(self, words: AskedWords, photo: Image.Image) -> PhotoScores:
        """Their mean."""
        assert self._sum is not None
        assert self._kept is not None
        kept = self._kept[-1]
        maps = words.score_maps(self._sum[kept] / self._views, kept, photo.height, photo.width)
        return PhotoScores(maps, tuple(self._kept.sum(1).tolist()), self.seconds)
