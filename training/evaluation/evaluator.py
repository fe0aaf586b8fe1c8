"""Evaluation of a classifier on a split of a data set, by a test protocol."""

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
from keras_convnets.training.evaluation.class_map import ALL, ClassesArgument, ClassMap, KnownClasses, map_classes
from keras_convnets.training.evaluation.partial_results import (
    collect,
    fingerprint_of,
    load_finished,
    open_partial_results,
)
from keras_convnets.training.evaluation.prediction import (
    Predictor,
    check_fully_convolutional,
    model_of,
    predict_batches,
    predict_views,
    predict_whole_images,
)
from keras_convnets.training.evaluation.predictions import Predictions, predictions_path
from keras_convnets.training.evaluation.protocols import CENTER, Protocol, get_protocol, without_mirror
from keras_convnets.training.evaluation.result import Evaluation

# Number of images tried, until one decodes, to find the size at which the images are stored.
FIRST_IMAGES = 16
# Split -> probabilities of its images in the stored order, in batches [b, classes].
PredictSplit = Callable[[Split], Iterator[np.ndarray]]


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
    classes: ClassesArgument | None = None,
    answers: str = ALL,
) -> Evaluation:
    """Evaluate a classifier on a split; by default on the centre crop of each resized image.

    The images are resized and cropped to the classifier's input size while they are read. The view is that of the run
    that the model comes from (`Run.model`) or of the classifier's model card. Otherwise the shorter side is resized to
    256 pixels for published ImageNet weights with their 1,000 classes, and to that of the model's input for all other
    models. Data that were resized before (`DataSet.at_size`) are used unchanged. Images that do not decode are left
    out, as by `DataSet.without_broken`.

    Args:
        predictor: a Keras model, whose auxiliary classifiers are ignored, or any function from images, uint8
            [b, H, W, 3], to probabilities [b, classes]. For a function, and for a model without a fixed input size, the
            input size is unknown: the images must then all have the same size.
        dataset: a data set as `load_dataset` returns it, or one resized to the classifier's input size.
        split: name of the split; by default the data set's evaluation split.
        protocol: test protocol, that is, the views of an image that the classifier sees and how their probabilities are
            averaged: "center", "ten_crop", "crops144", "dense" (Keras models only) or "cifar", optionally with fields,
            such as "ten_crop(side=288)" or "dense(scales=256:384, mirror=false)"; or a custom `Protocol`.
        average: how the probabilities of an image's views are combined: "mean", "max", "geometric" or "logits"; by
            default as the protocol defines it, which is the mean.
        batch_size: images per batch; with several views per image, views per batch, at most 64 of 224 x 224 pixels or
            the same number of pixels.
        progress: called with (number of finished images, number of images).
        encoded: whether the predictor takes a list of encoded images, as stored in the data set, and does the decoding
            and resizing.
        source: name of the classifier in the predictions; by default the model's name.
        predictions: a .npz or .csv file to write the predictions to, as `Predictions.save` does. Partial results are
            kept next to it while the evaluation runs; after an interruption, the same call resumes from them. If a .npz
            file already holds the predictions of this evaluation, it is read instead.
        weights: a string that identifies the weights of a predictor that is a function, such as their sha256; without
            it, an evaluation can't be resumed. For a Keras model it is computed.
        classes: the map from the data's classes to the classifier's, if they are a subset or in a different order:
            "names" to look each up by its name, which may be a WordNet id, a name or an index; a class of the
            classifier for each class of the data, as a sequence, a comma-separated string or a dict with the data's
            classes as keys; or the path of a file (`class_map.read_classes`). Not needed if the data's classes are
            WordNet ids of classes of the classifier. A classifier whose classes are unknown is assumed to have the
            1,000 ImageNet classes if this is given.
        answers: "all" to predict among all classes of the classifier, as for published accuracies; "subset" to predict
            among the data's classes only.

    Returns:
        The metrics; the attribute `predictions` has the prediction for each image.

    Raises:
        UserError: if the split is missing or has no labels, the images can't be brought to the classifier's input size,
            a class is unknown or ambiguous, the number of classes differs, the model has several outputs and none is
            called "probabilities", or the protocol is unknown or incompatible with the classifier or the data.

    Example:
        >>> evaluate(run.model(), load_dataset("digits")).top1
    """
    name, shown = split or dataset.evaluation_split, get_protocol(protocol, average)
    _check_arguments(predictor, dataset, name, batch_size)
    class_map = _class_map(predictor, classes, dataset, answers)
    predict, decodable = _split_predictor(predictor, dataset, name, shown, batch_size, encoded)
    images, file = decodable.split(name), None if predictions is None else predictions_path(predictions)
    known = _weights_text(predictor) if weights is None else weights
    settings = (shown.name, str(_view_of(predictor)), *dataset.class_names, str(class_map))
    fingerprint = fingerprint_of(known, images, *settings) if file and known else ""
    found = load_finished(file, fingerprint) if file and fingerprint else None
    if found is None:
        with open_partial_results(file, fingerprint) if file and fingerprint else contextlib.nullcontext() as partial:
            checked = _checked(predict, dataset, name, images.labels, class_map)
            probabilities = collect(checked, images, progress, partial)
            found = Predictions(
                source=source if source is not None else getattr(predictor, "name", "classifier"),
                data=dataset.name,
                split=name,
                protocol=shown.name if answers == ALL else f"{shown.name}/{answers}",
                class_names=dataset.class_names if class_map is None else class_map.class_names,
                ids=tuple(images.ids()),
                labels=images.labels if class_map is None else class_map.labels(images.labels),
                probabilities=probabilities if class_map is None else class_map.probabilities(probabilities),
                left_out=tuple(image for image in decodable.left_out if image.split == name),
                fingerprint=fingerprint,
            )
            if file:
                found.save(file)
    return Evaluation.of_predictions(found, of=sum(part.size for part in dataset.splits.values()))


def _check_arguments(predictor: Predictor | keras.Model, dataset: DataSet, split: str, batch_size: int) -> None:
    """Check the batch size, that the split has labels, and that a model has an output to evaluate."""
    if (whole_number(batch_size) or 0) < 1:
        raise UserError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1.")
    if getattr(predictor, "outputs", None) and isinstance(predictor, keras.Model) and main_output(predictor) is None:
        raise UserError(
            f"{predictor.name} has {len(predictor.outputs)} outputs; evaluation needs a model with one output, or with "
            'a dict of outputs that has the key "probabilities": create it by keras.Model(model.input, THE_OUTPUT).'
        )
    if not dataset.split(split).labelled:
        raise UserError(f"split {split} of {dataset.name} has no labels; choose another split with --split.")


def _split_predictor(
    predictor: Predictor | keras.Model,
    dataset: DataSet,
    name: str,
    protocol: Protocol,
    batch_size: int,
    encoded: bool,
) -> tuple[PredictSplit, DataSet]:
    """Return a function that predicts the images of a split by a protocol, and the data set with these images.

    The arguments are those of `evaluate`; `name` is that of the split. The function yields probabilities [b, classes].
    """
    check_protocol(predictor, dataset, name, protocol, encoded)
    if protocol.is_one_view and isinstance(predictor, Classifier) and predictor.predict_images is None:
        # A committee whose members have different views resizes and crops the encoded images.
        predict = predictor.predict
        return lambda images: predict_batches(predict, images, batch_size, encoded=True), _decodable(dataset, name)
    if protocol.is_one_view:
        shown = dataset if encoded else _at_input_size(predictor, dataset, name, protocol)
        return lambda images: predict_batches(predictor, images, batch_size, encoded), shown
    known = _view_of(predictor)
    assert known is not None, "check_protocol ensures it"
    view, predict_protocol = protocol.view_from(known), predict_whole_images if protocol.whole_images else predict_views
    return lambda images: predict_protocol(predictor, images, view, protocol, batch_size), _decodable(dataset, name)


def check_protocol(
    predictor: Predictor | keras.Model, dataset: DataSet, name: str, protocol: Protocol, encoded: bool = False
) -> None:
    """Check that a protocol is applicable to a classifier and a split of a data set.

    Args:
        predictor: as for `evaluate`.
        dataset: as for `evaluate`.
        name: name of the split.
        protocol: the protocol to check.
        encoded: as for `evaluate`.

    Raises:
        UserError: if it is not applicable.
    """
    view = _view_of(predictor)
    if protocol is CENTER or (protocol.is_one_view and view is None and not encoded):
        return
    if encoded or view is None:
        raise UserError(
            f"protocol {protocol.name} crops or resizes the images, which needs a classifier of decoded images with a "
            f"known view (resize and crop); use protocol {CENTER.name}."
        )
    view = protocol.view_from(view)
    stored = protocol.stored_size
    size = _first_size(dataset.split(name)) if stored is not None else None
    if stored is not None and size is not None and not stored == view.crop == size:
        raise UserError(
            f"protocol {protocol.name} needs stored images and a network input of {stored[0]} x {stored[1]} pixels; "
            f"the classifier's input is {view.crop[0]} x {view.crop[1]} and the first image of {dataset.name} is "
            f"{size[0]} x {size[1]}: use protocol {CENTER.name}."
        )
    if protocol.sides is not None:
        protocol.sides(view)
    if protocol.mirror and not dataset.flips_keep_labels:
        raise UserError(
            f"protocol {protocol.name} includes horizontally flipped images, and flipping an image of {dataset.name} "
            f"changes its label; leave them out with {without_mirror(protocol)}."
        )
    if protocol.whole_images:
        model = model_of(predictor)
        if model is None:
            raise UserError(
                f"protocol {protocol.name} needs a Keras model, which is converted into a fully convolutional network; "
                "give a run, a .keras file or MODEL:WEIGHTS, or use protocol ten_crop or crops144."
            )
        check_fully_convolutional(model)


def _first_size(split: Split) -> tuple[int, int]:
    """Return (height, width) of the first stored image that decodes, among `FIRST_IMAGES`; (0, 0) if none does."""
    for encoded, *_ in split.originals.encoded_in_order().take(FIRST_IMAGES):
        with contextlib.suppress(tf.errors.OpError):
            height, width, _ = decode_image(encoded).shape
            return height, width
    return 0, 0


def _weights_text(predictor: Predictor | keras.Model) -> str:
    """Return a string that identifies a model's weights; "" for a function, whose weights are unknown."""
    return f"{predictor.name} {weights_digest(predictor)}" if isinstance(predictor, keras.Model) else ""


def _checked(
    predict: PredictSplit, dataset: DataSet, name: str, labels: np.ndarray, class_map: ClassMap | None
) -> PredictSplit:
    """Return `predict` with a check of the number of classes before each batch is yielded."""

    def checked(images: Split) -> Iterator[np.ndarray]:
        for rows in predict(images):
            _check_classes(dataset, name, rows.shape[1], labels, class_map)
            yield rows

    return checked


def _decodable(dataset: DataSet, name: str) -> DataSet:
    """Return the data set with one split only, of the original images without those that do not decode."""
    return dataclasses.replace(dataset, splits={name: dataset.split(name).originals}).without_broken()[0]


def _class_map(
    predictor: Predictor | keras.Model, classes: ClassesArgument | None, dataset: DataSet, answers: str
) -> ClassMap | None:
    """Return the map from the data's classes to the classifier's, or None if no map is needed."""
    known: HasClassNames | None = getattr(predictor, "card", None) or getattr(predictor, "evaluation_classes", None)
    if known is None and isinstance(predictor, keras.Model):
        weights = getattr(predictor, "published_weights", None)
        known = KnownClasses(weights.class_names) if weights is not None and weights.class_names else None
    if known is None and classes is not None:
        known = KnownClasses(imagenet_classes().names)
    return None if known is None else map_classes(classes, known, dataset, answers)


def _check_classes(dataset: DataSet, name: str, given: int, labels: np.ndarray, class_map: ClassMap | None) -> None:
    """Check that predictions have the expected number of classes, and that labels are valid class indices."""
    classes = len(dataset.class_names)
    if class_map is None and given != classes:
        raise UserError(
            f"the model has {given} classes and {dataset.name} has {classes}; evaluate on data with the model's "
            "classes, or map the data's classes to the model's with classes (--classes)."
        )
    if class_map is not None and given != len(class_map.model_names):
        raise UserError(
            f"the model has {given} outputs and {len(class_map.model_names)} class names; give a classifier with its "
            "model card, or data with the model's classes."
        )
    if labels.max() >= classes:
        raise UserError(
            f"split {name} of {dataset.name} has the label {labels.max()}; the labels of its {classes} classes are 0 "
            f"to {classes - 1}: prepare or download the data again."
        )


def _at_input_size(predictor: Predictor | keras.Model, dataset: DataSet, name: str, protocol: Protocol) -> DataSet:
    """Return the data set with a split resized and cropped to the classifier's input size, as `evaluate` defines it."""
    images, view = dataset.split(name), _view_of(predictor)
    if view is not None and protocol.view_from(view) != view:
        images, view = images.originals, protocol.view_from(view)
    if isinstance(images, SizedSplit) and (images.view is not None or view is None):
        if view is not None and images.image_size != view.crop:
            height, width = images.image_size
            raise UserError(
                f"split {name} of {dataset.name} was resized to {height} x {width} pixels and the classifier's input "
                f"is {view.crop[0]} x {view.crop[1]}; pass the data set as load_dataset returns it."
            )
        return dataclasses.replace(dataset, splits={**dataset.splits, name: images})
    if view is None:
        raise UserError(
            f"the input size of the classifier is unknown, and the images of {dataset.name} differ in size; resize "
            "them with dataset.at_size(height, width)."
        )
    alone = dataclasses.replace(dataset, splits={name: images})
    # Each image is read only once, so caching the decoded images would not help.
    return alone.in_view(view, memory_limit=0)


def _view_of(predictor: Predictor | keras.Model) -> View | None:
    """Return how images are resized and cropped to a classifier's input, or None if that is unknown."""
    card = getattr(predictor, "card", None)
    if card is not None:
        return card.view if card.has_one_view else None
    if isinstance(predictor, keras.Model):
        return view_of_model(predictor)
    # Of an endpoint, only the input size is known.
    size = getattr(predictor, "image_size", None)
    return None if size is None else View.of_size(*size)
