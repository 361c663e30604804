"""``sedseg train``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.logging import RichHandler

from sedseg.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sedseg.training.recipe import Recipe, RecipeInputs


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name, or FILE.py:FUNCTION for one of your own.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of the data set, or of several.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, log and weights.")],
    pretrained: Annotated[
        str | None, typer.Option(help="Weights to start from, where the recipe takes some.")
    ] = None,
    text_tower: Annotated[
        Path | None, typer.Option(help="Text tower to start from, where the recipe takes one.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Replaces the recipe's number of steps.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in OUTPUT.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read photos.")] = 2,
) -> None:
    """Train a model, or fine-tune one on your own photos.

    Example: sedseg train fine_tune --data my-photos --output runs/mine

    The loss, the learning rate and the validation mIoU go to TensorBoard: tensorboard --logdir
    OUTPUT. Several GPUs: accelerate launch -m sedseg train ...
    """
    from sedseg.training.recipe import RecipeInputs
    from sedseg.training.trainer import train as run

    handler = RichHandler(show_path=False, show_level=False)  # goes well with the progress bar
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    for chatty in ("accelerate", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    inputs = RecipeInputs(data, pretrained, text_tower, iterations)
    weights = run(find_recipe(recipe)(inputs), output, resume=resume, workers=workers)
    typer.echo(f"The weights are in {weights}; use them with --model {weights}")


def find_recipe(name: str) -> Callable[[RecipeInputs], Recipe]:
    """A recipe of the package by its name, or a user's as FILE.py:FUNCTION.

    Raises:
        InputError: there is none of that name.
    """
    from sedseg.recipes import RECIPES

    if name in RECIPES:
        return RECIPES[name]
    path, _, function = name.rpartition(":")
    if not path:
        known = ", ".join(sorted(RECIPES))
        raise InputError(f"No recipe is called {name!r}; choose {known}, or FILE.py:FUNCTION.")
    if not Path(path).is_file():
        raise InputError(f"The recipe file {path} does not exist.")
    import runpy

    found = runpy.run_path(path).get(function)
    if not callable(found):
        raise InputError(f"{path} defines no function {function!r}.")
    return found  # type: ignore[no-any-return]
