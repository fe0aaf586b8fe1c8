"""What a training is to be, settled before anything is built or written."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_convnets.card import center_view
from keras_convnets.errors import UserError
from keras_convnets.files import sha256
from keras_convnets.registry import Architecture, get_architecture
from keras_convnets.training.data import DataSet, SizedSplit, load_dataset
from keras_convnets.training.recipes import Recipe, default_recipe, get_recipe
from keras_convnets.weights import Weights, find_weights

# Channel means and colour components are those of so many training images, evenly taken; more change no digit that
# matters and take hours on ImageNet.
SAMPLED_IMAGES = 10_000


@dataclass(frozen=True)
class Plan:
    """A training that is settled but not begun.

    Attributes:
        architecture: the registered name.
        recipe: with everything settled that depends on the network and the data.
        data: the holdout split off, and every split that is looked at plainly at the network's input size.
        view: how an image becomes an input in evaluation.
        weights: what the network starts from, or None.
        broken: images that can't be read and are left out: (split, file, reason).
    """

    architecture: str
    recipe: Recipe
    data: DataSet
    view: dict[str, Any]
    weights: Weights | None = None
    broken: tuple[tuple[str, str, str], ...] = ()

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.recipe.total_steps(self.data.split("train").size)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, 3)."""
        return (*self.view["crop"], 3)

    def sample(self) -> SizedSplit:
        """Return training images in the plain view, some evenly taken ones where there are very many."""
        train = self.data.split("train")
        if train.size > SAMPLED_IMAGES:
            train = train.subset(np.arange(SAMPLED_IMAGES) * train.size // SAMPLED_IMAGES)
        return train.at_size(self.view, memory_limit=0) if self.recipe.reads_photographs else train

    def data_facts(self) -> dict[str, Any]:
        """Return what the run's configuration and the card say of the data."""
        sizes = {name: split.size for name, split in self.data.splits.items()}
        facts = {"name": self.data.name, "images": sizes, "fingerprint": self.data.fingerprint()}
        return {**facts, "left_out": len(self.broken)} if self.broken else facts

    def config(self) -> dict[str, Any]:
        """Return the resolved configuration, what a resumed run must have in common with this one."""
        start = (
            {"weights": {"file": self.weights.path.name, "sha256": sha256(self.weights.path)}} if self.weights else {}
        )
        return {
            "model": self.architecture,
            **start,
            "input_shape": list(self.input_shape),
            "data": self.data_facts(),
            "recipe": self.recipe.to_dict(),
        }


def make_plan(
    model: str,
    dataset: str | os.PathLike | DataSet,
    recipe: str | Recipe | None,
    overrides: dict[str, Any] | None,
    data_dir: str | os.PathLike | None,
    weights: Any = None,
) -> Plan:
    """Settle names, fields, input size and splits; nothing is built or written. Arguments as of `fit`."""
    name, colon, text = model.partition(":")
    named = text if colon else None
    architecture = get_architecture(name)
    if named is not None and weights is not None:
        raise UserError(f"model is {model!r} and weights is {str(weights)!r}; give the weights once.")
    found = find_weights(named if weights is None else weights, architecture.name)
    chosen = get_recipe(recipe or default_recipe(architecture, found), overrides)
    data, broken = load_dataset(dataset, data_dir).without_broken(chosen.broken_images)
    settled = chosen.for_network(architecture.depth).for_data(data.split("train").size)
    data = data.with_holdout(settled.holdout)
    view = _view(settled, architecture, data, found)
    kept = {"train": data.split("train")} if settled.reads_photographs else {}
    sized = data.in_view(view, leaving=kept)
    return Plan(architecture.name, settled, sized, view, found, tuple(broken))


def _view(recipe: Recipe, architecture: Architecture, data: DataSet, weights: Weights | None) -> dict[str, Any]:
    """Return the view of evaluation: at the recipe's input size, else the data's own, else the network's."""
    own = (weights.input_shape if weights else None) or architecture.input_shape
    if recipe.image_size is not None:
        size = (recipe.image_size, recipe.image_size)
    elif recipe.reads_photographs:
        size = own[:2]
    else:
        size = data.image_size or own[:2]
    resize = None if recipe.resize is None else max(recipe.resize, *size)
    if recipe.reads_photographs and resize is None:
        # The papers' 256 for 224, in proportion.
        resize = math.ceil(min(size) * 256 / 224)
    return center_view(*size, resize=resize)
