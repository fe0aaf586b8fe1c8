"""The residual and plain networks for CIFAR-10 of "Deep Residual Learning for Image Recognition", section 4.2.

    output map size | 32x32 | 16x16 | 8x8
    layers          | 1+2n  | 2n    | 2n
    filters         | 16    | 32    | 64

6n+2 weighted layers; every shortcut is the identity (option A), so a residual network has exactly the weights of
its plain counterpart. n = 3, 5, 7, 9, 18 and 200 give the depths 20, 32, 44, 56, 110 and 1202.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_convnets import preprocessing as presets
from keras_convnets.assembly import classifier, image_input, source_input
from keras_convnets.errors import UserError
from keras_convnets.layers import ShortcutA
from keras_convnets.preprocessing import Preprocessing
from keras_convnets.weights import choose_preprocessing, load_weights

# (stage, filters, stride of its first convolution); conv1, the one layer more of the first column, stands before.
STAGES = (("conv2", 16, 1), ("conv3", 32, 2), ("conv4", 64, 2))

MINIMUM_SIDE = 4
# Keras walks a functional graph recursively: deeper networks are nested, so many blocks to an inner model.
DEEPEST_FLAT = 110
BLOCKS_PER_NEST = 50


def _he_normal() -> keras.initializers.Initializer:
    """He et al. 2015 (arXiv:1502.01852), eq. 10: Gaussian, not truncated, variance 2 / fan-in."""
    return keras.initializers.VarianceScaling(scale=2.0, mode="fan_in", distribution="untruncated_normal")


def _conv_bn(x: Any, filters: int, stride: int, name: str) -> Any:
    """Add a 3x3 convolution without bias and its batch normalisation; at stride 2 with symmetric padding."""
    if stride > 1:
        # TensorFlow's "same" pads only right and below at stride 2, which is another network.
        x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    x = layers.Conv2D(
        filters,
        3,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer=_he_normal(),
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def _block(x: Any, filters: int, stride: int, residual: bool, name: str) -> Any:
    """Add two 3x3 layers and, in a residual network, the shortcut around them."""
    shortcut = x
    x = _conv_bn(x, filters, stride, f"{name}_1")
    x = layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = _conv_bn(x, filters, 1, f"{name}_2")
    if residual:
        if shortcut.shape[-1] != filters or stride > 1:
            shortcut = ShortcutA(filters, stride, name=f"{name}_0_shortcut")(shortcut)
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def _blocks(x: Any, numbers: range, stage: str, filters: int, stride: int, residual: bool) -> Any:
    for number in numbers:
        x = _block(x, filters, stride if number == 1 else 1, residual, f"{stage}_block{number}")
    return x


def _stages(x: Any, n: int, residual: bool, nested: bool) -> Any:
    for stage, filters, stride in STAGES:
        if not nested:
            x = _blocks(x, range(1, n + 1), stage, filters, stride, residual)
            continue
        for first in range(1, n + 1, BLOCKS_PER_NEST):
            numbers = range(first, min(first + BLOCKS_PER_NEST, n + 1))
            inputs = keras.Input(x.shape[1:], dtype=x.dtype)
            outputs = _blocks(inputs, numbers, stage, filters, stride, residual)
            x = keras.Model(inputs, outputs, name=f"{stage}_blocks{numbers[0]}_{numbers[-1]}")(x)
    return x


def _network(
    depth: int,
    residual: bool,
    *,
    include_top: bool,
    weights: Any,
    input_tensor: Any,
    input_shape: tuple[int | None, ...] | None,
    pooling: str | None,
    classes: int,
    classifier_activation: Any,
    name: str,
    include_preprocessing: bool,
    preprocessing: Preprocessing | None,
) -> keras.Model:
    n, rest = divmod(depth - 2, 6) if isinstance(depth, int) else (0, 0)
    if rest or n < 1:
        raise UserError(
            f"depth is {depth!r}; the networks of section 4.2 have 6n+2 layers: 8, 14, 20, 26, 32 and so on. "
            "Take one of these."
        )
    if include_preprocessing:
        preprocessing = choose_preprocessing(preprocessing, weights, presets.CIFAR10)
    elif preprocessing is not None:
        raise UserError("preprocessing was given with include_preprocessing=False; give one of the two.")
    inputs, x = image_input(input_tensor, input_shape, (32, 32, 3), MINIMUM_SIDE, preprocessing)
    x = _conv_bn(x, 16, 1, "conv1")
    x = layers.Activation("relu", name="conv1_relu")(x)
    x = _stages(x, n, residual, nested=depth > DEEPEST_FLAT)
    x = classifier(
        x,
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        activation=classifier_activation,
        initializer=_he_normal(),
    )
    model = keras.Model(source_input(inputs), x, name=name)
    load_weights(model, weights)
    return model


_ARGUMENTS = """

    Args:
        include_top: whether the global average pooling, the linear layer and the softmax are there.
        weights: None (He initialisation) or the path of a .weights.h5 or .keras file.
        input_tensor: a Keras tensor to use as the input.
        input_shape: (height, width, 3), by default (32, 32, 3); sides of at least 4, or None for any.
        pooling: without top: None for the feature map [batch, h, w, 64], "avg" or "max" for [batch, 64].
        classes: number of classes.
        classifier_activation: "softmax", or None for logits.
        name: the model's name.
        include_preprocessing: whether the first layer normalises RGB 0-255; else the bare network.
        preprocessing: the `Preprocessing` of that layer; by default that of the .keras file given as weights, else
            minus CIFAR-10's channel means.

    Returns:
        A functional `keras.Model`: [batch, H, W, 3], RGB in 0-255, uint8 or float, to probabilities
        [batch, classes], float32.

    Raises:
        UserError: a depth, shape, pooling or weights file that does not fit.

    Source: arXiv:1512.03385, section 4.2.

    Example:
        >>> model = {builder}(classes=100, input_shape=(64, 64, 3))
"""


def _family(residual: bool) -> Callable[..., keras.Model]:
    kind = "ResNet" if residual else "PlainNet"

    def build(
        depth,
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=10,
        classifier_activation="softmax",
        name=None,
        *,
        include_preprocessing=True,
        preprocessing=None,
    ):
        return _network(
            depth,
            residual,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name or f"{kind.lower()}{depth}",
            include_preprocessing=include_preprocessing,
            preprocessing=preprocessing,
        )

    build.__name__ = build.__qualname__ = f"CIFAR{kind}"
    described = "residual network, option-A shortcuts" if residual else "plain network, no shortcuts"
    depth_line = "    Args:\n        depth: number of weighted layers, 6n+2.\n"
    arguments = _ARGUMENTS.replace("    Args:\n", depth_line).replace("{builder}(", f"{build.__name__}(26, ")
    build.__doc__ = f"The {described}, of He et al. 2015, section 4.2, at any depth 6n+2." + arguments
    return build


CIFARResNet = _family(residual=True)
CIFARPlainNet = _family(residual=False)


def _variant(family: Callable[..., keras.Model], depth: int) -> Callable[..., keras.Model]:
    kind = family.__name__.removeprefix("CIFAR")
    default_name = f"{kind.lower()}{depth}"

    def build(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=10,
        classifier_activation="softmax",
        name=default_name,
        *,
        include_preprocessing=True,
        preprocessing=None,
    ):
        return family(
            depth,
            include_top,
            weights,
            input_tensor,
            input_shape,
            pooling,
            classes,
            classifier_activation,
            name,
            include_preprocessing=include_preprocessing,
            preprocessing=preprocessing,
        )

    build.__name__ = build.__qualname__ = f"{kind}{depth}"
    build.__doc__ = f"{kind}-{depth} of He et al. 2015, section 4.2 (n = {(depth - 2) // 6})." + _ARGUMENTS.replace(
        "{builder}", build.__name__
    )
    return build


ResNet20 = _variant(CIFARResNet, 20)
ResNet32 = _variant(CIFARResNet, 32)
ResNet44 = _variant(CIFARResNet, 44)
ResNet56 = _variant(CIFARResNet, 56)
ResNet110 = _variant(CIFARResNet, 110)
ResNet1202 = _variant(CIFARResNet, 1202)
PlainNet20 = _variant(CIFARPlainNet, 20)
PlainNet32 = _variant(CIFARPlainNet, 32)
PlainNet44 = _variant(CIFARPlainNet, 44)
PlainNet56 = _variant(CIFARPlainNet, 56)
PlainNet110 = _variant(CIFARPlainNet, 110)
