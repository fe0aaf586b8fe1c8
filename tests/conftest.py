"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each want every core only take turns.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

DATA_VARIABLE = "KERAS_CONVNETS_TEST_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that need it skip without it."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"{DATA_VARIABLE} is not set; it names a folder with datasets/ (see CONTRIBUTING.md)")
    return Path(folder) / "datasets"


@pytest.fixture(scope="session")
def run_python():
    """Run a script, or `-m keras_convnets` with arguments, in a process of its own; returns the finished process."""

    def run(*arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300):
        command = [sys.executable, *arguments]
        environment = {**os.environ, **(env or {})}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A finished run: ResNet-20 on the digits for a few epochs, good enough to tell most digits."""
    from keras_convnets import training

    path = tmp_path_factory.mktemp("runs") / "digits"
    overrides = {"epochs": 6, "holdout": 0.1, "batch_size": 64}
    training.fit("ResNet20", "digits", run=path, overrides=overrides)
    return path


@pytest.fixture(scope="session")
def published(trained_run, tmp_path_factory) -> Path:
    """The run's exported version, `<repository>/digits/1`."""
    from keras_convnets import export

    return export.publish(trained_run, name="digits", to=tmp_path_factory.mktemp("repository"))
