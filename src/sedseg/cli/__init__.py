"""The command line. Each command is a file of this folder."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sedseg import __version__
from sedseg.cli.benchmark import benchmark
from sedseg.cli.convert import convert
from sedseg.cli.datasets import datasets
from sedseg.cli.evaluate import evaluate
from sedseg.cli.segment import segment
from sedseg.cli.train import train
from sedseg.cli.vocabulary import vocabulary
from sedseg.errors import InputError

app = typer.Typer(
    name="sedseg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sedseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Open-vocabulary semantic segmentation: a photo and any words."""


app.command()(benchmark)
app.command()(convert)
app.command()(evaluate)
app.command()(segment)
app.command()(train)
app.add_typer(datasets, name="datasets")
app.add_typer(vocabulary, name="vocabulary")


def main() -> None:
    """Run the command line; what the user can mend is told in a sentence, with exit status 2."""
    try:
        status = app(standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        # Typer's errors of usage have no public base class, but a message without decoration.
        usage = getattr(error, "format_message", None)
        if usage is None and not isinstance(error, InputError):
            raise
        message = usage() if usage else str(error)
        if message:  # empty after the help that a lone "sedseg" prints
            typer.secho(f"Error: {message}", err=True, fg="red")
        sys.exit(2)
    sys.exit(status)
