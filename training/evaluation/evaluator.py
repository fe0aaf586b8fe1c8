"""Evaluation of a classifier on a split, by a protocol."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_convnets.card import view_of_model
from keras_convnets.errors import UserError
from keras_convnets.images.decoding import decode_image
from keras_convnets.images.view import View
from keras_convnets.networks.outputs import main_output
from keras_convnets.numbers import whole_number
from keras_convnets.training.data import DataSet, SizedSplit, Split
from keras_convnets.training.data.splits import of_one_size
from keras_convnets.training.evaluation.metrics import confusion_matrix, top_k_accuracy
from keras_convnets.training.evaluation.prediction import (
    Predictor,
    check_sees_whole_images,
    model_of,
    predict_split,
    predict_views,
)
from keras_convnets.training.evaluation.protocols import CENTER, Protocol, get_protocol, without_mirror
from keras_convnets.training.evaluation.result import Evaluation

# So many images are tried for one that decodes, to see the size that images are stored at.
FIRST_IMAGES = 16


def evaluate(
    predictor: Predictor | keras.Model,
    dataset: DataSet,
    *,
    split: str | None = None,
    protocol: str | Protocol = CENTER.name,
    average: str | None = None,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
    encoded: bool = False,
) -> Evaluation:
    """Measure a classifier on a split; by default each image is resized and its centre cropped.

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
        protocol: which views of an image the classifier sees, and how its answers are averaged: "center", "ten_crop",
            "crops144", "dense", which needs a Keras model, or "cifar", with fields where they differ, such as
            "ten_crop(side=288)" or "dense(scales=256:384, mirror=false)"; or a protocol of one's own.
        average: of an image's views: "mean" of the probabilities, "max", "geometric" or "logits"; by default what the
            protocol says, which is the mean.
        batch_size: images at a time, or views, of which no more than 64 of 224 x 224 pixels or as many pixels.
        progress: called with (images done, images in all).
        encoded: whether the predictor takes a list of encoded images, as the data set holds them, and brings them to
            its size by itself.

    Raises:
        UserError: if the split is missing or has no labels, the images can't be brought to the classifier's input, or
            the number of classes differs, none of a model's several outputs is called "probabilities", or the protocol
            is unknown or does not fit the classifier or the data.

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
    name, shown = split or dataset.evaluation_split, get_protocol(protocol, average)
    if not dataset.split(name).labelled:
        raise UserError(f"split {name} of {dataset.name} has no labels; evaluate on another with --split.")
    probabilities, labels = _answers(predictor, dataset, name, shown, batch_size, progress, encoded)
    classes = len(dataset.class_names)
    _check_classes(dataset, name, probabilities.shape[1], labels)
    return Evaluation(
        data=dataset.name,
        split=name,
        protocol=shown.name,
        n=len(labels),
        top1=top_k_accuracy(probabilities, labels, 1),
        top5=top_k_accuracy(probabilities, labels, 5) if classes > 5 else None,
        class_names=dataset.class_names,
        confusion=confusion_matrix(labels, probabilities.argmax(axis=1), classes),
        of=sum(part.size for part in dataset.splits.values()),
    )


def _answers(
    predictor: Predictor | keras.Model,
    dataset: DataSet,
    name: str,
    protocol: Protocol,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
    encoded: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities, float32 [n, classes], and labels, int64 [n], of a split. Arguments as of `evaluate`."""
    check_fits(predictor, dataset, name, protocol, encoded)
    if protocol.is_one_view:
        images = dataset.split(name) if encoded else _at_input_size(predictor, dataset, name, protocol)
        return predict_split(predictor, images, batch_size, progress, encoded), images.labels
    view = _view_of(predictor)
    assert view is not None, "check_fits refuses it"
    sound, _ = dataclasses.replace(dataset, splits={name: dataset.split(name).originals}).without_broken()
    images = sound.splits[name]
    return predict_views(predictor, images, protocol.view_from(view), protocol, batch_size, progress), images.labels


def check_fits(
    predictor: Predictor | keras.Model, dataset: DataSet, name: str, protocol: Protocol, encoded: bool = False
) -> None:
    """Refuse a protocol by which this classifier can't be measured on a split of these data.

    Args:
        predictor: as of `evaluate`.
        dataset: as of `evaluate`.
        name: the split's.
        protocol: what it would be evaluated by.
        encoded: as of `evaluate`.

    Raises:
        UserError: with the reason, and what to do.
    """
    view = _view_of(predictor)
    if protocol is CENTER or (protocol.is_one_view and view is None and not encoded):
        return
    if encoded or view is None:
        raise UserError(
            f"protocol {protocol.name} makes its own views of each image, for which the classifier's own view must be "
            f"known, and its input must be images; evaluate by {CENTER.name}."
        )
    view = protocol.view_from(view)
    stored = protocol.stored_size
    size = _first_size(dataset.split(name)) if stored is not None else None
    if stored is not None and size is not None and not stored == view.crop == size:
        raise UserError(
            f"protocol {protocol.name} shows images of {stored[0]} x {stored[1]} pixels as they are stored; the "
            f"classifier takes {view.crop[0]} x {view.crop[1]} and the first image of {dataset.name} has {size[0]} x "
            f"{size[1]}: evaluate by {CENTER.name}."
        )
    if protocol.sides is not None:
        protocol.sides(view)
    if protocol.mirror and not dataset.flips_keep_labels:
        raise UserError(
            f"protocol {protocol.name} shows mirror images too, and a mirrored image of {dataset.name} has another "
            f"label or none; leave them out with {without_mirror(protocol)}."
        )
    if protocol.whole_images:
        model = model_of(predictor)
        if model is None:
            raise UserError(
                f"protocol {protocol.name} shows whole images to a fully convolutional network, which is made of a "
                "Keras model; give a run, a .keras file or MODEL:WEIGHTS, or evaluate by ten_crop or crops144."
            )
        check_sees_whole_images(model)


def _first_size(split: Split) -> tuple[int, int]:
    """Return (height, width) of a split's first image that decodes, as it is stored; (0, 0) where none does."""
    for encoded, *_ in split.originals.encoded_in_order().take(FIRST_IMAGES):
        with contextlib.suppress(tf.errors.OpError):
            height, width, _ = decode_image(encoded).shape
            return height, width
    return 0, 0


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


def _at_input_size(predictor: Predictor | keras.Model, dataset: DataSet, name: str, protocol: Protocol) -> SizedSplit:
    """Return a split at a classifier's input size, by the rule that `evaluate` states."""
    images, view = dataset.split(name), _view_of(predictor)
    if view is not None and protocol.view_from(view) != view:
        images, view = images.originals, protocol.view_from(view)
    if isinstance(images, SizedSplit) and (images.view is not None or view is None):
        if view is not None and images.image_size != view.crop:
            height, width = images.image_size
            raise UserError(
                f"split {name} of {dataset.name} was brought to {height} x {width} pixels and the classifier takes "
                f"{view.crop[0]} x {view.crop[1]}; give the data as load_dataset returns them."
            )
        return images
    if view is None:
        raise UserError(
            f"the input size of the classifier is not known, and the images of {dataset.name} are not of one size; "
            "bring them to one with dataset.at_size(height, width)."
        )
    alone = dataclasses.replace(dataset, splits={name: images})
    # They are read once: nothing is gained by holding them.
    return of_one_size(alone.in_view(view, memory_limit=0).splits[name])


def _view_of(predictor: Predictor | keras.Model) -> View | None:
    """Return how an image becomes a classifier's input, or None where that is not known."""
    card = getattr(predictor, "card", None)
    if card is not None:
        return card.view
    if isinstance(predictor, keras.Model):
        return view_of_model(predictor)
    # An endpoint tells its input's size and nothing else.
    size = getattr(predictor, "image_size", None)
    return None if size is None else View.of_size(*size)
