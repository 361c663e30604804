"""``sedseg benchmark``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sedseg.cli.options import (
    AsJson,
    Device,
    Quiet,
    errors_as_json,
    read_numbers,
    read_top_k,
)


def benchmark(
    model: Annotated[
        str, typer.Option(help="Whose shape: sed-tiny, sed-base, sed-large, or a file.")
    ] = "sed-base",
    classes: Annotated[str, typer.Option(metavar="T,...", help="Numbers of classes.")] = (
        "20,150,459,847"
    ),
    top_k: Annotated[str, typer.Option(metavar="K,...", help="Early rejection.")] = "none,8",
    kept: Annotated[
        int, typer.Option(min=1, help="Classes that survive each rejection, where there is one.")
    ] = 20,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the fast path: float32 or bfloat16. Default: the faster."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    size: Annotated[int, typer.Option(min=96, help="Side of images and masks, pixels.")] = 768,
    repeats: Annotated[
        int, typer.Option(min=1, help="Runs counted; fewer where they take over a minute.")
    ] = 5,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time the plain path (float32, the paper's steps as written) beside the fast one.

    Example: sedseg benchmark --classes 20,150 --top-k none,8

    The weights are random, which does for speed. Images to masks, in seconds: medians, with the
    least and the most; memory beyond what was in use before.
    """
    stderr = Console(stderr=True, highlight=False)
    with errors_as_json(as_json):
        counts = read_numbers("--classes", classes)
        top_ks = [read_top_k(part) for part in top_k.split(",")]
        import torch

        from sedseg.devices import choose_device, choose_dtype
        from sedseg.evaluation import speed
        from sedseg.model.fused import fuse
        from sedseg.model.sed import SED
        from sedseg.weights import named_config

        where = choose_device(device)
        fast_dtype = choose_dtype(dtype, where)
        torch.manual_seed(0)
        plain = SED(named_config(model)).eval()
        fast = fuse(plain)
        for part in (fast.encoder, fast.decoder):
            part.to(fast_dtype).to(memory_format=torch.channels_last)
        networks = {"plain": plain.to(where), "fast": fast.to(where)}
        types = {"plain": torch.float32, "fast": fast_dtype}
        rows: list[dict[str, Any]] = []
        for setting in speed.settings(counts, top_ks, kept, size, batch):
            row = {
                "path": setting.path,
                "classes": setting.classes,
                "top_k": setting.top_k,
                "dtype": str(types[setting.path]).removeprefix("torch."),
                "batch": batch,
            }
            needed = setting.needs(plain.config.hidden_dim, types[setting.path])
            if where.type == "cpu" and needed > speed.free_memory():
                row["skipped"] = f"needs about {needed / 2**30:.0f} GiB"
            else:
                if not quiet:
                    stderr.print(f"{setting.path}, {setting.classes} classes, k={setting.top_k}")
                text = speed.random_text(plain, setting.classes).to(where, types[setting.path])
                row |= speed.measure(networks[setting.path], text, setting, repeats)
            rows.append(row)
        _compare(rows)
    found = {"machine": speed.machine(where), "model": model, "size": size, "rows": rows}
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    _print(found)


def _compare(rows: list[dict[str, Any]]) -> None:
    """Add the ratios: to the plain path at the same setting, and to it without rejection."""
    plain = {(r["classes"], r["top_k"]): r.get("total_s") for r in rows if r["path"] == "plain"}
    for row in rows:
        if row["path"] == "fast":
            same, dense = plain[row["classes"], row["top_k"]], plain.get((row["classes"], None))
            row["times_plain"] = same and same / row["total_s"]
            row["times_plain_dense"] = dense and dense / row["total_s"]


def _print(found: dict[str, Any]) -> None:
    from sedseg.evaluation.speed import STAGES

    console = Console(highlight=False, soft_wrap=True)
    machine = found["machine"]
    console.print(
        f"{found['model']}, {found['size']}x{found['size']}, on {machine['name']} "
        f"({machine['threads']} threads), torch {machine['torch']}, {machine['date']}",
        markup=False,
    )
    measured = [row for row in found["rows"] if "skipped" not in row]
    totals, parts = (Table(box=None, header_style="bold") for _ in range(2))
    for heading in ("path", "type", "T", "k", "kept", "total s", "least-most", "GiB", "x plain"):
        totals.add_column(heading, justify="right")
    shown = ("masks" if stage == "upsampling" else stage.replace("_", " ") for stage in STAGES)
    for heading in ("path", "T", "k", *shown):
        parts.add_column(heading, justify="right")
    for row in measured:
        asked = (str(row["classes"]), "none" if row["top_k"] is None else str(row["top_k"]))
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}"
        spread = f"{row['least_s']:.2f}-{row['most_s']:.2f}"
        ratio = f"{row['times_plain']:.1f}" if row.get("times_plain") else ""
        figures = (str(row["kept"]), f"{row['total_s']:.3f}", spread, memory, ratio)
        totals.add_row(row["path"], row["dtype"], *asked, *figures)
        parts.add_row(row["path"], *asked, *(f"{row[f'{stage}_s']:.3f}" for stage in STAGES))
    console.print(totals)
    console.print(parts)
    for row in found["rows"]:
        if "skipped" in row:
            console.print(f"{row['path']}, T={row['classes']}: not run, it {row['skipped']}.")
    console.print("x plain: how many times faster than the plain path at the same T and k.")
    for row in found["rows"]:
        if row["path"] == "fast" and row["top_k"] is not None and row.get("times_plain_dense"):
            console.print(
                f"{row['classes']} classes, k={row['top_k']}, {row['kept']} kept: "
                f"{row['times_plain_dense']:.1f} times the plain dense path."
            )
