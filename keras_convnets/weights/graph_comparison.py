"""Comparison of two networks between their weighted layers: padding, activations, pooling, sums.

Weights alone do not show these: a network without its poolings, or without its shortcuts, has arrays of the same names
and shapes. An ONNX graph and the configuration of a Keras model do; both are read as `Step`s, brought to one form at
the input size of the network that takes the weights, and compared layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_convnets.display import printable

IMAGES = "images"
PLACES = "places for its kernel"
WEIGHTED = ("convolution", "fully connected layer", "batch normalisation")
# The side of images, in pixels, at which networks for images of any size are compared.
ANY_SIDE = 224
# How far back a difference is described: what stands before that is the same, or another layer.
DESCRIBED, BRANCHES = 5, 4
# Maximum characters of names from a file in an error message.
LONGEST_TEXT = 400


@dataclass(frozen=True)
class Step:
    """One operation of a graph.

    Attributes:
        kind: what it does: one of `WEIGHTED`, "padding", "max pooling", "average pooling", "channels", "sum",
            "concatenation", "nothing" of what changes nothing in inference, else its own name, such as "relu".
        inputs: the tensors it takes.
        output: the tensor it gives.
        layer: of a weighted one: what its weights are known by.
        settings: what the kind needs, such as a kernel's size.
    """

    kind: str
    inputs: tuple[Hashable, ...]
    output: Hashable
    layer: Hashable = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a weighted layer stands.

    Attributes:
        window: of a convolution: its settings by name, as text.
        given: what it takes, as a number of the `Forms` that it was made with.
    """

    window: Mapping[str, Any]
    given: int


class Forms:
    """Every distinct way to compute a tensor has one number, so that equal numbers mean the same computation."""

    def __init__(self) -> None:
        self._numbers: dict[tuple, int] = {}
        self._keys: list[tuple] = []

    def number(self, kind: str, detail: Hashable = (), operands: Sequence[int] = ()) -> int:
        """Return the number of an operation on operands."""
        key = (kind, detail, tuple(operands))
        if key not in self._numbers:
            self._numbers[key] = len(self._keys)
            self._keys.append(key)
        return self._numbers[key]

    def key(self, number: int) -> tuple[str, Any, tuple[int, ...]]:
        """Return (kind, detail, operands) of a number."""
        return self._keys[number]

    def words(self, number: int, names: Mapping[Hashable, str], most: int = DESCRIBED) -> str:
        """Return a number as text, the layer or the images that it starts from first."""
        kind, detail, operands = self.key(number)
        if kind == "layer":
            return names.get(detail, str(detail))
        own = f"{kind} {_shown(detail)}" if detail not in ((), None) else kind
        if not operands:
            return own
        if most == 0:
            return f"... {own}"
        if len(operands) > 1:
            most = max(most - 2, 1)
        before = [self.words(operand, names, most - 1) for operand in operands[:BRANCHES]]
        return f"{before[0]}, {own}" if len(before) == 1 else f"the {own} of ({') and ('.join(before)})"


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a graph: its number, height and width, channels, and zeros around it that no step has used yet."""

    form: int
    size: tuple[int, int] | None
    channels: int | None = None
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


def places(
    steps: Iterable[Step],
    labels: Mapping[Hashable, Hashable],
    size: tuple[int, int],
    forms: Forms,
    ignoring: Collection[str] = (),
) -> dict[Hashable, Place]:
    """Return where the labelled layers of a graph stand.

    Args:
        steps: in an order in which they can be made.
        labels: of the weighted steps that count, what stands for them: the same in both graphs.
        size: height and width of the images.
        forms: shared by the graphs that are to be compared.
        ignoring: kinds whose settings do not count, such as "LRN".

    Returns:
        By label; without those that the steps do not hold.
    """
    tensors: dict[Hashable, _Tensor] = {IMAGES: _Tensor(forms.number(IMAGES), size, 3)}
    found: dict[Hashable, Place] = {}
    for step in steps:
        given = [tensors[name] for name in step.inputs if name in tensors]
        if not given:
            if step.kind in WEIGHTED and step.layer in labels:
                found[labels[step.layer]] = Place({}, forms.number("something unknown"))
            tensors[step.output] = _Tensor(forms.number(step.kind, _plain(step.settings)), None)
        elif step.kind in WEIGHTED:
            # A convolution takes the zeros around its input into its windows.
            x = given[0] if step.kind == "convolution" else _drawn(given[0], forms)
            places, channels, window = _through_weights(step, x)
            label = labels.get(step.layer)
            if label is not None:
                found[label] = Place(window, x.form)
            form = forms.number("layer", ("unpaired", step.layer) if label is None else label)
            tensors[step.output] = _Tensor(form, places, channels)
        else:
            tensors[step.output] = _after(step, given, forms, ignoring)
    return found


def difference(
    ours: Mapping[Hashable, Place],
    theirs: Mapping[Hashable, Place],
    names: Mapping[Hashable, str],
    forms: Forms,
    source: str = "the file",
) -> str | None:
    """Return the first difference between two graphs as the end of an error message, or None.

    Args:
        ours: the network's places.
        theirs: the file's.
        names: of the labels, in the network's order.
        forms: that both were made with.
        source: what the message calls that which the places of `theirs` are in.
    """
    for label, name in names.items():
        mine, other = ours[label], theirs.get(label)
        if other is None:
            return f"what leads to {name} is not told"
        settings = [setting for setting, value in mine.window.items() if other.window.get(setting, value) != value]
        # Other places alone come from what the layer takes, where that is another thing too.
        if settings and (settings != [PLACES] or mine.given == other.given):
            values = [_shown(place.window[settings[0]]) for place in (mine, other)]
            return printable(f"{name} has {settings[0]} {values[0]} and {source}'s has {values[1]}", LONGEST_TEXT)
        if mine.given != other.given:
            return (
                f"{name} takes {printable(forms.words(mine.given, names), LONGEST_TEXT)} in the network and "
                f"{printable(forms.words(other.given, names), LONGEST_TEXT)} in {source}"
            )
    return None


def _through_weights(step: Step, x: _Tensor) -> tuple[tuple[int, int] | None, int | None, dict[str, Any]]:
    """Return the size and the channels of what a weighted layer gives, and its window."""
    if step.kind == "batch normalisation":
        return x.size, x.channels, {}
    if step.kind != "convolution":
        return None, step.settings.get("filters"), {}
    size, padding = _window(step.settings, x)
    window = {
        "strides": tuple(step.settings["strides"]),
        "dilation": tuple(step.settings["dilation"]),
        "groups": step.settings["groups"],
        "padding above and on the left": padding,
        # What is padded below and on the right follows from it.
        PLACES: size,
    }
    return size, step.settings["filters"], window


def _after(step: Step, given: list[_Tensor], forms: Forms, ignoring: Collection[str]) -> _Tensor:
    """Return what an operation without weights gives."""
    x, settings = given[0], step.settings
    if step.kind == "nothing":
        return x
    if step.kind == "padding":
        padding = tuple(old + new for old, new in zip(x.padding, settings["padding"], strict=True))
        return _Tensor(x.form, x.size, x.channels, padding)
    if step.kind in ("max pooling", "average pooling"):
        return _pooled(step, x, forms)
    if step.kind == "mean":
        return _Tensor(forms.number("mean over all places", (), [_drawn(x, forms).form]), (1, 1), x.channels)
    if step.kind == "channels":
        before, behind = settings.get("before", 0), settings.get("behind", 0)
        if "filters" in settings:
            behind = settings["filters"] - (x.channels or 0)
        form = (
            forms.number("zero channels before and behind", (before, behind), [x.form]) if before or behind else x.form
        )
        return _Tensor(form, x.size, None if x.channels is None else x.channels + before + behind)
    operands = [_drawn(tensor, forms).form for tensor in given]
    if step.kind == "sum":
        return _Tensor(forms.number("sum", (), sorted(operands)), x.size, x.channels)
    if step.kind == "concatenation":
        widths = [tensor.channels for tensor in given if tensor.channels is not None]
        channels = sum(widths) if len(widths) == len(given) else None
        return _Tensor(forms.number("concatenation", (), operands), x.size, channels)
    detail = () if step.kind in ignoring else _plain(settings)
    return _Tensor(forms.number(step.kind, detail, operands), x.size, x.channels)


def _pooled(step: Step, x: _Tensor, forms: Forms) -> _Tensor:
    """Return what a pooling gives: the same form for the same windows, however they are written.

    What is padded counts as nothing in a maximum: behind a ReLU zeros change none either.
    """
    settings = step.settings
    size, padding = _window(settings, x)
    kernel, strides = tuple(settings["kernel"]), tuple(settings["strides"])
    if kernel == (1, 1) and padding == (0, 0):
        operand, (kind, detail, operands) = x.form, forms.key(x.form)
        if kind == "every pixel of strides":
            strides, operand = tuple(a * b for a, b in zip(strides, detail[0], strict=True)), operands[0]
        return _Tensor(forms.number("every pixel of strides", (strides, size), [operand]), size, x.channels)
    if step.kind == "average pooling" and kernel == x.size and size == (1, 1) and not any(x.padding):
        return _Tensor(forms.number("mean over all places", (), [x.form]), size, x.channels)
    windows: tuple = (kernel, ("strides", strides), ("padding", padding), ("to", size))
    if tuple(settings.get("dilation", (1, 1))) != (1, 1):
        windows += (("dilation", tuple(settings["dilation"])),)
    if step.kind == "average pooling" and (any(padding) or any(x.padding)):
        windows += ("padding counts" if any(x.padding) or settings.get("counts_padding") else "padding does not count",)
    return _Tensor(forms.number(step.kind, windows, [x.form]), size, x.channels)


def _window(settings: Mapping[str, Any], x: _Tensor) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Return how many places windows have, (rows, columns), and how many zeros stand above and on the left.

    Settings: kernel, strides and dilation; "padding": (above, left, below, right), "same" (TensorFlow's, the odd zero
    behind), "same before" (the odd one before) or "valid"; "rounds_up": whether a last window may be cut off.
    """
    kernel, strides, dilation = (settings.get(name, (1, 1)) for name in ("kernel", "strides", "dilation"))
    own = settings.get("padding", "valid")
    counts, before = [], []
    for axis in range(2):
        first, last = x.padding[axis], x.padding[axis + 2]
        side = None if x.size is None else x.size[axis] + first + last
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        above, below = (own[axis], own[axis + 2]) if isinstance(own, tuple) else (0, 0)
        if own in ("same", "same before"):
            needed = (
                reach - 1 if side is None else max((-(-side // strides[axis]) - 1) * strides[axis] + reach - side, 0)
            )
            above = needed // 2 if own == "same" else -(-needed // 2)
            below = needed - above
        before.append(first + above)
        if side is not None:
            counts.append(_places(side, above, below, reach, strides[axis], bool(settings.get("rounds_up"))))
    return (counts[0], counts[1]) if len(counts) == 2 else None, (before[0], before[1])


def _places(side: int, above: int, below: int, reach: int, stride: int, rounds_up: bool) -> int:
    steps = (side + above + below - reach) / stride
    count = (math.ceil(steps) if rounds_up else math.floor(steps)) + 1
    # No window starts in the padding after the map.
    return count - 1 if rounds_up and (count - 1) * stride >= side + above else count


def _drawn(x: _Tensor, forms: Forms) -> _Tensor:
    """Return a tensor with its padding as a separate step, if no following step includes it."""
    if not any(x.padding):
        return x
    above, left, below, right = x.padding
    size = None if x.size is None else (above + x.size[0] + below, left + x.size[1] + right)
    return _Tensor(forms.number("zeros around", x.padding, [x.form]), size, x.channels)


def keras_steps(config: Mapping[str, Any]) -> Iterator[Step]:
    """Yield the steps of a Keras model's configuration, functional or sequential, of Keras 2 or 3, nested ones opened.

    Weighted steps are known by the layers' names.
    """
    starts = [name for name, _ in _tensors_in(config.get("input_layers", ()))]
    yield from _steps_of_model(config, {name: IMAGES for name in starts}, "")


def _steps_of_model(config: Mapping[str, Any], tensors: dict[Hashable, Hashable], prefix: str) -> Iterator[Step]:
    """Yield a model's steps.

    Args:
        config: the model's.
        tensors: what stands for the outputs of its input layers; filled with those of the others, by (name, call).
        prefix: of its tensors' names.
    """
    previous: Hashable = IMAGES if not tensors else next(iter(tensors.values()))
    for entry in config["layers"]:
        own, kind = entry["config"], entry["class_name"].rpartition(">")[2]
        name = own.get("name", entry.get("name"))
        if kind == "InputLayer" or name in tensors:
            tensors[name, 0] = tensors.get(name, IMAGES)
            continue
        # The layers of a `Sequential` have no separate calls.
        calls = [_tensors_in(node) for node in entry["inbound_nodes"]] if "inbound_nodes" in entry else [None]
        for call, given in enumerate(calls):
            inputs = (previous,) if given is None else tuple(_looked_up(tensors, name, index) for name, index in given)
            output = (prefix, name, call)
            if "layers" in own:
                yield from _steps_of_nested(own, inputs, output, f"{prefix}{name}/")
            else:
                yield from steps_of_layer(kind, own, inputs, output, name)
            tensors[name, call] = previous = output


def _steps_of_nested(config: Mapping[str, Any], inputs: tuple, output: Hashable, prefix: str) -> Iterator[Step]:
    starts = [name for name, _ in _tensors_in(config.get("input_layers", ()))]
    inner: dict[Hashable, Hashable] = dict(zip(starts, inputs, strict=False)) or {None: inputs[0]}
    last = None
    for step in _steps_of_model(config, inner, prefix):
        last = step.output
        yield step
    ends = _tensors_in(config.get("output_layers", ()))
    yield Step("nothing", (_looked_up(inner, *ends[0]) if ends else last,), output)


def _looked_up(tensors: Mapping[Hashable, Hashable], name: str, call: int) -> Hashable:
    """Return the tensor of a call; calls of a nested model are counted from 1, its making being one."""
    return tensors.get((name, call), tensors.get((name, max(call - 1, 0))))


def _tensors_in(value: Any) -> list[tuple[str, int]]:
    """Return (layer, call) of the tensors that a configuration mentions: Keras 3's dictionaries, Keras 2's lists."""
    if isinstance(value, Mapping):
        if "keras_history" in value:
            return [(value["keras_history"][0], value["keras_history"][1])]
        return [found for item in value.values() for found in _tensors_in(item)]
    if isinstance(value, (list, tuple)):
        if len(value) >= 3 and isinstance(value[0], str) and type(value[1]) is int and type(value[2]) is int:
            return [(value[0], value[1])]
        return [found for item in value for found in _tensors_in(item)]
    return []


# What does nothing in inference, or nothing but to the shape before a fully connected layer.
KERAS_NOTHING = (
    *("ActivityRegularization", "AlphaDropout", "Dropout", "Flatten", "GaussianDropout", "GaussianNoise"),
    *("Identity", "ImageNormalization", "SpatialDropout2D"),
)
KERAS_POOLS = {"MaxPooling2D": "max pooling", "AveragePooling2D": "average pooling"}
# What of a configuration changes no number.
NO_NUMBERS = ("batch_input_shape", "dtype", "name", "trainable")


def steps_of_layer(kind: str, config: Mapping[str, Any], inputs: tuple, output: Hashable, name: str) -> Iterator[Step]:
    """Yield the steps of one call of a Keras layer.

    Args:
        kind: the layer's class, without its package.
        config: the layer's.
        inputs: the tensors it takes.
        output: the tensor it gives.
        name: the layer's.
    """
    if kind in ("Conv2D", "GroupedConv2D", "Dense"):
        activation = _activation(config.get("activation"))
        linear = output if activation == "linear" else (output, "linear")
        what = "fully connected layer" if kind == "Dense" else "convolution"
        yield Step(
            what, inputs, linear, name, _keras_window(config) | {"filters": config.get("units", config.get("filters"))}
        )
        if activation != "linear":
            yield Step(activation, (linear,), output)
    elif kind == "BatchNormalization":
        yield Step("batch normalisation", inputs, output, name)
    elif kind in KERAS_POOLS:
        yield Step(KERAS_POOLS[kind], inputs, output, settings=_keras_window(config))
    elif kind == "ZeroPadding2D":
        (above, below), (left, right) = config["padding"]
        yield Step("padding", inputs, output, settings={"padding": (above, left, below, right)})
    elif kind == "ShortcutA":
        strides = (config["stride"],) * 2
        middle = (output, "every")
        yield Step(
            "max pooling" if strides != (1, 1) else "nothing",
            inputs,
            middle,
            settings={"kernel": (1, 1), "strides": strides},
        )
        yield Step("channels", (middle,), output, settings={"filters": config["filters"]})
    elif kind == "LRN":
        yield Step(
            "LRN",
            inputs,
            output,
            settings=response_normalization(*(config[key] for key in ("n", "k", "alpha", "beta"))),
        )
    else:
        plain = {"Add": "sum", "Concatenate": "concatenation", "GlobalAveragePooling2D": "mean"}
        if kind in KERAS_NOTHING or (kind == "Activation" and _activation(config["activation"]) == "linear"):
            yield Step("nothing", inputs, output)
        elif kind in plain:
            yield Step(plain[kind], inputs, output)
        elif kind == "Activation":
            yield Step(_activation(config["activation"]), inputs, output)
        elif kind == "ReLU" and not (
            config.get("max_value") or config.get("negative_slope") or config.get("threshold")
        ):
            yield Step("relu", inputs, output)
        else:
            yield Step(kind, inputs, output, settings={key: config[key] for key in config if key not in NO_NUMBERS})


def _keras_window(config: Mapping[str, Any]) -> dict[str, Any]:
    kernel = tuple(config.get("kernel_size") or config.get("pool_size") or (1, 1))
    return {
        "kernel": kernel,
        "strides": tuple(config.get("strides") or kernel),
        "dilation": tuple(config.get("dilation_rate") or (1, 1)),
        "groups": config.get("groups", 1),
        "padding": str(config.get("padding", "valid")).lower(),
    }


def _activation(value: Any) -> str:
    """Return an activation's name, from a name or what Keras writes of a function."""
    while isinstance(value, Mapping):
        value = value.get("config") if isinstance(value.get("config"), str) else value.get("class_name")
    return str(value or "linear")


def response_normalization(n: int, k: float, alpha: float, beta: float) -> dict[str, float]:
    """Return the constants of a response normalisation, rounded: files keep them in float32."""
    return {
        "n": int(n),
        **{name: float(f"{value:.5g}") for name, value in (("k", k), ("alpha", alpha), ("beta", beta))},
    }


def _plain(value: Any) -> Hashable:
    """Return settings as something that can be compared and looked up."""
    if isinstance(value, Mapping):
        return tuple((key, _plain(value[key])) for key in sorted(value, key=str))
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    """Return a setting as text: 3x3 for (3, 3)."""
    if isinstance(value, tuple) and value and all(isinstance(item, int) for item in value):
        return "x".join(map(str, value))
    if isinstance(value, tuple):
        return " ".join(_shown(item) for item in value)
    return str(value)
