"""The quickstart command, in a temporary folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import sklearn.datasets


@pytest.fixture(scope="module")
def folder(trained_run, tmp_path_factory):
    """A folder where the quickstart's training is done already, by the shorter settings of `SHORT`."""
    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(trained_run, folder / "runs" / "quickstart")
    return folder


# The settings of `trained_run`, and the export verified in the same process: two more with TensorFlow take longer than
# all the rest.
SHORT = """
import sys
from keras_convnets.commands import quickstart
from keras_convnets.commands.main import main
from keras_convnets.export import verification
def answer(folder, artifacts, exchange):
    verification._answer(folder, exchange, [artifact.key for artifact in artifacts])
verification._run_runtimes = answer
quickstart.SETTINGS = ("epochs=6", "holdout=0.1", "batch_size=64")
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def shown(folder):
    """What `quickstart --keep-serving` prints until it only serves; while the tests run, it does."""
    command = [sys.executable, "-c", SHORT, "quickstart", "--keep-serving"]
    with open(folder / "errors", "w+") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("top-1 "):
                break
        yield "".join(lines), process, folder / "errors"
        process.kill()
        process.wait()


def test_the_last_line_is_the_accuracy_over_rest(shown, folder):
    text, process, errors = shown
    assert process.poll() is None, errors.read_text()
    found = re.fullmatch(r"top-1 (\d+\.\d) % over REST \(n=360\)", text.strip().splitlines()[-1])
    assert found, text
    card = json.loads((folder / "runs" / "quickstart" / "model.json").read_text())
    # Of the exported network, on the same images: one that stands on the edge may fall to the other side.
    assert float(found[1]) == pytest.approx(100 * card["metrics"]["digits/test/center"]["top1"], abs=0.3)
    assert float(found[1]) >= 85.0
    assert "Traceback" not in errors.read_text() and "WARNING" not in errors.read_text()


def test_it_shows_the_truth_beside_the_answers_of_both_protocols(shown):
    text, _, _ = shown
    for protocol in ("REST", "gRPC"):
        part = text.split(f"held-out images over {protocol}:")[1]
        answers = re.findall(r"samples/(\d)/\d+\.png  truth (\d)  answer (\d) \(\d+\.\d%\)", part.split("$")[0])
        assert len(answers) == 20
        assert all(folder == truth for folder, truth, _ in answers)
        assert sum(truth == answer for _, truth, answer in answers) >= 16


def test_it_leaves_pictures_and_a_published_model_and_says_what_is_next(shown, folder):
    text, _, _ = shown
    for name in ("learning_curves", "confusion_matrix"):
        assert (folder / "runs" / "quickstart" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    version = folder / "saved_models" / "digits" / "1"
    assert (version / "saved_model.pb").is_file() and (version / "model.onnx").is_file()
    card = json.loads((version / "assets.extra" / "model.json").read_text())
    assert card["metrics"]["digits/test/center"]["n"] == 360
    for hint in ("--dataset path/to/folder", "--dataset cifar10", "tensorflow/serving"):
        assert hint in text


def test_it_skips_a_finished_training_and_keeps_serving(shown):
    text, process, _ = shown
    assert "finished already; nothing was done" in text
    assert process.poll() is None
    url = re.search(r"http://127\.0\.0\.1:\d+/v1/models/digits", text)[0]
    assert b"AVAILABLE" in urllib.request.urlopen(url).read()
    process.terminate()
    process.wait(timeout=60)
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)


def test_pretrained_serves_the_weights_in_the_package_and_classifies_a_photograph(run_python, tmp_path):
    photograph = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    command = ["quickstart", "--pretrained", str(photograph), "--to", "models"]
    process = run_python("-m", "keras_convnets", *command, cwd=tmp_path, timeout=300)
    assert process.returncode == 0, process.stderr
    answers = re.findall(r"china\.jpg\n  (\w+) +(\d+\.\d)%", process.stdout)
    assert len(answers) == 2 and answers[0] == answers[1], process.stdout
    assert process.stdout.strip().splitlines()[-1] == "1 images classified over REST and gRPC"
    card = json.loads((tmp_path / "models" / "cifar10" / "1" / "assets.extra" / "model.json").read_text())
    assert card["class_names"][0] == "airplane"


@pytest.mark.heavy
def test_the_whole_training_reaches_97_percent_over_the_wire(run_python, tmp_path):
    process = run_python("-m", "keras_convnets", "quickstart", cwd=tmp_path, timeout=500)
    assert process.returncode == 0, process.stderr
    found = re.fullmatch(r"top-1 (\d+\.\d) % over REST \(n=360\)", process.stdout.strip().splitlines()[-1])
    assert found and float(found[1]) >= 97.0
    assert "Traceback" not in process.stderr and "WARNING" not in process.stderr
