"""Running averages of a network's weights: the final network of a recipe that asks for them.

Polyak and Juditsky 1992, as Szegedy et al. 2014, section 6, use it. The decay grows with the updates, as TensorFlow's
`ExponentialMovingAverage` has it: with a decay of 0.9999 from the start, a run of a few hundred steps would end with
the weights that it began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf


class Averages:
    """The running average of every weight, the moving statistics of batch normalisation included.

    Statistics belong to the weights that they were measured with: those of the last step do not fit averaged kernels.

    Args:
        network: what is averaged. The averages are float32 and start as its weights; create them in the scope of the
            strategy that its variables were created under.
        decay: the largest decay an update, 0 to 1.
    """

    def __init__(self, network: keras.Model, decay: float):
        self._weights = network.weights
        self._decay = decay
        self._updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="updates")
        self._values = [tf.Variable(tf.convert_to_tensor(weight), trainable=False) for weight in self._weights]

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint keeps of the averages."""
        return [self._updates, *self._values]

    def update(self) -> None:
        """Take the present weights in; called by each replica after its step.

        Update n, counted from 0, is average = d * average + (1 - d) * weight with d = min(decay, (1 + n) / (10 + n)).
        """
        count = tf.cast(self._updates, tf.float32)
        kept = tf.minimum(self._decay, (1.0 + count) / (10.0 + count))
        for average, weight in zip(self._values, self._weights, strict=True):
            # Adding a difference leaves a constant weight exactly unchanged.
            average.assign_sub((1.0 - kept) * (average - tf.convert_to_tensor(weight)))
        self._updates.assign_add(1)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Have the averages in the network, and the trained weights again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for average, weight in zip(self._values, self._weights, strict=True):
            value = weight.numpy()
            weight.assign(average.numpy())
            average.assign(value)
