"""The SavedModel: its signatures, what they decode, what they refuse, and what it takes to load it."""

from __future__ import annotations

import functools
import io
import json
import struct
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image
from sklearn import datasets
from tensorflow.core.protobuf import saved_model_pb2

from keras_convnets import CIFARPlainNet, ResNet18
from keras_convnets.card import card_of_model
from keras_convnets.export.folding import inference_network
from keras_convnets.export.formats import saved_model
from keras_convnets.export.formats.saved_model import write_saved_model
from keras_convnets.images.decoding import MAX_PIXELS, decode_image
from keras_convnets.networks.class_activation import pooled_maps
from keras_convnets.prediction import view_encoded

# Sums in another order, in float32; the bound the exporter holds itself to.
TOLERANCE = 1e-5
SIDE = 64
PHOTOGRAPHS = [path.read_bytes() for path in sorted((Path(datasets.__file__).parent / "images").glob("*.jpg"))]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    model = ResNet18(input_shape=(SIDE, SIDE, 3), classes=7)
    kernel = model.get_layer("predictions").kernel
    kernel.assign(keras.random.normal(kernel.shape, stddev=0.5, seed=2))
    return model


@pytest.fixture(scope="module")
def card(model):
    return card_of_model(model, tuple("abcdefg"))


@pytest.fixture(scope="module")
def folder(model, card, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved_model") / "1"
    write_saved_model(inference_network(model), card, folder)
    return folder


@pytest.fixture(scope="module")
def signatures(folder):
    loaded = tf.saved_model.load(str(folder))
    yield loaded.signatures
    del loaded  # the signatures do not keep the weights alive


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photograph(mode: str = "RGB", size: tuple[int, int] = (90, 60)) -> Image.Image:
    return Image.open(io.BytesIO(PHOTOGRAPHS[0])).resize(size).convert(mode)


def test_a_network_of_very_many_weights_keeps_them_in_one_variable(monkeypatch, tmp_path):
    model = CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)
    kernel = model.get_layer("predictions").kernel
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    logits = keras.Model(model.input, model.get_layer("predictions").output)(images)
    kernel.assign(kernel / np.abs(logits).max())  # saturated probabilities would not show the weights
    network, card = inference_network(model), card_of_model(model)
    expected = network(images)["probabilities"]
    assert 0.4 < np.max(expected) < 0.9
    maps = []
    for most, count in ((len(network.weights), len(network.weights)), (len(network.weights) - 1, 1)):
        monkeypatch.setattr(saved_model, "MOST_VARIABLES", most)
        write_saved_model(network, card, tmp_path / str(count))
        loaded = tf.saved_model.load(str(tmp_path / str(count)))
        assert len(loaded.weights) == count
        got = loaded.signatures["predict_images"](images=tf.constant(images))["probabilities"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
        encoded = tf.stack([tf.io.encode_png(image) for image in images])
        maps.append(loaded.signatures["cam"](image_bytes=encoded)["maps"].numpy())
    assert np.ptp(maps[0]) > 0.1
    np.testing.assert_allclose(maps[1], maps[0], rtol=0, atol=TOLERANCE * np.abs(maps[0]).max())


SAVED_MODEL_CLI = """
import sys
from tensorflow.python.tools.saved_model_cli import main
for arguments in (sys.argv[1].split("|"), sys.argv[2].split("|")):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    print("=====")
"""


@pytest.mark.heavy  # test_publishing.py shows the names without TensorFlow's tool
def test_saved_model_cli_shows_our_names_and_runs(folder, tmp_path, run_python):
    np.save(tmp_path / "images.npy", np.zeros((2, SIDE, SIDE, 3), np.uint8))
    show = ["show", "--dir", str(folder), "--all"]
    run = ["run", "--dir", str(folder), "--tag_set", "serve", "--signature_def", "predict_images"]
    run += ["--inputs", f"images={tmp_path / 'images.npy'}", "--outdir", str(tmp_path)]
    done = run_python("-c", SAVED_MODEL_CLI, "|".join(show), "|".join(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown, ran, _ = done.stdout.split("=====")
    found, signature = {}, None
    for line in shown.split("The MetaGraph")[0].splitlines():
        if line.startswith("signature_def["):
            signature = found.setdefault(line.split("'")[1], [])
        elif line.strip().startswith(("inputs['", "outputs['")):
            signature.append(line.split("'")[1])
        elif "dtype" in line or "shape" in line:
            signature.append(line.split(": ")[1])
    found.pop("__saved_model_init_op")
    encoded, scores = ["image_bytes", "DT_STRING", "(-1)"], ["scores", "DT_FLOAT", "(-1, 5)"]
    classes, probabilities = ["classes", "DT_STRING", "(-1, 5)"], ["probabilities", "DT_FLOAT", "(-1, 7)"]
    assert found == {
        "serving_default": [*encoded, *probabilities],
        "predict_images": ["images", "DT_UINT8", f"(-1, {SIDE}, {SIDE}, 3)", *probabilities],
        "top_k": [*encoded, *classes, *scores],
        "classify": ["inputs", "DT_STRING", "(-1)", *classes, *scores],
        "features": [*encoded, "features", "DT_FLOAT", "(-1, 512)"],
        "cam": [*encoded, *classes, "maps", "DT_FLOAT", "(-1, 5, 2, 2)", "region", "DT_FLOAT", "(-1, 4)", *scores],
    }
    assert "Result for output key probabilities" in ran
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy").sum(axis=1), 1, atol=1e-5)


def test_all_signatures_give_keras_numbers_on_photographs(signatures, model, card):
    for encoded in (PHOTOGRAPHS[:1], [*PHOTOGRAPHS, encode(photograph("L", (SIDE, 99)), "PNG")]):
        images, data = view_encoded(encoded, card), tf.constant(encoded)
        expected = model(images, training=False).numpy()
        assert np.ptp(expected) > 0.01  # classes differ, so the comparison can fail
        by_images = signatures["predict_images"](images=tf.constant(images))["probabilities"]
        by_bytes = signatures["serving_default"](image_bytes=data)
        assert list(by_bytes) == ["probabilities"]
        for got in (by_images, by_bytes["probabilities"]):
            np.testing.assert_allclose(got, expected, atol=TOLERANCE)
        examples = tf.constant([tf_example("image/encoded", image) for image in encoded])
        order = np.argsort(-by_bytes["probabilities"].numpy(), axis=1, kind="stable")[:, :5]
        for named in (signatures["top_k"](image_bytes=data), signatures["classify"](inputs=examples)):
            assert named["classes"].numpy().astype(str).tolist() == np.array(list("abcdefg"))[order].tolist()
            np.testing.assert_allclose(named["scores"], np.take_along_axis(expected, order, 1), atol=TOLERANCE)
        features = signatures["features"](image_bytes=data)["features"]
        before = keras.Model(model.input, model.get_layer("predictions").input)(images, training=False)
        # Sums in another order, in float32, of terms as large as the largest feature.
        np.testing.assert_allclose(features, before, rtol=1e-3, atol=1e-6 * np.abs(before).max())


def test_class_activation_maps_are_numpys_and_average_to_the_scores(signatures, model, card):
    encoded = [*PHOTOGRAPHS, encode(photograph(size=(40, 90)), "PNG")]
    got = {name: value.numpy() for name, value in signatures["cam"](image_bytes=tf.constant(encoded)).items()}
    named = signatures["top_k"](image_bytes=tf.constant(encoded))
    assert (got["classes"] == named["classes"].numpy()).all() and (got["scores"] == named["scores"].numpy()).all()
    maps_of = keras.Model(model.input, model.get_layer("avg_pool").input)
    maps = keras.ops.convert_to_numpy(maps_of(view_encoded(encoded, card), training=False)).astype(np.float64)
    kernel, bias = (array.astype(np.float64) for array in model.get_layer("predictions").get_weights())
    indices = np.array([["abcdefg".index(name.decode()) for name in row] for row in got["classes"]])
    expected = np.moveaxis(np.take_along_axis(maps @ kernel, indices[:, None, None], -1), -1, 1)
    # Sums of 512 terms in another order, in float32, through a folded network.
    np.testing.assert_allclose(got["maps"], expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    means = maps.mean((1, 2)) @ kernel + bias
    scores = got["maps"].mean((2, 3)) + bias[indices]
    np.testing.assert_allclose(scores, np.take_along_axis(means, indices, 1), rtol=0, atol=2e-5 * np.abs(means).max())
    assert (indices[:, 0] == means.argmax(1)).all()
    # The photographs are 640 wide and 427 high: at a shorter side of 64 they are 96 wide. The last is 64 by 144.
    wide, high = [0, 16 / 96, 1, 80 / 96], [40 / 144, 0, 104 / 144, 1]
    np.testing.assert_allclose(got["region"], [*[wide] * len(PHOTOGRAPHS), high], atol=1e-7)


def test_an_image_gives_the_same_in_any_batch(signatures):
    views = signatures["serving_default"]
    data = [*PHOTOGRAPHS, encode(photograph("L"), "PNG"), encode(photograph("P"), "GIF"), encode(photograph(), "BMP")]
    together = views(image_bytes=tf.constant(data))["probabilities"]
    alone = tf.concat([views(image_bytes=tf.constant([one]))["probabilities"] for one in data], 0)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_images_of_a_batch_do_not_wait_for_each_other(folder):
    """A loop whose body has side effects takes one image after the other."""
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    loops = {node.op for function in saved.meta_graphs[0].graph_def.library.function for node in function.node_def}
    assert "StatelessWhile" in loops and "While" not in loops


def tf_example(name: str, data: bytes) -> bytes:
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
    return tf.train.Example(features=tf.train.Features(feature={name: feature})).SerializeToString()


def test_an_example_without_an_image_is_refused(signatures):
    examples = [tf_example("image/encoded", PHOTOGRAPHS[0]), tf_example("image", PHOTOGRAPHS[0])]
    with pytest.raises(tf.errors.InvalidArgumentError, match="image/encoded.* is required but could not be found"):
        signatures["classify"](inputs=tf.constant(examples))


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.asarray(photograph("L")).astype(np.uint16) * 257)


def ycck() -> bytes:
    """Return a JPEG whose first three components are YCbCr of the CMY ones, as Photoshop writes it."""
    *cmy, black = photograph("CMYK").split()
    components = Image.merge("RGB", cmy).convert("YCbCr").split()
    inverted = [Image.eval(component, lambda value: 255 - value) for component in components]
    encoded = encode(Image.merge("CMYK", (*inverted, black)), "JPEG", quality=95)
    at = encoded.index(b"Adobe") + 11
    return encoded[:at] + b"\2" + encoded[at + 1 :]


def animated() -> bytes:
    return encode(photograph("P"), "GIF", save_all=True, append_images=[photograph("L").convert("P")] * 3)


def bit_fields() -> bytes:
    plain = encode(photograph("RGBA"), "BMP")
    header = bytearray(plain[:54])
    struct.pack_into("<I", header, 10, 66)
    struct.pack_into("<I", header, 30, 3)
    return bytes(header) + struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF) + plain[54:]


def test_cmyk_is_neither_inverted_nor_tinted():
    for encoded in (encode(photograph("CMYK"), "JPEG", quality=95), ycck()):
        difference = np.abs(decode_image(tf.constant(encoded)).numpy().astype(int) - np.asarray(photograph(), int))
        assert difference.mean() < 8


KINDS = {
    "baseline JPEG": lambda: encode(photograph(), "JPEG"),
    "progressive JPEG": lambda: encode(photograph(), "JPEG", progressive=True),
    "greyscale JPEG": lambda: encode(photograph("L"), "JPEG"),
    "CMYK JPEG": lambda: encode(photograph("CMYK"), "JPEG"),
    "YCCK JPEG": ycck,
    "PNG": lambda: encode(photograph(), "PNG"),
    "PNG with alpha": lambda: encode(photograph("RGBA"), "PNG"),
    "greyscale PNG": lambda: encode(photograph("L"), "PNG"),
    "greyscale PNG with alpha": lambda: encode(photograph("LA"), "PNG"),
    "palette PNG": lambda: encode(photograph("P"), "PNG"),
    "palette PNG with transparency": lambda: encode(photograph("P"), "PNG", transparency=3),
    "bilevel PNG": lambda: encode(photograph("1"), "PNG"),
    "16-bit PNG": lambda: encode(sixteen_bits(), "PNG"),
    "GIF": lambda: encode(photograph("P"), "GIF"),
    "interlaced GIF with comment": lambda: encode(photograph("P"), "GIF", interlace=1, comment=b"!," * 300),
    "animated GIF": animated,
    "BMP": lambda: encode(photograph(), "BMP"),
    "BMP with alpha": lambda: encode(photograph("RGBA"), "BMP"),
    "BMP with bit fields": bit_fields,
    "greyscale BMP": lambda: encode(photograph("L"), "BMP"),
    "palette BMP": lambda: encode(photograph("P"), "BMP"),
}


def test_every_kind_of_image_is_decoded_as_by_pillow_eagerly_and_in_a_pipeline():
    encoded = [make() for make in KINDS.values()]
    for kind, data, piped in zip(
        KINDS, encoded, tf.data.Dataset.from_tensor_slices(encoded).map(decode_image), strict=True
    ):
        # Pillow cuts 16-bit greyscale at 255, which is no reference.
        pillow = photograph("L") if kind == "16-bit PNG" else Image.open(io.BytesIO(data))
        for image in (decode_image(tf.constant(data)), piped):
            difference = np.abs(image.numpy().astype(int) - np.asarray(pillow.convert("RGB"), int))
            assert difference.max() <= (2 if "JPEG" in kind else 0), kind


def test_every_kind_of_image_is_served(signatures, card):
    encoded = [make() for make in KINDS.values()]
    served = signatures["serving_default"](image_bytes=tf.constant(encoded))["probabilities"]
    viewed = signatures["predict_images"](images=tf.constant(view_encoded(encoded, card)))["probabilities"]
    np.testing.assert_allclose(served, viewed, atol=TOLERANCE)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(tf.constant(encode(photograph(), "JPEG", exif=exif))).shape == (60, 90, 3)


@functools.cache
def png_bomb(side: int) -> bytes:
    """Return a bilevel PNG of side x side zeros, some hundred kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def with_size(encoded: bytes, at: int, size: bytes) -> bytes:
    return encoded[:at] + size + encoded[at + len(size) :]


def oversized() -> dict[str, bytes]:
    jpeg, gif = encode(photograph(), "JPEG"), encode(photograph("P"), "GIF")
    frame = with_size(gif, gif.index(b",\0\0\0\0") + 5, struct.pack("<2H", 30000, 30000))
    return {
        "PNG": png_bomb(30000),
        "JPEG": with_size(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">2H", 30000, 30000)),
        "GIF": with_size(gif, 6, struct.pack("<2H", 30000, 30000)),
        "GIF frame": frame,
        "BMP": with_size(encode(photograph(), "BMP"), 18, struct.pack("<2i", 30000, -30000)),
    }


def test_too_many_pixels_are_refused_everywhere(signatures):
    images = oversized()
    piped = iter(tf.data.Dataset.from_tensor_slices(list(images.values())).map(decode_image))
    for kind, encoded in images.items():
        sentence = f"30000 x -?30000 pixels; at most {MAX_PIXELS} are decoded"
        with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
            decode_image(tf.constant(encoded))
        with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
            signatures["serving_default"](image_bytes=tf.constant([PHOTOGRAPHS[0], encoded]))
        with pytest.raises(tf.errors.InvalidArgumentError, match=sentence):
            next(piped)
        assert len(encoded) < 200_000, kind


@pytest.mark.parametrize("data", [b"", b"no image", b"GIF89a", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"])
def test_damaged_and_unknown_files_are_refused(signatures, data):
    for encoded in (data, data + b"\1" * 40):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode_image(tf.constant(encoded))
        with pytest.raises(tf.errors.InvalidArgumentError):
            signatures["serving_default"](image_bytes=tf.constant([encoded]))


REFUSING = """
import json, resource, sys, time
# TensorFlow imports Keras by itself where there is one: here there is none.
sys.modules["keras"] = sys.modules["keras_convnets"] = None
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
data = open(sys.argv[2], "rb").read()
serve = loaded.signatures["serving_default"]
serve(image_bytes=tf.constant([open(sys.argv[3], "rb").read()]))
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    serve(image_bytes=tf.constant([data] * 8))
except tf.errors.InvalidArgumentError as error:
    message = error.message
seconds = time.perf_counter() - start
memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"message": message, "seconds": seconds, "megabytes": memory}))
"""


def test_a_bare_process_serves_and_refuses_a_bomb_at_once(folder, tmp_path, run_python):
    bomb, image = tmp_path / "bomb.png", tmp_path / "image.jpg"
    bomb.write_bytes(png_bomb(30000))
    image.write_bytes(PHOTOGRAPHS[0])
    process = run_python("-c", REFUSING, str(folder), str(bomb), str(image), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert f"at most {MAX_PIXELS}" in result["message"]
    assert result["seconds"] < 2 and result["megabytes"] < 200  # decoded they are 8 times 2.7 GB
    assert "WARNING:tensorflow" not in process.stderr


def test_the_weights_are_stored_once(folder, model):
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 1.3 * model.count_params() * 4
    assert (folder / "variables").is_dir()


@pytest.mark.parametrize("pool", [layers.Flatten, layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D])
def test_class_activation_maps_are_those_of_global_average_pooling(pool):
    images = keras.Input([8, 8, 3], name="images")
    x = pool()(layers.Conv2D(4, 3, activation="relu")(images))
    network = inference_network(keras.Model(images, layers.Dense(3, activation="softmax")(x)))
    assert (pooled_maps(network) is not None) == (pool is layers.GlobalAveragePooling2D)


def test_a_network_without_features_has_no_such_signature(tmp_path):
    model = CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)
    network = keras.Model(model.input, {"probabilities": model.output})
    write_saved_model(network, card_of_model(model), tmp_path / "1")
    signatures = tf.saved_model.load(str(tmp_path / "1")).signatures
    assert "features" not in signatures
    assert signatures["top_k"].structured_outputs["scores"].shape == (None, 3)
