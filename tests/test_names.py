"""Names from data, files and cards: never another path, a second line or a terminal's escape sequence."""

from __future__ import annotations

import json
import os
import re
import types

import keras
import numpy as np
import pytest
from PIL import Image

from keras_convnets.card import ModelCard
from keras_convnets.classes import check_class_names
from keras_convnets.commands.main import main
from keras_convnets.display import answers_text, printable
from keras_convnets.errors import UserError
from keras_convnets.export.samples import gather
from keras_convnets.files import MAX_NAME_BYTES, folded_name, read_json, safe_name, safe_names, write_json
from keras_convnets.images.preprocessing import IMAGENET
from keras_convnets.images.view import View
from keras_convnets.training import Run, load_dataset
from keras_convnets.training.data import ArraySplit, DataSet, cached_passes
from keras_convnets.training.data.preparation import prepare_folder
from keras_convnets.training.data.verification import verify_folder
from keras_convnets.training.evaluation import Evaluation

VIEW = View(8, (8, 8))
ODD = [
    "ant", "Ant", "../ant", "/a/abbey", "..", ".", "", ".ant", "ant ", "ant.", " ant", "a\\b", "a/b", "a%2Fb", "50%",
    "%2E%2E", "é", "e\u0301", "straße", "STRASSE", "a\nb", "a\x1b[2Jb", "a\u202eb", "a\udcffb", "a:b", "x" * 400,
    "x" * 399 + "y", "日" * 200, "crane", "crane", ".writing-1", "con~2", "ant%~2", "a*?\"<>|b",
]  # fmt: skip


def test_safe_names_are_one_part_of_a_path_each_and_all_different(tmp_path):
    parts = safe_names(ODD)
    assert len(set(map(folded_name, parts))) == len(ODD) and parts == safe_names(ODD)
    for name, part in zip(ODD, parts, strict=True):
        assert os.path.basename(part) == part and not re.search(r'^\.|[\x00-\x1f\\/:*?"<>|\ud800-\udfff]|[. ]$', part)
        assert 0 < len(part.encode()) <= MAX_NAME_BYTES + 5 and part.isprintable(), name
        (tmp_path / part).mkdir()
    assert len(list(tmp_path.iterdir())) == len(ODD)
    plain = ["ant", "bald eagle", "n01440764", "rock crab, Cancer irroratus", "日本", "O'Neill (1)"]
    assert safe_names(plain) == plain
    assert (safe_name("/a/abbey"), safe_name("..")) == ("%2Fa%2Fabbey", "%2E%2E")


def test_what_is_shown_is_text():
    assert printable("bald eagle, São\u00a0Paulo 日本 \u200c") == "bald eagle, São\u00a0Paulo 日本 \u200c"
    assert printable("a\x1b[2J\nb\x9b\u202e\udcff\r\t") == r"a\x1b[2J\nb\x9b\u202e\udcff\r\t"
    assert str(UserError("ants\x1b]0;x\x07 are\nno bees")) == r"ants\x1b]0;x\x07 are" + "\nno bees"
    found = [{"image": "a\x1bb.png", "classes": [{"class": "ant\nbee", "probability": 0.5}]}]
    assert answers_text(found, "#").splitlines() == [r"a\x1bb.png", r"  ant\nbee   50.0%  ###############"]


def card(names):
    return ModelCard("ResNet20", {"classes": len(names)}, tuple(names), IMAGENET, VIEW)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "", "a\u2028b", "a\udcffb", "x" * 1001, "a\x85b", 7])
def test_class_names_that_are_no_lines_of_text_are_refused_wherever_they_come_from(name):
    split = ArraySplit(np.zeros((2, 8, 8, 3), np.uint8), [0, 1])
    with pytest.raises(UserError, match=r"class 1 of data set made is named .*without control characters"):
        DataSet("made", ("a", name), True, {"train": split}, (8, 8))
    with pytest.raises(UserError, match=r"class 1 of the model card of ResNet20"):
        card(["a", name])
    plain = {**card(["a", "b"]).to_dict(), "class_names": ["a", name]}
    with pytest.raises(UserError, match=r"class 1 of the model card of ResNet20"):
        ModelCard.from_dict(plain)
    check_class_names(["/a/abbey", "..", "日本"], "a data set")


def test_samples_of_any_class_names_stay_in_the_run_and_come_back_with_their_class(tmp_path):
    names = ["../../outside", "/a/abbey", "a%2Fb", "a/b", "Ant", "ant", "crane", "crane", ".."]
    images = np.arange(len(names) * 2, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    split = ArraySplit(images, np.arange(len(names) * 2) % len(names))
    data = DataSet("made", tuple(names), True, {"test": split}, (8, 8))
    run = Run(tmp_path / "a" / "b" / "run")
    run.path.mkdir(parents=True)
    run.save_samples(data)
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()].count("samples") == 1
    written = list(tmp_path.rglob("*.png"))
    assert len(written) == len(names) * 2 - 1
    assert all(len(path.relative_to(run.path / "samples").parts) == 2 for path in written)
    samples = gather(card(names), run.path)
    for encoded, label in zip(samples.encoded, samples.labels, strict=True):
        path = next(path for path in written if path.read_bytes() == encoded)
        assert label == np.asarray(Image.open(path))[0, 0, 0] % len(names)
    # A folder made by the user has the class's original name.
    (tmp_path / "mine" / "a%2Fb").mkdir(parents=True)
    written[0].rename(tmp_path / "mine" / "a%2Fb" / "1.png")
    assert gather(card(names), folder=tmp_path / "mine").labels.tolist() == [2]


def colours(folder, names=("ants", "bees"), count=3, suffix="png"):
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (12, 10), (90 * label, 80 * index, 50)).save(folder / name / f"{index}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    prepare_folder(colours(root / "source"), root / "shards", 8, "tfrecord")
    return root / "shards"


def changed(key, value):
    return lambda index: index.update({key: value})


def first_shard(key, value):
    return lambda index: index["shards"][0].update({key: value})


SHARD = "a shard's file, split, images, bytes or sha256 is missing or wrong"


@pytest.mark.parametrize("change, sentence", [
    (first_shard("file", "/etc/passwd"), SHARD),
    (first_shard("file", "../train-00000-of-00001.tfrecord"), SHARD),
    (first_shard("file", ["train"]), SHARD),
    (first_shard("bytes", -1), SHARD),
    (first_shard("bytes", True), SHARD),
    (first_shard("images", 10**6), SHARD),
    (first_shard("images", 1), "its shards do not add up"),
    (first_shard("split", "../train"), SHARD),
    (first_shard("sha256", "x"), SHARD),
    (lambda index: index["shards"].append(index["shards"][0]), "a shard is listed twice"),
    (changed("shards", {}), SHARD),
    (changed("class_names", "ab"), "its class names are no list"),
    (changed("class_names", ["a", "b\n"]), "class 1 of .*prepared.json is named"),
    (changed("class_names", ["a"]), "a classifier needs at least two"),
    (changed("splits", ["../up"]), "its splits are not some of train, val"),
    (changed("splits", ["train", "train"]), "its splits are no list of names"),
    (changed("splits", ["train", ["val"]]), "its splits are not some of"),
    (changed("splits", ["train", "val"]), "lists no images of val"),
    (changed("image_size", [0, 8]), "its image size is no pair"),
    (changed("image_size", "88"), "its image size is no pair"),
    (changed("images", "6"), "its number of images is none"),
    (changed("name", 3), "it has no name"),
    (changed("finished", "yes"), "it does not say whether it is finished"),
    (changed("left_out", [["train"]]), "the images left out are no lists"),
    (changed("plan", None), "it has no plan"),
    (lambda index: index["plan"].update(format="zip"), "its format is not one of folder, tfrecord"),
    (lambda index: index["plan"].update(shorter_side=0), "its shorter side is no number of pixels"),
    (lambda index: index["plan"].pop("source"), "it does not say what it was made of"),
])  # fmt: skip
def test_an_index_of_shards_is_not_trusted(shards, tmp_path, change, sentence):
    index = read_json(shards / "prepared.json", "index")
    change(index)
    for path in shards.glob("*.tfrecord"):
        os.link(path, tmp_path / path.name)
    write_json(tmp_path / "prepared.json", index)
    with pytest.raises(UserError, match=sentence):
        load_dataset(tmp_path)


def test_a_shard_that_is_a_link_and_an_index_that_is_no_object_are_refused(shards, tmp_path):
    index = read_json(shards / "prepared.json", "index")
    write_json(tmp_path / "prepared.json", index)
    for path in shards.glob("*.tfrecord"):
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(UserError, match=r"train-00000-of-00001.tfrecord is missing or not as it was written"):
        load_dataset(tmp_path)
    write_json(tmp_path / "prepared.json", [1])
    with pytest.raises(UserError, match="it has no plan"):
        load_dataset(tmp_path)


def test_labels_and_counts_of_shards_are_not_trusted(shards, tmp_path):
    index = read_json(shards / "prepared.json", "index")
    for path in shards.glob("*.tfrecord"):
        os.link(path, tmp_path / path.name)
    index["images"] += 1
    index["shards"][0]["images"] += 1
    write_json(tmp_path / "prepared.json", index)
    data = load_dataset(tmp_path)
    with pytest.raises(UserError, match="the stored images are 6 where their description says 7"):
        _ = data.splits["train"].labels
    with pytest.raises(UserError, match="the stored images are 6 where their description says 7"):
        data.at_size(8, 8)
    split = load_dataset(shards).splits["train"]
    split._classes = 1
    with pytest.raises(Exception, match="is not in"):
        list(split.encoded_in_order())


def test_file_names_of_any_bytes_are_read_verified_and_left_out_by_a_line_each(tmp_path, capsys, monkeypatch):
    folder = colours(tmp_path / "data" / "train").parent
    strange = [b"line\nbreak\ttab.png", b"esc\x1b[2J.png", b"latin-\xe9.png"]
    for name in strange:
        with open(os.path.join(os.fsencode(folder / "train" / "ants"), name), "wb") as file:
            file.write(b"no image")
    assert main(["data", "verify", str(folder), "--quarantine"]) == 1
    shown = capsys.readouterr().out
    assert r"train/ants/esc\x1b[2J.png" in shown and "\x1b" not in shown and r"line\nbreak\ttab.png" in shown
    assert len((folder / "quarantine.txt").read_text().splitlines()) == 3
    data = load_dataset(folder)
    assert data.splits["train"].size == 6 and len(data.fingerprint()) == 16
    (folder / "quarantine.txt").unlink()
    assert main(["data", "verify", str(folder), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert sum(finding["fate"] == "skipped" for finding in findings) == 3
    data, broken = load_dataset(folder).without_broken(0.5)
    assert len(broken) == 3 and data.splits["train"].size == 6
    assert len(verify_folder(folder).skipped) == 3


def test_images_that_would_be_written_under_one_name_are_both_written(tmp_path):
    source = colours(tmp_path / "source" / "train").parent
    ants = source / "train" / "ants"
    pixels = {"x.gif": (250, 0, 0), "x.gif.png": (0, 250, 0), "X.GIF.png": (0, 0, 250), "x.gif.jpg": (250, 250, 0)}
    for name, colour in pixels.items():
        Image.new("RGB", (12, 10), colour).save(ants / name)
    done = prepare_folder(source, tmp_path / "out", 8)
    names = [path.name for path in (tmp_path / "out" / "train" / "ants").iterdir()]
    assert done.images == 10 and len(set(map(folded_name, names))) == 7
    found = {tuple(np.asarray(Image.open(path).convert("RGB"))[0, 0] // 100) for path in ants.iterdir()}
    written = {
        tuple(np.asarray(Image.open(path).convert("RGB"))[0, 0] // 100)
        for path in (tmp_path / "out" / "train" / "ants").iterdir()
    }
    assert written == found


def test_classes_that_a_file_system_takes_for_one_are_not_mixed(tmp_path):
    def stopping(done, total):
        raise KeyboardInterrupt

    source = colours(tmp_path / "source" / "train").parent
    with pytest.raises(KeyboardInterrupt):
        prepare_folder(source, tmp_path / "out", 8, progress=stopping)
    for path in (tmp_path / "out" / "train" / "bees").iterdir():
        path.unlink()
    (tmp_path / "out" / "train" / "bees").rmdir()
    (tmp_path / "out" / "train" / "bees").symlink_to(tmp_path / "out" / "train" / "ants")
    with pytest.raises(UserError, match="does not distinguish the names of two classes"):
        prepare_folder(source, tmp_path / "out", 8)


def test_a_kept_check_of_images_is_used_only_if_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(cached_passes, "KEPT_FROM", 1)
    folder = colours(tmp_path / "data" / "train").parent
    (folder / "train" / "ants" / "0.png").write_bytes(b"no image")
    split = load_dataset(folder).splits["train"]
    assert [position for position, *_ in split.broken()] == [0]
    (kept,) = (tmp_path / "keras").rglob("passes/*.json")
    for content in ("[7]", '["0"]', "{}", "[0"):
        kept.write_text(content)
        assert [position for position, *_ in split.broken()] == [0], content


def test_pictures_show_names_as_they_are(tmp_path):
    names = (r"$\frac", "a$b$c", "x" * 300, "\u202eant")
    result = Evaluation(r"$\data", "test", "center", 4, 1.0, None, names, np.eye(4, dtype=int))
    run = Run(tmp_path / "[$run$]")
    run.path.mkdir()
    run.card = types.MethodType(lambda self: card(names), run)
    run.add_evaluation(result)
    assert Image.open(run.path / "plots" / "confusion_matrix.png").width < 1500


def test_errors_and_evaluations_send_no_escape_sequences_to_the_terminal(tmp_path, capsys):
    from keras_convnets.commands.evaluation_text import print_evaluation

    assert main(["data", "verify", f"{tmp_path}/no\x1b[2Jthing"]) == 2
    assert r"no\x1b[2Jthing" in capsys.readouterr().err
    result = Evaluation("d\x1b", "test", "center", 2, 0.5, None, ("\u202eant", "bee"), np.array([[0, 1], [0, 1]]))
    print_evaluation("runs/[/x]\x1b", result)
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable() and r"\u202eant" in shown and "[/x]" in shown


def test_a_name_in_brackets_is_no_markup(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    folder = colours(tmp_path / "[" / "x]" / "train").parent
    assert main(["data", "verify", str(folder)]) == 0


def test_images_for_a_model_from_elsewhere_are_resized_and_centre_cropped():
    from keras_convnets.card import view_of_model

    model = keras.Sequential([keras.Input((16, 24, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    assert view_of_model(model) == View(16, (16, 24))
    assert view_of_model(keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 1)])) is None
