"""TensorFlow, JAX and PyTorch compute the same from the same weights, each in a separate process."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from reference import relative_difference

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1200)]

# Small sides: AlexNet's smallest, and odd and even ones in between for what rounds and pads.
NETWORKS = {
    "AlexNet": ((64, 67, 3), {}),
    "GoogLeNet": ((45, 64, 3), {}),
    "ResNet18": ((47, 64, 3), {"shortcut": "A"}),
    "ResNet20": ((32, 32, 3), {}),
    "VGG11": ((32, 41, 3), {}),
}
# Float32 sums in another order, as in test_equal_papers.py.
TOLERANCE = 1e-4

# The network's own preprocessing is there, so that it is compared too. The first process, `write`, makes the weights.
SCRIPT = """
import json
import sys

sys.path.insert(0, sys.argv[1])
backend, write = sys.argv[2], sys.argv[3] == "write"
import keras
import numpy as np
from reference import as_numpy, randomise

import keras_convnets

assert keras.backend.backend() == backend
for name, (shape, arguments) in json.loads(sys.argv[4]).items():
    model = keras_convnets.get_model(name, input_shape=shape, classes=10, classifier_activation=None, **arguments)
    if write:
        randomise(model, seed=1)
        model.save_weights(f"{name}.weights.h5")
        np.save(f"{name}.npy", np.random.default_rng(2).integers(0, 256, (2, *shape), np.uint8))
    else:
        model.load_weights(f"{name}.weights.h5")
    logits = model(np.load(f"{name}.npy"), training=False)
    np.save(f"{name}.{backend}.npy", as_numpy(logits))
"""


@pytest.fixture(scope="module")
def logits(run_python, tmp_path_factory):
    """A function of a backend's name: the folder where the networks' logits by that backend lie, computed once."""
    folder = tmp_path_factory.mktemp("backends")
    tests = str(Path(__file__).resolve().parent.parent)
    done = set()

    def compute(backend, what):
        # On a GPU the backends differ in how they round products (TF32), which is not what this is about.
        env = {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
        result = run_python("-c", SCRIPT, tests, backend, what, json.dumps(NETWORKS), cwd=folder, env=env, timeout=600)
        assert result.returncode == 0, result.stderr[-4000:]
        done.add(backend)

    def logits(backend, name):
        if "tensorflow" not in done:
            compute("tensorflow", "write")
        if backend not in done:
            compute(backend, "read")
        return np.load(folder / f"{name}.{backend}.npy")

    return logits


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_gives_tensorflows_logits(backend, name, logits):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; it is in the extra `backends`: pip install -e '.[backends]'")
    reference = logits("tensorflow", name)
    assert relative_difference(logits(backend, name), reference) <= TOLERANCE
    # The outputs must differ between images, or only the last biases would be compared.
    assert np.abs(reference[0] - reference[1]).max() > 0.01 * np.abs(reference).max()
