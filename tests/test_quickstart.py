"""The first five minutes: `make quickstart`'s command, in a folder of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def finished(run_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, run_python("-m", "keras_convnets", "quickstart", cwd=folder, timeout=500)


def test_the_last_line_is_the_accuracy_over_the_wire(finished):
    _, process = finished
    assert process.returncode == 0, process.stderr
    last = process.stdout.strip().splitlines()[-1]
    found = re.fullmatch(r"top-1 (\d+\.\d) % over REST \(n=360\)", last)
    assert found, last
    assert float(found[1]) >= 97.0
    assert "Traceback" not in process.stderr and "WARNING" not in process.stderr


def test_it_shows_the_truth_beside_the_answers_of_both_protocols(finished):
    _, process = finished
    for protocol in ("REST", "gRPC"):
        part = process.stdout.split(f"held-out images over {protocol}:")[1]
        answers = re.findall(r"samples/(\d)/\d+\.png  truth (\d)  answer (\d) \(\d+\.\d%\)", part.split("$")[0])
        assert len(answers) == 20
        assert all(folder == truth for folder, truth, _ in answers)
        assert sum(truth == answer for _, truth, answer in answers) >= 17


def test_it_leaves_pictures_and_a_published_model_and_says_what_is_next(finished):
    folder, process = finished
    for name in ("learning_curves", "confusion_matrix"):
        assert (folder / "runs" / "quickstart" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    version = folder / "saved_models" / "digits" / "1"
    assert (version / "saved_model.pb").is_file() and (version / "model.onnx").is_file()
    card = json.loads((version / "assets.extra" / "model.json").read_text())
    assert card["metrics"]["digits/test/center"]["n"] == 360
    for hint in ("--dataset path/to/folder", "--dataset cifar10", "tensorflow/serving"):
        assert hint in process.stdout


def test_again_it_skips_the_training_and_keep_serving_stays_up(finished):
    folder, _ = finished
    command = [sys.executable, "-m", "keras_convnets", "quickstart", "--keep-serving"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("top-1 "):
            break
    text = "".join(lines)
    assert "finished already; nothing was done" in text
    assert process.poll() is None
    import urllib.request

    url = re.search(r"http://127\.0\.0\.1:\d+/v1/models/digits", text)[0]
    assert b"AVAILABLE" in urllib.request.urlopen(url).read()
    process.terminate()
    process.wait(timeout=60)
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)
