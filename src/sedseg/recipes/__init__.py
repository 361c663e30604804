"""Training runs, one function each: ``sedseg train NAME`` or ``sedseg train FILE.py:FUNCTION``."""

from collections.abc import Callable

from sedseg.recipes.fine_tune import fine_tune
from sedseg.recipes.sed_paper import sed_base, sed_large
from sedseg.recipes.sed_tiny import sed_tiny
from sedseg.training.recipe import Recipe, RecipeInputs

RECIPES: dict[str, Callable[[RecipeInputs], Recipe]] = {
    "fine_tune": fine_tune,
    "sed_tiny": sed_tiny,
    "sed_base": sed_base,
    "sed_large": sed_large,
}
