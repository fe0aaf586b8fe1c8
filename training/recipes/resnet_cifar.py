"""He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2: CIFAR-10.

    keras-convnets train --model ResNet20 --dataset cifar10 --recipe resnet_cifar --run runs/resnet20

Expected (Table 6, test error in percent): ResNet-20 8.75, 32 7.51, 44 7.17, 56 6.97, 110 6.43 (6.61 +- 0.16 over five
runs), 1202 7.93. `--set holdout=5000` gives the 45k/5k split that the paper chose the schedule on. Seen there with
ResNet-20: training error 17.7 % and holdout error 18.2 % after 3,868 iterations, 16.7 % and 20.2 % after 4,219; the
whole schedule takes a CPU of 2 cores about three hours.

"We use a weight decay of 0.0001 and momentum of 0.9 ... mini-batch size of 128 ... learning rate of 0.1, divide it by
10 at 32k and 48k iterations, and terminate training at 64k iterations ... 4 pixels are padded on each side, and a 32x32
crop is randomly sampled from the padded image or its horizontal flip."

Two things differ in form from the paper and are the same in effect, or nearly. The paper subtracts the per-pixel mean
from the images and then pads with zeros. Here normalisation is the network's first layer, so the image is padded with
the training set's mean colour, and the mean image is subtracted after the crop: what the padding leaves is the mean
colour minus the mean image at that place, near zero but not zero, and inside the crop the mean image stays where the
network sees it instead of moving with the crop. And the weight decay is on all weights, gamma and beta of the batch
normalisation included, as in the solvers of the time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.training.augmentation import pad_and_crop, random_flip
from keras_convnets.training.data import DataSet, SizedSplit
from keras_convnets.training.data.splits import of_one_size
from keras_convnets.training.recipes.base import Augmentation, Recipe, option
from keras_convnets.training.schedules import Curve, StepDivision, TrainingErrorWarmup
from keras_convnets.training.seeds import folded

# The paper warms up its 110-layer network; the 1202-layer one "is trained as described above".
WARMUP_FROM_DEPTH = 110


@dataclass(frozen=True)
class ResNetCIFAR(Recipe):
    """The recipe; see the module for the paper's words, the command and the expected result.

    `learning_rate` is 0.1 * batch_size / 128 unless it is set; the schedule is in fractions of the run's length.
    """

    iterations: int | None = option(64_000, "length in steps", low=1)
    weight_decay: float = option(1e-4, "L2 in the gradient: weight_decay * w is added to dL/dw", low=0)
    drops: tuple[float, ...] = option((0.5, 0.75), "fractions of the run at which the rate falls", low=0, high=1)
    drop_factor: float = option(0.1, "what the learning rate is multiplied by at each drop", low=0, high=1)
    pad: int | None = option(None, "pixels padded on each side before the crop; none: an eighth of the side", low=0)
    flip: bool = option(True, "mirror half of the images, where the data allow it")
    warmup: bool | None = option(
        None, "start at a tenth of the rate; none: in the paper's schedule, from 110 layers on"
    )
    warmup_until_error: float = option(0.8, "training error below which the warm-up ends", low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup and not self._may_warm_up:
            raise UserError(
                f"warmup is true, schedule is {self.schedule} and warmup_share is {self.warmup_share:g}; the warm-up "
                "at a tenth of the learning rate belongs to schedule=paper without a warmup_share: set warmup=false."
            )

    @property
    def _may_warm_up(self) -> bool:
        """Whether the paper's warm-up is the only rise of the learning rate."""
        return self.schedule == "paper" and not self.warmup_share

    @property
    def protocol(self) -> str:
        """The evaluation protocol of the expected result: the single view of the 32x32 image."""
        return "cifar"

    def base_learning_rate(self) -> float:
        """Return the field, or 0.1 for 128 images and in proportion for others."""
        return self.learning_rate if self.learning_rate is not None else 0.1 * self.batch_size / 128

    def paper_curve(self, total_steps: int) -> Curve:
        """Return a rate that falls at the fractions of `drops`."""
        return StepDivision(self.base_learning_rate(), total_steps, self.drops, self.drop_factor)

    def paper_warmup(self) -> TrainingErrorWarmup | None:
        """Return the paper's warm-up at a tenth of the base rate, 0.01 for its 0.1, where it is on."""
        return TrainingErrorWarmup(0.1 * self.base_learning_rate(), self.warmup_until_error) if self.warmup else None

    def for_network(self, depth: int) -> ResNetCIFAR:
        """Return the recipe with the warm-up on or off by the depth."""
        deep = depth >= WARMUP_FROM_DEPTH and self._may_warm_up
        warmup = deep if self.warmup is None else self.warmup
        return dataclasses.replace(self, warmup=warmup)

    def preprocessing(self, train: SizedSplit) -> Preprocessing:
        """Return RGB minus the mean image of the training images; its channel means at any other input size."""
        total, count = np.zeros((*train.image_size, 3)), 0
        for images, _ in train.in_order(512):
            total += tf.reduce_sum(tf.cast(images, tf.float64), axis=0).numpy()
            count += int(images.shape[0])
        mean = total / count
        return Preprocessing(mean=tuple(mean.mean(axis=(0, 1))), mean_image=mean.astype(np.float32))

    def augment(
        self, data: DataSet, preprocessing: Preprocessing | None, sample: Callable[[], SizedSplit]
    ) -> Augmentation:
        """Return padding, random crop and, where the labels survive it, the flip."""
        pad = self.pad if self.pad is not None else min(of_one_size(data.split("train")).image_size) // 8
        flip = self.flip and data.flips_keep_labels
        assert preprocessing is not None, "computed by this recipe, or brought by weights"
        # Images are padded as they are stored, in RGB, whatever order the network takes.
        fill = preprocessing.mean if preprocessing.order == "RGB" else preprocessing.mean[::-1]

        def augmented(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            images = pad_and_crop(images, pad, fill, folded(seed, "crop"))
            return random_flip(images, folded(seed, "flip")) if flip else images

        return augmented
