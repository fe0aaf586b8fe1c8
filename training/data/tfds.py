"""TensorFlow Datasets by name: a prepared directory first, a download only when there is none."""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_convnets.errors import UserError, unknown_name
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.sequential import StreamSplit
from keras_convnets.training.data.splits import Positions

# Of these a mirrored image is another sign or none.
NO_FLIPS = {
    "mnist",
    "emnist",
    "kmnist",
    "svhn_cropped",
    "omniglot",
    "mnist_corrupted",
    "binarized_mnist",
    "binary_alpha_digits",
}
NETWORK_TIMEOUT = 10.0
# name, name/config, either with :version, as TFDS has them; a part of it never leads to another folder.
TFDS_NAME = re.compile(r"(?P<name>\w+(/\w[\w.+-]*)?)(:(?P<version>[0-9*]+\.[0-9*]+\.[0-9*]+))?")


def load_tfds(name: str, data_dir: str | os.PathLike | None) -> DataSet:
    """Return a data set of TensorFlow Datasets as RGB images with one label.

    Args:
        name: such as "cifar10"; "name/config" of one that comes in several forms; either with ":version", else the
            highest is taken.
        data_dir: looked into first for a prepared directory; then TFDS_DATA_DIR; then ~/tensorflow_datasets.

    Raises:
        UserError: if the name is unknown, the data set is not images with one label, or it is neither prepared nor
            to be downloaded; the message says where the data may be put.
    """
    if not TFDS_NAME.fullmatch(name) and (os.sep in name or name.startswith((".", "~"))):
        raise UserError(f"there is no folder {name}; give an existing folder of images, digits, or a TFDS name.")
    builder = _prepared(name, data_dir) or _downloaded(name, data_dir)
    features = builder.info.features
    try:
        image_key, label_key = builder.info.supervised_keys or ("image", "label")
        class_names, shape = tuple(features[label_key].names), tuple(features[image_key].shape)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"data set {name} is not images with one label (its features are {', '.join(features)}); "
            "classification needs both."
        ) from error
    splits = {
        split: RecordSplit(builder, split, (image_key, label_key), range(info.num_examples))
        for split, info in builder.info.splits.items()
        if info.num_examples
    }
    return DataSet(
        name=name,
        class_names=class_names,
        flips_keep_labels=re.split("[/:]", name)[0] not in NO_FLIPS,
        splits=splits,
        image_size=None if None in shape[:2] else (shape[0], shape[1]),
    )


def _roots(data_dir: str | os.PathLike | None) -> list[Path]:
    given = [data_dir, os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    return [Path(root).expanduser() for root in given if root]


def _prepared(name: str, data_dir: str | os.PathLike | None) -> Any | None:
    """Return a builder over a directory that lies prepared, of the highest version, or None."""
    import tensorflow_datasets as tfds

    found = TFDS_NAME.fullmatch(name)
    if found is None:
        return None
    place, version = found["name"], found["version"] or "*"
    for root in _roots(data_dir):
        versions = [path.parent for path in (root / place).glob(f"{version}/dataset_info.json")]
        # A data set with one config may be asked for without it.
        versions = versions or [path.parent for path in (root / place).glob(f"*/{version}/dataset_info.json")]
        configs = sorted({path.parent.name for path in versions})
        if len(configs) > 1:
            raise UserError(
                f"data set {name} is prepared in {root} in several forms ({', '.join(configs)}); name one, such as "
                f"{place}/{configs[0]}."
            )
        if versions:
            newest = max(versions, key=lambda path: [int(part) for part in re.findall("[0-9]+", path.name)])
            return tfds.builder_from_directory(newest)
    return None


def _downloaded(name: str, data_dir: str | os.PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", name)[0]
    if base not in known and "/" in name:
        raise UserError(
            f"there is no folder {name}, and TensorFlow Datasets has no {base}; give an existing folder of images, "
            "digits, or a TFDS name."
        )
    if base not in known:
        raise unknown_name("data set", name, ["digits", *known], "or give a folder of images")
    root = _roots(data_dir)[0]
    try:
        builder = tfds.builder(name, data_dir=root, try_gcs=False)
        _check_network(builder)
        builder.download_and_prepare()
    except Exception as error:  # whatever a download can raise: the network, the disk, the site, the builder
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"data set {name} is not prepared under {' or '.join(str(path) for path in _roots(data_dir))}, and getting "
            f"it failed ({reason[:200]}); prepare it where there is a network with tfds and put its directory at "
            f"{root / name.partition(':')[0]}/<version>, or name the folder that holds {base}/ with --data_dir."
        ) from error
    return builder


def _check_network(builder: Any) -> None:
    """Raise OSError immediately if the data's hosts can't be reached: TFDS itself retries for minutes."""
    if any(urllib.request.getproxies().get(scheme) for scheme in ("http", "https")):
        return
    hosts = {urllib.parse.urlsplit(url).hostname for url in getattr(builder, "url_infos", {})}
    for host in sorted(filter(None, hosts)):
        with socket.create_connection((host, 443), timeout=NETWORK_TIMEOUT):
            return


class RecordSplit(StreamSplit):
    """A split of a prepared TFDS directory.

    Args:
        builder: the TFDS builder.
        name: the split's name there.
        keys: names of the image and the label feature.
        positions: which of its examples, in the stored order; a range or an array.
    """

    def __init__(self, builder: Any, name: str, keys: tuple[str, str], positions: Positions):
        super().__init__(positions)
        self._builder, self._name, self._keys = builder, name, keys

    @property
    def labelled(self) -> bool:
        """Whether the labels are known: some public test sets have -1."""
        first = next(iter(self.encoded_in_order().take(1)))
        return int(first[1]) >= 0

    def fingerprint(self) -> str:
        """Return name, version and number of examples, which say what a prepared directory holds."""
        return f"{self._builder.info.full_name}/{self._name}/{self.size}"

    def _of(self, positions: Positions) -> RecordSplit:
        return RecordSplit(self._builder, self._name, self._keys, positions)

    def _name_of(self, stored: int) -> str:
        return f"image {stored} of {self._builder.info.full_name} {self._name}"

    def _state(self) -> str:
        files = sorted(Path(self._builder.data_dir).iterdir())
        facts = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
        return "\n".join([self._name, *facts])

    def _stored(self) -> tf.data.Dataset:
        import tensorflow_datasets as tfds

        image_key, label_key = self._keys
        stored = self._builder.as_dataset(
            split=self._name,
            shuffle_files=False,
            decoders={image_key: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        return stored.map(lambda example: (example[image_key], example[label_key]))
