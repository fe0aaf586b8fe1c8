"""Reads the weights of files that Keras wrote: .weights.h5, .keras and the legacy .h5 of keras.applications."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.weights.onnx_reader import StoredLayer

# What a layer's arrays are, by their number and the rank of the first.
LAYER_KINDS = {
    (1, 4): ("Conv2D", ("kernel",)),
    (2, 4): ("Conv2D", ("kernel", "bias")),
    (1, 2): ("Dense", ("kernel",)),
    (2, 2): ("Dense", ("kernel", "bias")),
    (4, 1): ("BatchNormalization", ("gamma", "beta", "moving_mean", "moving_variance")),
}
# The legacy files of keras.applications hold no configuration; its ResNets were trained with this one.
LEGACY_EPSILON = 1.001e-5
# Where networks of this package keep their configuration in a .weights.h5 file.
CONFIG = "network_config"
# Limit of decompressed data in bytes: at least the first, at most the second times the compressed size beyond it.
LEAST_LIMIT, MOST_EXPANSION = 64 << 20, 20
LEAST_CHUNK = 1 << 20
# What readers raise for files that are corrupt or crafted.
BROKEN = (
    *(AttributeError, KeyError, NotImplementedError, OSError, RecursionError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)


class _Outside(Exception):
    """Data of a file that lies in other files."""


def read_h5(path: str | os.PathLike, sizes: Mapping[str, int] | None = None) -> list[StoredLayer]:
    """Read a weights file of Keras.

    Untrusted files are bounded: no other file is opened, and only arrays that a layer takes are read.

    Args:
        path: of a .weights.h5, a .keras, or a legacy .h5 file, of weights alone or of a whole model.
        sizes: by layer, how many numbers the largest array has that it takes; a larger one, and those of other layers,
            are not read: zeros of the same shape that take no memory stand for them. By default all are read.

    Raises:
        UserError: if it is none of these, or keeps arrays outside itself.
    """
    with _opened(Path(path)) as file:
        legacy = _item(file, "model_weights") if "model_weights" in file else file
        if "layer_names" in legacy.attrs:
            found = list(_legacy(legacy, _epsilons(file), sizes))
        else:
            found = list(_named(file, sizes))
    if not found:
        raise UserError(f"{path} holds no weights by layer names; save them again with this version of Keras.")
    return found


def configuration(path: str | os.PathLike) -> dict[str, Any] | None:
    """Return the configuration of the model in a file of Keras; None where there is none.

    A .weights.h5 file has one where a network of this package wrote it.

    Raises:
        UserError: if the file can't be read, or holds no functional model.
    """
    path = Path(path)
    with refusing(path, "a model that Keras saved"):
        if path.suffix.lower() == ".keras":
            with zipfile.ZipFile(path) as archive:
                return checked_configuration(json.loads(_member(archive, "config.json"))["config"])
    with _opened(path) as file:
        if CONFIG in file:
            text: Any = _inflated(_array(file, CONFIG))
        else:
            text = file.attrs.get("model_config")
        return None if text is None else checked_configuration(json.loads(text)["config"])


def write_configuration(path: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Add a model's configuration to the .weights.h5 file that Keras wrote of it; Keras reads the file as before."""
    import h5py

    data = zlib.compress(json.dumps({"config": config}).encode())
    with h5py.File(path, "r+") as file:
        file.create_dataset(CONFIG, data=np.frombuffer(data, np.uint8))


def check_archive(path: str | os.PathLike) -> None:
    """Refuse a .keras file that asks for another file's bytes, or for memory out of all proportion to its size.

    Raises:
        UserError: if it does, or is no such file.
    """
    path = Path(path)
    configuration(path)
    with _opened(path) as file:
        waiting = [file]
        while waiting:
            group = waiting.pop()
            for key in group:
                item = _item(group, key)
                if isinstance(item, type(file["/"])):
                    waiting.append(item)
                else:
                    _check_array(item, key)


@contextlib.contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Convert the exceptions that readers raise for a corrupt file into a `UserError`.

    Args:
        path: the file.
        what: what it should be.
    """
    try:
        yield
    except UserError:
        raise
    except _Outside as error:
        raise UserError(
            f"{path} is not read: {printable(error, 400)}, which could be any of this machine; save the weights again "
            "as one file."
        ) from error
    except BROKEN as error:
        reason = printable(" ".join(str(error).split()), 200) or type(error).__name__
        raise UserError(f"{path} is not {what} ({reason}).") from error


def layers_in(config: Mapping[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (class, configuration) of every layer, nested models opened."""
    for layer in (config or {}).get("layers", ()):
        if "layers" in layer["config"]:
            yield from layers_in(layer["config"])
        else:
            # Legacy files write "keras_convnets>ShortcutA".
            yield layer["class_name"].rpartition(">")[2], layer["config"]


def checked_configuration(config: Any) -> dict[str, Any]:
    """Return a model's configuration, which must be a dictionary of layers with names.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(config, dict):
        raise TypeError("its configuration is no dictionary")
    for _, layer in layers_in(config):
        if not isinstance(layer["name"], str):
            raise TypeError("a layer has no name")
    return config


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Give the HDF5 file of a path, or inside a .keras file."""
    import h5py

    with refusing(path, "a weights file of Keras"), contextlib.ExitStack() as stack:
        source: Any = path
        if path.suffix.lower() == ".keras":
            source = stack.enter_context(_weights_in(path))
        yield stack.enter_context(h5py.File(source, "r"))


@contextlib.contextmanager
def _weights_in(path: Path) -> Iterator[Any]:
    """Give the weights file inside a .keras file: as Keras stores it, in its place, without being read into memory."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        info = archive.getinfo("model.weights.h5")
        if info.compress_type != zipfile.ZIP_STORED:
            yield io.BytesIO(_member(archive, info.filename))
            return
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        yield _Part(file, info.header_offset + 30 + name + extra, info.compress_size)


class _Part(io.RawIOBase):
    """A part of an open file as a file, for reading.

    Args:
        file: the open file.
        start: of the part, in bytes.
        size: of the part, in bytes.
    """

    def __init__(self, file: Any, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place and return it."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the part goes; return how many bytes there were."""
        view = memoryview(buffer).cast("B")[: max(self._size - self._at, 0)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view)
        self._at += count
        return count


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of an archive, if it is not larger than such archives are for their own size."""
    info = archive.getinfo(name)
    if info.file_size > LEAST_LIMIT + MOST_EXPANSION * info.compress_size:
        raise UserError(
            f"{archive.filename} grows from {info.compress_size:,} to {info.file_size:,} bytes and is not read; "
            "save it again with Keras."
        )
    return archive.read(name)


def _inflated(data: np.ndarray) -> bytes:
    reader = zlib.decompressobj()
    text = reader.decompress(data.tobytes(), LEAST_LIMIT)
    if reader.unconsumed_tail:
        raise ValueError(f"its configuration has more than {LEAST_LIMIT:,} bytes")
    return text


def _item(group: Any, name: str) -> Any:
    """Return what a path in a file leads to, if it is in the file itself.

    Raises:
        UserError: if it is a link to another place: such links can lead to any file of the machine.
    """
    import h5py

    for part in filter(None, name.split("/")):
        link = group.get(part, getlink=True, getclass=True)
        if link is None:
            raise KeyError(f"it has no {name}")
        if link is not h5py.HardLink:
            raise _Outside(f"{group.name.rstrip('/')}/{part} is a link ({link.__name__})")
        group = group[part]
    return group


def _array(group: Any, name: str, most: int | None = None) -> np.ndarray:
    """Return an array of a file; of more than `most` numbers, zeros of its shape that take no memory."""
    dataset = _item(group, name)
    _check_array(dataset, name)
    if most is not None and math.prod(dataset.shape) > most:
        return np.broadcast_to(np.float32(0), dataset.shape)
    return dataset[()]


def _check_array(dataset: Any, name: str) -> None:
    if dataset.external or dataset.is_virtual:
        raise _Outside(f"{dataset.name} lies in other files")
    if dataset.dtype.kind not in "fiu" and dataset.size:
        raise ValueError(f"{name} is an array of {dataset.dtype} and not of numbers")
    # Whoever reads one number of a chunk inflates it whole.
    if dataset.chunks is not None and math.prod(dataset.chunks) > max(math.prod(dataset.shape), LEAST_CHUNK):
        raise ValueError(f"{name} has chunks of {math.prod(dataset.chunks):,} numbers and {dataset.size:,} in all")


def _most(name: str, sizes: Mapping[str, int] | None) -> int | None:
    return None if sizes is None else sizes.get(name, 0)


def _legacy(group: Any, epsilons: Mapping[str, float], sizes: Mapping[str, int] | None) -> Iterator[StoredLayer]:
    for name in map(_text, group.attrs["layer_names"]):
        layer = _item(group, name)
        arrays = [_array(layer, _text(weight), _most(name, sizes)) for weight in layer.attrs["weight_names"]]
        if arrays:
            yield _stored(name, arrays, epsilons.get(name, LEGACY_EPSILON))


def _named(file: Any, sizes: Mapping[str, int] | None) -> Iterator[StoredLayer]:
    """Yield the layers of Keras 3's own layout: groups named by class, the layer's name in an attribute."""
    groups: list[Any] = []
    waiting, seen = [file["/"]], set()
    while waiting:
        group = waiting.pop(0)
        groups.append(group)
        for key in group:
            item = _item(group, key)
            # The same group may be linked at several places, its own inside among them.
            if hasattr(item, "keys") and hash(item.id) not in seen:
                seen.add(hash(item.id))
                waiting.append(item)
    for group in groups:
        if "name" in group.attrs and len(group) and not group.name.startswith("/optimizer"):
            name = _text(group.attrs["name"])
            yield _stored(name, [_array(group, key, _most(name, sizes)) for key in sorted(group, key=int)], None)


def _stored(name: str, arrays: list[np.ndarray], epsilon: float | None) -> StoredLayer:
    arrays = [array if array.strides == (0,) * array.ndim else np.asarray(array, np.float32) for array in arrays]
    kind, names = LAYER_KINDS.get(
        (len(arrays), arrays[0].ndim), ("unknown", [str(index) for index in range(len(arrays))])
    )
    settings = {"epsilon": epsilon} if epsilon is not None and kind == "BatchNormalization" else {}
    return StoredLayer(printable(name, 200), kind, dict(zip(names, arrays, strict=True)), settings)


def _epsilons(file: Any) -> dict[str, float]:
    text = file.attrs.get("model_config")
    layers = layers_in(json.loads(text)["config"]) if text is not None else ()
    return {config["name"]: config["epsilon"] for _, config in layers if "epsilon" in config}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
