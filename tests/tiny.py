"""A network of two layers in place of a registered one, so that tests of the trainer take no time to compile."""

from __future__ import annotations

from types import SimpleNamespace

import keras

from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.networks.functional import Functional
from keras_convnets.networks.layers import ImageNormalization
from keras_convnets.networks.spec import ModelSpec
from keras_convnets.training import trainer
from keras_convnets.training.holdout import HoldoutWatch
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


def part(recipe, total_steps):
    """As much of a training as schedules and patience need: no network, no data."""
    made = trainer._Training.__new__(trainer._Training)
    made.plan = SimpleNamespace(recipe=recipe, total_steps=total_steps)
    made.watch, made.step = HoldoutWatch(), 0
    made.warming = bool(getattr(recipe, "warmup", False))
    made.optimizer = SimpleNamespace(learning_rate=SimpleNamespace(assign=lambda rate: None))
    return made


def rates(part, figures):
    """Run through all steps, with a report at every equal part of the run; return the learning rate of each step."""
    total, found = part.plan.total_steps, []
    reports = {round((number + 1) * total / len(figures)): figure for number, figure in enumerate(figures)}
    while part.step < total:
        part._set_learning_rate()
        found.append(part._rate)
        part.step += 1
        if part.step in reports:
            part.judge({"val_top1": reports[part.step], "val_loss": 1 - reports[part.step]})
    return found
