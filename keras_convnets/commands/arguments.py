"""Argument parsing: commands, actions and values; errors are one sentence with the nearest valid names."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from keras_convnets.errors import UserError, unknown_name


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` and takes hyphens for underscores in flags."""

    def __init__(self, **arguments: Any):
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UserError` instead of printing the usage and leaving."""
        raise UserError(f"{message}; see {self.prog} --help.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; unknown flags are refused with a suggestion of the nearest known ones."""
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


class Command(NamedTuple):
    """A command, or an action of one.

    Attributes:
        doc: its purpose; the first line is its help.
        add_flags: adds its arguments to its parser.
        run: does it and returns the exit status, None for 0; None of a command that has actions.
    """

    doc: str | None
    add_flags: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int | None] | None = None


def add_commands(parser: Parser, metavar: str, commands: Mapping[str, Command]) -> None:
    """Add commands to the program's parser, or actions to a command's: what is parsed has its function as `command`."""
    parsers = parser.add_subparsers(metavar=metavar, required=True, parser_class=Parser)
    for name, command in commands.items():
        purpose = (command.doc or name).split("\n")[0]
        sub = parsers.add_parser(name, help=purpose[0].lower() + purpose[1:].rstrip("."), description=purpose)
        # Its own default would overwrite a --debug that stood before the command.
        add_debug_flag(sub, default=argparse.SUPPRESS)
        command.add_flags(sub)
        if command.run is not None:
            sub.set_defaults(command=command.run)


def add_debug_flag(parser: Parser, default: Any = False) -> None:
    """Add --debug, which every parser takes."""
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def add_data_flags(parser: Parser, required: bool = False) -> None:
    """Add the flags that name a data set."""
    what = "digits, a folder of images, ImageNet's validation folder, or a name of TensorFlow Datasets such as cifar10"
    parser.add_argument("--dataset", required=required, metavar="DATA", help=what)
    parser.add_argument("--data_dir", metavar="DIR", help="where prepared TFDS directories are (else TFDS_DATA_DIR)")


def add_model_flags(parser: Parser) -> None:
    """Add the flag that sets arguments of a network's builder."""
    what = "set an argument of the network's builder, such as shortcut=A"
    parser.add_argument("--set_model", action="append", default=[], metavar="FIELD=VALUE", help=what)


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def count(text: str) -> int:
    """Return a whole number of at least 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def not_negative(text: str) -> float:
    """Return a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def switch(text: str) -> bool:
    """Return whether a switch is on, from true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false; put a switch last or give it =true")
    return text.lower() == "true"
