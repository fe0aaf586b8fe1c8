"""Each artifact is loaded by its own runtime and compared with Keras on real images, or it is not published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_convnets.classifier import Classifier, view_encoded
from keras_convnets.export.loading import load_onnx, load_saved_model

# Largest difference between two probabilities. Both sides compute in float32 with other orders of summation; over
# these networks that has stayed under 1e-6, and 1e-5 never changes which of two answers a person would believe.
TOLERANCE = 1e-5
BATCHES = (1, 3)


def sample_images(run_folder: Path | None) -> list[bytes]:
    """Return encoded real images: those the run kept, else the two photographs that come with scikit-learn."""
    kept = sorted((run_folder / "samples").glob("*/*.png")) if run_folder else []
    if kept:
        return [path.read_bytes() for path in kept]
    from sklearn import datasets

    folder = Path(datasets.__file__).parent / "images"
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def verify(folder: Path, formats: Sequence[str], reference: Classifier, encoded: Sequence[bytes]) -> dict[str, float]:
    """Load what was written into a folder and compare it with Keras, one image at a time and three at a time.

    Args:
        folder: holds the artifacts.
        formats: "saved_model", "onnx".
        reference: the Keras network.
        encoded: real images.

    Returns:
        The largest difference of probabilities, by artifact and way in.

    Raises:
        RuntimeError: if a difference is above the tolerance or an output is not finite.
    """
    images = view_encoded(encoded, reference.card)
    expected = reference(images)
    if not np.isfinite(expected).all():
        raise RuntimeError("the network's own outputs are not finite; nothing is published.")
    ways = {}
    if "saved_model" in formats:
        exported = load_saved_model(folder, reference.card)
        ways["saved_model image_bytes"] = (exported.predict, list(encoded))
        ways["saved_model images"] = (exported.predict_images, images)
    if "onnx" in formats:
        ways["onnx images"] = (load_onnx(folder / "model.onnx", reference.card).predict_images, images)
    differences = {}
    for way, (predict, inputs) in ways.items():
        for batch in BATCHES:
            got = np.concatenate([predict(inputs[at : at + batch]) for at in range(0, len(inputs), batch)])
            difference = float(np.abs(got - expected).max()) if np.isfinite(got).all() else float("inf")
            differences[way] = max(difference, differences.get(way, 0.0))
        if not differences[way] <= TOLERANCE:
            raise RuntimeError(
                f"{way} differs from Keras by {differences[way]:.2g} (allowed: {TOLERANCE:g}); nothing is published."
            )
    return differences
