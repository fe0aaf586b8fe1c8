"""Folders of images as people have them: nested, oddly named, of many types, with what systems leave among them."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_convnets.commands import predict
from keras_convnets.commands.main import main
from keras_convnets.display import printable
from keras_convnets.errors import UnreadableImage, UserError
from keras_convnets.export.serving.admission.image_sizes import image_pixels
from keras_convnets.images.decoding import decode_image
from keras_convnets.images.files import find_images
from keras_convnets.tensorflow_errors import plain_reason
from keras_convnets.training.data import load_dataset
from keras_convnets.training.data.folder import holds_one_level, survey
from keras_convnets.training.data.preparation import prepare_folder
from keras_convnets.training.data.verification import verify_folder

COLOURS = {"ants": (200, 0, 0), "bees": (0, 200, 0)}


def write_image(path, colour=(90, 120, 60), size=(24, 16), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def write_classes(folder, count=5):
    for name, colour in COLOURS.items():
        for index in range(count):
            write_image(folder / name / f"{index}.png", colour)


def names(split, folder):
    return [path.relative_to(folder).as_posix() for path in split.paths]


def webp(image=None, **options):
    buffer = io.BytesIO()
    (image or Image.effect_noise((30, 20), 60).convert("RGB")).save(buffer, "WEBP", **options)
    return buffer.getvalue()


def test_images_below_a_class_belong_to_it_and_litter_to_none(tmp_path, caplog):
    write_classes(tmp_path, count=4)
    flat = load_dataset(tmp_path).fingerprint()
    for litter in ("__MACOSX/ants/._0.png", "ants/._1.png", "ants/.DS_Store", "ants/@eaDir/0.png", "bees/Thumbs.db",
                   "bees/.ipynb_checkpoints/0-checkpoint.png", "desktop.ini", "ants/notes.txt"):  # fmt: skip
        (tmp_path / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / litter).write_bytes(b"\0\5\x16\7")
    assert load_dataset(tmp_path).fingerprint() == flat and not caplog.records
    write_image(tmp_path / "ants" / "2020" / "may" / "a.JFIF", format="JPEG")
    write_image(tmp_path / "ants" / "2.jpe" / "x.jif", format="JPEG")
    (tmp_path / "bees" / "round").symlink_to(tmp_path / "bees")
    (tmp_path / "bees" / "again").mkdir()
    (tmp_path / "bees" / "again" / "up").symlink_to(tmp_path)
    data = load_dataset(tmp_path)
    assert data.class_names == ("ants", "bees")
    ants = ["ants/0.png", "ants/1.png", "ants/2.jpe/x.jif", "ants/2.png", "ants/2020/may/a.JFIF", "ants/3.png"]
    # By the bytes of their paths, of which every fifth is tested on. The link up leads into ants too, once.
    linked = survey(tmp_path, undivided=True).splits["all"]
    assert [name for name in names(linked, tmp_path) if name.startswith("ants")] == ants
    assert names(data.splits["test"], tmp_path)[0] == "ants/2020/may/a.JFIF"
    assert len([name for name in names(linked, tmp_path) if name.startswith("bees/again")]) == 6
    assert len(names(linked, tmp_path)) == 6 + 6 + 4
    assert len(find_images([str(tmp_path / "ants")])) == 6


@pytest.mark.parametrize("given, splits", [
    (("Train", "Val"), ("train", "val")), (("training", "VALID"), ("train", "val")),
    (("train", "dev"), ("train", "val")), (("TRAIN", "Testing"), ("train", "test")), (("test",), ("test",)),
    (("train", "Validation"), ("train", "validation")),
])  # fmt: skip
def test_splits_are_named_as_people_name_them(tmp_path, given, splits):
    for name in given:
        write_classes(tmp_path / "data" / name, count=2)
    data = load_dataset(tmp_path / "data")
    assert tuple(data.splits) == splits and data.class_names == tuple(COLOURS)
    assert data.evaluation_split == splits[-1] and not holds_one_level(tmp_path / "data")
    assert all(split.size == 4 for split in data.splits.values())


def test_classes_may_be_named_as_splits(tmp_path):
    for name in ("train", "bus"):
        write_image(tmp_path / name / "0.png")
    assert load_dataset(tmp_path).class_names == ("bus", "train") and holds_one_level(tmp_path)


def test_what_lies_beside_the_splits_and_is_not_read_is_named(tmp_path, caplog):
    write_classes(tmp_path / "train")
    for path in ("unlabelled/0.png", "more.png", "train/stray.jpg"):
        write_image(tmp_path / path)
    write_image(tmp_path / "train" / "ants" / "scan.tif")
    load_dataset(tmp_path)
    assert "train/stray.jpg, more.png, unlabelled." in caplog.text
    assert "left out: 1 .tif; keras-convnets data prepare converts" in caplog.text


@pytest.mark.parametrize("change, sentence", [
    (lambda f: write_classes(f / "valid"), "val and valid, which name the same split"),
    (lambda f: write_classes(f / "Validation"), "Validation and val|val and Validation"),
    (lambda f: write_image(f / "val" / "wasps" / "0.png"), "ants, bees, wasps where train has ants, bees"),
    (lambda f: (f / "train" / "wasps").mkdir(), "train/wasps holds no images"),
    (lambda f: write_image(f / "train" / "wasps" / "0.tif"), "wasps holds no images .* but 1 .tif, which .* prepare"),
])  # fmt: skip
def test_a_layout_that_does_not_do_is_refused_and_surveyed_whole(tmp_path, change, sentence):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", count=1)
    change(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_dataset(tmp_path)
    found = survey(tmp_path)
    assert found.problems and sum(split.size for split in found.splits.values()) >= 12


def test_images_beside_no_classes_are_no_classes(tmp_path):
    for name in ("Train", "Val"):
        write_image(tmp_path / name / "0.png")
    with pytest.raises(UserError, match=r"Train holds 0 class folders"):
        load_dataset(tmp_path)


def test_everything_odd_is_reported_at_once(tmp_path, capsys):
    write_classes(tmp_path / "train", count=2)
    (tmp_path / "train" / "wasps").mkdir()
    (tmp_path / "val" / "wasps").mkdir(parents=True)
    write_image(tmp_path / "val" / "ants" / "tiny.png", size=(3, 2))
    write_image(tmp_path / "train" / "ants" / "deep" / "long.png", size=(900, 20))
    write_image(tmp_path / "train" / "ants" / "scan.heic", format="PNG")
    (tmp_path / "val" / "bees").mkdir()
    (tmp_path / "val" / "ants" / "moves.webp").write_bytes(animation())
    (tmp_path / "test" / "ants").mkdir(parents=True)
    (tmp_path / "test" / "ants" / "0.jpg").write_bytes(b"none")
    assert main(["data", "verify", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["skipped"], found["refused"]) == (9, 3, 2)
    assert {(item["path"], item["kind"], item["fate"]) for item in found["findings"]} == {
        ("test", "other classes", "refused"),
        ("test/ants/0.jpg", "not an image", "skipped"),
        ("train/ants/deep/long.png", "extreme", "used"),
        ("train/ants/scan.heic", "other type", "skipped"),
        ("train/wasps", "no images", "refused"),
        ("val/ants/moves.webp", "animated", "skipped"),
        ("val/ants/tiny.png", "tiny", "used"),
        ("val/bees", "empty class", "used"),
        ("val/wasps", "empty class", "used"),
    }
    assert main(["data", "stats", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "wasps holds no images" in shown and "long as wide): ants/deep/long.png" in shown
    assert "below 16 pixels): ants/tiny.png" in shown and "(no images of): bees, wasps" in shown
    assert "test: 0 images, 1 more can't be read" in shown


def test_names_that_are_not_utf8_are_read_or_named(tmp_path, tmp_path_factory):
    write_classes(tmp_path)
    try:
        os.rename(os.fsencode(tmp_path / "bees"), os.fsencode(tmp_path) + b"/abeilles d'\xe9t\xe9")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    ants = os.fsencode(tmp_path / "ants")
    os.rename(ants + b"/0.png", ants + b"/\xe9t\xe9.png")
    os.symlink(b"nowhere", ants + b"/parti\xe9.png")
    data = load_dataset(tmp_path)
    assert data.class_names == ("abeilles d'\\xe9t\\xe9", "ants")
    json.dumps(data.class_names, ensure_ascii=False).encode()
    data, broken = data.without_broken(0.5)
    assert [printable(image.file.rpartition("/")[2]) for image in broken] == ["parti\\udce9.png"]
    assert data.fingerprint() and data.splits["train"].size == 9
    ((name, kind),) = ((item.path, item.kind) for item in verify_folder(tmp_path).findings)
    assert (name, kind) == ("ants/parti\\udce9.png", "unreadable")
    os.unlink(ants + b"/parti\xe9.png")
    done = prepare_folder(tmp_path, tmp_path_factory.mktemp("made"), 16)
    assert done.images == 10
    assert load_dataset(done.folder).class_names == data.class_names


def animation():
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    return webp(frames[0], save_all=True, append_images=frames[1:])


def test_prepare_converts_what_pillow_reads(tmp_path, tmp_path_factory):
    write_classes(tmp_path)
    write_image(tmp_path / "ants" / "in" / "1.png")
    before = load_dataset(tmp_path)
    deep = Image.fromarray(np.full((20, 30), 40_000, np.uint16))
    ants = tmp_path / "ants"
    deep.save(ants / "deep.tif")
    write_image(ants / "0.tiff", (250, 10, 20))
    write_image(ants / "in" / "0.tiff", (250, 10, 20), tiffinfo={274: 6})
    write_image(ants / "in" / "0.ppm", (250, 10, 20))
    (ants / "moves.webp").write_bytes(animation())
    (ants / "cut.tif").write_bytes((ants / "0.tiff").read_bytes()[:40])
    Image.new("F", (20, 20)).save(ants / "numbers.tif")
    done = prepare_folder(tmp_path, tmp_path_factory.mktemp("made"), 100)
    assert done.images == 16 and sorted(Path(item.file).name for item in done.left_out) == ["cut.tif", "numbers.tif"]
    made = {path: np.asarray(Image.open(path).convert("RGB")) for path in done.folder.rglob("*/ants/*.png")}
    named = {path.name: pixels for path, pixels in made.items()}
    assert (named["deep.tif.png"] == 40_000 >> 8).all() and "1%~2.png" in named
    assert sorted(x.shape for x in made.values() if (x == (250, 10, 20)).all()) == [
        (16, 24, 3),
        (16, 24, 3),
        (24, 16, 3),
    ]
    assert np.abs(named["moves.webp.png"].astype(int) - (255, 0, 0)).max() < 9
    # No other image moved: what was tested on still is.
    tested = {path.name for path in before.splits["test"].paths}
    assert tested <= {path.name for path in (done.folder / "test").rglob("*.png")}
    assert not tested & {path.name for path in (done.folder / "train").rglob("*.png")} - {"4.png"}


@pytest.mark.parametrize("options", [
    {}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*"}, {"icc_profile": b"profile!" * 8, "lossless": True},
])  # fmt: skip
@pytest.mark.parametrize("alpha", [False, True])
def test_webp_is_decoded_as_pillow_does(options, alpha):
    image = Image.effect_noise((30, 20), 60).convert("RGB").resize((45, 31), Image.Resampling.BICUBIC)
    if alpha:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = webp(image, **options)
    decoded = decode_image(tf.constant(data)).numpy()
    assert (decoded == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
    assert image_pixels(data) == 45 * 31 and image_pixels(data[:25]) == 0


def claiming(data, size_at, size):
    return data[:size_at] + size + data[size_at + len(size) :]


@pytest.mark.parametrize("data, reason, pixels", [
    (animation(), "animated WebP images are not read", 600),
    (claiming(webp(), 26, b"\xff\x3f\xff\x3f"), "the image has 16383 x 16383 pixels", 16383**2),
    (claiming(webp(lossless=True), 21, b"\xff\xff\xff\x0f"), "the image has 16384 x 16384 pixels", 16384**2),
    (claiming(webp(exif=b"Exif\0\0MM\0*"), 24, b"\xff\x3f\0\xff\x3f\0"), "the image has 16384 x 16384 pixels", 2**28),
    (b"RIFF" + bytes(4) + b"WEBP" + webp()[20:], "Unknown image file format; JPEG, PNG, GIF, BMP and WebP", 0),
    (webp()[:-60], "", 600),
    (webp()[:22], "", 0),
])  # fmt: skip
def test_webp_that_is_not_read_is_told_before_it_is_decoded(data, reason, pixels):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        decode_image(tf.constant(data))
    assert plain_reason(caught.value).startswith(reason) and image_pixels(data) == pixels


def test_graphs_that_decode_name_no_operation_of_newer_tensorflow():
    """TensorFlow Serving before 2.20 has no DecodeWebP, and would refuse a whole SavedModel for it."""
    graph = tf.function(decode_image, input_signature=[tf.TensorSpec([], tf.string)]).get_concrete_function().graph
    library = graph.as_graph_def().library.function
    ops = {node.op for function in library for node in function.node_def} | {op.type for op in graph.get_operations()}
    assert "DecodeImage" in ops and "DecodeWebP" not in ops


def predicted(tmp_path, monkeypatch, capsys, answer, *arguments):
    monkeypatch.setattr(predict, "_answering", lambda args: contextlib.nullcontext(answer))
    status = main(["predict", *map(str, arguments), "--run", "none"])
    return status, *capsys.readouterr()


def answer_flat(encoded):
    """Answer all images but those that hold "?", as a classifier refuses a batch."""
    for position, data in enumerate(encoded):
        if b"?" in data[-4:]:
            raise UnreadableImage(f"image {position} is not readable (odd).")
    return [[("flat", 0.75)] for _ in encoded]


def test_predict_answers_the_rest_and_names_each_bad_file(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.webp", "c.jfif"):
        write_image(tmp_path / name, format="JPEG" if name.endswith("jfif") else None)
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\x16\7")
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8 no more")
    with open(tmp_path / "a.png", "ab") as file:
        file.write(b"?")
    status, out, err = predicted(tmp_path, monkeypatch, capsys, answer_flat, tmp_path, tmp_path / "b.webp")
    assert status == 1
    assert out.count("flat") == 2 and "b.webp" in out and "c.jfif" in out and "a.png" not in out
    assert f"{tmp_path}/a.png is not readable (odd)." in err and "d.jpg is not a readable image" in err
    assert "2 of the 4 images have no answer" in err and "._a" not in err
    status, out, _ = predicted(tmp_path, monkeypatch, capsys, answer_flat, tmp_path, "--json")
    assert status == 1 and [sorted(item) for item in json.loads(out)] == [
        ["error", "image"], ["classes", "image"], ["classes", "image"], ["error", "image"],
    ]  # fmt: skip

    def unreachable(encoded):
        raise UserError("the endpoint can't be reached.")

    status, out, err = predicted(tmp_path, monkeypatch, capsys, unreachable, tmp_path)
    assert (status, out) == (2, "") and err.count("can't be reached") == 1
