"""A network as a value: its builder's name and arguments, through command line, training, files and cards. No Keras."""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from keras_convnets.errors import UserError, unknown_name
from keras_convnets.networks.registry import ARCHITECTURES, BUILDERS, builder_name, get_builder
from keras_convnets.numbers import finite_number, whole_number

if TYPE_CHECKING:
    import keras

    from keras_convnets.networks.architecture import Family

# Arguments of builders that are no part of a network's description, and where they are given instead.
ELSEWHERE = {
    "weights": "give them as MODEL:WEIGHTS, or as weights= in Python",
    "preprocessing": "it comes with the weights, or from the training data",
    "input_tensor": "a tensor can be given to the builder alone",
}
# MODEL or MODEL(arguments), optionally followed by :WEIGHTS.
_SOURCE = re.compile(r"(\w+(?:\(.*?\))?)(?::(.*))?", re.DOTALL)
_CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class ModelSpec:
    """The call that makes a network, without its weights.

    Made directly it is not checked, as files may hold what another version took; `of` and `build` check it.

    Attributes:
        architecture: the builder's name, such as "ResNet34".
        arguments: what the builder is given that is not its default, as plain data for JSON.

    Example:
        >>> str(ModelSpec.of("resnet34", {"shortcut": "A"}))
        "ResNet34(shortcut='A')"
    """

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: str | ModelSpec, settings: Mapping[str, Any] | None = None) -> ModelSpec:
        """Return a spec that is checked against its builder, without arguments that are the builder's defaults.

        Only arguments need Keras to be imported.

        Args:
            model: a builder's name, capital letters aside; a call such as "ResNet34(shortcut=A)" or "CIFARResNet(26)";
                or a spec.
            settings: arguments besides those of `model`, such as {"shortcut": "A"}.

        Raises:
            UserError: if there is no such builder, it does not take an argument or its value, or one is missing.
        """
        positional: list[Any] = []
        if isinstance(model, ModelSpec):
            name, arguments = builder_name(model.architecture), dict(model.arguments)
        elif isinstance(model, str):
            name, positional, arguments = _parsed(model)
        else:
            raise UserError(f"model is {model!r}; give a network's name, such as 'ResNet34', or a ModelSpec.")
        for key, value in (settings or {}).items():
            if arguments.setdefault(key, value) != value:
                raise UserError(f"{name} got {key} as {arguments[key]!r} and as {value!r}; give it once.")
        if name in ARCHITECTURES and not positional and not arguments:
            return cls(name)
        return cls(name, _checked(name, positional, arguments))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ModelSpec:
        """Return the spec that `to_dict` wrote, unchecked.

        Raises:
            KeyError, TypeError, ValueError: if the data are of another form.
        """
        return cls(plain["architecture"], dict(plain["arguments"]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"architecture": self.architecture, "arguments": dict(self.arguments)}

    def __str__(self) -> str:
        """Return the canonical text, which `of` takes: the name, and in parentheses what is not default."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.architecture}({arguments})" if arguments else self.architecture

    @property
    def family(self) -> Family:
        """The properties common to the networks of its paper."""
        return BUILDERS[self.architecture]

    @property
    def depth(self) -> int:
        """Number of weighted layers on the longest path."""
        known = ARCHITECTURES.get(self.architecture)
        return self.arguments["depth"] if known is None else known.depth

    def build(self, **more: Any) -> keras.Model:
        """Return the network.

        Args:
            **more: arguments of the builder besides the spec's, or in their place, such as `weights`.

        Raises:
            UserError: as `of`, or if the builder refuses a value.
        """
        return get_builder(self.architecture)(**{**ModelSpec.of(self).arguments, **more})


def split_weights(text: str) -> tuple[str, str | None]:
    """Return MODEL and WEIGHTS of MODEL:WEIGHTS; WEIGHTS is None where there is no colon.

    Example:
        >>> split_weights("AlexNet(lrn={'k': 1}):mine.onnx")
        ("AlexNet(lrn={'k': 1})", 'mine.onnx')
    """
    if match := _SOURCE.fullmatch(text):
        return match[1], match[2]
    model, colon, weights = text.partition(":")
    return model, weights if colon else None


def with_settings(source: str, settings: Mapping[str, Any]) -> str:
    """Return MODEL or MODEL:WEIGHTS in its canonical text, with arguments besides its own.

    Raises:
        UserError: as `ModelSpec.of`.

    Example:
        >>> with_settings("resnet34:mine.onnx", {"shortcut": "A"})
        "ResNet34(shortcut='A'):mine.onnx"
    """
    model, weights = split_weights(source)
    spec = ModelSpec.of(model, settings)
    return str(spec) if weights is None else f"{spec}:{weights}"


def model_name(source: str) -> str | None:
    """Return the MODEL of MODEL or MODEL:WEIGHTS, with its arguments; None of what names no builder. Needs no Keras."""
    model = split_weights(source)[0]
    return model if model.partition("(")[0].lower() in map(str.lower, BUILDERS) else None


def read_settings(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """Return arguments that come as texts of the form FIELD=VALUE; a value is JSON, a Python literal, or text.

    Args:
        texts: such as ["shortcut=A", 'lrn={"k": 1}', "depth=26"].
        flag: where they come from, for the error message.

    Raises:
        UserError: if one has another form, or one field comes twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UserError(f"{flag} got {text!r}; it takes FIELD=VALUE, such as {flag} shortcut=A.")
        if key in found:
            raise UserError(f"{flag} got {key} twice; give it once.")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return text


def _parsed(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return a builder's name, positional and keyword arguments of MODEL or MODEL(arguments)."""
    match = _CALL.fullmatch(text.strip())
    if match is None:
        return builder_name(text), [], {}
    name = builder_name(match[1])
    try:
        call = ast.parse(f"call({match[2]})", mode="eval").body
        if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        keywords = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
        return name, [_literal(node) for node in call.args], keywords
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(
            f"model is {text!r}; its arguments can't be read: write them as ResNet34(shortcut=A), CIFARResNet(26) or "
            "AlexNet(lrn={'k': 1})."
        ) from None


def _literal(node: ast.expr) -> Any:
    # A bare word is a text, so that no quotes need escaping in a shell.
    return _WORDS.get(node.id, node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)


def _checked(name: str, positional: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a builder by name, in the order of its signature, without those that are its defaults."""
    builder = get_builder(name)
    parameters = inspect.signature(builder).parameters
    places = [key for key, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    if len(positional) > len(places):
        raise UserError(f"{name} takes at most {len(places)} arguments without a name and got {len(positional)}.")
    given = dict(zip(places, positional, strict=False))
    if twice := given.keys() & keywords.keys():
        raise UserError(f"{name} got {min(twice)} twice; give it once.")
    given |= keywords
    for key in given:
        if key in ELSEWHERE:
            raise UserError(f"{key} can't be set as an argument of {name} here; {ELSEWHERE[key]}.")
        if key not in parameters:
            raise unknown_name(f"argument of {name}", key, [known for known in parameters if known not in ELSEWHERE])
    hints = typing.get_type_hints(builder)
    found = {}
    for key, parameter in parameters.items():
        if key in given:
            value = _of_type(given[key], hints[key])
            if value is _UNFIT:
                raise UserError(f"{key} of {name} is {given[key]!r}; it must be {_described(hints[key])}.")
            if value != parameter.default:
                found[key] = value
        elif parameter.default is parameter.empty:
            raise UserError(f"{name} got no {key}; give it, as in CIFARResNet(26) or {key}=26.")
    return found


# Stands for a value that is not of its argument's type: None is a value.
_UNFIT = object()


def _of_type(value: Any, hint: Any) -> Any:
    """Return a value as plain data of an argument's type, or `_UNFIT`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return next((found for kind in inner if (found := _of_type(value, kind)) is not _UNFIT), _UNFIT)
    if origin is Literal:
        return value if type(value) is str and value in inner else _UNFIT
    if origin is Callable:
        # As Keras serialises functions that are not its own.
        return dict(value) if isinstance(value, Mapping) else _UNFIT
    if origin is Sequence and isinstance(value, (list, tuple)):
        found = [_of_type(item, inner[0]) for item in value]
        return _UNFIT if _UNFIT in found else found
    if typing.is_typeddict(hint) and isinstance(value, Mapping):
        kinds = typing.get_type_hints(hint)
        items = {key: _of_type(item, kinds[key]) if key in kinds else _UNFIT for key, item in value.items()}
        return _UNFIT if _UNFIT in items.values() else items
    if hint is int or hint is float:
        number = (whole_number if hint is int else finite_number)(value)
        return _UNFIT if number is None else hint(number)
    return value if isinstance(hint, type) and not typing.is_typeddict(hint) and type(value) is hint else _UNFIT


def _described(hint: Any) -> str:
    """Return a description of an argument's type, for the error message."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(kind) for kind in inner if typing.get_origin(kind) is not Callable)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is Sequence:
        return f"a list, each item {_described(inner[0])}"
    if typing.is_typeddict(hint):
        return f"numbers by some of the names {', '.join(typing.get_type_hints(hint))}, such as {{'k': 1}}"
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
    return words.get(hint, "None")
