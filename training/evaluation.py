"""Evaluation: every example counted once, whatever the batch size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_convnets.card import view_of_model
from keras_convnets.errors import UserError
from keras_convnets.images.view import View
from keras_convnets.networks.outputs import main_output
from keras_convnets.numbers import whole_number
from keras_convnets.training.data import DataSet, SizedSplit
from keras_convnets.training.data.splits import check_count

# What turns images, uint8 [b, H, W, 3], or encoded images, a list, into probabilities, float32 [b, classes].
Predictor = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """How well a classifier does on one split.

    Attributes:
        data: the data set's name.
        split: the split's name.
        protocol: how each image was seen.
        n: number of images.
        top1: share of images whose likeliest class is right.
        top5: share whose class is among the five likeliest; None for five classes or fewer.
        class_names: the classes.
        confusion: int [classes, classes]: row the truth, column the answer.
        of: number of images in all splits of the data set.
    """

    data: str
    split: str
    protocol: str
    n: int
    top1: float
    top5: float | None
    class_names: tuple[str, ...]
    confusion: np.ndarray
    of: int | None = None

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Accuracy (recall) and number of images of each class; None where a class has no image."""
        counts = self.confusion.sum(axis=1)
        right = np.diag(self.confusion)
        return [
            {"class": name, "n": int(n), "top1": float(hits / n) if n else None}
            for name, n, hits in zip(self.class_names, counts, right, strict=True)
        ]

    @property
    def standard_error(self) -> float:
        """Standard error of top-1, of n independent images."""
        return float(np.sqrt(self.top1 * (1 - self.top1) / self.n))

    @property
    def key(self) -> str:
        """The key under which a model card keeps these figures."""
        return f"{self.data}/{self.split}/{self.protocol}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "data": self.data,
            "split": self.split,
            "protocol": self.protocol,
            "n": self.n,
            "of": self.of,
            "top1": self.top1,
            "top1_standard_error": self.standard_error,
            "top5": self.top5,
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }

    def figures(self) -> dict[str, Any]:
        """Return what a model card keeps."""
        return {"n": self.n, "top1": self.top1, "top1_standard_error": self.standard_error, "top5": self.top5}


def evaluate(
    predictor: Predictor | keras.Model,
    dataset: DataSet,
    *,
    split: str | None = None,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
    encoded: bool = False,
) -> Evaluation:
    """Measure a classifier on a split, its images resized and centre cropped.

    The images are brought to the classifier's input as they are read, by the view of the run that the model comes from
    (`Run.model`) or of the classifier's card; else, for published ImageNet weights with their 1,000 classes, with the
    shorter side resized to 256 before the crop; else with the shorter side resized to that of the model's input. Data
    that were brought to a size before (`DataSet.at_size`) are taken as they are. Images that do not decode are left
    out, as by `DataSet.without_broken`.

    Args:
        predictor: a Keras model, of which auxiliary classifiers are left out, or any function from images, uint8
            [b, H, W, 3], to probabilities [b, classes]. Of a function, and of a model whose input has no fixed size,
            the input size is not known: then the images must have one size.
        dataset: as `load_dataset` gives it, or brought to the classifier's input size.
        split: the split's name; by default the data set's evaluation split.
        batch_size: images at a time.
        progress: called with (images done, images in all).
        encoded: whether the predictor takes a list of encoded images, as the data set holds them, and brings them to
            its size by itself.

    Raises:
        UserError: if the split is missing or has no labels, the images can't be brought to the classifier's input, or
            the number of classes differs, or none of a model's several outputs is called "probabilities".

    Example:
        >>> evaluate(run.model(), load_dataset("digits")).top1
    """
    if (whole_number(batch_size) or 0) < 1:
        raise UserError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1.")
    if getattr(predictor, "outputs", None) and isinstance(predictor, keras.Model) and main_output(predictor) is None:
        raise UserError(
            f"{predictor.name} has {len(predictor.outputs)} outputs; evaluation needs one, or one that the model's "
            'dictionary calls "probabilities": make it with keras.Model(model.input, THE_OUTPUT).'
        )
    name = split or dataset.evaluation_split
    if not dataset.split(name).labelled:
        raise UserError(f"split {name} of {dataset.name} has no labels; evaluate on another with --split.")
    images = dataset.split(name) if encoded else _at_input_size(predictor, dataset, name)
    probabilities = predict_split(predictor, images, batch_size, progress, encoded)
    classes, labels = len(dataset.class_names), images.labels
    _check_classes(dataset, name, probabilities.shape[1], labels)
    return Evaluation(
        data=dataset.name,
        split=name,
        protocol="center",
        n=images.size,
        top1=top_k_accuracy(probabilities, labels, 1),
        top5=top_k_accuracy(probabilities, labels, 5) if classes > 5 else None,
        class_names=dataset.class_names,
        confusion=confusion_matrix(labels, probabilities.argmax(axis=1), classes),
        of=sum(part.size for part in dataset.splits.values()),
    )


def _check_classes(dataset: DataSet, name: str, given: int, labels: np.ndarray) -> None:
    """Refuse answers of another number of classes than the data have, and labels beyond their classes."""
    classes = len(dataset.class_names)
    if given != classes:
        raise UserError(
            f"the model gives {given} classes and {dataset.name} has {classes}; evaluate on data with the model's "
            "classes."
        )
    if labels.max() >= classes:
        raise UserError(
            f"split {name} of {dataset.name} has the label {labels.max()}, and its {classes} classes end at "
            f"{classes - 1}; prepare or download the data again."
        )


def _at_input_size(predictor: Predictor | keras.Model, dataset: DataSet, name: str) -> SizedSplit:
    """Return a split at a classifier's input size, by the rule that `evaluate` states."""
    images, view = dataset.split(name), _view_of(predictor)
    has_view = isinstance(images, SizedSplit) and images.view is not None
    if has_view and view is not None and images.image_size != view.crop:
        raise UserError(
            f"split {name} of {dataset.name} was brought to {images.image_size[0]} x {images.image_size[1]} pixels and "
            f"the classifier takes {view.crop[0]} x {view.crop[1]}; give the data as load_dataset returns them."
        )
    if has_view or (isinstance(images, SizedSplit) and view is None):
        return images
    if view is None:
        raise UserError(
            f"the input size of the classifier is not known, and the images of {dataset.name} are not of one size; "
            "bring them to one with dataset.at_size(height, width)."
        )
    alone = dataclasses.replace(dataset, splits={name: images})
    # They are read once: nothing is gained by holding them.
    return alone.in_view(view, memory_limit=0).splits[name]


def _view_of(predictor: Predictor | keras.Model) -> View | None:
    """Return how an image becomes a classifier's input, or None where that is not known."""
    card = getattr(predictor, "card", None)
    if card is not None:
        return card.view
    return view_of_model(predictor) if isinstance(predictor, keras.Model) else None


def predict_split(
    predictor: Predictor | keras.Model,
    split: SizedSplit,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    encoded: bool = False,
) -> np.ndarray:
    """Return the probabilities of every image of a split, float32 [n, classes], in the stored order.

    A Keras model sees full batches only, the last one padded and cut again, so that it is compiled once. With `encoded`
    a predictor sees lists of encoded images.
    """
    predict = _compiled(predictor, batch_size) if isinstance(predictor, keras.Model) else predictor
    parts, done = [], 0
    for images, *_ in split.encoded_in_order().batch(batch_size) if encoded else split.in_order(batch_size):
        parts.append(np.asarray(predict(images.numpy().tolist() if encoded else images.numpy())))
        done += len(images)
        if progress:
            progress(done, split.size)
    check_count(done, split.size)
    return np.concatenate(parts)


def _compiled(model: keras.Model, batch_size: int) -> Predictor:
    # Kept on the model: a training evaluates after every epoch and must not compile each time.
    compiled = getattr(model, "_keras_convnets_predict", None)
    if compiled is None:

        def infer(images: tf.Tensor) -> tf.Tensor:
            outputs = model(images, training=False)
            if isinstance(outputs, dict):
                return outputs["probabilities"]
            # A list of one output is what Keras makes of a model that was given one.
            return outputs[0] if isinstance(outputs, (list, tuple)) else outputs

        compiled = tf.function(infer, reduce_retracing=True)
        model._keras_convnets_predict = compiled

    def predict(images: np.ndarray) -> np.ndarray:
        missing = batch_size - len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
        return compiled(tf.constant(padded)).numpy()[: len(images)]

    return predict


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the share of rows whose label is among the k largest; ties go to the lower class index."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((order == labels[:, None]).any(axis=1).mean())


def mean_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy, in nats; a probability of 0 counts as float32's smallest."""
    right = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Return counts, int64 [classes, classes]: row the truth, column the answer."""
    return np.bincount(labels * classes + answers, minlength=classes * classes).reshape(classes, classes)
