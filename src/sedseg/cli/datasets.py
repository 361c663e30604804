"""``sedseg datasets``: bring the benchmarks into the folder format; list what is ready."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sedseg.cli.options import AsJson, Quiet, errors_as_json

if TYPE_CHECKING:
    from sedseg.data.benchmarks import Prepared
    from sedseg.data.benchmarks.survey import Found

datasets = typer.Typer(
    help="Prepare the field's benchmarks; list what is ready.", no_args_is_help=True
)

Root = Annotated[
    Path | None,
    typer.Option(help="Folder of all data sets. Default: the variable SEDSEG_DATASETS."),
]


@datasets.command()
def prepare(
    name: Annotated[
        str,
        typer.Argument(help="The benchmark's name, as `sedseg datasets list` shows it."),
    ],
    root: Root = None,
    split: Annotated[str, typer.Option(metavar="val|train|all", help="What to prepare.")] = "val",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring a benchmark, unpacked as its site ships it, into the folder ROOT/NAME.

    Example: sedseg datasets prepare ade20k-150 --root datasets

    What is missing is said before anything is written, with where it comes from. Run again, it
    goes on where it was stopped. Exit status: 0 all went well; 1 fewer photos than the benchmark
    has; 2 the command was wrong or files are missing.
    """
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    done: dict[str, tuple[int, int]] = {}
    with errors_as_json(as_json):
        from sedseg.data import benchmarks

        name = benchmarks.benchmark(name).name
        try:
            with _bar(stderr, quiet) as tell:

                def progress(split: str, number: int, total: int) -> None:
                    done[split] = number, total
                    tell(split, number, total)

                made = benchmarks.prepare(name, root, split, progress)
        except KeyboardInterrupt:
            _stopped(stderr, name, done, as_json)
            raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(_record(name, made), ensure_ascii=False))
    elif not quiet:
        for one in made:
            typer.echo(
                f"{name} {one.split}: {one.photos:,} of {one.expected:,} photos in {one.folder}, "
                f"{one.made:,} of them new"
            )
    notes = [one.note for one in made if one.note]
    for note in notes:
        stderr.print(f"Note: {note}", style="yellow", markup=False)
    if notes:
        raise typer.Exit(1)


@datasets.command(name="list")
def list_datasets(
    root: Root = None,
    as_json: AsJson = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Leave out what the others need.")
    ] = False,
) -> None:
    """List the benchmarks and your own folders below ROOT: what is ready and what is needed."""
    with errors_as_json(as_json):
        from sedseg.data.benchmarks import datasets_root
        from sedseg.data.benchmarks.survey import find_benchmarks, find_folders

        root = datasets_root(root)
        known, own = find_benchmarks(root), find_folders(root)
    if as_json:
        found = {"root": str(root), "benchmarks": _listed(known), "folders": _listed(own)}
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    table = Table("name", "classes", "photos / expected", "where", box=None, header_style="bold")
    for one in (*known, *own):
        ready = [f"{s} {n.photos:,} / {n.expected:,}" for s, n in one.splits.items()]
        where = str(one.folder) if one.splits else ""
        count = "?" if one.classes is None else str(one.classes)
        table.add_row(Text(one.name), count, Text(", ".join(ready) or "not ready"), Text(where))
    console.print(table)
    needs = [(one.name, sentence) for one in (*known, *own) for sentence in one.needs]
    if needs and not quiet:
        console.print("\nNot ready (prepare says where each file must lie):", style="bold")
        for name, sentence in needs:
            console.print(f"{name} {sentence}", markup=False)


@contextmanager
def _bar(stderr: Console, hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar; gives the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr, disable=hidden) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(split: str, number: int, total: int) -> None:
            if split not in tasks:
                # Begun where it was left, so that the time remaining counts this run's work alone.
                tasks[split] = bar.add_task(split, total=total, completed=number)
            bar.update(tasks[split], completed=number)

        yield tell


def _stopped(stderr: Console, name: str, done: dict[str, tuple[int, int]], as_json: bool) -> None:
    parts = [
        f"{number:,} of {total:,} photos of {split}" for split, (number, total) in done.items()
    ]
    where = " and ".join(parts) or "nothing"
    said = f"Stopped after {where} of {name}; the same command goes on from there."
    if as_json:
        typer.echo(json.dumps({"error": said}, ensure_ascii=False))
    else:
        stderr.print(said, style="yellow", markup=False)


def _record(name: str, made: tuple[Prepared, ...]) -> dict[str, Any]:
    splits = {
        one.split: {
            "photos": one.photos,
            "expected": one.expected,
            "new": one.made,
            "note": one.note,
        }
        for one in made
    }
    return {"benchmark": name, "folder": str(made[0].folder), "splits": splits}


def _listed(found: list[Found]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "classes": one.classes,
            "folder": str(one.folder),
            "splits": {
                s: {"photos": n.photos, "expected": n.expected} for s, n in one.splits.items()
            },
            "needs": list(one.needs),
        }
        for one in found
    ]
