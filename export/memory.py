"""Release of memory that converters and graphs leave allocated."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def release_memory() -> None:
    """Return freed memory to the operating system, before the next converter or runtime needs it.

    Keras' networks and TensorFlow's graphs hold themselves in cycles, and glibc keeps what is freed in small pieces: a
    gigabyte after ResNet-50's conversion to LiteRT.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library that has no such function
            ctypes.CDLL(None).malloc_trim(0)
