"""The tensor types, under the names that TensorFlow Serving prints, and what a signature says of a tensor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# DataType's numbers in TensorFlow's protocol buffers and the names that its messages print.
NAMES = {
    1: "float",
    2: "double",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "half",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
}
NUMBERS = {name: number for number, name in NAMES.items()}
_FROM_NUMPY = {"float32": "float", "float64": "double", "float16": "half", "object": "string"}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One input or output of a signature.

    Attributes:
        alias: the name in the signature.
        dtype: the type under TensorFlow's printed name, such as "float", "string" or "half".
        shape: sizes with None for a free one; None when even the rank is free.
    """

    alias: str
    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def in_rows(self) -> bool:
        """Whether the first dimension counts images, strings or other rows, rather than plain numbers."""
        return self.dtype == "string" or (self.shape is not None and len(self.shape) > 1)

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether a tensor of these sizes is one that the signature promises to take."""
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(want is None or want == got for want, got in zip(self.shape, shape, strict=True))
        )

    def rows_worth(self, shape: Sequence[int]) -> int:
        """Return how many rows of the signature a tensor of another shape is as large as.

        Returns:
            0 for a tensor that fits, whose rows are counted anyway, and where the signature does not say how large a
            row is.
        """
        row = self.shape[1:] if self.in_rows and self.shape is not None else (None,)
        if None in row or self.fits(shape):
            return 0
        return math.ceil(math.prod(shape) / max(math.prod(row), 1))

    @property
    def shape_text(self) -> str:
        """The shape as messages print it: "[?,2]", or "?" where even the rank is free."""
        return "?" if self.shape is None else f"[{','.join('?' if n is None else str(n) for n in self.shape)}]"


def dtype_name(array: np.ndarray) -> str:
    """Return TensorFlow's printed name for an array's type; object arrays hold strings.

    Example:
        >>> dtype_name(np.zeros(3, np.float32))
        'float'
    """
    if array.dtype.kind in "SU":
        return "string"
    return _FROM_NUMPY.get(array.dtype.name, array.dtype.name)
