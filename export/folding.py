"""Inference networks: batch normalisation and preprocessing are folded into the convolutions."""

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

# Compared by exact type: a subclass may compute something else.
CONVOLUTIONS = (layers.Conv2D, GroupedConv2D)
NORMALIZATIONS = (layers.BatchNormalization, BatchNormalization)
# Layers that are the identity in inference.
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
    """Return a network for inference that computes the same outputs with fewer operations.

    A convolution and the batch normalisation after it are folded into one convolution with bias. The division by the
    standard deviations and the channel order of `ImageNormalization` are folded into the convolution after it. The
    subtraction of the mean remains, because the convolution's zero padding is applied after it. Dropout and auxiliary
    heads are removed; half precision becomes float32. Nested models stay nested, and the remaining layers keep their
    names. The network shares no layers or weights with the model.

    Args:
        model: a functional model with one input and one output, or with several outputs of which one is named
            "probabilities".

    Returns:
        A model from `images`, of the model's input shape and dtype, to a dictionary: "probabilities", the model's
        output, and "features", float32 [batch, d], the input of the classifier's fully connected layer; without such a
        layer at the end there are no "features".

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
    graph = _Graph([main])
    tensors = _copy_graph(graph, {id(model.inputs[0]): images})
    outputs = {"probabilities": tensors[id(main)]}
    features = graph.classifier_input(main)
    if features is not None:
        x = tensors[id(features)]
        outputs["features"] = x if len(x.shape) == 2 else layers.Flatten(dtype=x.dtype, name="features")(x)
    return keras.Model(images, outputs, name=model.name)


class _Graph:
    """The graph of layer calls that computes some output tensors.

    Attributes:
        nodes: Keras' nodes, one for each call of a layer, in topological order.
    """

    def __init__(self, outputs: Sequence[Any]):
        self.nodes = _topological_order(outputs)
        # By the id of a tensor; None stands for the graph's output.
        self._consumers: dict[int, list[Any]] = defaultdict(list, {id(tensor): [None] for tensor in outputs})
        for node in self.nodes:
            for tensor in node.input_tensors:
                self._consumers[id(tensor)].append(node)
        self._call_counts = Counter(id(node.operation) for node in self.nodes)

    def only_consumer(self, node: Any) -> Any:
        """Return the node that consumes a node's outputs, or None if it is not the only one."""
        consumers = [consumer for tensor in node.output_tensors for consumer in self._consumers[id(tensor)]]
        return consumers[0] if len(consumers) == 1 else None

    def is_only_call(self, node: Any, *types: type) -> bool:
        """Whether the node's layer has exactly one of these types and is called only once."""
        return type(node.operation) in types and self._call_counts[id(node.operation)] == 1

    def following_normalization(self, node: Any) -> Any:
        """Return the node of the batch normalisation that can be folded into a convolution's node, or None."""
        consumer = self.only_consumer(node)
        if consumer is None or type(consumer.operation) not in NORMALIZATIONS or _in_training_mode(consumer):
            return None
        convolution = node.operation
        is_linear = convolution.activation is keras.activations.linear
        same_axis = convolution.data_format == "channels_last" and consumer.operation.axis in (-1, 3)
        return consumer if is_linear and same_axis else None

    def following_convolution(self, node: Any) -> Any:
        """Return the node of the convolution that a node's scale and channel order can be folded into, or None."""
        consumer = self.only_consumer(node)
        # Zero padding commutes with scaling and with reordering channels.
        while consumer is not None and type(consumer.operation) is layers.ZeroPadding2D:
            consumer = self.only_consumer(consumer)
        if consumer is None or not self.is_only_call(consumer, *CONVOLUTIONS):
            return None
        convolution = consumer.operation
        return consumer if convolution.groups == 1 and convolution.data_format == "channels_last" else None

    def classifier_input(self, output: Any) -> Any:
        """Return the input tensor of the layer "predictions", or of the fully connected layer at an output, or None."""
        dense = [node for node in self.nodes if isinstance(node.operation, layers.Dense)]
        named = [node for node in dense if node.operation.name == "predictions"]
        node = named[-1] if named else _node_of(output)
        # An activation, a temperature or the like may follow the fully connected layer.
        while node not in dense:
            if getattr(node.operation, "weights", ()) or len(node.input_tensors) != 1:
                return None
            node = _node_of(node.input_tensors[0])
        return node.input_tensors[0]


def _copy_graph(graph: _Graph, tensors: dict[int, Any]) -> dict[int, Any]:
    """Rebuild a graph with copies of its layers, folding where possible.

    Args:
        graph: the graph to copy.
        tensors: maps the id of each input tensor to its replacement; extended in place.

    Returns:
        The mapping from the id of every original tensor to its copy.
    """
    copies: dict[int, Any] = {}
    preprocessings: dict[int, Preprocessing] = {}
    for node in graph.nodes:
        layer, last, weights = node.operation, node, []
        if id(node.output_tensors[0]) in tensors:
            continue
        if isinstance(layer, IDENTITIES) and not _in_training_mode(node):
            tensors[id(node.output_tensors[0])] = tensors[id(node.input_tensors[0])]
            continue
        if (
            graph.is_only_call(node, ImageNormalization)
            and (convolution := graph.following_convolution(node)) is not None
        ):
            preprocessings[id(convolution)] = layer.preprocessing
            copy = ImageNormalization(_mean_subtraction(layer.preprocessing), name=layer.name)
        elif graph.is_only_call(node, *CONVOLUTIONS):
            normalization = graph.following_normalization(node)
            weights = _folded_weights(layer, normalization, preprocessings.get(id(node)))
            copy, last = _copy(layer, use_bias=len(weights) == 2), normalization or node
        elif id(layer) in copies:
            copy = copies[id(layer)]
        else:
            copy = copies[id(layer)] = _copy(layer)
            # A nested model is copied with its weights; operations that are not layers have none.
            weights = layer.get_weights() if isinstance(layer, layers.Layer) and not _inputs_of(layer) else []
        arguments, keywords = node.arguments.fill_in(tensors)
        results = keras.tree.flatten(copy(*arguments, **keywords))
        if weights:
            copy.set_weights(weights)
        tensors.update((id(old), new) for old, new in zip(last.output_tensors, results, strict=True))
    return tensors


def _folded_weights(
    convolution: keras.layers.Layer, normalization: Any, preprocessing: Preprocessing | None
) -> list[np.ndarray]:
    """Return a convolution's kernel and bias with preprocessing and batch normalisation folded in, using float64."""
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


def _mean_subtraction(preprocessing: Preprocessing) -> Preprocessing:
    """Return the part of a preprocessing that is not folded: the subtraction of the mean, in RGB order."""
    step = -1 if preprocessing.order == "BGR" else 1
    image = preprocessing.mean_image
    return Preprocessing(preprocessing.mean[::step], mean_image=None if image is None else image[..., ::step])


def _copy(operation: Any, **changes: Any) -> Any:
    """Return a copy of a layer, operation or functional model, in float32 instead of half precision.

    Functional models are copied with their weights; layers get newly initialised ones.

    Args:
        operation: the layer, operation or functional model.
        **changes: entries of a layer's configuration to replace.
    """
    if _inputs_of(operation):
        new_inputs = {id(tensor): _input_like(tensor, tensor.name) for tensor in operation.inputs}
        tensors = _copy_graph(_Graph(operation.outputs), dict(new_inputs))
        old_inputs, old_outputs = _structures(operation)
        inputs = keras.tree.map_structure(lambda tensor: new_inputs[id(tensor)], old_inputs)
        outputs = keras.tree.map_structure(lambda tensor: tensors[id(tensor)], old_outputs)
        return keras.Model(inputs, outputs, name=operation.name)
    config = {**operation.get_config(), **changes}
    if getattr(operation, "compute_dtype", None) in HALF and "dtype" in config:
        config["dtype"] = "float32"
    return type(operation).from_config(config)


def _float64(weight: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight).astype(np.float64)


def _inputs_of(operation: Any) -> Sequence[Any]:
    """Return the input tensors of a functional model, or an empty sequence for anything else."""
    return (getattr(operation, "inputs", None) or ()) if isinstance(operation, keras.Model) else ()


def _structures(model: keras.Model) -> tuple[Any, Any]:
    """Return the input and output structures of a functional model.

    The `input` of a `Sequential` may be that of a later call of it; its `inputs` are its own.
    """
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


def _in_training_mode(node: Any) -> bool:
    """Whether a layer was called with training=True, which also applies in inference."""
    return bool(node.arguments.kwargs.get("training"))


def _node_of(tensor: Any) -> Any:
    return tensor._keras_history.operation._inbound_nodes[tensor._keras_history.node_index]


def _topological_order(outputs: Sequence[Any]) -> list[Any]:
    """Return the nodes that compute some tensors, each after its parents.

    The depth-first search is iterative, because deep networks exceed the recursion limit.
    """
    ordered, visited = [], set()
    stack = [(_node_of(tensor), False) for tensor in outputs]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            ordered.append(node)
        elif id(node) not in visited:
            visited.add(id(node))
            stack.append((node, True))
            stack += [(parent, False) for parent in node.parent_nodes]
    return ordered
