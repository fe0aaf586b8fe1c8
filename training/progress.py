"""What a training says while it runs: a live line on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# A pass over the data that takes no longer says nothing; a longer one says so often how far it is.
PASS_SECONDS = 5.0


class PassProgress:
    """Reports long passes over a data set, a line every few seconds: the pass, images done and images/s.

    Args:
        console: where to; None says nothing.
    """

    def __init__(self, console: Console | None):
        self._console = console
        self._doing: str | None = None
        self._began, self._told, self._first, self._done = 0.0, 0.0, 0, 0

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Update the number of images of a pass that are done."""
        now = time.monotonic()
        if doing != self._doing or done < self._done:
            self._doing, self._began, self._told, self._first = doing, now, now, done
        self._done = done
        if self._console is None or now - self._told < PASS_SECONDS:
            return
        self._told = now
        speed = (done - self._first) / (now - self._began)
        left = _minutes((total - done) / speed) if speed else "?"
        text = f"{doing}: {done:,} of {total:,} images, {speed:,.0f} images/s, {left} left"
        self._console.print(text, highlight=False, soft_wrap=True)


class TrainingProgress:
    """The progress of one training: use it in `with progress.starting_at(step):`.

    Args:
        total_steps: length of the run.
        batch_size: images in a step.
        console: where to; None says nothing.
    """

    def __init__(self, total_steps: int, batch_size: int, console: Console | None):
        self._total, self._batch_size, self._start, self._step = total_steps, batch_size, 0, 0
        self._console = console
        # Set after the first step, which compiles, and at the end.
        self._began: float | None = None
        self._ended: float | None = None
        self._waited = 0.0
        self._live: Progress | None = None
        if console is not None and console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps {task.fields[figures]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._live.add_task("training", total=total_steps, figures="")

    @contextmanager
    def starting_at(self, step: int) -> Iterator[None]:
        """Show the progress of a training that begins or resumes at a step."""
        self._start = self._step = step
        if self._live is None:
            yield
        else:
            self._live.update(self._task, completed=step)
            with self._live:
                yield
        self._ended = time.monotonic()

    def _seconds(self) -> float:
        """Return the time since the first step; it stands still after the end."""
        return max((self._ended or time.monotonic()) - (self._began or 0.0), 1e-9)

    @property
    def images_per_second(self) -> float:
        """The mean speed of this process's part of the run, its first step aside; 0 before the second."""
        steps = self._step - self._start - 1
        return 0.0 if self._began is None or steps < 1 else steps * self._batch_size / self._seconds()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as spent waiting for input; that of the first step, which fills buffers, aside."""
        began = time.monotonic()
        yield
        if self._began is not None:
            self._waited += time.monotonic() - began

    @property
    def input_wait(self) -> float:
        """The fraction of the time, the first step aside, spent waiting for input; 0 at the start."""
        return 0.0 if self._began is None else self._waited / self._seconds()

    def advance(self, step: int) -> None:
        """Show that a step is done."""
        self._step = step
        if self._began is None:
            self._began = time.monotonic()
        if self._live:
            figures = f"{self.images_per_second:,.0f} images/s, input wait {self.input_wait:.0%}"
            self._live.update(self._task, completed=step, figures=figures)

    def report(self, record: dict[str, Any]) -> None:
        """Print one record of `metrics.jsonl` as a line."""
        if self._console is None:
            return
        step = record["step"]
        speed = self.images_per_second
        left = _minutes((self._total - step) * self._batch_size / speed) if speed else "?"
        held = f"  holdout top-1 {record['val_top1']:.1%}" if "val_top1" in record else ""
        self._console.print(
            f"epoch {record['epoch']:g}  step {step}/{self._total}  loss {record['loss']:.4f}  "
            f"top-1 {record['top1']:.1%}{held}  lr {record['learning_rate']:.2g}  {speed:,.0f} images/s  "
            f"input wait {self.input_wait:.0%}  "
            f"{left} left",
            highlight=False,
            soft_wrap=True,
        )


def _minutes(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
