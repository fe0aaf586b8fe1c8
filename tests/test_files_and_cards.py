"""Files that appear whole or not at all, model cards, picture files, and names for scores."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import keras_convnets
from keras_convnets import CIFARResNet, ModelCard, Preprocessing, get_model, list_models, training
from keras_convnets import card as card_module
from keras_convnets.card import FILE_NAME, card_of_model, current_git_revision, current_versions
from keras_convnets.errors import UserError
from keras_convnets.files import (
    UnwritableError,
    only_one,
    read_json,
    remove_abandoned,
    sha256,
    whole_file,
    whole_folder,
    write_json,
    write_text,
    writing,
)
from keras_convnets.images.files import ORIENTATION, encode_png, find_images, read_image, upright
from keras_convnets.images.view import View
from keras_convnets.networks.functional import Functional
from keras_convnets.prediction import Classifier, name_scores


def visible(folder):
    """Return the names that a user or TF Serving sees: those that do not begin with a dot."""
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def test_a_whole_file_appears_when_it_is_finished(tmp_path):
    path = tmp_path / "best.weights.h5"
    with whole_file(path) as temporary:
        assert temporary.parent == tmp_path  # a rename is one step on one file system only
        assert temporary.name.endswith(".weights.h5")  # Keras chooses its format by the suffix
        temporary.write_text("new")
        assert visible(tmp_path) == []
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_whole_file_that_fails_leaves_the_old_one(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), whole_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_whole_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("first", "second"):
        write_text(path, text)
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_whole_file_that_was_not_written_is_an_error(tmp_path):
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "file.txt"):
        pass
    assert (tmp_path / "file.txt").read_text() == "old"


class TensorFlowsError(Exception):
    """As TensorFlow raises them: of its own module, the system's words within, no number."""


TensorFlowsError.__module__ = "tensorflow.python.framework.errors_impl"
SAVE = "{{function_node __wrapped__SaveV2_dtypes_2_device_/job:localhost}} "


@pytest.mark.parametrize("error, reason", [
    (lambda place: OSError(errno.ENOSPC, "x"), "No space left on device"),
    (lambda place: OSError(errno.EDQUOT, "x", "/elsewhere"), "Disk quota exceeded"),
    (lambda place: OSError(errno.EFBIG, "x"), "File too large"),
    (lambda place: OSError(errno.EROFS, "x", str(place / "a" / "b")), "Read-only file system"),
    (lambda place: OSError(errno.EROFS, "x", str(place.parent)), "Read-only file system"),
    (lambda place: PermissionError(errno.EACCES, "x", str(place)), "Permission denied"),
    (lambda place: FileNotFoundError(errno.ENOENT, "x", str(place)), "No such file or directory"),
    (lambda place: OSError(errno.EIO, "x"), "Input/output error"),
    (lambda place: TensorFlowsError(f"{SAVE}{place}/x; No space left on device [Op]"), "No space left on device"),
    (lambda place: TensorFlowsError(f"{place.parent}; Read-only file system"), "Read-only file system"),
    (lambda place: RuntimeError(f"Can't decrement id ref count (name = '{place}', errno = 28, error message"),
     "No space left on device"),
    (lambda place: OSError(errno.EACCES, "x", "/data/image.jpg"), None),
    (lambda place: TensorFlowsError("NewRandomAccessFile failed: /data/image.jpg; No such file or directory"), None),
    (lambda place: TensorFlowsError(f"{place}: shapes differ"), None),
    (lambda place: FileExistsError(errno.EEXIST, "x", str(place)), None),
    (lambda place: OSError(errno.ECONNREFUSED, "x"), None),
    (lambda place: ValueError("x"), None),
])  # fmt: skip
def test_what_can_not_be_written_gets_one_sentence_and_other_errors_pass(tmp_path, error, reason):
    place = tmp_path / "run"
    raised = error(place)
    with pytest.raises(type(raised) if reason is None else UnwritableError) as caught, writing(place, "do this"):
        with writing(place / "part"):
            raise raised
    if reason is None:
        assert caught.value is raised
    else:
        assert isinstance(caught.value, UserError) and isinstance(caught.value, OSError)
        assert str(caught.value) == f"{place} can't be written to ({reason}); do this."


@pytest.mark.parametrize("write", [
    lambda path: write_json(path / "a.json", list(range(3000))),
    lambda path: training.Run(path).save_model(Functional(*small_network()), "best.keras"),
    # HDF5 is not let near a full disk: a file that it can't close would crash the interpreter at its end.
    lambda path: Functional(*small_network()).save_weights(path / "a.weights.h5"),
    lambda path: training.Run(path).save_checkpoint(1, Functional(*small_network()), [], {}),
], ids=["JSON", "network", "weights", "checkpoint"])  # fmt: skip
def test_a_file_that_the_disk_does_not_take_is_named_and_leaves_nothing(tmp_path, write):
    """The limit of a file's size stands for a full disk: what writes gets the system's own error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(UnwritableError) as caught:
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path) in str(caught.value) and "can't be written to (File too large)" in str(caught.value)
    assert "\n" not in str(caught.value) and not [path for path in tmp_path.rglob("*") if path.is_file()]


def small_network():
    inputs = keras.Input((64,))
    return inputs, keras.layers.Dense(64)(inputs)


@contextlib.contextmanager
def child(code, *arguments):
    """Run code in a fresh process, yield it once it has printed a line, and kill it without mercy at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


# Each holds something half done until it is killed; it ends by itself when this process is gone.
WRITES_A_FILE = """
import sys
from keras_convnets.files import whole_file
with whole_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""
FILLS_A_FOLDER = """
import sys
from keras_convnets.files import whole_folder
with whole_folder(sys.argv[1]) as temporary:
    (temporary / "half").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""
HOLDS_A_LOCK = """
import sys
from keras_convnets.files import only_one
with only_one(sys.argv[1], "trained in"):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with child(WRITES_A_FILE, path):
        assert len(os.listdir(tmp_path)) == 2  # it is indeed in the middle
        assert path.read_text() == "old"
    assert path.read_text() == "old" and visible(tmp_path) == ["file.txt"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_writer_that_is_killed_leaves_no_folder(tmp_path):
    path = tmp_path / "1"
    with child(FILLS_A_FOLDER, path):
        assert len(os.listdir(tmp_path)) == 2  # the folder and its lock
        remove_abandoned(tmp_path)
        assert len(os.listdir(tmp_path)) == 2
    assert visible(tmp_path) == []
    with whole_folder(path) as temporary:
        (temporary / "whole").touch()
    assert visible(tmp_path) == ["1"] and os.listdir(path) == ["whole"]
    (tmp_path / ".writing-2-alone.lock").touch()
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == ["1"]


def test_a_whole_folder_appears_when_it_is_finished(tmp_path):
    path = tmp_path / "models" / "1"
    with whole_folder(path) as temporary:
        (temporary / "variables").mkdir()
        (temporary / "variables" / "data").write_text("data")
        assert temporary.parent == path.parent and visible(path.parent) == []
    assert (path / "variables" / "data").read_text() == "data"
    assert os.listdir(path.parent) == ["1"]
    assert path.stat().st_mode & 0o777 == 0o755  # another account, such as TF Serving's, reads it


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_whole_folder_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "1") as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [[], ["old"]], ids=["empty", "filled"])
def test_a_whole_folder_overwrites_nothing(tmp_path, content):
    path = tmp_path / "1"
    path.mkdir()
    for name in content:
        (path / name).write_text(name)
    with pytest.raises(FileExistsError, match="exists already"), whole_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert os.listdir(tmp_path) == ["1"] and os.listdir(path) == content


def test_only_one_holder_in_a_process(tmp_path):
    with only_one(tmp_path, "trained in"):
        with pytest.raises(UserError, match="is being trained in by another process"), only_one(tmp_path, "trained in"):
            pytest.fail("two hold the lock")
    with only_one(tmp_path, "trained in"):  # it is free again
        pass


def test_the_lock_goes_with_its_process(tmp_path):
    with child(HOLDS_A_LOCK, tmp_path):
        with pytest.raises(UserError, match="another process"), only_one(tmp_path, "trained in"):
            pytest.fail("two hold the lock")
    with only_one(tmp_path, "trained in"):
        pass


def test_an_error_in_its_holder_frees_the_lock(tmp_path):
    with pytest.raises(RuntimeError), only_one(tmp_path, "trained in"):
        raise RuntimeError
    with only_one(tmp_path, "trained in"):
        pass


def test_json_round_trip(tmp_path):
    data = {"é": [1, 2.5, None, True], "nested": {"猫": "cat"}}
    write_json(tmp_path / "file.json", data)
    assert read_json(tmp_path / "file.json", "file") == data
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert "猫" in text and text.endswith("}\n")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert read_json(path, "file") == 1


@pytest.mark.parametrize(
    "content, sentence",
    [(None, "there is no model card at"), (b"{", "is not a model card"), (b"\xff\xfe{}", "is not a model card")],
    ids=["missing", "broken", "not text"],
)
def test_json_that_is_not_there_or_broken(tmp_path, content, sentence):
    path = tmp_path / "model.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_json(path, "model card")
    assert str(path) in str(caught.value)


def test_sha256(tmp_path):
    content = os.urandom(3_000_000)  # longer than a reader's buffer
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def filled_card():
    """A card with something of its own in every field."""
    return ModelCard(
        architecture="ResNet20",
        arguments={"classes": 2, "input_shape": [8, 8, 3]},
        class_names=("猫", "dog"),
        preprocessing=Preprocessing(
            (1.5, 2.5, 3.5), (2.0, 3.0, 4.0), "BGR", np.random.default_rng(0).uniform(size=(8, 8, 3))
        ),
        view=View(8, (8, 8)),
        trained=True,
        data={"name": "animals", "train": 10},
        recipe={"epochs": 3, "learning_rate": 0.1},
        metrics={"animals/test/center": {"top1": 0.1, "n": 4}},
        seed=7,
        weights={"file": "best.keras", "sha256": "0" * 64},
        versions=current_versions(),
        git_revision="f" * 40,
        class_ids=("n1", "n2"),
        export={"onnx": 1e-7},
    )


@pytest.mark.parametrize("whole_path", [False, True], ids=["folder", "file"])
def test_card_round_trip(tmp_path, whole_path):
    card = filled_card()
    empty = ModelCard("", {}, (), card.preprocessing, card.view)
    for field in dataclasses.fields(card)[5:]:  # those with a default: each must differ from it to show a loss
        assert getattr(card, field.name) != getattr(empty, field.name)
    card.write(tmp_path)
    assert os.listdir(tmp_path) == [FILE_NAME] == ["model.json"]
    back = ModelCard.read(tmp_path / FILE_NAME if whole_path else tmp_path)
    for field in dataclasses.fields(card):
        assert getattr(back, field.name) == getattr(card, field.name), field.name
    assert isinstance(back.class_names, tuple)


def test_a_card_with_fields_of_a_later_version_is_read():
    assert ModelCard.from_dict({**filled_card().to_dict(), "colour": "blue"}) == filled_card()


def test_metrics_are_added_to_a_card():
    card = filled_card()
    more = card.with_metrics("animals/val/center", {"top1": 0.2, "n": 5})
    assert more.metrics == {
        "animals/test/center": {"top1": 0.1, "n": 4},
        "animals/val/center": {"top1": 0.2, "n": 5},
    }
    assert card == filled_card()


@pytest.mark.parametrize("plain", [[], {}, "card", {**filled_card().to_dict(), "format": 2}])
def test_a_card_of_another_format_is_refused(tmp_path, plain):
    write_json(tmp_path / FILE_NAME, plain)
    with pytest.raises(UserError, match="is not a model card of format 1") as caught:
        ModelCard.read(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(caught.value)


@pytest.mark.parametrize("field", ["architecture", "arguments", "class_names", "preprocessing", "view"])
def test_a_card_that_lacks_a_field_is_refused(field):
    plain = filled_card().to_dict()
    del plain[field]
    with pytest.raises(UserError, match=f"is not a whole model card.*{field}"):
        ModelCard.from_dict(plain)


def test_a_folder_without_a_card(tmp_path):
    with pytest.raises(UserError, match="there is no model card at"):
        ModelCard.read(tmp_path)


def test_versions_name_what_a_result_depends_on():
    versions = current_versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["keras"] == keras.__version__ and versions["numpy"] == np.__version__
    assert {"tensorflow", "keras-convnets"} <= set(versions)


def test_git_revision_is_a_revision_or_nothing():
    revision = current_git_revision()
    assert revision is None or (len(revision) == 40 and set(revision) <= set("0123456789abcdef"))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_git_revision_is_that_of_this_packages_own_checkout(tmp_path, monkeypatch):
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    places = [tmp_path / folder / "keras_convnets" / "card.py" for folder in ("", "vendor", ".venv/site-packages")]
    for place in places:
        place.parent.mkdir(parents=True)
        place.touch()
    git("init", "-q")
    git("add", "keras_convnets", "vendor")
    git("commit", "-q", "-m", "both")
    found = []
    for place in places:
        monkeypatch.setattr(card_module, "__file__", str(place))
        found.append(current_git_revision())
    # Tracked at the top, as here; a copy that somebody else's repository tracks; one installed inside it.
    assert found == [git("rev-parse", "HEAD"), None, None]
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere" / "keras_convnets"
    elsewhere.mkdir(parents=True)
    monkeypatch.setattr(card_module, "__file__", str(elsewhere / "card.py"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as within a hook
    assert current_git_revision() is None


def test_no_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert current_git_revision() is None


def test_card_of_a_model():
    preset = Preprocessing((1.0, 2.0, 3.0), order="BGR")
    model = CIFARResNet(8, classes=3, input_shape=(12, 8, 3), preprocessing=preset)
    card = card_of_model(model)
    assert (card.architecture, card.trained) == ("CIFARResNet", False)
    assert card.arguments == {"depth": 8, "classes": 3, "input_shape": [12, 8, 3]}
    assert card.class_names == ("0", "1", "2") and card.preprocessing == preset
    # The shorter side of a picture becomes the input's shorter side, and its centre is kept.
    assert card.view == View(8, (12, 8))
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    assert card_of_model(model, ("a", "b", "c")).class_names == ("a", "b", "c")


def test_card_of_a_model_that_does_not_normalise():
    inputs = keras.Input((4, 4, 3))
    outputs = keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(inputs))
    assert card_of_model(keras.Model(inputs, outputs)).preprocessing == Preprocessing((0, 0, 0))


def test_a_card_of_another_packages_model_names_no_builder():
    inputs = keras.Input((4, 4, 3))
    outputs = keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(inputs))
    card = card_of_model(keras.Model(inputs, outputs, name="ResNet20"))
    assert (card.architecture, card.arguments) == ("ResNet20", {})
    with pytest.raises(UserError, match="made by no builder of this package"):
        card.build()


def test_a_card_names_the_builder_and_what_it_took(tmp_path):
    arguments = {"shortcut": "A", "name": "mine", "classes": 4, "input_shape": (32, np.int64(40), 3)}
    model = keras_convnets.ResNet18(**arguments, classifier_activation=keras.activations.softmax)
    expected = {"shortcut": "A", "name": "mine", "classes": 4, "input_shape": [32, 40, 3]}
    card = card_of_model(model)
    assert (card.architecture, dict(card.arguments)) == ("ResNet18", expected)
    # A part of a network, or one with layers before it, is another network.
    part = keras.Model(model.input, keras.layers.Dense(2)(model.get_layer("avg_pool").output))
    assert card_of_model(part).arguments == {}
    inputs = keras.Input((8, 8, 3))
    assert card_of_model(CIFARResNet(8, input_tensor=keras.layers.ReLU()(inputs))).arguments == {}
    assert card_of_model(CIFARResNet(8, input_tensor=inputs)).arguments["depth"] == 8


def test_keras_names_this_package_where_it_is_not_imported(tmp_path, monkeypatch):
    images = keras.Input((2,))
    Functional(images, keras.layers.Dense(1)(images), name="tiny").save(tmp_path / "tiny.keras")
    assert keras.saving.load_model(tmp_path / "tiny.keras").name == "tiny"
    monkeypatch.delitem(keras.saving.get_custom_objects(), "keras_convnets>Functional")
    with pytest.raises(TypeError) as raised:
        keras.saving.load_model(tmp_path / "tiny.keras")
    sentence = str(raised.value)
    assert "'import keras_convnets' before loading it" in sentence
    # Of what the file says it stands first, so that it is seen before a thousand lines of layers.
    assert sentence.index("import keras_convnets") - sentence.index("Full object config") < 150


def test_the_builder_is_known_from_a_file(tmp_path):
    constants = {"k": 1.0, "alpha": np.float32(2e-5)}
    model = keras_convnets.GoogLeNet(
        input_shape=(80, 80, 3), classes=5, auxiliary=True, lrn=constants, include_preprocessing=False
    )
    model.save(tmp_path / "own.keras")
    loaded = keras.saving.load_model(tmp_path / "own.keras")
    for network, further in ((loaded, {"auxiliary": True}), (keras_convnets.without_auxiliary(loaded), {})):
        card = ModelCard.from_dict(json.loads(json.dumps(card_of_model(network).to_dict())))
        lrn = {"k": 1.0, "alpha": float(np.float32(2e-5))}
        expected = {"classes": 5, "input_shape": [80, 80, 3], "lrn": lrn, "include_preprocessing": False, **further}
        assert (card.architecture, card.arguments) == ("GoogLeNet", expected)
    model.save(tmp_path / "own.h5")
    assert card_of_model(keras.saving.load_model(tmp_path / "own.h5")).arguments == {}


# One network of each module and way to build it; what all of them note is tested where all of them are built.
REBUILT = {
    "AlexNetSixConvs": {"lrn": {"k": 1.0}},
    "GoogLeNet": {"classifier_activation": None},
    "ResNet18": {"shortcut": "C"},
    "PlainNet18": {"include_preprocessing": False},
    "ResNet20": {"preprocessing": Preprocessing((1.0, 2.0, 3.0), order="BGR"), "name": "mine"},
}


def zeros(self, shape, dtype=None):
    return keras.ops.zeros(shape, dtype)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in REBUILT else pytest.mark.heavy) for name in list_models()]
)
def test_a_network_is_built_again_from_its_card(name, tmp_path, monkeypatch):
    # Drawing tens of millions of random numbers takes most of the time, and none is looked at.
    monkeypatch.setattr(keras.initializers.RandomNormal, "__call__", zeros)
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)
    side = 32 if name.startswith(("ResNet", "Plain", "VGG")) else 64
    model = get_model(name, classes=3, input_shape=(side, side, 3), **REBUILT.get(name, {}))
    model.get_layer("predictions").bias.assign([1.0, 2.0, 3.0])
    model.save_weights(tmp_path / "own.weights.h5")
    card = ModelCard.from_dict(json.loads(json.dumps(card_of_model(model).to_dict())))
    assert card.architecture == name
    again = card.build(weights=tmp_path / "own.weights.h5")
    assert again.built_as == model.built_as and again.to_json() == model.to_json()
    np.testing.assert_array_equal(again.get_layer("predictions").bias, [1.0, 2.0, 3.0])
    (tmp_path / "own.weights.h5").unlink()


def test_a_card_with_arguments_that_no_builder_takes():
    for architecture, arguments in (("ResNet20", {"dilation": 2}), ("get_model", {"name": "ResNet20"})):
        card = dataclasses.replace(filled_card(), architecture=architecture, arguments=arguments)
        with pytest.raises(UserError, match="arguments are none of ResNet20's|made by no builder"):
            card.build()


@pytest.mark.parametrize("name", ["../../other.keras", "/etc/passwd", "a/b.keras", "..", 7])
def test_a_card_that_names_a_file_elsewhere_is_refused(name):
    with pytest.raises(UserError, match="must lie beside the card"):
        ModelCard.from_dict({**filled_card().to_dict(), "weights": {"file": name, "sha256": "0" * 64}})


def two_outputs():
    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, [keras.layers.GlobalAveragePooling2D()(inputs), inputs])


def two_inputs():
    first, second = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    return keras.Model([first, second], keras.layers.GlobalAveragePooling2D()(first + second))


def of_grey_images():
    inputs = keras.Input((4, 4, 1))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))


def of_vectors():
    inputs = keras.Input((7,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


@pytest.mark.parametrize(
    "build",
    [
        lambda: CIFARResNet(8, include_top=False),
        lambda: CIFARResNet(8, input_shape=(None, None, 3)),
        lambda: CIFARResNet(8, input_shape=(8, None, 3)),
        two_outputs,
        two_inputs,
        of_vectors,
        of_grey_images,
    ],
    ids=["feature map", "any size", "any width", "two outputs", "two inputs", "vectors", "grey images"],
)
def test_a_model_that_is_no_classifier_of_images_has_no_card(build):
    with pytest.raises(UserError, match="a classifier takes images of one fixed size"):
        card_of_model(build())


def test_a_model_with_fewer_classes_than_names_has_no_card():
    with pytest.raises(UserError, match="2.*3|3.*2"):
        card_of_model(CIFARResNet(8, classes=3), ("a", "b"))


def save(path, size=(4, 3), **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 40)).save(path, **arguments)
    return str(path)


def test_find_images(tmp_path):
    folder = tmp_path / "pictures"
    inside = [save(folder / name) for name in ("b.png", "a.JPG", "deeper/c.gif", "d.bmp", "e.jpeg")]
    (folder / "notes.txt").write_text("no image")
    (folder / "folder.png").mkdir()
    single = save(tmp_path / "single.png")
    url = "https://example.org/cat.jpg"
    assert find_images([url, str(folder), single]) == [url, *sorted(inside), single]
    # A file that is named outright is taken at its word, whatever its suffix.
    assert find_images([str(folder / "notes.txt")]) == [str(folder / "notes.txt")]


def test_find_images_in_an_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="holds no images") as caught:
        find_images([str(tmp_path)])
    assert str(tmp_path) in str(caught.value)


def test_find_images_where_nothing_is(tmp_path):
    with pytest.raises(UserError, match="there is no image or folder"):
        find_images([str(tmp_path / "nothing.png")])


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def lying_jpeg(orientation, mode="RGB"):
    """A JPEG, 48 wide and 32 high: above red, below blue; EXIF says how it is to be turned."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :, 0] = pixels[16:, :, 2] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def test_a_photograph_on_its_side_is_turned():
    data = lying_jpeg(6)  # EXIF: "the 0th row is the right-hand side of the image"
    assert decoded(data).shape == (32, 48, 3)
    turned = decoded(upright(data))
    assert turned.shape == (48, 32, 3)
    assert tuple(turned[24, 28] > 128) == (True, False, False)  # red on the right
    assert tuple(turned[24, 4] > 128) == (False, False, True)  # blue on the left
    np.testing.assert_array_equal(turned, np.rot90(decoded(data), k=-1))  # and no pixel is lost


@pytest.mark.parametrize(
    "orientation, turn",
    [
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_every_orientation_of_exif(orientation, turn):
    data = lying_jpeg(orientation)
    np.testing.assert_array_equal(decoded(upright(data)), turn(decoded(data)))


def test_a_turned_image_is_not_turned_again():
    once = upright(lying_jpeg(6))
    assert upright(once) == once


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_photograph_of_another_kind_is_turned_too(mode):
    assert decoded(upright(lying_jpeg(6, mode))).shape == (48, 32, 3)


def test_an_upright_images_bytes_come_back_as_they_are(tmp_path):
    for path in (save(tmp_path / "a.jpg", quality=50), save(tmp_path / "b.png"), save(tmp_path / "c.gif")):
        with open(path, "rb") as file:
            assert read_image(path) == file.read()
    data = lying_jpeg(1)
    assert upright(data) == data


def test_read_image_sets_upright(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(lying_jpeg(6))
    assert decoded(read_image(str(tmp_path / "photo.jpg"))).shape == (48, 32, 3)


def test_encode_png_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(decoded(encode_png(pixels)), pixels)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "can't be read"),
        (b"", "no known image format"),
        (b"this is text", "no known image format"),
        (lying_jpeg(1)[:400], "is not a readable image"),
        (lying_jpeg(6)[:-200], "is not a readable image"),
    ],
    ids=["missing", "empty", "text", "header only", "truncated"],
)
def test_an_unreadable_image_is_named(tmp_path, content, sentence):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_image(str(path))
    assert str(path) in str(caught.value)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        read_image(str(tmp_path))


@pytest.mark.parametrize(
    "probabilities, k, found",
    [
        ([0.1, 0.6, 0.3], 2, [("b", 0.6), ("c", 0.3)]),
        ([0.1, 0.6, 0.3], 1, [("b", 0.6)]),
        ([0.1, 0.6, 0.3], 9, [("b", 0.6), ("c", 0.3), ("a", 0.1)]),
        ([0.25, 0.5, 0.25], 3, [("b", 0.5), ("a", 0.25), ("c", 0.25)]),
        ([0.25, 0.25, 0.5], 2, [("c", 0.5), ("a", 0.25)]),
    ],
)
def test_name_scores(probabilities, k, found):
    probabilities = np.array(probabilities, np.float64)
    assert name_scores(probabilities, ("a", "b", "c"), k) == found


def test_name_scores_breaks_many_ties_by_index():
    # So many that a sort which is not stable shows.
    names = [str(index) for index in range(1000)]
    probabilities = np.array([1e-3, 2e-3] * 500, np.float32)
    assert [name for name, _ in name_scores(probabilities, names, 1000)] == names[1::2] + names[::2]


def test_scores_are_plain_floats_for_json():
    (pair,) = name_scores(np.array([0.5], np.float32), ("a",), 1)
    assert json.loads(json.dumps(pair)) == ["a", 0.5]


def test_a_classifier_names_what_it_sees():
    card = dataclasses.replace(filled_card(), class_names=("dark", "bright"))

    def brightness(images):
        assert images.shape[1:] == (8, 8, 3) and images.dtype == np.uint8
        bright = images.mean((1, 2, 3)) / 255
        return np.stack([1 - bright, bright], -1)

    classifier = Classifier(card, brightness)
    encoded = [encode_png(np.full((20, 30, 3), value, np.uint8)) for value in (0, 255)]
    assert classifier.top_k(encoded, 1) == [[("dark", 1.0)], [("bright", 1.0)]]
    np.testing.assert_array_equal(classifier(np.full((1, 8, 8, 3), 255, np.uint8)), [[0, 1]])
    with pytest.raises(UserError, match="image 1 is not readable"):
        classifier.predict([encoded[0], b"text"])


def test_a_classifier_that_decodes_by_itself_is_let():
    card = dataclasses.replace(filled_card(), class_names=("a", "b"))
    classifier = Classifier(card, lambda images: pytest.fail("decoded here"), lambda encoded: np.array([[0.25, 0.75]]))
    assert classifier.top_k([b"anything"], 1) == [[("b", 0.75)]]


# What Windows lacks is taken away before anything is imported; folders can't be opened there.
WITHOUT_POSIX = """
import os, signal, socket, sys, warnings

class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name in ("fcntl", "grp", "pwd", "resource", "termios")]:
    del sys.modules[name]
sys.meta_path.insert(0, Missing)
gone = "O_DIRECTORY O_NOFOLLOW O_NONBLOCK fork forkpty getegid geteuid getgid getuid killpg mkfifo statvfs sysconf"
for module, names in ((os, gone), (signal, "SIGHUP SIGKILL SIGUSR1 SIGUSR2"), (socket, "AF_UNIX")):
    for name in names.split():
        delattr(module, name)

def opened(path, *arguments, open=os.open, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return open(path, *arguments, **more)

os.open = opened
warnings.simplefilter("ignore")
import numpy as np
import keras_convnets
from keras_convnets.card import ModelCard, card_of_model
from keras_convnets.prediction import keras_classifier
from keras_convnets.export import Client, model_config
from keras_convnets.export.serving.server import _handlers
from keras_convnets.export.serving.sockets import add_unix_socket
from keras_convnets.files import only_one, remove_abandoned, whole_folder
from keras_convnets.images.files import encode_png
from keras_convnets.networks.functional import load_keras

model = keras_convnets.CIFARPlainNet(8, classes=3)
with only_one(".", "trained in"), whole_folder("run") as folder:
    model.save(folder / "best.keras")
    model.save_weights(folder / "best.weights.h5")
    card_of_model(model).write(folder)
    remove_abandoned(".")
again = keras_convnets.CIFARPlainNet(8, classes=3, weights="run/best.weights.h5")
classifier = keras_classifier(load_keras("run/best.keras"), ModelCard.read("run"))
image = np.full((32, 32, 3), 9, np.uint8)
(answer,) = classifier.top_k([encode_png(image)], 3)
np.testing.assert_allclose(np.max(again(image[None])), answer[0][1], rtol=1e-4)
with Client("http://127.0.0.1:9/v1/models/digits"):
    pass
model_config.register(".", "digits")
with _handlers(print):
    pass
try:
    add_unix_socket(None, "here")
except ValueError as error:
    print(error)
print(sorted(name for name in os.listdir() if not name.startswith(".")))
"""


def test_networks_weights_prediction_and_client_work_without_posix(run_python, tmp_path, monkeypatch):
    done = run_python("-c", WITHOUT_POSIX, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    refusal, left = done.stdout.splitlines()
    assert refusal == "--grpc_socket_path got 'here'; this system has no UNIX sockets: give --port instead."
    assert left == "['models.config', 'run']"
    from keras_convnets.training import dry_run

    monkeypatch.setitem(sys.modules, "resource", None)
    assert dry_run._memory() is None
