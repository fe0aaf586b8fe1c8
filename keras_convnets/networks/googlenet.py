"""GoogLeNet of Szegedy et al. 2014, "Going Deeper with Convolutions" (arXiv:1409.4842), table 1 and figure 3.

A ReLU after every convolution, the reductions and projections included. Response normalisation after the first pooling
and before the second (figure 3). The max poolings between stages are unpadded and round up: a last window may reach
over the border. The paper gives no initialisation; here it is Glorot's, with zero biases.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from keras_convnets.images.preprocessing import IMAGENET, Preprocessing
from keras_convnets.networks.application import Activation, Common, Pooling, Shape, application, check_fixed_size
from keras_convnets.networks.functional import Functional
from keras_convnets.networks.layers import LRN, LRNConstants
from keras_convnets.networks.spec import ModelSpec
from keras_convnets.weights.loading import WeightsArgument

__all__ = ["GoogLeNet", "without_auxiliary"]

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj; None is the max pooling 3x3/2 between two rows.
TABLE = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "pool3": None,
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "pool4": None,
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# "on top of the output of the Inception (4a) and (4d) modules" (section 5)
AUXILIARY = {"4a": "aux1", "4d": "aux2"}
MINIMUM_SIDE = 31
# The auxiliary heads' 5x5 pooling needs 5x5 maps at stride 16.
MINIMUM_SIDE_WITH_AUXILIARY = 79


def _network(common: Common, auxiliary: bool, lrn: LRNConstants | None) -> keras.Model:
    auxiliary = auxiliary and common.include_top
    minimum = MINIMUM_SIDE_WITH_AUXILIARY if auxiliary else MINIMUM_SIDE
    inputs, x = common.start((224, 224, 3), minimum, IMAGENET)
    constants = lrn or {}
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = _conv(x, 64, 7, "conv1", strides=2, padding="valid")
    x = _pool(x, "pool1")
    x = LRN(**constants, name="norm1")(x)
    x = _conv(x, 64, 1, "conv2_reduce")
    x = _conv(x, 192, 3, "conv2")
    x = LRN(**constants, name="norm2")(x)
    x = _pool(x, "pool2")
    outputs = {}
    for row, widths in TABLE.items():
        x = _pool(x, row) if widths is None else _inception(x, f"inception_{row}", *widths)
        if auxiliary and row in AUXILIARY:
            outputs[AUXILIARY[row]] = _auxiliary_head(common, x, AUXILIARY[row])
    if not common.include_top:
        return common.finish(inputs, common.without_top(x))
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dropout(0.4, name="dropout")(x)
    probabilities = common.classifier(x, "glorot_uniform")
    return common.finish(inputs, {"probabilities": probabilities, **outputs} if auxiliary else probabilities)


def _conv(x: Any, filters: int, kernel: int, name: str, **arguments: Any) -> Any:
    arguments = {"padding": "same", **arguments}
    return layers.Conv2D(filters, kernel, activation="relu", name=name, **arguments)(x)


def _pool(x: Any, name: str) -> Any:
    """Add 3x3/2 max pooling that rounds up.

    One row and column more on the right and below make rounding down give what rounding up would, at even and odd
    sizes; zeros there change no maximum, because what comes in is never negative.
    """
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(x)
    return layers.MaxPooling2D(3, strides=2, name=name)(x)


def _inception(x: Any, name: str, n1: int, reduce3: int, n3: int, reduce5: int, n5: int, projection: int) -> Any:
    """Add an Inception module; the arguments are its row of table 1."""
    branch1 = _conv(x, n1, 1, f"{name}_1x1")
    branch3 = _conv(_conv(x, reduce3, 1, f"{name}_3x3_reduce"), n3, 3, f"{name}_3x3")
    branch5 = _conv(_conv(x, reduce5, 1, f"{name}_5x5_reduce"), n5, 5, f"{name}_5x5")
    pooled = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_pool")(x)
    return layers.Concatenate(name=name)([branch1, branch3, branch5, _conv(pooled, projection, 1, f"{name}_pool_proj")])


def _auxiliary_head(common: Common, x: Any, name: str) -> Any:
    """Add an auxiliary classifier as section 5 lists it: pooling 5x5/3, 1x1 of 128, fc 1024, dropout 70 %, linear."""
    check_fixed_size(x, common.name)
    x = layers.AveragePooling2D(5, strides=3, name=f"{name}_pool")(x)
    x = _conv(x, 128, 1, f"{name}_conv")
    x = layers.Flatten(name=f"{name}_flatten")(x)
    x = layers.Dense(1024, activation="relu", name=f"{name}_fc")(x)
    x = layers.Dropout(0.7, name=f"{name}_dropout")(x)
    return common.classifier(x, "glorot_uniform", logits=f"{name}_predictions", outputs=name)


def without_auxiliary(model: keras.Model) -> keras.Model:
    """Return the network without its auxiliary heads, which "are discarded at inference time"; it shares the layers.

    Args:
        model: a `GoogLeNet(auxiliary=True)`.

    Returns:
        images [batch, H, W, 3] to probabilities [batch, classes].
    """
    outputs = model.output["probabilities"] if isinstance(model.output, dict) else model.output
    bare = Functional(model.input, outputs, name=model.name)
    note = getattr(model, "built_as", None)
    if note is not None:
        kept = {key: value for key, value in note.arguments.items() if key != "auxiliary"}
        bare.built_as = ModelSpec(note.architecture, kept)
    return bare


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
    auxiliary: bool = False,
    lrn: LRNConstants | None = None,
    include_preprocessing: bool = True,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Declare what GoogLeNet takes.

    Args:
        auxiliary: whether the two auxiliary classifiers are there; the outputs are then a dictionary of
            "probabilities", "aux1" (on 4a) and "aux2" (on 4d), each with its own loss in `compile`, given as
            dictionaries over these names; the paper's loss weights are 1, 0.3 and 0.3.
        lrn: other constants of the response normalisation, such as {"k": 1, "alpha": 2e-5}; by default those of
            AlexNet's paper: n=5, k=2, alpha=1e-4, beta=0.75.
    """


@application(_arguments)
def GoogLeNet(common: Common, auxiliary: bool, lrn: LRNConstants | None) -> keras.Model:
    """GoogLeNet of Szegedy et al. 2014 (arXiv:1409.4842), table 1."""
    return _network(common, auxiliary, lrn)
