"""What deployment files say of a repository's models: versions, sizes, and inputs and outputs of `model.onnx`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keras_convnets.errors import UserError
from keras_convnets.export import repository
from keras_convnets.extras import require

ONNX_FILE = "model.onnx"
# By ONNX' element types: the names of Triton's, and the bytes of an element.
TRITON_TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 6: "TYPE_INT32", 7: "TYPE_INT64", 10: "TYPE_FP16", 8: "TYPE_STRING"}
MIB = 2**20
# Python or C++, the libraries, and the buffers of requests.
BASE_MIB = 1024
# The weights of the version that serves and of the next one while it loads, and the working memory of a batch.
WEIGHTS_HELD = 4


@dataclass(frozen=True)
class Tensor:
    """An input or output of an ONNX file: its name, Triton's name of its type, and its shape without the batch."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DeployedModel:
    """A model of the repository.

    Attributes:
        name: in the repository.
        versions: the folders of the versions that are served, by number.
        size: of the largest of them, in bytes.
        input_size: height and width in pixels; None of a version that was not exported here.
        onnx_inputs: of `model.onnx`; empty where a served version lacks it.
        onnx_outputs: likewise.
    """

    name: str
    versions: dict[int, Path]
    size: int
    input_size: tuple[int, int] | None
    onnx_inputs: tuple[Tensor, ...] = field(default=())
    onnx_outputs: tuple[Tensor, ...] = field(default=())

    @property
    def has_onnx(self) -> bool:
        """Whether each served version has a `model.onnx`."""
        return bool(self.onnx_inputs)


def read(root: str | os.PathLike, names: Sequence[str] = ()) -> list[DeployedModel]:
    """Return the models of a repository.

    Args:
        root: the repository.
        names: some of its models; by default all.

    Raises:
        UserError: if the repository holds no model, or not those.
    """
    found: dict[str, list[repository.Version]] = {}
    for name in names or (None,):
        for version in repository.published(root, name):
            found.setdefault(version.model, []).append(version)
    return [_model(name, [version for version in versions if version.served]) for name, versions in found.items()]


def _model(name: str, served: list[repository.Version]) -> DeployedModel:
    if not served:
        raise UserError(f"{name} has none of the versions that its models.config serves; export one, or roll back.")
    files = [version.path / ONNX_FILE for version in served]
    inputs, outputs = _tensors(files[-1]) if all(file.is_file() for file in files) else ((), ())
    card = served[-1].card
    size = max(version.size for version in served)
    versions = {version.number: version.path for version in served}
    return DeployedModel(name, versions, size, card.view.crop if card else None, inputs, outputs)


def _tensors(file: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    require("export", "reading model.onnx", "onnx")
    import onnx

    # The graph alone; weights in other files are not read.
    graph = onnx.load(str(file), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_tensor(item) for item in graph.input if item.name not in weights)
    return inputs, tuple(_tensor(item) for item in graph.output)


def _tensor(value: object) -> Tensor:
    kind = value.type.tensor_type  # type: ignore[attr-defined]  # onnx.ValueInfoProto, without types of its own
    shape = tuple(dimension.dim_value or -1 for dimension in kind.shape.dim[1:])
    return Tensor(value.name, TRITON_TYPES[kind.elem_type], shape)  # type: ignore[attr-defined]


def memory_mib(models: Sequence[DeployedModel]) -> int:
    """Return the memory that a server of these models is given, in MiB: a base, and a multiple of their sizes."""
    return BASE_MIB + WEIGHTS_HELD * -(-sum(model.size for model in models) // MIB)
