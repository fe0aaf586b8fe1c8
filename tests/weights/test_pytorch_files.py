"""Networks in PyTorch and here: equal outputs from state dictionaries that PyTorch wrote; nothing is unpickled.

These need PyTorch, which Keras' own PyTorch backend uses too.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from reference import as_numpy, randomise, relative_difference
from weights_files import refused

import keras_convnets

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import torch_networks  # noqa: E402

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]

# Of the largest output: float32 sums in another order.
TOLERANCE = 1e-5
CIFAR_DEPTHS = (20, 32, 44, 56, 110)

SCRIPT = """
import sys

sys.path.insert(0, sys.argv[1])
import keras
import numpy as np
from reference import as_numpy

import keras_convnets

assert keras.backend.backend() == sys.argv[2]
name, weights, images = sys.argv[3:6]
images = np.load(images)
model = keras_convnets.get_model(
    name, weights=weights, include_preprocessing=False, input_shape=images.shape[1:], classifier_activation=None
)
np.save(sys.argv[6], as_numpy(model(images, training=False)))
"""


def equal_outputs(run_python, folder, name, network, side, suffix=".pth", wrap=lambda state: state):
    """Load a network's file on TensorFlow and on PyTorch; both give what the network itself gives."""
    network = torch_networks.randomized(network, seed=1)
    images = np.random.default_rng(2).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    path = folder / f"{name}{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    else:
        torch.save(wrap(network.state_dict()), path)
    np.save(folder / "images.npy", images)
    differences = {}
    for backend in ("tensorflow", "torch"):
        answers = folder / f"{backend}.npy"
        tests = str(Path(__file__).resolve().parent.parent)
        done = run_python(
            *("-c", SCRIPT),
            *(tests, backend, name, str(path), str(folder / "images.npy"), str(answers)),
            cwd=folder,
            env={"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1"},
        )
        assert done.returncode == 0, done.stderr
        differences[backend] = relative_difference(np.load(answers), expected)
    path.unlink()
    assert np.abs(expected[0] - expected[1]).max() > 0.02 * np.abs(expected).max()
    assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.parametrize("name", [name for name in torch_networks.BLOCKS if name != "ResNet50"])
def test_torchvision_resnet(run_python, tmp_path, name):
    side = 224 if name == "ResNet50v1_5" else 96
    equal_outputs(run_python, tmp_path, name, torch_networks.ResNet(name), side)


@pytest.mark.parametrize("timm", [False, True], ids=["torchvision", "timm"])
@pytest.mark.parametrize("name", torch_networks.CONVOLUTIONS)
def test_vgg(run_python, tmp_path, name, timm):
    equal_outputs(run_python, tmp_path, name, torch_networks.VGG(name, timm), 224, suffix=".safetensors")


@pytest.mark.parametrize(("shortcut", "classifier"), [("A", "fc"), ("A both", "linear")])
@pytest.mark.parametrize("depth", CIFAR_DEPTHS)
def test_cifar_resnet(run_python, tmp_path, depth, shortcut, classifier):
    """As the repositories save them: a checkpoint around the dictionary, its names with DataParallel's prefix."""
    network = torch_networks.CIFARResNet(depth, shortcut, classifier)

    def wrap(state):
        return {"state_dict": {f"module.{name}": array for name, array in state.items()}, "best_prec1": 92.1}

    equal_outputs(run_python, tmp_path, f"ResNet{depth}", network, 32, suffix=".th", wrap=wrap)


def test_a_malicious_file_runs_nothing(tmp_path):
    """Reading it the usual way of pickles would create a folder; as a checkpoint of PyTorch too."""

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"conv1.weight": Malicious()}))
    torch.save({"conv1.weight": Malicious()}, tmp_path / "archive.pt")
    torch.save({"conv1.weight": Malicious()}, tmp_path / "legacy.th", _use_new_zipfile_serialization=False)
    model = keras_convnets.ResNet20()
    for name in ("plain.pth", "archive.pt", "legacy.th"):
        refused(model, tmp_path / name, "weights_only")
        assert not (tmp_path / "executed").exists()
    # That the files are malicious indeed:
    torch.load(tmp_path / "archive.pt", weights_only=False)
    assert (tmp_path / "executed").is_dir()


def test_other_contents(tmp_path):
    model = keras_convnets.ResNet20()
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    refused(model, tmp_path / "tensor.pth", "a Tensor and no state dictionary")
    torch.save({"epoch": 3}, tmp_path / "no_arrays.pth")
    refused(model, tmp_path / "no_arrays.pth", "holds no state dictionary")
    torch.save(torch_networks.CIFARResNet(20), tmp_path / "module.pth")
    refused(model, tmp_path / "module.pth", r"weights_only.*state_dict\(\)")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(model, tmp_path / "empty.pth", "is no state dictionary")


@pytest.mark.parametrize(
    ("name", "network", "arguments"),
    [
        ("ResNet18", lambda: torch_networks.ResNet("ResNet18", classes=7), {"input_shape": (64, 64, 3), "classes": 7}),
        ("ResNet50v1_5", lambda: torch_networks.ResNet("ResNet50v1_5"), {"input_shape": (64, 64, 3)}),
        ("VGG11", lambda: torch_networks.VGG("VGG11", classes=5), {"classes": 5}),
        ("ResNet56", lambda: torch_networks.CIFARResNet(56), {}),
    ],
)
def test_what_is_written_here_goes_on_in_pytorch(tmp_path, name, network, arguments):
    """Every entry has its place in the network in PyTorch, and both give the same outputs."""
    from safetensors.torch import load_file

    model = getattr(keras_convnets, name)(**arguments, include_preprocessing=False, classifier_activation=None)
    randomise(model, seed=4)
    keras_convnets.save_safetensors(model, tmp_path / "a.safetensors")
    theirs = network().eval()
    theirs.load_state_dict(load_file(tmp_path / "a.safetensors"), strict=True)
    images = np.random.default_rng(2).normal(size=(2, *model.input_shape[1:])).astype(np.float32)
    with torch.no_grad():
        given = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative_difference(as_numpy(model(images)), given) <= TOLERANCE


def test_half_precision_is_read_as_float32(tmp_path):
    network = torch_networks.randomized(torch_networks.CIFARResNet(20), seed=1).to(torch.bfloat16)
    torch.save(network.state_dict(), tmp_path / "half.pth")
    model = keras_convnets.ResNet20(weights=tmp_path / "half.pth")
    kernel = as_numpy(model.get_layer("conv1_conv").kernel)
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, network.conv1.weight.detach().float().numpy().transpose(2, 3, 1, 0))
