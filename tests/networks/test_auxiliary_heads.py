"""GoogLeNet's auxiliary classifiers: where they are, how they train, and the network without them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from network_checks import as_numpy, images_of, randomise, unsaturate

from keras_convnets import (
    GoogLeNet,
    without_auxiliary,
)
from keras_convnets.errors import UserError

HEADS = {"probabilities": 1.0, "aux1": 0.3, "aux2": 0.3}


@pytest.fixture(scope="module")
def auxiliary():
    model = GoogLeNet(auxiliary=True, input_shape=(79, 79, 3), classes=3)
    randomise(model)
    unsaturate(model)
    return model


def test_auxiliary_heads_are_the_papers(auxiliary):
    assert {name: tensor.shape for name, tensor in auxiliary.output.items()} == dict.fromkeys(HEADS, (None, 3))
    for head, stage in (("aux1", "inception_4a"), ("aux2", "inception_4d")):
        pool, fc = auxiliary.get_layer(f"{head}_pool"), auxiliary.get_layer(f"{head}_fc")
        assert pool.input is auxiliary.get_layer(stage).output
        assert (pool.pool_size, pool.strides, pool.padding) == ((5, 5), (3, 3), "valid")
        assert (auxiliary.get_layer(f"{head}_conv").filters, fc.units) == (128, 1024)
        assert auxiliary.get_layer(f"{head}_dropout").rate == 0.7
        assert auxiliary.get_layer(f"{head}_dropout").input is fc.output
    assert auxiliary.get_layer("dropout").rate == 0.4
    # "resulting in an 4x4x512 output for the (4a), and 4x4x528 for the (4d) stage"
    at_224 = GoogLeNet(auxiliary=True)
    sizes = [at_224.get_layer(f"{head}_pool").output.shape[1:] for head in ("aux1", "aux2")]
    assert sizes == [(4, 4, 512), (4, 4, 528)]


def test_auxiliary_heads_need_larger_images():
    with pytest.raises(UserError, match="at least 79x79"):
        GoogLeNet(auxiliary=True, input_shape=(78, 79, 3))
    # Without the classifier there are no heads and no such need.
    assert GoogLeNet(auxiliary=True, include_top=False, input_shape=(31, 31, 3)).output_shape == (None, 1, 1, 1024)


def test_auxiliary_heads_train_with_the_papers_weights(auxiliary):
    model = keras.models.clone_model(auxiliary)
    model.set_weights(auxiliary.get_weights())
    model.compile(
        keras.optimizers.SGD(1e-3),
        loss=dict.fromkeys(HEADS, "sparse_categorical_crossentropy"),
        loss_weights=HEADS,
        run_eagerly=True,  # tracing takes longer than the two steps
    )
    images, labels = images_of(79, 79), np.array([0, 2])
    before = {head: model.get_layer(f"{head}_fc").kernel.numpy() for head in ("aux1", "aux2")}
    # Each head's loss of the network as it is, dropout off.
    outputs = {head: as_numpy(output) for head, output in model(images).items()}
    targets = dict.fromkeys(HEADS, labels)
    found = model.evaluate(images, targets, verbose=0, return_dict=True)
    wanted = {head: -np.log(output[[0, 1], labels]).mean() for head, output in outputs.items()}
    for head, loss in wanted.items():
        assert found[f"{head}_loss"] == pytest.approx(loss, rel=1e-4)
    total = wanted["probabilities"] + 0.3 * wanted["aux1"] + 0.3 * wanted["aux2"]
    assert found["loss"] == pytest.approx(total, rel=1e-4)
    history = {key: values[0] for key, values in model.fit(images, targets, verbose=0).history.items()}
    assert history["loss"] == pytest.approx(
        sum(weight * history[f"{head}_loss"] for head, weight in HEADS.items()), rel=1e-4
    )
    assert all((model.get_layer(f"{head}_fc").kernel.numpy() != old).any() for head, old in before.items())


@pytest.mark.parametrize("reloaded", [False, True], ids=["built", "loaded"])
def test_without_auxiliary_is_the_main_output(auxiliary, reloaded, tmp_path):
    model = auxiliary
    if reloaded:
        auxiliary.save(tmp_path / "auxiliary.keras")
        model = keras.saving.load_model(tmp_path / "auxiliary.keras")
    single = without_auxiliary(model)
    images = images_of(79, 79)
    np.testing.assert_array_equal(as_numpy(single(images)), as_numpy(model(images)["probabilities"]))
    plain = GoogLeNet(input_shape=(79, 79, 3), classes=3)
    assert single.count_params() == plain.count_params()
    assert single.name == plain.name and single.output_names == plain.output_names
    assert not any("aux" in layer.name for layer in single.layers)
