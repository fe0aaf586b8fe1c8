"""A pretrained network on one's own photographs.

    keras-convnets train --model GoogLeNet:imagenet --dataset photos/ --run runs/photos

`photos/` holds a folder a class, or `train/` and `val/` with them. Nothing else needs to be known: the length follows
the number of images, from 100 to 100,000, and the run ends early when the held-out tenth no longer improves.

It is the recipe of every training that starts from weights; `--recipe finetune` says so.

Expected: with the BVLC's GoogLeNet on the ants and bees of the PyTorch tutorial (245 photographs to train), at least
93 % of the 153 validation photographs, in under 5 minutes on two cores.

How: the classifier is new and is trained alone first, so that its random start does not spoil the features; then all
layers, the first ones slowest (Howard and Ruder 2018, arXiv:1801.06146, section 3.2: "discriminative fine-tuning").
Batch normalisation stays in inference mode: statistics of a few small batches are worse than those of ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import keras
import tensorflow as tf

from keras_convnets.networks.graph import leaves
from keras_convnets.training.random_crops import random_area_crop
from keras_convnets.training.recipes.base import option
from keras_convnets.training.recipes.photographs import Photographs
from keras_convnets.training.schedules import EarlyStopping

# 12 passes over 250 images; fewer over more, though never fewer than 3, and 20 at most.
PASSES, PASSES_FOR, PASSES_EXPONENT, PASSES_RANGE = 12, 250, 0.4, (3, 20)


@dataclass(frozen=True)
class Finetune(Photographs):
    """The recipe; see the module for the command and the expected result."""

    batch_size: int = option(32, "images in a step, over all devices", low=1)
    epochs: float | None = option(None, "length in passes; none, and no iterations: by the number of images", low=0)
    learning_rate: float | None = option(0.01, "of the classifier, at the start", low=0)
    schedule: str = option(
        "cosine", "of the learning rate: paper, cosine or one_cycle", choices=("cosine", "one_cycle", "paper")
    )
    weight_decay: float = option(1e-4, "L2 in the gradient: weight_decay * w is added to dL/dw", low=0)
    holdout: float = option(0.1, "training images held out to stop early on: a number, or a fraction below 1", low=0)
    head_share: float = option(0.25, "fraction of the run in which the classifier alone is trained", low=0, high=1)
    last_rate: float = option(
        0.1, "learning rate of the last layer before the classifier, as a fraction of the classifier's", low=0
    )
    first_rate: float = option(0.01, "learning rate of the first layer, as a fraction of the classifier's", low=0)
    stop_patience: int | None = option(
        4, "reports without a better holdout before the run ends; none: it never does", low=1
    )
    smallest_area: float = option(
        0.35, "smallest fraction of a photograph that a training crop shows", low=0.01, high=1
    )
    freeze_statistics: bool = option(True, "keep batch normalisation in inference mode")

    def total_steps(self, train_images: int) -> int:
        """Return the number of steps; where no length is set, by the number of images."""
        if self.iterations is None and self.epochs is None:
            lowest, highest = PASSES_RANGE
            passes = PASSES * (PASSES_FOR / train_images) ** PASSES_EXPONENT
            return max(1, round(min(max(passes, lowest), highest) * train_images / self.batch_size))
        return super().total_steps(train_images)

    @property
    def has_length(self) -> bool:
        """Whether the recipe knows its length without iterations and epochs: yes, by the number of images."""
        return True

    @property
    def best_is(self) -> str:
        """What the best network is chosen by: the loss, which is more informative than the accuracy on few images."""
        return "val_loss"

    @property
    def head_only_fraction(self) -> float:
        """Fraction of the run in which only the classifier is trained: the field."""
        return self.head_share

    def early_stopping(self) -> EarlyStopping | None:
        """Return what ends the run: `stop_patience` reports without a better holdout."""
        return None if self.stop_patience is None else EarlyStopping(self.stop_patience)

    def prepare(self, model: keras.Model) -> None:
        """Keep batch normalisation in inference mode: Keras' frozen layers use their moving statistics."""
        for layer in leaves(model) if self.freeze_statistics else ():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False

    def rate_multipliers(self, model: keras.Model) -> Mapping[str, float]:
        """Return rates that rise evenly in their logarithm from the first layer to the last before the classifier."""
        body = [layer for layer in leaves(model) if layer.trainable_weights and layer.name != "predictions"]
        found: dict[str, float] = {}
        for position, layer in enumerate(body):
            depth = position / max(1, len(body) - 1)
            rate = self.first_rate * (self.last_rate / self.first_rate) ** depth if self.first_rate else 0.0
            found |= {weight.path: rate for weight in layer.trainable_weights}
        return found

    def read(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """Return a crop of a part of the photograph, of nearly its aspect."""
        return random_area_crop(encoded, seed, size, area=(self.smallest_area, 1.0), aspect=(3 / 4, 4 / 3))
