"""Common parts of the recipes for photographs: crops read from the encoded files, colour augmentation, plateaus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.training.augmentation import pca_colour_shift, pixel_components, random_flip
from keras_convnets.training.data import DataSet, SizedSplit
from keras_convnets.training.data.cached_passes import counted, kept
from keras_convnets.training.recipes.base import Augmentation, Recipe, option
from keras_convnets.training.schedules import Curve, EvenDivision, Plateau
from keras_convnets.training.seeds import folded

# Images in a batch, when channel means and colour components are measured.
SAMPLE_BATCH = 64


@dataclass(frozen=True)
class Photographs(Recipe):
    """Each training view is cropped from the photograph itself; a sub-class says how, in `read`."""

    flip: bool | None = option(None, "mirror half of the images; none: where the data allow it")
    colour_shift: float = option(0.0, "standard deviation of the shift along the colours' principal components", low=0)

    @property
    def reads_photographs(self) -> bool:
        """Whether each image is cropped from its encoded file: yes."""
        return True

    @property
    def divides_by_deviation(self) -> bool:
        """Whether the network's first layer also divides by the channels' standard deviations."""
        return False

    def preprocessing(self, train: SizedSplit) -> Preprocessing:
        """Return RGB minus the channel means of the training images."""
        components, eigenvalues, mean = kept_components(train)
        means = tuple(255 * value for value in mean)
        if not self.divides_by_deviation:
            return Preprocessing(mean=means)
        variances = np.einsum("ck,k,ck->c", components, eigenvalues, components)
        return Preprocessing(mean=means, std=tuple(255 * np.sqrt(np.maximum(variances, 1e-6))))

    def augment(
        self, data: DataSet, preprocessing: Preprocessing | None, sample: Callable[[], SizedSplit]
    ) -> Augmentation:
        """Return the flip and the colour shift, whose components are those of the training images' pixels."""
        if self.flip and not data.flips_keep_labels:
            raise UserError(
                f"flip is true and a mirrored image of {data.name} has another label or none; set flip=false."
            )
        flip = data.flips_keep_labels if self.flip is None else self.flip
        shift = self._colour_shift(sample) if self.colour_shift else None

        def augmented(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            images = tf.cast(images, tf.float32)
            images = random_flip(images, folded(seed, "flip")) if flip else images
            return shift(images, folded(seed, "colour shift")) if shift else images

        return augmented

    def _colour_shift(self, sample: Callable[[], SizedSplit]) -> Augmentation:
        components, eigenvalues, _ = kept_components(sample())
        return lambda images, seed: pca_colour_shift(images, components, eigenvalues, seed, self.colour_shift)


def kept_components(train: SizedSplit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `pixel_components` finds of training images; of many it is kept, and not computed again."""

    def compute() -> list[Any]:
        batches = counted(train.in_order(SAMPLE_BATCH), "measuring colours", train.size, lambda part: len(part[0]))
        return [found.tolist() for found in pixel_components(images for images, _ in batches)]

    def is_sound(found: Any) -> bool:
        parts = [np.array(part, np.float64) for part in found]
        return [part.shape for part in parts] == [(3, 3), (3,), (3,)] and all(np.isfinite(part).all() for part in parts)

    components, eigenvalues, mean = kept("colours", train.state(), train.size, compute, is_sound)
    return np.array(components), np.array(eigenvalues), np.array(mean)


@dataclass(frozen=True)
class DividedOnPlateaus(Recipe):
    """The learning rate is divided when the holdout stops improving; without one, at even fractions of the run.

    It is divided `plateau_drops` times in every run, however short; see `schedules.Plateau`.
    """

    plateau_patience: float = option(
        0.05, "fraction of the run without a better holdout before the rate falls", low=0, high=1
    )
    plateau_drops: int = option(3, "how often the rate falls", low=0)
    drop_factor: float = option(0.1, "what the learning rate is multiplied by at each drop", low=0, high=1)

    def paper_curve(self, total_steps: int) -> Curve:
        """Return the base rate, divided on the holdout's plateaus where the recipe holds images out."""
        base, drops, factor = self.base_learning_rate(), self.plateau_drops, self.drop_factor
        if not self.holdout:
            return EvenDivision(base, total_steps, drops + 1, factor)
        return Plateau(base, total_steps, self.plateau_patience, drops, factor)
