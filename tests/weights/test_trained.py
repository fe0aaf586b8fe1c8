"""Weights that are part of the package: loaded offline by name, and as accurate as their records state."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
from reference import relative_difference

import keras_convnets
from keras_convnets import ModelCard, training
from keras_convnets.card import card_of_model, view_of_model
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.networks.functional import weights_digest
from keras_convnets.weights import loading, pretrained

ROOT = Path(__file__).parent.parent.parent
TRAINED = [record for record in pretrained.RECORDS if not record.locations]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN_IMAGE = Preprocessing((120, 121, 122), mean_image=np.random.default_rng(0).uniform(100, 140, (32, 32, 3)))


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras_convnets.ResNet20(preprocessing=MEAN_IMAGE)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # In float16 it would be 0.
            layer.moving_variance.assign(np.full(layer.moving_variance.shape, 1e-9))
            layer.gamma.assign(np.full(layer.gamma.shape, 1e-5))
    return model


@pytest.fixture
def shipped(network, tmp_path, monkeypatch) -> Path:
    """A folder in place of the package's with one network's weights in half the bytes; returns the weights file."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "cifar10.py"), run_name="cifar10")
    path = tmp_path / "ResNet20-cifar10.weights.h5"
    network.save_weights(path)
    script["halve"](path)
    record = {
        "architecture": "ResNet20",
        "name": "cifar10",
        "file": path.name,
        "locations": [],
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": "weights.h5",
        "preprocessing": MEAN_IMAGE.to_dict(),
        "input_shape": [32, 32, 3],
        "resize": 32,
        "protocol": "cifar",
        "data": "CIFAR-10",
        "own_classes": CLASSES,
        "accuracies": [script["accuracy"]("test", {"n": 1000, "top1": 0.915, "interval": (0.896, 0.931)}, "here")],
        "license": "Apache-2.0",
        "obtained": "trained",
        "training": {"command": "keras-convnets train", "recipe": {"name": "resnet_cifar"}, "seed": 4},
    }
    (tmp_path / "records.json").write_text(json.dumps([record]))
    for module in (pretrained, loading):
        monkeypatch.setattr(module, "trained_folder", lambda: tmp_path)
    monkeypatch.setattr(pretrained, "RECORDS", (*pretrained.RECORDS[:1], *pretrained._trained()))
    monkeypatch.setenv("KERAS_CONVNETS_OFFLINE", "1")
    return path


def test_they_load_by_name_offline_with_all_that_belongs_to_them(shipped, network):
    assert shipped.stat().st_size < 0.62 * 4 * network.count_params()
    model = keras_convnets.ResNet20(weights="cifar10")
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for mine, theirs in zip(model.get_weights(), network.get_weights(), strict=True):
        # Kernels have float16's 11 bits; the rest is as it was.
        np.testing.assert_allclose(mine, theirs, rtol=2**-11 if mine.ndim > 1 else 0, atol=2**-25)
    found = model.predict(images, verbose=0)
    np.testing.assert_allclose(found, network.predict(images, verbose=0), atol=0.01)
    card = card_of_model(model)
    assert (card.class_names, card.class_ids, card.trained, card.seed) == (CLASSES, (), True, 4)
    assert card.recipe == {"name": "resnet_cifar"} and card.preprocessing == MEAN_IMAGE
    (figures,) = card.metrics.values()
    assert figures == {"n": 1000, "top1": 0.915}
    assert view_of_model(model).to_dict() == card.view.to_dict()
    assert (card.view.resize, card.view.crop) == (32, (32, 32))
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))).class_names == CLASSES


def test_another_size_and_number_of_classes_start_from_them(shipped, network):
    model = keras_convnets.ResNet20(weights="cifar10", input_shape=(64, 48, 3), classes=3)
    kernels = [next(one for one in of.layers if one.name == "conv1_conv").kernel.numpy() for of in (model, network)]
    np.testing.assert_allclose(*kernels, rtol=2**-11, atol=2**-25)
    assert model.output_shape == (None, 3)
    assert weights_digest(model) != weights_digest(network)
    view = view_of_model(keras_convnets.ResNet20(weights="cifar10", input_shape=(64, 48, 3)))
    assert (view.resize, view.crop) == (64, (64, 48))


def test_a_damaged_installation_is_refused_in_one_sentence(shipped):
    shipped.write_bytes(shipped.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="differs from the one released; install keras-convnets again"):
        keras_convnets.ResNet20(weights="cifar10")
    shipped.unlink()
    with pytest.raises(UserError, match="is missing; install keras-convnets again"):
        keras_convnets.ResNet20(weights="cifar10")


def test_commands_know_them(shipped, cli, tmp_path):
    from PIL import Image

    Image.fromarray(np.full((40, 50, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    status, out, err = cli("predict", tmp_path / "grey.png", "--model", "ResNet20:cifar10")
    assert status in (0, None), err
    assert any(name in out for name in CLASSES)
    status, out, _ = cli("models", "ResNet20")
    assert "cifar10" in out
    status, out, _ = cli("info", "ResNet20")
    assert "91.50 % (95 % interval 89.60 to 93.10)" in out and "a part of this package" in out


@pytest.mark.parametrize("record", TRAINED, ids=str)
def test_each_shipped_record_is_whole_and_true(record, real_data):
    path = pretrained.trained_folder() / record.file
    assert path.stat().st_size == record.size < 2e6
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
    assert re.fullmatch("[0-9a-f]{64}", record.sha256) and record.class_names == CLASSES
    assert {"command", "recipe", "seed", "hardware", "versions"} <= set(record.training)
    model = getattr(keras_convnets, record.architecture)(weights="cifar10")
    result = training.evaluate(model, training.load_dataset("cifar10", data_dir=real_data / "tfds"))
    stated = record.accuracies[0]
    assert result.n == stated.n == 1000
    # One image may lie on a boundary that another processor's sums cross.
    assert abs(result.top1 - stated.top1 / 100) <= 0.001
    assert stated.interval[0] < stated.top1 < stated.interval[1]


ANSWERS = """
import sys

import keras
import numpy as np

import keras_convnets

assert keras.backend.backend() == sys.argv[1]
images = np.load("images.npy")
for name in sys.argv[2:]:
    model = getattr(keras_convnets, name)(weights="cifar10", classifier_activation=None)
    np.save(f"{name}-{sys.argv[1]}.npy", keras.ops.convert_to_numpy(model(images, training=False)))
"""


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_answer_as_tensorflow(backend, real_data, run_python, tmp_path):
    """The logits of 200 real images are equal, and most of the answers right."""
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    import tensorflow_datasets as tfds

    loaded = tfds.load("cifar10", split="test[:200]", data_dir=real_data / "tfds", as_supervised=True, batch_size=-1)
    images, labels = tfds.as_numpy(loaded)
    np.save(tmp_path / "images.npy", images)
    names = [record.architecture for record in TRAINED]
    env = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}
    done = run_python("-c", ANSWERS, backend, *names, cwd=tmp_path, env=env, timeout=800)
    assert done.returncode == 0, done.stderr
    for name in names:
        logits = np.load(tmp_path / f"{name}-{backend}.npy")
        expected = getattr(keras_convnets, name)(weights="cifar10", classifier_activation=None)(images).numpy()
        assert relative_difference(logits, expected) <= 1e-4
        assert (logits.argmax(1) == labels).mean() > 0.85
