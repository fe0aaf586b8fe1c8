"""Files from strangers: none makes a reader open another file of the machine, run code, or take endless memory."""

from __future__ import annotations

import tracemalloc
import zipfile

import h5py
import keras
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import keras_convnets
from keras_convnets import CIFARPlainNet, export
from keras_convnets.errors import UserError
from keras_convnets.export.serving.engines.onnx import OnnxEngine
from keras_convnets.export.serving.status import ServingError
from keras_convnets.networks.functional import load_keras
from keras_convnets.weights.keras_reader import check_archive, read_h5
from keras_convnets.weights.loading import load_weights
from keras_convnets.weights.onnx_files import refuse_external_data
from keras_convnets.weights.onnx_reader import read_onnx

SUFFIXES = [".weights.h5", ".h5", ".keras"]
SECRET = np.arange(3 * 3 * 3 * 16, dtype=np.float32)
KERNEL = (3, 3, 3, 16)


@pytest.fixture(scope="module")
def model():
    return CIFARPlainNet(8, classes=3)


@pytest.fixture
def secret(tmp_path):
    """Another file of the machine, as bytes and as HDF5."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = SECRET.reshape(KERNEL)
        file.create_group("layer")["kernel"] = SECRET.reshape(KERNEL)
    return path


def crafted(model, path, change):
    """Write a network's file of a kind; `change(group, key)` puts something in place of the first kernel."""
    if path.suffix == ".keras":
        model.save(path)
        inner = path.with_name("inner.weights.h5")
        with zipfile.ZipFile(path) as archive:
            inner.write_bytes(archive.read("model.weights.h5"))
            config = archive.read("config.json")
        _change(inner, change)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", config)
            archive.write(inner, "model.weights.h5")
        return path
    model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    _change(path, change)
    return path


def _change(path, change):
    with h5py.File(path, "r+") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if getattr(item, "shape", None) == KERNEL else None)
        name = found[0]
        group, key = file[name].parent, name.rpartition("/")[2]
        del group[key]
        change(group, key)


def external_storage(secret):
    return lambda group, key: group.create_dataset(key, KERNEL, "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def external_link(secret):
    return lambda group, key: group.__setitem__(key, h5py.ExternalLink(f"{secret}.h5", "/kernel"))


def soft_link(secret):
    def change(group, key):
        group.file["elsewhere"] = h5py.ExternalLink(f"{secret}.h5", "/layer")
        group[key] = h5py.SoftLink("/elsewhere/kernel")

    return change


def virtual(secret):
    def change(group, key):
        layout = h5py.VirtualLayout(KERNEL, "f4")
        layout[:] = h5py.VirtualSource(f"{secret}.h5", "kernel", KERNEL)
        group.create_virtual_dataset(key, layout)

    return change


def linked_group(secret):
    """The whole layer lies elsewhere."""

    def change(group, key):
        parent, name = group.parent, group.name.rpartition("/")[2]
        del parent[name]
        parent[name] = h5py.ExternalLink(f"{secret}.h5", "/layer")

    return change


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [external_storage, external_link, soft_link, virtual, linked_group])
def test_no_other_files_bytes_become_weights(model, secret, tmp_path, kind, suffix):
    before = model.get_weights()
    path = crafted(model, tmp_path / f"crafted{suffix}", kind(secret))
    readers = [lambda: load_weights(model, path)] + [lambda: load_keras(path)] * (suffix == ".keras")
    for read in readers:
        with pytest.raises(UserError, match=r"crafted.* is not read: .* could be any of this machine"):
            read()
    for ours, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, was)


def huge(group, key):
    group.create_dataset(key, (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip", fillvalue=1.0)


def huge_chunks(group, key):
    sizes = {"maxshape": (None,) * 4, "chunks": (64, 64, 64, 256)}
    group.create_dataset(key, KERNEL, "f4", data=np.ones(KERNEL), compression="gzip", **sizes)


def words(group, key):
    group[key] = ["a", "b"]


@pytest.mark.parametrize("change, suffix", [
    *((change, suffix) for change in (huge, words) for suffix in SUFFIXES), (huge_chunks, ".keras"),
    *(pytest.param(huge_chunks, suffix, marks=pytest.mark.heavy) for suffix in SUFFIXES[:2]),
])  # fmt: skip
def test_what_a_file_declares_is_checked_before_it_is_read(model, tmp_path, change, suffix):
    path = crafted(model, tmp_path / f"crafted{suffix}", change)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"crafted.*(conv1_conv has shapes|has chunks of|not of numbers)"):
            load_weights(model, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size < 10e6 and peak < 64e6


def test_a_vector_without_end_is_told_by_its_shape(model, tmp_path):
    """Of batch normalisations and biases nothing is computed before the shapes are known to fit."""
    model.save_weights(tmp_path / "crafted.weights.h5")
    with h5py.File(tmp_path / "crafted.weights.h5", "r+") as file:
        for group, key, shape in (("batch_normalization", "2", (2**40,)), ("dense", "1", (2**40,))):
            place = file[f"layers/{group}/vars"]
            del place[key]
            place.create_dataset(key, shape, "f4", chunks=(1024,), compression="gzip")
            with pytest.raises(UserError, match=r"(conv1_bn|predictions) has shapes .*1099511627776"):
                load_weights(model, tmp_path / "crafted.weights.h5")
            del place[key]
            place[key] = np.zeros(16 if group != "dense" else 3, np.float32)
    load_weights(model, tmp_path / "crafted.weights.h5")


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_an_archive_that_inflates_is_refused(model, tmp_path, member):
    path = tmp_path / "crafted.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in parts.items():
            archive.writestr(name, data + b" " * (100 << 20) if name == member else data)
    for read in (lambda: load_weights(model, path), lambda: load_keras(path)):
        with pytest.raises(UserError, match=r"crafted.keras grows from [\d,]+ to 10\d,\d+,\d+ bytes and is not read"):
            read()


def test_archives_that_are_compressed_in_proportion_are_read(model, tmp_path):
    path = tmp_path / "small.keras"
    model.save(path)
    stored = read_h5(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    check_archive(path)
    for one, other in zip(stored, read_h5(path), strict=True):
        assert one.name == other.name
        for key, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[key])


def test_no_code_of_a_keras_file_runs(tmp_path):
    images = keras.Input((4, 4, 3))
    answers = keras.layers.Lambda(lambda x: x[:, 0, 0], output_shape=(3,), name="code")(images)
    keras.Model(images, keras.layers.Softmax()(answers)).save(tmp_path / "code.keras")
    with pytest.raises(UserError, match=r"code.keras is not a network that Keras loads .*lambda"):
        load_keras(tmp_path / "code.keras")
    with pytest.raises(UserError, match="is not a network that Keras loads"):
        export.publish(tmp_path / "code.keras", to=tmp_path / "repository")


def tiny(path, weights, constant=None):
    """Write an ONNX file of one linear layer, under the names of exported ones."""
    nodes = [helper.make_node("Flatten", ["images"], ["flat"])]
    nodes += [] if constant is None else [helper.make_node("Constant", [], ["w"], value=constant)]
    nodes += [
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    shapes = {"images": ["batch", 2, 2, 3], "probabilities": ["batch", 3]}
    images, answers = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name]) for name in shapes)
    graph = helper.make_graph(nodes, "net", [images], [answers], [] if weights is None else [weights])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return path


def outside(location):
    tensor = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[12, 3], data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in {"location": str(location), "offset": "0", "length": str(12 * 3 * 4)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize("how", ["initializer", "constant"])
@pytest.mark.parametrize("place", ["secret", "../{folder}/secret", "{absolute}"])
def test_an_onnx_file_reads_no_other_file(secret, tmp_path, how, place):
    tensor = outside(place.format(folder=tmp_path.name, absolute=secret))
    path = tiny(tmp_path / "model.onnx", *((tensor,) if how == "initializer" else (None, tensor)))
    for read in (read_onnx, export.load, refuse_external_data):
        with pytest.raises(UserError, match=r"model.onnx keeps tensors in other files"):
            read(path)


def test_an_ordinary_onnx_file_passes(tmp_path):
    weights = numpy_helper.from_array(np.ones((12, 3), np.float32), "w")
    refuse_external_data(tiny(tmp_path / "one.onnx", weights))
    refuse_external_data(tiny(tmp_path / "two.onnx", None, weights))
    assert read_onnx(tmp_path / "two.onnx").layers[0].arrays["kernel"].shape == (12, 3)
    for data in (b"", b"text", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20, b"\x0b\x0c"):
        (tmp_path / "broken.onnx").write_bytes(data)
        with pytest.raises(UserError, match="is not an ONNX file"):
            refuse_external_data(tmp_path / "broken.onnx")


def test_an_onnx_tensor_of_more_numbers_than_the_file_has(tmp_path):
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2**40, 3], raw_data=b"\x00" * 144)
    with pytest.raises(UserError, match=r"a tensor that can't be read"):
        read_onnx(tiny(tmp_path / "model.onnx", weights))


def test_the_server_loads_no_onnx_file_with_tensors_elsewhere(published, secret, tmp_path):
    import shutil

    version = tmp_path / "1"
    shutil.copytree(published, version)
    tiny(version / "model.onnx", outside(secret))
    with pytest.raises(ServingError, match="keeps tensors in other files"):
        OnnxEngine(version)
    with pytest.raises(UserError, match="keeps tensors in other files"):
        export.load(version / "model.onnx")


def test_a_run_whose_card_names_a_file_elsewhere_is_refused(model, tmp_path):
    import json

    from keras_convnets.card import card_of_model

    (tmp_path / "run").mkdir()
    model.save(tmp_path / "other.keras")
    plain = {**card_of_model(model).to_dict(), "weights": {"file": "../other.keras", "sha256": "0" * 64}}
    (tmp_path / "run" / "model.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="must lie beside the card"):
        export.publish(tmp_path / "run", to=tmp_path / "repository")


def test_labels_stay_one_a_line():
    from keras_convnets.export.publishing import one_line

    assert one_line("great\nwhite\r\nshark") == "great white shark" and one_line(" tench ") == " tench "
    assert one_line("") == "" and one_line("a\u2028b") == "a b"


def test_the_package_loads_its_own_files(tmp_path):
    network = keras_convnets.ResNet20(classes=3)
    network.save(tmp_path / "own.keras")
    assert load_keras(tmp_path / "own.keras").built_as == network.built_as


def test_files_that_name_the_modules_of_earlier_versions_are_loaded(tmp_path):
    network = keras_convnets.AlexNet(classes=2, input_shape=(64, 64, 3), include_top=False)
    network.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        for name in new.namelist():
            data = new.read(name)
            if name == "config.json":
                # Layers and the model itself stood at the package's top.
                assert b"keras_convnets.networks.layers" in data and b"keras_convnets.networks.functional" in data
                data = data.replace(b"keras_convnets.networks.layers", b"keras_convnets.layers")
                data = data.replace(b"keras_convnets.networks.functional", b"keras_convnets.network")
                assert b"keras_convnets.networks" not in data
            old.writestr(name, data)
    for load in (keras.saving.load_model, load_keras):
        again = load(tmp_path / "old.keras")
        assert type(again) is type(network) and again.built_as == network.built_as
        assert again.to_json() == network.to_json()
