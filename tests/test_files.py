"""Atomic writes of files and folders, also if the writer is killed or the disk is full."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys

import keras
import pytest

from keras_convnets import training
from keras_convnets.errors import UserError
from keras_convnets.files import (
    UnwritableError,
    atomic_file,
    atomic_folder,
    exclusive_lock,
    read_json,
    remove_abandoned,
    sha256,
    wrap_write_errors,
    write_json,
    write_text,
)
from keras_convnets.networks.functional import Functional


def visible(folder):
    """Return the names that a user or TF Serving sees: those that do not begin with a dot."""
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def test_an_atomic_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "best.weights.h5"
    with atomic_file(path) as temporary:
        assert temporary.parent == tmp_path  # a rename is one step on one file system only
        assert temporary.name.endswith(".weights.h5")  # Keras chooses its format by the suffix
        temporary.write_text("new")
        assert visible(tmp_path) == []
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_atomic_file_that_fails_leaves_the_old_one(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_atomic_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("first", "second"):
        write_text(path, text)
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_atomic_file_that_was_not_written_is_an_error(tmp_path):
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file.txt"):
        pass
    assert (tmp_path / "file.txt").read_text() == "old"


class TensorFlowsError(Exception):
    """As TensorFlow raises them: of its own module, with the system's message but without an errno."""


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
def test_write_errors_are_converted_and_other_errors_pass(tmp_path, error, reason):
    place = tmp_path / "run"
    raised = error(place)
    with (
        pytest.raises(type(raised) if reason is None else UnwritableError) as caught,
        wrap_write_errors(place, "do this"),
    ):
        with wrap_write_errors(place / "part"):
            raise raised
    if reason is None:
        assert caught.value is raised
    else:
        assert isinstance(caught.value, UserError) and isinstance(caught.value, OSError)
        assert str(caught.value) == f"{place} can't be written to ({reason}); do this."


@pytest.mark.parametrize("write", [
    lambda path: write_json(path / "a.json", list(range(3000))),
    lambda path: training.Run(path).save_model(Functional(*small_network()), "best.keras"),
    # Disk space is checked before HDF5 writes: a file that it can't close would crash the interpreter at exit.
    lambda path: Functional(*small_network()).save_weights(path / "a.weights.h5"),
    lambda path: training.Run(path).save_checkpoint(1, Functional(*small_network()), [], {}),
], ids=["JSON", "network", "weights", "checkpoint"])  # fmt: skip
def test_a_file_that_exceeds_the_disk_is_named_and_leaves_nothing(tmp_path, write):
    """A limit of the file size simulates a full disk: writers get the system's error."""
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
    """Run code in a fresh process, yield it once it has printed a line, and kill it with SIGKILL at the end."""
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


# Each holds an unfinished write or a lock until it is killed; it exits when this process ends.
WRITES_A_FILE = """
import sys
from keras_convnets.files import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""
FILLS_A_FOLDER = """
import sys
from keras_convnets.files import atomic_folder
with atomic_folder(sys.argv[1]) as temporary:
    (temporary / "half").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""
HOLDS_A_LOCK = """
import sys
from keras_convnets.files import exclusive_lock
with exclusive_lock(sys.argv[1], "trained in"):
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
    with atomic_folder(path) as temporary:
        (temporary / "whole").touch()
    assert visible(tmp_path) == ["1"] and os.listdir(path) == ["whole"]
    (tmp_path / ".writing-2-alone.lock").touch()
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == ["1"]


def test_an_atomic_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "models" / "1"
    with atomic_folder(path) as temporary:
        (temporary / "variables").mkdir()
        (temporary / "variables" / "data").write_text("data")
        assert temporary.parent == path.parent and visible(path.parent) == []
    assert (path / "variables" / "data").read_text() == "data"
    assert os.listdir(path.parent) == ["1"]
    assert path.stat().st_mode & 0o777 == 0o755  # another account, such as TF Serving's, reads it


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_atomic_folder_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), atomic_folder(tmp_path / "1") as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [[], ["old"]], ids=["empty", "filled"])
def test_an_atomic_folder_overwrites_nothing(tmp_path, content):
    path = tmp_path / "1"
    path.mkdir()
    for name in content:
        (path / name).write_text(name)
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert os.listdir(tmp_path) == ["1"] and os.listdir(path) == content


def test_the_lock_is_exclusive_in_a_process(tmp_path):
    with exclusive_lock(tmp_path, "trained in"):
        with (
            pytest.raises(UserError, match="is being trained in by another process"),
            exclusive_lock(tmp_path, "trained in"),
        ):
            pytest.fail("two hold the lock")
    with exclusive_lock(tmp_path, "trained in"):  # it is free again
        pass


def test_the_lock_is_released_when_its_process_ends(tmp_path):
    with child(HOLDS_A_LOCK, tmp_path):
        with pytest.raises(UserError, match="another process"), exclusive_lock(tmp_path, "trained in"):
            pytest.fail("two hold the lock")
    with exclusive_lock(tmp_path, "trained in"):
        pass


def test_an_error_in_its_holder_releases_the_lock(tmp_path):
    with pytest.raises(RuntimeError), exclusive_lock(tmp_path, "trained in"):
        raise RuntimeError
    with exclusive_lock(tmp_path, "trained in"):
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
