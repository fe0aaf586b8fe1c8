"""The running averages of the weights, against NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_convnets.training.recipes import get_recipe
from keras_convnets.training.run import Run
from keras_convnets.training.train_step import make_optimizer, make_step
from keras_convnets.training.weight_averages import Averages

STEPS = 14


def parts(precision, decay):
    """A network with batch normalisation, its averages, and a step."""
    keras.utils.set_random_seed(1)
    recipe = get_recipe("resnet_cifar", {"batch_size": 6, "precision": precision, "ema": decay})
    network = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Conv2D(4, 3, dtype=precision),
            keras.layers.BatchNormalization(momentum=0.9, dtype=precision),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="predictions", dtype=precision),
        ]
    )
    optimizer = make_optimizer(recipe)
    optimizer.build(network.trainable_variables)
    averages = Averages(network, recipe.ema)
    step = make_step(network, optimizer, recipe, tf.distribute.get_strategy(), averages=averages)
    return network, optimizer, averages, step


@pytest.mark.parametrize("precision, decay", [
    ("float32", 0.9999), pytest.param("float32", 0.5, marks=pytest.mark.heavy),
    ("mixed_float16", 0.9999), ("mixed_bfloat16", 0.5),
])  # fmt: skip
def test_averages_begin_to_remember_and_include_the_statistics(precision, decay, tmp_path):
    network, optimizer, averages, step = parts(precision, decay)
    assert len(network.weights) == 8 and len(averages.variables) == 9
    expected = [weight.numpy().astype(np.float64) for weight in network.weights]
    rng = np.random.default_rng(2)
    labels = tf.constant([0, 1, 2, 2, 1, 0], tf.int64)
    for count in range(STEPS):
        step(tf.constant(rng.normal(3, 1, (6, 4, 4, 3)), tf.float32), labels)
        kept = min(decay, (1 + count) / (10 + count))
        now = [weight.numpy() for weight in network.weights]
        expected = [kept * average + (1 - kept) * weight for average, weight in zip(expected, now, strict=True)]
    with averages.in_network():
        for weight, average in zip(network.weights, expected, strict=True):
            np.testing.assert_allclose(weight.numpy(), average, rtol=1e-4, atol=1e-5, err_msg=weight.path)
    assert all((weight.numpy() == value).all() for weight, value in zip(network.weights, now, strict=True))
    # A checkpoint keeps them, and how far they are.
    Run(tmp_path).save_checkpoint(STEPS, network, [*optimizer.variables, *averages.variables], {})
    other, others_optimizer, restored, _ = parts(precision, decay)
    Run(tmp_path).load_checkpoint(other, [*others_optimizer.variables, *restored.variables])
    for one, two in zip(averages.variables, restored.variables, strict=True):
        assert (one.numpy() == two.numpy()).all()
    assert int(restored.variables[0]) == STEPS


def test_a_short_run_does_not_end_where_it_began():
    """GoogLeNet's recipe on 245 photographs takes some 500 steps; after an eighth of them the start is forgotten."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    averages = Averages(network, get_recipe("googlenet").ema)
    network.layers[0].kernel.assign([[0.0]])
    left = 1.0
    for count in range(64):
        averages.update()
        left *= (1 + count) / (10 + count)
    with averages.in_network():
        assert network.layers[0].kernel.numpy() == pytest.approx(left, rel=1e-4) and left < 1e-6


def test_a_weight_that_does_not_change_stays_as_it_is_to_the_bit():
    network = keras.Sequential([keras.Input((50,)), keras.layers.Dense(50)])
    averages = Averages(network, 0.37)
    before = network.get_weights()
    for _ in range(20):
        averages.update()
    with averages.in_network():
        assert all((one == two).all() for one, two in zip(before, network.get_weights(), strict=True))
