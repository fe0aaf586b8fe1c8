"""Protocols: which views of a test image a network sees, and how its answers are averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_convnets.errors import unknown_name
from keras_convnets.images.view import View


def mean_of_views(probabilities: np.ndarray) -> np.ndarray:
    """Return the mean over an image's views: [n, views, classes] -> [n, classes]."""
    return probabilities.mean(axis=1)


@dataclass(frozen=True)
class Protocol:
    """How a test image is shown.

    Attributes:
        name: under which figures are kept, as in "imagenet2012/validation/center".
        views: (image uint8 [H, W, 3], view of the classifier's card) -> uint8 [views, h, w, 3], in TensorFlow ops. None
            where the one view is the card's own: to that, data can be brought before, and held in memory.
        average: combines the probabilities of an image's views: float32 [n, views, classes] -> [n, classes].
    """

    name: str
    views: Callable[[tf.Tensor, View], tf.Tensor] | None = None
    average: Callable[[np.ndarray], np.ndarray] = mean_of_views


# The shorter side is resized and the centre cropped, as the classifier's card says.
CENTER = Protocol("center")
PROTOCOLS = {protocol.name: protocol for protocol in (CENTER,)}


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Return a protocol by its name; a protocol object is returned unchanged.

    Raises:
        UserError: if there is none of that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]
