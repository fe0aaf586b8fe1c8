"""TensorFlow's error messages in plain form, and retries of calls that it reports as cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorflow.errors import OpError

# Maximum attempts of a call that is reported as cancelled.
CALLS = 5


def unless_cancelled(call: Callable[[], Any]) -> Any:
    """Return the result of a call of a graph, retrying it if TensorFlow reports a cancellation.

    If one of several images that are decoded concurrently is not readable, TensorFlow cancels the others and sometimes
    reports the cancellation instead of the cause. The caller must not cancel the call itself.
    """
    from tensorflow.errors import CancelledError

    for _ in range(CALLS - 1):
        try:
            return call()
        except CancelledError:
            continue
    return call()


def plain_reason(error: OpError) -> str:
    """Return the message of a decoding error, without the graph locations that TensorFlow adds."""
    from keras_convnets.images.decoding import REFUSAL_PREFIX

    # Of a graph: where it was defined, then the message, then "[[{{node ...}}]]", and where that was called.
    lines = [line.strip() for line in error.message.split("[[{{")[0].split("[Op:")[0].splitlines()]
    sentence = next((line for line in reversed(lines) if line), type(error).__name__)
    return sentence.rpartition("}} ")[2].removeprefix(REFUSAL_PREFIX).strip()
