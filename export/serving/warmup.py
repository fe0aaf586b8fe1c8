"""Warm-up: the requests that a version brings along are answered before it is available."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from keras_convnets.export.serving.engines.engine import Engine
from keras_convnets.export.serving.models.servables import Servable
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument
from keras_convnets.export.warmup import PLACE

MOST_RECORDS = 1000


def warm_up(engine: Engine, folder: Path) -> None:
    """Answer the warm-up requests of a version, so that no client pays for the first run.

    Args:
        engine: the version's engine.
        folder: the version's directory; it may have no warm-up file.

    Raises:
        ServingError: if a request fails, or the file holds something else or too many; the version is not to be served.
    """
    import tensorflow as tf

    path = folder / PLACE
    if not path.is_file():
        return
    try:
        for number, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator(), 1):
            if number > MOST_RECORDS:
                raise invalid_argument(f"Number of warmup records exceeds the maximum ({MOST_RECORDS}) at {path}")
            _answer(engine, record, path)
    except tf.errors.DataLossError as error:
        reason = error.message.splitlines()[0].partition(" [Op:")[0]
        raise ServingError(
            Code.DATA_LOSS, f"{reason}. Please verify your warmup data is in TFRecord format."
        ) from error


def _answer(engine: Engine, record: bytes, path: Path) -> None:
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    from keras_convnets.export.serving.rpc import methods

    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise invalid_argument(f"Failed to parse warmup record: {record[:100]!r} from {path}") from error
    # The model's name and version in a request are those of where it was recorded.
    servable = Servable("warmup", 0, engine)

    def use(*spec: Any) -> Any:
        return contextlib.nullcontext(servable)

    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        methods.predict(servable, log.predict_log.request)
    elif kind == "classify_log":
        methods.classify(servable, log.classify_log.request)
    elif kind == "regress_log":
        methods.regress(servable, log.regress_log.request)
    elif kind == "multi_inference_log":
        methods.multi_inference(use, log.multi_inference_log.request)
    else:
        number = log.DESCRIPTOR.fields_by_name[kind].number if kind else 0
        raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
