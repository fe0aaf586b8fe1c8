"""The weights as a state dictionary of PyTorch, to go on training there: torchvision's names, or ours."""

from __future__ import annotations

from pathlib import Path

from keras_convnets.export.formats.format import FLOAT32_TOLERANCE, Artifact, Format, Job, load_weights_file


def _write(job: Job, artifact: Artifact, folder: Path) -> None:
    from keras_convnets.weights.state_dict_writer import save_safetensors

    save_safetensors(job.model, folder / artifact.file, naming=job.naming, card=job.card)


FORMAT = Format(
    (Artifact("safetensors", "model.safetensors", "tensorflow", "float32", FLOAT32_TOLERANCE),),
    _write,
    load_weights_file,
    suffix=".safetensors",
    of_one_network=True,
)
