"""Turns trained networks of keras.applications into those of this package: weights, preprocessing and classes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_convnets.classes import KnownClasses, check_class_names, imagenet_classes
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import CAFFE_MEANS, Preprocessing
from keras_convnets.networks.functional import Functional
from keras_convnets.networks.graph import leaves
from keras_convnets.networks.registry import get_builder
from keras_convnets.weights import assignment, graph_comparison
from keras_convnets.weights.keras_reader import LAYER_KINDS
from keras_convnets.weights.onnx_reader import StoredLayer

# The networks that both have, with their first and last layers of features there.
TWINS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("VGG16", "VGG19"), ("block1_conv1", "block5_pool")),
        **dict.fromkeys(("ResNet50", "ResNet101", "ResNet152"), ("conv1_pad", "conv5_block3_out")),
    }
)
# Layers that do nothing at inference, and those that end a network or hand on its features.
IDLE = (layers.Dropout, layers.SpatialDropout2D, layers.GaussianNoise, layers.Identity)
POOLINGS = ((layers.GlobalAveragePooling2D, "avg"), (layers.GlobalMaxPooling2D, "max"))
# Of the largest output. Weights and structure are compared before; accelerators round products of float32 to 10 bits.
TOLERANCE = 1e-3
# Dtype policies whose outputs can be compared.
DTYPES = ("float32", "float64")
# A model that divides by less was made for images in 0-1.
LEAST_STD = 0.1
# The side of trial images where the network takes any.
TRIAL_SIDE = 64
log = logging.getLogger("keras_convnets")


def from_keras_applications(
    model: keras.Model,
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
) -> keras.Model:
    """Return the network of this package that computes what a trained one of keras.applications does.

    It takes VGG16, VGG19, ResNet50, ResNet101 and ResNet152: as keras.applications builds them, or as the base of a
    model that goes on with a global pooling and a classifier of one linear layer, in whatever way they were joined.
    Normalisation inside the model becomes the first layer here; augmentation and dropout of the head are left out.
    Layers, and what lies between them, are compared as those of weights files are, and the outputs on random images;
    the given model stays as it is.

    Args:
        model: takes images [batch, H, W, 3]; with weights.
        preprocessing: what its images were normalised with before they came to it; by default keras.applications'
            own for these networks: BGR, minus (103.939, 116.779, 123.68). Only for a model that does not do it itself.
        class_names: of its outputs; by default ImageNet's for the 1,000 of keras.applications' own classifier, else
            "0", "1", ...
        name: the network's; by default its builder's, and for a head that no builder makes, such as a VGG's pooled
            features, "vgg16_avg_pool".

    Returns:
        A network that takes RGB in 0-255, uint8 or float, [batch, H, W, 3].

    Raises:
        UserError: if the model is none of these networks, differs from its twin here, or is not in float32; the
            message says in what.

    Example:
        >>> network = from_keras_applications(keras.applications.ResNet50(weights="imagenet"))
        >>> network.predict(np.zeros((1, 224, 224, 3), np.uint8)).shape
        (1, 1000)
    """
    _check_model(model)
    architecture = _architecture(model)
    first, last = TWINS[architecture]
    calls = _calls(model.outputs[0])
    start = _start(model, calls, first)
    before = _Before(start.node.input_tensors[0], start.outer)
    behind = _behind(model.outputs[0], last)
    top = _top(model, behind, last, architecture)
    _check_class_names(model, top, class_names)
    _check_dtypes(model, [one.operation for one in calls if one.operation not in before.operations])
    chosen, own = _chosen(model, before, preprocessing)
    _say_what_is_left_out(model, [*before.operations, *behind])
    network = _built(architecture, tuple(model.input_shape[1:]), chosen, top, name)
    _assign(network, model, calls, before, top)
    _check_outputs(network, model, None if own else chosen)
    _name_classes(network, top, class_names)
    return network


@dataclass(frozen=True)
class _Call:
    """One operation of a model, nested ones opened.

    Attributes:
        operation: what is called.
        node: that calls it, in the model that holds it.
        outer: the calls of the nested models that it is inside of, the outermost first.
    """

    operation: Any
    node: Any
    outer: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[int, ...]:
        """What tells calls apart: a nested model may be called several times."""
        return (id(self.node), *map(id, self.outer))


@dataclass(frozen=True)
class _Top:
    """What follows the features.

    Attributes:
        arguments: the builder's.
        names: what its layers are called here, by their names in the given model.
        head: whether a classifier follows the pooled features that is not the builder's; then the number of its
            classes and its activation.
    """

    arguments: Mapping[str, Any]
    names: Mapping[str, str]
    head: tuple[int, str | None] | None = None

    @property
    def classes(self) -> int | None:
        """The number of classes; None of features."""
        return self.arguments.get("classes") if self.head is None else self.head[0]


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise UserError(f"model is {type(model).__name__}; give a keras.Model, such as keras.applications.ResNet50().")
    try:
        inputs, outputs = model.inputs, model.outputs
    except (AttributeError, ValueError):
        inputs, outputs = [], []
    if not inputs or not outputs:
        raise UserError(f"{model.name} has no graph of layers; give a functional or sequential model that is built.")
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[-1] != 3:
        raise UserError(
            f"{model.name} takes {len(inputs)} inputs, the first {inputs[0].shape}, and gives {len(outputs)} outputs; "
            "give a model of one input [batch, H, W, 3] and one output."
        )


def _architecture(model: keras.Model) -> str:
    """Return the network that most of a model's layers are named after."""
    names = {layer.name for layer in leaves(model)}
    found = {
        "VGG19": "block5_conv4" in names,
        "VGG16": "block5_conv3" in names,
        "ResNet152": "conv4_block36_out" in names,
        "ResNet101": "conv4_block23_out" in names,
        "ResNet50": "conv4_block6_out" in names,
    }
    known = next((name for name, is_it in found.items() if is_it), None)
    missing = [] if known is None else [name for name in TWINS[known] if name not in names]
    if known is None or missing or "conv2_block1_preact_bn" in names:
        cut = f" (it has no {missing[0]})" if missing else ""
        raise UserError(
            f"{model.name} is not built on a network that this package has too{cut}; of keras.applications it has "
            f"{', '.join(TWINS)}, whole and with their layers' names: give a model built on one of these."
        )
    return known


def _history(tensor: Any, outer: tuple[Any, ...] = ()) -> _Call | None:
    """Return the call that gives a tensor, nested models opened; None for the model's input.

    Args:
        tensor: symbolic.
        outer: the calls of the nested models that it is inside of, the outermost first.
    """
    while True:
        history = tensor._keras_history
        operation, node = history.operation, history.operation._inbound_nodes[history.node_index]
        if isinstance(operation, layers.InputLayer):
            if not outer:
                return None
            *rest, call = outer
            tensor, outer = call.input_tensors[0], tuple(rest)
        elif isinstance(operation, keras.Model):
            tensor, outer = operation.outputs[history.tensor_index], (*outer, node)
        else:
            return _Call(operation, node, outer)


def _calls(tensor: Any, outer: tuple[Any, ...] = ()) -> list[_Call]:
    """Return the calls that a tensor comes from, each after those that it takes; not recursive: networks are deep."""
    last = _history(tensor, outer)
    waiting = [] if last is None else [(last, False)]
    found: dict[tuple[int, ...], _Call] = {}
    while waiting:
        call, opened = waiting.pop()
        if call.key in found:
            continue
        if opened:
            found[call.key] = call
            continue
        waiting.append((call, True))
        given = (_history(one, call.outer) for one in call.node.input_tensors)
        waiting += [(one, False) for one in given if one is not None]
    return list(found.values())


def _start(model: keras.Model, calls: Sequence[_Call], first: str) -> _Call:
    """Return the call of a network's first layer."""
    found = [call for call in calls if call.operation.name == first]
    if len(found) != 1:
        raise UserError(
            f"{model.name} calls {first} {len(found)} times on the way to its output; a network here has one such "
            "layer, called once: give a model of one path from images to output."
        )
    return found[0]


def _behind(tensor: Any, last: str) -> list[Any]:
    """Return the operations between a layer and a tensor, in order.

    Raises:
        UserError: if one of them has several inputs.
    """
    operations: list[Any] = []
    call = _history(tensor)
    while call is not None and call.operation.name != last:
        if len(call.node.input_tensors) != 1:
            raise UserError(
                f"{call.operation.name} has several inputs; behind {last} a network here has no such layer: give "
                "keras.Model(model.input, features) and add your own."
            )
        operations.append(call.operation)
        call = _history(call.node.input_tensors[0], call.outer)
    return operations[::-1]


class _Before:
    """What a model does with images before a tensor inside of it.

    Args:
        tensor: symbolic.
        outer: the calls of the nested models that it is inside of, the outermost first.

    Attributes:
        operations: in order; empty if there are none.
    """

    def __init__(self, tensor: Any, outer: tuple[Any, ...]) -> None:
        self._calls = _calls(tensor, outer)
        self.operations: list[Any] = [call.operation for call in self._calls]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return what it makes of images, at inference."""
        given = value = keras.ops.convert_to_tensor(images)
        values: dict[tuple[int, ...], Any] = {}
        for call in self._calls:
            inputs = {}
            for tensor in call.node.input_tensors:
                source = _history(tensor, call.outer)
                inputs[id(tensor)] = given if source is None else values[source.key]
            arguments, keywords = call.node.arguments.fill_in(inputs)
            if _acts_in_training(call.operation):
                keywords["training"] = False
            values[call.key] = value = call.operation(*arguments, **keywords)
        return keras.ops.convert_to_numpy(value)


def _acts_in_training(operation: Any) -> bool:
    """Whether a layer does in training what it does not at inference, as dropout and augmentation do."""
    return isinstance(operation, keras.layers.Layer) and "training" in inspect.signature(operation.call).parameters


def _top(model: keras.Model, operations: Sequence[Any], last: str, architecture: str) -> _Top:
    """Return what follows a network's features, as its builder's arguments.

    Raises:
        UserError: if it is something that the builder does not make.
    """
    kept = [one for one in operations if not isinstance(one, IDLE) and not _is_linear_activation(one)]
    pools = tuple(kind for kind, _ in POOLINGS)
    if len(kept) > 1 and isinstance(kept[0], pools) and isinstance(kept[1], layers.Flatten):
        del kept[1]  # of a pooling with keepdims=True
    softmax = bool(kept) and _is_softmax(kept[-1])
    rest = kept[:-1] if softmax else kept
    if not kept:
        return _Top({"include_top": False}, {})
    pooling = next((key for kind, key in POOLINGS if isinstance(rest[0], kind)), None) if rest else None
    if len(rest) == 1 and pooling and not softmax:
        return _Top({"include_top": False, "pooling": pooling}, {})
    wanted = ["flatten", "fc1", "fc2", "predictions"] if architecture.startswith("VGG") else ["avg_pool", "predictions"]
    own = len(rest) == len(wanted) and all(map(_is_kind, rest, wanted))
    pooled = len(rest) == 2 and pooling is not None and isinstance(rest[1], layers.Dense)
    ends = _activation(rest[-1]) if rest else None
    if not (own or pooled) or ends not in (("linear",) if softmax else ("linear", "softmax")):
        raise _other_top(model, kept, last, architecture, wanted)
    activation = "softmax" if softmax or ends == "softmax" else None
    if pooled and not own:
        arguments = {"include_top": False, "pooling": pooling}
        return _Top(arguments, {rest[1].name: "predictions"}, (rest[1].units, activation))
    names = {one.name: name for one, name in zip(rest, wanted, strict=True) if isinstance(one, layers.Dense)}
    return _Top({"classes": rest[-1].units, "classifier_activation": activation}, names)


def _other_top(
    model: keras.Model, kept: Sequence[Any], last: str, architecture: str, wanted: Sequence[str]
) -> UserError:
    named = ", ".join(
        f"{one.name} ({type(one).__name__}{'' if _activation(one) == 'linear' else f' with {_activation(one)}'})"
        for one in kept
    )
    return UserError(
        f"{model.name} goes on behind {last} with {named}; {architecture} here ends with "
        f"{', '.join(wanted)}, or with global pooling and one fully connected layer, each linear or a softmax, or with "
        "its features: give keras.Model(model.input, features) and add your own."
    )


def _is_kind(operation: Any, name: str) -> bool:
    """Whether an operation is what a builder here calls by this name."""
    if name == "predictions":
        return isinstance(operation, layers.Dense)
    if name in ("fc1", "fc2"):
        return isinstance(operation, layers.Dense) and _activation(operation) == "relu"
    return isinstance(operation, layers.Flatten if name == "flatten" else layers.GlobalAveragePooling2D)


def _activation(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


def _is_linear_activation(operation: Any) -> bool:
    return isinstance(operation, layers.Activation) and _activation(operation) == "linear"


def _is_softmax(operation: Any) -> bool:
    return isinstance(operation, layers.Softmax) or (
        isinstance(operation, layers.Activation) and _activation(operation) == "softmax"
    )


def _check_class_names(model: keras.Model, top: _Top, class_names: Sequence[str] | None) -> None:
    if class_names is None:
        return
    if isinstance(class_names, str) or not isinstance(class_names, Sequence):
        raise UserError(f"class_names is {class_names!r}; give a list with the name of each class.")
    if len(class_names) != top.classes:
        shown = "no classes" if top.classes is None else f"{top.classes} classes"
        raise UserError(f"{model.name} has {shown} and {len(class_names)} class names came; give one for each.")
    check_class_names(class_names, "class_names")


def _check_dtypes(model: keras.Model, operations: Sequence[Any]) -> None:
    """Refuse models of reduced precision, and to make one: outputs could not be compared."""
    for operation in operations:
        policy = operation.dtype_policy.name if isinstance(operation, layers.Layer) else "float32"
        if policy not in DTYPES:
            raise UserError(
                f"{operation.name} of {model.name} has the dtype policy {policy}; it must be {' or '.join(DTYPES)}: "
                "build the model again under keras.config.set_dtype_policy('float32') and set its weights."
            )
    policy = keras.config.dtype_policy().name
    if policy not in DTYPES:
        raise UserError(
            f"keras.config.dtype_policy() is {policy}; a model is converted in {' or '.join(DTYPES)}: call "
            "keras.config.set_dtype_policy('float32') first."
        )


def _chosen(
    model: keras.Model, before: _Before, preprocessing: Preprocessing | None
) -> tuple[Preprocessing, Preprocessing | None]:
    """Return the normalisation for the network here, and that inside the model, None where it has none; log which."""
    own = _normalisation(model, before)
    if own is not None and preprocessing is not None:
        raise UserError(f"preprocessing was given, and {model.name} normalises its images itself; leave it out.")
    if own is not None:
        log.info("%s normalises its images itself: measured and taken over", model.name)
    elif preprocessing is None:
        log.info("%s does not normalise its images: keras.applications' own is assumed, BGR minus means", model.name)
    return own or Preprocessing.of(CAFFE_MEANS if preprocessing is None else preprocessing), own


def _say_what_is_left_out(model: keras.Model, operations: Sequence[Any]) -> None:
    # A normalisation may be able to tell training from inference too: a `Lambda`, and what has weights.
    idle = (one for one in operations if _acts_in_training(one) and not isinstance(one, layers.Lambda))
    names = [one.name for one in idle if not one.weights]
    if names:
        log.info("%s: left out, as they do nothing at inference: %s", model.name, ", ".join(names))


def _normalisation(model: keras.Model, before: _Before) -> Preprocessing | None:
    """Return the normalisation that a model does itself: channels in an order, minus means, divided; None if none.

    It is measured, however it is written: three images of one colour give the numbers, random ones prove them.

    Raises:
        UserError: if it is anything else.
    """
    if not before.operations:
        return None
    shape = (1, *(side or TRIAL_SIDE for side in model.input_shape[1:3]), 3)
    found = _measured(before, shape)
    if found is None:
        names = ", ".join(operation.name for operation in before.operations)
        raise UserError(
            f"{model.name} does more than normalise channels before its first convolution ({names}); leave that to the "
            "input, and give the model from there on."
        )
    if max(found.std) < LEAST_STD:
        raise UserError(
            f"{model.name} multiplies its images by {1 / max(found.std):.4g} before its first convolution, so it takes "
            "them in 0-1; networks here take 0-255: give the model from there on."
        )
    return None if found == Preprocessing(mean=(0.0, 0.0, 0.0)) else found


def _measured(before: _Before, shape: tuple[int, ...]) -> Preprocessing | None:
    """Return the normalisation that something does to images of a shape; None if it does anything else."""
    random = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    black, given = before(np.zeros(shape, np.float32)), before(random)
    if black.shape != shape:
        return None
    red, white = before(np.full(shape, (255, 0, 0), np.float32)), before(np.full(shape, 255, np.float32))
    order = "RGB" if abs(red - black)[..., 0].mean() > abs(red - black)[..., -1].mean() else "BGR"
    std = 255 / np.maximum((white - black)[0, 0, 0].astype(np.float64), 1e-9)
    mean = -black[0, 0, 0].astype(np.float64) * std
    # 123.68 where float32 gives 123.67999.
    digits = 12 if std.max() < LEAST_STD else 4
    rounded = [tuple(round(float(value), digits) + 0.0 for value in values) for values in (mean, std)]
    if not np.isfinite(rounded).all():
        return None
    found = Preprocessing(mean=rounded[0], std=rounded[1], order=order)
    return found if np.abs(found(random) - given).max() <= 1e-4 * max(np.abs(given).max(), 1) else None


def _built(
    architecture: str, shape: tuple[int | None, ...], preprocessing: Preprocessing, top: _Top, name: str | None
) -> keras.Model:
    """Return the network, not trained, with the head that its builder does not make."""
    named = {} if name is None else {"name": name}
    network = get_builder(architecture)(
        **top.arguments, input_shape=shape, preprocessing=preprocessing, **({} if top.head else named)
    )
    if top.head is None:
        return network
    classes, activation = top.head
    # In float32 under every dtype policy, as the builders' own classifiers.
    x = layers.Dense(classes, dtype="float32", name="predictions")(network.output)
    if activation is not None:
        x = layers.Activation(activation, dtype="float32", name="probabilities")(x)
    # Another network than the paper's has another name.
    return Functional(network.input, x, name=name or f"{network.name}_{top.arguments['pooling']}_pool")


def _assign(network: keras.Model, model: keras.Model, calls: Sequence[_Call], before: _Before, top: _Top) -> None:
    """Set a network's weights to a model's; nothing is set if a layer or what lies between two does not fit."""
    ignored = {id(operation) for operation in before.operations}
    own = {id(call.operation): call.operation for call in calls if id(call.operation) not in ignored}
    stored = [_stored(one) for one in own.values() if isinstance(one, layers.Layer) and one.weights]
    path = Path(f"the model {model.name}")
    pairs = assignment.by_name(network, stored, path, top.names)
    values = assignment.converted(network, pairs, path)
    _check_structure(network, model, pairs, calls, before)
    for layer, arrays in values:
        layer.set_weights(arrays)


def _check_structure(
    network: keras.Model, model: keras.Model, pairs: Sequence[assignment.Pair], calls: Sequence[_Call], before: _Before
) -> None:
    """Compare a network and a model between their weighted layers, as is done for files.

    Raises:
        UserError: if they differ; the message names the layer and both.
    """
    names: dict[Hashable, str] = {position: layer.name for position, (layer, _) in enumerate(pairs)}
    theirs: dict[Hashable, Hashable] = {stored.name: position for position, (_, stored) in enumerate(pairs)}
    height, width = (side or graph_comparison.ANY_SIDE for side in model.input_shape[1:3])
    forms = graph_comparison.Forms()
    own = graph_comparison.keras_steps(network.get_config())
    ours = graph_comparison.places(own, {name: at for at, name in names.items()}, (height, width), forms)
    found = graph_comparison.places(_steps(calls, before), theirs, (height, width), forms)
    differing = graph_comparison.difference(ours, found, names, forms, "the model")
    if differing is not None:
        raise UserError(
            f"{model.name} is another network than {network.name}: {differing}; give one that is not changed."
        )


def _steps(calls: Sequence[_Call], before: _Before) -> Iterator[graph_comparison.Step]:
    """Yield the steps of a model behind its normalisation, which stands for the images."""
    ignored = {id(operation) for operation in before.operations}
    for call in calls:
        if id(call.operation) not in ignored:
            sources = [_history(tensor, call.outer) for tensor in call.node.input_tensors]
            inputs = tuple(
                graph_comparison.IMAGES if one is None or id(one.operation) in ignored else one.key for one in sources
            )
            operation = call.operation
            config = operation.get_config() if isinstance(operation, layers.Layer) else {}
            kind = type(operation).__name__
            yield from graph_comparison.steps_of_layer(kind, config, inputs, call.key, operation.name)


def _stored(layer: keras.layers.Layer) -> StoredLayer:
    """Return a layer of a model as a file would hold it."""
    arrays = [np.asarray(keras.ops.convert_to_numpy(weight), np.float32) for weight in layer.weights]
    kind, names = LAYER_KINDS.get((len(arrays), arrays[0].ndim), (type(layer).__name__, ()))
    if kind != type(layer).__name__:
        kind, names = type(layer).__name__, ()
    settings = {
        key: getattr(layer, key) for key in ("epsilon", "strides", "groups") if getattr(layer, key, None) is not None
    }
    named = dict(zip(names or map(str, range(len(arrays))), arrays, strict=True))
    return StoredLayer(layer.name, kind, named, settings)


def _check_outputs(network: keras.Model, model: keras.Model, preprocessing: Preprocessing | None) -> None:
    """Check that both give the same outputs on images: layers may compute something else than their settings say.

    Args:
        network: with its weights.
        model: the given one.
        preprocessing: what the model's images are normalised with before they come to it, if it does not do it itself.

    Raises:
        UserError: if they do not.
    """
    shape = (2, *(side or TRIAL_SIDE for side in model.input_shape[1:3]), 3)
    images = np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)
    # The same graph from one tensor to one: a model may take and give them in lists.
    theirs = keras.Model(model.inputs[0], model.outputs[0])
    expected = _outputs(theirs, images if preprocessing is None else preprocessing(images))
    if _differ(_outputs(network, images), expected):
        raise UserError(
            f"{model.name} has the weights of a {network.name} but gives other outputs: a layer of it, or its last "
            "activation or pooling, was changed; give a model that is not."
        )


def _outputs(model: Callable[..., Any], images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False)).astype(np.float32)


def _differ(found: np.ndarray, expected: np.ndarray) -> bool:
    if found.shape != expected.shape:
        return True
    largest = np.abs(expected).max()
    return not np.abs(found - expected).max() <= TOLERANCE * max(largest, 1e-6)


def _name_classes(network: keras.Model, top: _Top, class_names: Sequence[str] | None) -> None:
    """Note the names of a network's classes on it, for its card."""
    original = top.head is None and top.names.get("predictions") == "predictions"
    if class_names is not None:
        network.known_classes = KnownClasses(tuple(class_names))
    elif original and top.classes == len(imagenet_classes().names):
        network.known_classes = KnownClasses(imagenet_classes().names, imagenet_classes().ids)
