"""The plan of a training: names, fields, input size and splits, resolved before anything is built or written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.files import sha256
from keras_convnets.images.view import View
from keras_convnets.networks.application import COMMON
from keras_convnets.networks.spec import ModelSpec, split_weights
from keras_convnets.training.data import DataSet, SizedSplit, Split, load_dataset
from keras_convnets.training.data.dataset import MEMORY_LIMIT
from keras_convnets.training.data.sequential import StreamSplit
from keras_convnets.training.data.splits import of_one_size
from keras_convnets.training.recipes import Recipe, default_recipe, get_recipe
from keras_convnets.weights.loading import Weights, find_weights

# Channel means and colour components are computed from at most this many evenly spaced training images; using all of
# ImageNet takes hours and changes them insignificantly.
SAMPLED_IMAGES = 10_000
# Maximum number of images per split that a dry run reads.
DRY_RUN_IMAGES = 2_000
# Builder arguments that the training determines, and from what.
DETERMINED = {
    "classes": "it is the number of the data set's classes",
    "input_shape": "the data and the recipe give it: set image_size of the recipe, as in --set image_size=224",
    "auxiliary": "the recipe googlenet gives it: set auxiliary of the recipe, as in --set auxiliary=0.3",
}


@dataclass(frozen=True)
class Plan:
    """A resolved training configuration.

    Attributes:
        model: the network.
        recipe: with the fields resolved that depend on the network and the data.
        data: the holdout split off; every split that is resized and centre-cropped is at the network's input size.
        view: how an image becomes an input in evaluation.
        weights: what the network starts from, or None.
        broken: images that can't be read and are left out: (split, file, reason).
        sizes: number of images of each split where `data` holds a sample of them, as for a dry run.
    """

    model: ModelSpec
    recipe: Recipe
    data: DataSet
    view: View
    weights: Weights | None = None
    broken: tuple[tuple[str, str, str], ...] = ()
    sizes: Mapping[str, int] | None = None

    @property
    def architecture(self) -> str:
        """The name of the network's builder."""
        return self.model.architecture

    @property
    def images(self) -> dict[str, int]:
        """Number of images of each split."""
        return dict(self.sizes or {name: split.size for name, split in self.data.splits.items()})

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.recipe.total_steps(self.images["train"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, 3)."""
        return (*self.view.crop, 3)

    def sample(self) -> SizedSplit:
        """Return training images, resized and centre-cropped; evenly spaced ones where there are very many."""
        train = self.data.split("train")
        if train.size > SAMPLED_IMAGES:
            train = train.subset(np.arange(SAMPLED_IMAGES) * train.size // SAMPLED_IMAGES)
        return train.at_size(self.view, memory_limit=0) if self.recipe.reads_photographs else of_one_size(train)

    def data_facts(self) -> dict[str, Any]:
        """Return what the run's configuration and the card say of the data."""
        sizes = {name: split.size for name, split in self.data.splits.items()}
        facts = {"name": self.data.name, "images": sizes, "fingerprint": self.data.fingerprint()}
        return {**facts, "left_out": len(self.broken)} if self.broken else facts

    def config(self) -> dict[str, Any]:
        """Return the resolved configuration; a resumed run must have an equal one."""
        start = (
            {"weights": {"file": self.weights.path.name, "sha256": sha256(self.weights.path)}} if self.weights else {}
        )
        return {
            "model": str(self.model),
            **start,
            "input_shape": list(self.input_shape),
            "data": self.data_facts(),
            "recipe": self.recipe.to_dict(),
        }


def make_plan(
    model: str | ModelSpec,
    dataset: str | os.PathLike | DataSet,
    recipe: str | Recipe | None = None,
    overrides: dict[str, Any] | None = None,
    data_dir: str | os.PathLike | None = None,
    weights: Any = None,
    sampled: bool = False,
) -> Plan:
    """Resolve names, fields, input size and splits, without building or writing anything. Arguments as for `fit`.

    With `sampled`, at most `DRY_RUN_IMAGES` of each split are read.
    """
    name, named = split_weights(model) if isinstance(model, str) else (model, None)
    spec = ModelSpec.of(name)
    _check_own_arguments(spec)
    if named is not None and weights is not None:
        raise UserError(f"model is {model!r} and weights is {str(weights)!r}; give the weights once.")
    found = find_weights(named if weights is None else weights, spec.architecture)
    chosen = get_recipe(recipe or default_recipe(spec, found), overrides)
    whole = load_dataset(dataset, data_dir)
    sizes = {name: split.size for name, split in whole.splits.items()}
    data, broken = (_sample(whole) if sampled else whole).without_broken(chosen.broken_images)
    images = sizes["train"] if sampled else data.split("train").size
    resolved = chosen.for_network(spec.depth).for_data(images)
    if sampled:
        data, sizes = _hold_out_of_sample(whole, data, resolved.holdout, sizes)
    else:
        data = data.with_holdout(resolved.holdout)
    view = _view(resolved, spec, data, found)
    kept = {"train": data.split("train")} if resolved.reads_photographs else {}
    # Scale the memory limit, so that a sample is cached only if the whole data set would be.
    fraction = sum(split.size for split in data.splits.values()) / sum(sizes.values()) if sampled else 1.0
    sized = data.in_view(view, int(MEMORY_LIMIT * fraction), leaving=kept)
    return Plan(spec, resolved, sized, view, found, tuple(broken), sizes if sampled else None)


def _check_own_arguments(model: ModelSpec) -> None:
    """Refuse network arguments that the data, recipe or weights determine.

    Raises:
        UserError: if there is one; the message says what determines it.
    """
    for key in model.arguments:
        if key in DETERMINED or key in COMMON:
            why = DETERMINED.get(key, "training takes the whole classifier: leave it out")
            raise UserError(f"{key} can't be set on a network that is to be trained; {why}.")


def _sample(data: DataSet) -> DataSet:
    """Return some images of each split: evenly taken, of records the first, which are read one after the other."""

    def positions(split: Split) -> np.ndarray:
        count = min(split.size, DRY_RUN_IMAGES)
        return np.arange(count) if isinstance(split, StreamSplit) else np.arange(count) * split.size // count

    return replace(data, splits={name: split.subset(positions(split)) for name, split in data.splits.items()})


def _hold_out_of_sample(
    whole: DataSet, sample: DataSet, holdout: float, sizes: dict[str, int]
) -> tuple[DataSet, dict[str, int]]:
    """Hold out of a sample the fraction that is held out of all images; return it with all splits' own sizes."""
    images = sizes["train"]
    count = round(holdout if holdout >= 1 else holdout * images)
    if not holdout or not 0 < count < images:
        return (whole.with_holdout(holdout) if holdout else sample), sizes  # which refuses it
    some = sample.split("train").size
    held = min(max(round(count / images * some), 1), some - 1)
    return sample.with_holdout(held), {**sizes, "train": images - count, "holdout": count}


def _view(recipe: Recipe, model: ModelSpec, data: DataSet, weights: Weights | None) -> View:
    """Return the view of evaluation: at the recipe's input size, else the data's own, else the network's."""
    own = (weights.input_shape if weights else None) or model.family.input_shape
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
    return View.of_size(*size, resize=resize)
