"""Szegedy et al. 2014, section 6: GoogLeNet on ImageNet.

    keras-convnets train --model GoogLeNet --dataset imagenet2012 --recipe googlenet --run runs/googlenet

Expected (Table 3, one network, one crop, ILSVRC-2014 validation): top-5 error 10.07 %; ten crops 9.15 %.

"Asynchronous stochastic gradient descent with 0.9 momentum, fixed learning rate schedule (decreasing the learning
rate by 4% every 8 epochs). Polyak averaging was used to create the final model used at inference time"; "patches of
the image whose size is distributed evenly between 8% and 100% of the image area and whose aspect ratio is chosen
randomly between 3/4 and 4/3"; "the photometric distortions by Andrew Howard were useful to combat overfitting";
"random interpolation methods (bilinear, area, nearest neighbor and cubic, with equal probability)"; the auxiliary
losses "were weighted by 0.3".

Otherwise than in the paper: the descent is synchronous. The paper gives neither batch size, first learning rate,
weight decay nor length; here they are those of the BVLC's replication in Caffe: 32, 0.01, 2e-4, and some 64 epochs,
so that the rate falls at every eighth of the run. The average's decay grows to 0.9999 with the steps, so that a short
run does not end with the weights it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.training.augmentation import photometric_distortion
from keras_convnets.training.data import DataSet, SizedSplit
from keras_convnets.training.random_crops import KERNELS, random_area_crop
from keras_convnets.training.recipes.base import Augmentation, option
from keras_convnets.training.recipes.photographs import Photographs
from keras_convnets.training.schedules import Curve, EvenDivision
from keras_convnets.training.seeds import folded

# 64 epochs, 8 of them at each rate.
RATES = 8


@dataclass(frozen=True)
class GoogLeNet(Photographs):
    """The recipe; see the module for the paper's words, the command and the expected result.

    `learning_rate` is 0.01 * batch_size / 32 unless it is set.
    """

    batch_size: int = option(32, "images in a step, over all devices", low=1)
    epochs: float | None = option(64, "length in passes over the training images", low=0)
    weight_decay: float = option(2e-4, "L2 in the gradient: weight_decay * w is added to dL/dw", low=0)
    weight_decay_scope: str = option("kernels", "which weights decay: all, or kernels", choices=("all", "kernels"))
    ema: float | None = option(
        0.9999, "largest decay a step of the weights' average, the final network", low=0, below=1
    )
    auxiliary: float = option(0.3, "weight of each auxiliary classifier's loss; 0: none of them", low=0)
    drop_factor: float = option(
        0.96, "what the learning rate is multiplied by at every eighth of the run", low=0, high=1
    )
    photometric: bool = option(True, "distort brightness, contrast and colour")

    def base_learning_rate(self) -> float:
        """Return the field, or 0.01 for 32 images and in proportion for others."""
        return self.learning_rate if self.learning_rate is not None else 0.01 * self.batch_size / 32

    def paper_curve(self, total_steps: int) -> Curve:
        """Return a rate that falls by 4 % after each eighth of the run."""
        return EvenDivision(self.base_learning_rate(), total_steps, RATES, self.drop_factor)

    def builder_arguments(self, architecture: str) -> dict[str, Any]:
        """Return the auxiliary classifiers, of the network that has them."""
        return {"auxiliary": True} if self._has_auxiliary(architecture) else {}

    def loss_weights(self, architecture: str) -> Mapping[str, float]:
        """Return 1 for the classifier and the auxiliary weight for the two others."""
        others = ("aux1_predictions", "aux2_predictions") if self._has_auxiliary(architecture) else ()
        return {"predictions": 1.0, **{name: self.auxiliary for name in others}}

    def _has_auxiliary(self, architecture: str) -> bool:
        return architecture == "GoogLeNet" and self.auxiliary > 0

    def read(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """Return a crop of 8 to 100 % of the area, resized by one of the four kernels."""
        return random_area_crop(encoded, seed, size, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), kernels=KERNELS)

    def augment(
        self, data: DataSet, preprocessing: Preprocessing | None, sample: Callable[[], SizedSplit]
    ) -> Augmentation:
        """Return the flip and the photometric distortions."""
        before = super().augment(data, preprocessing, sample)
        if not self.photometric:
            return before
        return lambda images, seed: photometric_distortion(before(images, seed), folded(seed, "photometric"))
