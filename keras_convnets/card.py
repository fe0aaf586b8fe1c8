"""The model card: `model.json`, what a network is, where it comes from and how well it does."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.classes import imagenet_classes
from keras_convnets.errors import UserError
from keras_convnets.files import read_json, sha256, write_json
from keras_convnets.preprocessing import Preprocessing

if TYPE_CHECKING:
    import keras

FILE_NAME = "model.json"
FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """All that export, serving and evaluation need to know of a trained network besides its weights.

    Attributes:
        architecture: the registered name, such as "ResNet20".
        arguments: what its builder took, such as {"classes": 10, "input_shape": [32, 32, 3]}.
        class_names: the classes, in the order of the outputs.
        preprocessing: what the first layer does.
        view: how an image becomes an input: {"name": "center", "resize": shorter side, "crop": side}, in pixels.
        trained: whether the weights come from training.
        data: the data set: name, number of images by split, and its fingerprint.
        recipe: the resolved recipe, by field.
        metrics: by "data/split/protocol": the measured figures, with n.
        seed: of the training.
        weights: file and sha256.
        versions: of Python and of the libraries.
        git_revision: of the checkout that trained, or None.
        class_ids: ids of the classes besides their names, such as ImageNet's "n01440764"; empty where there are none.
        export: of an exported version: the measured differences from Keras, and what was allowed.
    """

    architecture: str
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    view: dict[str, Any]
    trained: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    weights: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    class_ids: tuple[str, ...] = ()
    export: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain.update(class_names=list(self.class_names), class_ids=list(self.class_ids))
        plain.update(preprocessing=self.preprocessing.to_dict())
        return {"format": FORMAT, **plain}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], where: object = "the model card") -> ModelCard:
        """Return the card that `to_dict` wrote.

        Raises:
            UserError: if it is of another format, or fields are missing.
        """
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise UserError(f"{where} is not a model card of format {FORMAT}; write it again with this version.")
        known = {item.name for item in dataclasses.fields(cls)}
        values = {key: value for key, value in plain.items() if key in known}
        try:
            values["class_names"] = tuple(values["class_names"])
            values["class_ids"] = tuple(values.get("class_ids", ()))
            values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where} is not a whole model card: {error} is missing or wrong.") from error

    @classmethod
    def read(cls, folder: str | os.PathLike) -> ModelCard:
        """Read `model.json` from a folder, or from the file itself."""
        path = Path(folder)
        path = path / FILE_NAME if path.is_dir() else path
        return cls.from_dict(read_json(path, "model card"), where=path)

    def write(self, folder: str | os.PathLike) -> None:
        """Write `model.json` into a folder, by rename."""
        write_json(Path(folder) / FILE_NAME, self.to_dict())

    def with_metrics(self, key: str, figures: dict[str, Any]) -> ModelCard:
        """Return a card with the figures added under "data/split/protocol"; other figures stay."""
        return dataclasses.replace(self, metrics={**self.metrics, key: figures})


def current_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    versions = {"python": platform.python_version()}
    for name in ("keras-convnets", "keras", "tensorflow", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def current_git_revision() -> str | None:
    """Return the revision of the checkout this package runs from, or None outside one."""
    here = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def card_of_model(model: keras.Model, class_names: tuple[str, ...] | None = None) -> ModelCard:
    """Return the card of a network that no run describes, from the network itself.

    Args:
        model: a functional model with one input [batch, H, W, 3] of fixed size and one output [batch, classes].
        class_names: the classes; by default "0", "1" and so on.

    Raises:
        UserError: if the model is of another form.
    """
    shape, outputs = model.input_shape, model.output_shape
    if isinstance(outputs, dict) and "probabilities" in outputs:  # beside auxiliary classifiers
        outputs = outputs["probabilities"]
    if not _is_image_shape(shape) or not isinstance(outputs, tuple) or len(outputs) != 2:
        raise UserError(
            f"{model.name} takes {shape} and gives {outputs}; a classifier takes images of one fixed size "
            "(height, width, 3) and gives (batch, classes): build it with include_top=True and an input_shape."
        )
    shape = tuple(shape[1:])
    if class_names is not None and len(class_names) != outputs[1]:
        raise UserError(
            f"{model.name} has {outputs[1]} classes and {len(class_names)} class names came; give one for each."
        )
    from keras_convnets.transfer import leaves

    first = next((layer for layer in leaves(model) if hasattr(layer, "preprocessing")), None)
    preprocessing = first.preprocessing if first else Preprocessing(mean=(0.0, 0.0, 0.0))
    facts = _published_facts(model, shape, outputs[1])
    if class_names is not None:
        facts |= {"class_names": tuple(class_names), "class_ids": ()}
    return ModelCard(
        **{
            "architecture": model.name,
            "arguments": {"classes": outputs[1], "input_shape": list(shape)},
            "class_names": tuple(str(index) for index in range(outputs[1])),
            "preprocessing": preprocessing,
            "view": center_view(shape[0], shape[1]),
            "versions": current_versions(),
            **facts,
        }
    )


def _published_facts(model: keras.Model, shape: tuple[int, ...], outputs: int) -> dict[str, Any]:
    """Return what the weights that a network was built with say of it: nothing where they say nothing."""
    weights = getattr(model, "published_weights", None)
    if weights is None:
        return {}
    facts = {
        "architecture": weights.architecture,
        "arguments": {"classes": outputs, "input_shape": list(shape), **_plain(weights.arguments)},
        "trained": True,
        "weights": {"file": weights.path.name, "sha256": sha256(weights.path)},
    }
    if weights.record is not None:
        facts["data"] = {"name": weights.record.data}
        facts["metrics"] = {
            f"{item.data}/{item.protocol}/{item.source}": {
                "n": item.n,
                "top1": item.top1 / 100,
                "top5": item.top5 / 100,
            }
            for item in weights.record.accuracies
        }
    if weights.in_imagenet_order and outputs == len(imagenet_classes().ids):
        facts |= {"class_names": imagenet_classes().names, "class_ids": imagenet_classes().ids}
        facts["view"] = center_view(shape[0], shape[1], resize=max(256, shape[0], shape[1]))
    return facts


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _is_image_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:] and shape[3] == 3


def center_view(height: int, width: int, resize: int | None = None) -> dict[str, Any]:
    """Return the plain single view: the shorter side resized, by default to the input's, and its centre cropped.

    Bilinear with antialiasing, aspect ratio kept; an image of the input's own size is left as it is where the shorter
    side is resized to the input's.
    """
    side = min(height, width) if resize is None else resize
    return {"name": "center", "resize": side, "crop": [height, width], "kernel": "bilinear"}
