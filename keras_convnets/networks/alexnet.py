"""The network of "ImageNet Classification with Deep Convolutional Neural Networks", Krizhevsky et al. 2012.

Figure 2: conv1 96 of 11x11 stride 4; conv2 256 of 5x5 in two groups; conv3 384 of 3x3; conv4 384 and conv5 256 of 3x3
in two groups: the two towers, each on its GPU. Response normalisation follows the ReLUs of conv1 and conv2 (section
3.3), overlapping 3x3/2 pooling follows both and conv5 (section 3.4). Two hidden fully connected layers of 4096 with
dropout 0.5. Weights from a Gaussian of standard deviation 0.01; biases 1 in conv2, conv4, conv5 and the hidden layers,
0 elsewhere (section 5).

The paper's 224x224 input gives its 55x55 maps only with padding: (1, 2) on the sides; 227x227 needs none. At any size
conv1 is padded by the 0 to 3 pixels that let its windows cover the image exactly, the odd one on the right and below.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from keras_convnets.images.preprocessing import IMAGENET, Preprocessing
from keras_convnets.networks.application import Activation, Common, Pooling, Shape, application, check_fixed_size
from keras_convnets.networks.layers import LRN, GroupedConv2D, LRNConstants
from keras_convnets.weights.loading import WeightsArgument

__all__ = ["AlexNet", "AlexNetOneTower", "AlexNetSixConvs"]

# Figure 2 and section 3.5: (name, filters, kernel, stride, groups, bias at the start, what follows)
TABLE = (
    ("conv1", 96, 11, 4, 1, 0, ("norm", "pool")),
    ("conv2", 256, 5, 1, 2, 1, ("norm", "pool")),
    ("conv3", 384, 3, 1, 1, 0, ()),
    ("conv4", 384, 3, 1, 2, 1, ()),
    ("conv5", 256, 3, 1, 2, 1, ("pool",)),
)
# The networks pre-trained on all of ImageNet have "an extra sixth convolutional layer over the last pooling layer"
# (section 6.1). The paper gives no size; 256 filters of 3x3 over both towers keep what the pooling gives.
SIXTH = ("conv6", 256, 3, 1, 1, 1, ())
HIDDEN = 4096
MINIMUM_SIDE = 64
# An input of unknown size is padded as the paper's 224x224.
PAD_OF_UNKNOWN = 3


def _network(common: Common, lrn: LRNConstants | None, groups: bool = True, sixth: bool = False) -> keras.Model:
    inputs, x = common.start((224, 224, 3), MINIMUM_SIDE, IMAGENET)
    x = layers.ZeroPadding2D(_conv1_padding(x.shape[1:3]), name="conv1_pad")(x)
    for name, filters, kernel, stride, towers, bias, following in TABLE + ((SIXTH,) if sixth else ()):
        x = GroupedConv2D(
            filters,
            kernel,
            strides=stride,
            padding="valid" if stride > 1 else "same",
            groups=towers if groups else 1,
            activation="relu",
            kernel_initializer=_gaussian(),
            bias_initializer=keras.initializers.Constant(bias),
            name=name,
        )(x)
        number = name.removeprefix("conv")
        if "norm" in following:
            x = LRN(**(lrn or {}), name=f"norm{number}")(x)
        if "pool" in following:
            x = layers.MaxPooling2D(3, strides=2, name=f"pool{number}")(x)
    if not common.include_top:
        return common.finish(inputs, common.without_top(x))
    check_fixed_size(x, common.name)
    x = layers.Flatten(name="flatten")(x)
    ones = keras.initializers.Constant(1)
    for name in ("fc6", "fc7"):
        x = layers.Dense(HIDDEN, activation="relu", kernel_initializer=_gaussian(), bias_initializer=ones, name=name)(x)
        x = layers.Dropout(0.5, name=f"{name}_dropout")(x)
    return common.finish(inputs, common.classifier(x, _gaussian()))


def _conv1_padding(size: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ((top, bottom), (left, right)): what lets 11x11 windows of stride 4 cover the image exactly."""
    rows, columns = (PAD_OF_UNKNOWN if side is None else (11 - side) % 4 for side in size)
    return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)


def _gaussian() -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=0.01)


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
    lrn: LRNConstants | None = None,
    include_preprocessing: bool = True,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Declare what these networks take.

    Args:
        lrn: other constants of the response normalisation, such as {"k": 1, "alpha": 2e-5}; by default the paper's
            n=5, k=2, alpha=1e-4, beta=0.75.
    """


@application(_arguments)
def AlexNet(common: Common, lrn: LRNConstants | None) -> keras.Model:
    """AlexNet, the network of Krizhevsky et al. 2012, figure 2."""
    return _network(common, lrn)


@application(_arguments)
def AlexNetOneTower(common: Common, lrn: LRNConstants | None) -> keras.Model:
    """The network of Krizhevsky et al. 2012 without groups: every filter sees all maps."""
    return _network(common, lrn, groups=False)


@application(_arguments)
def AlexNetSixConvs(common: Common, lrn: LRNConstants | None) -> keras.Model:
    """The network of Krizhevsky et al. 2012 with a sixth convolution over the last pooling (section 6.1, CNN*)."""
    return _network(common, lrn, sixth=True)
