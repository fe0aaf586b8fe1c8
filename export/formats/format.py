"""What a format is: the artifacts that it puts into a version, how they are written and loaded, how exact they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keras_convnets.card import ModelCard, card_of_model
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.export.repository import EXTRA
from keras_convnets.prediction import Classifier, keras_classifier
from keras_convnets.weights.loading import network_of_file

if TYPE_CHECKING:
    import keras
    import numpy as np

# Both sides compute in float32 with other orders of summation; over these networks that has stayed under 1e-6, and
# 1e-5 never changes which of two answers a person would believe.
FLOAT32_TOLERANCE = 1e-5
# Eight bits are judged by what they do to answers, not to single numbers: the mean change of the probability of the
# class that Keras finds likeliest. What lies beyond is no quantised network but a broken one.
INT8_TOLERANCE = 0.25
# An untrained network of many layers gives logits in the hundreds, in which float32's rounding is as many times larger.
UNTRAINED_FACTOR = 10
# Memory layouts of an ONNX file's input.
LAYOUTS = ("nhwc", "nchw")


@dataclass(frozen=True)
class Artifact:
    """One file (or SavedModel) of a version.

    Attributes:
        key: its name in the card, such as "onnx int8".
        file: its name in the version's folder; "" for the SavedModel, which is the folder itself.
        runtime: "tensorflow" or "onnxruntime", which loads it for verification.
        precision: "float32", "float16" or "int8".
        largest_difference: of a probability from Keras that is allowed of a trained network; of int8, the largest mean
            change of the probability of the class that Keras finds likeliest.
    """

    key: str
    file: str
    runtime: str
    precision: str
    largest_difference: float

    def tolerance(self, trained: bool) -> float:
        """Return the largest difference that is allowed.

        Args:
            trained: whether the network is.
        """
        return self.largest_difference if trained else min(self.largest_difference * UNTRAINED_FACTOR, 1.0)


@dataclass(frozen=True)
class Job:
    """What is to be written.

    Attributes:
        networks: an inference network: `images` [batch, H, W, 3] -> a dictionary with "probabilities" [batch, classes]
            and maybe "features" [batch, d]. Of a committee whose members have different views, one for each member.
        card: its class names and view.
        layout: of the ONNX files' input: "nhwc" or "nchw".
        calibration: uint8 [n, H, W, 3], RGB, what int8 is calibrated on; None where nothing is quantised.
        models: the networks as they were trained, in the order of `networks`.
        naming: how files of weights name the layers: "torchvision" or "keras_convnets".
    """

    networks: tuple[keras.Model, ...]
    card: ModelCard
    layout: str
    calibration: np.ndarray | None
    models: tuple[keras.Model, ...] = ()
    naming: str = "torchvision"

    @property
    def network(self) -> keras.Model:
        """The one inference network."""
        (network,) = self.networks
        return network

    @property
    def model(self) -> keras.Model:
        """The one network as it was trained.

        Raises:
            UserError: if no builder of this package made it: only those can be built again from a file of weights.
        """
        (model,) = self.models
        if getattr(model, "built_as", None) is None:
            raise UserError(f"{model.name} was made by no builder of this package; save its weights as Keras does.")
        return model


@dataclass(frozen=True)
class Format:
    """One of the formats that a network is exported in.

    Attributes:
        artifacts: what it puts into a version.
        write: writes one of its artifacts into a version's folder.
        load: loads an artifact by its path; the card is what is known of it, None to look for it. The classifier has
            no card where there is none to be found.
        suffix: how its files' names end; "" for a folder.
        requires: the formats that its writer reads in the same folder, by name.
        of_one_network: whether no committee can be written in it.
    """

    artifacts: tuple[Artifact, ...]
    write: Callable[[Job, Artifact, Path], None]
    load: Callable[[Path, ModelCard | None], Classifier]
    suffix: str = ""
    requires: tuple[str, ...] = ()
    of_one_network: bool = False


def check_layout(layout: str) -> None:
    """Check the name of a layout.

    Raises:
        UserError: if there is no such layout.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)


def card_beside(path: Path) -> ModelCard | None:
    """Return the card of the version that contains a file, or None."""
    beside = path.parent / EXTRA
    return ModelCard.read(beside) if (beside / "model.json").is_file() else None


def load_weights_file(path: Path, card: ModelCard | None = None) -> Classifier:
    """Build the network that a file of weights describes, and load the file into it.

    Args:
        path: a .safetensors or .weights.h5 file.
        card: what is known of it; by default the card of the version that contains it, else what the file says.

    Raises:
        UserError: if the file does not say what network it holds the weights of, or they do not fit it.
    """
    model = network_of_file(path)
    return keras_classifier(model, card or card_beside(path) or card_of_model(model))


def check_names(names: Sequence[str], path: Path) -> None:
    """Check the names of a file's inputs and outputs.

    Raises:
        UserError: if they are others than those of an export.
    """
    if list(names) != ["images", "probabilities"]:
        raise foreign_file(path, f"takes and gives {', '.join(names)}")


def foreign_file(path: Path, why: str) -> UserError:
    """Return the error for a file that was not exported here."""
    return UserError(f"{path} {why}; only files that keras-convnets export wrote can be used here.")
