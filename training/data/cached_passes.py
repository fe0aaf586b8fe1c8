"""Passes over all images of a data set: their results are cached and their progress is reported."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from keras_convnets.files import read_json, write_text
from keras_convnets.version import __version__
from keras_convnets.weights.downloads import cache_folder

# A pass over fewer images takes seconds; the result of a longer one is kept.
KEPT_FROM = 10_000
# (description of the pass, images done, total images)
Report = Callable[[str, int, int], None]
Part = TypeVar("Part")
_report: ContextVar[Report | None] = ContextVar("report", default=None)


@contextlib.contextmanager
def reporting(report: Report | None) -> Iterator[None]:
    """Report the progress of every pass made inside the context to a function."""
    before = _report.set(report)
    try:
        yield
    finally:
        _report.reset(before)


def counted(parts: Iterable[Part], doing: str, total: int, images: Callable[[Any], int] = len) -> Iterator[Part]:
    """Give the parts of a pass as they come, and report them.

    Args:
        parts: such as batches.
        doing: what the pass does, as "checking images".
        total: number of images in all.
        images: how many are in a part.
    """
    report, done = _report.get(), 0
    for part in parts:
        done += images(part)
        if report is not None:
            report(doing, done, total)
        yield part


def kept(kind: str, state: str, images: int, compute: Callable[[], Any], is_sound: Callable[[Any], bool]) -> Any:
    """Return what a pass over images finds: from the user's cache folder where it was kept, else computed and kept.

    Args:
        kind: what is found, a word.
        state: a text that changes with the images, such as the files' sizes and times of change.
        images: how many there are; of fewer than `KEPT_FROM` nothing is kept.
        compute: makes the pass; what it returns is plain data for JSON.
        is_sound: whether what was kept may be used; else it is computed again.
    """
    if images < KEPT_FROM:
        return compute()
    key = hashlib.sha256(f"{__version__} {images} {state}".encode(errors="surrogateescape")).hexdigest()
    path = cache_folder() / "passes" / f"{kind}-{key}.json"
    with contextlib.suppress(ValueError, TypeError, KeyError):  # missing, damaged or somebody else's
        found = read_json(path, f"kept {kind}")
        if is_sound(found):
            return found
    value = compute()
    # Where the cache can't be written, the next run computes again.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(value))
    return value
