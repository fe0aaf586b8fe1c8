"""What the commands print besides plain lines: JSON, and progress on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from keras_convnets.display import printable


def print_json(data: Any) -> None:
    """Print plain data as JSON."""
    from keras_convnets.files import json_text

    print(json_text(data))


def escaped(doing: str) -> str:
    """Return text that rich shows without interpreting brackets as markup."""
    from rich.markup import escape

    return escape(printable(doing))


@contextlib.contextmanager
def image_progress(doing: str, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, in all) that shows progress, with images/s and time left, on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    speed = TextColumn("{task.fields[speed]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=hidden or not sys.stdout.isatty()) as progress:
        task = progress.add_task(escaped(doing), total=None, speed="")

        def show(done: int, total: int) -> None:
            rate = progress.tasks[0].speed
            progress.update(task, completed=done, total=total, speed=f"{rate:,.0f} images/s" if rate else "")

        yield show
