"""The networks of Simonyan and Zisserman 2014 (arXiv:1409.1556), table 1: configurations A, B, D and E.

3x3 convolutions of stride 1, each followed by a ReLU; 2x2 max pooling of stride 2 after each block; fully connected
layers of 4096, 4096 and the classes, with dropout of 0.5 after the first two. The paper starts its deep networks from a
trained shallow one and notes that random initialisation does as well; here it is He's for the convolutions, and the
paper's Gaussian of standard deviation 0.01 with zero biases for the fully connected layers.
"""

from __future__ import annotations

import keras
from keras import layers

from keras_convnets.images.preprocessing import IMAGENET
from keras_convnets.networks.application import Common, application, check_fixed_size, common_arguments, he_normal

__all__ = ["VGG11", "VGG13", "VGG16", "VGG19"]

# Table 1: number of convolutions in each block, whose widths are the second row's.
TABLE = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)
HIDDEN = 4096
# Five poolings halve the sides; one pixel must be left.
MINIMUM_SIDE = 32


def _network(common: Common, depth: int) -> keras.Model:
    inputs, x = common.start((224, 224, 3), MINIMUM_SIDE, IMAGENET)
    for block, (count, width) in enumerate(zip(TABLE[depth], WIDTHS, strict=True), start=1):
        for number in range(1, count + 1):
            x = layers.Conv2D(
                width,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=he_normal(),
                name=f"block{block}_conv{number}",
            )(x)
        x = layers.MaxPooling2D(2, strides=2, name=f"block{block}_pool")(x)
    if not common.include_top:
        return common.finish(inputs, common.without_top(x))
    check_fixed_size(x, common.name)
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc1", "fc2"):
        x = layers.Dense(HIDDEN, activation="relu", kernel_initializer=_gaussian(), name=name)(x)
        x = layers.Dropout(0.5, name=f"{name}_dropout")(x)
    return common.finish(inputs, common.classifier(x, _gaussian()))


def _gaussian() -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=0.01)


@application(common_arguments)
def VGG11(common: Common) -> keras.Model:
    """VGG-11, configuration A of Simonyan and Zisserman 2014 (arXiv:1409.1556), table 1."""
    return _network(common, depth=11)


@application(common_arguments)
def VGG13(common: Common) -> keras.Model:
    """VGG-13, configuration B of Simonyan and Zisserman 2014 (arXiv:1409.1556), table 1."""
    return _network(common, depth=13)


@application(common_arguments)
def VGG16(common: Common) -> keras.Model:
    """VGG-16, configuration D of Simonyan and Zisserman 2014 (arXiv:1409.1556), table 1."""
    return _network(common, depth=16)


@application(common_arguments)
def VGG19(common: Common) -> keras.Model:
    """VGG-19, configuration E of Simonyan and Zisserman 2014 (arXiv:1409.1556), table 1."""
    return _network(common, depth=19)
