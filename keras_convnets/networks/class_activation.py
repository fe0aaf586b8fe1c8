"""Class-activation maps: where in an image a network sees a class.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. Of a network that ends in global
average pooling and one fully connected layer, a class's score is the mean over positions of the last feature maps,
weighted by the class's weights, plus its bias; the map is what is averaged.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

# Between the pooling and the classifier they change nothing in inference.
_UNCHANGED = (layers.Dropout, layers.Flatten, layers.Identity)


def pooled_maps(model: keras.Model) -> tuple[Any, keras.layers.Dense] | None:
    """Return a network's last feature maps, and the classifier that sees their means.

    Args:
        model: a functional model.

    Returns:
        The symbolic tensor [batch, h, w, c] and the fully connected layer; None unless the last fully connected layer,
        or that called "predictions", takes the global average pooling of channels-last maps.
    """
    dense = [layer for layer in getattr(model, "layers", ()) if isinstance(layer, layers.Dense)]
    if not dense:
        return None
    classifier = next((layer for layer in dense if layer.name == "predictions"), dense[-1])
    tensor = classifier.input
    while isinstance(tensor._keras_history.operation, _UNCHANGED):
        tensor = tensor._keras_history.operation.input
    pooling = tensor._keras_history.operation
    if type(pooling) is not layers.GlobalAveragePooling2D or pooling.data_format != "channels_last":
        return None
    return None if pooling.keepdims else (pooling.input, classifier)


def class_activation_maps(feature_maps: Any, kernel: Any, classes: Any) -> Any:
    """Return the maps of some classes.

    Args:
        feature_maps: float32 [batch, h, w, c].
        kernel: the classifier's, float32 [c, classes].
        classes: indices of classes, int32 [batch, k].

    Returns:
        float32 [batch, k, h, w]: what each position adds to the class's score before the softmax. The mean over
        positions plus the class's bias is that score.
    """
    return ops.einsum("bhwc,bkc->bkhw", feature_maps, ops.take(ops.transpose(kernel), classes, axis=0))
