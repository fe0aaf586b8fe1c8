"""Folders of images: broken files found and skipped, statistics, and photographs made small once for all."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from keras_convnets import training
from keras_convnets.commands.main import main
from keras_convnets.errors import UserError
from keras_convnets.images.decoding import decode_image
from keras_convnets.training import trainer
from keras_convnets.training.data import load_dataset
from keras_convnets.training.data.preparation import prepare_folder
from keras_convnets.training.data.statistics import data_statistics
from keras_convnets.training.data.verification import verify_folder


def photograph(seed, size=(32, 32)):
    """A smooth picture that JPEG keeps well; every seed another."""
    corners = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width, height):
    """A PNG of some bytes whose header names another size."""
    data = encoded(photograph(0), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


BROKEN = {
    "ants/claims.png": ("too large", png_that_claims(12_000, 10_000)),
    "ants/cut.jpg": ("truncated", encoded(photograph(1), "JPEG")[:-30]),
    "ants/empty.jpg": ("empty", b""),
    "bees/damaged.png": ("damaged", encoded(photograph(2), "PNG").replace(b"IDAT", b"IDAX")),
    "bees/gone.jpg": ("unreadable", None),
    "bees/page.jpg": ("not an image", b"<!DOCTYPE html><html>404</html>"),
}
LYING = Image.Exif()
LYING[0x0112] = 6
UNUSUAL = {
    "ants/cmyk.jpg": ("CMYK", encoded(photograph(3).convert("CMYK"), "JPEG")),
    "ants/deep.png": ("16 bits", encoded(Image.fromarray(np.full((32, 32), 40_000, np.uint16)), "PNG")),
    "ants/moves.gif": (
        "animated",
        encoded(photograph(4), "GIF", save_all=True, append_images=[photograph(5), photograph(6)]),
    ),
    "bees/lying.jpg": ("turned", encoded(photograph(7, (48, 32)), "JPEG", exif=LYING)),
    "bees/really.jpg": ("wrong type", encoded(photograph(8), "PNG")),
}  # fmt: skip


@pytest.fixture(scope="module")
def made_folder(tmp_path_factory):
    """Two classes, 140 sound images to train and 30 to validate, and among them one of each kind of trouble."""
    root = tmp_path_factory.mktemp("data") / "insects"
    for split, count in (("train", 70), ("val", 15)):
        for label, name in enumerate(("ants", "bees")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                photograph([label, index, count]).save(root / split / name / f"{index:03d}.png")
    for path, (_, data) in {**BROKEN, **UNUSUAL}.items():
        if data is not None:
            (root / "train" / path).write_bytes(data)
    (root / "train" / "bees" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "train" / "bees" / "x.jpg").mkdir()  # a folder, whatever its name
    (root / "val" / "bees" / "cut.png").write_bytes(encoded(photograph(9), "PNG")[:-30])
    (root / "train" / "bees" / "new.tiff").write_bytes(b"II*")
    (root / "train" / "bees" / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def insects(made_folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made_folder, tmp_path / "insects", symlinks=True)


def test_verify_names_each_file_with_its_kind_and_fate(made_folder):
    reports = []
    found = verify_folder(made_folder, lambda done, total: reports.append((done, total)))
    expected = {f"train/{path}": (kind, "skipped") for path, (kind, _) in BROKEN.items()}
    expected |= {f"train/{path}": (kind, "used") for path, (kind, _) in UNUSUAL.items()}
    expected |= {"val/bees/cut.png": ("truncated", "skipped"), "train/bees/new.tiff": ("other type", "skipped")}
    assert {item.path: (item.kind, item.fate) for item in found.findings} == expected
    assert len(found.findings) == len(expected) and len(found.skipped) == 8
    assert found.files == 140 + 30 + len(expected) and reports[-1] == (found.files - 1, found.files - 1)
    details = {item.path: item.detail for item in found.findings}
    assert details["train/bees/page.jpg"].startswith("the content is HTML")
    assert details["train/bees/really.jpg"] == "named .jpg, the content is PNG"
    assert details["train/ants/claims.png"].startswith("12000 x 10000 pixels")
    assert details["train/ants/moves.gif"] == "the first of 3 frames"
    assert "No such file" in details["train/bees/gone.jpg"]


def test_truncation_is_found_wherever_the_data_end(tmp_path):
    kinds = {"jpg": ("JPEG", {}), "jpeg": ("JPEG", {"progressive": True}), "png": ("PNG", {}), "bmp": ("BMP", {})}
    for name in ("cut", "sound"):
        (tmp_path / name).mkdir()
    for suffix, (kind, options) in {**kinds, "gif": ("GIF", {})}.items():
        data = encoded(photograph(1, (64, 48)), kind, **options)
        (tmp_path / "sound" / f"0.{suffix}").write_bytes(data)
        for missing in (4, 100, len(data) // 2):
            (tmp_path / "cut" / f"{missing}.{suffix}").write_bytes(data[:-missing])
    found = {item.path: item for item in verify_folder(tmp_path).findings}
    assert len(found) == 15 and all(path.startswith("cut/") and item.fate == "skipped" for path, item in found.items())
    # Truncation of a GIF can't be detected from its end; Pillow decodes it and does not always report an error.
    assert {item.kind for path, item in found.items() if not path.endswith(".gif")} == {"truncated"}


def test_the_command_lists_quarantines_and_says_by_its_status(insects, capsys):
    assert main(["data", "verify", str(insects), "--json"]) == 1
    plain = json.loads(capsys.readouterr().out)
    assert (plain["files"], plain["skipped"], len(plain["findings"])) == (183, 8, 13)
    assert not (insects / "quarantine.txt").exists()
    assert main(["data", "verify", str(insects), "--quarantine"]) == 1
    shown = capsys.readouterr().out
    assert "183 files, 8 of them skipped in training" in shown
    assert [line.split()[:3] for line in shown.splitlines()][0] == ["train/ants/claims.png", "too", "large"]
    lines = (insects / "quarantine.txt").read_text().splitlines()
    assert len(lines) == 8 and "train/ants/empty.jpg\tempty: 0 bytes" in lines
    for line in lines:
        (insects / line.partition("\t")[0]).unlink()
    assert main(["data", "verify", str(insects)]) == 0
    assert main(["data", "verify", str(insects / "nothing")]) == 2


def test_a_quarantine_list_in_the_folder_is_respected(insects, caplog):
    everything = load_dataset(insects)
    verify_folder(insects).write_quarantine()
    with open(insects / "quarantine.txt", "a") as file:
        file.write("train/ants/000.png\nno/such/file.png\n")
    data = load_dataset(insects)
    # TIFF is not among what training reads; the first of ants is listed by hand, without a reason.
    assert "quarantine.txt lists 8 images, which are left out" in caplog.text
    assert {name: split.size for name, split in data.splits.items()} == {"train": 144, "val": 30}
    assert everything.splits["train"].size == 151
    assert data.without_broken(0)[1] == []
    (insects / "quarantine.txt").write_text(
        "".join(f"train/ants/{path.name}\n" for path in (insects / "train" / "ants").iterdir())
    )
    with pytest.raises(UserError, match="lists every training image of ants"):
        load_dataset(insects)


def test_a_quarantined_image_moves_no_other_to_another_split(tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for index in range(11):
            photograph(index).save(tmp_path / name / f"{index:02d}.png")
    (tmp_path / "quarantine.txt").write_text("ants/00.png\tblurred\n")
    test = load_dataset(tmp_path).splits["test"]
    assert [f"{path.parent.name}/{path.name}" for path in test.paths] == [
        "ants/04.png", "ants/09.png", "bees/04.png", "bees/09.png",
    ]  # fmt: skip


def test_training_skips_and_names_what_is_broken_and_evaluation_counts_the_rest(
    made_folder, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    overrides = {"image_size": 32, "iterations": 2, "batch_size": 16}
    run = training.fit("ResNet20", made_folder, run=tmp_path / "run", overrides=overrides)
    assert run.finished
    for path in BROKEN:
        assert f"{made_folder / 'train' / path} (" in caplog.text
    assert "6 of the 151 images of split train can't be read and are left out" in caplog.text
    assert "1 of the 31 images of split val can't be read" in caplog.text
    assert run.config()["data"]["images"] == {"train": 145, "val": 30}
    result = training.evaluate(run.model(), load_dataset(made_folder).at_size(32, 32))
    assert result.n == 30


def test_broken_records_are_left_out_by_number(tmp_path):
    import tensorflow_datasets as tfds

    class Broken(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index in range(20):
                data = encoded(photograph(index), "PNG")
                yield index, {"image": io.BytesIO(data[:-40] if index == 7 else data), "label": index % 2}

    Broken(data_dir=tmp_path).download_and_prepare()
    data, (image,) = load_dataset("broken", tmp_path).without_broken(0.05)
    assert image.split == "train" and image.reason.startswith("truncated")
    number = int(image.file.split()[1])
    split = data.splits["train"]
    assert split.size == 19 and image.file == f"image {number} of broken/1.0.0 train"
    assert [int(position) for *_, position in split.encoded_in_order()] == list(range(19))
    assert next(iter(data.at_size(32, 32, memory_limit=0).splits["train"].in_order(32)))[0].shape == (19, 32, 32, 3)


def test_statistics_are_those_counted_by_hand(tmp_path):
    rng = np.random.default_rng(0)
    pixels = {
        "train/ants/a.png": rng.integers(0, 256, (10, 20, 3), np.uint8),
        "train/ants/b.png": rng.integers(0, 256, (30, 16, 3), np.uint8),
        "train/ants/c.png": rng.integers(0, 256, (12, 40, 3), np.uint8),
        # Cells that are clearly dark or light, of 2 x 3 pixels.
        "train/bees/d.bmp": np.kron(rng.integers(0, 2, (8, 8, 1), np.uint8) * 200, np.ones((2, 3, 3), np.uint8)),
    }
    pixels["val/bees/same.png"] = pixels["train/ants/b.png"]
    pixels["val/ants/near.png"] = pixels["train/bees/d.bmp"] + 20
    for path, image in pixels.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / path)
    (tmp_path / "train" / "bees" / "empty.jpg").touch()
    facts = data_statistics(load_dataset(tmp_path))
    train = facts["splits"]["train"]
    assert (train["images"], train["broken"]) == (4, 1)
    assert train["classes"] == {"ants": 3, "bees": 1} and train["class_counts"] == {"min": 1, "median": 2.0, "max": 3}
    assert train["width"] == {"min": 16, "median": 22.0, "max": 40}
    assert train["height"] == {"min": 10, "median": 14.0, "max": 30}
    assert train["formats"] == {"PNG": 0.75, "BMP": 0.25}
    every = np.concatenate([image.reshape(-1, 3) for path, image in pixels.items() if path.startswith("train")])
    np.testing.assert_allclose(train["mean"], every.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(train["std"], every.std(axis=0), rtol=1e-9)
    components, eigenvalues = np.array(train["components"]), np.array(train["eigenvalues"])
    covariance = np.cov(every.T / 255, bias=True)
    np.testing.assert_allclose(components.T @ np.diag(eigenvalues) @ components, covariance, atol=1e-12)
    assert (np.diff(eigenvalues) <= 0).all()
    assert facts["identical"] == [[["train", "ants/b.png"], ["val", "bees/same.png"]]]
    assert facts["similar"] == [[["train", "bees/d.bmp"], ["val", "ants/near.png"]]]


def test_the_stats_command(capsys):
    assert main(["data", "stats", "digits"]) == 0
    shown = capsys.readouterr().out
    assert "train: 1,437 images" in shown and "width        min 8  median 8  max 8" in shown
    assert main(["data", "stats", "digits", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sum(facts["splits"]["test"]["classes"].values()) == 360 and facts["identical"] == []


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """One level, two classes: large and small ones, one that lies on its side, a GIF, a broken one of 41."""
    root = tmp_path_factory.mktemp("source") / "photos"
    for name in ("ants", "bees"):
        (root / name).mkdir(parents=True)
        for index in range(18):
            photograph(index, (90 + index, 60)).save(root / name / f"{index:02d}.jpg", quality=95, subsampling=0)
    photograph(50, (50, 20)).save(root / "ants" / "small.jpg")
    photograph(51, (80, 64)).save(root / "ants" / "moves.gif")
    (root / "ants" / "lying.jpg").write_bytes(UNUSUAL["bees/lying.jpg"][1])
    photograph(52, (100, 50)).save(root / "bees" / "kept.png")
    (root / "bees" / "empty.jpg").touch()
    return root


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepare_makes_photographs_small_upright_and_leaves_the_source(photographs, tmp_path):
    before = contents(photographs)
    done = prepare_folder(photographs, tmp_path / "small", 40)
    assert contents(photographs) == before
    assert done.images == 40 and [image.file for image in done.left_out] == [str(photographs / "bees" / "empty.jpg")]
    source, small = load_dataset(photographs), load_dataset(tmp_path / "small")
    for name in ("train", "test"):

        def names(data, name=name):
            return {f"{path.parent.name}/{path.name}" for path in data.splits[name].paths}

        expected = {"ants/moves.gif.png" if path == "ants/moves.gif" else path for path in names(source)}
        assert names(small) == expected - {"bees/empty.jpg"}
    files = contents(tmp_path / "small")
    found = {path.split("/", 1)[1]: Image.open(io.BytesIO(data)) for path, data in files.items() if "/" in path}
    assert found["ants/05.jpg"].size == (63, 40) and found["bees/kept.png"].size == (80, 40)
    assert found["ants/lying.jpg"].size == (32, 48) and found["ants/moves.gif.png"].format == "PNG"
    assert [data for path, data in files.items() if path.endswith("ants/small.jpg")] == [before["ants/small.jpg"]]
    # 4:4:4: the chroma components are sampled as the luma is.
    assert {part[1] * 16 + part[2] for part in found["ants/05.jpg"].layer} == {0x11}
    resized = photograph(5, (95, 60)).resize((63, 40), Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(found["ants/05.jpg"], int) - np.asarray(resized, int))
    assert difference.mean() < 1.5
    upright = np.asarray(Image.open(photographs / "ants" / "lying.jpg").transpose(Image.Transpose.ROTATE_270), int)
    assert np.abs(np.asarray(found["ants/lying.jpg"], int) - upright).mean() < 1.5


def test_shards_hold_what_the_folder_holds(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr("keras_convnets.training.data.preparation.SHARD_IMAGES", 10)
    prepare_folder(photographs, tmp_path / "small", 40)
    prepare_folder(photographs, tmp_path / "shards", 40, "tfrecord")
    small, shards = load_dataset(tmp_path / "small"), load_dataset(tmp_path / "shards")
    assert shards.class_names == ("ants", "bees") and shards.image_size is None and shards.name == "photos"
    assert len(list((tmp_path / "shards").glob("train-*.tfrecord"))) == 4
    for name in ("train", "test"):
        files, records = (
            sorted((int(label), data.numpy()) for data, label, _ in data.splits[name].encoded_in_order())
            for data in (small, shards)
        )
        assert files == records
    # The order within the shards is not that of the classes, and every epoch has another.
    assert len(set(shards.splits["train"].labels[:8].tolist())) == 2
    stream = [int(position) for *_, position in shards.splits["train"].encoded_shuffled(seed=2).take(96)]
    size = shards.splits["train"].size
    assert sorted(stream[:size]) == list(range(size)) and stream[:size] != stream[size : 2 * size]
    first = next(iter(tf.data.TFRecordDataset(str(next((tmp_path / "shards").glob("test-*"))))))
    features = tf.train.Example.FromString(first.numpy()).features.feature
    text = features["image/class/text"].bytes_list.value[0].decode()
    assert features["image/filename"].bytes_list.value[0].decode().startswith(f"{text}/")
    sized = shards.at_size(16, 16).splits["train"]
    assert sized.images.shape == (size, 16, 16, 3)


def test_a_stopped_preparation_goes_on(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr("keras_convnets.training.data.preparation.SHARD_IMAGES", 10)
    prepare_folder(photographs, tmp_path / "unbroken", 40, "tfrecord")

    def stopping(done, total):
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_folder(photographs, tmp_path / "shards", 40, "tfrecord", stopping)
    with pytest.raises(UserError, match="is not finished; run the same keras-convnets data prepare again"):
        load_dataset(tmp_path / "shards")
    kept = sorted((tmp_path / "shards").glob("*.tfrecord"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2
    prepare_folder(photographs, tmp_path / "shards", 40, "tfrecord")
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert contents(tmp_path / "shards") == contents(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        prepare_folder(photographs, tmp_path / "files", 40, "folder", stopping)
    done = prepare_folder(photographs, tmp_path / "files", 40)
    assert done.images == 40 and len(list((tmp_path / "files").rglob("*.*g"))) == 40


@pytest.mark.parametrize("to, side, form, sentence", [
    ("photos/small", 40, "folder", "is inside the other"),
    ("photos", 40, "folder", "is inside the other"),
    ("new", 0, "folder", "shorter_side is 0"),
    ("new", 40, "zip", "format is 'zip'; it must be one of folder, tfrecord"),
    ("other", 40, "folder", "holds other files"),
    ("done", 41, "folder", "prepared from other images or with other arguments"),
])  # fmt: skip
def test_preparing_refuses_what_would_harm(tmp_path, to, side, form, sentence):
    for name in ("ants", "bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        photograph(1).save(tmp_path / "photos" / name / "1.png")
    prepare_folder(tmp_path / "photos", tmp_path / "done", 40)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    before = contents(tmp_path)
    with pytest.raises(UserError, match=sentence):
        prepare_folder(tmp_path / "photos", tmp_path / to, side, form)
    assert {path: data for path, data in contents(tmp_path).items() if not path.endswith(".lock")} == {
        path: data for path, data in before.items() if not path.endswith(".lock")
    }


def test_the_prepare_command_writes_what_train_takes(photographs, tmp_path, capsys):
    status = main(["data", "prepare", str(photographs), "--to", str(tmp_path / "out"), "--shorter-side", "32"])
    shown = capsys.readouterr().out
    assert status == 0 and "holds 40 images; 1 could not be read" in shown
    for path in load_dataset(tmp_path / "out").splits["train"].paths:
        assert min(decode_image(tf.constant(path.read_bytes())).shape[:2]) <= 32
