"""The model repository: what is listed, deleted, rolled back; what killed and competing exports leave."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from keras_convnets import CIFARPlainNet, export
from keras_convnets.commands.main import main
from keras_convnets.errors import UserError
from keras_convnets.export import loading, model_config, publishing, repository
from keras_convnets.export.formats import get_format
from keras_convnets.files import remove_abandoned, temporary_folder


@pytest.fixture
def shelf(tmp_path):
    """A repository of empty versions: net 1, 2, 3 and 10, other 1."""
    for name, number in (("net", 1), ("net", 2), ("net", 3), ("net", 10), ("other", 1)):
        folder = tmp_path / name / str(number)
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"x" * number)
    for name in ("net", "other"):
        model_config.register(tmp_path, name)
    return tmp_path


def numbers(root: Path, name: str = "net") -> list[int]:
    return repository.versions(root / name)


def served(root: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for item in repository.published(root):
        found.setdefault(item.model, []).extend([item.number] if item.served else [])
    return found


def test_the_highest_versions_are_served(shelf):
    assert served(shelf) == {"net": [10], "other": [1]}
    assert [item.size for item in repository.published(shelf, "net")] == [1, 2, 3, 10]


@pytest.mark.parametrize("name, number", [
    ("1", 1), ("0001", 1), ("0", 0), ("000", 0), ("9223372036854775807", 2**63 - 1), ("0" * 5000 + "7", 7),
    ("9223372036854775808", None), ("9" * 5000, None), ("", None), ("\u00b2", None), ("\u0663", None),
    ("1\u00b2", None), ("-7", None), ("+7", None), (" 7", None), ("1.5", None), ("1_0", None),
])  # fmt: skip
def test_which_names_are_versions(name, number):
    assert repository.version_number(name) == number


def test_every_reader_knows_the_same_version_folders(tmp_path, monkeypatch):
    for name in ("0001", "1", "0003", "\u00b2", "\u0663", "note"):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "saved_model.pb").write_text(name)
    (tmp_path / "net" / "4").write_text("a file")
    found = {version.number: version.path.name for version in repository.published(tmp_path)}
    assert found == {1: "1", 3: "0003"}
    read = dataclasses.replace(get_format("saved_model"), load=lambda folder, card: folder)
    monkeypatch.setattr(loading, "get_format", lambda name: read)
    monkeypatch.setattr(loading.ModelCard, "read", lambda path: None)
    assert export.load(tmp_path / "net").name == "0003"
    assert repository.new_version(tmp_path, "net", None).name == "4"
    assert {path.name for path in repository.prune(tmp_path, 1)} == {"1", "0001"}
    assert numbers(tmp_path) == [3]


def test_the_configuration_is_what_tensorflow_serving_reads(shelf):
    config = model_config.read_config(shelf / "models.config")
    entries = {item.name: (item.base_path, item.model_platform) for item in config.model_config_list.config}
    assert entries == {name: (str((shelf / name).resolve()), "tensorflow") for name in ("net", "other")}


def test_what_a_person_wrote_into_the_configuration_stays(shelf):
    text = (shelf / "models.config").read_text()
    labels = 'config { name: "net" base_path: "/elsewhere" version_labels { key: "stable" value: 2 } }'
    (shelf / "models.config").write_text(f"model_config_list {{ {labels} }}")
    model_config.register(shelf, "net")
    entry = model_config.entry(model_config.read_config(shelf / "models.config"), "net")
    assert dict(entry.version_labels) == {"stable": 2} and entry.base_path == str((shelf / "net").resolve())
    (shelf / "models.config").write_text("model_config_list { nonsense }")
    with pytest.raises(UserError, match="Error parsing text-format tensorflow.serving.ModelServerConfig"):
        model_config.register(shelf, "net")
    assert "nonsense" not in text and (shelf / "models.config").read_text() == "model_config_list { nonsense }"


def test_rollback_pins_and_deletes_nothing(shelf):
    assert repository.rollback(shelf, "net") == 3 and served(shelf)["net"] == [3]
    assert repository.rollback(shelf, "net") == 2
    assert repository.rollback(shelf, "net", version=10) == 10
    assert repository.rollback(shelf, "net", version=1) == 1
    with pytest.raises(UserError, match=r"no version before 1; its versions: 1, 2, 3, 10"):
        repository.rollback(shelf, "net")
    with pytest.raises(UserError, match="no version 7; its versions"):
        repository.rollback(shelf, "net", version=7)
    assert served(shelf) == {"net": [1], "other": [1]} and numbers(shelf) == [1, 2, 3, 10]
    assert repository.serve_latest(shelf, "net") == 10 and served(shelf)["net"] == [10]


def test_prune_keeps_the_highest_and_what_is_served(shelf):
    repository.rollback(shelf, "net", version=1)
    gone = repository.prune(shelf, 2)
    assert gone == [shelf / "net" / "2"] and numbers(shelf) == [1, 3, 10] and numbers(shelf, "other") == [1]
    assert sorted(path.name for path in (shelf / "net").iterdir()) == ["1", "10", "3"]
    repository.serve_latest(shelf, "net")
    assert repository.prune(shelf, 1, "net") == [shelf / "net" / "1", shelf / "net" / "3"]
    for keep in (0, -1, True):
        with pytest.raises(UserError, match="must be a whole number of at least 1"):
            repository.prune(shelf, keep)
    assert numbers(shelf) == [10]


@pytest.mark.parametrize(
    "call",
    [
        lambda root: repository.published(root, "nett"),
        lambda root: repository.prune(root, 1, "nett"),
        lambda root: repository.rollback(root, "nett"),
    ],
)
def test_an_unknown_model_is_refused(shelf, call):
    with pytest.raises(UserError, match=r"unknown model of .* 'nett'; the nearest valid name is net"):
        call(shelf)


def test_the_commands(shelf, capsys):
    def run(*arguments):
        status = main(["repo", *map(str, arguments), "--to", str(shelf)])
        return status, *capsys.readouterr()

    status, out, _ = run("list", "--json")
    assert status == 0 and [row["version"] for row in json.loads(out) if row["served"]] == [10, 1]
    assert run("rollback", "net")[1].endswith("net is served at version 3, until rollback --latest.\n")
    lines = run("list")[1].splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["1", "2", "3*", "10", "1*"]
    assert run("rollback", "net", "--latest")[1].endswith("net is served at version 10, and those to come.\n")
    assert run("prune", "net", "--keep", 3)[1] == f"deleted {shelf / 'net' / '1'}\n"
    assert run("prune", "--keep", 3)[1].startswith("nothing to delete")
    assert run("rollback", "net", "--latest", "--version", 2)[0] == 2
    status, out, err = run("list", "nett")
    assert status == 2 and out == "" and err.count("\n") == 1


def tiny():
    return CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)


@pytest.fixture
def quick_export(monkeypatch):
    """Exports whose artifacts are a file with a letter: what is tested here is their way into the repository."""

    def write(model, card, folder, *arguments):
        (folder / "saved_model.pb").write_text("x")
        time.sleep(0.05)

    monkeypatch.setattr(publishing, "_write", write)


def test_exports_at_once_lose_nothing(tmp_path, quick_export):
    model, folders = tiny(), []
    threads = [
        threading.Thread(target=lambda: folders.append(export.publish(model, name="net", to=tmp_path)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(tmp_path) == [1, 2, 3, 4, 5, 6] and sorted(int(folder.name) for folder in folders) == numbers(
        tmp_path
    )
    assert not list((tmp_path / "net").glob(".*"))


def test_two_exports_of_one_number_leave_the_first(tmp_path, quick_export, monkeypatch):
    write = publishing._write

    def overtaken(model, card, folder, *arguments):
        write(model, card, folder, *arguments)
        (tmp_path / "net" / "4").mkdir()

    monkeypatch.setattr(publishing, "_write", overtaken)
    with pytest.raises(UserError, match="4 (exists|was published)"):
        export.publish(tiny(), name="net", to=tmp_path, version=4)
    assert [path.name for path in (tmp_path / "net").iterdir()] == ["4"]


def test_a_pinned_model_says_that_the_new_version_waits(tmp_path, quick_export, caplog):
    for _ in range(2):
        export.publish(tiny(), name="net", to=tmp_path)
    repository.rollback(tmp_path, "net")
    export.publish(tiny(), name="net", to=tmp_path)
    assert "holds net at version 1; the new one waits" in caplog.text and served(tmp_path)["net"] == [1]


def test_a_target_that_takes_no_files_is_refused(tmp_path, quick_export):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"can't be written to \(Not a directory\); nothing was published"):
        export.publish(tiny(), name="net", to=tmp_path / "file")


def test_a_full_disk_leaves_nothing(tmp_path, quick_export, monkeypatch):
    def full(temporary, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "commit_folder", full)
    with pytest.raises(UserError, match=r"\(No space left on device\); nothing was published"):
        export.publish(tiny(), name="net", to=tmp_path)
    assert list((tmp_path / "net").iterdir()) == []


def test_a_saved_model_that_the_disk_does_not_take_is_told_in_one_sentence(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(UserError) as caught:
            export.publish(tiny(), name="net", to=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == (
        f"{tmp_path} can't be written to (File too large); nothing was published: fix that or name another with --to."
    )
    assert list((tmp_path / "net").iterdir()) == []


def test_only_what_no_living_process_fills_is_removed(tmp_path):
    script = (
        "import sys, os, signal; from keras_convnets.files import temporary_folder\n"
        "with temporary_folder(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path / "1")], check=False)
    assert process.returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 2  # the folder and its lock
    with temporary_folder(tmp_path / "2") as living:
        remove_abandoned(tmp_path)
        assert living.is_dir() and not any(place.exists() for place in left)
    assert list(tmp_path.iterdir()) == []


EXPORTING = """
import sys
from keras_convnets import CIFARPlainNet, export
model = CIFARPlainNet(8, input_shape=(8, 8, 3), classes=3)
print("exporting", flush=True)
export.publish(model, name="net", to=sys.argv[1])
"""


@pytest.mark.heavy
def test_exports_killed_at_ten_random_moments(tmp_path):
    draw = random.Random(0)
    seconds = 8.0
    for _ in range(10):
        started = subprocess.Popen(
            [sys.executable, "-c", EXPORTING, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True
        )
        assert started.stdout.readline() == b"exporting\n"
        time.sleep(draw.uniform(0, seconds))
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        for number in numbers(tmp_path):
            # What is visible is whole: its own card, verified.
            assert export.load(tmp_path / "net" / str(number)).card.export["differences"]
    folder = export.publish(tiny(), name="net", to=tmp_path)
    assert folder.name == str(max(numbers(tmp_path)))
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
