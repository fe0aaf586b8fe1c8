"""`Classifier`: a network, or what a runtime loaded, with its model card; images in, class names out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from keras_convnets.card import ModelCard
from keras_convnets.classes import likeliest
from keras_convnets.errors import UnreadableImage, UserError

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Of more images, building a graph takes less time than it saves.
VIEWED_EAGERLY = 16


@dataclass(frozen=True)
class Classifier:
    """Something that classifies, and its card.

    Attributes:
        known_card: class names, view and all else; None if unknown, as for a LiteRT file that is still being written.
        predict_images: images of the input's size, uint8 [n, H, W, 3], to probabilities, float32 [n, classes]; None of
            a committee whose networks see images in different views, which takes encoded images alone.
        predict_encoded: encoded images to probabilities, if the model decodes them itself; else they are decoded here.
        image_size: (height, width) of the input; by default the card's.
        model: the Keras model that answers, where it is one.
    """

    known_card: ModelCard | None
    predict_images: Callable[[np.ndarray], np.ndarray] | None
    predict_encoded: Callable[[Sequence[bytes]], np.ndarray] | None = None
    image_size: tuple[int, int] | None = None
    model: keras.Model | None = None

    def __post_init__(self) -> None:
        if self.image_size is None and self.known_card is not None and self.predict_images is not None:
            object.__setattr__(self, "image_size", self.known_card.view.crop)

    @property
    def card(self) -> ModelCard:
        """The model card; classifiers loaded by the public functions always have one."""
        if self.known_card is None:
            raise AttributeError("this classifier has no model card: it names no classes and decodes no images.")
        return self.known_card

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of images of the input's size, uint8 [n, H, W, 3].

        Raises:
            UserError: of a committee whose networks see images in different views.
        """
        if self.predict_images is None:
            raise UserError(
                "the networks of this committee see images in different views, so it has no one input size; give it "
                "encoded images, through predict."
            )
        return self.predict_images(images)

    def predict(self, encoded: Sequence[bytes]) -> np.ndarray:
        """Return the probabilities of encoded images, float32 [n, classes].

        Raises:
            UnreadableImage: if one of them does not decode.
        """
        if self.predict_encoded is not None:
            return self.predict_encoded(encoded)
        return self(view_encoded(encoded, self.card))

    def top_k(self, encoded: Sequence[bytes], k: int = 5) -> list[list[tuple[str, float]]]:
        """Return for each encoded image its k likeliest classes with their probabilities, likeliest first."""
        return [name_scores(row, self.card.class_names, k) for row in self.predict(encoded)]


def name_scores(probabilities: np.ndarray, class_names: Sequence[str], k: int) -> list[tuple[str, float]]:
    """Return the k likeliest classes of one image, likeliest first; ties go to the lower class index."""
    return [(class_names[index], float(probabilities[index])) for index in likeliest(probabilities, k)]


def view_encoded(encoded: Sequence[bytes], card: ModelCard) -> np.ndarray:
    """Decode images and bring them to the network's input by the card's view.

    Returns:
        uint8 [n, H, W, 3].

    Raises:
        UnreadableImage: if one of them does not decode; the message gives its position.
        UserError: if the view can't be applied.
    """
    import tensorflow as tf

    from keras_convnets.images.decoding import decode_image
    from keras_convnets.images.files import READ
    from keras_convnets.images.resizing import apply_view
    from keras_convnets.tensorflow_errors import plain_reason

    def view(image: tf.Tensor) -> tf.Tensor:
        return apply_view(image, card.view)

    if len(encoded) > VIEWED_EAGERLY:
        view = tf.function(view, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
    views = []
    for position, data in enumerate(encoded):
        try:
            views.append(view(decode_image(tf.constant(data))).numpy())
        except tf.errors.OpError as error:
            reason = plain_reason(error)
            raise UnreadableImage(f"image {position} is not readable ({reason}); {READ} are.") from error
    return np.stack(views)


def compiled(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model's inference as a compiled function: images [n, H, W, 3] to the output "probabilities", or its one.

    A second number of images is traced once more, with n unknown; every further one is answered by that graph.
    """
    import tensorflow as tf

    def infer(images: tf.Tensor) -> tf.Tensor:
        outputs = model(images, training=False)
        if isinstance(outputs, dict):
            return outputs["probabilities"]
        # A model that was built with a list of one output answers with such a list.
        return outputs[0] if isinstance(outputs, (list, tuple)) else outputs

    graph = tf.function(infer, reduce_retracing=True)
    return lambda images: graph(tf.constant(images)).numpy()


def keras_classifier(model: keras.Model, card: ModelCard) -> Classifier:
    """Return a classifier over a Keras model, which is compiled once and sees any batch size.

    Of a model that gives logits it gives their softmax. What is no probability is refused when it is seen.
    """
    from keras_convnets.networks.outputs import check_probabilities, softmaxed

    predict = compiled(softmaxed(model))

    def predict_images(images: np.ndarray) -> np.ndarray:
        probabilities = predict(images)
        check_probabilities(probabilities, model.name)
        return probabilities

    return Classifier(card, predict_images, model=model)
