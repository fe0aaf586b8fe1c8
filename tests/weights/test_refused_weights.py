"""Files of another network are refused by the name of what differs, and change nothing."""

from __future__ import annotations

import io
import shutil
import zipfile

import h5py
import pytest
import zoo
from reference import as_numpy
from weights_files import (
    CLASSES,
    FORMATS,
    HIDDEN,
    SMALL,
    SMALL_ALEXNET,
    both,
    images_of,
    once,
    refused,
    same_logits,
    unit_scaled,
)

import keras_convnets
from keras_convnets.errors import UserError

pytestmark = pytest.mark.usefixtures("info_log")

over_files_of_keras = pytest.mark.parametrize(
    "suffix", [*(pytest.param(suffix, marks=pytest.mark.heavy) for suffix in FORMATS[1:-1]), FORMATS[-1]]
)


@pytest.fixture
def resnet50(folder):
    return once(folder, "resnet50.onnx", lambda path: zoo.resnet(path, 50, 64, CLASSES))


@pytest.mark.heavy
def test_an_onnx_file_of_another_depth(folder, resnet18):
    resnet34 = once(folder, "resnet34.onnx", lambda path: zoo.resnet(path, 34, 32, CLASSES))
    # ResNet-34 has a third block in conv2_x where ResNet-18 goes on to wider ones.
    other_width = both((3, 3, 64, 64), (3, 3, 64, 128))
    refused(keras_convnets.ResNet18(**SMALL), resnet34, rf"conv3_block1_\w+.*{other_width}.*; ResNet34\(\) takes it")
    refused(keras_convnets.ResNet34(**SMALL), resnet18, rf"conv2_block3_\w+.*{other_width}.*; ResNet18\(\) takes it")
    with pytest.raises(UserError, match="conv3_block1"):
        keras_convnets.ResNet18(**SMALL, weights=resnet34)
    resnet34.unlink()


@pytest.mark.heavy
def test_an_onnx_file_that_goes_on_where_the_network_ends(tmp_path):
    path = zoo.resnet(tmp_path / "longer.onnx", 18, 32, CLASSES, blocks=(2, 2, 2, 3))
    refused(keras_convnets.ResNet18(**SMALL), path, r"predictions.*\b3(?:x|, )3(?:x|, )512(?:x|, )512\b")
    refused(keras_convnets.ResNet18(**SMALL, include_top=False), path, r"\b3(?:x|, )3(?:x|, )512(?:x|, )512\b")


def test_an_onnx_file_into_the_plain_network(resnet18):
    # It has no projection where conv3_x begins; its first 3x3 convolution of conv3_x is the file's too.
    refused(keras_convnets.PlainNet18(**SMALL), resnet18, r"conv3_block[12]_\w+.*; ResNet18\(\) takes it")


def test_a_residual_network_from_the_plain_ones_layers(resnet18):
    """Without its first projection the plain network has the layers of the residual one: only the sums tell."""
    model = keras_convnets.ResNet18(**SMALL, shortcut="C")
    refused(model, resnet18, r"conv2_block1_.*; ResNet18\(shortcut='B'\) takes it")


@pytest.mark.heavy
def test_an_onnx_file_of_other_strides(resnet50, folder):
    shape = {"input_shape": (64, 64, 3), "classes": CLASSES}
    strides = r"conv3_block1_1\w*.*(\D2\D.*\D1\D|\D1\D.*\D2\D)"
    refused(keras_convnets.ResNet50v1_5(**shape), resnet50, rf"{strides}.*; ResNet50\(\) takes it\.$")

    def write(path):
        return zoo.resnet(path, 50, 64, CLASSES, stride_on_3x3=True)

    other = once(folder, "resnet50v1_5.onnx", write)
    refused(keras_convnets.ResNet50(**shape), other, rf"{strides}.*; ResNet50v1_5\(\) takes it\.$")
    images = images_of(64)
    model = keras_convnets.ResNet50v1_5(**shape, weights=other, classifier_activation=None)
    same_logits(as_numpy(model(images)), zoo.run(other, unit_scaled(images)))
    other.unlink()


def test_an_onnx_file_of_another_input_size(small_alexnet):
    # 131 pixels leave conv5 maps of 3x3, 9 * 256 numbers instead of 4 * 256.
    model = keras_convnets.AlexNet(input_shape=(131, 131, 3), classes=CLASSES)
    refused(model, small_alexnet, "fc6.*" + both((2304, HIDDEN), (1024, HIDDEN)))


def test_an_onnx_file_without_groups(small_alexnet):
    model = keras_convnets.AlexNetOneTower(**SMALL_ALEXNET)
    refused(model, small_alexnet, "conv2.*" + both((5, 5, 96, 256), (5, 5, 48, 256)) + r".*; AlexNet\(\) takes it")


@over_files_of_keras
def test_keras_files_of_another_depth(suffix, resnet20):
    _, paths = resnet20
    words = r"(conv\d_block\d_\w+|another network).*; ResNet20\(\) takes it"
    refused(keras_convnets.ResNet32(classes=CLASSES), paths[suffix], words)
    refused(keras_convnets.PlainNet32(classes=CLASSES), paths[suffix], words)


def test_a_keras_file_of_the_plain_network_with_the_same_arrays(resnet20):
    """Option A has no weights: every array of the residual network is the plain one's, and only the layers tell."""
    refused(
        keras_convnets.PlainNet20(classes=CLASSES), resnet20[1][".keras"], r"another network.*; ResNet20\(\) takes it"
    )


def halved(path, target):
    """Copy a file of Keras; of the last block's first kernel, [3, 3, 64, 64], half the filters are left."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
            for name in source.namelist():
                data = source.read(name)
                if name.endswith(".h5"):
                    data = io.BytesIO(data)
                    with h5py.File(data, "r+") as file:
                        _halve(file)
                    data = data.getvalue()
                copy.writestr(name, data)
    else:
        shutil.copy(path, target)
        with h5py.File(target, "r+") as file:
            _halve(file)
    return target


def _halve(file):
    kernels = []
    file.visititems(lambda name, item: kernels.append(name) if getattr(item, "shape", ()) == (3, 3, 64, 64) else None)
    assert kernels
    array = file[kernels[-1]][..., :32]
    del file[kernels[-1]]
    file.create_dataset(kernels[-1], data=array)


@over_files_of_keras
def test_keras_files_of_one_other_shape(suffix, resnet20, tmp_path):
    _, paths = resnet20
    path = halved(paths[suffix], tmp_path / f"other{suffix}")
    model = keras_convnets.ResNet20(classes=CLASSES)
    refused(model, path, r"conv4_block\d_\d_conv.*" + both((3, 3, 64, 64), (3, 3, 64, 32)))


def test_a_file_of_another_family(resnet18, resnet20):
    refused(keras_convnets.ResNet20(classes=CLASSES), resnet18, "conv1_conv.*" + both((3, 3, 3, 16), (7, 7, 3, 64)))
    refused(keras_convnets.ResNet18(**SMALL), resnet20[1][".weights.h5"], r"conv\d\w*")
