"""The weights in Keras' own file, with the network's configuration beside them."""

from __future__ import annotations

from pathlib import Path

from keras_convnets.export.formats.format import FLOAT32_TOLERANCE, Artifact, Format, Job, load_weights_file


def _write(job: Job, artifact: Artifact, folder: Path) -> None:
    job.model.save_weights(folder / artifact.file)


FORMAT = Format(
    (Artifact("weights h5", "model.weights.h5", "tensorflow", "float32", FLOAT32_TOLERANCE),),
    _write,
    load_weights_file,
    suffix=".weights.h5",
    of_one_network=True,
)
