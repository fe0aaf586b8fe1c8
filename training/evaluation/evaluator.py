"""Evaluation of a classifier on a split, by a protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_convnets.card import view_of_model
from keras_convnets.classes import HasClassNames, imagenet_classes
from keras_convnets.errors import UserError
from keras_convnets.images.decoding import decode_image
from keras_convnets.images.view import View
from keras_convnets.networks.functional import weights_digest
from keras_convnets.networks.outputs import main_output
from keras_convnets.numbers import whole_number
from keras_convnets.prediction import Classifier
from keras_convnets.training.data import DataSet, SizedSplit, Split
from keras_convnets.training.evaluation.class_map import ALL, Asked, ClassMap, KnownClasses, map_classes
from keras_convnets.training.evaluation.kept_parts import collected, fingerprint_of, finished, kept_parts
from keras_convnets.training.evaluation.prediction import (
    Predictor,
    check_sees_whole_images,
    model_of,
    split_answers,
    view_answers,
    whole_image_answers,
)
from keras_convnets.training.evaluation.predictions import Predictions, predictions_path
from keras_convnets.training.evaluation.protocols import CENTER, Protocol, get_protocol, without_mirror
from keras_convnets.training.evaluation.result import Evaluation

# So many images are tried for one that decodes, to see the size that images are stored at.
FIRST_IMAGES = 16
# From the images of a split to the probabilities of their classes, in parts [b, classes].
Answers = Callable[[Split], Iterator[np.ndarray]]


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
    source: str | None = None,
    predictions: str | os.PathLike | None = None,
    weights: str | None = None,
    classes: Asked | None = None,
    answers: str = ALL,
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
        source: what the predictions are to be called by; by default the model's name.
        predictions: a file, .npz or .csv, for what is answered for each image, as `Predictions.save` writes it. Until
            it is written, finished parts lie beside it, from which the same call resumes after an interruption; a
            .npz that holds the same predictions already is read instead.
        weights: a text that changes with the weights of a predictor that is a function, such as their sha256: without
            it nothing can be resumed. A Keras model tells its own.
        classes: where the data's classes are among the classifier's, if they are some of them or in another order:
            "names" to understand each by its own name, as WordNet id, name or index; a class of the classifier for each
            of the data, as a sequence, a text with commas or a map from the data's; or a file's path
            (`class_map.read_classes`). Classes named by WordNet ids that the classifier has need no such argument. A
            classifier whose classes are not known is taken to have the 1,000 of ImageNet here.
        answers: "all" where every class of the classifier is an answer, as published figures have it; "subset" where
            the likeliest of the data's classes is.

    Returns:
        The figures, with what was answered for each image as `predictions`.

    Raises:
        UserError: if the split is missing or has no labels, the images can't be brought to the classifier's input, a
            class is unknown or ambiguous, the number of classes differs, none of a model's several outputs is called
            "probabilities", or the protocol is unknown or does not fit the classifier or the data.

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
    class_map = _class_map(predictor, classes, dataset, answers)
    answers_of, sound = _answering(predictor, dataset, name, shown, batch_size, encoded)
    images, file = sound.split(name), None if predictions is None else predictions_path(predictions)
    known = _weights_text(predictor) if weights is None else weights
    facts = (shown.name, str(_view_of(predictor)), *dataset.class_names, str(class_map))
    fingerprint = fingerprint_of(known, images, *facts) if file and known else ""
    found = finished(file, fingerprint) if file and fingerprint else None
    if found is None:
        with kept_parts(file, fingerprint) if file and fingerprint else contextlib.nullcontext() as parts:
            checked = _checked(answers_of, dataset, name, images.labels, class_map)
            probabilities = collected(checked, images, progress, parts)
            found = Predictions(
                source=source if source is not None else getattr(predictor, "name", "classifier"),
                data=dataset.name,
                split=name,
                protocol=shown.name if answers == ALL else f"{shown.name}/{answers}",
                class_names=dataset.class_names if class_map is None else class_map.class_names,
                ids=tuple(images.ids()),
                labels=images.labels if class_map is None else class_map.labels(images.labels),
                probabilities=probabilities if class_map is None else class_map.probabilities(probabilities),
                left_out=tuple(image for image in sound.left_out if image.split == name),
                fingerprint=fingerprint,
            )
            if file:
                found.save(file)
    return Evaluation.of_predictions(found, of=sum(part.size for part in dataset.splits.values()))


def _answering(
    predictor: Predictor | keras.Model,
    dataset: DataSet,
    name: str,
    protocol: Protocol,
    batch_size: int,
    encoded: bool,
) -> tuple[Answers, DataSet]:
    """Return what gives the probabilities of a split's images, in parts [b, classes], and the data with these images.

    Arguments as of `evaluate`.
    """
    check_fits(predictor, dataset, name, protocol, encoded)
    if protocol.is_one_view and isinstance(predictor, Classifier) and predictor.predict_images is None:
        # A committee whose networks see an image in different views resizes and crops by itself.
        return lambda images: split_answers(predictor.predict, images, batch_size, encoded=True), _sound(dataset, name)
    if protocol.is_one_view:
        shown = dataset if encoded else _at_input_size(predictor, dataset, name, protocol)
        return lambda images: split_answers(predictor, images, batch_size, encoded), shown
    known = _view_of(predictor)
    assert known is not None, "check_fits refuses it"
    view, answers = protocol.view_from(known), whole_image_answers if protocol.whole_images else view_answers
    return lambda images: answers(predictor, images, view, protocol, batch_size), _sound(dataset, name)


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


def _weights_text(predictor: Predictor | keras.Model) -> str:
    """Return a text that changes with a model's weights; "" of a function, whose weights are not known."""
    return f"{predictor.name} {weights_digest(predictor)}" if isinstance(predictor, keras.Model) else ""


def _checked(
    answers_of: Answers, dataset: DataSet, name: str, labels: np.ndarray, class_map: ClassMap | None
) -> Answers:
    """Return the answers with a check of the classes, before any answer is taken."""

    def checked(images: Split) -> Iterator[np.ndarray]:
        for rows in answers_of(images):
            _check_classes(dataset, name, rows.shape[1], labels, class_map)
            yield rows

    return checked


def _sound(dataset: DataSet, name: str) -> DataSet:
    """Return the data with one split, its images as the data hold them, without those that do not decode."""
    return dataclasses.replace(dataset, splits={name: dataset.split(name).originals}).without_broken()[0]


def _class_map(
    predictor: Predictor | keras.Model, classes: Asked | None, dataset: DataSet, answers: str
) -> ClassMap | None:
    """Return where the data's classes are among the classifier's, or None where they are the same."""
    known: HasClassNames | None = getattr(predictor, "card", None) or getattr(predictor, "evaluation_classes", None)
    if known is None and isinstance(predictor, keras.Model):
        weights = getattr(predictor, "published_weights", None)
        is_imagenet = weights is not None and weights.in_imagenet_order
        known = KnownClasses(imagenet_classes().names) if is_imagenet else None
    if known is None and classes is not None:
        known = KnownClasses(imagenet_classes().names)
    return None if known is None else map_classes(classes, known, dataset, answers)


def _check_classes(dataset: DataSet, name: str, given: int, labels: np.ndarray, class_map: ClassMap | None) -> None:
    """Refuse answers of another number of classes than expected, and labels beyond the data's classes."""
    classes = len(dataset.class_names)
    if class_map is None and given != classes:
        raise UserError(
            f"the model gives {given} classes and {dataset.name} has {classes}; evaluate on data with the model's "
            "classes, or say which of them the data's are with classes (--classes)."
        )
    if class_map is not None and given != len(class_map.model_names):
        raise UserError(
            f"the model gives {given} classes and {len(class_map.model_names)} are known by name; give a classifier "
            "with its model card, or data with the model's classes."
        )
    if labels.max() >= classes:
        raise UserError(
            f"split {name} of {dataset.name} has the label {labels.max()}, and its {classes} classes end at "
            f"{classes - 1}; prepare or download the data again."
        )


def _at_input_size(predictor: Predictor | keras.Model, dataset: DataSet, name: str, protocol: Protocol) -> DataSet:
    """Return the data with a split at a classifier's input size, by the rule that `evaluate` states."""
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
        return dataclasses.replace(dataset, splits={**dataset.splits, name: images})
    if view is None:
        raise UserError(
            f"the input size of the classifier is not known, and the images of {dataset.name} are not of one size; "
            "bring them to one with dataset.at_size(height, width)."
        )
    alone = dataclasses.replace(dataset, splits={name: images})
    # They are read once: nothing is gained by holding them.
    return alone.in_view(view, memory_limit=0)


def _view_of(predictor: Predictor | keras.Model) -> View | None:
    """Return how an image becomes a classifier's input, or None where that is not known."""
    card = getattr(predictor, "card", None)
    if card is not None:
        return card.view if card.has_one_view else None
    if isinstance(predictor, keras.Model):
        return view_of_model(predictor)
    # An endpoint tells its input's size and nothing else.
    size = getattr(predictor, "image_size", None)
    return None if size is None else View.of_size(*size)
