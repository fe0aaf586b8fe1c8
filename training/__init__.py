"""Training and evaluation: data sets, recipes, the trainer, protocols. Runs on TensorFlow.

Example:
    >>> from keras_convnets import training
    >>> run = training.fit("ResNet20", "digits", run="runs/digits", overrides={"epochs": 40})
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_convnets.extras import require

if TYPE_CHECKING:
    from keras_convnets.training.data import DataSet as DataSet
    from keras_convnets.training.data import load_dataset as load_dataset
    from keras_convnets.training.evaluation import Evaluation as Evaluation
    from keras_convnets.training.evaluation import evaluate as evaluate
    from keras_convnets.training.recipes import Recipe as Recipe
    from keras_convnets.training.recipes import get_recipe as get_recipe
    from keras_convnets.training.run import Run as Run
    from keras_convnets.training.trainer import Trainer as Trainer
    from keras_convnets.training.trainer import fit as fit

_HOMES = {
    "DataSet": "data",
    "Evaluation": "evaluation",
    "Recipe": "recipes",
    "Run": "run",
    "Trainer": "trainer",
    "evaluate": "evaluation",
    "fit": "trainer",
    "get_recipe": "recipes",
    "load_dataset": "data",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("train", "training")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
