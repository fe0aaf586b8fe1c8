"""The command `demo`: what it serves, that it opens the page, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import keras
import pytest
from keras import layers

from keras_convnets.card import card_of_model
from keras_convnets.commands.main import main
from keras_convnets.export.folding import inference_network
from keras_convnets.export.formats.saved_model import write_saved_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository") / "tiny"
    images = keras.Input([8, 8, 3], name="images")
    model = keras.Model(images, layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling2D()(images)))
    write_saved_model(inference_network(model), card_of_model(model, ("ants", "bees")), folder / "1")
    return folder


def run_demo(tmp_path, *arguments):
    """Run the command until its browser is opened; gives the page's address, what it lists, and the output."""
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "keras_convnets", "demo", *arguments, "--port", "0", "--rest_api_port", "0"]
    environment = {**os.environ, "BROWSER": f"{browser} %s"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        end = time.monotonic() + 120
        while not opened.exists():
            assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
            time.sleep(0.1)
        address = opened.read_text().strip()
        with urllib.request.urlopen(f"{address}page/models") as answer:
            listed = json.load(answer)["models"]
        with urllib.request.urlopen(address) as answer:
            assert b"Classify photographs" in answer.read()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert f"The page will be {address}" in output
    return listed, output


def test_a_folder_of_versions_is_served_and_the_page_opened(model_folder, tmp_path):
    assert run_demo(tmp_path, str(model_folder))[0] == ["tiny"]


@pytest.mark.heavy
def test_without_a_source_the_shipped_network_is_exported_and_served(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    listed, output = run_demo(tmp_path)
    assert listed == ["resnet20"] and "Exporting ResNet20:cifar10" in output
    assert not list(tmp_path.glob("keras_convnets_demo_*")), "the temporary repository is deleted"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("{folder}/1", "is one version; give the model's folder, {folder}, instead"),
        ("{folder} --to elsewhere", "is exported already; leave it out"),
        ("ResNet20", "names a network without weights"),
        ("nowhere/at/all", "does not exist"),
        ("{empty}", "holds no model"),
    ],
)
def test_what_cannot_be_shown(model_folder, tmp_path, capsys, arguments, sentence):
    fill = {"folder": model_folder, "empty": tmp_path}
    assert main(["demo", *arguments.format(**fill).split(), "--no_browser"]) == 2
    said = capsys.readouterr().err
    assert sentence.format(**fill) in said and not re.search("Traceback", said)
