r"""Measure sed-tiny, or a model like it, on the validation photos of the sets it was trained on.

    python benchmarks/sed_tiny.py --data DATA --model sed-tiny --output docs/models
    python benchmarks/sed_tiny.py --data DATA --model runs/sed-tiny/sed-tiny.safetensors \
        --text-tower text_tower.json --embed src/sedseg/assets/sed-tiny.safetensors \
        --output docs/models

Writes NAME.json, with every figure, and from it the tables of the model card. With ``--embed``
what is measured is the float16 file that the package carries, and its figures are put into it.
About a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track

import sedseg
from sedseg.data.folder import FolderDataset, open_all
from sedseg.evaluation.evaluate import evaluate
from sedseg.evaluation.metrics import ConfusionMatrix
from sedseg.evaluation.task import EvaluationTask
from sedseg.evaluation.validation import spread
from sedseg.recipes.sed_tiny_words import HELD_OUT
from sedseg.segmenter import Segmenter
from sedseg.vocabulary import BACKGROUND
from sedseg.weights import load_model, save_model

_START = "import sedseg; s = sedseg.load({model!r}); s({photo!r}, 'sky, building, road'); "
# Not getrusage: its peak is inherited from the parent.
_PEAK = "print(*(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="sed-tiny")
    parser.add_argument("--most", type=int, default=1000, help="photos of a set at most")
    parser.add_argument("--embed", type=Path, help="write the model in float16 here")
    parser.add_argument("--text-tower", type=Path, help="figures of text_tower.py, to be joined in")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    args = parser.parse_args()
    if args.embed:
        embed(args.model, args.embed, {})
        args.model = str(args.embed)
    segmenter = sedseg.load(args.model)
    sets = [s for s in open_all(args.data, "val") if s.name != "coco_stuff_sample"]
    figures = {
        "type of number": str(segmenter.dtype).removeprefix("torch."),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "sets": {s.name: measure_set(segmenter, s, args.most) for s in track(sets)},
        "union": union_vocabulary(segmenter, sets, min(args.most, 20)),
        "speed": speed(segmenter, args.model, sets),
    }
    figures["means"] = means(figures["sets"])
    if args.text_tower:
        figures["text tower"] = json.loads(args.text_tower.read_text())
    name = segmenter.info.name
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    if args.embed:
        embed(args.model, args.embed, figures["means"] | figures["speed"])
    sys.stdout.write(tables(figures))


def embed(source: str, path: Path, figures: dict[str, Any]) -> None:
    """Write the model with its kernels and matrices in float16, and these figures."""
    model, info = load_model(source)
    save_model(model, replace(info, figures=figures), path, dtype=torch.float16)


def tables(figures: dict[str, Any]) -> str:
    """The model card's tables, in Markdown."""
    lines = [
        "| set | photos | classes | mIoU | k=8 | renamed | own word of all |",
        "|" + " --- |" * 7,
    ]
    shares = figures["union"]["own_word"]
    for name, found in sorted(figures["sets"].items()):
        renamed = f"{found['miou_renamed']:.3f}" if "miou_renamed" in found else ""
        row = (name, found["photos"], found["classes"], f"{found['miou']:.3f}")
        row += (f"{found['miou_top8']:.3f}", renamed, f"{shares[name]:.0%}")
        lines.append("| " + " | ".join(map(str, row)) + " |")
    mean, own = figures["means"], figures["union"]["own_word_mean_over_sets"]
    row = ("**mean**", "", "", f"**{mean['miou']:.3f}**", f"{mean['miou_top8']:.3f}")
    row += (f"{mean['miou_renamed']:.3f} (own names: {mean['miou_of_renamed_sets']:.3f})",)
    lines.append("| " + " | ".join((*row, f"{own:.0%}")) + " |")
    return "\n".join(lines) + "\n"


def measure_set(segmenter: Segmenter, dataset: FolderDataset, most: int) -> dict[str, Any]:
    """The mIoU of a set by both definitions: dense, with k = 8, and with classes renamed."""
    names = dataset.vocabulary.names
    renamed = tuple(HELD_OUT.get(name, name) for name in names)
    photos = spread(len(dataset), most)
    dense, top8 = measured(segmenter, dataset, photos, names, (None, 8))
    found = {
        "photos": len(photos),
        "classes": len(names),
        "miou": dense.miou_ground_truth,
        "miou_union": dense.miou_union,
        "miou_top8": top8.miou_ground_truth,
        "iou": {n: None if v != v else v for n, v in zip(names, dense.iou.tolist(), strict=True)},
    }
    if renamed != names:
        (renamed_matrix,) = measured(segmenter, dataset, photos, renamed, (None,))
        found["miou_renamed"] = renamed_matrix.miou_ground_truth
        found["renamed"] = sum(a != b for a, b in zip(names, renamed, strict=True))
    return found


def measured(
    segmenter: Segmenter,
    dataset: FolderDataset,
    photos: range,
    classes: tuple[str, ...],
    top_ks: tuple[int | None, ...],
) -> list[ConfusionMatrix]:
    """One matrix for each setting of early rejection."""
    task = EvaluationTask.of(dataset, words=list(classes))
    found = evaluate(segmenter, task, top_ks=top_ks, photos=photos)
    return [measured.matrix for measured in found.measured]


def union_vocabulary(
    segmenter: Segmenter, sets: list[FolderDataset], most: int
) -> dict[str, float | int]:
    """With all sets' words asked at once: the share of foreground pixels that get their own."""
    words = list(dict.fromkeys(n for s in sets for n in s.vocabulary.names if n != BACKGROUND))
    shares = {}
    for dataset in track(sets):
        position = torch.tensor(
            [words.index(n) if n != BACKGROUND else -1 for n in dataset.vocabulary.names]
        )
        right = seen = 0
        for index in spread(len(dataset), most):
            image, labels = dataset[index]
            mask = torch.from_numpy(segmenter(image, words, top_k=8).mask)
            known = labels < len(position)
            truth = position[labels[known].long()]
            foreground = truth >= 0
            right += int((mask[known][foreground] == truth[foreground]).sum())
            seen += int(foreground.sum())
        shares[dataset.name] = right / seen
    mean = statistics.mean(shares.values())
    return {"words": len(words), "own_word_mean_over_sets": mean, "own_word": shares}


def means(sets: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Over sets; the renamed ones against the same sets under their own names."""
    renamed = [s for s in sets.values() if "miou_renamed" in s]
    return {
        "miou": statistics.mean(s["miou"] for s in sets.values()),
        "miou_top8": statistics.mean(s["miou_top8"] for s in sets.values()),
        "miou_of_renamed_sets": statistics.mean(s["miou"] for s in renamed),
        "miou_renamed": statistics.mean(s["miou_renamed"] for s in renamed),
    }


def speed(segmenter: Segmenter, model: str, sets: list[FolderDataset]) -> dict[str, float]:
    """Seconds for a 480x360 photo with 11 classes once loaded, and to start; bytes at the peak."""
    street = next(s for s in sets if s.name == "camvid")
    photo = Image.fromarray(street[0][0].permute(1, 2, 0).numpy()).resize((480, 360))
    segmenter(photo, street.vocabulary)
    times = []
    for _ in range(11):
        before = time.perf_counter()
        segmenter(photo, street.vocabulary)
        times.append(time.perf_counter() - before)
    code = _START.format(model=model, photo=str(street.photos[0])) + _PEAK
    starts, peak = [], 0
    for _ in range(3):
        before = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        starts.append(time.perf_counter() - before)
        peak = max(peak, int(done.stdout) * 1024)
    return {
        "photo_480x360_11_classes_s": statistics.median(times),
        "start_to_first_photo_s": statistics.median(starts),
        "peak_bytes_first_photo": peak,
    }


if __name__ == "__main__":
    main()
