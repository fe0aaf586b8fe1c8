"""The residual and plain networks for ImageNet of "Deep Residual Learning for Image Recognition", table 1.

Batch normalisation after every convolution, no convolution biases, He initialisation (fan-in, section 3.4), the stride
of a bottleneck on its first 1x1 convolution. Shortcuts by default as option B; A and C by `shortcut=`.
"""

from __future__ import annotations

import keras
from keras import layers

from keras_convnets.images import preprocessing
from keras_convnets.networks.application import Common, application, he_normal
from keras_convnets.networks.residual import Units

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


def _network(common: Common, depth: int, shortcut: str | None, stride_on_3x3: bool = False) -> keras.Model:
    kind, counts = TABLE[depth]
    units = Units(shortcut, stride_on_3x3)
    add_block = getattr(units, kind)
    inputs, x = common.start((224, 224, 3), MINIMUM_SIDE, preprocessing.IMAGENET)
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


_SOURCE = "of He et al. 2015 (arXiv:1512.03385), table 1"
_SHORTCUT = """
        shortcut: "A", identity with zero channels; "B", projections where the dimensions grow; "C", everywhere."""


def _resnet(depth: int):
    summary = f"ResNet-{depth} {_SOURCE}."
    return application(_network, f"ResNet{depth}", summary, documented=_SHORTCUT, fixed={"depth": depth}, shortcut="B")


def _plain(depth: int):
    summary = f"Plain-{depth} {_SOURCE}: the residual network without its shortcuts."
    return application(_network, f"PlainNet{depth}", summary, fixed={"depth": depth, "shortcut": None})


def _v1_5(depth: int):
    summary = (
        f"Not the paper's ResNet-{depth} but its common variant (v1.5): a bottleneck's stride stands on the 3x3\n"
        "    convolution instead of the first 1x1."
    )
    fixed = {"depth": depth, "stride_on_3x3": True}
    return application(_network, f"ResNet{depth}v1_5", summary, documented=_SHORTCUT, fixed=fixed, shortcut="B")


ResNet18 = _resnet(18)
ResNet34 = _resnet(34)
ResNet50 = _resnet(50)
ResNet101 = _resnet(101)
ResNet152 = _resnet(152)
ResNet50v1_5 = _v1_5(50)
ResNet101v1_5 = _v1_5(101)
ResNet152v1_5 = _v1_5(152)
PlainNet18 = _plain(18)
PlainNet34 = _plain(34)
