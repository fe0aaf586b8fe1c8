"""Class-activation maps: where in an image a network sees a class.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. Of a network that ends in global
average pooling and one fully connected layer, a class's score is the mean over positions of the last feature maps,
weighted by the class's weights, plus its bias; the map is what is averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import layers

if TYPE_CHECKING:
    import tensorflow as tf

FEATURE_MAPS = "feature_maps"


def with_feature_maps(network: keras.Model) -> tuple[keras.Model, keras.Variable] | None:
    """Return a network that gives its last feature maps too, and the classifier's kernel; None if it has no such maps.

    Args:
        network: as `export.folding.inference_network` makes it.

    Returns:
        The network with the further output "feature_maps", float32 [batch, h, w, c], sharing all layers, and the
        kernel [c, classes]. None unless "features" are means of feature maps and a fully connected layer takes them.
    """
    features = network.output.get("features")
    if features is None:
        return None
    pooling = features._keras_history.operation
    if type(pooling) is not layers.GlobalAveragePooling2D or pooling.data_format != "channels_last":
        return None
    if pooling.keepdims:
        return None
    dense = [layer for layer in network.layers if isinstance(layer, layers.Dense) and _takes(layer, features)]
    if len(dense) != 1:
        return None
    node = pooling._inbound_nodes[features._keras_history.node_index]
    outputs = {**network.output, FEATURE_MAPS: node.input_tensors[0]}
    return keras.Model(network.input, outputs, name=network.name), dense[0].kernel


def _takes(layer: keras.layers.Layer, tensor: Any) -> bool:
    return any(tensor is given for node in layer._inbound_nodes for given in node.input_tensors)


def class_activation_maps(feature_maps: tf.Tensor, kernel: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Return the maps of some classes.

    Args:
        feature_maps: float32 [batch, h, w, c].
        kernel: the classifier's, float32 [c, classes].
        classes: indices of classes, int32 [batch, k].

    Returns:
        float32 [batch, k, h, w]: what each position adds to the class's score before the softmax. The mean over
        positions plus the class's bias is that score.
    """
    import tensorflow as tf

    weights = tf.gather(tf.transpose(kernel), classes)
    return tf.einsum("bhwc,bkc->bkhw", feature_maps, weights)
