"""The network as inference wants it: batch normalisation and preprocessing inside the convolutions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.networks.layers import BatchNormalization, GroupedConv2D, ImageNormalization

# Exact types: what a subclass computes is its own affair.
CONVOLUTIONS = (layers.Conv2D, GroupedConv2D)
NORMALIZATIONS = (layers.BatchNormalization, BatchNormalization)
# What changes nothing outside training.
IDENTITIES = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
HALF = ("float16", "bfloat16")


def inference_network(model: keras.Model) -> keras.Model:
    """Return a network for inference that computes the same with fewer operations; it shares nothing with the model.

    A convolution and the batch normalisation behind it become one convolution with bias. The division by the standard
    deviations and the channel order of `ImageNormalization` go into the convolution behind it, so that a subtraction
    is left of it; the mean stays, because zero padding stands behind it and not before it. Dropout and auxiliary heads
    disappear, half precision becomes float32. Nested models stay nested. Layers that remain keep their names.

    Args:
        model: a functional model with one input and one output, or an output "probabilities" among others.

    Returns:
        `images`, of the model's input shape and dtype, to a dictionary: "probabilities", the model's output, and
        "features", float32 [batch, d], what enters the classifier's linear layer. Without a fully connected layer
        at the end there are no "features".

    Raises:
        UserError: if the model is not functional, or has several inputs or outputs.

    Example:
        >>> inference_network(keras_convnets.ResNet50())(images)["features"].shape
        TensorShape([8, 2048])
    """
    count = len(_inputs_of(model))
    if count != 1:
        what = f"{count} inputs" if count else "no graph of layers"
        raise UserError(f"{model.name} has {what}; an inference network is made of a functional model with one input.")
    main = _main_output(model)
    images = _input_like(model.inputs[0], "images")
    calls = _Calls([main])
    values = _copied(calls, {id(model.inputs[0]): images})
    outputs = {"probabilities": values[id(main)]}
    entering = calls.classifier_input(main)
    if entering is not None:
        x = values[id(entering)]
        outputs["features"] = x if len(x.shape) == 2 else layers.Flatten(dtype=x.dtype, name="features")(x)
    return keras.Model(images, outputs, name=model.name)


class _Calls:
    """The calls of layers that some tensors come from, in an order in which they can be made.

    Attributes:
        nodes: Keras' record of each call.
    """

    def __init__(self, outputs: Sequence[Any]):
        self.nodes = _in_order(outputs)
        self._users: dict[int, list[Any]] = defaultdict(list, {id(tensor): [None] for tensor in outputs})
        for node in self.nodes:
            for tensor in node.input_tensors:
                self._users[id(tensor)].append(node)
        self._counts = Counter(id(node.operation) for node in self.nodes)

    def user(self, node: Any) -> Any:
        """Return the one call that uses what this one gives, or None."""
        users = [user for tensor in node.output_tensors for user in self._users[id(tensor)]]
        return users[0] if len(users) == 1 else None

    def is_only_call(self, node: Any, *kinds: type) -> bool:
        """Whether it is a call of a layer of one of these types, exactly, that is called nowhere else."""
        return type(node.operation) in kinds and self._counts[id(node.operation)] == 1

    def normalization_behind(self, node: Any) -> Any:
        """Return the batch normalisation that can go into a convolution, or None."""
        user = self.user(node)
        if user is None or type(user.operation) not in NORMALIZATIONS or _always_trains(user):
            return None
        convolution = node.operation
        is_linear = convolution.activation is keras.activations.linear
        same_axis = convolution.data_format == "channels_last" and user.operation.axis in (-1, 3)
        return user if is_linear and same_axis else None

    def convolution_behind(self, node: Any) -> Any:
        """Return the convolution that a scale and channel order can go into, or None."""
        user = self.user(node)
        # Zeros stay zeros, whatever the scale and the order of the channels.
        while user is not None and type(user.operation) is layers.ZeroPadding2D:
            user = self.user(user)
        if user is None or not self.is_only_call(user, *CONVOLUTIONS):
            return None
        return user if user.operation.groups == 1 and user.operation.data_format == "channels_last" else None

    def classifier_input(self, output: Any) -> Any:
        """Return what enters "predictions", or else the fully connected layer that ends in an output, or None."""
        dense = [node for node in self.nodes if isinstance(node.operation, layers.Dense)]
        named = [node for node in dense if node.operation.name == "predictions"]
        node = named[-1] if named else _node_of(output)
        # Behind the linear layer there may stand an activation, a temperature and the like.
        while node not in dense:
            if getattr(node.operation, "weights", ()) or len(node.input_tensors) != 1:
                return None
            node = _node_of(node.input_tensors[0])
        return node.input_tensors[0]


def _copied(calls: _Calls, values: dict[int, Any]) -> dict[int, Any]:
    """Make the calls again with copies of the layers.

    Args:
        calls: the calls.
        values: id of an input's tensor to the tensor that takes its place.

    Returns:
        id of every old tensor to the new one.
    """
    copies: dict[int, Any] = {}
    preprocessings: dict[int, Preprocessing] = {}
    for node in calls.nodes:
        layer, last, weights = node.operation, node, []
        if id(node.output_tensors[0]) in values:
            continue
        if isinstance(layer, IDENTITIES) and not _always_trains(node):
            values[id(node.output_tensors[0])] = values[id(node.input_tensors[0])]
            continue
        if calls.is_only_call(node, ImageNormalization) and (convolution := calls.convolution_behind(node)) is not None:
            preprocessings[id(convolution)] = layer.preprocessing
            copy = ImageNormalization(_subtraction(layer.preprocessing), name=layer.name)
        elif calls.is_only_call(node, *CONVOLUTIONS):
            normalization = calls.normalization_behind(node)
            weights = _kernel_and_bias(layer, normalization, preprocessings.get(id(node)))
            copy, last = _copy(layer, use_bias=len(weights) == 2), normalization or node
        elif id(layer) in copies:
            copy = copies[id(layer)]
        else:
            copy = copies[id(layer)] = _copy(layer)
            # A nested model's copy has its weights; an operation that is no layer has none.
            weights = layer.get_weights() if isinstance(layer, layers.Layer) and not _inputs_of(layer) else []
        arguments, keywords = node.arguments.fill_in(values)
        results = keras.tree.flatten(copy(*arguments, **keywords))
        if weights:
            copy.set_weights(weights)
        values.update((id(old), new) for old, new in zip(last.output_tensors, results, strict=True))
    return values


def _kernel_and_bias(
    convolution: keras.layers.Layer, normalization: Any, preprocessing: Preprocessing | None
) -> list[np.ndarray]:
    """Return a convolution's weights with what stands before and behind it inside, computed in float64."""
    kernel = _float64(convolution.kernel)
    bias = _float64(convolution.bias) if convolution.use_bias else None
    if preprocessing is not None:
        kernel = kernel / np.asarray(preprocessing.std)[:, None]
        if preprocessing.order == "BGR":
            kernel = kernel[:, :, ::-1]
    if normalization is not None:
        layer = normalization.operation
        scale = (_float64(layer.gamma) if layer.scale else 1) / np.sqrt(_float64(layer.moving_variance) + layer.epsilon)
        shift = _float64(layer.beta) if layer.center else 0
        kernel = kernel * scale
        bias = ((0 if bias is None else bias) - _float64(layer.moving_mean)) * scale + shift
    return [array.astype(np.float32) for array in (kernel, bias) if array is not None]


def _subtraction(preprocessing: Preprocessing) -> Preprocessing:
    """Return what of a preprocessing is left before the first convolution: minus the mean, in RGB order."""
    step = -1 if preprocessing.order == "BGR" else 1
    image = preprocessing.mean_image
    return Preprocessing(preprocessing.mean[::step], mean_image=None if image is None else image[..., ::step])


def _copy(operation: Any, **changes: Any) -> Any:
    """Return a layer, operation or functional model of its own weights, in float32 where it was in half precision."""
    if _inputs_of(operation):
        places = {id(tensor): _input_like(tensor, tensor.name) for tensor in operation.inputs}
        values = _copied(_Calls(operation.outputs), dict(places))
        taken, given = _structures(operation)
        inputs = keras.tree.map_structure(lambda tensor: places[id(tensor)], taken)
        outputs = keras.tree.map_structure(lambda tensor: values[id(tensor)], given)
        return keras.Model(inputs, outputs, name=operation.name)
    config = {**operation.get_config(), **changes}
    if getattr(operation, "compute_dtype", None) in HALF and "dtype" in config:
        config["dtype"] = "float32"
    return type(operation).from_config(config)


def _float64(weight: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight).astype(np.float64)


def _inputs_of(operation: Any) -> Sequence[Any]:
    """Return the inputs of a functional model; none of anything else."""
    return (getattr(operation, "inputs", None) or ()) if isinstance(operation, keras.Model) else ()


def _structures(model: keras.Model) -> tuple[Any, Any]:
    """Return what a functional model takes and gives; a `Sequential`'s `input` may be that of a call of it."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def _input_like(tensor: Any, name: str) -> Any:
    dtype = "float32" if tensor.dtype in HALF else tensor.dtype
    return keras.Input(batch_shape=tensor.shape, dtype=dtype, name=name)


def _main_output(model: keras.Model) -> Any:
    outputs = _structures(model)[1]
    if isinstance(outputs, dict) and "probabilities" in outputs:
        return outputs["probabilities"]
    if len(model.outputs) != 1:
        raise UserError(
            f"{model.name} has {len(model.outputs)} outputs; an inference network has one, "
            'or one that the model\'s dictionary calls "probabilities".'
        )
    return model.outputs[0]


def _always_trains(node: Any) -> bool:
    """Whether a call was made with training=True, which holds in inference too."""
    return bool(node.arguments.kwargs.get("training"))


def _node_of(tensor: Any) -> Any:
    return tensor._keras_history.operation._inbound_nodes[tensor._keras_history.node_index]


def _in_order(outputs: Sequence[Any]) -> list[Any]:
    """Return the calls that tensors come from, each behind those it needs; without recursion, networks being deep."""
    ordered, seen = [], set()
    waiting = [(_node_of(tensor), False) for tensor in outputs]
    while waiting:
        node, is_ready = waiting.pop()
        if is_ready:
            ordered.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((node, True))
            waiting += [(parent, False) for parent in node.parent_nodes]
    return ordered
