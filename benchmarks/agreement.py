r"""How often the fast path gives a pixel the class that the plain one in float32 gives it.

    python benchmarks/agreement.py --data DATA --most 10 --output benchmarks/results/agreement.json

DATA is a folder of data sets in the folder format; their validation photos are segmented with their
own classes, dense and with k = 8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

import sedseg
from sedseg.data.folder import FolderDataset, open_all
from sedseg.evaluation.metrics import ConfusionMatrix
from sedseg.evaluation.task import EvaluationTask
from sedseg.evaluation.validation import spread
from sedseg.evaluation.views import Views, score
from sedseg.photos import read_photo


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="sed-tiny")
    parser.add_argument("--most", type=int, default=10, help="photos of a set at most")
    parser.add_argument("--dtype", default=None, help="of the fast path")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    fast = sedseg.load(args.model, dtype=args.dtype)
    plain = sedseg.load(args.model, dtype="float32")
    plain.network = plain.model.eval()  # nothing fused
    sets = [s for s in open_all(args.data, "val") if s.name != "coco_stuff_sample"]
    found: dict[str, Any] = {"type of number": str(fast.dtype).removeprefix("torch."), "k": {}}
    for k in (None, 8):
        rows = {s.name: compare(plain, fast, s, args.most, k) for s in track(sets)}
        means = {n: statistics.mean(r[n] for r in rows.values()) for n in rows[sets[0].name]}
        found["k"][str(k)] = {"mean over sets": means, "sets": rows}
        said = ", ".join(f"{n} {100 * value:.2f}" for n, value in means.items())
        sys.stdout.write(f"k={k}: {said}\n")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(found, indent=1) + "\n")


def compare(
    plain: sedseg.Segmenter,
    fast: sedseg.Segmenter,
    dataset: FolderDataset,
    most: int,
    k: int | None,
) -> dict[str, float]:
    """Shares of pixels, 0 to 1, and the mIoU of both paths."""
    task = EvaluationTask.of(dataset)
    views = Views(fast.info.preprocessing)
    matrices = [ConfusionMatrix.empty(len(task.classes)) for _ in range(2)]
    same = []
    for index in spread(len(dataset), most):
        photo, labels = dataset[index]
        masks = []
        for segmenter, matrix in zip((plain, fast), matrices, strict=True):
            words = segmenter.words(task.prompts)
            picture = read_photo(photo)
            (scored,) = score(segmenter.network, picture, words, views, [k])
            masks.append(scored.maps.best()[0])
            matrix.add(labels, torch.from_numpy(masks[-1]))
        same.append(float(np.mean(masks[0] == masks[1])))
    miou_plain, miou_fast = (matrix.miou_ground_truth for matrix in matrices)
    return {"agreement": statistics.mean(same), "mIoU plain": miou_plain, "mIoU fast": miou_fast}


if __name__ == "__main__":
    main()
