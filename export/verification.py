"""Each artifact is loaded by its own runtime, in a fresh process, and compared with Keras on real images.

This module is also what the fresh process runs: `python -m keras_convnets.export.verification`. It imports neither
Keras nor the network's code there, as a server would not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_convnets.export.formats import all_formats
from keras_convnets.export.formats.format import Artifact
from keras_convnets.export.memory import release_memory
from keras_convnets.export.samples import Samples
from keras_convnets.prediction import Classifier

# One image alone and an odd number of them: a wrong batch dimension shows.
BATCHES = (1, 3)
# Artifacts that lose precision are run on every image, in batches of this size.
QUANTISED_BATCH = 8
TIMEOUT_SECONDS = 1800


def verify(
    folder: Path,
    artifacts: Sequence[Artifact],
    reference: Classifier,
    samples: Samples,
    side_by_side: bool = True,
) -> dict[str, Any]:
    """Compare the artifacts in a folder with Keras.

    Args:
        folder: holds the artifacts.
        artifacts: which of them.
        reference: the Keras network.
        samples: real images.
        side_by_side: whether the runtimes run concurrently, or sequentially, which takes less memory.

    Returns:
        For the card: "differences" and "tolerances" by artifact and way in, and "accuracy" where precision was lost.

    Raises:
        RuntimeError: if a difference is above its tolerance, an output is not finite, or a runtime does not load an
            artifact.
    """
    from keras_convnets.prediction import view_encoded

    card, encoded, step = reference.card, samples.encoded, QUANTISED_BATCH
    starts = range(0, len(encoded), step)
    # A committee whose members see images in different views has no pixels that all of them take.
    images = None if reference.predict_images is None else view_encoded(encoded, card)
    if images is None:
        expected = np.concatenate([reference.predict(encoded[at : at + step]) for at in starts])
    else:
        expected = np.concatenate([reference(images[at : at + step]) for at in starts])
    if not np.isfinite(expected).all():
        raise RuntimeError("the network's own outputs are not finite; nothing is published.")
    del reference  # frees the traced graph, unless the caller holds it
    release_memory()
    with tempfile.TemporaryDirectory() as exchange:
        _hand_over(Path(exchange), images, encoded)
        runtimes = list(dict.fromkeys(artifact.runtime for artifact in artifacts))
        for together in [runtimes] if side_by_side else [[runtime] for runtime in runtimes]:
            _run_runtimes(folder, [one for one in artifacts if one.runtime in together], Path(exchange))
        answers = {path.stem: np.load(path) for path in Path(exchange).glob("*.answers.npy")}
    differences, tolerances = _compare(artifacts, answers, expected, card.trained)
    for name, difference in differences.items():
        if not difference <= tolerances[name]:
            raise RuntimeError(
                f"{name} differs from Keras by {difference:.2g} (allowed: {tolerances[name]:g}); nothing is published."
            )
    return {
        "differences": differences,
        "tolerances": tolerances,
        "images": {"n": len(encoded), "source": samples.source},
        **_accuracies(artifacts, answers, expected, samples.labels),
    }


def _compare(
    artifacts: Sequence[Artifact], answers: dict[str, np.ndarray], expected: np.ndarray, trained: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the largest difference for each kind of input of each artifact, and the tolerance."""
    differences: dict[str, float] = {}
    tolerances: dict[str, float] = {}
    exact = max(BATCHES)
    for artifact in artifacts:
        if not any(key.partition(":")[0] == artifact.key for key in answers):
            raise RuntimeError(f"{artifact.key} gave no answers to compare with Keras; nothing is published.")
        for key, got in answers.items():
            way = key.removesuffix(".answers").partition("@")[0]
            if way.partition(":")[0] == artifact.key:
                name = way.replace(":", " ")
                wanted = expected if artifact.precision == "int8" else expected[np.arange(exact) % len(expected)]
                difference = _difference(artifact, got, wanted)
                differences[name] = max(difference, differences.get(name, 0.0))
                tolerances[name] = artifact.tolerance(trained)
    return differences, tolerances


def _difference(artifact: Artifact, got: np.ndarray, expected: np.ndarray) -> float:
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    if artifact.precision == "int8":
        rows, likeliest = np.arange(len(expected)), expected.argmax(axis=1)
        return float(np.abs(got[rows, likeliest] - expected[rows, likeliest]).mean())
    return float(np.abs(got - expected).max())


def _accuracies(
    artifacts: Sequence[Artifact], answers: Mapping[str, np.ndarray], expected: np.ndarray, labels: np.ndarray | None
) -> dict[str, Any]:
    """Return top-1 of float32 and of quantised artifacts, on the same images; only the agreement without labels."""
    found = {}
    for artifact in artifacts:
        if artifact.precision == "int8":
            got = next(value for key, value in answers.items() if key.partition(":")[0] == artifact.key)
            figures = {"n": len(expected), "agreement": float((got.argmax(1) == expected.argmax(1)).mean())}
            if labels is not None:
                figures |= {
                    "top1": float((got.argmax(1) == labels).mean()),
                    "float32_top1": float((expected.argmax(1) == labels).mean()),
                }
            found[artifact.key] = figures
    return {"accuracy": found} if found else {}


def _hand_over(exchange: Path, images: np.ndarray | None, encoded: Sequence[bytes]) -> None:
    np.save(exchange / "images.npy", np.zeros(0) if images is None else images)
    for position in range(max(BATCHES)):
        (exchange / f"{position}.encoded").write_bytes(encoded[position % len(encoded)])


def _run_runtimes(folder: Path, artifacts: Sequence[Artifact], exchange: Path) -> None:
    """Run every runtime in a separate process, concurrently."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    running = []
    for runtime in dict.fromkeys(artifact.runtime for artifact in artifacts):
        keys = [artifact.key for artifact in artifacts if artifact.runtime == runtime]
        command = [sys.executable, "-m", "keras_convnets.export.verification", str(folder), str(exchange), *keys]
        log = open(exchange / f"{runtime}.log", "w+")
        running.append((runtime, subprocess.Popen(command, stdout=log, stderr=log, env=environment), log))
    try:
        for runtime, process, log in running:
            status = process.wait(timeout=TIMEOUT_SECONDS)
            log.seek(0)
            if status != 0:
                last = next((line for line in reversed(log.read().splitlines()) if line.strip()), f"status {status}")
                raise RuntimeError(f"{runtime} does not run what was exported ({last[:300]}); nothing is published.")
    finally:
        for _, process, log in running:
            process.kill()
            process.wait()
            log.close()


def _answer(folder: Path, exchange: Path, keys: Sequence[str]) -> None:
    """In the new process: load artifacts and save their outputs."""
    images = np.load(exchange / "images.npy")
    exact = images[np.arange(max(BATCHES)) % len(images)] if len(images) else images
    encoded = [(exchange / f"{position}.encoded").read_bytes() for position in range(max(BATCHES))]
    chosen = ((form, artifact) for form in all_formats() for artifact in form.artifacts if artifact.key in keys)
    for form, artifact in chosen:
        for way, predict in _ways(form.load(folder / artifact.file, None)).items():
            name = f"{artifact.key}:{way}" if way else artifact.key
            inputs = encoded if way == "image_bytes" else images if artifact.precision == "int8" else exact
            for batch in (QUANTISED_BATCH,) if artifact.precision == "int8" else BATCHES:
                parts = [predict(inputs[at : at + batch]) for at in range(0, len(inputs), batch)]
                np.save(exchange / f"{name}@{batch}.answers.npy", np.concatenate(parts))


def _ways(exported: Classifier) -> dict[str, Callable]:
    """Return the kinds of input of an artifact: encoded images if it decodes them itself, and pixels."""
    encoded = {} if exported.predict_encoded is None else {"image_bytes": exported.predict_encoded}
    pixels = {} if exported.predict_images is None else {"images": exported.predict_images}
    return {**encoded, **pixels}


if __name__ == "__main__":
    _answer(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
