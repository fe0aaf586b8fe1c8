"""Suggestions: which network of the family a weights file fits that does not fit the requested one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_convnets.networks.registry import ARCHITECTURES, get_builder


def fitting(model: keras.Model, architecture: str, weighted: int, check: Callable[[keras.Model], Any]) -> str | None:
    """Return the call that builds a network of the same family which takes a file; None if none does.

    Args:
        model: the network that does not take it.
        architecture: its builder's name.
        weighted: how many convolutions and fully connected layers the file has.
        check: takes a network, whose weights have shapes but no values, and raises if it does not take the file.

    Example:
        >>> fitting(ResNet50(), "ResNet50", 54, check)
        'ResNet50v1_5()'
    """
    top = next((layer for layer in model.layers if layer.name == "predictions"), None)
    common: dict[str, Any] = {"include_top": top is not None, "input_shape": tuple(model.input_shape[1:])}
    common |= {"include_preprocessing": False} | ({"classes": top.units} if top is not None else {})
    for name, own in _relatives(architecture, weighted):
        # The search is for a hint only: errors in it must not hide the refusal.
        with contextlib.suppress(Exception):
            # Keras keeps stateless variables and used names per thread; they end with this one.
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                relative = thread.submit(_shapes_of, name, {**common, **own}).result()
            check(relative)
            return f"{name}({', '.join(f'{key}={value!r}' for key, value in own.items())})"
    return None


def _relatives(architecture: str, weighted: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (builder's name, its own arguments) of networks that may have this number of weighted layers."""
    known = ARCHITECTURES.get(architecture)
    if known is None:
        return
    # Shortcuts have at most one projection for each block of two layers.
    likely = [
        other.name
        for other in ARCHITECTURES.values()
        if other.family is known.family and other.depth <= weighted <= other.depth * 3 // 2
    ]
    yield from ((name, {}) for name in likely if name != architecture)
    for name in likely:
        own = inspect.signature(get_builder(name)).parameters.get("shortcut")
        if own is not None:
            others = [kind for kind in typing.get_args(own.annotation) if name == architecture or kind != own.default]
            yield from ((name, {"shortcut": kind}) for kind in others)


def _shapes_of(name: str, arguments: dict[str, Any]) -> keras.Model:
    """Return a network whose weights have no values: it takes no memory, and a quarter of the time to build."""
    with keras.StatelessScope(initialize_variables=False):
        return get_builder(name)(**arguments)
