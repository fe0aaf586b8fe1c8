"""TensorFlow's errors in plain sentences, and calls that are made again where it reports a cancellation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_convnets.images.decoding import REFUSAL_PREFIX

# How often a call that reports to have been cancelled is made.
CALLS = 5


def unless_cancelled(call: Callable[[], Any]) -> Any:
    """Return what a call of a graph gives; nobody else may cancel it.

    Where one of several images that are decoded at a time is not readable, TensorFlow cancels the others, and now and
    then reports that instead of the reason. The call is then made again.
    """
    for _ in range(CALLS - 1):
        try:
            return call()
        except tf.errors.CancelledError:
            continue
    return call()


def plain_reason(error: tf.errors.OpError) -> str:
    """Return the sentence of an error that decoding raised, without what TensorFlow puts around it."""
    # Of a graph: where it was defined, then the sentence, then "[[{{node ...}}]]", and where that was called.
    lines = [line.strip() for line in error.message.split("[[{{")[0].split("[Op:")[0].splitlines()]
    sentence = next((line for line in reversed(lines) if line), type(error).__name__)
    return sentence.rpartition("}} ")[2].removeprefix(REFUSAL_PREFIX).strip()
