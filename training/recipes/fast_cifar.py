"""A short schedule for the CIFAR networks, for people with one CPU; not the paper's.

    keras-convnets train --model ResNet20 --dataset cifar10 --recipe fast_cifar --run runs/fast --set holdout=5000

Expected: 91.5 % top-1 on the 5,000 images held out, in 35 minutes on a CPU of 2 cores (one run; standard error of the
5,000 images 0.4 points). The paper's recipe trains four and a half times as long for 91.25 % on the test images.

One-cycle learning rate (Smith 2018, arXiv:1803.09820) with Nesterov momentum, a larger batch and a stronger weight
decay, on the kernels alone. Crops and flips are those of the paper. `--set precision=mixed_bfloat16` is faster where
the processor computes in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

from keras_convnets.training.recipes.base import SCHEDULES, option
from keras_convnets.training.recipes.resnet_cifar import ResNetCIFAR


@dataclass(frozen=True)
class FastCIFAR(ResNetCIFAR):
    """The recipe; see the module for the command and the expected result.

    `learning_rate`, the highest of the cycle, is 0.3 * batch_size / 256 unless it is set.
    """

    batch_size: int = option(256, "images in a step, over all devices", low=1)
    iterations: int | None = option(None, "length in steps", low=1)
    epochs: float | None = option(40, "length in passes over the training images", low=0)
    schedule: str = option("one_cycle", "of the learning rate: paper, cosine or one_cycle", choices=SCHEDULES)
    nesterov: bool = option(True, "Nesterov's form of the momentum")
    weight_decay: float = option(5e-4, "L2 in the gradient: weight_decay * w is added to dL/dw", low=0)
    weight_decay_scope: str = option("kernels", "which weights decay: all, or kernels", choices=("all", "kernels"))
    warmup: bool | None = option(False, "the paper's start at a tenth of the learning rate; the cycle has its own rise")

    def base_learning_rate(self) -> float:
        """Return the field, or 0.3 for 256 images and in proportion for others."""
        return self.learning_rate if self.learning_rate is not None else 0.3 * self.batch_size / 256
