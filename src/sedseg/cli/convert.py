"""`sedseg convert`: the authors' checkpoint -> a file of sedseg's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal


def convert(
    official: Annotated[Path, typer.Argument(help="The checkpoint as its authors publish it.")],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="sed-base or sed-large: these are its published weights. Or a JSON file with "
            "the configuration of your own training. Without it the shape is recognised."
        ),
    ] = None,
) -> None:
    """Convert weights of the authors' code, strictly: every tensor must find its place."""
    from sedseg import weights

    made = weights.convert(official, out, model)
    typer.echo(f"{official}: {made.info.name}, {made.tensors} tensors, every one mapped")
    typer.echo(f"{out}: {decimal(made.size)}")
