"""The pictures of a report: the trade-off of early rejection, IoU over many classes, photos.

Dimensions: S scored classes, T prompts, H W pixels.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from sedseg.drawing import draw_overlay
from sedseg.evaluation.results import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_SIDE = 480
"""Pixels of a photo in the report; a few dozen such pictures stay under some megabytes."""

WRONG_COLOUR, LEFT_OUT_COLOUR = (205, 0, 50), (255, 255, 255)

Drawing = Callable[["Axes"], None]
"""Draws one plot into the axes."""

_INK = "#0a0b0c"  # no other colour of a plot is this one; the SVG leaves it to the reader's theme
_THEME = "<style>svg{color:#222}@media (prefers-color-scheme:dark){svg{color:#ddd}}</style>"
_INCHES = (4.6, 3.4)
_MARKERS = "osD^vP*X"


class Panels(NamedTuple):
    """A photo and what was made of it, RGB pictures of one size."""

    photo: Image.Image
    truth: Image.Image
    prediction: Image.Image
    wrong: Image.Image


def rejection(top_k: int | None) -> str:
    """The setting of early rejection, in a word."""
    return "dense" if top_k is None else f"k = {top_k}"


def tradeoff(evaluation: Evaluation) -> Drawing:
    """MIoU against time per photo, a point for each setting (as SED's figure of the trade-off)."""

    def draw(axes: Axes) -> None:
        points = [
            (m.seconds * 1000, m.matrix.miou_ground_truth * 100, m.top_k, i)
            for i, m in enumerate(evaluation.measured)
            if not math.isnan(m.matrix.miou_ground_truth)
        ]
        points.sort(key=lambda point: point[:2])
        x, y = [point[0] for point in points], [point[1] for point in points]
        # Noise does not fill the plot: two points of mIoU at least are shown.
        reach = max(1.0, (max(y) - min(y)) * 0.7) if y else 1.0
        axes.plot(x, y, color=_INK, linewidth=1, alpha=0.3)
        lifts: list[int] = []
        for n, (time, miou, top_k, i) in enumerate(points):
            axes.plot(time, miou, **_style(i), markersize=7)
            near = n > 1 and time - x[n - 2] < max(x) / 6 and abs(miou - y[n - 2]) < reach / 6
            lifts.append(lifts[n - 2] + 12 if near else 8)
            above = n % 2 == 0  # neighbours' labels keep out of each other's way
            axes.annotate(
                rejection(top_k),
                (time, miou),
                xytext=(0, lifts[n] if above else -lifts[n]),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
            )
        if points:
            middle = (min(y) + max(y)) / 2
            axes.set_ylim(middle - reach, middle + reach)
            if max(x) > 8 * min(x):  # else the quick ones lie on one another
                axes.set_xscale("log")
                axes.set_xlim(min(x) / 1.5, max(x) * 1.5)
                axes.xaxis.set_major_formatter("{x:,.0f}")
                axes.xaxis.set_minor_formatter("")
            else:
                axes.set_xlim(0, max(x) * 1.2)
        axes.set_xlabel("time per photo (ms)")
        axes.set_ylabel("mIoU, ground truth (%)")

    return draw


def kept_prompts(evaluation: Evaluation) -> Drawing:
    """The prompts alive before and after each of the three rejections, a line for each setting."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        total = len(evaluation.prompts)
        for i, measured in enumerate(evaluation.measured):
            label = rejection(measured.top_k)
            axes.plot(range(4), [total, *measured.kept], **_style(i), label=label)
        fewest = min(min(m.kept) for m in evaluation.measured)
        if 0 < fewest < total / 10:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(0, total * 1.08)
        axes.set_xticks(range(4), ["all", "1st", "2nd", "3rd"])
        axes.set_xlabel("after the rejection")
        axes.set_ylabel("prompts kept")
        axes.legend(frameon=False)

    return draw


def sorted_iou(iou: Sequence[float]) -> Drawing:
    """IoU, 0 to 1, from the best class to the worst: the shape of a list too long for bars."""

    def draw(axes: Axes) -> None:
        ranked = sorted((value * 100 for value in iou if not math.isnan(value)), reverse=True)
        edges = np.arange(len(ranked) + 1)
        axes.stairs(ranked, edges, fill=True, color="#3b82c4")
        axes.set_xlim(0, len(ranked))
        axes.set_ylim(0, 100)
        axes.set_xlabel("classes, the best first")
        axes.set_ylabel("IoU (%)")

    return draw


def as_png(*drawings: Drawing) -> bytes:
    """The plots beside each other, as a PNG file."""
    return _saved(drawings, "png")


def as_svg(drawing: Drawing) -> str:
    """The plot as a data URI; its ink is dark on a light page and light on a dark one."""
    svg = _saved([drawing], "svg").decode()
    start = svg.index("<svg")
    after_tag = svg.index(">", start) + 1
    svg = svg[start:after_tag] + _THEME + svg[after_tag:].replace(_INK, "currentColor")
    return _data_uri(svg.encode(), "image/svg+xml")


def as_jpeg(image: Image.Image) -> str:
    """The picture as a data URI."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80, subsampling=0)  # subsampling would blur the contours
    return _data_uri(file.getvalue(), "image/jpeg")


def photo_panels(
    photo: Image.Image, truth: np.ndarray, predicted: np.ndarray, colours: np.ndarray
) -> Panels:
    """Draw a photo, its truth, its prediction, and where they differ.

    Args:
        photo: RGB.
        truth, predicted: (H, W) class indices, -1 for none.
        colours: (S, 3) uint8.

    Returns:
        Pictures of at most :data:`LONGEST_SIDE` pixels. In the last, wrong pixels have
        :data:`WRONG_COLOUR` and unlabelled ones :data:`LEFT_OUT_COLOUR` over the greyed photo.
    """
    scale = min(1.0, LONGEST_SIDE / max(photo.size))
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    photo = photo.resize(size, Image.Resampling.LANCZOS)
    truth, predicted = (_shrunk(mask, size) for mask in (truth, predicted))
    grey = np.asarray(photo.convert("L").convert("RGB"))
    wrong = (grey * 0.5 + 100).astype(np.uint8)
    wrong[(truth >= 0) & (predicted != truth)] = WRONG_COLOUR
    wrong[truth < 0] = LEFT_OUT_COLOUR
    return Panels(
        photo,
        draw_overlay(photo, truth, colours, opacity=0.65),
        draw_overlay(photo, predicted, colours, opacity=0.65),
        Image.fromarray(wrong),
    )


def _style(setting: int) -> dict[str, Any]:
    """The look of a setting of early rejection, the same in each plot."""
    return {"color": f"C{setting % 10}", "marker": _MARKERS[setting % len(_MARKERS)]}


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.int32))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))


def _saved(drawings: Sequence[Drawing], kind: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    look: dict[Any, Any] = {
        **dict.fromkeys(inks, _INK),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "sedseg",  # the same results, the same file
    }
    with matplotlib.rc_context(look):
        figure: Figure = Figure(
            figsize=(_INCHES[0] * len(drawings), _INCHES[1]), layout="constrained"
        )
        row = figure.subplots(1, len(drawings), squeeze=False)[0]
        for axes, draw in zip(row, drawings, strict=True):
            draw(axes)
            axes.grid(alpha=0.25)
            axes.set_axisbelow(True)
        file = io.BytesIO()
        undated = {"Date": None} if kind == "svg" else {}
        see_through = kind == "svg"
        figure.savefig(file, format=kind, dpi=150, transparent=see_through, metadata=undated)
    return file.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
