"""He et al. 2015, section 3.4: the residual and plain networks on ImageNet.

    keras-convnets train --model ResNet50 --dataset imagenet2012 --recipe resnet_imagenet --run runs/resnet50

Expected (Table 3, ten crops, ILSVRC-2012 validation): ResNet-34 B top-1 error 24.52 %, ResNet-50 22.85 %, 101 21.75 %,
152 21.43 %.

"The image is resized with its shorter side randomly sampled in [256, 480] for scale augmentation. A 224x224 crop is
randomly sampled from an image or its horizontal flip, with the per-pixel mean subtracted. The standard color
augmentation in [AlexNet] is used. ... SGD with a mini-batch size of 256. The learning rate starts from 0.1 and is
divided by 10 when the error plateaus, and the models are trained for up to 60x10^4 iterations. We use a weight decay
of 0.0001 and a momentum of 0.9. We do not use dropout."

Otherwise than in the paper: the mean is one number a channel, because it is the network's first layer and the crops
move under it; the error is seen on 4 % of the training images, which are held out.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from keras_convnets.training.random_crops import random_scale_crop
from keras_convnets.training.recipes.base import option
from keras_convnets.training.recipes.photographs import DividedOnPlateaus, Photographs

SHORTER = (256, 480)


@dataclass(frozen=True)
class ResNetImageNet(Photographs, DividedOnPlateaus):
    """The recipe; see the module for the paper's words, the command and the expected result.

    `learning_rate` is 0.1 * batch_size / 256 unless it is set.
    """

    batch_size: int = option(256, "images in a step, over all devices", low=1)
    iterations: int | None = option(600_000, "length in steps", low=1)
    weight_decay: float = option(1e-4, "L2 in the gradient: weight_decay * w is added to dL/dw", low=0)
    holdout: float = option(0.04, "training images held out to see the plateau: a number, or a fraction below 1", low=0)
    colour_shift: float = option(0.1, "standard deviation of the shift along the colours' principal components", low=0)

    @property
    def protocol(self) -> str:
        """The evaluation protocol of the expected result: ten crops."""
        return "ten_crop"

    def base_learning_rate(self) -> float:
        """Return the field, or 0.1 for 256 images and in proportion for others."""
        return self.learning_rate if self.learning_rate is not None else 0.1 * self.batch_size / 256

    def read(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """Return a random crop of the image at a random scale; scales keep their ratio to the input size."""
        return random_scale_crop(encoded, seed, size=size, shorter=tuple(round(side * size / 224) for side in SHORTER))
