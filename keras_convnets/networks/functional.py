"""The model that builders return: a functional Keras model that records its `ModelSpec`, also in files."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_convnets.files import check_disk_space, wrap_write_errors
from keras_convnets.networks.spec import ModelSpec
from keras_convnets.weights.keras_reader import check_archive, refusing, write_configuration

# What HDF5 and the configuration need beside the numbers, in bytes: 1 MB for a network of a thousand weights.
HDF5_OVERHEAD = 2**20
# Shown by Keras when it finds no class for a saved network: Keras imports no other packages.
HINT = "made by keras-convnets: 'import keras_convnets' before loading it (pip install keras-convnets)"


# The name is Keras' own: of a whole model the legacy .h5 format keeps the class's bare name, not the registered one.
@keras.saving.register_keras_serializable("keras_convnets")
class Functional(keras.Model):
    """A functional Keras model with the spec it was built from, which `.keras` and `.weights.h5` files keep.

    A model made of its layers, such as `keras.Model(network.input, ...)`, is Keras' own class and has no spec.

    Attributes:
        built_as: the call that makes it, `classes` and `input_shape` always among its arguments; the preprocessing is
            the first layer's. None of a copy that may be another network.
    """

    built_as: ModelSpec | None = None

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, with the spec and a hint that names the package to import."""
        plain = None if self.built_as is None else self.built_as.to_dict()
        # The hint comes first: where this package is not imported, Keras' error begins with the configuration.
        return {"hint": HINT, **super().get_config(), "built_as": plain}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Functional:
        """Return the model of a configuration, with its spec."""
        note = config.get("built_as")
        rest = {key: value for key, value in config.items() if key not in ("built_as", "hint")}
        model = super().from_config(rest, custom_objects=custom_objects)
        if note is not None:
            model.built_as = ModelSpec.from_dict(note)
        return model

    def save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save the weights as Keras does, with the configuration beside them: arrays alone fit other networks too."""
        with wrap_write_errors(filepath):
            if str(filepath).endswith(".weights.h5"):
                check_disk_space(filepath, sum(_bytes_of(weight) for weight in self.weights) + HDF5_OVERHEAD)
            super().save_weights(filepath, *args, **kwargs)
            if str(filepath).endswith(".weights.h5") and Path(filepath).is_file():
                write_configuration(filepath, keras.saving.serialize_keras_object(self)["config"])


def _bytes_of(weight: Any) -> int:
    return math.prod(weight.shape) * np.dtype(keras.backend.standardize_dtype(weight.dtype)).itemsize


def load_keras(path: str | os.PathLike) -> keras.Model:
    """Return the network of a .keras file, not compiled. Code in the file is never run.

    Raises:
        UserError: if Keras does not load it, or it asks for other files or for memory beyond its size.
    """
    check_archive(path)
    with refusing(Path(path), "a network that Keras loads"), _in_small_letters(Path(path)) as named:
        return keras.saving.load_model(named, compile=False, safe_mode=True)


@contextlib.contextmanager
def _in_small_letters(path: Path) -> Iterator[Path]:
    """Give a path that ends in ".keras" to a file that ends so in capital letters: Keras goes by the name alone."""
    if path.suffix == ".keras":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "model.keras"
        try:
            named.symlink_to(path.resolve())
        except OSError:  # Windows lets not everybody make links
            shutil.copyfile(path, named)
        yield named


def weights_digest(model: keras.Model) -> tuple[int, ...]:
    """Return a checksum of each weight, to detect whether the weights have changed since."""
    arrays = (np.ascontiguousarray(keras.ops.convert_to_numpy(weight)) for weight in model.weights)
    return tuple(zlib.crc32(array.data) for array in arrays)
