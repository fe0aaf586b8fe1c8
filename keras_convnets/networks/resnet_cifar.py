"""The residual and plain networks for CIFAR-10 of "Deep Residual Learning for Image Recognition", section 4.2.

    output map size | 32x32 | 16x16 | 8x8
    layers          | 1+2n  | 2n    | 2n
    filters         | 16    | 32    | 64

6n+2 weighted layers; every shortcut is the identity (option A), so a residual network has exactly the weights of
its plain counterpart. n = 3, 5, 7, 9, 18 and 200 give the depths 20, 32, 44, 56, 110 and 1202.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import CIFAR10, Preprocessing
from keras_convnets.networks.application import Activation, Common, Pooling, Shape, application, he_normal
from keras_convnets.networks.residual import Units
from keras_convnets.weights.loading import WeightsArgument

__all__ = ["CIFARResNet", "ResNet20", "ResNet32", "ResNet44", "ResNet56", "ResNet110", "ResNet1202"]
__all__ += ["CIFARPlainNet", "PlainNet20", "PlainNet32", "PlainNet44", "PlainNet56", "PlainNet110"]

# (stage, filters, stride of its first convolution); conv1, the one layer more of the first column, stands before.
STAGES = (("conv2", 16, 1), ("conv3", 32, 2), ("conv4", 64, 2))

MINIMUM_SIDE = 4
# Keras walks a functional graph recursively: deeper networks are nested, with this many blocks per inner model.
DEEPEST_FLAT = 110
BLOCKS_PER_NEST = 50


def _network(common: Common, depth: int, residual: bool) -> keras.Model:
    n, rest = divmod(depth - 2, 6) if isinstance(depth, int) else (0, 0)
    if rest or n < 1:
        raise UserError(
            f"depth is {depth!r}; the networks of section 4.2 have 6n+2 layers: 8, 14, 20, 26, 32 and so on. "
            "Take one of these."
        )
    units = Units(shortcut="A" if residual else None)
    inputs, x = common.start((32, 32, 3), MINIMUM_SIDE, CIFAR10)
    x = units.conv(x, 16, 3, 1, "conv1")
    x = layers.Activation("relu", name="conv1_relu")(x)
    for stage, filters, stride in STAGES:
        x = _stage(x, units, stage, filters, stride, n, nested=depth > DEEPEST_FLAT)
    if not common.include_top:
        return common.finish(inputs, common.without_top(x))
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return common.finish(inputs, common.classifier(x, he_normal()))


def _stage(x: Any, units: Units, stage: str, filters: int, stride: int, n: int, nested: bool) -> Any:
    def blocks(x: Any, numbers: range) -> Any:
        for number in numbers:
            x = units.basic(x, filters, stride if number == 1 else 1, f"{stage}_block{number}")
        return x

    if not nested:
        return blocks(x, range(1, n + 1))
    for first in range(1, n + 1, BLOCKS_PER_NEST):
        numbers = range(first, min(first + BLOCKS_PER_NEST, n + 1))
        name = f"{stage}_blocks{numbers[0]}_{numbers[-1]}"
        # Named, as Keras would count inputs on, and one network's configuration would differ from the next one's.
        inner = keras.Input(x.shape[1:], dtype=x.dtype, name=f"{name}_input")
        x = keras.Model(inner, blocks(inner, numbers), name=name)(x)
    return x


def _arguments(
    include_top: bool = True,
    weights: WeightsArgument = None,
    input_tensor: Any = None,
    input_shape: Shape = None,
    pooling: Pooling = None,
    classes: int = 10,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
    *,
    include_preprocessing: bool = True,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Declare what the networks of the paper take."""


def _any_depth(
    depth: int,
    include_top: bool = True,
    weights: WeightsArgument = None,
    input_tensor: Any = None,
    input_shape: Shape = None,
    pooling: Pooling = None,
    classes: int = 10,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
    *,
    include_preprocessing: bool = True,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Declare what the networks of any depth take.

    Args:
        depth: number of weighted layers, 6n+2: 8, 14, 20, 26, 32 and so on.
    """


@application(_any_depth, "resnet{depth}")
def CIFARResNet(common: Common, depth: int) -> keras.Model:
    """The residual network of He et al. 2015 (arXiv:1512.03385), section 4.2, option A, at any depth 6n+2."""
    return _network(common, depth, residual=True)


@application(_any_depth, "plainnet{depth}")
def CIFARPlainNet(common: Common, depth: int) -> keras.Model:
    """The plain network of He et al. 2015 (arXiv:1512.03385), section 4.2, at any depth 6n+2."""
    return _network(common, depth, residual=False)


@application(_arguments)
def ResNet20(common: Common) -> keras.Model:
    """ResNet-20 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 3)."""
    return _network(common, 20, residual=True)


@application(_arguments)
def ResNet32(common: Common) -> keras.Model:
    """ResNet-32 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 5)."""
    return _network(common, 32, residual=True)


@application(_arguments)
def ResNet44(common: Common) -> keras.Model:
    """ResNet-44 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 7)."""
    return _network(common, 44, residual=True)


@application(_arguments)
def ResNet56(common: Common) -> keras.Model:
    """ResNet-56 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 9)."""
    return _network(common, 56, residual=True)


@application(_arguments)
def ResNet110(common: Common) -> keras.Model:
    """ResNet-110 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 18)."""
    return _network(common, 110, residual=True)


@application(_arguments)
def ResNet1202(common: Common) -> keras.Model:
    """ResNet-1202 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 200)."""
    return _network(common, 1202, residual=True)


@application(_arguments)
def PlainNet20(common: Common) -> keras.Model:
    """PlainNet-20 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 3)."""
    return _network(common, 20, residual=False)


@application(_arguments)
def PlainNet32(common: Common) -> keras.Model:
    """PlainNet-32 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 5)."""
    return _network(common, 32, residual=False)


@application(_arguments)
def PlainNet44(common: Common) -> keras.Model:
    """PlainNet-44 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 7)."""
    return _network(common, 44, residual=False)


@application(_arguments)
def PlainNet56(common: Common) -> keras.Model:
    """PlainNet-56 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 9)."""
    return _network(common, 56, residual=False)


@application(_arguments)
def PlainNet110(common: Common) -> keras.Model:
    """PlainNet-110 of He et al. 2015 (arXiv:1512.03385), section 4.2 (n = 18)."""
    return _network(common, 110, residual=False)
