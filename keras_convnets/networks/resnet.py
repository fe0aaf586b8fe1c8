"""The residual and plain networks for ImageNet of "Deep Residual Learning for Image Recognition", table 1.

Batch normalisation after every convolution, no convolution biases, He initialisation (fan-in, section 3.4), the stride
of a bottleneck on its first 1x1 convolution. Shortcuts by default as option B; A and C by `shortcut=`.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from keras_convnets.images.preprocessing import IMAGENET, Preprocessing
from keras_convnets.networks.application import (
    Activation,
    Common,
    Pooling,
    Shape,
    application,
    common_arguments,
    he_normal,
)
from keras_convnets.networks.residual import Shortcut, Units
from keras_convnets.weights.loading import WeightsArgument

__all__ = ["PlainNet18", "PlainNet34", "ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152"]
__all__ += ["ResNet50v1_5", "ResNet101v1_5", "ResNet152v1_5"]

# Table 1: (kind of block, number of blocks in conv2_x, conv3_x, conv4_x, conv5_x).
TABLE = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
# (stage, filters of its first layers, stride of its first block)
STAGES = (("conv2", 64, 1), ("conv3", 128, 2), ("conv4", 256, 2), ("conv5", 512, 2))

# Five halvings leave one pixel; below that the stages would no longer differ in size.
MINIMUM_SIDE = 32


def _network(common: Common, depth: int, shortcut: Shortcut | None, stride_on_3x3: bool = False) -> keras.Model:
    kind, counts = TABLE[depth]
    units = Units(shortcut, stride_on_3x3)
    add_block = getattr(units, kind)
    inputs, x = common.start((224, 224, 3), MINIMUM_SIDE, IMAGENET)
    x = units.conv(x, 64, 7, 2, "conv1")
    x = layers.Activation("relu", name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for (stage, filters, stride), count in zip(STAGES, counts, strict=True):
        for number in range(1, count + 1):
            x = add_block(x, filters, stride if number == 1 else 1, f"{stage}_block{number}")
    if not common.include_top:
        return common.finish(inputs, common.without_top(x))
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return common.finish(inputs, common.classifier(x, he_normal()))


def _arguments(
    include_top: bool = True,
    weights: WeightsArgument = None,
    input_tensor: Any = None,
    input_shape: Shape = None,
    pooling: Pooling = None,
    classes: int = 1000,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
    *,
    shortcut: Shortcut = "B",
    include_preprocessing: bool = True,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Declare what the residual networks take.

    Args:
        shortcut: "A", identity with zero channels; "B", projections where the dimensions grow; "C", everywhere.
    """


@application(_arguments)
def ResNet18(common: Common, shortcut: Shortcut) -> keras.Model:
    """ResNet-18 of He et al. 2015 (arXiv:1512.03385), table 1."""
    return _network(common, 18, shortcut)


@application(_arguments)
def ResNet34(common: Common, shortcut: Shortcut) -> keras.Model:
    """ResNet-34 of He et al. 2015 (arXiv:1512.03385), table 1."""
    return _network(common, 34, shortcut)


@application(_arguments)
def ResNet50(common: Common, shortcut: Shortcut) -> keras.Model:
    """ResNet-50 of He et al. 2015 (arXiv:1512.03385), table 1."""
    return _network(common, 50, shortcut)


@application(_arguments)
def ResNet101(common: Common, shortcut: Shortcut) -> keras.Model:
    """ResNet-101 of He et al. 2015 (arXiv:1512.03385), table 1."""
    return _network(common, 101, shortcut)


@application(_arguments)
def ResNet152(common: Common, shortcut: Shortcut) -> keras.Model:
    """ResNet-152 of He et al. 2015 (arXiv:1512.03385), table 1."""
    return _network(common, 152, shortcut)


@application(_arguments)
def ResNet50v1_5(common: Common, shortcut: Shortcut) -> keras.Model:
    """ResNet-50 v1.5, not the paper's but its common variant: a bottleneck's stride on the 3x3 convolution."""
    return _network(common, 50, shortcut, stride_on_3x3=True)


@application(_arguments)
def ResNet101v1_5(common: Common, shortcut: Shortcut) -> keras.Model:
    """ResNet-101 v1.5, not the paper's but its common variant: a bottleneck's stride on the 3x3 convolution."""
    return _network(common, 101, shortcut, stride_on_3x3=True)


@application(_arguments)
def ResNet152v1_5(common: Common, shortcut: Shortcut) -> keras.Model:
    """ResNet-152 v1.5, not the paper's but its common variant: a bottleneck's stride on the 3x3 convolution."""
    return _network(common, 152, shortcut, stride_on_3x3=True)


@application(common_arguments)
def PlainNet18(common: Common) -> keras.Model:
    """Plain-18 of He et al. 2015 (arXiv:1512.03385), table 1: the residual network without its shortcuts."""
    return _network(common, 18, shortcut=None)


@application(common_arguments)
def PlainNet34(common: Common) -> keras.Model:
    """Plain-34 of He et al. 2015 (arXiv:1512.03385), table 1: the residual network without its shortcuts."""
    return _network(common, 34, shortcut=None)
