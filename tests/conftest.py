"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory) -> Path:
    """Twelve parts each of scikit-learn's two photographs, as JPEGs of 80 x 60 pixels: `train/` alone, two classes."""
    datasets = pytest.importorskip("sklearn.datasets")
    root, rng = tmp_path_factory.mktemp("folders") / "scenes", np.random.default_rng(0)
    for name in ("china", "flower"):
        (root / "train" / name).mkdir(parents=True)
        with Image.open(Path(datasets.__file__).parent / "images" / f"{name}.jpg") as whole:
            for number in range(12):
                left, top = rng.integers(0, whole.width - 240), rng.integers(0, whole.height - 180)
                part = whole.resize((80, 60), box=(left, top, left + 240, top + 180))
                part.save(root / "train" / name / f"{number:02d}.jpg", quality=92)
    return root


@pytest.fixture(scope="session")
def photograph_run(photograph_folder, tmp_path_factory) -> Path:
    """A run of two steps on `photograph_folder`, six images held out: resized to 37 pixels, cropped to 32."""
    from keras_convnets import training

    path = tmp_path_factory.mktemp("runs") / "scenes"
    overrides = {"iterations": 2, "batch_size": 4, "holdout": 6, "image_size": 32}
    training.fit("ResNet20", photograph_folder, run=path, recipe="resnet_imagenet", overrides=overrides)
    return path


@pytest.fixture(scope="session")
def photograph_version(photograph_run, tmp_path_factory) -> Path:
    """The exported version of `photograph_run`."""
    from keras_convnets import export

    return export.publish(photograph_run, name="scenes", to=tmp_path_factory.mktemp("repository"))
