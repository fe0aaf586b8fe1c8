"""A network of two layers in place of a registered one, so that tests of the trainer take no time to compile."""

from __future__ import annotations

import keras

from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.networks.functional import Functional
from keras_convnets.networks.layers import ImageNormalization
from keras_convnets.networks.spec import ModelSpec
from keras_convnets.weights.loading import choose_preprocessing


def network(name, *, classes, input_shape, weights=None, preprocessing=None, **arguments):
    """What the trainer asks `get_model` for: normalisation, batch normalisation, logits, probabilities."""
    images = keras.Input(input_shape, name="images")
    own = choose_preprocessing(preprocessing, weights, Preprocessing(mean=(8, 8, 8)))
    x = ImageNormalization(own, name="preprocessing")(images)
    x = keras.layers.BatchNormalization(momentum=0.9, name="bn")(x)
    x = keras.layers.Dense(classes, name="predictions")(keras.layers.Flatten()(x))
    model = Functional(images, keras.layers.Softmax(name="probabilities")(x), name=name.lower())
    model.built_as = ModelSpec(name, {"classes": classes, "input_shape": list(input_shape)})
    return model


def rates(schedule, total_steps, figures):
    """Run through all steps, with a report at every equal part of the run; return the learning rate of each step."""
    found = []
    reports = {round((number + 1) * total_steps / len(figures)): figure for number, figure in enumerate(figures)}
    for step in range(total_steps):
        found.append(schedule.rate(step))
        if step + 1 in reports:
            figure = reports[step + 1]
            schedule.observe_holdout(step + 1, {"val_top1": figure, "val_loss": 1 - figure})
    return found
