"""The command line. Each command is a file of this folder."""

from __future__ import annotations

import sys

import typer

from sedseg.errors import InputError

app = typer.Typer(
    name="sedseg",
    help="Open-vocabulary semantic segmentation: a photo and any words.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; an :class:`InputError` prints its sentence and exits with 2."""
    try:
        app()
    except InputError as error:
        typer.secho(f"Error: {error}", err=True, fg="red")
        sys.exit(2)
