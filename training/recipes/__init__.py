"""The recipes: one frozen dataclass a file, one file a paper."""

from __future__ import annotations

import importlib

from keras_convnets.errors import unknown_name
from keras_convnets.networks.architecture import Architecture
from keras_convnets.networks.spec import ModelSpec
from keras_convnets.training.recipes.base import Recipe

# name -> (module, class); a recipe is imported on first use.
RECIPES = {
    "alexnet": ("keras_convnets.training.recipes.alexnet", "AlexNet"),
    "fast_cifar": ("keras_convnets.training.recipes.fast_cifar", "FastCIFAR"),
    "finetune": ("keras_convnets.training.recipes.finetune", "Finetune"),
    "googlenet": ("keras_convnets.training.recipes.googlenet", "GoogLeNet"),
    "resnet_cifar": ("keras_convnets.training.recipes.resnet_cifar", "ResNetCIFAR"),
    "resnet_imagenet": ("keras_convnets.training.recipes.resnet_imagenet", "ResNetImageNet"),
    "vgg": ("keras_convnets.training.recipes.vgg", "VGG"),
}


def default_recipe(network: Architecture | ModelSpec, weights: object) -> str:
    """Return "finetune" where there are weights to start from, else the name of the recipe of the network's paper."""
    return "finetune" if weights else network.family.recipe


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


__all__ = ["RECIPES", "Recipe", "default_recipe", "get_recipe"]
