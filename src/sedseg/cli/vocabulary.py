"""`sedseg vocabulary`: check a class list, and see the known label sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sedseg.errors import InputError
from sedseg.label_sets import LABEL_SETS, label_set

if TYPE_CHECKING:
    from sedseg.vocabulary import Vocabulary

vocabulary = typer.Typer(help="Check a class list; list the known ones.", no_args_is_help=True)


@vocabulary.command()
def check(
    file: Annotated[
        str,
        typer.Argument(
            help="A text file (one class a line), a JSON file, a label set's name, or classes "
            "separated by commas."
        ),
    ],
    model: Annotated[str, typer.Option(help="The model whose text tower judges.")] = "sed-tiny",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="List pairs from this similarity: 1 the same, 0 like unrelated words. "
            "Default: 0.65, where the warning begins."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read a class list and list the classes that the model can hardly tell apart by name."""
    from sedseg import weights
    from sedseg.text_embeddings import NEAR_SYNONYMS, TextEmbeddings
    from sedseg.vocabulary import Vocabulary

    threshold = NEAR_SYNONYMS if threshold is None else threshold
    classes = Vocabulary.of(file)
    if len(classes) == 1 and not Path(file).exists():
        raise InputError(f"There is no file {file!r}, and one class alone has no near-synonyms.")
    sed, info = weights.load_model(model)
    pairs = TextEmbeddings(sed).near_synonyms(classes, threshold)
    if as_json:
        found = {
            "classes": classes.synonyms,
            "background": classes.background,
            "model": info.name,
            "threshold": threshold,
            "near_synonyms": [pair._asdict() for pair in pairs],
        }
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    if not pairs:
        typer.echo(f"{_counted(classes)}; {info.name} tells all of them apart by name.")
        return
    table = Table("class", "nearly the same", "similarity", box=None, header_style="bold")
    for a, b, similarity in pairs:
        table.add_row(Text(a), Text(b), f"{similarity:.2f}")
    Console().print(table)
    typer.echo(
        f"{_counted(classes)}; {info.name} can hardly tell these apart. Join such words into one "
        "class (sofa|couch) or drop one."
    )


@vocabulary.command(name="list")
def list_sets() -> None:
    """List the known label sets, whose names can be given wherever classes can."""
    table = Table("name", "classes", "what", box=None, header_style="bold")
    for name in LABEL_SETS:
        known = label_set(name)
        table.add_row(name, str(len(known)), known.title)
    Console().print(table)


@vocabulary.command()
def show(name: Annotated[str, typer.Argument(help="A label set, as `list` names it.")]) -> None:
    """Print a label set as a class file: one class a line, synonyms separated by |."""
    known = label_set(name)
    typer.echo(f"# {known.title}")
    for words in known.synonyms:
        typer.echo("|".join(words))


def _counted(classes: Vocabulary) -> str:
    return "1 class" if len(classes) == 1 else f"{len(classes)} classes"
