"""Weights into a network: today from a file that Keras wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.errors import UserError

if TYPE_CHECKING:
    import keras

SUFFIXES = (".weights.h5", ".keras")


def load_weights(model: keras.Model, weights: str | os.PathLike | None) -> None:
    """Load a weights file into a network; None leaves the network as it was initialised.

    Args:
        model: the network.
        weights: None, or the path of a .weights.h5 or .keras file of the same network.

    Raises:
        UserError: if there is no such file, or it belongs to another network; the network is then not to be used.
    """
    if weights is None:
        return
    path = Path(weights)
    if not str(path).endswith(SUFFIXES):
        raise UserError(
            f"weights is {str(weights)!r}; {model.name} has no published weights here: "
            f"give None or the path of a {' or '.join(SUFFIXES)} file."
        )
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; give the path of an existing {path.suffix} file.")
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path} does not hold weights for {model.name}: {reason}") from error
