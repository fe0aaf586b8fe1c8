"""Where benchmarks leave their figures: one CSV a benchmark, one row a run, with the machine beside it."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Return processor and number of cores."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def append_row(name: str, figures: dict[str, Any]) -> None:
    """Append a row to results/<name>.csv; its first row names the columns."""
    rounded = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in figures.items()}
    versions = " ".join(f"{package} {metadata.version(package)}" for package in ("tensorflow", "keras"))
    row = {"date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions, **rounded}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
