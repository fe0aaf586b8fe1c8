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
from keras_convnets.images import preprocessing
from keras_convnets.networks.application import Common, application, he_normal
from keras_convnets.networks.residual import Units

# (stage, filters, stride of its first convolution); conv1, the one layer more of the first column, stands before.
STAGES = (("conv2", 16, 1), ("conv3", 32, 2), ("conv4", 64, 2))

MINIMUM_SIDE = 4
# Keras walks a functional graph recursively: deeper networks are nested, so many blocks to an inner model.
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
    inputs, x = common.start((32, 32, 3), MINIMUM_SIDE, preprocessing.CIFAR10)
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
        inner = keras.Input(x.shape[1:], dtype=x.dtype)
        x = keras.Model(inner, blocks(inner, numbers), name=f"{stage}_blocks{numbers[0]}_{numbers[-1]}")(x)
    return x


_SOURCE = "of He et al. 2015 (arXiv:1512.03385), section 4.2"


def _family(kind: str, residual: bool):
    described = "residual network, option-A shortcuts," if residual else "plain network, without shortcuts,"
    return application(
        _network,
        f"CIFAR{kind}",
        f"The {described} {_SOURCE}, at any depth 6n+2, the first argument.",
        classes=10,
        leading=("depth",),
        stem=kind.lower(),
        fixed={"residual": residual},
    )


def _variant(kind: str, depth: int):
    summary = f"{kind}-{depth} {_SOURCE} (n = {(depth - 2) // 6})."
    fixed = {"residual": kind == "ResNet", "depth": depth}
    return application(_network, f"{kind}{depth}", summary, classes=10, fixed=fixed)


CIFARResNet = _family("ResNet", residual=True)
CIFARPlainNet = _family("PlainNet", residual=False)

ResNet20 = _variant("ResNet", 20)
ResNet32 = _variant("ResNet", 32)
ResNet44 = _variant("ResNet", 44)
ResNet56 = _variant("ResNet", 56)
ResNet110 = _variant("ResNet", 110)
ResNet1202 = _variant("ResNet", 1202)
PlainNet20 = _variant("PlainNet", 20)
PlainNet32 = _variant("PlainNet", 32)
PlainNet44 = _variant("PlainNet", 44)
PlainNet56 = _variant("PlainNet", 56)
PlainNet110 = _variant("PlainNet", 110)
