"""Networks of more than 110 layers are nested, and work as the others do."""

from __future__ import annotations

import dataclasses
import sys

import keras
import numpy as np
import pytest
from network_checks import DEEPEST, QUICK, as_numpy, built, digest, images_of, load_in_a_fresh_process, randomise

from keras_convnets import (
    CIFARResNet,
    model_info,
)


def test_a_network_beyond_110_layers_is_nested():
    before = sys.getrecursionlimit()
    model = CIFARResNet(116)
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    assert [layer.name for layer in inner] == [f"{stage}_blocks1_19" for stage in ("conv2", "conv3", "conv4")]
    assert model_info(model).depth == 116
    # 1000 is Python's own; what another library may have set, we must not have raised.
    assert sys.getrecursionlimit() == before <= 1000


@dataclasses.dataclass(frozen=True)
class Step:
    loss: float
    unchanged: list[str]
    not_finite: list[str]


@pytest.fixture(scope="module")
def trained_1202():
    """ResNet1202 after one step of training from its initialisation, as it comes; and what the step did.

    Eagerly: tracing and compiling 1202 layers takes minutes, and gives the same step.
    """
    model = built(DEEPEST)
    before = [weight.numpy() for weight in model.weights]
    model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", run_eagerly=True)
    loss = float(model.train_on_batch(images_of(32, 32), np.array([3, 8])))
    after = [weight.numpy() for weight in model.weights]
    paths = [weight.path for weight in model.weights]
    return model, Step(
        loss,
        [path for path, old, new in zip(paths, before, after, strict=True) if np.array_equal(old, new)],
        [path for path, new in zip(paths, after, strict=True) if not np.isfinite(new).all()],
    )


@pytest.fixture(scope="module")
def saved_1202(trained_1202, tmp_path_factory):
    model, _ = trained_1202
    randomise(model)
    path = tmp_path_factory.mktemp("deepest") / "resnet1202.keras"
    model.save(path)
    return model, path


@pytest.mark.heavy
def test_1202_is_nested():
    model = built(DEEPEST)
    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    # 200 blocks a stage, fifty to an inner model.
    assert [layer.name for layer in inner] == [
        f"{stage}_blocks{first}_{first + 49}" for stage in ("conv2", "conv3", "conv4") for first in (1, 51, 101, 151)
    ]
    for layer in inner:
        assert sum(isinstance(part, keras.layers.Add) for part in layer.layers) == 50
        assert not any(isinstance(part, keras.Model) for part in layer.layers)
    assert len(model.layers) < 30


@pytest.mark.parametrize(
    "name", [name if name == "ResNet110" else pytest.param(name, marks=pytest.mark.heavy) for name in QUICK]
)
def test_the_others_are_flat(name):
    assert not any(isinstance(layer, keras.Model) for layer in built(name).layers)


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_1202_takes_a_training_step(trained_1202):
    _, step = trained_1202
    assert np.isfinite(step.loss)
    assert step.not_finite == []
    # Kernels, gamma, beta and statistics of 1201 convolutions, and the linear layer.
    assert step.unchanged == []


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_1202_loads_in_a_fresh_process(saved_1202):
    model, path = saved_1202
    images = images_of(32, 32)
    found, recursion_limit = load_in_a_fresh_process(images, [path])
    weights, outputs, _ = found[str(path)]
    assert recursion_limit == 1000
    assert weights == digest(model)
    expected = as_numpy(model(images))
    assert np.isfinite(expected).all() and np.abs(expected[0] - expected[1]).max() > 1e-3
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-5)
