"""Writes miniature data sets in the folder format."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_set(
    root: Path, classes: str = "red\ngreen\nbackground", photos: int = 12, split: str = "train"
) -> Path:
    """Coloured rectangles: label 0 is red, 1 green, 2 the rest; a strip is unlabelled."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text(classes)
    for i in range(photos):
        rng = np.random.default_rng(i)
        height, width = 64 + 8 * (i % 3), 96
        image = rng.integers(90, 110, (height, width, 3)).astype(np.uint8)
        label = np.full((height, width), 2, np.uint8)
        image[10:50, 5:40], label[10:50, 5:40] = (220, 20, 20), 0
        image[20:60, 50:80], label[20:60, 50:80] = (20, 200, 30), 1
        label[:3] = 255
        for kind, array in (("images", image), ("labels", label)):
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{i:03d}.png")
    return root
