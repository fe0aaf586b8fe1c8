"""State dictionaries of PyTorch networks, as .safetensors files made here.

test_pytorch_files.py has those that PyTorch wrote.
"""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from reference import as_numpy, convolve, relative_difference, relu
from safetensors.numpy import save_file
from weights_files import CLASSES, OTHERS, SMALL, images_of, preprocessing_of, refused

import keras_convnets
from keras_convnets.card import card_of_model
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import UNIT_SCALED
from keras_convnets.weights.loading import load_weights

# Float32 against float64 through twenty layers.
TOLERANCE = 1e-5
BLOCKS, WIDTHS = 3, (16, 32, 64)


def modules(blocks=(BLOCKS,) * 3, widths=WIDTHS, size=3, classifier="fc", classes=10):
    """(module, shape of its convolution or linear layer, or channels of its normalisation), of two-layer blocks."""
    yield "conv1", (widths[0], 3, size, size)
    yield "bn1", widths[0]
    inputs = widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
        for number in range(count):
            place = f"layer{stage}.{number}"
            yield f"{place}.conv1", (width, inputs, 3, 3)
            yield f"{place}.bn1", width
            yield f"{place}.conv2", (width, width, 3, 3)
            yield f"{place}.bn2", width
            if size == 7 and inputs != width:
                yield f"{place}.downsample.0", (width, inputs, 1, 1)
                yield f"{place}.downsample.1", width
            inputs = width
    yield classifier, (classes, inputs)


def state_dict(named, seed=0):
    """Random arrays as PyTorch names and lays them out."""
    rng, arrays = np.random.default_rng(seed), {}
    for module, shape in named:
        if isinstance(shape, int):
            arrays[f"{module}.weight"] = rng.uniform(0.5, 1.0, shape)
            arrays[f"{module}.bias"] = rng.normal(0, 0.2, shape)
            arrays[f"{module}.running_mean"] = rng.normal(0, 0.2, shape)
            arrays[f"{module}.running_var"] = rng.uniform(0.5, 1.5, shape)
        else:
            arrays[f"{module}.weight"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
            if len(shape) == 2:
                arrays[f"{module}.bias"] = rng.normal(0, 0.2, shape[0])
    found = {name: array.astype(np.float32) for name, array in arrays.items()}
    counters = {name.replace("running_var", "num_batches_tracked") for name in found if "running_var" in name}
    return {**found, **{name: np.array(7, np.int64) for name in counters}}


def written(path, arrays, **metadata):
    """The path of a .safetensors file."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata or None)
    return path


def logits_of(arrays, images, front=0.0, classifier="fc"):
    """What PyTorch's CIFAR network of these arrays computes, in NumPy.

    front: the share of a shortcut's zero channels that stand before the others.
    """

    def convolution(x, module, stride=1):
        return convolve(x, arrays[f"{module}.weight"].transpose(2, 3, 1, 0), stride=stride)

    def normalisation(x, module):
        gamma, beta, mean, variance = (
            arrays[f"{module}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    x = relu(normalisation(convolution(images.astype(np.float64), "conv1"), "bn1"))
    for stage in (1, 2, 3):
        for number in range(BLOCKS):
            place, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            y = relu(normalisation(convolution(x, f"{place}.conv1", stride), f"{place}.bn1"))
            y = normalisation(convolution(y, f"{place}.conv2"), f"{place}.bn2")
            added = y.shape[-1] - x.shape[-1]
            before = int(added * front)
            x = np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (before, added - before)))
            x = relu(x + y)
    return x.mean((1, 2)) @ arrays[f"{classifier}.weight"].T.astype(np.float64) + arrays[f"{classifier}.bias"]


@pytest.fixture(scope="module")
def cifar():
    return state_dict(modules())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).normal(size=(2, 32, 32, 3)).astype(np.float32)


def resnet20(path, **arguments):
    return keras_convnets.ResNet20(weights=path, classifier_activation=None, **arguments)


def outputs(path, images, **arguments):
    return as_numpy(resnet20(path, include_preprocessing=False, **arguments)(images))


@pytest.mark.parametrize(
    ("prefix", "classifier", "front"),
    [("", "fc", 0), ("module.", "fc", 0), ("model.module.", "fc", 0), ("", "linear", 0.5), ("module.", "linear", 0.5)],
)
def test_a_cifar_network(tmp_path, images, caplog, prefix, classifier, front):
    """As torchvision's successors name it; and as the repository whose shortcuts have zeros on both sides."""
    caplog.set_level(logging.INFO, logger="keras_convnets")
    arrays = state_dict(modules(classifier=classifier))
    path = written(tmp_path / "a.safetensors", {prefix + name: array for name, array in arrays.items()})
    expected = logits_of(arrays, images, front, classifier)
    # The two ways of padding must differ by more than what is allowed.
    assert relative_difference(logits_of(arrays, images, 0.5 - front, classifier), expected) > 0.01
    assert relative_difference(outputs(path, images), expected) <= TOLERANCE
    assert ("on both sides" in caplog.text) == (front > 0)
    assert "taken on trust" in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_number_formats(tmp_path, cifar, images, dtype):
    path = tmp_path / "a.safetensors"
    if dtype == "bfloat16":
        rounded = _write_bfloat16(path, cifar)
    else:
        rounded = {name: array.astype(dtype) for name, array in cifar.items()}
        written(path, rounded)
    assert relative_difference(outputs(path, images), logits_of(rounded, images)) <= TOLERANCE


def _write_bfloat16(path, arrays):
    """Write floating-point numbers as bfloat16, by the format's definition; returns what the file holds."""
    header, data, rounded = {}, b"", {}
    for name, array in arrays.items():
        if array.dtype == np.float32:
            upper = (array.view(np.uint32) >> 16).astype("<u2")
            kind, raw = "BF16", upper.tobytes()
            rounded[name] = (upper.astype(np.uint32) << 16).view(np.float32)
        else:
            kind, raw, rounded[name] = "I64", array.astype("<i8").tobytes(), array
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (len(data), len(data) + len(raw))}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return rounded


def test_preprocessing_is_that_of_published_files(tmp_path, cifar, caplog):
    caplog.set_level(logging.INFO, logger="keras_convnets")
    path = written(tmp_path / "a.safetensors", cifar)
    assert preprocessing_of(resnet20(path)) == UNIT_SCALED
    assert "assumed" in caplog.text
    assert preprocessing_of(resnet20(path, preprocessing=OTHERS)) == OTHERS


def test_what_a_file_of_this_package_says(tmp_path, cifar, images, caplog):
    """Preprocessing, classes and the network between the layers are in the header then; nothing is assumed."""
    caplog.set_level(logging.INFO, logger="keras_convnets")
    model = keras_convnets.ResNet20()
    said = {
        "naming": "torchvision",
        "preprocessing": OTHERS.to_dict(),
        "class_names": [f"class {number}" for number in range(10)],
        "config": model.get_config(),
    }
    path = written(tmp_path / "a.safetensors", cifar, keras_convnets=json.dumps(said))
    loaded = resnet20(path)
    assert preprocessing_of(loaded) == OTHERS
    assert card_of_model(keras_convnets.ResNet20(weights=path)).class_names[:2] == ("class 0", "class 1")
    assert "assumed" not in caplog.text
    assert "on trust" not in caplog.text
    refused(keras_convnets.PlainNet20(), path, "conv2_block1.*ResNet20.*takes it")


def test_imagenet_classes_are_those_of_imagenet_files_alone(tmp_path, cifar):
    model = keras_convnets.ResNet20(weights=written(tmp_path / "a.safetensors", cifar))
    assert card_of_model(model).class_names[:2] == ("0", "1")


def test_other_classes_and_no_classifier(tmp_path, cifar, caplog):
    path = written(tmp_path / "a.safetensors", cifar)
    model = keras_convnets.ResNet20(weights=path, classes=3)
    assert "predictions" in caplog.text
    assert "untrained" in caplog.text
    kernel = as_numpy(model.get_layer("conv4_block3_2_conv").kernel)
    np.testing.assert_array_equal(kernel, cifar["layer3.2.conv2.weight"].transpose(2, 3, 1, 0))
    keras_convnets.ResNet20(weights=path, include_top=False)
    without = {name: array for name, array in cifar.items() if not name.startswith("fc.")}
    keras_convnets.ResNet20(weights=written(tmp_path / "b.safetensors", without))
    assert caplog.text.count("untrained") == 2


RESNET18 = tuple(modules((2, 2, 2, 2), (64, 128, 256, 512), size=7, classes=CLASSES))


@pytest.fixture(scope="module")
def resnet18(folder):
    return written(folder / "resnet18.safetensors", state_dict(RESNET18))


def test_another_depth(resnet18, folder, cifar):
    refused(
        keras_convnets.ResNet34(**SMALL), resnet18, r"layer1\.2\.conv1.*conv2_block3_1_conv.*; ResNet18\(\) takes it"
    )
    longer = written(folder / "resnet32.safetensors", state_dict(modules((5, 5, 5))))
    refused(keras_convnets.ResNet20(), longer, r"layer1\.3\.\w+ besides.*; ResNet32\(\) takes it")


def test_shortcuts_of_another_kind(resnet18):
    refused(
        *(keras_convnets.ResNet18(**SMALL, shortcut="A"), resnet18),
        r"layer2\.0\.downsample\.0.*1x1x64x128.*; ResNet18\(shortcut='B'\) takes it|ResNet18\(\) takes it",
    )


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"layer1.0.se.fc1.weight": (4, 64, 1, 1)}, r"layer1\.0\.se\.fc1.*attention"),
        ({"conv1.0.weight": (32, 3, 3, 3)}, "stem of three convolutions"),
        ({"layer2.0.downsample.1.weight": (128, 64, 1, 1)}, "average pooling before"),
        ({"layer1.0.conv2.weight": (64, 4, 3, 3)}, r"conv2_block1_2_conv.*3x3x64x64.*layer1\.0\.conv2.*3x3x4x64"),
        ({"layer1.0.conv1.bias": (64,)}, None),
        ({"layer1.0.bn1.running_var": None}, r"layer1\.0\.bn1"),
        ({"layer4.1.conv2.weight": None}, r"has no layer4\.1\.conv2 for conv5_block2_2_conv"),
        ({"extra.weight": (3, 3)}, "extra"),
    ],
    ids=["attention", "deep stem", "D", "groups", "bias", "group normalisation", "missing", "extra"],
)
def test_other_networks(tmp_path, change, pattern):
    """Each is refused by what differs; a bias before a normalisation is folded into it."""
    arrays = state_dict(RESNET18)
    for name, shape in change.items():
        arrays.pop(name, None)
        if shape is not None:
            arrays[name] = np.ones(shape, np.float32)
    path = written(tmp_path / "a.safetensors", arrays)
    model = keras_convnets.ResNet18(**SMALL)
    if pattern is None:
        load_weights(model, path)
    else:
        refused(model, path, pattern)


@pytest.mark.parametrize(
    ("builder", "arrays", "pattern"),
    [
        ("VGG11", {"features.1.running_mean": (64,)}, r"features\.1.*vgg\*_bn.*none"),
        ("GoogLeNet", {"inception3a.branch1.conv.weight": (64, 192, 1, 1)}, "3x3 where the paper has 5x5"),
        ("AlexNet", {"features.0.weight": (64, 3, 11, 11)}, "One weird trick"),
    ],
)
def test_torchvision_networks_that_are_not_the_papers(tmp_path, hidden, builder, arrays, pattern):
    path = written(tmp_path / "a.safetensors", {name: np.ones(shape, np.float32) for name, shape in arrays.items()})
    size = {"input_shape": (64, 64, 3)}
    refused(getattr(keras_convnets, builder)(**size, classes=CLASSES), path, pattern)


def test_a_bottleneck_network_of_the_paper_takes_none_of_pytorch(tmp_path):
    """Shapes agree; only the stride, which the file does not say, differs."""
    arrays = {}
    for layer in keras_convnets.ResNet50v1_5(**SMALL).layers:
        place = layer.name.split("_")
        if not layer.weights or layer.name == "predictions":
            continue
        if place[0] == "conv1":
            module = "conv1" if place[1] == "conv" else "bn1"
        else:
            inside = f"layer{int(place[0][-1]) - 1}.{int(place[1].removeprefix('block')) - 1}"
            kind = {"conv": ("conv", "0"), "bn": ("bn", "1")}[place[3]]
            module = f"{inside}.downsample.{kind[1]}" if place[2] == "0" else f"{inside}.{kind[0]}{place[2]}"
        values = [as_numpy(weight) for weight in layer.weights]
        if len(values) == 1:
            arrays[f"{module}.weight"] = values[0].transpose(3, 2, 0, 1)
        else:
            names = ("weight", "bias", "running_mean", "running_var")
            arrays |= {f"{module}.{name}": value for name, value in zip(names, values, strict=True)}
    path = written(tmp_path / "a.safetensors", arrays)
    pattern = r"conv3_block1_1_conv.*stride 2.*torchvision.*3x3.*; ResNet50v1_5\(\) takes it"
    refused(keras_convnets.ResNet50(**SMALL), path, pattern)


def test_a_vgg_in_both_layouts(tmp_path, hidden):
    """torchvision stores fully connected layers as such, timm as convolutions: the same numbers."""
    model = keras_convnets.VGG11(input_shape=(64, 64, 3), classes=CLASSES)
    rng = np.random.default_rng(5)
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    arrays = {}
    for place, (inputs, outputs) in zip(
        (0, 3, 6, 8, 11, 13, 16, 18), zip(channels, channels[1:], strict=False), strict=True
    ):
        arrays[f"features.{place}.weight"] = rng.normal(0, 0.05, (outputs, inputs, 3, 3))
        arrays[f"features.{place}.bias"] = rng.normal(0, 0.05, outputs)
    convolutions = {name: array.astype(np.float32) for name, array in arrays.items()}
    first = rng.normal(0, 0.02, (hidden, 512, 2, 2)).astype(np.float32)
    second = rng.normal(0, 0.1, (hidden, hidden)).astype(np.float32)
    last = rng.normal(0, 0.1, (CLASSES, hidden)).astype(np.float32)
    biases = [rng.normal(0, 0.1, len(kernel)).astype(np.float32) for kernel in (first, second, last)]
    torchvision = {
        **convolutions,
        **{"classifier.0.weight": first.reshape(hidden, -1), "classifier.0.bias": biases[0]},
        **{"classifier.3.weight": second, "classifier.3.bias": biases[1]},
        **{"classifier.6.weight": last, "classifier.6.bias": biases[2]},
    }
    timm = {
        **convolutions,
        **{"pre_logits.fc1.weight": first, "pre_logits.fc1.bias": biases[0]},
        **{"pre_logits.fc2.weight": second[:, :, None, None], "pre_logits.fc2.bias": biases[1]},
        **{"head.fc.weight": last, "head.fc.bias": biases[2]},
    }
    found = []
    for name, named in (("torchvision", torchvision), ("timm", timm)):
        load_weights(model, written(tmp_path / f"{name}.safetensors", named))
        found.append(model.get_weights())
    kernel = as_numpy(model.get_layer("fc1").kernel).reshape(2, 2, 512, hidden)
    np.testing.assert_array_equal(kernel, first.transpose(2, 3, 1, 0))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        as_numpy(model.get_layer("block5_conv2").kernel), convolutions["features.18.weight"].transpose(2, 3, 1, 0)
    )


def test_files_that_are_none(tmp_path):
    model = keras_convnets.ResNet20()
    text = tmp_path / "a.safetensors"
    for content in (b"", b"no such file", (1 << 60).to_bytes(8, "little") + b"{}"):
        text.write_bytes(content)
        refused(model, text, r"a\.safetensors is not a \.safetensors file")
    refused(model, written(tmp_path / "b.safetensors", {}), "holds no state dictionary")
    for said in ("[]", "{", '{"config": 3}', '{"preprocessing": {"mean": 1}}'):
        path = written(tmp_path / "c.safetensors", state_dict(modules()), keras_convnets=said)
        with pytest.raises(UserError):
            keras_convnets.ResNet20(weights=path)


def test_pytorch_files_without_pytorch(tmp_path, monkeypatch):
    """What to do instead is said; nothing of the file is read."""
    monkeypatch.setattr("keras_convnets.weights.state_dict_reader.importlib.util.find_spec", lambda name: None)
    for name in ("a.pth", "a.pt", "A.PTH", "a.pth.tar"):
        path = tmp_path / name
        path.write_bytes(b"")
        refused(keras_convnets.ResNet20(), path, r"pip install torch.*safetensors")
    # Before the download.
    monkeypatch.setenv("KERAS_CONVNETS_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"^ResNet18:imagenet1k_v1, resnet18-f37072fd\.pth, can be read only where PyTorch"
    ):
        keras_convnets.ResNet18(weights="imagenet1k_v1")


def test_images_in_0_to_255(tmp_path, cifar):
    """With the network's preprocessing, outputs are those of scaled images."""
    images = images_of(32)
    path = written(tmp_path / "a.safetensors", cifar)
    scaled = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert relative_difference(as_numpy(resnet20(path)(images)), logits_of(cifar, scaled)) <= TOLERANCE
