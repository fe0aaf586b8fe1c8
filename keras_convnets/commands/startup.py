"""TensorFlow's start-up: without its messages, and with memory growth on GPUs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep TensorFlow's start-up messages off the screen: they come from C++ before its log level is read."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    screen = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


# Keras imports them if they are installed, for classes that no command uses: a third of its start-up time.
OPTIONAL_IN_KERAS = ("matplotlib", "sklearn")


@contextlib.contextmanager
def hidden(names: Sequence[str]) -> Iterator[None]:
    """Let imports of these packages fail as if they were not installed; those imported before are left."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: Python's mark of an absent module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


# TensorFlow uses oneDNN by itself only where the processor has AVX-512: with AVX2 alone, ResNet-20 trains at 280
# images/s with it and at 110 without. A value that the user set stays.
TRAINING_ENVIRONMENT = {"TF_ENABLE_ONEDNN_OPTS": "1"}


def load_tensorflow(training: bool = False) -> None:
    """Import TensorFlow and Keras without their messages, unless the user asked to see everything.

    Args:
        training: whether the command trains; TensorFlow is then started with the settings that train fastest.
    """
    if training:
        for name, value in TRAINING_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    with contextlib.nullcontext() if "--debug" in sys.argv else quiet_stderr():
        with hidden(OPTIONAL_IN_KERAS):
            import keras  # noqa: F401
        import tensorflow as tf

        # Otherwise one process takes a GPU's whole memory, and a quickstart's endpoint finds none left.
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.list_logical_devices()
    tf.get_logger().setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
