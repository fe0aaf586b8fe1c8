"""Warm-up requests: what TensorFlow Serving runs on a version before it says that it is available."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from keras_convnets.export.repository import EXTRA

# In a version's folder.
PLACE = Path(EXTRA, "tf_serving_warmup_requests")
BATCHES = (1, 3)


def write_warm_up(folder: Path, name: str, encoded: Sequence[bytes]) -> None:
    """Write requests to `serving_default` as a TFRecord of PredictionLog, so that no client pays for the first one.

    Args:
        folder: the version's; its `assets.extra` exists.
        name: the model's name in the repository.
        encoded: encoded images, at least one.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    with tf.io.TFRecordWriter(str(folder / PLACE)) as records:
        for batch in BATCHES:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = "serving_default"
            images = [encoded[position % len(encoded)] for position in range(batch)]
            request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images, dtype=tf.string, shape=[batch]))
            records.write(log.SerializeToString())
