"""Data sets: what they hold, the order they are read in, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import socket
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from rich.console import Console
from sklearn import datasets as sklearn_datasets

from keras_convnets.errors import UserError
from keras_convnets.images.view import View
from keras_convnets.training import plan, progress
from keras_convnets.training.data import ArraySplit, DataSet, FileSplit, cached_passes, load_dataset
from keras_convnets.training.data import integrity as broken_images
from keras_convnets.training.data.splits import held_out
from keras_convnets.training.recipes.photographs import kept_components


def write_image(path, colour, size=(24, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, seven and five images of one colour each, in one level."""
    for name, count, colour in (("red", 7, (200, 0, 0)), ("green", 5, (0, 200, 0))):
        for index in range(count):
            write_image(tmp_path / "colours" / name / f"{index}.png", colour)
    return tmp_path / "colours"


def test_digits_are_the_real_scans():
    data = load_dataset("digits")
    source = sklearn_datasets.load_digits()
    assert data.class_names == tuple("0123456789")
    assert (data.splits["train"].size, data.splits["test"].size) == (1437, 360)
    assert not data.flips_keep_labels
    every = np.concatenate([data.splits[name].images for name in ("train", "test")])
    assert every.shape == (1797, 8, 8, 3)
    # Each scan is there once: the multiset of ink sums is the source's.
    ink = np.round(source.images * 255 / 16).sum((1, 2))
    assert sorted(every[..., 0].astype(int).sum((1, 2))) == sorted(ink.astype(int))
    assert (every[..., 0] == every[..., 2]).all()


def test_held_out_takes_each_class_by_its_share():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    held, kept = held_out(labels, 50)
    assert len(held) == 50 and sorted([*held, *kept]) == list(range(1000))
    assert np.bincount(labels[held]).tolist() == [30, 15, 5]


@pytest.mark.parametrize("holdout, held", [(500, 500), (0.1, 144), (0, None)])
def test_holdout_comes_out_of_the_training_images(holdout, held):
    data = load_dataset("digits").with_holdout(holdout)
    assert data.splits["test"].size == 360
    assert data.splits["train"].size == 1437 - (held or 0)
    assert ("holdout" in data.splits) == (held is not None)


@pytest.mark.parametrize("holdout", [1437, 5000, 1e-9])
def test_a_holdout_that_leaves_nothing_is_refused(holdout):
    with pytest.raises(UserError, match=r"hold out between 1 and 1436"):
        load_dataset("digits").with_holdout(holdout)


@pytest.mark.parametrize("holdout", [float("nan"), float("inf"), "1", True])
def test_a_holdout_that_is_no_number_is_refused(holdout):
    with pytest.raises(UserError, match=f"holdout is {holdout!r}; give a number"):
        load_dataset("digits").with_holdout(holdout)


def numbered(n):
    """A split whose images say which they are."""
    images = np.zeros((n, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(n) % 256, np.arange(n) // 256
    return ArraySplit(images, np.arange(n) % 7)


def numbers(batches, count):
    seen = []
    for images, labels in batches.take(count).as_numpy_iterator():
        number = images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1].astype(int)
        assert (labels == number % 7).all()
        seen.append(number)
    return np.concatenate(seen)


def test_shuffled_shows_each_image_once_an_epoch_and_crosses_epochs_with_full_batches():
    stream = numbers(numbered(300).shuffled(batch_size=64, seed=5), 15)
    epochs = stream[:900].reshape(3, 300)
    for epoch in epochs:
        assert sorted(epoch) == list(range(300))
    assert (epochs[0] != epochs[1]).any() and (epochs[0] != np.arange(300)).any()
    assert (numbers(numbered(300).shuffled(64, seed=6), 4) != stream[:256]).any()


@pytest.mark.parametrize("first", [64, 300, 640])
def test_shuffled_goes_on_where_it_was_left(first):
    unbroken = numbers(numbered(300).shuffled(64, seed=5), 14)
    assert (numbers(numbered(300).shuffled(64, seed=5, first=first), 3) == unbroken[first : first + 192]).all()


def test_a_batch_may_be_larger_than_the_data():
    stream = numbers(numbered(10).shuffled(batch_size=32, seed=0), 5)
    assert np.bincount(stream).tolist() == [16] * 10


@pytest.mark.parametrize("batch_size", [1, 7, 300, 1000])
def test_in_order_gives_every_image_once(batch_size):
    assert (numbers(numbered(300).in_order(batch_size), -1) == np.arange(300)).all()


def encoded_numbers(stream):
    """Decode a stream of PNGs of `numbered`, and return the numbers and the positions."""
    pairs = []
    for encoded, label, position in stream.as_numpy_iterator():
        pixel = tf.io.decode_png(encoded)[0, 0].numpy().astype(int)
        assert label == (pixel[0] + 256 * pixel[1]) % 7
        pairs.append((pixel[0] + 256 * pixel[1], position))
    return np.array(pairs).T


@pytest.mark.parametrize("balanced", [False, True])
def test_encoded_images_come_in_the_order_of_the_decoded(balanced):
    split = numbered(300)
    found, positions = encoded_numbers(split.encoded_shuffled(5, first=290, balanced=balanced).take(64))
    assert (found == positions).all()
    assert (found == numbers(split.shuffled(64, 5, first=290, balanced=balanced), 1)).all()
    assert (encoded_numbers(split.encoded_in_order())[0] == np.arange(300)).all()


def rare():
    """100, 10 and 3 images of three classes."""
    images = np.zeros((113, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(113)
    return ArraySplit(images, np.repeat([0, 1, 4], [100, 10, 3]))


def test_balanced_draws_every_class_and_each_of_its_images_equally_often():
    batches = list(rare().shuffled(30, seed=3, balanced=True).take(10).as_numpy_iterator())
    labels = np.concatenate([labels for _, labels in batches])
    drawn = np.concatenate([images[:, 0, 0, 0] for images, _ in batches])
    assert all(sorted(group) == [0, 1, 4] for group in labels.reshape(100, 3))
    assert len({tuple(group) for group in labels.reshape(100, 3)}) == 6
    # 100 rounds: each of the 100 once, of the 10 ten times, of the 3 at least 33 times.
    counts = np.bincount(drawn, minlength=113)
    assert (counts[:100] == 1).all() and (counts[100:110] == 10).all() and sorted(counts[110:]) == [33, 33, 34]
    ones = drawn[labels == 1].reshape(10, 10)
    assert (ones[0] != ones[1]).any()


@pytest.mark.parametrize("first", [1, 30, 31, 299])
def test_balanced_goes_on_where_it_was_left(first):
    def drawn(first, count):
        return [int(position) for *_, position in rare().encoded_shuffled(3, first, balanced=True).take(count)]

    assert drawn(first, 40) == drawn(0, 340)[first : first + 40]


def test_one_level_folder_tests_on_every_fifth_image_of_each_class(folder):
    data = load_dataset(folder)
    assert data.class_names == ("green", "red")
    assert [path.name for path in data.splits["test"].paths] == ["4.png", "4.png"]
    assert data.splits["train"].size == 10
    assert data.image_size == (16, 24)
    assert data.flips_keep_labels


@pytest.mark.parametrize(
    "evaluation", ["val", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("validation", "test"))]
)
def test_folder_with_splits(folder, evaluation):
    (folder.parent / "split").mkdir()
    folder.rename(folder.parent / "split" / "train")
    for name, colour in (("red", (200, 0, 0)), ("green", (0, 200, 0))):
        write_image(folder.parent / "split" / evaluation / name / "x.jpg", colour, size=(40, 40))
    data = load_dataset(folder.parent / "split")
    assert data.evaluation_split == evaluation
    assert data.splits["train"].size == 12
    images, labels = next(iter(data.at_size(8, 8).splits[evaluation].in_order(2)))
    # green stands first, and JPEG keeps a flat colour to within a few levels
    assert labels.numpy().tolist() == [0, 1]
    assert np.abs(images.numpy().astype(int) - np.array([[0, 200, 0], [200, 0, 0]])[:, None, None]).max() < 6


def test_files_too_large_for_memory_are_read_when_needed_and_give_the_same(folder):
    data = load_dataset(folder)
    held, streamed = data.at_size(8, 8), data.at_size(8, 8, memory_limit=0)
    assert isinstance(held.splits["train"], ArraySplit) and not isinstance(streamed.splits["train"], ArraySplit)
    for one, other in zip(
        held.splits["train"].shuffled(4, 1).take(6), streamed.splits["train"].shuffled(4, 1).take(6), strict=True
    ):
        assert (one[0].numpy() == other[0].numpy()).all() and (one[1].numpy() == other[1].numpy()).all()


def test_fingerprint_changes_with_the_data(folder):
    before = load_dataset(folder).fingerprint()
    assert load_dataset(folder).fingerprint() == before
    write_image(folder / "red" / "new.png", (201, 0, 0))
    assert load_dataset(folder).fingerprint() != before
    one, other = load_dataset("digits"), load_dataset("digits").with_holdout(10)
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("break_it, sentence", [
    (lambda f: [path.unlink() for path in (f / "red").iterdir()], r"red holds no images"),
    (lambda f: shutil.rmtree(f / "red"), r"holds 1 class folder: green"),
])  # fmt: skip
def test_a_folder_that_does_not_do_is_refused(folder, break_it, sentence):
    break_it(folder)
    with pytest.raises(UserError, match=sentence):
        load_dataset(folder)


def truncate(path):
    encoded = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(encoded, "PNG")
    path.write_bytes(encoded.getvalue()[:2000])


def test_broken_images_are_left_out_and_named_up_to_a_share(folder, caplog):
    truncate(folder / "green" / "2.png")
    with pytest.raises(UserError, match=r"1 of the 10 images of split train .*green/2.png: truncated.*data verify"):
        load_dataset(folder).at_size(8, 8)
    with pytest.raises(UserError, match=r"a fraction of 0.09 may be"):
        load_dataset(folder).without_broken(0.09)
    assert not caplog.records
    data, broken = load_dataset(folder).without_broken(0.1)
    assert [(image.split, image.file) for image in broken] == [("train", str(folder / "green" / "2.png"))]
    assert "green/2.png (truncated" in caplog.text and "1 of the 10 images of split train" in caplog.text
    # The train images are 0-3, 5, 6 of red and 0-3 of green; what is left keeps its order, and test its images.
    assert [path.name for path in data.splits["train"].paths[:4]] == ["0.png", "1.png", "3.png", "0.png"]
    assert (data.splits["train"].size, data.splits["test"].size) == (9, 2)
    assert data.without_broken(0)[1] == []
    assert data.at_size(8, 8).splits["train"].images.shape == (9, 8, 8, 3)


def test_a_class_must_keep_an_image_and_a_split_too(folder):
    for path in (folder / "green").iterdir():
        truncate(path)
    # Green's fifth image is one of the two of test.
    with pytest.raises(UserError, match=r"no readable training image of green is left in colours"):
        load_dataset(folder).without_broken(0.5)
    truncate(folder / "red" / "4.png")
    with pytest.raises(UserError, match=r"2 of the 2 images of split test"):
        data = load_dataset(folder)
        dataclasses.replace(data, splits={"test": data.splits["test"]}).without_broken(1.0)


def test_the_check_of_many_images_is_kept_until_one_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(cached_passes, "KEPT_FROM", 3)
    truncate(folder / "green" / "2.png")
    found = load_dataset(folder).without_broken(0.1)[1]
    monkeypatch.setattr(broken_images, "decode_image", lambda data: pytest.fail("decoded again"))
    assert load_dataset(folder).splits["train"].broken() == [(2, *found[0][1:])]
    write_image(folder / "red" / "0.png", (201, 0, 0), size=(30, 20))
    with pytest.raises(pytest.fail.Exception, match="decoded again"):
        load_dataset(folder).splits["train"].broken()


@pytest.mark.parametrize("spoil", [None, "{", "[]", '{"a": 1}', "[[1], [2], [3]]", "null", '"x"'])
def test_a_pass_is_made_once_and_again_where_the_kept_result_is_not_one(tmp_path, monkeypatch, spoil):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    calls = []

    def compute():
        calls.append(1)
        return [4, 5]

    def find(state="a", images=cached_passes.KEPT_FROM):
        return cached_passes.kept(
            "labels", state, images, compute, lambda found: [type(part) for part in found] == [int, int]
        )

    assert find() == find() == [4, 5] and len(calls) == 1
    (path,) = (tmp_path / "models" / "keras_convnets" / "passes").iterdir()
    if spoil is not None:
        path.write_text(spoil)
    assert find() == [4, 5] and len(calls) == (1 if spoil is None else 2)
    assert find("b") == [4, 5] and find("a", 7) == [4, 5] and len(calls) == (3 if spoil is None else 4)


def test_labels_and_colours_of_records_are_read_once(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(cached_passes, "KEPT_FROM", 3)
    reports = []
    with cached_passes.reporting(lambda *pass_: reports.append(pass_)):
        train = load_dataset("cifar10", prepared).splits["train"]
        labels, view = train.labels, View.of_size(32, 32)
        colours = kept_components(train.at_size(view, 0))
    assert reports[0] == ("reading labels", 30, 30) and reports[-1] == ("measuring colours", 30, 30)
    with cached_passes.reporting(lambda *_: pytest.fail("passed over the images again")):
        again = load_dataset("cifar10", prepared).splits["train"]
        assert (again.labels == labels).all()
        for one, other in zip(kept_components(again.at_size(view, 0)), colours, strict=True):
            assert (one == other).all()
        with pytest.raises(pytest.fail.Exception, match="passed over"):
            kept_components(again.at_size(View.of_size(16, 16), 0))


def test_a_dry_run_looks_at_a_sample_of_known_size(folder, prepared, monkeypatch):
    monkeypatch.setattr(plan, "DRY_RUN_IMAGES", 4)
    monkeypatch.setattr(cached_passes, "KEPT_FROM", 10**9)
    reports = {}
    with cached_passes.reporting(lambda doing, done, total: reports.update({(doing, total): done})):
        for data, sizes in ((folder, {"train": 7, "test": 2}), ("cifar10", {"train": 27, "test": 10})):
            holdout = {"holdout": sum(sizes.values()) == 9 and 3 or 0.1}
            held = {"holdout": 3}
            made = plan.make_plan(
                "ResNet20", data, None, {"epochs": 2, "batch_size": 3, **holdout}, prepared, sampled=True
            )
            assert made.images == {**sizes, **held} and made.total_steps == -(-2 * sizes["train"] // 3)
            assert {name: split.size for name, split in made.data.splits.items() if name != "test"} == (
                {"train": 3, "holdout": 1}
            )
    assert max(total for _, total in reports) <= 4
    with pytest.raises(UserError, match="hold out between 1 and 9"):
        plan.make_plan("ResNet20", folder, None, {"holdout": 50}, None, sampled=True)


def test_long_passes_say_how_far_they_are(monkeypatch):
    times, console = iter([0.0, 2.0, 6.0, 7.0, 12.0]), Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    tell = progress.PassProgress(console)
    for done in (0, 200, 600, 700, 1000):
        tell("reading labels", done, 1600)
    assert console.file.getvalue().splitlines() == [
        "reading labels: 600 of 1,600 images, 100 images/s, 0:10 left",
        "reading labels: 1,000 of 1,600 images, 83 images/s, 0:07 left",
    ]


def test_splits_may_be_left_as_they_are(folder):
    data = load_dataset(folder)
    sized = data.at_size(8, 8, leaving={"train": data.splits["train"]})
    assert sized.splits["train"] is data.splits["train"] and list(sized.splits) == ["train", "test"]
    assert sized.splits["test"].images.shape == (2, 8, 8, 3)


def test_splits_must_have_the_same_classes(folder):
    (folder.parent / "split").mkdir()
    folder.rename(folder.parent / "split" / "train")
    write_image(folder.parent / "split" / "val" / "blue" / "x.png", (0, 0, 200))
    with pytest.raises(UserError, match="every split needs the same sub-folders"):
        load_dataset(folder.parent / "split")


@pytest.mark.parametrize("name, sentence", [
    ("cifr10", r"unknown data set 'cifr10'; the nearest valid names are cifar10"),
    ("./nothing", r"there is no folder ./nothing"),
])  # fmt: skip
def test_unknown_data_names_the_nearest(name, sentence):
    with pytest.raises(UserError, match=sentence):
        load_dataset(name)


def test_offline_says_at_once_where_the_data_may_be_put(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", offline)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="Name or service not known") as error:
        load_dataset("cifar100", tmp_path)
    assert f"{tmp_path}/cifar100/<version>" in str(error.value) and "--data_dir" in str(error.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared TFDS directory of 40 made images under a catalogue name, written by TFDS itself."""
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(10)}

        def _generate_examples(self, count):
            for index in range(count):
                yield index, {"image": np.full((32, 32, 3), index, np.uint8), "label": index % 2}

    root = tmp_path_factory.mktemp("tfds")
    Cifar10(data_dir=root).download_and_prepare()
    return root


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_prepared_directory_is_read_without_a_network(prepared, monkeypatch, way):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("the network was asked"))
    if way == "variable":
        monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    data = load_dataset("cifar10", prepared if way == "argument" else None)
    assert data.image_size == (32, 32) and data.class_names == ("0", "1")
    assert {name: split.size for name, split in data.splits.items()} == {"train": 30, "test": 10}
    train = data.at_size(32, 32).splits["train"]
    assert sorted(train.images[:, 0, 0, 0]) == list(range(30))
    assert (train.images[:, 0, 0, 0] % 2 == train.labels).all()


@pytest.mark.parametrize("name, images", [
    ("emnist/letters", 30), ("emnist/letters:3.1.0", 30), ("emnist/letters:3.0.9", 40), ("emnist/letters:3.1.*", 30),
    ("imagenet_resized/64x64", 30), ("imagenet_resized", 30), ("cifar10:3.0.2", 30),
])  # fmt: skip
def test_configs_and_versions_are_read_from_the_disk(several, monkeypatch, name, images):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("the network was asked"))
    data = load_dataset(name, several)
    assert data.name == name and data.splits["train"].size == images
    assert data.flips_keep_labels == (not name.startswith("emnist"))


@pytest.fixture(scope="module")
def several(prepared, tmp_path_factory):
    """The prepared directory under the names of other data sets with configs, of two versions."""
    root = tmp_path_factory.mktemp("several")
    places = ("emnist/letters/3.1.0", "emnist/letters/3.0.9", "emnist/digits/3.1.0", "imagenet_resized/64x64/0.1.0")
    for place in (*places, "cifar10/3.0.2"):
        shutil.copytree(prepared / "cifar10" / "3.0.2", root / place)
    # Another number of images tells the older version.
    info = root / "emnist/letters/3.0.9/dataset_info.json"
    facts = json.loads(info.read_text())
    facts["splits"] = [{**split, "shardLengths": ["40"]} for split in facts["splits"]]
    info.write_text(json.dumps(facts))
    return root


@pytest.mark.parametrize("name, sentence", [
    ("emnist", r"prepared in .* in several forms \(digits, letters\); name one, such as emnist/digits"),
    ("photos/holiday", r"there is no folder photos/holiday, and TensorFlow Datasets has no photos"),
    ("photos/../x", r"there is no folder photos/../x"),
    ("cifr10:3.0.2", r"unknown data set 'cifr10:3.0.2'"),
])  # fmt: skip
def test_what_is_neither_folder_nor_config_is_reported(several, name, sentence):
    with pytest.raises(UserError, match=sentence):
        load_dataset(name, several)


def test_a_folder_that_exists_is_a_folder_whatever_its_name(folder, several, monkeypatch):
    folder.rename(folder.parent / "letters")
    monkeypatch.chdir(folder.parent.parent)
    (folder.parent).rename("emnist")
    assert load_dataset("emnist/letters", several).class_names == ("green", "red")


def test_records_stream_with_holdout_and_go_on_where_they_were_left(prepared):
    data = load_dataset("cifar10", prepared).with_holdout(6)
    streamed, held = data.at_size(32, 32, memory_limit=0), data.at_size(32, 32)
    for name in ("train", "holdout"):
        in_order = np.concatenate([images for images, _ in streamed.splits[name].in_order(7).as_numpy_iterator()])
        assert (in_order == held.splits[name].images).all()

    def values(first, batches):
        stream = streamed.splits["train"].shuffled(4, seed=3, first=first).take(batches)
        return np.concatenate([images[:, 0, 0, 0] for images, _ in stream.as_numpy_iterator()])

    unbroken = values(0, 12)
    # Training sets TensorFlow's own seed, often to 0; the order is the same with it and without.
    tf.random.set_seed(0)
    assert sorted(unbroken[:24]) == sorted(held.splits["train"].images[:, 0, 0, 0])
    assert (unbroken[:24] != unbroken[24:]).any()
    assert (values(20, 5) == unbroken[20:40]).all()
    encoded = streamed.splits["train"].encoded_shuffled(seed=3, first=20).take(20)
    assert [tf.io.decode_png(data)[0, 0, 0] for data, _, _ in encoded] == unbroken[20:40].tolist()
    with pytest.raises(UserError, match="drawing every class equally often needs"):
        streamed.splits["train"].shuffled(4, seed=3, balanced=True)


@pytest.mark.heavy
def test_the_real_cifar10(real_data):
    data = load_dataset("cifar10", real_data / "tfds").at_size(32, 32)
    assert data.class_names[:3] == ("airplane", "automobile", "bird") and data.flips_keep_labels
    # 5,000 of the 50,000 training images: the means are near the published ones of all (125.3, 123.0, 113.9).
    np.testing.assert_allclose(data.splits["train"].images.mean((0, 1, 2)), (125.3, 123.0, 113.9), atol=1.5)


def test_photographs_keep_their_shape_in_the_centre_view(real_data):
    data = load_dataset(real_data / "ants_bees")
    assert {name: split.size for name, split in data.splits.items()} == {"train": 245, "val": 153}
    first = data.splits["val"].paths[0]
    data = dataclasses.replace(data, splits={"val": data.splits["val"].subset(np.arange(3))})
    with Image.open(first) as photograph:
        scale = 64 / min(photograph.size)
        small = photograph.convert("RGB").resize([round(side * scale) for side in photograph.size], Image.BILINEAR)
    left, top = (small.width - 64) // 2, (small.height - 64) // 2
    expected = np.asarray(small.crop((left, top, left + 64, top + 64)), int)
    got = next(iter(data.at_size(64, 64).splits["val"].in_order(1)))[0][0].numpy().astype(int)
    # Pillow rounds between its two passes and rounds the kernel; a wrong crop or an aliased resize differs by tens.
    assert np.abs(got - expected).mean() < 1.0
    assert np.abs(got - expected).max() <= 8


def test_arrays_that_are_no_images_are_refused():
    with pytest.raises(UserError, match=r"must be \[n, height, width, 3\]"):
        ArraySplit(np.zeros((3, 8, 8), np.uint8), np.zeros(3))


def test_decoding_is_pillows(tmp_path):
    """The accurate integer DCT: equal to Pillow's decoder, to the level."""
    from keras_convnets.images.decoding import decode_image

    photograph = sklearn_datasets.load_sample_image("china.jpg")
    encoded = io.BytesIO()
    Image.fromarray(photograph).save(encoded, "JPEG", quality=90, subsampling=0)
    pillow = np.asarray(Image.open(encoded).convert("RGB"), int)
    ours = decode_image(tf.constant(encoded.getvalue())).numpy().astype(int)
    assert np.abs(ours - pillow).max() <= 1


@pytest.mark.parametrize("mode, kind", [("L", "PNG"), ("RGBA", "PNG"), ("RGB", "BMP"), ("P", "GIF"), ("L", "JPEG")])
def test_other_kinds_of_image_become_rgb(mode, kind):
    from keras_convnets.images.decoding import decode_image

    encoded = io.BytesIO()
    Image.new("RGB", (20, 10), (51, 51, 51)).convert(mode).save(encoded, kind)
    image = decode_image(tf.constant(encoded.getvalue())).numpy()
    assert image.shape == (10, 20, 3) and np.abs(image.astype(int) - 51).max() <= 2


@pytest.mark.parametrize("images, expected", [
    (0, set()), (39, {"holdout", "val"}), pytest.param(60, {"train", "holdout"}, marks=pytest.mark.heavy),
    (79, {"train", "holdout", "val"}), pytest.param(80, {"train", "val", "test", "holdout"}, marks=pytest.mark.heavy),
])  # fmt: skip
def test_one_limit_holds_for_the_decoded_images_of_all_splits(tmp_path, images, expected):
    write_image(tmp_path / "red.png", (200, 0, 0), size=(4, 4))
    splits = {}
    for name, size in {"train": 40, "val": 10, "test": 10, "holdout": 20}.items():
        splits[name] = FileSplit([tmp_path / "red.png"] * size, np.arange(size) % 2)
        splits[name].checked = True
    limit = images * 4 * 4 * 3
    data = DataSet("made", ("a", "b"), True, splits, None)
    sized = data.at_size(4, 4, memory_limit=limit)
    found = {name for name, split in sized.splits.items() if isinstance(split, ArraySplit)}
    assert found == expected and list(sized.splits) == list(splits)
    assert sum(sized.splits[name].images.nbytes for name in found) <= limit
    # What is left as it is counts too, where it is decoded.
    kept = {"train": ArraySplit(np.zeros((40, 4, 4, 3), np.uint8), np.arange(40) % 2)}
    beside = data.at_size(4, 4, memory_limit=limit, leaving=kept).splits
    assert {name for name, split in beside.items() if isinstance(split, ArraySplit)} == (
        expected if "train" in expected else {"train"}
    )


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from Linux' /proc")
def test_arrays_are_held_once_whatever_is_read_of_them():
    """Streams, subsets and fingerprints of 96 MB take little more than those."""
    images = np.zeros((2_000, 128, 125, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(2_000) % 251
    split = ArraySplit(images, np.arange(2_000) % 2)
    del images
    next(iter(split.subset(np.arange(10)).in_order(1)))
    before = resident()
    tracemalloc.start()
    part = split.subset(np.arange(1, 2_000))
    assert split.fingerprint() != part.fingerprint()
    streams = [iter(stream) for one in (split, part) for stream in (one.in_order(8), one.shuffled(8, 0))]
    assert next(streams[2])[0].numpy()[:, 0, 0, 0].tolist() == list(range(1, 9))
    first = [next(stream) for stream in streams]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6 and resident() - before < 60e6 and len(first) == 4


def test_a_subset_in_memory_is_what_a_copy_of_it_would_be():
    split, at = numbered(300), np.array([7, 3, 290, 11, 12, 3])
    part = split.subset(np.arange(0, 300, 2)).subset(at // 2)
    copy = ArraySplit(split.images[at // 2 * 2], split.labels[at // 2 * 2])
    assert (part.images == copy.images).all() and part.fingerprint() == copy.fingerprint()
    assert np.shares_memory(part._stored, split.images)
    for one, other in (
        (part.in_order(4), copy.in_order(4)),
        (part.shuffled(4, 1).take(5), copy.shuffled(4, 1).take(5)),
    ):
        for got, expected in zip(one, other, strict=True):
            assert all((a.numpy() == b.numpy()).all() for a, b in zip(got, expected, strict=True))
    assert [data.numpy() for data, *_ in part.encoded_in_order()] == [d.numpy() for d, *_ in copy.encoded_in_order()]


def test_decoding_fills_one_array():
    split = ArraySplit(np.zeros((600, 16, 16, 3), np.uint8), np.arange(600) % 2)
    view = View(128, (128, 128))
    tracemalloc.start()
    sized = split.at_size(view, 10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * sized.images.nbytes == 1.3 * 600 * 128 * 128 * 3


def test_hidden_labels_stay_hidden_in_memory():
    split = ArraySplit(np.zeros((3, 8, 8, 3), np.uint8), [-1, -1, -1])
    assert not split.labelled and not split.at_size(View(4, (4, 4)), 10**6).labelled
