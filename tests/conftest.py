"""Fixtures of several test modules."""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from real_data import DATA_VARIABLE

from keras_convnets.export.memory import release_memory

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each want every core only take turns.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Run modules of few tests first: their tests are the longest; run last, they would leave a worker idle."""
    tests = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])


def pytest_collection_finish():
    """What the test modules imported stays: no garbage collection need look through TensorFlow's million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Replace fsync, because tests need not survive a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


# Folders whose tests check what is computed; export and serving are tested with the graphs that they run in production.
UNOPTIMIZED = ("commands", "images", "networks", "training", "weights")


@pytest.fixture(scope="module", autouse=True)
def unoptimized_graphs(request):
    """Graphs are executed as they are traced: TensorFlow's optimiser takes a third of the time of a training so small.

    It stays on where the tests of `UNOPTIMIZED` start processes of their own, and in the heavy tests.
    """
    quick = request.path.parent.name in UNOPTIMIZED and "not heavy" in request.config.option.markexpr
    with graphs_as_traced() if quick and "tensorflow" in sys.modules else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def graphs_as_traced() -> Iterator[None]:
    from tensorflow import config

    before = config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


@pytest.fixture(scope="module", autouse=True)
def module_memory(request):
    """Give back what a module's tests leave in memory: its cached networks, Keras' state, freed pages."""
    yield
    for value in vars(request.module).values():
        if isinstance(value, functools._lru_cache_wrapper) and _is_of_tests(value):
            value.cache_clear()
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()
    release_memory()


def _is_of_tests(function: Callable) -> bool:
    return Path(sys.modules[function.__module__].__file__ or "").is_relative_to(Path(__file__).parent)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable:
    """`made_once(name, make)`: the folder that `make(folder)` fills, once for all processes that run tests."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / "made_once" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.with_suffix(".made").exists():
                make(folder)
                folder.with_suffix(".made").touch()
        return folder

    return once


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that need it skip without it."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"{DATA_VARIABLE} is not set; it names a folder with datasets/ (see CONTRIBUTING.md)")
    return Path(folder) / "datasets"


@pytest.fixture(scope="session")
def run_python():
    """Run a script, or `-m keras_convnets` with arguments, in a separate process; returns the finished process."""

    def run(*arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300):
        command = [sys.executable, *arguments]
        environment = {**os.environ, **(env or {})}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture
def eager_functions():
    """`tf.function`s run eagerly: tracing a network takes longer than a step or two."""
    from tensorflow import config

    config.run_functions_eagerly(True)
    yield
    config.run_functions_eagerly(False)


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs end without drawing their learning curves, which takes a sixth of a training so small: an empty file."""
    from keras_convnets.training import results

    def empty_file(records, path, title):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(results, "learning_curves", empty_file)


@pytest.fixture
def cli(capsys):
    """Run a command in this process; returns (status, standard output, standard error)."""

    def run(*arguments: object):
        from keras_convnets.commands.main import main

        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def verified_here():
    """Exports are verified in the test's own process: starting two with TensorFlow takes longer than all the rest."""
    with verification_in_this_process():
        yield


@contextlib.contextmanager
def verification_in_this_process() -> Iterator[None]:
    from keras_convnets.export import verification

    def answer(folder, artifacts, exchange):
        verification._answer(folder, exchange, [artifact.key for artifact in artifacts])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "_run_runtimes", answer)
        yield


def fit_quickly(*arguments, **more) -> None:
    from keras_convnets import training

    with graphs_as_traced():
        training.fit(*arguments, **more)


def publish_quickly(run: Path, name: str, to: Path) -> Path:
    from keras_convnets import export

    with verification_in_this_process():
        return export.publish(run, name=name, to=to)


@pytest.fixture(scope="session")
def trained_run(made_once) -> Path:
    """A finished run: ResNet-20 on the digits for a few epochs, good enough to recognise most digits."""
    overrides = {"epochs": 6, "holdout": 0.1, "batch_size": 64}
    return made_once("digits", lambda path: fit_quickly("ResNet20", "digits", run=path, overrides=overrides))


@pytest.fixture(scope="session")
def published(trained_run, made_once) -> Path:
    """The run's exported version, `<repository>/digits/1`."""
    return made_once("repository", lambda to: publish_quickly(trained_run, "digits", to)) / "digits" / "1"


@pytest.fixture(scope="session")
def photograph_folder(made_once) -> Path:
    """Twelve parts each of scikit-learn's two photographs, as JPEGs of 80 x 60 pixels: `train/` alone, two classes."""
    return made_once("scenes", write_scenes)


def write_scenes(root: Path) -> None:
    datasets, rng = pytest.importorskip("sklearn.datasets"), np.random.default_rng(0)
    for name in ("china", "flower"):
        (root / "train" / name).mkdir(parents=True)
        with Image.open(Path(datasets.__file__).parent / "images" / f"{name}.jpg") as whole:
            for number in range(12):
                left, top = rng.integers(0, whole.width - 240), rng.integers(0, whole.height - 180)
                part = whole.resize((80, 60), box=(left, top, left + 240, top + 180))
                part.save(root / "train" / name / f"{number:02d}.jpg", quality=92)


@pytest.fixture(scope="session")
def photograph_run(photograph_folder, made_once) -> Path:
    """A run of two steps on `photograph_folder`, six images held out: resized to 37 pixels, cropped to 32."""
    overrides = {"iterations": 2, "batch_size": 4, "holdout": 6, "image_size": 32}
    arguments = {"recipe": "resnet_imagenet", "overrides": overrides}
    return made_once("scenes_run", lambda path: fit_quickly("CIFARResNet(8)", photograph_folder, run=path, **arguments))


@pytest.fixture(scope="session")
def photograph_version(photograph_run, made_once) -> Path:
    """The exported version of `photograph_run`."""
    return made_once("scenes_repository", lambda to: publish_quickly(photograph_run, "scenes", to)) / "scenes" / "1"
