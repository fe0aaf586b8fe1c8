"""`main` parses and delegates: which commands there are, and what their errors become."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from keras_convnets.commands import FAILURE, INTERRUPTED, PROGRAM, USER_ERROR
from keras_convnets.commands.arguments import Parser, add_commands, add_debug_flag
from keras_convnets.display import printable
from keras_convnets.errors import Diverged, Interrupted, UserError, unknown_name
from keras_convnets.version import __version__

# Each is a module of this package that defines `COMMAND` and is imported on first use.
COMMANDS = ("models", "info", "data", "train", "evaluate", "predict", "export", "repo", "serve", "demo", "quickstart")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; by default those of the process.

    Returns:
        The exit status: 0, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    handler = logging.StreamHandler()
    handler.setFormatter(_TextFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    try:
        args = _parse(argv)
        return args.command(args) or 0
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        return _complain(error)


class _TextFormatter(logging.Formatter):
    """Formats log messages without control characters, which names in them may contain."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return printable(text) if record.name.startswith("keras_convnets") else text


def _complain(error: BaseException) -> int:
    """Print an error message in one line and return the exit status for it."""
    from keras_convnets.weights.downloads import DownloadError

    sentence = printable(" ".join(str(error).split())) or type(error).__name__
    status = FAILURE
    if isinstance(error, UserError):
        status = USER_ERROR
    elif isinstance(error, (Interrupted, KeyboardInterrupt)):
        status = INTERRUPTED
    elif not isinstance(error, (DownloadError, Diverged)):
        sentence = f"{sentence[:500]} (add --debug for the traceback)"
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return status


def _parse(argv: list[str]) -> argparse.Namespace:
    first = next((arg for arg in argv if not arg.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        raise unknown_name("command", first, COMMANDS, f"see {PROGRAM} --help")
    parser = Parser(prog=PROGRAM, description="The classic convolutional networks: train, evaluate, export, serve.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    add_debug_flag(parser)
    names = COMMANDS if first is None else (first,)
    modules = {name: importlib.import_module(f"keras_convnets.commands.{name}") for name in names}
    add_commands(parser, "COMMAND", {name: module.COMMAND for name, module in modules.items()})
    args = parser.parse_args(argv)
    args.given = argv
    return args
