"""The probabilities of all images of a split: each counted once, whatever the batch size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.images.decoding import decode_image
from keras_convnets.images.view import View
from keras_convnets.networks.fully_convolutional import fully_convolutional
from keras_convnets.networks.layers import ImageNormalization
from keras_convnets.networks.outputs import softmaxed
from keras_convnets.prediction import compiled
from keras_convnets.training.data import Split
from keras_convnets.training.data.splits import check_count, of_one_size
from keras_convnets.training.evaluation.protocols import MEAN, Average, Protocol
from keras_convnets.training.evaluation.views import whole_images

# What turns images, uint8 [b, H, W, 3], or encoded images, a list, into probabilities, float32 [b, classes].
Predictor = Callable[[Any], np.ndarray]
# So many images are looked at together for those of the same size, which a fully convolutional network sees together.
WHOLE_TOGETHER = 16
# In pixels, 64 of 224 x 224: of several views an image so many are seen together, whose maps need a gigabyte.
VIEW_PIXELS = 64 * 224 * 224


def predict_split(predictor: Predictor | keras.Model, split: Split, batch_size: int) -> np.ndarray:
    """Return the probabilities of every image of a split, float32 [n, classes], in the stored order.

    Arguments and errors as of `split_answers`.
    """
    answers = list(split_answers(predictor, split, batch_size))
    check_count(sum(map(len, answers)), split.size)
    return np.concatenate(answers)


def split_answers(
    predictor: Predictor | keras.Model, split: Split, batch_size: int, encoded: bool = False
) -> Iterator[np.ndarray]:
    """Give the probabilities of the images of a split in the stored order, in parts [b, classes].

    A Keras model sees batches of one size only, the last one padded and cut again, so that it is compiled once. With
    `encoded` a predictor sees lists of encoded images.

    Raises:
        UserError: if the images are not of one size, and pixels are asked for.
    """
    batch_size = even_batches(split.size, batch_size)
    predict = _callable(predictor, batch_size)
    batches = split.encoded_in_order().batch(batch_size) if encoded else of_one_size(split).in_order(batch_size)
    for images, *_ in batches:
        yield np.asarray(predict(images.numpy().tolist() if encoded else images.numpy()))


def view_answers(
    predictor: Predictor | keras.Model, split: Split, view: View, protocol: Protocol, batch_size: int
) -> Iterator[np.ndarray]:
    """Give the probabilities of the images of a split, averaged over a protocol's views, in parts [b, classes].

    Each image is decoded once. Batches run over the views of several images: all but the last are full.

    Args:
        predictor: a Keras model, or a function from images to probabilities; for whole images a Keras model.
        split: the images, which must decode.
        view: of the classifier's card, from which the protocol makes its own.
        protocol: one that has `views`, equally many of one size of every image.
        batch_size: views at a time, at most `VIEW_PIXELS`; of whole images as many as have the pixels of so many views.
    """
    views_of = protocol.views
    assert views_of is not None, f"protocol {protocol.name} shows the card's own view"
    shown = _mapped(split, _viewing(views_of, view))
    views = shown.element_spec.shape[0]
    assert views is not None, f"protocol {protocol.name} gives an unknown number of views"
    batch_size = even_batches(split.size * views, min(batch_size, max(1, VIEW_PIXELS // math.prod(view.crop))))
    predict, left = _callable(predictor, batch_size), None
    for batch in shown.rebatch(batch_size).prefetch(1).as_numpy_iterator():
        answers = np.asarray(predict(batch))
        left = answers if left is None else np.concatenate([left, answers])
        whole = len(left) // views * views
        if whole:
            yield protocol.average(left[:whole].reshape(-1, views, left.shape[-1]))
            left = left[whole:]
    if left is not None:
        check_count(len(left), 0)


def whole_image_answers(
    predictor: Predictor | keras.Model, split: Split, view: View, protocol: Protocol, batch_size: int
) -> Iterator[np.ndarray]:
    """Give the probabilities of the images of a split, of a protocol that shows whole images; else as `view_answers`.

    Each image is decoded once. Its scores are averaged over all places of the map, then over mirror images and scales.
    Images that have the same size are seen together, as many as have the pixels of `batch_size` views.
    """
    assert protocol.sides is not None, f"protocol {protocol.name} shows no whole images"
    sides = protocol.sides(view)
    average = protocol.average if isinstance(protocol.average, Average) else MEAN
    model = model_of(predictor)
    assert model is not None, f"protocol {protocol.name} needs a Keras model"
    scores = _score_maps(model)
    pixels, orders = batch_size * math.prod(view.crop), (1, -1) if protocol.mirror else (1,)
    shown = _mapped(split, _viewing(whole_images, view, sides))
    for window in _windows(shown.prefetch(1).as_numpy_iterator(), WHOLE_TOGETHER):
        answers: list[list[np.ndarray]] = [[] for _ in window]
        for scale in range(len(sides)):
            for positions in _of_one_size([images[scale] for images in window], pixels):
                batch = np.stack([window[position][scale] for position in positions])
                for order in orders:
                    maps = scores(np.ascontiguousarray(batch[:, :, ::order]))
                    maps = average.reduce(maps.reshape(len(maps), -1, maps.shape[-1]), 1)
                    for position, row in zip(positions, maps, strict=True):
                        answers[position].append(row)
        yield protocol.average(np.array(answers))


def even_batches(total: int, most: int) -> int:
    """Return the size of as few batches as hold so many images, or views, all about equal: padding is work in vain.

    Example:
        >>> even_batches(130, 128), even_batches(100, 128)
        (65, 100)
    """
    return max(1, math.ceil(total / max(1, math.ceil(total / most))))


def _mapped(split: Split, viewed: Callable[[tf.Tensor], Any]) -> tf.data.Dataset:
    return split.encoded_in_order().map(
        lambda encoded, label, position: viewed(encoded), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


@functools.lru_cache(maxsize=16)
def _viewing(shown: Callable[..., Any], *arguments: Any) -> Callable[[tf.Tensor], Any]:
    """Return what turns an encoded image into views; its graph takes seconds to build, so it is kept."""
    return tf.function(
        lambda encoded: shown(decode_image(encoded), *arguments), input_signature=[tf.TensorSpec([], tf.string)]
    )


def _windows(images: Iterator[Any], size: int) -> Iterator[list[Any]]:
    window = []
    for image in images:
        window.append(image)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _of_one_size(images: list[np.ndarray], pixels: int) -> Iterator[list[int]]:
    """Give positions of images that have the same size, at most so many pixels together, or one image."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        sizes.setdefault(image.shape[:2], []).append(position)
    for size, positions in sizes.items():
        together = max(1, pixels // math.prod(size))
        for at in range(0, len(positions), together):
            yield positions[at : at + together]


def model_of(predictor: Predictor | keras.Model) -> keras.Model | None:
    """Return the Keras model that answers, or None where a predictor has none."""
    return predictor if isinstance(predictor, keras.Model) else getattr(predictor, "model", None)


def check_sees_whole_images(model: keras.Model) -> None:
    """Refuse a network that can't see whole images, by a sentence that says why."""
    _fully_convolutional(model)


def _fully_convolutional(model: keras.Model) -> keras.Model:
    """Return the network over whole images; it is kept on the model."""
    kept = getattr(model, "_keras_convnets_whole", None)
    network = kept() if kept is not None else fully_convolutional(softmaxed(model))
    # As a function: Keras would take a model that is an attribute for one of the layers.
    model._keras_convnets_whole = lambda: network
    for layer in network.layers:
        if isinstance(layer, ImageNormalization) and layer.preprocessing.mean_image is not None:
            raise UserError(
                f"{model.name} subtracts a mean image, which belongs to one size, so it can't see whole images; "
                "evaluate it by another protocol, such as center."
            )
    return network


def _score_maps(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from whole images, uint8 [b, H, W, 3], to probabilities at each place, [b, h, w, classes]."""
    network, anything = _fully_convolutional(model), tf.TensorSpec([None, None, None, 3], tf.uint8)
    graph = tf.function(lambda images: network(images, training=False), input_signature=[anything])
    return lambda images: graph(tf.constant(images)).numpy()


def _callable(predictor: Predictor | keras.Model, batch_size: int) -> Predictor:
    if isinstance(predictor, keras.Model):
        # Kept on the model: a training evaluates after every epoch and must not compile each time.
        infer = getattr(predictor, "_keras_convnets_predict", None)
        if infer is None:
            infer = predictor._keras_convnets_predict = compiled(predictor)
        return _in_full_batches(infer, batch_size)
    return _in_full_batches(predictor, batch_size) if getattr(predictor, "model", None) is not None else predictor


def _in_full_batches(infer: Predictor, batch_size: int) -> Predictor:
    def predict(images: np.ndarray) -> np.ndarray:
        missing = batch_size - len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
        return infer(padded)[: len(images)]

    return predict
