"""The probabilities of all images of a split: each counted once, whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_convnets.images.decoding import decode_image
from keras_convnets.images.view import View
from keras_convnets.prediction import compiled
from keras_convnets.training.data import Split
from keras_convnets.training.data.splits import check_count, of_one_size
from keras_convnets.training.evaluation.protocols import Protocol

# What turns images, uint8 [b, H, W, 3], or encoded images, a list, into probabilities, float32 [b, classes].
Predictor = Callable[[Any], np.ndarray]


def predict_split(
    predictor: Predictor | keras.Model, split: Split, batch_size: int, encoded: bool = False
) -> np.ndarray:
    """Return the probabilities of every image of a split, float32 [n, classes], in the stored order.

    Arguments as of `split_answers`.
    """
    answers = list(split_answers(predictor, split, batch_size, encoded))
    check_count(sum(map(len, answers)), split.size)
    return np.concatenate(answers)


def split_answers(
    predictor: Predictor | keras.Model, split: Split, batch_size: int, encoded: bool = False
) -> Iterator[np.ndarray]:
    """Give the probabilities of the images of a split in the stored order, in parts [b, classes].

    A Keras model sees full batches only, the last one padded and cut again, so that it is compiled once. With `encoded`
    a predictor sees lists of encoded images.

    Raises:
        UserError: if the images are not of one size, and pixels are asked for.
    """
    predict = _callable(predictor, batch_size)
    batches = split.encoded_in_order().batch(batch_size) if encoded else of_one_size(split).in_order(batch_size)
    for images, *_ in batches:
        yield np.asarray(predict(images.numpy().tolist() if encoded else images.numpy()))


def view_answers(
    predictor: Predictor | keras.Model, split: Split, view: View, protocol: Protocol, batch_size: int
) -> Iterator[np.ndarray]:
    """Give the probabilities of the images of a split, averaged over a protocol's views; else as `split_answers`.

    Args:
        predictor: a Keras model, or a function from images to probabilities.
        split: the images, which must decode.
        view: of the classifier's card, from which the protocol makes its own.
        protocol: one that has `views`, equally many of one size of every image.
        batch_size: views at a time.
    """
    views_of = protocol.views
    assert views_of is not None, f"protocol {protocol.name} shows the card's own view"
    predict = _callable(predictor, batch_size)
    shown = split.encoded_in_order().map(
        lambda encoded, label, position: views_of(decode_image(encoded), view),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    together = max(1, batch_size // (shown.element_spec.shape[0] or batch_size))
    for images in shown.batch(together).prefetch(2).as_numpy_iterator():
        views = images.reshape(-1, *images.shape[2:])
        answers = [np.asarray(predict(views[at : at + batch_size])) for at in range(0, len(views), batch_size)]
        yield protocol.average(np.concatenate(answers).reshape(*images.shape[:2], -1))


def _callable(predictor: Predictor | keras.Model, batch_size: int) -> Predictor:
    return _in_full_batches(predictor, batch_size) if isinstance(predictor, keras.Model) else predictor


def _in_full_batches(model: keras.Model, batch_size: int) -> Predictor:
    # Kept on the model: a training evaluates after every epoch and must not compile each time.
    infer = getattr(model, "_keras_convnets_predict", None)
    if infer is None:
        infer = model._keras_convnets_predict = compiled(model)

    def predict(images: np.ndarray) -> np.ndarray:
        missing = batch_size - len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
        return infer(padded)[: len(images)]

    return predict
