"""The recipes: one frozen dataclass a file, one file a paper."""

from __future__ import annotations

import importlib

from keras_convnets.errors import unknown_name
from keras_convnets.training.recipes.base import Recipe

# name -> (module, class); a recipe is imported when it is asked for.
RECIPES = {"resnet_cifar": ("keras_convnets.training.recipes.resnet_cifar", "ResNetCIFAR")}


def get_recipe(name: str | Recipe, overrides: dict[str, object] | None = None) -> Recipe:
    """Return a recipe by its name, with fields set otherwise.

    Args:
        name: a key of `RECIPES`, or a recipe.
        overrides: field names and values; texts are read as the field's type, as from `--set epochs=3`.

    Raises:
        UserError: if the recipe or a field is unknown, or a value does not fit.

    Example:
        >>> get_recipe("resnet_cifar", {"epochs": "3"}).iterations is None
        True
    """
    if isinstance(name, Recipe):
        recipe = name
    elif name in RECIPES:
        module, kind = RECIPES[name]
        recipe = getattr(importlib.import_module(module), kind)()
    else:
        raise unknown_name("recipe", name, RECIPES)
    return recipe.override(overrides or {})


__all__ = ["RECIPES", "Recipe", "get_recipe"]
