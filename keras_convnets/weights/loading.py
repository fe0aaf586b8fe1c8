"""Loading of weights, published ones by name or a file; everything is checked before any weight is set."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_convnets.classes import imagenet_classes
from keras_convnets.errors import UserError
from keras_convnets.files import path_text, sha256
from keras_convnets.images import preprocessing
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.images.view import IMAGENET_SIDE, View
from keras_convnets.networks.architecture import Convention
from keras_convnets.networks.registry import ARCHITECTURES, BUILDERS
from keras_convnets.weights import graph_comparison, hub, keras_reader, onnx_reader, state_dict_reader
from keras_convnets.weights.naming import NAMINGS, OURS
from keras_convnets.weights.pretrained import WeightsRecord, get_record, list_weights, record_of_file, trained_folder

if TYPE_CHECKING:
    import keras

    from keras_convnets.weights import assignment

# How files may end, in small or capital letters, and the kind of file that it stands for.
FILE_KINDS = {
    **{suffix: suffix for suffix in (".onnx", ".keras", ".weights.h5", ".h5", ".safetensors", ".pth")},
    ".weights.hdf5": ".weights.h5",
    ".hdf5": ".h5",
    ".pt": ".pth",
    ".th": ".pth",
    ".pth.tar": ".pth",
}
WEIGHT_SUFFIXES = tuple(FILE_KINDS)
STATE_DICTS = (".safetensors", ".pth")
FILES = ".onnx, .keras, .weights.h5, .h5, .safetensors or .pth"
TAKES = f"None, the name of published weights, hf://OWNER/NAME, a WeightsRecord, or the path of a {FILES} file"
log = logging.getLogger("keras_convnets")


@dataclass(frozen=True)
class Weights:
    """A weights file for one network, found and known, not loaded yet.

    Attributes:
        path: the file.
        architecture: the builder's name.
        record: of the published weights that the file holds, or None.
    """

    path: Path
    architecture: str
    record: WeightsRecord | None = None

    @property
    def suffix(self) -> str:
        """The kind of the file: one of the values of `FILE_KINDS`."""
        return next(kind for suffix, kind in FILE_KINDS.items() if str(self.path).lower().endswith(suffix))

    @functools.cached_property
    def preprocessing(self) -> Preprocessing | None:
        """What the weights were trained on: the record's, else the file's own, else its kind's; None if none says."""
        if self.stated_preprocessing is not None:
            return self.stated_preprocessing
        return getattr(preprocessing, self._convention.preprocessing) if self._convention else None

    @functools.cached_property
    def stated_preprocessing(self) -> Preprocessing | None:
        """What the record or the file itself says that the weights were trained on; None if neither does."""
        if self.record is not None:
            return self.record.preprocessing
        if self.suffix in (".keras", ".h5", ".weights.h5"):
            layers = keras_reader.layers_in(keras_reader.configuration(self.path))
            found = [config["preprocessing"] for kind, config in layers if kind == "ImageNormalization"]
            if found:
                return Preprocessing.from_dict(found[0])
        said = self._metadata.get("preprocessing")
        with keras_reader.refusing(self.path, "a file that says its preprocessing"):
            return None if said is None else Preprocessing.from_dict(said)

    @functools.cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The builder's arguments that the weights ask for, such as the constants of the response normalisation."""
        if self.record is not None:
            return self.record.arguments
        return {"lrn": dict(self._onnx.lrn)} if self._onnx is not None and self._onnx.lrn else {}

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """The size of the images they were trained on, where it is not the paper's."""
        if self.record is not None:
            return self.record.input_shape
        return self._convention.input_shape if self._convention else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs: the record's, or ImageNet's for kinds of files that hold
        published ImageNet weights; () if they are unknown."""
        if self.record is not None:
            return self.record.class_names
        if "class_names" in self._metadata:
            return tuple(map(str, self._metadata["class_names"]))
        return imagenet_classes().names if self._of_imagenet else ()

    @property
    def class_ids(self) -> tuple[str, ...]:
        """WordNet ids of the classes, if `class_names` are ImageNet's; else ()."""
        if self.record is not None:
            return self.record.class_ids
        if "class_ids" in self._metadata:
            return tuple(map(str, self._metadata["class_ids"]))
        return imagenet_classes().ids if self._of_imagenet else ()

    def view(self, height: int, width: int) -> View:
        """Return how the weights were evaluated at an input size: the record's shorter side, or the input's."""
        resize = self.record.resize if self.record is not None else IMAGENET_SIDE
        kernel = self.record.kernel if self.record is not None else "bilinear"
        return View(max(resize, height, width), (height, width), kernel)

    def load_into(self, model: keras.Model, chosen: Collection[str] = ()) -> bool:
        """Put the weights into a network; returns whether its classifier was among them.

        Args:
            model: the network.
            chosen: arguments of its builder that its caller gave, whatever the weights ask for, such as "lrn".

        Raises:
            UserError: if the file belongs to another network; nothing is changed then. The message names the network
                of the family that it fits, if one does.
        """
        try:
            values = self._values(model, chosen)
        except UserError as error:
            fitting = self._fitting(model)
            if fitting is None:
                raise
            raise UserError(f"{str(error).removesuffix('.')}; {fitting} takes it.") from error
        from keras_convnets.networks.graph import leaves

        self._say_what_is_not_known(model)
        # The network keeps this object; the file's arrays are dropped.
        for kept in ("_onnx", "_state_dict"):
            self.__dict__.pop(kept, None)
        for layer, arrays in values:
            layer.set_weights(arrays)
        loaded = {layer.name for layer, _ in values}
        left = [layer.name for layer in leaves(model) if layer.weights and layer.name not in loaded]
        if left:
            log.warning(
                "%s: loaded all but %s, which the file has for other classes or not at all: untrained",
                self.path,
                ", ".join(left),
            )
        return "predictions" in loaded

    def _values(self, model: keras.Model, chosen: Collection[str] = ()) -> assignment.Values:
        """Return what each layer of a network gets. Arguments and errors as of `load_into`."""
        from keras_convnets.networks.graph import leaves
        from keras_convnets.weights import assignment

        steps: Iterable[graph_comparison.Step] | None
        if self._onnx is not None:
            onnx = self._onnx
            if assignment.is_folded(model, onnx.layers):
                onnx = onnx_reader.with_normalizations(onnx)
            pairs, steps = assignment.in_order(model, onnx.layers, self.path), onnx.steps
        elif self._state_dict is not None:
            pairs, steps = self._of_state_dict(model, self._state_dict)
        else:
            sizes = {layer.name: _largest(layer) for layer in leaves(model)}
            pairs = assignment.by_name(model, keras_reader.read_h5(self.path, sizes), self.path)
            config = keras_reader.configuration(self.path)
            steps = None if config is None else graph_comparison.keras_steps(config)
        values = assignment.converted(model, pairs, self.path)
        if steps is not None:
            self._check_structure(model, pairs, steps, chosen)
        return values

    def _of_state_dict(
        self, model: keras.Model, state: state_dict_reader.StateDict
    ) -> tuple[list[assignment.Pair], list[graph_comparison.Step] | None]:
        """Return the pairs of a network's layers and a state dictionary's, and the steps where the file says them."""
        from keras_convnets.networks.graph import leaves
        from keras_convnets.weights import assignment

        state_dict_reader.refuse_variants(state, self.path, model.name)
        ours = [layer.name for layer in leaves(model) if layer.weights]
        naming = state_dict_reader.naming_of(state, ours)
        stored, names = state_dict_reader.stored_layers(state, ours, naming)
        pairs = assignment.by_name(model, stored, self.path, names)
        if "config" in state.metadata:
            return pairs, list(graph_comparison.keras_steps(state.metadata["config"]))
        # Nothing in such files tells a block's strides; those of PyTorch's libraries are known.
        reduced = next((layer.name for layer, _ in pairs if assignment.strides_1x1(layer)), None)
        if reduced is not None and naming != OURS:
            raise UserError(
                f"{self.path} does not hold weights for {model.name}: {reduced}, of 1x1, has stride 2, as in the "
                f"paper; in the networks of {naming} the 3x3 convolution behind it has."
            )
        return pairs, None

    def _say_what_is_not_known(self, model: keras.Model) -> None:
        """Log what the file does not say about the network that takes its weights."""
        from keras_convnets.networks.graph import leaves
        from keras_convnets.weights import assignment

        if self._state_dict is not None:
            self._say_what_is_assumed(self._state_dict, [layer.name for layer in leaves(model) if layer.weights])
            known = "config" in self._state_dict.metadata
        else:
            known = self._onnx is not None or keras_reader.configuration(self.path) is not None
        if not known:
            log.warning(
                "%s tells names and shapes alone: that its network pads, activates, pools and adds as %s does is "
                "taken on trust",
                self.path,
                model.name,
            )
        if self._onnx is not None and assignment.is_folded(model, self._onnx.layers):
            log.warning(
                "%s has its batch normalisation folded into its convolutions: answers are its own, but training would "
                "start from other features. To train on, export it from PyTorch again with "
                "training=torch.onnx.TrainingMode.PRESERVE",
                self.path,
            )

    def _say_what_is_assumed(self, state: state_dict_reader.StateDict, layers: Sequence[str]) -> None:
        """Log by what naming a state dictionary was read, and what follows from it."""
        naming = state_dict_reader.naming_of(state, layers)
        log.info("%s has its layers named as in %s", self.path, naming)
        if NAMINGS[naming].zeros_on_both_sides and any("_block" in layer for layer in layers):
            log.warning(
                "%s: as in %s, its shortcuts without weights are taken to add zero channels on both sides; they were "
                "put behind the others",
                self.path,
                naming,
            )

    def _fitting(self, model: keras.Model) -> str | None:
        """Return the call that builds a network of the same family which takes the file; None if none does."""
        from keras_convnets.weights.suggestions import fitting

        try:
            weighted = self._count_weighted()
        except UserError:
            return None
        # Of the response normalisation the constants are the file's, which its builder would have been given.
        return fitting(model, self.architecture, weighted, lambda relative: self._values(relative, ("lrn",)))

    def _count_weighted(self) -> int:
        """Return how many convolutions and fully connected layers the file has."""
        if self._state_dict is not None:
            return sum(array.ndim in (2, 4) for array in self._state_dict.arrays.values())
        stored = self._onnx.layers if self._onnx is not None else keras_reader.read_h5(self.path, {})
        return sum(layer.kind in ("Conv2D", "Dense") for layer in stored)

    @property
    def _convention(self) -> Convention | None:
        """How files of this kind are known to have been trained that no record describes."""
        family = BUILDERS.get(self.architecture)
        return family.conventions.get(self.suffix) if family else None

    @functools.cached_property
    def _onnx(self) -> onnx_reader.OnnxWeights | None:
        return onnx_reader.read_onnx(self.path) if self.suffix == ".onnx" else None

    @functools.cached_property
    def _state_dict(self) -> state_dict_reader.StateDict | None:
        return state_dict_reader.read_state_dict(self.path) if self.suffix in STATE_DICTS else None

    @functools.cached_property
    def _metadata(self) -> Mapping[str, Any]:
        """What a file of this package says of its network, besides the arrays."""
        return state_dict_reader.read_metadata(self.path) if self.suffix in STATE_DICTS else {}

    @property
    def _of_imagenet(self) -> bool:
        """Whether files of this kind are known to hold weights of ImageNet's 1,000 classes."""
        family = BUILDERS.get(self.architecture)
        return self._convention is not None and family is not None and family.classes == len(imagenet_classes().names)

    def _check_structure(
        self, model: keras.Model, pairs: Sequence[Any], steps: Iterable[graph_comparison.Step], chosen: Collection[str]
    ) -> None:
        """Refuse a file whose network differs between its layers, even where all shapes agree."""
        names: dict[Hashable, str] = {position: layer.name for position, (layer, _) in enumerate(pairs)}
        theirs = {stored.name if stored.step is None else stored.step: at for at, (_, stored) in enumerate(pairs)}
        height, width = (side or graph_comparison.ANY_SIDE for side in model.input_shape[1:3])
        size = (height, width)
        forms = graph_comparison.Forms()
        # A record knows the constants that its file was trained with.
        known = self.record.arguments if self.record is not None else {}
        ignoring = ("LRN",) if "lrn" in {*chosen, *known} else ()
        own = graph_comparison.keras_steps(model.get_config())
        try:
            found = graph_comparison.places(steps, theirs, size, forms, ignoring)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise UserError(f"{self.path} is not a network that can be compared ({type(error).__name__}).") from error
        ours = graph_comparison.places(own, {name: at for at, name in names.items()}, size, forms, ignoring)
        differing = graph_comparison.difference(ours, found, names, forms)
        if differing is not None:
            sized = "padding" in differing or "places" in differing
            elsewhere = sized and self.input_shape not in (None, model.input_shape[1:])
            hint = f"; its own size is input_shape={self.input_shape}" if elsewhere else ""
            raise UserError(
                f"{self.path} does not hold weights for {model.name}, as its layers are those of another network: "
                f"{differing}{hint}."
            )


# What builders take as weights=.
WeightsArgument = str | os.PathLike[str] | WeightsRecord | Weights | None


def _largest(layer: keras.layers.Layer) -> int:
    """Return how many numbers the largest array of a layer has."""
    return max((math.prod(weight.shape) for weight in layer.weights), default=0)


def find_weights(weights: Any, architecture: str) -> Weights | None:
    """Return the weights that a builder's argument names; published ones are downloaded on first use.

    Args:
        weights: None, a name such as "imagenet", the address of a repository on the Hugging Face Hub, "timm/NAME" or
            "hf://OWNER/NAME@REVISION", a `WeightsRecord`, or the path of a file. A name is a name whatever lies in the
            working directory; "./imagenet" is a path.
        architecture: the builder's name.

    Raises:
        UserError: if there is no such name or file, a record is of another network, or it is none of these.
        DownloadError: if published weights can't be downloaded; the message says where to put the file by hand.
    """
    if weights is None or isinstance(weights, Weights):
        return weights
    if isinstance(weights, str) and hub.is_address(weights):
        return Weights(*_of_hub(weights, architecture))
    if not isinstance(weights, WeightsRecord):
        text = path_text(weights, "weights", TAKES)
        if not isinstance(weights, str) or _is_path(text):
            return _of_file(Path(text), architecture)
        if architecture not in ARCHITECTURES:
            raise UserError(
                f"weights is {text!r}; {architecture} has no published weights: give None or the path of a {FILES} "
                "file."
            )
        weights = get_record(architecture, text)
    if weights.architecture != architecture:
        raise UserError(f"the weights {weights} are not those of {architecture}; give its own, or None.")
    if weights.on_hub:
        return Weights(*_of_hub("@".join(filter(None, (weights.locations[0], weights.revision))), architecture))
    return Weights(_file_of(weights), architecture, weights)


def _of_hub(address: str, architecture: str) -> tuple[Path, str, WeightsRecord | None]:
    path, record = hub.find(architecture, address)
    log.info("%s is %s%s", address, path, f", commit {record.revision}" if record else "")
    return path, architecture, record


def _file_of(record: WeightsRecord) -> Path:
    """Return the verified file of a record: a part of this package, or downloaded."""
    if record.locations:
        from keras_convnets.weights.downloads import download

        if record.format == "pth":
            state_dict_reader.check_pytorch(f"{record}, {record.file},")
        return download(record)
    path = trained_folder() / record.file
    if not path.is_file() or sha256(path) != record.sha256:
        state = "differs from the one released" if path.is_file() else "is missing"
        raise UserError(f"{path}, a part of keras-convnets, {state}; install keras-convnets again.")
    return path


def _is_path(text: str) -> bool:
    """Whether a text names a file: names that any network's weights have come first."""
    if text.lower() in {record.name.lower() for record in list_weights()}:
        return False
    return text.lower().endswith(WEIGHT_SUFFIXES) or os.sep in text or "/" in text or Path(text).exists()


def _of_file(path: Path, architecture: str) -> Weights:
    if not str(path).lower().endswith(WEIGHT_SUFFIXES):
        raise UserError(f"weights is {str(path)!r}; give the path of a {FILES} file, or None.")
    if not path.is_file():
        raise UserError(f"there is no weights file {path}; give the path of an existing {path.suffix} file.")
    return Weights(path, architecture, record_of_file(architecture, sha256(path)))


def load_weights(model: keras.Model, weights: Any) -> None:
    """Load weights into a network that is built already; None leaves it as it is.

    The normalisation and the other constants of the network stay; give the weights to its builder to have those that
    the weights were trained with.

    Args:
        model: a network of this package.
        weights: None, the name of published weights, a `WeightsRecord`, or the path of a .onnx, .keras, .weights.h5,
            legacy .h5, .safetensors or .pth file.

    Raises:
        UserError: if there is no such file, or it belongs to another network; nothing is changed then.
    """
    by_lower = {name.lower(): name for name in ARCHITECTURES}
    found = find_weights(weights, by_lower.get(model.name.lower(), model.name))
    if found is None:
        return
    found.load_into(model)
    first = next((layer.preprocessing for layer in model.layers if hasattr(layer, "preprocessing")), None)
    if first is not None and found.preprocessing not in (None, first):
        log.warning(
            "%s was trained on other preprocessing than the network does; give it to the builder as weights=.",
            found.path,
        )


def network_of_file(path: str | os.PathLike) -> keras.Model:
    """Return the network that a .safetensors or .weights.h5 file of this package describes, with its weights.

    Raises:
        UserError: if the file does not say what network it holds the weights of, or they do not fit it.
    """
    from keras_convnets.networks.spec import ModelSpec

    if str(path).lower().endswith(".safetensors"):
        config = state_dict_reader.read_metadata(Path(path)).get("config")
    else:
        config = keras_reader.configuration(path)
    built_as = (config or {}).get("built_as")
    if built_as is None:
        raise UserError(
            f"{path} does not say what network it holds the weights of; build it and give the file as weights=."
        )
    with keras_reader.refusing(Path(path), "a file that says what network it holds the weights of"):
        spec = ModelSpec.from_dict(built_as)
    return spec.build(weights=path)


def choose_preprocessing(given: Any, weights: Weights | None, default: Preprocessing) -> Preprocessing:
    """Return the argument's preprocessing, else that of the weights, else the default; the log says which.

    Raises:
        UserError: if the argument is no preprocessing, or the file can't be read.
    """
    if given is not None:
        chosen, source = Preprocessing.of(given), "the argument"
    elif weights is not None and weights.preprocessing is not None:
        chosen = weights.preprocessing
        if weights.record is not None:
            source = f"the record {weights.record}"
        elif weights.stated_preprocessing is not None:
            source = str(weights.path)
        else:
            source = f"{weights.path}, as published files of its kind (assumed)"
    else:
        chosen, source = default, "the network's default"
    log.info("preprocessing by %s: %s minus %s, divided by %s", source, chosen.order, chosen.mean, chosen.std)
    return chosen
