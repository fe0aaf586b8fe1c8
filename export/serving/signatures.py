"""What a signature takes and gives: its inputs and outputs, and the tensor types as TensorFlow Serving prints them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from keras_convnets.export.serving.status import invalid_argument

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
DEFAULT_SIGNATURE = "serving_default"
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
        if not self.in_rows or self.shape is None or self.fits(shape):
            return 0
        row = [side for side in self.shape[1:] if side is not None]
        if len(row) < len(self.shape) - 1:
            return 0
        return math.ceil(math.prod(shape) / max(math.prod(row), 1))

    @property
    def shape_text(self) -> str:
        """The shape as messages print it: "[?,2]", or "?" where even the rank is free."""
        return "?" if self.shape is None else f"[{','.join('?' if n is None else str(n) for n in self.shape)}]"


@dataclasses.dataclass(frozen=True)
class Signature:
    """A way to call the model.

    Attributes:
        name: the signature's key.
        inputs: the inputs by alias.
        outputs: the outputs by alias, sorted.
        defaults: values for inputs that a request may leave out, by alias.
    """

    name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    defaults: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def check_input_names(self, names: Collection[str]) -> None:
        """Check that the inputs that came are the signature's.

        Raises:
            ServingError: INVALID_ARGUMENT, with what is missing and what is too much.
        """
        expected, sent = set(self.inputs), set(names)
        extra, missing = sent - expected, expected - sent - set(self.defaults)
        if len(sent) > len(expected) or (len(sent) < len(expected) and missing):
            raise invalid_argument(
                f"input size does not match signature: {len(sent)}!={len(expected)} "
                f"len({{{_joined(sent)}}}) != len({{{_joined(expected)}}}). Sent extra: {{{_joined(extra)}}}. "
                f"Missing but required: {{{_joined(expected - sent)}}}."
            )
        if missing or extra:
            what, name = ("Signature input", min(missing)) if missing else ("Request's input", min(extra))
            raise invalid_argument(
                f"{what} {name} has no counterpart. Inputs expected to be in the set {{{_joined(expected)}}}."
            )

    def check_outputs(self, names: Collection[str]) -> None:
        """Check the outputs that a request asks for.

        Raises:
            ServingError: INVALID_ARGUMENT for an unknown or a repeated one.
        """
        seen = set()
        for name in names:
            if name not in self.outputs:
                raise invalid_argument(
                    f"output tensor alias not found in signature: {name} "
                    f"Outputs expected to be in the set {{{_joined(self.outputs)}}}."
                )
            if name in seen:
                raise invalid_argument(f"duplicate output tensor alias: {name}")
            seen.add(name)


def dtype_name(array: np.ndarray) -> str:
    """Return TensorFlow's printed name for an array's type; object arrays hold strings.

    Example:
        >>> dtype_name(np.zeros(3, np.float32))
        'float'
    """
    if array.dtype.kind in "SU":
        return "string"
    return _FROM_NUMPY.get(array.dtype.name, array.dtype.name)


def _joined(names: Collection[str]) -> str:
    return ",".join(sorted(names))
