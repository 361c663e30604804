"""The command line. Each command is a file of this folder."""

from __future__ import annotations

import sys

import typer

from sedseg.cli.convert import convert
from sedseg.cli.segment import segment
from sedseg.cli.train import train
from sedseg.cli.vocabulary import vocabulary
from sedseg.errors import InputError

app = typer.Typer(
    name="sedseg",
    help="Open-vocabulary semantic segmentation: a photo and any words.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(convert)
app.command()(segment)
app.command()(train)
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
