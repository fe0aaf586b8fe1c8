"""Krizhevsky, Sutskever and Hinton 2012, sections 4.1, 4.2 and 5: AlexNet on ImageNet.

    keras-convnets train --model AlexNet --dataset imagenet2012 --recipe alexnet --run runs/alexnet

Expected (Table 2, one network, ten crops, ILSVRC-2012 validation): top-1 error 40.7 %, top-5 18.2 %.

"We first rescaled the image such that the shorter side was of length 256, and then cropped out the central 256x256
patch"; "random 224x224 patches (and their horizontal reflections)"; to each image multiples of the pixels' principal
components "times a random variable drawn from a Gaussian with mean zero and standard deviation 0.1", once an image;
batch 128, momentum 0.9, weight decay 0.0005, v <- 0.9 v - 0.0005 e w - e dL/dw; "divide the learning rate by 10 when
the validation error rate stopped improving ... initialized at 0.01 and reduced three times"; "roughly 90 cycles".

Otherwise than in the paper: the mean is one number a channel, not an image, because it is the network's first layer and
the crops move under it; the validation images are held out of the training set, 4 % of it; the components are computed
from pixels scaled to 0-1, and the shift is multiplied by 255: in 0-255 units the formula would destroy the image. The
paper watched its plateaus by hand; here one is a twentieth of the run without a better holdout.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from keras_convnets.training.random_crops import random_square_crop
from keras_convnets.training.recipes.base import option
from keras_convnets.training.recipes.photographs import DividedOnPlateaus, Photographs

SQUARE = 256


@dataclass(frozen=True)
class AlexNet(Photographs, DividedOnPlateaus):
    """The recipe; see the module for the paper's words, the command and the expected result.

    `learning_rate` is 0.01 * batch_size / 128 unless it is set.
    """

    epochs: float | None = option(90, "length in passes over the training images", low=0)
    weight_decay: float = option(5e-4, "L2 in the gradient: weight_decay * w is added to dL/dw", low=0)
    weight_decay_scope: str = option("kernels", "which weights decay: all, or kernels", choices=("all", "kernels"))
    holdout: float = option(0.04, "training images held out to see the plateau: a number, or a fraction below 1", low=0)
    colour_shift: float = option(0.1, "standard deviation of the shift along the colours' principal components", low=0)

    @property
    def protocol(self) -> str:
        """The evaluation protocol of the expected result: ten crops."""
        return "ten_crop"

    def base_learning_rate(self) -> float:
        """Return the field, or 0.01 for 128 images and in proportion for others."""
        return self.learning_rate if self.learning_rate is not None else 0.01 * self.batch_size / 128

    def read(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """Return a random crop of the central square; at another input size the square grows or shrinks with it."""
        return random_square_crop(encoded, seed, size=size, square=max(size, round(SQUARE * size / 224)))
