"""Common parts of all builders: the arguments of keras.applications, input, classifier, and loading of weights.

A family's file holds the paper's table, one function that builds a network of it, and the builders: ordinary functions
that `application` gives the signature of keras.applications.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec

import keras
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.networks.functional import Functional, weights_digest
from keras_convnets.networks.layers import ImageNormalization
from keras_convnets.networks.spec import ELSEWHERE, ModelSpec
from keras_convnets.numbers import whole_number
from keras_convnets.weights.loading import Weights, WeightsArgument, choose_preprocessing, find_weights

P = ParamSpec("P")
Shape = Sequence[int | None] | None
Pooling = Literal["avg", "max"] | None
Activation = str | Callable[..., Any] | None


@dataclass(frozen=True)
class Common:
    """The arguments that every builder takes; `common_arguments` documents them.

    `chosen` is not an argument: names of the network's own arguments that the caller gave, which override the weights'.
    """

    include_top: bool
    weights: Weights | None
    input_tensor: Any
    input_shape: Shape
    pooling: Pooling
    classes: int
    classifier_activation: Activation
    name: str
    include_preprocessing: bool
    preprocessing: Preprocessing | None
    chosen: frozenset[str] = frozenset()

    def start(self, default_shape: tuple[int, int, int], minimum: int, default: Preprocessing) -> tuple[Any, Any]:
        """Return the input tensor, and the normalised tensor that the network starts from.

        Args:
            default_shape: the paper's input size; weights trained at another one bring their own.
            minimum: the smallest side the network accepts.
            default: the preprocessing where neither the arguments nor the weights say another.

        Raises:
            UserError: if an argument does not fit; the message says which.
        """
        self._check()
        preprocessing = None
        if self.include_preprocessing:
            preprocessing = choose_preprocessing(self.preprocessing, self.weights, default)
        if self.weights is not None and self.weights.input_shape is not None:
            default_shape = self.weights.input_shape
        if self.input_tensor is None:
            shape, inputs = default_shape if self.input_shape is None else _as_shape(self.input_shape), None
        else:
            is_keras = keras.backend.is_keras_tensor(self.input_tensor)
            inputs = self.input_tensor if is_keras else keras.Input(tensor=self.input_tensor)
            shape = tuple(inputs.shape[1:])
        _check_shape(shape, minimum, preprocessing)
        if inputs is None:
            inputs = keras.Input(shape, name="images")
        if preprocessing is None:
            return inputs, inputs
        return inputs, ImageNormalization(preprocessing, name=self._shared("preprocessing"))(inputs)

    def _check(self) -> None:
        if keras.config.image_data_format() != "channels_last":
            raise UserError(
                "keras.config.image_data_format() is 'channels_first'; these networks are NHWC only: "
                "call keras.config.set_image_data_format('channels_last') first."
            )
        if self.preprocessing is not None and not self.include_preprocessing:
            raise UserError("preprocessing was given with include_preprocessing=False; give one of the two.")
        if self.pooling not in (None, "avg", "max"):
            raise UserError(f"pooling is {self.pooling!r}; it must be None, 'avg' or 'max'.")
        if (whole_number(self.classes) or 0) < 1:
            raise UserError(f"classes is {self.classes!r}; it must be a whole number of at least 1.")

    def without_top(self, x: Any) -> Any:
        """Return the features as `pooling` says: the map itself, or its mean or maximum over all places."""
        pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
        return pools[self.pooling](name=self._shared(f"{self.pooling}_pool"))(x) if self.pooling else x

    def _shared(self, name: str) -> str:
        """Return the name of a layer that networks of all families have.

        Networks on one tensor can be combined into one model only if layer names are unique.
        """
        return name if self.input_tensor is None else f"{self.name}_{name}"

    def classifier(self, x: Any, initializer: Any, logits: str = "predictions", outputs: str = "probabilities") -> Any:
        """Add the linear layer and the softmax, as separate layers and in float32 under every dtype policy.

        The linear layer's output, the logits, is what training works on.
        """
        x = layers.Dense(self.classes, kernel_initializer=initializer, dtype="float32", name=logits)(x)
        if self.classifier_activation in (None, "linear"):
            return x
        return layers.Activation(self.classifier_activation, dtype="float32", name=outputs)(x)

    def finish(self, inputs: Any, outputs: Any) -> keras.Model:
        """Return the model, with its weights loaded; it remembers them where its classifier is theirs."""
        model = Functional(_source_input(inputs), outputs, name=self.name)
        if self.weights is not None and self.weights.load_into(model, self.chosen):
            model.published_weights = self.weights
            model.published_digest = weights_digest(model)
        return model


def check_fixed_size(x: Any, what: str) -> None:
    """Refuse a feature map of unknown size before a fully connected layer."""
    if None in tuple(x.shape[1:3]):
        raise UserError(
            f"{what} has fully connected layers and needs a fixed input size; give input_shape=(height, width, 3), "
            "or build it at its own size and use keras_convnets.fully_convolutional."
        )


def he_normal() -> keras.initializers.Initializer:
    """He et al. 2015 (arXiv:1502.01852), eq. 10: Gaussian, not truncated, variance 2 / fan-in."""
    return keras.initializers.VarianceScaling(scale=2.0, mode="fan_in", distribution="untruncated_normal")


def common_arguments(
    include_top: bool = True,
    weights: WeightsArgument = None,
    input_tensor: Any = None,
    input_shape: Shape = None,
    pooling: Pooling = None,
    classes: int = 1000,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
    *,
    include_preprocessing: bool = True,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Declare the arguments of keras.applications, and two of this package.

    Args:
        include_top: whether the classifier is there: from the last pooling to the softmax.
        weights: None (initialised as the family's module says), the name of published weights that
            `keras_convnets.list_weights` gives, downloaded on first use, a `WeightsRecord`, or the path of a .onnx
            (ONNX Model Zoo), .keras, .weights.h5, .h5 (keras.applications), .safetensors or .pth (torchvision, timm)
            file. With another number of classes everything but the classifier is loaded.
        input_tensor: a Keras tensor to use as the input. Networks of different families may share one: the first layer
            is then NAME_preprocessing, after the model's name, and the last of `pooling` likewise. Those of one
            family, or with their tops, can be called instead: network(tensor).
        input_shape: (height, width, 3); by default the paper's. Sides may be None where nothing is fully connected.
        pooling: without top: None for the feature map, "avg" or "max" for a vector.
        classes: number of classes.
        classifier_activation: "softmax", or None for logits.
        name: the model's name; by default the builder's in lower case.
        include_preprocessing: whether the first layer normalises RGB 0-255; else the bare network.
        preprocessing: the `Preprocessing` of that layer; by default that of the weights, else minus the channel
            means of the family's data.
    """


COMMON = tuple(inspect.signature(common_arguments).parameters)


def application(
    arguments: Callable[P, None], default_name: str | None = None
) -> Callable[[Callable[..., keras.Model]], Callable[P, keras.Model]]:
    """Make a function that builds a network a public builder with the signature of keras.applications.

    Args:
        arguments: a function that does nothing; it declares the builder's arguments with their types and defaults, and
            documents those that are not `common_arguments`. Type checkers see its signature.
        default_name: of the models; {} stand for arguments without default. By default the builder's in lower case.

    Returns:
        A decorator of functions `network(common, **own)`, where own are the arguments that are not common. Its
        docstring is one paragraph: what the network is, and its source.

    Example:
        >>> @application(common_arguments)
        ... def VGG16(common: Common) -> keras.Model:
        ...     "VGG-16, configuration D of Simonyan and Zisserman 2014 (arXiv:1409.1556), table 1."
        ...     return _network(common, depth=16)
    """

    def builder_of(network: Callable[..., keras.Model]) -> Callable[P, keras.Model]:
        name = network.__name__
        model_name = default_name or name.lower()
        signature = _signature(arguments, None if "{" in model_name else model_name)

        @functools.wraps(network)
        def builder(*args: P.args, **kwargs: P.kwargs) -> keras.Model:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}() {error}") from None
            bound.apply_defaults()
            values = {key: _python_number(value) for key, value in bound.arguments.items()}
            own = {key: values.pop(key) for key in signature.parameters if key not in COMMON}
            chosen = frozenset(key for key, value in own.items() if value is not None)
            values["weights"] = weights = find_weights(values["weights"], name)
            if weights is not None:
                asked = own.keys() & weights.arguments.keys()
                own |= {key: weights.arguments[key] for key in asked if own[key] is None}
            noted = {**values, **own}
            if values["name"] is None:
                values["name"] = model_name.format(**own)
            model = network(Common(**values, chosen=chosen), **own)
            if values["input_tensor"] is None or values["input_tensor"] is model.inputs[0]:
                # Else the network begins before its own first layer.
                model.built_as = _built_as(name, signature, noted, model.input_shape)
            return model

        builder.__signature__ = signature  # type: ignore[attr-defined]
        builder.__annotations__ = {key: item.annotation for key, item in signature.parameters.items()}
        builder.__doc__ = _documented(network, arguments, signature)
        return builder

    return builder_of


def _signature(arguments: Callable[..., None], name: str | None) -> inspect.Signature:
    """Return the signature that a builder has, with its types and the default of its models' name."""
    declared = inspect.signature(arguments, eval_str=True)
    parameters = [
        parameter.replace(default=name) if key == "name" else parameter
        for key, parameter in declared.parameters.items()
    ]
    return declared.replace(parameters=parameters, return_annotation=keras.Model)


def _python_number(value: Any) -> Any:
    """Return NumPy's whole numbers as Python's, which alone Keras takes; anything else as it is."""
    number = whole_number(value)
    return value if number is None else number


def _built_as(name: str, signature: inspect.Signature, values: Mapping[str, Any], input_shape: Any) -> ModelSpec:
    """Return the call that makes a network again, without its weights.

    Args:
        name: the builder's.
        signature: the builder's.
        values: of its arguments.
        input_shape: the model's, [batch, height, width, channels].
    """
    arguments: dict[str, Any] = {"classes": values["classes"], "input_shape": list(input_shape[1:])}
    for key, parameter in signature.parameters.items():
        if key not in (*arguments, *ELSEWHERE):
            value = values[key]
            value = keras.activations.serialize(value) if callable(value) else _plain(value)
            if value != parameter.default:
                arguments[key] = value
    return ModelSpec(name, arguments)


_RESULT = """

Returns:
    A functional `keras.Model`: [batch, H, W, 3], RGB in 0-255, uint8 or float, to probabilities
    [batch, classes], float32.

Raises:
    UserError: an argument, shape or weights file that does not fit.
    DownloadError: published weights that can't be downloaded.

Example:
    >>> model = {call}
"""


def _documented(network: Callable[..., Any], arguments: Callable[..., None], signature: inspect.Signature) -> str:
    """Return a builder's docstring: the network's, all its arguments, what it returns and raises."""
    declared = [common_arguments] if arguments is common_arguments else [arguments, common_arguments]
    rows = [inspect.cleandoc(function.__doc__ or "").partition("Args:\n")[2].rstrip() for function in declared]
    needs_depth = any(parameter.default is parameter.empty for parameter in signature.parameters.values())
    call = f"{network.__name__}({'26, ' if needs_depth else ''}classes=5)"
    summary = inspect.cleandoc(network.__doc__ or "")
    return "\n".join([summary, "", "Args:", *filter(None, rows)]) + _RESULT.format(call=call)


def _plain(value: Any) -> Any:
    """Return an argument as JSON keeps it; NumPy's numbers become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def _source_input(inputs: Any) -> Any:
    sources = keras.utils.get_source_inputs(inputs)
    return sources[0] if len(sources) == 1 else sources


def _as_shape(input_shape: Any) -> tuple[int | None, ...]:
    """Return a shape with its sides as Python integers, whatever kind of integers came."""
    try:
        return tuple(None if side is None else operator.index(side) for side in input_shape)
    except TypeError:
        raise UserError(
            f"input_shape is {input_shape!r}; it must be (height, width, channels), such as (32, 32, 3)."
        ) from None


def _check_shape(shape: tuple[int | None, ...], minimum: int, preprocessing: Preprocessing | None) -> None:
    if len(shape) != 3 or not shape[2] or shape[2] < 1:
        raise UserError(f"input_shape is {shape}; it must be (height, width, channels), such as (32, 32, 3).")
    if any(side is not None and side < minimum for side in shape[:2]):
        raise UserError(
            f"input_shape is {shape}; this network needs at least {minimum}x{minimum} pixels: "
            "use larger images (in a recipe: image_size)."
        )
    if preprocessing is not None and shape[2] != 3:
        raise UserError(
            f"input_shape is {shape}; images are RGB, 3 channels. For {shape[2]} channels "
            "build with include_preprocessing=False and normalise them yourself."
        )
