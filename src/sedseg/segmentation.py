"""What is found on a photo: the class of every pixel, its score, areas, files.

Dimensions: T classes, H W pixels of the photo.
"""

from __future__ import annotations

import contextlib
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sedseg.drawing import UNLABELLED_COLOUR, LegendEntry, class_colours, draw_overlay
from sedseg.errors import InputError
from sedseg.photos import LABELS_SUFFIX, OVERLAY_SUFFIX
from sedseg.score_maps import ScoreMaps
from sedseg.storage import replacing

RECORD_SUFFIX = ".json"


class Area(NamedTuple):
    """How much of a photo a class covers: pixels, and their share of the photo, 0 to 1."""

    pixels: int
    share: float


class SavedFiles(NamedTuple):
    """Where :meth:`Segmentation.save` wrote."""

    overlay: Path
    labels: Path
    record: Path

    @classmethod
    def of(cls, folder: Path, stem: str) -> SavedFiles:
        """The files of a photo saved as ``stem``; they need not exist."""
        suffixes = (OVERLAY_SUFFIX, LABELS_SUFFIX, RECORD_SUFFIX)
        return cls(*(folder / f"{stem}{suffix}" for suffix in suffixes))


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """A photo segmented.

    Attributes:
        classes: the T class names.
        mask: (H, W) class indices, int16 (int32 from 32,767 classes on); -1 where the best score
            is under the threshold.
        confidence: (H, W) float16, the best class's score at each pixel, 0 to 1.
        photo: the photo, RGB and upright, (H, W) as the mask.
        rejected: the names of the classes that each of the three early rejections dropped.
        maps: the scores, at the model's resolution; see :attr:`scores`.
        source: the photo's path, if it was given as one.
        synonyms: (T,) the words of each class; none: its name alone.
        settings: the model, top_k, threshold and the like, for the record.
    """

    classes: tuple[str, ...]
    mask: np.ndarray
    confidence: np.ndarray
    photo: Image.Image
    maps: ScoreMaps
    rejected: tuple[tuple[str, ...], ...] = ((), (), ())
    source: str | None = None
    synonyms: tuple[tuple[str, ...], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        found = ", ".join(f"{n} {a.share:.1%}" for n, a in self.areas.items() if a.pixels)
        return f"<Segmentation of {width} x {height} pixels: {found or 'no class'}>"

    @property
    def scores(self) -> np.ndarray:
        """(T, H, W) float32, 0 to 1: the score of every class; 0 where rejected.

        Computed anew each time: of a large photo with many classes it fills the memory (four
        bytes a class and pixel). :meth:`score_map` gives one class.
        """
        return self.maps.full()

    def score_map(self, name: str) -> np.ndarray:
        """(H, W) float32, 0 to 1: the score of one class.

        Raises:
            InputError: no class has this name.
        """
        if name not in self.classes:
            raise InputError(f"No class is named {name!r}; there are {', '.join(self.classes)}.")
        return self.maps.of(self.classes.index(name))

    @functools.cached_property
    def areas(self) -> dict[str, Area]:
        """The area of every class by name, the largest first; absent classes have 0 pixels."""
        areas: dict[str, Area] = {}
        for name, pixels in zip(self.classes, self._pixels[:-1].tolist(), strict=True):
            if name in areas:  # some official lists have a name twice
                pixels += areas[name].pixels
            areas[name] = Area(pixels, pixels / self.mask.size)
        return dict(sorted(areas.items(), key=lambda item: -item[1].pixels))

    @property
    def unlabelled(self) -> Area:
        """The area where no class reached the threshold."""
        pixels = int(self._pixels[-1])
        return Area(pixels, pixels / self.mask.size)

    @functools.cached_property
    def _pixels(self) -> np.ndarray:
        """(T + 1,) pixels of each class, and last those without one."""
        counts = np.zeros(len(self.classes) + 1, np.int64)
        for rows in np.array_split(self.mask, -(-self.mask.size // 2**22)):
            counts += np.bincount(rows.ravel() % len(counts), minlength=len(counts))
        return counts

    @functools.cached_property
    def colours(self) -> np.ndarray:
        """(T, 3) uint8 RGB: the colour of each class, the same on every photo."""
        return class_colours(self.classes)

    def overlay(self, opacity: float = 0.5, legend: bool = True) -> Image.Image:
        """The photo under the colours of its classes.

        Args:
            opacity: of the colours, 0 to 1.
            legend: put a legend beside or below the photo: the classes found, by area. Without
                it the picture has the photo's size.

        Raises:
            InputError: the opacity is not between 0 and 1.
        """
        if not 0 <= opacity <= 1:
            raise InputError(f"The opacity is {opacity:g}; give a number from 0 to 1.")
        return draw_overlay(
            self.photo, self.mask, self.colours, self._legend() if legend else (), opacity
        )

    def labels(self) -> Image.Image:
        """The mask as an image: class indices, and the largest value where there is no class.

        Up to 255 classes 8 bit with the class colours as palette (no class: 255), else 16 bit
        (no class: 65,535).

        Raises:
            InputError: there are more than 65,535 classes.
        """
        if len(self.classes) > 65_535:
            raise InputError(f"A label image holds 65,535 classes, not {len(self.classes)}.")
        if len(self.classes) > 255:
            return Image.fromarray(self.mask.astype(np.uint16))  # -1 -> 65,535
        image = Image.fromarray(self.mask.astype(np.uint8))  # -1 -> 255
        palette = np.full((256, 3), UNLABELLED_COLOUR, np.uint8)
        palette[: len(self.classes)] = self.colours
        image.putpalette(palette.tobytes())
        return image

    def record(self) -> dict[str, Any]:
        """All but the pixels, as plain values for JSON."""
        height, width = self.mask.shape
        return {
            "photo": self.source,
            "width": width,
            "height": height,
            **self.settings,
            "classes": [
                {
                    "index": i,
                    "name": name,
                    "synonyms": list(self.synonyms[i]) if self.synonyms else [name],
                    "colour": "#{:02x}{:02x}{:02x}".format(*self.colours[i].tolist()),
                    "pixels": int(self._pixels[i]),
                    "share": int(self._pixels[i]) / self.mask.size,
                }
                for i, name in enumerate(self.classes)
            ],
            "unlabelled": {
                "index": 255 if len(self.classes) <= 255 else 65_535,
                **self.unlabelled._asdict(),
            },
            "rejected": [list(names) for names in self.rejected],
        }

    def save(self, folder: str | Path, stem: str | None = None, opacity: float = 0.5) -> SavedFiles:
        """Write ``STEM.overlay.png``, ``STEM.labels.png`` (:meth:`labels`) and ``STEM.json``.

        The folder is made if need be. Each file appears whole, the JSON last and only when the
        pictures are there.

        Args:
            folder: where to.
            stem: how the files are called; default: as the photo's file, or "photo".
            opacity: of the overlay's colours, 0 to 1.

        Raises:
            InputError: the folder cannot be written to.
        """
        if stem is None:
            stem = Path(self.source).stem if self.source else "photo"
        if not stem or Path(stem).name != stem:
            raise InputError(f"The stem {stem!r} is no file name; give one without folders.")
        files = SavedFiles.of(Path(folder).expanduser(), stem)
        overlay, labels = self.overlay(opacity), self.labels()
        try:
            # Left in reverse order, and only when all are written: the record is renamed last.
            with contextlib.ExitStack() as stack:
                record, *pictures = [stack.enter_context(replacing(f)) for f in reversed(files)]
                for image, path in zip((labels, overlay), pictures, strict=True):
                    # Barely larger than at the default level, and several times faster.
                    image.save(path, format="PNG", compress_level=3)
                found = {**self.record(), "opacity": opacity}
                text = json.dumps(found, ensure_ascii=False, indent=1)
                record.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written to: {error.strerror or error}."
            ) from error
        return files

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """The classes found as annotations in COCO's form, ready for ``json.dumps``.

        Returns:
            For each class with at least one pixel: ``image_id``, ``category_id`` (the class's
            index), ``category_name``, ``segmentation`` (compressed run lengths), ``area``,
            ``bbox`` (x, y, width, height) and ``iscrowd`` 0.
        """
        from pycocotools import mask as coco

        height, width = self.mask.shape
        flat = self.mask.ravel(order="F")  # COCO counts down the columns
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        ends = np.concatenate([starts[1:], [flat.size]])
        annotations: list[dict[str, Any]] = []
        for index in np.flatnonzero(self._pixels[:-1]).tolist():
            own = flat[starts] == index
            # The pixels before each run, the run, and so on, and those after the last.
            edges = np.concatenate([[0], np.stack([starts[own], ends[own]], 1).ravel()])
            counts = np.diff(edges, append=flat.size).tolist()
            rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": index,
                    "category_name": self.classes[index],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                    "area": int(self._pixels[index]),
                    "bbox": coco.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
        return annotations

    def _legend(self) -> list[LegendEntry]:
        share = self._pixels / self.mask.size
        entries = [
            LegendEntry(tuple(self.colours[i].tolist()), self.classes[i], float(share[i]))
            for i in np.argsort(-self._pixels[:-1], kind="stable")
            if self._pixels[i]
        ]
        if self._pixels[-1]:
            entries.append(LegendEntry(UNLABELLED_COLOUR, "(no class)", float(share[-1])))
        return entries
