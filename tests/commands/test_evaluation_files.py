"""`evaluate` with files of predictions: writing, reading, comparison, ensembles, reports and resuming."""

from __future__ import annotations

import json
import logging
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from keras_convnets import training
from keras_convnets.commands import evaluate as command
from keras_convnets.commands.evaluation_sources import predictions_paths
from keras_convnets.errors import UserError
from keras_convnets.export.serving import ModelServer
from keras_convnets.training.evaluation import Predictions, compare, ensemble, partial_results


def kept(path, seed, strength=2.0, **fields):
    """Write random predictions for the test images of digits to a file, and return its path."""
    split = training.load_dataset("digits").split("test")
    logits = np.random.default_rng(seed).normal(size=(360, 10)) * 2 + strength * np.eye(10)[split.labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = tuple(map(str, range(10)))
    values = {"source": "runs/x", "data": "digits", "split": "test", "protocol": "center", "class_names": names}
    values |= {"ids": tuple(split.ids()), "labels": split.labels, "probabilities": probabilities, **fields}
    Predictions(**values).save(path)
    return path


def test_predictions_are_compared_and_averaged(cli, tmp_path):
    files = [kept(tmp_path / "a.npz", 0), kept(tmp_path / "b.csv", 1, 4.0), kept(tmp_path / "c.npz", 2)]
    status, out, err = cli("evaluate", *files, "--ensemble", "--json")
    assert status == 0, err
    found, several = json.loads(out), [Predictions.load(file) for file in files]
    together = ensemble(several)
    assert found["ensemble"]["best"]["top1_error"] == together.best.top1_error
    assert len(found["ensemble"]["subsets"]) == 7
    rows = {(row["first"], row["second"]): row for row in found[str(files[0])]["comparisons"]}
    expected = compare(several[0], several[1])
    assert rows[str(files[0]), str(files[1])]["p_value"] == expected.p_value and len(rows) == 2
    low, high = found[str(files[0])]["top1_error_interval"]
    assert low < 1 - found[str(files[0])]["top1"] < high


def test_the_output_has_intervals_and_comparisons(cli, tmp_path):
    files = [kept(tmp_path / "a.npz", 0), kept(tmp_path / "b.npz", 1, 4.0)]
    status, out, err = cli("evaluate", *files, "--ensemble")
    assert status == 0, err
    number = r"\d+\.\d\d%"
    interval = rf"{number} \({number} to {number}\)"
    assert re.search(rf"a\.npz: top-1 error {interval}, top-5 error {interval}  on digits/test/center, n=360 ", out)
    assert re.search(r"b\.npz has a lower top-1 error than .*a\.npz, by \d+\.\d+%: significant \(.*p = ", out)
    assert re.search(rf"  top-1 error {interval}, top-5 error {interval}  \S+a\.npz \+ \S+b\.npz\n", out)
    assert len(re.findall(r"  without \S+, the top-1 error of the full ensemble changes by [+-]\d", out)) == 2


def test_a_report_shows_the_images_of_the_data_set(cli, tmp_path):
    file = kept(tmp_path / "a.npz", 0)
    arguments = ["--dataset", "digits", "--report", tmp_path / "report", "--header", "Authorization: Bearer secret"]
    status, _, err = cli("evaluate", file, *arguments)
    assert status == 2 and "--header came without an endpoint" in err
    status, out, err = cli("evaluate", file, *arguments[:-2])
    assert status == 0 and f"wrote {tmp_path / 'report' / 'index.html'}" in out, err
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count('src="data:image/png;base64,') == 24 and "keras-convnets evaluate" in page


def test_secrets_are_not_shown():
    given = ["evaluate", "https://me:word@host/v1/models/x", "--header", "Authorization: Bearer s3", "--header=A: s4"]
    shown = command._command_text(given)
    assert not [secret for secret in ("word", "s3", "s4") if secret in shown] and "...@host/v1/models/x" in shown


@pytest.mark.parametrize("arguments, sentence", [
    (["a.npz", "--ensemble"], "--ensemble needs at least two sources or protocols"),
    (["a.npz", "other.npz", "--ensemble"], "have different classes"),
    (["a.npz", "--split", "train"], "has predictions of digits/test; leave --split train out"),
    (["a.npz", "--report", "a.npz"], "a.npz is a file"),
    (["a.npz", "b.npz", "--predictions", "c.npz"], "c.npz is a file and there are 2 sources; give a folder"),
    (["none.npz"], "none.npz does not exist"),
])  # fmt: skip
def test_errors_are_one_sentence(cli, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    kept("a.npz", 0), kept("b.npz", 1)
    kept("other.npz", 0, class_names=tuple("abcdefghij"))
    status, _, err = cli("evaluate", *arguments)
    assert status == 2 and sentence in err and err.count("\n") <= 2, err


@pytest.mark.parametrize("sources, place, expected", [
    (["runs/a", "http://h:1/v1/models/b/"], "out", ["out/a.npz", "out/b.npz"]),
    (["runs/a", "x/A"], "out", ["out/runs%2Fa.npz", "out/x%2FA.npz"]),
    (["runs/a"], "out", ["out/a.npz"]),
    (["runs/a"], "out.csv", ["out.csv"]),
    (["..", "a.npz"], "out", ["out/%2E%2E.npz", "out/a.npz"]),
    (["runs/a"], None, [None]),
])  # fmt: skip
def test_each_source_has_a_file_of_a_safe_name(sources, place, expected):
    path_of = predictions_paths(sources, [], place)
    files = [path_of(source, "center") for source in sources]
    assert [file and file.as_posix() for file in files] == expected


def test_each_protocol_has_a_file_of_a_safe_name():
    path_of = predictions_paths(["runs/a"], ["center", "dense(scales=64:96)"], "out")
    files = [path_of("runs/a", protocol).name for protocol in ("center", "dense(scales=64:96)")]
    assert files == ["a-center.npz", "a-dense(scales=64%3A96).npz"]
    with pytest.raises(UserError, match="c.npz is a file and there are 2 protocols; give a folder"):
        predictions_paths(["runs/a"], ["center", "ten_crop"], "c.npz")


def test_predictions_need_a_valid_suffix(tmp_path):
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UserError, match="x.txt is a file; it must end in .npz or .csv"):
        predictions_paths(["a"], [], str(tmp_path / "x.txt"))


def test_an_interrupted_command_resumes(cli, trained_run, published, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "keras_convnets")
    run, out = shutil.copytree(trained_run, tmp_path / "run"), tmp_path / "out"
    command_line = ["evaluate", run, published / "model.onnx", "--dataset", "digits", "--predictions", out]
    monkeypatch.setattr(partial_results, "WRITE_INTERVAL", 0)
    add = partial_results.PartialResults.add

    def interrupted(self, rows):
        add(self, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(partial_results.PartialResults, "add", interrupted)
        assert cli(*command_line, "--batch_size", 100)[0] == 130
    parts = sorted(path.name for path in (out / "run.npz.parts").iterdir() if path.suffix == ".npy")
    assert parts == ["000000000.npy"] and "run the same command to resume" in caplog.text
    status, text, err = cli(*command_line, "--batch_size", 70)
    assert status == 0, err
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx.npz", "run.npz"]
    whole = training.evaluate(training.Run(run).model(), training.load_dataset("digits")).predictions
    first, second = (Predictions.load(out / name) for name in ("run.npz", "model.onnx.npz"))
    assert first.source == str(run) and first.ids == second.ids == whole.ids and first.fingerprint
    np.testing.assert_allclose(first.probabilities, whole.probabilities, atol=1e-5)
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-4)
    assert "equally many errors" in text
    assert cli(*command_line)[0] == 0 and caplog.text.count("already holds these predictions") == 2


def test_images_left_out_are_listed(cli, photograph_run, photograph_folder, tmp_path):
    folder = tmp_path / "scenes"
    for name in ("china", "flower"):
        (folder / "test" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / "test" / name / f"{number}.png")
    (folder / "test" / "china" / "3.png").write_bytes(b"")
    run = shutil.copytree(photograph_run, tmp_path / "run")
    status, out, err = cli("evaluate", run, "--dataset", folder, "--predictions", tmp_path / "a.npz")
    assert status == 0, err
    assert "1 images left out because they do not decode: " in out and "china/3.png (empty: 0 bytes)" in out
    found = Predictions.load(tmp_path / "a.npz")
    assert len(found) == 23 and "china/3.png" not in found.ids and found.left_out[0].file.endswith("china/3.png")


def test_ensemble_of_an_endpoint_a_run_and_a_file(cli, trained_run, published, tmp_path):
    run, out = shutil.copytree(trained_run, tmp_path / "run"), tmp_path / "out"
    file = kept(tmp_path / "kept.npz", 0)
    with ModelServer({"digits": published.parent}, port=0, rest_api_port=0) as server:
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/digits"
        arguments = ["--dataset", "digits", "--predictions", out, "--ensemble", "--json"]
        status, text, err = cli("evaluate", run, url, file, *arguments)
    assert status == 0, err
    members = [Predictions.load(out / f"{name}.npz") for name in ("run", "digits", "kept")]
    assert members[0].ids == members[1].ids == members[2].ids
    np.testing.assert_allclose(members[0].probabilities, members[1].probabilities, atol=1e-5)
    mean = np.mean([found.probabilities.astype(np.float64) for found in members], axis=0)
    np.testing.assert_allclose(ensemble(members).mean().probabilities, mean, atol=1e-6)
    wrong = int((mean.argmax(axis=1) != members[0].labels).sum())
    assert json.loads(text)["ensemble"]["all"]["top1_error"] == pytest.approx(wrong / 360)
