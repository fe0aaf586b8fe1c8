"""The exception for user errors, and error messages that suggest the nearest valid names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from keras_convnets.display import printable


class UserError(ValueError):
    """Invalid input from the user: one sentence that says what was received, what is allowed and what to do.

    The command line prints the message without a traceback and exits with status 2. It is a `ValueError`,
    so that code which uses the package as a library catches what it expects. The message may contain names from data:
    what a terminal would not show as text is written as in a Python literal.
    """

    def __init__(self, sentence: object = ""):
        # Line breaks of other programs' messages stay; the command line folds them.
        super().__init__("\n".join(map(printable, str(sentence).split("\n"))))


class UnreadableImage(UserError):
    """An image that can't be read or decoded, or is refused by an endpoint; other images of a batch may be valid."""


class Interrupted(Exception):
    """Work that was asked to stop and can be resumed; the command line exits with status 130."""


class Diverged(FloatingPointError):
    """A training whose losses or weights are no longer finite; its checkpoints are finite.

    Attributes:
        learning_rate: what to try instead.
    """

    def __init__(self, sentence: str, learning_rate: float):
        super().__init__(sentence)
        self.learning_rate = learning_rate


def unknown_name(kind: str, name: object, known: Iterable[str], hint: str = "") -> UserError:
    """Return the error for a name that is not among the known ones, with the nearest of them.

    Args:
        kind: what the name should have named, such as "model".
        name: what came.
        known: every valid name.
        hint: a sentence without its full stop, added at the end, such as "run keras-convnets models for all".

    Example:
        >>> str(unknown_name("model", "ResNet21", ["ResNet20", "ResNet32"]))
        "unknown model 'ResNet21'; the nearest valid names are ResNet20, ResNet32."
    """
    known = list(known)
    lowered = {candidate.lower(): candidate for candidate in reversed(known)}
    near = [lowered[match] for match in difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.5)]
    if near:
        allowed = f"the nearest valid name{'s are' if len(near) > 1 else ' is'} {', '.join(near)}"
    else:
        allowed = f"valid names are {', '.join(known) or 'none'}"
    return UserError(f"unknown {kind} {str(name)!r}; {allowed}{f'; {hint}' if hint else ''}.")
