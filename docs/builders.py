"""What the reference shows of a builder: the signature that `application` gives it, read from the source."""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

APPLICATION = "keras_convnets.networks.application"


class Builders(griffe.Extension):
    """Gives functions decorated with `@application(ARGUMENTS)` the parameters and the rows that ARGUMENTS declares."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Look at every function of the networks once the package is read."""
        for module in pkg["networks"].modules.values():
            own = {name: function for name, function in module.functions.items() if not function.is_alias}
            for function in own.values():
                decorators = [
                    re.match(r"application\((\w+)", str(decorator.value)) for decorator in function.decorators
                ]
                for found in filter(None, decorators):
                    _complete(function, own.get(found[1]), pkg[APPLICATION.partition(".")[2]]["common_arguments"])


def _complete(function: griffe.Function, declared: griffe.Function | None, common: griffe.Function) -> None:
    """Replace a builder's parameters by the declared ones; document its own, and name those that all builders have."""
    function.parameters = (declared or common).parameters
    own = inspect.cleandoc(declared.docstring.value).partition("Args:\n")[2] if declared else ""
    rows = f"\n\nArgs:\n{own.rstrip()}" if own else ""
    rest = f"The others are those of all builders: [`common_arguments`][{APPLICATION}.common_arguments]."
    function.docstring = griffe.Docstring(
        f"{inspect.cleandoc(function.docstring.value)}{rows}\n\n{rest}", parent=function, parser="google"
    )
