"""``sedseg evaluate``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sedseg.cli.options import (
    AsJson,
    Device,
    Dtype,
    Model,
    Quiet,
    errors_as_json,
    notes_on,
    read_top_k,
)
from sedseg.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sedseg.evaluation.results import Evaluation
    from sedseg.preprocessing import Preprocessing


def evaluate(
    dataset: Annotated[
        str,
        typer.Option(
            help="A benchmark that `sedseg datasets` prepared, such as ade20k-150, or a folder.",
            show_default=False,
        ),
    ],
    model: Model = "sed-tiny",
    split: Annotated[
        str | None, typer.Option(help="Default: test where there is one, else val.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Where the benchmarks are. Default: the variable SEDSEG_DATASETS."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="paper|native",
            help="paper: shorter side 640, then 768x768; native: the aspect is kept. "
            "Default: as the model was made for.",
        ),
    ] = None,
    top_k: Annotated[
        str,
        typer.Option(metavar="K,...", help='Early rejection; several in one go: "1,2,4,8,none".'),
    ] = "none",
    classes: Annotated[
        str | None,
        typer.Option(help="Other words for the data set's classes, in their order."),
    ] = None,
    classes_file: Annotated[
        Path | None, typer.Option(help="Or a file of them: text, one class a line, or JSON.")
    ] = None,
    distractors: Annotated[
        str | None,
        typer.Option(help="Words asked besides, which are never right; or a label set's name."),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Side of a sliding window, pixels; a multiple of 32.")
    ] = None,
    overlap: Annotated[
        float, typer.Option(help="Share that windows overlap.", show_default="1/3")
    ] = 1 / 3,
    scales: Annotated[
        str, typer.Option(metavar="S,...", help='Average over sizes, such as "0.75,1,1.25".')
    ] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirror image.")] = False,
    most: Annotated[
        int | None, typer.Option(min=1, help="Photos at most, spread evenly; default: all.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report: HTML, JSON, CSV.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on labelled photos: mIoU and what goes with it.

    Example: sedseg evaluate --dataset my-photos --split val --output report

    Labels and sizes are checked before the first photo is segmented. Several processes:
    accelerate launch -m sedseg evaluate ...
    """
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    with errors_as_json(as_json), notes_on(stderr, quiet):
        top_ks = [read_top_k(part) for part in top_k.split(",")]
        factors = _numbers(scales)
        if classes is not None and classes_file is not None:
            raise InputError("Give either --classes or --classes-file, not both.")
        if protocol not in (None, "paper", "native"):
            raise InputError(f"--protocol is {protocol!r}; give paper or native.")
        if output:
            from sedseg.evaluation.report import require_report

            require_report(output)
        from sedseg.evaluation import evaluate as evaluation
        from sedseg.evaluation.task import open_task
        from sedseg.evaluation.validation import spread
        from sedseg.evaluation.views import Views
        from sedseg.preprocessing import Preprocessing
        from sedseg.segmenter import load

        Views(Preprocessing(), factors, flip, window, overlap)  # wrong options show at once
        state = evaluation.processes()
        task = open_task(dataset, split, root, classes if classes_file is None else classes_file)
        if distractors:
            task = task.with_distractors(distractors)
        photos = spread(len(task.dataset), most or len(task.dataset))
        task.dataset.check(photos[state.process_index :: state.num_processes])
        if device is None and state.num_processes > 1:
            device = str(state.device)
        segmenter = load(model, device=device, dtype=dtype)
        preprocessing = _preprocessing(segmenter.info.preprocessing, protocol)
        views = Views(preprocessing, factors, flip, window, overlap)
        segmenter.prepare(task.prompts)
        with _progress(stderr, quiet or not state.is_main_process) as bar:
            line = bar.add_task(task.dataset.name, total=len(photos))
            share = state.num_processes  # the bar is the main process's, the others keep pace
            found = evaluation.evaluate(
                segmenter,
                task,
                top_ks=top_ks,
                views=views,
                photos=photos,
                progress=lambda: bar.advance(line, share),
            )
    if not state.is_main_process:
        return
    if as_json:
        typer.echo(json.dumps(found.record(), ensure_ascii=False))
    else:
        _print(found)
    if output:
        from sedseg.evaluation.report import write_report

        def predict(index: int, k: int | None) -> np.ndarray:
            return evaluation.predict(segmenter, task, views, index, k)

        files = write_report(found, task.dataset, predict, output)  # the figures are out already
        stderr.print(f"The report is {files.html}", markup=False)


def _preprocessing(own: Preprocessing, protocol: str | None) -> Preprocessing:
    from sedseg.preprocessing import Preprocessing

    if protocol is None:
        return own
    if protocol == "paper":
        return Preprocessing(mean=own.mean, std=own.std)
    return replace(own, square=None)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f'--scales is {text!r}; give numbers and commas, such as "0.75,1,1.25".'
        ) from None


def _progress(stderr: Console, hidden: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=stderr, disable=hidden)


def _print(found: Evaluation) -> None:
    console = Console(highlight=False)
    photos = len(found.measured[0].photos)
    protocol = found.settings["protocol"]
    console.print(
        f"{found.model} on {found.dataset} ({found.split}): {photos:,} photos, "
        f"{len(found.classes)} classes, {len(found.prompts)} prompts, {protocol} protocol",
        markup=False,
    )
    table = Table(box=None, header_style="bold")
    columns = ("k", "mIoU", "mIoU (union)", "pixel acc.", "mean acc.", "fw IoU", "kept", "s/photo")
    for column in columns:
        table.add_column(column, justify="right")
    for measured in found.measured:
        figures = [f"{100 * value:.2f}" for value in measured.figures.values()]
        kept = " > ".join(f"{n:.0f}" for n in measured.kept)
        k = "none" if measured.top_k is None else str(measured.top_k)
        table.add_row(k, *figures, kept, f"{measured.seconds:.3f}")
    console.print(table)
    console.print(
        "mIoU is the mean over the classes present in the ground truth; (union) divides the same "
        "sum by the number of classes present in ground truth or prediction.",
        style="dim",
    )
    for note in found.notes:
        console.print(f"Note: {note}", style="yellow", markup=False)
