"""What the recipes for photographs share: crops read from the encoded files, colour augmentation, plateaus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.preprocessing import Preprocessing
from keras_convnets.training.augment import pca_colour_shift, pixel_components, random_flip
from keras_convnets.training.data import DataSet, SizedSplit
from keras_convnets.training.recipes.base import Augmentation, Recipe, option

# How many images are looked at together for means and colour components.
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
        components, eigenvalues, mean = pixel_components(images for images, _ in train.in_order(SAMPLE_BATCH))
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
            images = random_flip(images, seed) if flip else images
            return shift(images, seed + 1) if shift else images

        return augmented

    def _colour_shift(self, sample: Callable[[], SizedSplit]) -> Augmentation:
        components, eigenvalues, _ = pixel_components(images for images, _ in sample().in_order(SAMPLE_BATCH))
        return lambda images, seed: pca_colour_shift(images, components, eigenvalues, seed, self.colour_shift)


@dataclass(frozen=True)
class Plateau(Recipe):
    """The learning rate is divided when the holdout stops improving; without one, at even fractions of the run."""

    plateau_patience: int = option(5, "reports without a better holdout before the rate falls", low=1)
    plateau_drops: int = option(3, "how often the rate falls at most", low=0)
    drop_factor: float = option(0.1, "what the learning rate is multiplied by at each drop", low=0, high=1)

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the base rate, which the trainer divides on the holdout's plateaus; by fractions without a holdout."""
        if self.holdout:
            return self.base_learning_rate()
        passed = step * (self.plateau_drops + 1) // total_steps
        return self.base_learning_rate() * self.drop_factor**passed
