"""One seed, many streams of random numbers: each purpose has its own, unrelated to every other one and of every seed.

The streams are those of TensorFlow's stateless operations, which are functions of two integers. Small numbers that
are counted on or added to meet again in another purpose or under the next seed; hashed ones do not.
"""

from __future__ import annotations

import hashlib

import tensorflow as tf


def purpose_seed(seed: int, purpose: str) -> int:
    """Return the seed of one purpose: 63 bits of the sha256 of both, never 0.

    Args:
        seed: of the recipe, at least 0.
        purpose: what the random numbers are for, such as "crops".

    Returns:
        From 1 to 2**63 - 1: it goes into an int64 and means "any seed" to no operation.

    Example:
        >>> purpose_seed(0, "crops") == purpose_seed(0, "order")
        False
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return max(1, int.from_bytes(digest[:8], "big") >> 1)


def folded(seed: tf.Tensor, purpose: str) -> tf.Tensor:
    """Return the seed of one purpose within what has a seed already, such as the flips of one batch.

    Args:
        seed: int64 [2], of a stateless operation.
        purpose: what the random numbers are for.

    Returns:
        int64 [2], a function of the two, also inside tf.data.
    """
    number = tf.constant(purpose_seed(0, purpose), tf.int64)
    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), number)
