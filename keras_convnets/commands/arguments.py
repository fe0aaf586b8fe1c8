"""Argument parsing whose errors are one sentence with the nearest valid names."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from keras_convnets.errors import UserError, unknown_name


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` and takes hyphens for underscores in flags."""

    def __init__(self, **arguments: Any):
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UserError` instead of printing the usage and leaving."""
        raise UserError(f"{message}; see {self.prog} --help.")

    def parse_known_args(self, args=None, namespace=None):
        """Parse, refusing what is left over with the nearest flags this parser knows."""
        args = [_with_underscores(arg) for arg in (sys.argv[1:] if args is None else args)]
        flags = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        for arg in args:
            name = arg.partition("=")[0]
            # Looked at before parsing, so that a misspelt flag is named and not the required one it stood for.
            if re.fullmatch(r"--\w+", name) and name not in flags and not self._subparsers:
                raise unknown_name("flag", name, flags, f"see {self.prog} --help")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            raise UserError(f"{self.prog} does not know what to do with {unknown[0]!r}; see {self.prog} --help.")
        return found, unknown


def _with_underscores(arg: str) -> str:
    """Return a flag with its hyphens as underscores; values and other arguments stay."""
    if not re.fullmatch(r"--[A-Za-z].*", arg, re.DOTALL):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
