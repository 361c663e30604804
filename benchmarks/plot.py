r"""Draw docs/images/performance.png from what `sedseg benchmark --json` printed.

sedseg benchmark --json > benchmarks/results/DATE-MACHINE.json
python benchmarks/plot.py benchmarks/results/DATE-MACHINE.json docs/images/performance.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_PARTS = ("encoder", "cost_map", "stage_1", "stage_2", "stage_3", "upsampling")
_NAMES = ("encoder", "cost map", "stage 1", "stage 2", "stage 3", "masks")
_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#bbbbbb")


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    found = json.loads(args.results.read_text())
    rows = [row for row in found["rows"] if "skipped" not in row]
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")
    paths = {"plain": rows, "fast": [row for row in rows if row["path"] == "fast"]}
    both, fast = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(both, paths["plain"], "plain and fast")
    _bars(fast, paths["fast"], "fast alone")
    figure.legend(_NAMES, loc="outside lower center", ncols=len(_NAMES), frameon=False, fontsize=8)
    machine = found["machine"]
    figure.suptitle(
        f"{found['model']}, {found['size']}x{found['size']}, {machine['threads']} threads of "
        f"{machine['name']}, {machine['date']}",
        fontsize=9,
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=150)


def _bars(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    labels = [_label(row) for row in rows]
    left = [0.0] * len(rows)
    for part, colour in zip(_PARTS, _COLOURS, strict=True):
        widths = [row[f"{part}_s"] for row in rows]
        axes.barh(labels, widths, left=left, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, end in enumerate(left):
        axes.text(end, y, f" {end:.2f} s", va="center", fontsize=8)
    axes.set_xlim(0, max(left) * 1.18)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("seconds a photo", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: dict[str, Any]) -> str:
    k = "dense" if row["top_k"] is None else f"k={row['top_k']}, {row['kept']} kept"
    return f"{row['path']}, {row['classes']} classes, {k}"


if __name__ == "__main__":
    main()
