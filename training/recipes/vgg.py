"""Simonyan and Zisserman 2014, section 3.1: the VGG networks on ImageNet.

    keras-convnets train --model VGG16 --dataset imagenet2012 --recipe vgg --run runs/vgg16

Expected (Table 3, one scale Q = 384, training scales S in [256, 512], ILSVRC-2012 validation): VGG-16 top-1 error
25.6 %, top-5 8.1 %; VGG-19 25.5 % and 8.0 %.

Batch 256, momentum 0.9, weight decay 5e-4, dropout 0.5 in the network; "the learning rate was initially set to 0.01,
and then decreased by a factor of 10 when the validation set accuracy stopped improving. In total, the learning rate
was decreased 3 times, and the learning was stopped after 370K iterations (74 epochs)". Each image is "individually
rescaled by randomly sampling S from a certain range [256, 512]", a random 224 crop of it is flipped and has its
colours shifted.

Otherwise than in the paper: no network is initialised from a shallower trained one, but as keras_convnets.networks.vgg
says, and because He's initialisation keeps the scale of the input, the channels are also divided by their standard
deviations; the validation images are held out of the training set, 4 % of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from keras_convnets.training.random_crops import random_scale_crop
from keras_convnets.training.recipes.base import option
from keras_convnets.training.recipes.photographs import DividedOnPlateaus, Photographs

SHORTER = (256, 512)


@dataclass(frozen=True)
class VGG(Photographs, DividedOnPlateaus):
    """The recipe; see the module for the paper's words, the command and the expected result.

    `learning_rate` is 0.01 * batch_size / 256 unless it is set.
    """

    batch_size: int = option(256, "images in a step, over all devices", low=1)
    iterations: int | None = option(370_000, "length in steps", low=1)
    weight_decay: float = option(5e-4, "L2 in the gradient: weight_decay * w is added to dL/dw", low=0)
    weight_decay_scope: str = option("kernels", "which weights decay: all, or kernels", choices=("all", "kernels"))
    holdout: float = option(0.04, "training images held out to see the plateau: a number, or a fraction below 1", low=0)
    colour_shift: float = option(0.1, "standard deviation of the shift along the colours' principal components", low=0)

    @property
    def protocol(self) -> str:
        """The evaluation protocol of the expected result: fully convolutional at one scale."""
        return "dense(scales=384)"

    def base_learning_rate(self) -> float:
        """Return the field, or 0.01 for 256 images and in proportion for others."""
        return self.learning_rate if self.learning_rate is not None else 0.01 * self.batch_size / 256

    @property
    def divides_by_deviation(self) -> bool:
        """Whether the network's first layer also divides by the channels' standard deviations: yes, see the module."""
        return True

    def read(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """Return a random crop of the image at a random scale; scales keep their ratio to the input size."""
        return random_scale_crop(encoded, seed, size=size, shorter=tuple(round(side * size / 224) for side in SHORTER))
