"""Validation of numbers from callers: NumPy scalars are accepted, booleans are not."""

from __future__ import annotations

import math
import operator
from typing import Any


def whole_number(value: Any) -> int | None:
    """Return an integer, Python's or NumPy's, as a Python integer; None for anything else, booleans included.

    Example:
        >>> whole_number(np.int64(3)), whole_number(3.5), whole_number(True)
        (3, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def finite_number(value: Any) -> int | float | None:
    """Return a finite number, Python's or NumPy's, as a Python number; None for anything else, booleans included.

    Example:
        >>> finite_number(np.float32(0.5)), finite_number(float("nan")), finite_number("0.5")
        (0.5, None, None)
    """
    if whole_number(value) is not None:
        return whole_number(value)
    value = value.item() if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0 else value
    return value if isinstance(value, float) and math.isfinite(value) else None
