"""The model card, `model.json`: a network's identity, origin and accuracy."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.classes import check_class_names
from keras_convnets.errors import UserError
from keras_convnets.files import read_json, sha256, write_json
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.images.view import View
from keras_convnets.networks.registry import BUILDERS, get_builder

if TYPE_CHECKING:
    import keras

    from keras_convnets.weights.pretrained import WeightsRecord

FILE_NAME = "model.json"
FORMAT = 1
log = logging.getLogger("keras_convnets")


@dataclass(frozen=True)
class ModelCard:
    """What export, serving and evaluation need to know about a trained network, apart from its weights.

    Attributes:
        architecture: the builder's name, such as "ResNet20"; of a network that none of this package made, its own.
        arguments: what the builder took that is not its default, such as {"classes": 10, "input_shape": [32, 32, 3]};
            empty where no builder of this package made the network.
        class_names: the classes, in the order of the outputs.
        preprocessing: what the first layer does.
        view: how an image becomes an input.
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
        members: of a committee, whose networks' probabilities are averaged: their cards. `view` is then the first's.
    """

    architecture: str
    arguments: dict[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    view: View
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
    members: tuple[ModelCard, ...] = ()

    def __post_init__(self) -> None:
        check_class_names(self.class_names, f"the model card of {self.architecture}")
        if not isinstance(self.view, View):
            raise UserError(f"the model card of {self.architecture} has the view {self.view!r}; give it a View.")

    @property
    def has_one_view(self) -> bool:
        """Whether `view` is how all of the network sees an image, as but for committees of different views it is."""
        return all(member.view == self.view for member in self.members)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain.update(class_names=list(self.class_names), class_ids=list(self.class_ids))
        plain.update(preprocessing=self.preprocessing.to_dict(), view=self.view.to_dict())
        plain.update(members=[member.to_dict() for member in self.members])
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
            values["members"] = tuple(cls.from_dict(member, where) for member in values.get("members", ()))
            values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            values["view"] = View.from_dict(values["view"], f"the view of {where}")
            _check_file_name(values.get("weights", {}).get("file"), where)
            return cls(**values)
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
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

    def build(self, **arguments: Any) -> keras.Model:
        """Return the network that the card describes, with weights as they are initialised.

        Args:
            **arguments: of its builder, in place of the card's or besides them, such as `weights`.

        Raises:
            UserError: if no builder of this package made it, or the card's arguments are none of its.
        """
        if self.architecture not in BUILDERS or not self.arguments:
            raise UserError(f"{self.architecture} was made by no builder of this package; load its file instead.")
        given = {"preprocessing": self.preprocessing} if self.arguments.get("include_preprocessing", True) else {}
        try:
            return get_builder(self.architecture)(**{**given, **self.arguments, **arguments})
        except TypeError as error:
            raise UserError(f"the model card's arguments are none of {self.architecture}'s ({error}).") from error

    def with_metrics(self, key: str, figures: dict[str, Any]) -> ModelCard:
        """Return a card with the figures added under "data/split/protocol"; other figures stay."""
        return dataclasses.replace(self, metrics={**self.metrics, key: figures})


def _check_file_name(name: Any, where: object) -> None:
    """Refuse a weights file elsewhere than beside the card."""
    if name is not None and (not isinstance(name, str) or name == ".." or Path(name).name != name):
        raise UserError(f"{where} names the weights file {name!r}; it must lie beside the card: give its name alone.")


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
    """Return the revision of the checkout this package runs from, or None outside one.

    A package that is installed inside another repository's folder has no revision: that one is not its own.
    """
    file = Path(__file__).resolve()
    # Within a hook git has named another repository by such variables.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def answer(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True, env=environment
        ).stdout.strip()

    try:
        is_own = answer("rev-parse", "--show-prefix") == f"{file.parent.name}/"
        return answer("rev-parse", "HEAD") if is_own and answer("ls-files", "--", file.name) else None
    except (OSError, subprocess.SubprocessError):
        return None


def card_of_model(model: keras.Model, class_names: tuple[str, ...] | None = None) -> ModelCard:
    """Return the card of a network that no run describes, from the network itself.

    Args:
        model: a functional model with one input [batch, H, W, 3] of fixed size and one output [batch, classes].
        class_names: the classes; by default those of published weights, else "0", "1" and so on.

    Raises:
        UserError: if the model is of another form, or gives neither probabilities nor logits.
    """
    from keras_convnets.networks.outputs import main_output, meaning

    main = main_output(model)  # perhaps beside auxiliary classifiers
    shape, outputs = model.input_shape, model.output_shape if main is None else tuple(main.shape)
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
    from keras_convnets.networks.graph import leaves

    meaning(model)
    first = next((layer for layer in leaves(model) if hasattr(layer, "preprocessing")), None)
    note = getattr(model, "built_as", None)
    preprocessing = first.preprocessing if first else Preprocessing(mean=(0.0, 0.0, 0.0))
    facts = _published_facts(model, shape, outputs[1])
    if class_names is not None:
        facts |= {"class_names": tuple(class_names), "class_ids": ()}
    return ModelCard(
        **{
            "architecture": note.architecture if note else model.name,
            "arguments": dict(note.arguments) if note else {},
            "class_names": tuple(str(index) for index in range(outputs[1])),
            "preprocessing": preprocessing,
            "view": View.of_size(shape[0], shape[1]),
            "versions": current_versions(),
            **facts,
        }
    )


def _published_facts(model: keras.Model, shape: tuple[int, ...], outputs: int) -> dict[str, Any]:
    """Return the card's facts that come from the published weights a network was built with, or converted from.

    What was measured of the file, and its sha256, hold as long as the network has its weights.
    """
    weights, known = getattr(model, "published_weights", None), getattr(model, "known_classes", None)
    if weights is None and known is not None:
        view = {"view": View.of_imagenet(shape[0], shape[1])} if known.class_ids else {}
        return {"trained": True, "class_names": known.class_names, "class_ids": known.class_ids, **view}
    if weights is None:
        return {}
    from keras_convnets.networks.functional import weights_digest

    facts: dict[str, Any] = {"trained": True}
    if tuple(model.published_digest) != weights_digest(model):
        log.warning(
            "%s no longer has the weights of %s: their accuracies and sha256 are not those of its card; the names of "
            "the classes are kept.",
            model.name,
            weights.path.name,
        )
    else:
        facts["weights"] = {"file": weights.path.name, "sha256": sha256(weights.path)}
        if weights.record is not None and weights.record.revision:
            facts["weights"] |= {"source": weights.record.locations[0], "revision": weights.record.revision}
        facts |= _recorded_facts(weights.record)
    if outputs == len(weights.class_names):
        facts |= {"class_names": weights.class_names, "class_ids": weights.class_ids}
        facts["view"] = weights.view(shape[0], shape[1])
    return facts


def _recorded_facts(record: WeightsRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    metrics = {
        f"{item.data}/{item.protocol}/{item.source}": {
            "n": item.n,
            "top1": item.top1 / 100,
            **({} if item.top5 is None else {"top5": item.top5 / 100}),
        }
        for item in record.accuracies
        if item.n is not None
    }
    facts: dict[str, Any] = {"data": {"name": record.data}, "metrics": metrics}
    if record.training:
        facts |= {"recipe": dict(record.training["recipe"]), "seed": record.training["seed"]}
    return facts


def view_of_model(model: keras.Model) -> View | None:
    """Return how an image becomes a network's input, or None where the input has no fixed size.

    It is the view of the run that the network comes from, else that of the published weights it was built with or
    converted from, else resize and centre crop to its input size.
    """
    own = getattr(model, "evaluation_view", None)
    shape: Any = getattr(model, "input_shape", None)
    if own is not None or not _is_image_shape(shape):
        return own
    from keras_convnets.networks.outputs import main_output

    weights, main = getattr(model, "published_weights", None), main_output(model)
    if weights is not None and main is not None and main.shape[-1] == len(weights.class_names):
        return weights.view(shape[1], shape[2])
    known = getattr(model, "known_classes", None)
    if weights is None and known is not None and known.class_ids:
        return View.of_imagenet(shape[1], shape[2])
    return View.of_size(shape[1], shape[2])


def _is_image_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:] and shape[3] == 3
