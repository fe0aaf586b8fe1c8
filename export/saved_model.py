"""The SavedModel: encoded images or pixels in, probabilities or names out, by names of our own."""

from __future__ import annotations

from pathlib import Path

import keras
import tensorflow as tf

from keras_convnets._tf_ops import center_view, decode_image
from keras_convnets.card import ModelCard

TOP_K = 5


def write_saved_model(model: keras.Model, card: ModelCard, folder: Path) -> None:
    """Write a SavedModel with the signatures that clients call.

    serving_default: `image_bytes`, string [batch] (JPEG, PNG, BMP, GIF) -> `probabilities`, float32 [batch, classes].
    predict_images: `images`, uint8 [batch, H, W, 3], RGB of the input's size -> `probabilities`.
    top_k: `image_bytes` -> `classes`, string [batch, k], and `scores`, float32 [batch, k]; k is 5 or fewer.

    One inference function stands behind all of them, so the weights are stored once. Decoding, resizing by the card's
    view and normalisation are inside.

    Args:
        model: images [batch, H, W, 3] -> probabilities [batch, classes].
        card: its class names and view.
        folder: where `saved_model.pb` and `variables/` go.
    """
    height, width = card.view["crop"]
    names = tf.constant(card.class_names)
    k = min(TOP_K, len(card.class_names))

    def view(data: tf.Tensor) -> tf.Tensor:
        return center_view(decode_image(data), card.view["resize"], (height, width))

    def infer(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    def decode_and_infer(image_bytes: tf.Tensor) -> tf.Tensor:
        return infer(tf.map_fn(view, image_bytes, fn_output_signature=tf.TensorSpec([height, width, 3], tf.uint8)))

    def serving_default(image_bytes):
        return {"probabilities": decode_and_infer(image_bytes)}

    def predict_images(images):
        return {"probabilities": infer(images)}

    def top_k(image_bytes):
        scores, indices = tf.math.top_k(decode_and_infer(image_bytes), k)
        return {"classes": tf.gather(names, indices), "scores": scores}

    encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
    pixels = tf.TensorSpec([None, height, width, 3], tf.uint8, name="images")
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", serving_default, [encoded])
    archive.add_endpoint("predict_images", predict_images, [pixels])
    archive.add_endpoint("top_k", top_k, [encoded])
    archive.write_out(folder, verbose=False)
