"""The memory of a process and of those it starts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import psutil


def peak_of(command: Sequence[str]) -> int:
    """Run a command and return the largest sum of resident memory of it and its children, in bytes."""
    process, peak = psutil.Popen(list(command)), 0
    while process.poll() is None:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += member.memory_info().rss
        peak = max(peak, total)
        time.sleep(0.02)
    assert process.returncode == 0
    return peak
