"""Resize and centre crop: its numbers at the cost of the crop, by the card's kernel, everywhere."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_convnets import export, training
from keras_convnets.card import ModelCard
from keras_convnets.commands.main import main
from keras_convnets.errors import UserError
from keras_convnets.export.samples import gather
from keras_convnets.export.serving import ModelServer
from keras_convnets.images.decoding import MAX_GIF_LEAPS, decode_image
from keras_convnets.images.resizing import apply_view, encoded_views, seen_region
from keras_convnets.images.view import KERNELS, View
from keras_convnets.prediction import view_encoded
from keras_convnets.tensorflow_errors import CALLS, plain_reason, unless_cancelled
from keras_convnets.training.data.splits import FileSplit

SIZES = [(375, 500), (500, 333), (61, 47), (47, 130), (9, 144), (150, 10), (256, 256), (1, 16), (17, 1), (640, 427)]
VIEW = View(256, (224, 224))


def resized_then_cropped(image, resize, crop, kernel="bilinear", antialias=True):
    """The whole image resized as TensorFlow does it, then its centre: what the view is defined by."""
    height_width = tf.cast(tf.shape(image)[:2], tf.float32)
    size = tf.cast(tf.round(height_width * (resize / tf.reduce_min(height_width))), tf.int32)
    resized = tf.image.resize(image, tf.maximum(size, resize), kernel, antialias=antialias)
    top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    cropped = tf.round(resized[top : top + crop[0], left : left + crop[1]])
    return tf.cast(tf.clip_by_value(cropped, 0, 255), tf.uint8).numpy()


@pytest.mark.parametrize("resize, crop", [(256, [224, 224]), (37, [32, 32]), (40, [40, 17])])
def test_the_view_is_the_whole_image_resized_and_cropped(resize, crop):
    rng = np.random.default_rng(0)
    pixels = tf.TensorSpec([None, None, 3], tf.uint8)
    view = View(resize, crop)
    in_graph = tf.function(lambda image: apply_view(image, view), input_signature=[pixels])
    for size in SIZES:
        image = tf.constant(rng.integers(0, 256, (*size, 3), np.uint8))
        assert (in_graph(image).numpy() == resized_then_cropped(image, resize, crop)).all(), size
    assert (apply_view(image, view).numpy() == in_graph(image).numpy()).all()


@pytest.mark.parametrize(
    "view, size, expected",
    [
        (VIEW, (256, 256), (16 / 256, 16 / 256, 240 / 256, 240 / 256)),
        # Resized to 256 by 341, whose centre begins at column 58.
        (VIEW, (375, 500), (16 / 256, 58 / 341, 240 / 256, 282 / 341)),
        (View(40, (40, 17)), (80, 40), (20 / 80, 11 / 40, 60 / 80, 28 / 40)),
        (View.of_size(32, 32), (32, 32), (0, 0, 1, 1)),
    ],
)
def test_the_region_of_an_image_that_is_seen(view, size, expected):
    np.testing.assert_allclose(seen_region(tf.constant(size), view), expected, atol=1e-7)


def test_the_view_of_photographs_has_the_same_numbers(real_data):
    paths = [str(path) for path in sorted((real_data / "imagenet_samples").glob("*.JPEG"))[::4]]
    images = tf.data.Dataset.from_tensor_slices(paths).map(lambda path: decode_image(tf.io.read_file(path)))
    for image, view in tf.data.Dataset.zip(images, images.map(lambda image: apply_view(image, VIEW))):
        assert (view.numpy() == resized_then_cropped(image, 256, [224, 224])).all()


def along(image, resize, crop):
    """Resample the longer side of a strip of equal rows by the formula in float64: [crop, 3]."""
    line = np.asarray(image).max(axis=int(np.argmin(image.shape[:2]))).astype(np.float64)
    side, shorter = max(image.shape[:2]), min(image.shape[:2])
    scaled = int(np.round(side * resize / shorter))
    scale = scaled / side
    centres = ((scaled - crop) // 2 + np.arange(crop) + 0.5) / scale - 0.5
    widened = max(1 / scale, 1.0)
    near = np.floor(centres)[:, None].astype(int) + np.arange(-int(widened) - 2, int(widened) + 3)
    weights = np.maximum(1 - np.abs(near - centres[:, None]) / widened, 0) * ((near >= 0) & (near < side))
    weights /= weights.sum(1, keepdims=True)
    return (line[np.clip(near, 0, side - 1)] * weights[..., None]).sum(1)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (2, 30_000), (9000, 300), (1, 9_000_001)])
def test_far_from_the_first_pixel_the_place_is_right(size):
    # 9,000,001 pixels become more than an int32 counts.
    values = np.random.default_rng(1).integers(0, 256, (max(size), 3), np.uint8)
    image = np.broadcast_to(values[:, None] if size[0] > size[1] else values[None], (*size, 3))
    got = apply_view(tf.constant(image), VIEW).numpy().astype(float)
    got = got[:, 0] if size[0] > size[1] else got[0]
    assert np.abs(got - along(image, 256, 224)).max() < 0.51


NARROW = """
import json, resource, sys
import numpy as np, tensorflow as tf
{use}
def everywhere(height, width):
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    use(image, tf.io.encode_png(image))
everywhere(300, 400)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size in ((1, 1200), (1, 60000), (60000, 1), (2, 30000)):
    everywhere(*size)
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""


SERVED = """
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
def use(image, png):
    assert np.isfinite(serve(image_bytes=tf.stack([png, png]))["probabilities"]).all()
"""
CROPPED = """
from keras_convnets.images.resizing import apply_view
from keras_convnets.images.view import View
from keras_convnets.training.random_crops import random_area_crop, random_scale_crop, random_square_crop
seed, crops = tf.constant([1, 2], tf.int64), (random_area_crop, random_scale_crop, random_square_crop)
def use(image, png):
    assert apply_view(tf.constant(image), View(256, (224, 224))).shape == (224, 224, 3)
    for crop in crops:
        assert crop(png, seed, 224).shape == (224, 224, 3)
"""


@pytest.mark.parametrize("use", [SERVED, pytest.param(CROPPED, marks=pytest.mark.heavy)], ids=["served", "cropped"])
def test_narrow_images_cost_little_memory_everywhere(photograph_version, tmp_path, run_python, use):
    (tmp_path / "narrow.py").write_text(NARROW.replace("{use}", use))
    done = run_python(str(tmp_path / "narrow.py"), str(photograph_version), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) < 100


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("antialias", [True, False])
def test_every_kernel_is_tensorflows(kernel, antialias):
    rng, view = np.random.default_rng(2), View(40, (32, 24), kernel, antialias)
    for size in ((60, 80), (131, 47), (21, 30)):
        image = tf.constant(rng.integers(0, 256, (*size, 3), np.uint8))
        expected = resized_then_cropped(image, 40, [32, 24], kernel, antialias).astype(int)
        differences = np.abs(apply_view(image, view).numpy() - expected)
        # TensorFlow's cubic without antialiasing takes weights from a table; means of few pixels often end in a half.
        assert differences.max() <= 1 and (differences > 0).mean() < 0.1


def test_an_input_that_is_not_square_is_covered():
    image = np.tile(np.arange(0, 240, 15, dtype=np.uint8)[None, :, None], (8, 1, 3))
    view = apply_view(tf.constant(image), View(8, (12, 8))).numpy()
    # The height of 8 becomes 12, and 8 of 24 columns are kept.
    expected = tf.image.resize(image, [12, 24], antialias=True)[:, 8:16]
    assert (view == np.round(expected)).all()


@pytest.mark.parametrize("change, sentence", [
    ({"kernel": "lanczos3"}, "kernel 'lanczos3'; images are resampled by one of bilinear, area, nearest, bicubic"),
    ({"kernel": ["bilinear"]}, "kernel"),
    ({"antialias": "no"}, "antialias 'no'; it is true or false"),
    ({"crop": [32]}, "needs a length and"),
    ({"resize": 0}, "needs a length and"),
])  # fmt: skip
def test_a_view_that_can_not_be_applied_is_refused(photograph_run, change, sentence, tmp_path):
    card = json.loads((photograph_run / "model.json").read_text())
    card["view"] |= change
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=sentence):
        ModelCard.read(tmp_path)
    with pytest.raises(UserError, match=sentence):
        View.from_dict(card["view"])


def test_a_views_json_is_that_of_earlier_versions():
    plain = {"name": "center", "resize": 256, "crop": [224, 160], "kernel": "bilinear"}
    assert View(256, (224, 160)).to_dict() == plain and list(View(256, (224, 160)).to_dict()) == list(plain)
    assert View(256, (224, 160), "area", False).to_dict() == {**plain, "kernel": "area", "antialias": False}
    for view in (View(256, (224, 160)), View(8, (8, 8), "area", False)):
        assert View.from_dict(json.loads(json.dumps(view.to_dict()))) == view
    # Written by hand, or before kernels were stated.
    assert View.from_dict({"name": "center", "resize": 256, "crop": [224, 160]}) == View(256, (224, 160))
    assert View.from_dict({**plain, "antialias": True}) == View(256, (224, 160))


def test_a_view_holds_pythons_numbers():
    view = View.of_size(np.int64(12), np.int32(8), np.int64(16))
    assert view == View(16, (12, 8)) and json.dumps(view.to_dict())
    assert (View.of_size(12, 8).resize, View.of_imagenet(12, 8).resize, View.of_imagenet(299, 8).resize) == (
        8,
        256,
        299,
    )
    for sizes in ((True, (8, 8)), (8.0, (8, 8)), (8, (8, 8, 3)), (8, "88")):
        with pytest.raises(UserError, match="needs a length and"):
            View(*sizes)


def test_the_cards_kernel_is_applied_everywhere(photograph_folder, photograph_run):
    paths = sorted((photograph_folder / "train" / "china").glob("*.jpg"))[:3]
    encoded = [path.read_bytes() for path in paths]
    card = ModelCard.read(photograph_run)
    plain = view_encoded(encoded, card)
    card = dataclasses.replace(card, view=dataclasses.replace(card.view, kernel="nearest"))
    views = view_encoded(encoded, card)
    assert (views != plain).mean() > 0.3
    assert (FileSplit(paths, np.zeros(3, int)).at_size(card.view, 1 << 30).images == views).all()
    # What is inside a SavedModel, and what the engine over ONNX Runtime calls.
    assert (encoded_views(card.view)(tf.constant(encoded)).numpy() == views).all()


def test_a_cancelled_call_is_made_again_but_not_for_ever():
    calls = []

    def cancelled(times):
        calls.append(times)
        if len(calls) <= times:
            raise tf.errors.CancelledError(None, None, "Loop execution was cancelled.")
        return len(calls)

    assert unless_cancelled(lambda: cancelled(2)) == 3
    calls.clear()
    with pytest.raises(tf.errors.CancelledError):
        unless_cancelled(lambda: cancelled(CALLS))
    assert len(calls) == CALLS


def gif(side: int = 20, frames: int = 1) -> bytes:
    rng, file = np.random.default_rng(3), io.BytesIO()
    first, *more = (Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)) for _ in range(frames))
    first.save(file, "GIF", save_all=frames > 1, append_images=more)
    return file.getvalue()


def test_a_gifs_first_frame_is_found_among_blocks_of_any_length():
    plain, large = gif(), gif(300, frames=2)
    descriptor = plain.index(b",\0\0\0\0")
    comment = b"!\xfe" + b"\x01a" * 5000 + b"\x03abc\xffb" + b"b" * 254 + b"\0"
    for data in (plain, large, plain[:descriptor] + 3 * comment + plain[descriptor:]):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert (decode_image(tf.constant(data)).numpy() == expected).all()


def test_a_gif_that_takes_long_to_look_through_is_refused():
    plain = gif()
    descriptor = plain.index(b",\0\0\0\0")
    before, data_at = plain[:descriptor], descriptor + 11
    many_extensions = before + b"!\xfe\x01a\0" * (MAX_GIF_LEAPS + 1) + plain[descriptor:]
    decode = tf.function(decode_image, input_signature=[tf.TensorSpec([], tf.string)])
    for data in (
        many_extensions,
        before + b"!\xfe" + b"\x01a" * 1_000_000 + b"\0" + plain[descriptor:],
        plain[:data_at] + b"\x01\x01" * 1_000_000 + b"\0;",
        plain[:-30],
        before + b";",
    ):
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            decode(tf.constant(data))
        assert plain_reason(caught.value).startswith(("the GIF's first frame is not whole", "the image has"))


def test_a_run_keeps_its_samples_as_the_data_hold_them(photograph_folder, photograph_run, tmp_path):
    kept = sorted((photograph_run / "samples").glob("*/*"))
    originals = {path.read_bytes(): path.parent.name for path in (photograph_folder / "train").glob("*/*.jpg")}
    assert len(kept) == 5 and {path.suffix for path in kept} == {".jpg"}
    assert all(originals[path.read_bytes()] == path.parent.name for path in kept)
    # What is exported is checked with what evaluation sees.
    card = ModelCard.read(photograph_run)
    samples = gather(card, photograph_run)
    data = training.load_dataset(photograph_folder).with_holdout(6).in_view(card.view)
    held = {image.tobytes() for image in data.split("holdout").images}
    assert {image.tobytes() for image in view_encoded(samples.encoded, card)} <= held
    # Of arrays, a PNG of the stored pixels.
    digits = training.load_dataset("digits")
    training.Run(tmp_path).save_samples(digits.at_size(32, 32))
    pngs, stored = sorted((tmp_path / "samples").glob("*/*.png")), digits.split("test").images
    assert len(pngs) == 100 and {path.parent.name for path in pngs} == set(digits.class_names)
    assert all((np.asarray(Image.open(path)) == stored[int(path.stem)]).all() for path in pngs)


@pytest.fixture(scope="module")
def server(photograph_version):
    with ModelServer({"scenes": photograph_version.parent}, port=0, rest_api_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def foreign(photograph_folder, tmp_path_factory) -> Path:
    """A folder of one level with the classes of `photograph_folder`, 10 images."""
    folder = tmp_path_factory.mktemp("foreign") / "elsewhere"
    for name in ("china", "flower"):
        (folder / name).mkdir(parents=True)
        for path in sorted((photograph_folder / "train" / name).glob("*.jpg"))[:5]:
            shutil.copy(path, folder / name)
    return folder


def evaluated(capsys, *arguments) -> dict:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return next(iter(json.loads(capsys.readouterr().out).values()))


def test_a_foreign_folder_of_one_level_is_measured_whole(foreign, photograph_run, tmp_path, capsys, caplog):
    assert main(["evaluate", str(photograph_run), "--dataset", str(foreign)]) == 0
    assert "elsewhere/all/center, n=10 of 10 images" in capsys.readouterr().out and not caplog.records
    result = evaluated(capsys, photograph_run, "--dataset", foreign, "--split", "train")
    assert (result["split"], result["n"], result["of"]) == ("train", 8, 10)
    # By its name, this may be what was trained on.
    own = shutil.copytree(foreign, tmp_path / "scenes")
    result = evaluated(capsys, photograph_run, "--dataset", own)
    assert (result["split"], result["n"], result["of"]) == ("test", 2, 10)
    assert "every 5th image of each class" in caplog.text and "--split all" in caplog.text


def test_an_endpoint_is_measured_as_the_version_that_it_serves(
    foreign, photograph_version, server, capsys, monkeypatch
):
    sent = []
    predict = export.Client.predict

    def noting(client, images, **more):
        sent.append((images, predict(client, images, **more)))
        return sent[-1][1]

    monkeypatch.setattr(export.Client, "predict", noting)
    arguments = ("--dataset", foreign, "--split", "all", "--batch_size", "4")
    local = evaluated(capsys, photograph_version, *arguments)
    for url in (
        f"http://127.0.0.1:{server.rest_api_port}/v1/models/scenes",
        f"grpc://127.0.0.1:{server.port}/scenes",
    ):
        sent.clear()
        assert evaluated(capsys, url, *arguments) == local
        images = [image for batch, _ in sent[1:] for image in batch]
        assert images == [path.read_bytes() for path in sorted(foreign.glob("*/*.jpg"))]
        answers = np.concatenate([answer for _, answer in sent[1:]])
        # Batches of another size: sums in another order, in float32.
        np.testing.assert_allclose(answers, export.load(photograph_version).predict(images), atol=1e-5)


def test_an_endpoint_of_other_classes_is_refused(foreign, server, tmp_path, capsys):
    renamed = shutil.copytree(foreign, tmp_path / "renamed")
    (renamed / "flower").rename(renamed / "tower")
    swapped = shutil.copytree(foreign, tmp_path / "swapped")
    (swapped / "flower").rename(swapped / "a flower")
    more = shutil.copytree(foreign, tmp_path / "more")
    shutil.copytree(more / "china", more / "third")
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/scenes"
    for folder, sentence in (
        (renamed, "has the class 'flower', which is not among those expected (china, tower)"),
        (swapped, "has the class 'flower', which is not among those expected (a flower, china)"),
        (more, "has 2 classes and 3 are expected"),
    ):
        assert main(["evaluate", url, "--dataset", str(folder)]) == 2
        assert sentence in capsys.readouterr().err
    with export.Client(url) as client:
        images = [path.read_bytes() for path in sorted(foreign.glob("*/*.jpg"))]
        assert client.check_classes(("china", "flower"), images)
        with pytest.raises(UserError, match="at another index"):
            client.check_classes(("flower", "china"), images)


def test_requests_are_bounded_in_bytes():
    from keras_convnets.export.client import BATCH_BYTES, _batches

    images = [bytes(size) for size in (1, BATCH_BYTES + 1, 1, BATCH_BYTES - 1, 1, 1)]
    assert [len(batch) for batch in _batches(images, 3)] == [1, 1, 2, 2]
    assert [image for batch in _batches(images, 3) for image in batch] == images
