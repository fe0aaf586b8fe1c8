"""Export: equal numbers in every runtime, all or nothing in the repository."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from memory import peak_of

from keras_convnets import CIFARPlainNet, CIFARResNet, ResNet1202, export, model_info, training
from keras_convnets.errors import UserError
from keras_convnets.export import formats, model_config
from keras_convnets.export.formats.format import Artifact
from keras_convnets.networks.graph import leaves

# Sums in another order, in float32; the same bound the exporter holds itself to.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def digits():
    return training.load_dataset("digits").splits["test"].images


def test_all_runtimes_give_keras_numbers_on_real_images(published, trained_run, digits):
    images = digits[:99]
    expected = keras.saving.load_model(trained_run / "best.keras").predict(images, verbose=0)
    loaded = tf.saved_model.load(str(published))
    by_images = loaded.signatures["predict_images"](images=tf.constant(images))
    encoded = tf.stack([tf.io.encode_png(image) for image in images])
    by_bytes = loaded.signatures["serving_default"](image_bytes=encoded)
    session = onnxruntime.InferenceSession(str(published / "model.onnx"))
    by_onnx = session.run(None, {"images": images.astype(np.float32)})[0]
    one_by_one = np.concatenate(
        [session.run(None, {"images": image[None].astype(np.float32)})[0] for image in images[:5]]
    )
    for got in (by_images["probabilities"].numpy(), by_bytes["probabilities"].numpy(), by_onnx):
        assert np.abs(got - expected).max() <= TOLERANCE
    assert np.abs(one_by_one - expected[:5]).max() <= TOLERANCE
    assert expected.max() > 0.9  # the network is sure of something, so the comparison can fail


def test_signatures_have_our_names(published):
    signatures = tf.saved_model.load(str(published)).signatures
    names = {
        name: (set(signature.structured_input_signature[1]), set(signature.structured_outputs))
        for name, signature in signatures.items()
        if not name.startswith("__")
    }
    assert names == {
        "serving_default": ({"image_bytes"}, {"probabilities"}),
        "predict_images": ({"images"}, {"probabilities"}),
        "top_k": ({"image_bytes"}, {"classes", "scores"}),
        "classify": ({"inputs"}, {"classes", "scores"}),
        "features": ({"image_bytes"}, {"features"}),
        "cam": ({"image_bytes"}, {"classes", "scores", "maps", "region"}),
    }
    assert signatures["predict_images"].structured_input_signature[1]["images"].dtype == tf.uint8


def test_top_k_names_the_likeliest(published, digits):
    signatures = tf.saved_model.load(str(published)).signatures
    encoded = tf.stack([tf.io.encode_png(image) for image in digits[:20]])
    probabilities = signatures["serving_default"](image_bytes=encoded)["probabilities"].numpy()
    named = signatures["top_k"](image_bytes=encoded)
    order = np.argsort(-probabilities, axis=1)[:, :5]
    assert named["classes"].numpy().astype(str).tolist() == order.astype(str).tolist()
    np.testing.assert_allclose(named["scores"].numpy(), np.take_along_axis(probabilities, order, 1), rtol=1e-6)


def test_the_onnx_file_is_plain(published):
    model = onnx.load(published / "model.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Conv"] == 19 and counts["BatchNormalization"] == 0
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx.ml"}
    (images,), (probabilities,) = model.graph.input, model.graph.output
    shape = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, shape) == ("images", ["batch", 8, 8, 3])
    assert probabilities.name == "probabilities"
    facts = {item.key: json.loads(item.value) for item in model.metadata_props}
    assert facts["class_names"] == list("0123456789")


def test_the_version_holds_card_and_labels(published):
    card = json.loads((published / "assets.extra" / "model.json").read_text())
    assert card["trained"] and card["architecture"] == "ResNet20"
    assert max(card["export"]["differences"].values()) <= TOLERANCE
    assert set(card["export"]["tolerances"].values()) == {TOLERANCE}
    assert (published / "assets.extra" / "tf_serving_warmup_requests").stat().st_size > 0
    assert "digits" in model_config.pinned(published.parent.parent)
    assert (published / "assets.extra" / "labels.txt").read_text().split() == list("0123456789")
    assert oct(published.stat().st_mode & 0o777) == "0o755"


def test_a_loaded_export_classifies(published, digits):
    for path in (published, published.parent, published / "model.onnx"):
        classifier = export.load(path)
        (best, probability), *_ = classifier.top_k([tf.io.encode_png(digits[0]).numpy()])[0]
        assert classifier.card.class_names == tuple("0123456789")
        assert best in classifier.card.class_names and 0 < probability <= 1
        assert classifier(digits[:3]).shape == (3, 10)


def test_an_onnx_file_alone_knows_its_classes(published, digits, tmp_path):
    alone = tmp_path / "moved.onnx"
    alone.write_bytes((published / "model.onnx").read_bytes())
    classifier = export.load(alone)
    assert classifier.card.class_names == tuple("0123456789")
    np.testing.assert_allclose(classifier(digits[:4]), export.load(published)(digits[:4]), atol=TOLERANCE)


def test_versions_count_up_and_are_never_overwritten(tmp_path, caplog, verified_here):
    """They begin at 1, as below; an empty name is no name: the model's own is taken."""
    model = CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)
    third = export.publish(model, name="", to=tmp_path, version=3, formats=("saved_model",))
    fourth = export.publish(model, name="plainnet8", to=tmp_path, formats=("saved_model",))
    assert [path.relative_to(tmp_path).as_posix() for path in (third, fourth)] == ["plainnet8/3", "plainnet8/4"]
    assert "is not trained" in caplog.text
    assert json.loads((third / "assets.extra" / "model.json").read_text())["trained"] is False
    before = {path: path.stat().st_mtime_ns for path in third.rglob("*")}
    with pytest.raises(UserError, match=r"plainnet8/3 exists; published versions are never overwritten.*5"):
        export.publish(model, to=tmp_path, version=3)
    assert {path: path.stat().st_mtime_ns for path in third.rglob("*")} == before


@pytest.mark.parametrize("arguments, sentence", [
    ({"name": "../x"}, "model name is '../x'"),
    ({"version": 0}, "version is 0"),
    ({"formats": ("saved_model", "onx")}, "unknown format 'onx'; the nearest valid name is onnx"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_writes_nothing(tmp_path, arguments, sentence):
    model = CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)
    with pytest.raises(UserError, match=sentence):
        export.publish(model, to=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_format_is_a_file_and_a_row():
    """Each module of the folder that holds a format is listed once, behind those whose files its writer reads."""
    folder = Path(formats.__file__).parent
    assert sorted(formats.FORMATS.values()) == sorted(
        path.stem for path in folder.glob("*.py") if "\nFORMAT = " in path.read_text()
    )
    found = dict(zip(formats.FORMATS, formats.all_formats(), strict=True))
    keys = [artifact.key for form in found.values() for artifact in form.artifacts]
    assert len(set(keys)) == len(keys) and formats.VERSION_FORMAT in found
    for place, form in enumerate(found.values()):
        assert set(form.requires) <= set(list(found)[:place])
        assert all(artifact.file.endswith(form.suffix) for artifact in form.artifacts)
        assert bool(form.suffix) == all(artifact.file for artifact in form.artifacts)


def test_the_names_of_formats_need_no_runtime():
    code = (
        "import sys; from keras_convnets.export import formats; from keras_convnets.export.formats import format; "
        "formats.all_formats(); "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'onnx', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_mismatch_publishes_nothing(tmp_path, monkeypatch, verified_here):
    monkeypatch.setattr(Artifact, "tolerance", lambda artifact, trained: -1.0)
    with pytest.raises(RuntimeError, match="differs from Keras by .* nothing is published"):
        export.publish(
            CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3), name="plain", to=tmp_path, formats=("saved_model",)
        )
    assert not list((tmp_path / "plain").iterdir())


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    model = CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)
    kernel = model.get_layer("predictions").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(RuntimeError, match="not finite"):
        export.publish(model, name="plain", to=tmp_path, formats=("saved_model",))
    assert not list((tmp_path / "plain").iterdir())


KILLED = """
import os, signal, sys
from keras_convnets import CIFARPlainNet, export
from keras_convnets.export import publishing
def killing(models, card, folder, *more):
    (folder / "saved_model.pb").write_bytes(b"a graph")
    os.kill(os.getpid(), signal.SIGKILL)
publishing._write_artifacts = killing
network = CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)
export.publish(network, name="plain", to=sys.argv[1], formats=("saved_model",))
"""


def test_a_killed_export_is_not_visible(run_python, tmp_path, verified_here):
    process = run_python("-c", KILLED, str(tmp_path), cwd=tmp_path)
    assert process.returncode == -signal.SIGKILL
    # The remaining folder has a name that neither our server nor TensorFlow Serving takes for a version.
    assert {path.name[0] for path in (tmp_path / "plain").iterdir()} == {"."}
    from keras_convnets.export.repository import versions

    assert versions(tmp_path / "plain") == []
    network = CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)
    assert export.publish(network, name="plain", to=tmp_path, formats=("saved_model",)).name == "1"


def test_a_run_whose_weights_were_changed_is_refused(trained_run, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("model.json", "config.json", "final.keras"):
        os.link(trained_run / name, copy / name)
    with pytest.raises(UserError, match="no best.keras"):
        export.publish(copy, to=tmp_path / "repository")
    (copy / "best.keras").write_bytes((trained_run / "final.keras").read_bytes() + b"x")
    with pytest.raises(UserError, match="its sha256 differs"):
        export.publish(copy, to=tmp_path / "repository")


@pytest.mark.parametrize("depth", [8, pytest.param(110, marks=pytest.mark.heavy)])
def test_photograph_sized_networks_export_and_see_photographs(depth, tmp_path):
    """At 48x64 pixels with scikit-learn's photographs: in-graph decoding, resizing and cropping, and option A.

    Every runtime verifies in a process of its own, as for users.
    """
    keras.utils.set_random_seed(1)
    model = CIFARResNet(depth, classes=4, input_shape=(48, 64, 3))
    # Random statistics, so that folding the batch normalisation can go wrong and be seen.
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.2, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    # Answers that depend on the image: logits in the hundreds give 0 and 1, or pass the bound by rounding alone.
    classifier = model.get_layer("predictions")
    logits = keras.Model(model.inputs, classifier.output)(rng.uniform(0, 255, (4, 48, 64, 3)).astype(np.float32))
    classifier.kernel.assign(classifier.kernel / np.abs(logits).max())
    folder = export.publish(model, name="net", to=tmp_path)
    assert max(export.load(folder).card.export["differences"].values()) <= TOLERANCE
    assert Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)["BatchNormalization"] == 0


@pytest.mark.parametrize(
    "what, sentence", [("nothing", "is not an exported version"), ("x.onnx", "there is no .onnx file")]
)
def test_loading_what_is_no_export_is_refused(tmp_path, what, sentence):
    with pytest.raises(UserError, match=sentence):
        export.load(tmp_path / what)


def test_a_foreign_onnx_file_is_refused(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="only files that keras-convnets export wrote"):
        export.load(tmp_path / "foreign.onnx")
    Path(tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(UserError, match="is not a model that ONNX Runtime loads"):
        export.load(tmp_path / "text.onnx")


FAMILIES = [
    pytest.param("GoogLeNet", 64, {}, {"Conv": 57, "LRN": 2, "Concat": 9}, marks=pytest.mark.heavy),
    pytest.param("ResNet18", 64, {"shortcut": "A"}, {"Conv": 17, "Add": 8}, marks=pytest.mark.heavy),
    pytest.param("ResNet50", 64, {}, {"Conv": 53, "Add": 16}, marks=pytest.mark.heavy),
    pytest.param("PlainNet34", 64, {}, {"Conv": 33}, marks=pytest.mark.heavy),
    pytest.param("AlexNet", 64, {}, {"Conv": 5, "LRN": 2, "MaxPool": 3}, marks=pytest.mark.heavy),
    pytest.param("AlexNetSixConvs", 64, {}, {"Conv": 6, "LRN": 2}, marks=pytest.mark.heavy),
    pytest.param("VGG11", 32, {}, {"Conv": 8, "MaxPool": 5}, marks=pytest.mark.heavy),
]


@pytest.mark.parametrize("name, side, arguments, operators", FAMILIES)
def test_every_family_exports_as_plain_operators(name, side, arguments, operators, tmp_path):
    """One Conv a convolution, the towers of AlexNet as groups, no batch normalisation left."""
    import keras_convnets

    model = keras_convnets.get_model(name, classes=5, input_shape=(side, side, 3), **arguments)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Large variances keep an untrained deep network's answers away from 0 and 1.
            layer.moving_variance.assign(np.random.default_rng(0).uniform(20, 50, layer.moving_variance.shape))
    folder = export.publish(model, name="net", to=tmp_path)
    nodes = onnx.load(folder / "model.onnx").graph.node
    counts = Counter(node.op_type for node in nodes)
    assert {kind: counts[kind] for kind in operators} == operators and counts["BatchNormalization"] == 0
    groups = [a.i for node in nodes if node.op_type == "Conv" for a in node.attribute if a.name == "group"]
    assert [group for group in groups if group > 1] == ([2, 2, 2] if name.startswith("AlexNet") else [])


@pytest.mark.heavy
def test_the_deepest_network_exports(tmp_path):
    """ResNet-1202 is nested; its statistics are those of one batch, as untrained it gives no finite number."""
    model = ResNet1202()
    normalizations = [layer for layer in leaves(model) if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalizations:
        layer.momentum = 0.0
    model(np.random.default_rng(0).uniform(0, 255, (16, 32, 32, 3)).astype(np.float32), training=True)
    folder = export.publish(model, name="deepest", to=tmp_path)
    counts = Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)
    assert counts["Conv"] == 1201 and counts["BatchNormalization"] == 0 and len(normalizations) == 1201


EXPORTING = """
import sys
from keras_convnets import export, get_model
export.publish(get_model(sys.argv[1]), name="net", to=sys.argv[2])
"""


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["AlexNet", "VGG19", "GoogLeNet", "ResNet152"])
def test_memory_of_an_export_is_bounded_by_the_weights(tmp_path, name):
    """Verification included; before, the converter took seventy times the weights."""
    weights = 4 * model_info(name).parameters
    peak = peak_of([sys.executable, "-c", EXPORTING, name, str(tmp_path)])
    assert peak <= 2 * 1024**3 + 4 * weights, peak
