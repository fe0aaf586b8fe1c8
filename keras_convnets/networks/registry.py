"""Networks by name: listing, facts and builders. Imports no Keras."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from keras_convnets.errors import unknown_name
from keras_convnets.networks.architecture import Architecture, Family
from keras_convnets.networks.table import ARCHITECTURES, FAMILIES

if TYPE_CHECKING:
    import keras

# Every builder: the networks of the table, and those of any depth.
BUILDERS: Mapping[str, Family] = MappingProxyType(
    {
        **{architecture.name: architecture.family for architecture in ARCHITECTURES.values()},
        **{name: family for family in FAMILIES for name in family.any_depth},
    }
)
_HINT = "keras-convnets models lists all"


def get_architecture(name: str) -> Architecture:
    """Return the table's row of a network; capital letters do not matter.

    Raises:
        UserError: if no network has that name; the message suggests the nearest names.
    """
    return ARCHITECTURES[_known(name, ARCHITECTURES)]


def builder_name(name: str) -> str:
    """Return a builder's canonical name; the argument is case-insensitive.

    Raises:
        UserError: if no builder has that name; the message suggests the nearest names.
    """
    return _known(name, BUILDERS)


def _known(name: str, names: Mapping[str, Any]) -> str:
    spelt = {known.lower(): known for known in names}.get(str(name).lower())
    if spelt is None:
        raise unknown_name("model", name, names, _HINT)
    return spelt


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the registered networks that match a shell pattern, capital letters aside.

    Example:
        >>> list_models("vgg1?")
        ['VGG11', 'VGG13', 'VGG16', 'VGG19']
    """
    pattern = pattern.lower()
    return [name for name in ARCHITECTURES if fnmatch.fnmatchcase(name.lower(), pattern)]


def get_builder(name: str) -> Callable[..., keras.Model]:
    """Return a builder by its name; this imports Keras.

    Raises:
        UserError: if no builder has that name.
    """
    name = builder_name(name)
    return getattr(importlib.import_module(BUILDERS[name].path), name)


def get_model(name: str, /, **arguments: Any) -> keras.Model:
    """Build a network by its name.

    Args:
        name: a name that `list_models` gives, or "CIFARResNet" or "CIFARPlainNet"; capital letters do not matter.
        **arguments: what the builder takes, such as `classes=100`.

    Returns:
        The functional Keras model that the builder of that name returns.

    Raises:
        UserError: if the name is unknown.

    Example:
        >>> model = get_model("ResNet20", classes=100)
    """
    return get_builder(name)(**arguments)
