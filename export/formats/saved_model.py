"""The SavedModel: encoded images or pixels in, probabilities or names out, by names of our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_convnets.card import ModelCard
from keras_convnets.errors import UnreadableImage
from keras_convnets.export.formats.format import FLOAT32_TOLERANCE, Artifact, Format, Job
from keras_convnets.prediction import Classifier

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from keras_convnets.images.view import View

TOP_K = 5
# An output of the network in the file alone, for the signature cam.
FEATURE_MAPS = "feature_maps"
# Every signature takes in every variable, several times over while it is written and read: some 10 kB each. With more
# than this, which only ResNet-1202 has, one variable holds all weights, and each call splits it.
MOST_VARIABLES = 1000


def write_saved_model(network: keras.Model, card: ModelCard, folder: Path) -> None:
    """Write a SavedModel with the signatures that clients call.

    serving_default: `image_bytes`, string [batch] (JPEG, PNG, GIF, BMP, WebP) -> `probabilities`, float32
        [batch, classes]. WebP needs a runtime of TensorFlow 2.20 or later.
    predict_images: `images`, uint8 [batch, H, W, 3], RGB of the input's size -> `probabilities`.
    top_k: `image_bytes` -> `classes`, string [batch, k], and `scores`, float32 [batch, k]; k is 5 or fewer.
    classify: `inputs`, string [batch], serialised tf.Examples with `image/encoded` -> `classes` and `scores`, as
        TensorFlow Serving's Classify call wants them.
    features: `image_bytes` -> `features`, float32 [batch, d]; only of a network that gives them.
    cam: `image_bytes` -> `classes` and `scores` as of top_k; `maps`, float32 [batch, k, h, w], the classes'
        class-activation maps, each position's part of the score before the softmax; `region`, float32 [batch, 4], the
        part of the image that the network sees: top, left, bottom and right in fractions of its height and width. Only
        of a network that ends in global average pooling and one fully connected layer.

    All of them call one inference function, and the weights are stored once. Decoding, resizing by the card's
    view and normalisation are inside; EXIF orientation is ignored, so clients turn their images before they send them.
    Neither Keras nor this package is needed to load it.

    Args:
        network: images [batch, H, W, 3], float32 or uint8 -> {"probabilities": [batch, classes]} and maybe
            "features": [batch, d].
        card: its class names and view.
        folder: where `saved_model.pb` and `variables/` go.
    """
    import keras
    import tensorflow as tf

    from keras_convnets.images.resizing import encoded_views, encoded_views_and_regions
    from keras_convnets.networks.class_activation import pooled_maps

    module = tf.Module()
    pooled = pooled_maps(network)
    if pooled is not None:
        network = keras.Model(network.input, {**network.output, FEATURE_MAPS: pooled[0]}, name=network.name)
    # The weights stay variables. As constants they gain nothing measurable on a folded network, whose convolution,
    # bias, sum and ReLU are fused into one operation either way, and every signature has its own copies:
    # ResNet-50, of 100 MB, then took 3 GB to serve instead of 200 MB, and a second longer for the first call of each.
    module.weights, infer, value_of = _weights_and_inference(network, len(network.weights) > MOST_VARIABLES)
    # Both are separate functions, so that the signatures share their traces.
    module.infer = tf.function(infer, input_signature=[_pixels(card.view)], autograph=False)
    module.view = encoded_views(card.view)

    def infer_encoded(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return module.infer(module.view(image_bytes))

    signatures = _signatures(card, infer_encoded, module.infer)
    if pooled is not None:
        module.view_and_region = encoded_views_and_regions(card.view)
        signatures["cam"] = _cam(card, module, lambda: value_of(pooled[1].kernel))
    tf.saved_model.save(module, str(folder), signatures=signatures)


def write_committee(networks: Sequence[keras.Model], card: ModelCard, folder: Path) -> None:
    """Write a SavedModel of several networks that see an image each in its own view, and average their probabilities.

    Its signatures are those of `write_saved_model` that take encoded images or tf.Examples. An image is decoded once,
    and brought once to each different view.

    Args:
        networks: inference networks, as `write_saved_model` takes one.
        card: the committee's; its members' cards have the views, in the order of the networks.
        folder: where `saved_model.pb` and `variables/` go.
    """
    import tensorflow as tf

    from keras_convnets.images.resizing import encoded_in_each

    module, views = tf.Module(), [member.view for member in card.members]
    different = list(dict.fromkeys(views))
    packed = sum(len(network.weights) for network in networks) > MOST_VARIABLES
    parts = [_weights_and_inference(network, packed) for network in networks]
    module.weights = [weights for weights, _, _ in parts]
    module.members = [
        tf.function(infer, input_signature=[_pixels(view)], autograph=False)
        for view, (_, infer, _) in zip(views, parts, strict=True)
    ]
    module.view = encoded_in_each(different)

    def infer_encoded(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        seen = dict(zip(different, module.view(image_bytes), strict=True))
        answers = [member(seen[view])["probabilities"] for view, member in zip(views, module.members, strict=True)]
        return {"probabilities": tf.add_n(answers) / len(answers)}

    module.infer_encoded = tf.function(infer_encoded, input_signature=[_encoded()], autograph=False)
    tf.saved_model.save(module, str(folder), signatures=_signatures(card, module.infer_encoded))


def _pixels(view: View) -> tf.TensorSpec:
    import tensorflow as tf

    return tf.TensorSpec([None, *view.crop, 3], tf.uint8, name="images")


def _encoded() -> tf.TensorSpec:
    import tensorflow as tf

    return tf.TensorSpec([None], tf.string, name="image_bytes")


def _weights_and_inference(
    network: keras.Model, packed: bool
) -> tuple[list[tf.Variable], Callable[[tf.Tensor], dict], Callable[[keras.Variable], tf.Tensor]]:
    """Return the variables to store, one where they are packed; the network that reads them; and any weight of it."""
    import tensorflow as tf

    if not packed:
        variables = [weight.value for weight in network.weights]
        return variables, lambda images: network(images, training=False), lambda weight: weight.value
    shapes = [weight.shape for weight in network.weights]
    sizes = [int(np.prod(shape)) for shape in shapes]
    stored = tf.Variable(np.concatenate([np.ravel(weight.value) for weight in network.weights]), name="weights")
    trainable = {id(weight) for weight in network.trainable_variables}

    def values() -> list[tf.Tensor]:
        return [tf.reshape(part, shape) for part, shape in zip(tf.split(stored, sizes), shapes, strict=True)]

    def infer(images: tf.Tensor) -> dict:
        given = list(zip(network.weights, values(), strict=True))
        first = [value for weight, value in given if id(weight) in trainable]
        second = [value for weight, value in given if id(weight) not in trainable]
        return network.stateless_call(first, second, images, training=False)[0]

    def value_of(wanted: keras.Variable) -> tf.Tensor:
        return next(value for weight, value in zip(network.weights, values(), strict=True) if weight is wanted)

    return [stored], infer, value_of


def _cam(card: ModelCard, module: tf.Module, kernel: Callable[[], tf.Tensor]) -> Callable:
    """Return the signature of class-activation maps; the kernel is the classifier's."""
    import tensorflow as tf

    from keras_convnets.networks.class_activation import class_activation_maps

    names, k = tf.constant(card.class_names), min(TOP_K, len(card.class_names))

    def cam(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images, region = module.view_and_region(image_bytes)
        answers = module.infer(images)
        scores, indices = tf.math.top_k(answers["probabilities"], k)
        maps = class_activation_maps(answers[FEATURE_MAPS], kernel(), indices)
        return {"classes": tf.gather(names, indices), "scores": scores, "maps": maps, "region": region}

    return tf.function(cam, input_signature=[_encoded()], autograph=False)


def _signatures(
    card: ModelCard,
    infer_encoded: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    infer: tf.types.experimental.PolymorphicFunction | None = None,
) -> dict[str, Callable]:
    """Return the signatures by name, all of which call the same functions for decoding and for inference.

    Args:
        card: class names.
        infer_encoded: from encoded images to what the network gives.
        infer: from images of the input's size to the same, where there is one size.
    """
    import tensorflow as tf

    names, k = tf.constant(card.class_names), min(TOP_K, len(card.class_names))

    def likeliest(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        scores, indices = tf.math.top_k(infer_encoded(image_bytes)["probabilities"], k)
        return {"classes": tf.gather(names, indices), "scores": scores}

    def serving_default(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": infer_encoded(image_bytes)["probabilities"]}

    def predict_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        assert infer is not None
        return {"probabilities": infer(images)["probabilities"]}

    def top_k(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return likeliest(image_bytes)

    def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        feature = tf.io.FixedLenFeature([], tf.string)
        return likeliest(tf.io.parse_example(inputs, {"image/encoded": feature})["image/encoded"])

    def features(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"features": infer_encoded(image_bytes)["features"]}

    given = {
        serving_default: _encoded(),
        top_k: _encoded(),
        classify: tf.TensorSpec([None], tf.string, name="inputs"),
    }
    if infer is not None:
        given[predict_images] = infer.input_signature[0]
        if "features" in infer.get_concrete_function().structured_outputs:
            given[features] = _encoded()
    return {call.__name__: tf.function(call, input_signature=[spec], autograph=False) for call, spec in given.items()}


def load_saved_model(folder: Path, card: ModelCard | None) -> Classifier:
    """Load a SavedModel with TensorFlow.

    A SavedModel is a program: TensorFlow's operations read and write files. Load only what you trust.
    """
    import tensorflow as tf

    from keras_convnets.tensorflow_errors import plain_reason, unless_cancelled

    loaded = tf.saved_model.load(str(folder))
    by_bytes, by_images = loaded.signatures["serving_default"], loaded.signatures.get("predict_images")

    def predict_encoded(encoded: Sequence[bytes]) -> np.ndarray:
        image_bytes = tf.constant(list(encoded), tf.string)
        try:
            return unless_cancelled(lambda: by_bytes(image_bytes=image_bytes))["probabilities"].numpy()
        except tf.errors.InvalidArgumentError as error:
            raise UnreadableImage(f"one of {len(encoded)} images is not readable ({plain_reason(error)}).") from error

    def predict_images(images: np.ndarray) -> np.ndarray:
        return by_images(images=tf.constant(images, tf.uint8))["probabilities"].numpy()

    # A committee whose members see images in different views takes encoded images alone.
    return Classifier(card, predict_images if by_images is not None else None, predict_encoded)


def _write(job: Job, artifact: Artifact, folder: Path) -> None:
    if len(job.networks) > 1:
        write_committee(job.networks, job.card, folder / artifact.file)
    else:
        write_saved_model(job.network, job.card, folder / artifact.file)


FORMAT = Format(
    (Artifact("saved_model", "", "tensorflow", "float32", FLOAT32_TOLERANCE),),
    _write,
    load_saved_model,
)
