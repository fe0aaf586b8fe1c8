"""Prediction of all images of a split in batches: single views, multiple views, and whole images."""

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
from keras_convnets.training.data.parallel import parallel_map
from keras_convnets.training.data.splits import check_count, of_one_size
from keras_convnets.training.evaluation.protocols import MEAN, Average, Protocol
from keras_convnets.training.evaluation.views import whole_images

# Images, uint8 [b, H, W, 3], or a list of encoded images -> probabilities, float32 [b, classes].
Predictor = Callable[[Any], np.ndarray]
# Number of consecutive whole images among which those of the same size are batched.
WHOLE_WINDOW = 16
# Maximum pixels per batch of multiple views, 64 of 224 x 224: their feature maps need about 1 GB.
VIEW_PIXELS = 64 * 224 * 224


def predict_split(predictor: Predictor | keras.Model, split: Split, batch_size: int) -> np.ndarray:
    """Return the probabilities of all images of a split, float32 [n, classes], in the stored order.

    The arguments and errors are those of `predict_batches`.
    """
    batches = list(predict_batches(predictor, split, batch_size))
    check_count(sum(map(len, batches)), split.size)
    return np.concatenate(batches)


def predict_batches(
    predictor: Predictor | keras.Model, split: Split, batch_size: int, encoded: bool = False
) -> Iterator[np.ndarray]:
    """Yield the probabilities of the images of a split in the stored order, in batches [b, classes].

    A Keras model always gets full batches, so that it is compiled once: the last batch is padded, and the output is
    cropped.

    Args:
        predictor: a Keras model, or a function from images to probabilities.
        split: the images.
        batch_size: maximum number of images per batch.
        encoded: whether the predictor takes lists of encoded images.

    Raises:
        UserError: if `encoded` is false and the images differ in size.
    """
    batch_size = even_batches(split.size, batch_size)
    predict = _callable(predictor, batch_size)
    batches = split.encoded_in_order().batch(batch_size) if encoded else of_one_size(split).in_order(batch_size)
    for images, *_ in batches:
        yield np.asarray(predict(images.numpy().tolist() if encoded else images.numpy()))


def predict_views(
    predictor: Predictor | keras.Model, split: Split, view: View, protocol: Protocol, batch_size: int
) -> Iterator[np.ndarray]:
    """Yield the probabilities of the images of a split, averaged over a protocol's views, in batches [b, classes].

    Each image is decoded once. A batch may contain views of several images; all batches but the last are full.

    Args:
        predictor: a Keras model, or a function from images to probabilities.
        split: the images, all of which must decode.
        view: the classifier's view, from which the protocol derives its views.
        protocol: a protocol with `views`; the number and size of the views must be the same for every image.
        batch_size: maximum number of views per batch; reduced such that a batch has at most `VIEW_PIXELS` pixels.
    """
    views_of = protocol.views
    assert views_of is not None, f"protocol {protocol.name} has a single view"
    shown = _mapped(split, _viewing(views_of, view))
    views = shown.element_spec.shape[0]
    assert views is not None, f"protocol {protocol.name} has an unknown number of views"
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


def predict_whole_images(
    predictor: Predictor | keras.Model, split: Split, view: View, protocol: Protocol, batch_size: int
) -> Iterator[np.ndarray]:
    """Yield the probabilities of the images of a split by dense evaluation on whole images, in batches [b, classes].

    Each image is decoded once. Its score maps are averaged over all positions, then over flips and scales. Images of
    the same size are batched.

    Args:
        predictor: a Keras model, or a classifier that has one as `model`.
        split: the images, all of which must decode.
        view: the classifier's view.
        protocol: a protocol with `whole_images`.
        batch_size: maximum batch size in units of views: a batch has at most the pixels of this number of views, or
            is a single image.
    """
    assert protocol.sides is not None, f"protocol {protocol.name} does not use whole images"
    sides = protocol.sides(view)
    average = protocol.average if isinstance(protocol.average, Average) else MEAN
    model = model_of(predictor)
    assert model is not None, f"protocol {protocol.name} needs a Keras model"
    scores = _score_maps(model)
    pixels, orders = batch_size * math.prod(view.crop), (1, -1) if protocol.mirror else (1,)
    shown = _mapped(split, _viewing(whole_images, view, sides))
    for window in _windows(shown.prefetch(1).as_numpy_iterator(), WHOLE_WINDOW):
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
    """Return the batch size that splits images or views evenly into as few batches as possible, to minimize padding.

    Args:
        total: number of images or views.
        most: maximum batch size.

    Example:
        >>> even_batches(130, 128), even_batches(100, 128)
        (65, 100)
    """
    return max(1, math.ceil(total / max(1, math.ceil(total / most))))


def _mapped(split: Split, viewed: Callable[[tf.Tensor], Any]) -> tf.data.Dataset:
    return parallel_map(split.encoded_in_order(), lambda encoded, label, position: viewed(encoded))


@functools.lru_cache(maxsize=16)
def _viewing(shown: Callable[..., Any], *arguments: Any) -> Callable[[tf.Tensor], Any]:
    """Return the function from an encoded image to its views; cached, because tracing the graph takes seconds."""
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
    """Yield positions of images with the same size, with at most `pixels` pixels in total or a single image."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        sizes.setdefault(image.shape[:2], []).append(position)
    for size, positions in sizes.items():
        together = max(1, pixels // math.prod(size))
        for at in range(0, len(positions), together):
            yield positions[at : at + together]


def model_of(predictor: Predictor | keras.Model) -> keras.Model | None:
    """Return the Keras model of a predictor, or None if it has none."""
    return predictor if isinstance(predictor, keras.Model) else getattr(predictor, "model", None)


def check_fully_convolutional(model: keras.Model) -> None:
    """Check that a model can be evaluated on whole images.

    Raises:
        UserError: if it can't be converted into a fully convolutional network, or subtracts a mean image.
    """
    _fully_convolutional(model)


def _fully_convolutional(model: keras.Model) -> keras.Model:
    """Return the fully convolutional form of a model, cached as an attribute of the model."""
    cached = getattr(model, "_keras_convnets_whole", None)
    network = cached() if cached is not None else fully_convolutional(softmaxed(model))
    # Wrapped in a function, because Keras tracks a model that is an attribute as a layer.
    model._keras_convnets_whole = lambda: network
    for layer in network.layers:
        if isinstance(layer, ImageNormalization) and layer.preprocessing.mean_image is not None:
            raise UserError(
                f"{model.name} subtracts a mean image of fixed size, so it can't be evaluated on whole images; use "
                "another protocol, such as center."
            )
    return network


def _score_maps(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from whole images, uint8 [b, H, W, 3], to maps of probabilities, [b, h, w, classes]."""
    network, anything = _fully_convolutional(model), tf.TensorSpec([None, None, None, 3], tf.uint8)
    graph = tf.function(lambda images: network(images, training=False), input_signature=[anything])
    return lambda images: graph(tf.constant(images)).numpy()


def _callable(predictor: Predictor | keras.Model, batch_size: int) -> Predictor:
    if isinstance(predictor, keras.Model):
        # Cached on the model: training evaluates after every epoch, which must not compile each time.
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
