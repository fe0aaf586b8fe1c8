"""Data sets whose number of threads is fixed and not tuned at run time.

When an iterator of a tuned data set is deleted, it waits for the tuning thread: about two seconds in half of the cases,
after each evaluation and at the end of each training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def parallel_map(dataset: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
    """Return a data set mapped on all cores; the order stays, and tuning is off.

    Args:
        dataset: the elements.
        function: from the components of an element to those of the new element.
    """
    return untuned(dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True))


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a data set without tuning at run time, which holds for all it is made from and all made from it."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
