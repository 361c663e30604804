"""What several commands share: options, how they are read, how notes and errors are told."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from sedseg.errors import InputError

Model = Annotated[
    str, typer.Option(help="sed-tiny, sed-base, sed-large, a file, a URL or a hub repository.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: a GPU if there is one.")
]
Dtype = Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: the faster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")]


def read_top_k(text: str) -> int | None:
    """The number that ``--top-k`` gives; None for "none".

    Raises:
        InputError: it is neither.
    """
    if text.strip().lower() == "none":
        return None
    if text.strip().isdecimal() and int(text) >= 1:
        return int(text)
    raise InputError(f"--top-k is {text!r}; give a number from 1 on, or none.")


def read_numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 1 on, with commas between them.

    Raises:
        InputError: it holds something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise InputError(f'{option} is {text!r}; give numbers from 1 on, such as "20,150".')
    return [int(part) for part in parts]


@contextmanager
def notes_on(stderr: Console, quiet: bool) -> Iterator[None]:
    """Warnings as sentences, without the line of code that warns."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if not quiet and _speaks():
            stderr.print(f"Note: {message}", style="yellow", markup=False)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def errors_as_json(wanted: bool) -> Iterator[None]:
    """What the user can mend, as the JSON document if one is wanted; exit status 2 either way."""
    try:
        yield
    except InputError as error:
        if not _speaks():
            raise typer.Exit(2) from error
        if not wanted:
            raise
        typer.echo(json.dumps({"error": str(error)}, ensure_ascii=False))
        raise typer.Exit(2) from error


def _speaks() -> bool:
    """Of the processes that a launcher starts, the first speaks for all."""
    return os.environ.get("RANK", "0") == "0"
