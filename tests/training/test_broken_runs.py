"""Runs that go wrong: what diverges, fails before its first checkpoint, or finds the disk full at the end."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from keras_convnets import CIFARResNet, files, training
from keras_convnets.card import ModelCard
from keras_convnets.commands.main import main
from keras_convnets.errors import Diverged, Interrupted, UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.training import results, trainer
from keras_convnets.training.plan import make_plan
from keras_convnets.training.recipes import RECIPES

SHORT = {"iterations": 8, "batch_size": 400, "holdout": 100, "learning_rate": 1e-3}


NAN = float("nan")


def make_quick(monkeypatch, pictures=False):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    if not pictures:
        monkeypatch.setattr(results, "learning_curves", lambda *_: None)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS_AT_REPORTS", -1.0)


@pytest.fixture
def quick(monkeypatch):
    """Networks of two layers, a checkpoint after every step, and no pictures."""
    make_quick(monkeypatch)


def fit(path, **overrides):
    return training.fit("ResNet20", "digits", run=path, overrides={**SHORT, **overrides})


def spoiling(monkeypatch, losses, *, above=0.0, weights=None, stop=False):
    """Have steps give other losses, and the last of them spoil a weight, where the learning rate is above a bound."""
    compile_steps = trainer.Trainer.compile_steps

    def spoilt(self):
        whole, _ = compile_steps(self)

        def step(*batch):
            _, right = whole(*batch)
            number = self.step + 1
            if number not in losses or self.learning_rate <= above:
                return tf.constant(2.0), right
            if number == max(losses) and weights is not None:
                self.model.get_layer("predictions").bias.assign(np.full(10, weights))
            if stop:
                signal.raise_signal(signal.SIGTERM)
            return tf.constant(losses[number]), right

        return step, step

    monkeypatch.setattr(trainer.Trainer, "compile_steps", spoilt)


def kept_values(run):
    """All numbers in a run's networks and checkpoints."""
    for path in (*run.path.glob("checkpoints/*/variables.npz"),):
        with np.load(path) as values:
            yield from (values[name] for name in values)
    for path in run.path.glob("checkpoints/*/model.weights.h5"):
        model = tiny.network("resnet20", classes=10, input_shape=(8, 8, 3))
        model.load_weights(path)
        yield from model.get_weights()
    for path in run.path.glob("*.keras"):
        yield from keras.saving.load_model(path).get_weights()


def all_finite(run):
    return all(np.isfinite(value).all() for value in kept_values(run))


@pytest.mark.parametrize("loss, spoilt", [
    (NAN, {"weights": NAN}), pytest.param(float("inf"), {}, marks=pytest.mark.heavy),
    (2.0, {"weights": float("inf")}), pytest.param(NAN, {"stop": True, "weights": NAN}, marks=pytest.mark.heavy),
], ids=["nan", "loss alone", "weights alone", "asked to stop"])  # fmt: skip
def test_nothing_that_is_not_finite_is_kept_and_the_mended_command_goes_on(quick, monkeypatch, tmp_path, loss, spoilt):
    run = training.Run(tmp_path / "run")
    # The sixth step's rate is a tenth of the first one's.
    spoiling(monkeypatch, {6: loss}, above=5e-5, **spoilt)
    # The loss of a step tells of the weights before it: those of step 5 are bad where the sixth loss is.
    back, kept = (5, [4, 5]) if loss == 2.0 else (4, [4])
    there = rf"at step 6 of 8: .* --set learning_rate=0.0001 resumes from step {back}\."
    with pytest.raises(Diverged, match=there) as error:
        fit(run.path)
    assert run.checkpoint_steps() == kept and all_finite(run) and len(list(kept_values(run))) > 15
    # The same rate leads to the same end, another field is another run, and the rate that was named goes on.
    with pytest.raises(Diverged, match=there):
        fit(run.path)
    with pytest.raises(UserError, match="recipe.seed = 0, not 1"):
        fit(run.path, learning_rate=1e-4, seed=1)
    fit(run.path, learning_rate=error.value.learning_rate)
    assert run.finished and all_finite(run)
    assert {record["step"]: record["learning_rate"] for record in run.metrics()} == pytest.approx(
        {4: 1e-3, 7: 1e-6, 8: 1e-6}
    )
    noted = {"step": 6, "back_to": back, "learning_rate": 1e-3, "clip_norm": None}
    assert run.card().recipe["diverged"] == [noted, noted] and run.card().recipe["learning_rate"] == 1e-4
    with pytest.raises(UserError, match="recipe.learning_rate = 0.0001, not 0.001"):
        fit(run.path)


def test_the_command_that_is_named_works_as_typed(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "train --model ResNet20 --dataset digits --run 'my runs/one' --set iterations=6 --set learning_rate=1e30"
    assert main(shlex.split(command)) == 1
    sentence = capsys.readouterr().err
    assert (
        "the training diverged" in sentence
        and "starts again from the beginning" in sentence
        and "Traceback" not in sentence
    )
    typed = shlex.split(sentence.partition(" Type: ")[2])
    assert typed == ["keras-convnets", *shlex.split(command), "--set", "learning_rate=0.1"]
    assert main(typed[1:]) == 0, capsys.readouterr().err
    run = training.Run("my runs/one")
    assert run.finished and all_finite(run) and "diverged" not in run.card().recipe


def test_checkpoints_worse_than_the_beginning_are_not_gone_on_from(quick, monkeypatch, tmp_path):
    """The loss climbs for some steps before it is none: what was written then leads to the same end at any rate."""
    spoiling(monkeypatch, {2: 1e6, 3: 1e6, 4: 1e6, 5: NAN}, weights=NAN)
    with pytest.raises(Diverged, match="starts again from the beginning") as error:
        fit(tmp_path / "run")
    assert training.Run(tmp_path / "run").checkpoint_steps() == []
    monkeypatch.undo()
    make_quick(monkeypatch)
    run = fit(tmp_path / "run", learning_rate=error.value.learning_rate, seed=1)
    assert run.finished and "diverged" not in run.config()


@pytest.mark.heavy  # a skipped step itself is in the quick test of two devices
def test_a_step_that_loss_scaling_skips_is_no_divergence(quick, monkeypatch, tmp_path):
    half = {"precision": "mixed_float16", "iterations": 24, "batch_size": 1337}
    spoiling(monkeypatch, dict.fromkeys(range(2, 16), NAN))
    run = fit(tmp_path / "some", **half)
    assert run.finished and all(np.isfinite(record["loss"]) for record in run.metrics())
    assert {record["step"] for record in run.metrics()} == {1, *range(16, 25)}
    monkeypatch.undo()
    make_quick(monkeypatch)
    spoiling(monkeypatch, dict.fromkeys(range(2, 25), NAN))
    with pytest.raises(Diverged, match="the loss is nan at step 21 of 24"):
        fit(tmp_path / "all", **half)


def test_a_failure_before_the_first_checkpoint_leaves_the_directory_free(quick, monkeypatch, tmp_path):
    run = training.Run(tmp_path / "run")

    def full(self, *batch):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", full)
        with pytest.raises(tf.errors.ResourceExhaustedError):
            fit(run.path, batch_size=500)
    assert run.config()["recipe"]["batch_size"] == 500 and not run.begun
    # A process that is killed leaves as much: the configuration and events.
    (run.path / "best.keras").write_bytes(b"of the other run")
    assert fit(run.path, batch_size=200, seed=1).finished and all_finite(run)
    assert len(list((run.path / "events").iterdir())) == 1 and run.config()["recipe"]["batch_size"] == 200
    with pytest.raises(UserError, match="recipe.batch_size = 200, not 100"):
        fit(run.path, batch_size=100, seed=1)


WRITERS = [
    (results, "learning_curves"), (training.Run, "save_samples"), (training.Run, "write_metrics"), (ModelCard, "write"),
    (training.Run, "save_model"),
]  # fmt: skip


def test_a_disk_that_fills_at_the_end_leaves_nothing_out(monkeypatch, tmp_path):
    """The same command again and again, each time with no space left for another of the results."""
    make_quick(monkeypatch, pictures=True)
    writers = iter(WRITERS)

    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    finish = trainer.Trainer.finish

    def finish_on_a_full_disk(self):
        with monkeypatch.context() as patch:
            patch.setattr(*next(writers), full)
            finish(self)

    run = training.Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "finish", finish_on_a_full_disk)
        sentence = r"run can't be written to \(No space left on device\); fix that, and the same command resumes"
        for _ in WRITERS:
            with pytest.raises(UserError, match=sentence):
                fit(run.path, iterations=2, holdout=0)
            assert not run.finished
    assert next(writers, None) is None
    fit(run.path, iterations=2, holdout=0)
    names = {path.name for path in run.path.iterdir()}
    whole = {"model.json", "config.json", "metrics.jsonl", "best.keras", "final.keras", "plots", "events", "samples"}
    assert run.finished and whole <= names and "checkpoints" not in names
    assert (run.path / "plots" / "learning_curves.png").stat().st_size > 1000 and len(run.metrics()) == 1


@pytest.mark.parametrize("number, at", [(errno.EROFS, "mkdir"), (errno.EACCES, "lock"), (errno.EDQUOT, "events")])
def test_a_run_directory_that_takes_nothing_is_told_by_status_2(quick, monkeypatch, tmp_path, capsys, number, at):
    run = tmp_path / "runs" / "one"

    def refuse(*arguments, **more):
        raise OSError(number, os.strerror(number), str(run))

    def refuse_as_tensorflow(*arguments, **more):
        text = "{{function_node __wrapped__CreateSummaryFileWriter_device_/job:localhost}} " + str(run / "events")
        raise tf.errors.UnknownError(None, None, f"{text}; {os.strerror(number)} [Op:CreateSummaryFileWriter]")

    owner, name, fail = {
        "mkdir": (Path, "mkdir", refuse),
        "lock": (files.FileLock, "acquire", refuse),
        "events": (tf.summary, "create_file_writer", refuse_as_tensorflow),
    }[at]
    monkeypatch.setattr(owner, name, fail)
    settings = [f"--set={name}={value}" for name, value in SHORT.items()]
    status = main(["train", "--model", "ResNet20", "--dataset", "digits", "--run", str(run), *settings])
    sentence = f"keras-convnets: {run} can't be written to ({os.strerror(number)}); fix that, and the same command"
    assert status == 2 and capsys.readouterr().err.startswith(sentence)


def test_what_a_kill_after_the_end_leaves_is_removed(quick, tmp_path):
    run = fit(tmp_path / "run", iterations=1)
    (run.checkpoints / "00000001").mkdir(parents=True)
    fit(tmp_path / "run", iterations=1)
    assert run.finished and not run.checkpoints.exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network trained on BGR images, in a file that says so."""
    path = tmp_path_factory.mktemp("weights") / "resnet.keras"
    preprocessing = Preprocessing(mean=(1, 2, 3), std=(4, 5, 6), order="BGR")
    CIFARResNet(8, input_shape=(32, 32, 3), classes=3, preprocessing=preprocessing).save(path)
    return path


# Whole quick runs of these, from scratch, are in test_photograph_recipes.py.
WHOLE = ("resnet_imagenet", "googlenet", "resnet_cifar")


@pytest.mark.parametrize(
    "given", [pytest.param(False, marks=pytest.mark.heavy, id="from scratch"), pytest.param(True, id="from weights")]
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy) if name in WHOLE else name for name in RECIPES]
)
def test_every_recipe_takes_a_step_with_and_without_weights(
    name, given, weights, monkeypatch, tmp_path, eager_functions
):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    split = training.data.ArraySplit(images, np.arange(12) % 3)
    data = training.DataSet("made", ("a", "b", "c"), True, {"train": split}, (32, 32))
    overrides = {"batch_size": 4, "image_size": 32, "iterations": 1, "epochs": None, "holdout": 0}
    plan = make_plan("ResNet20", data, name, overrides, None, weights if given else None)
    made = training.Trainer(plan, training.Run(tmp_path))
    assert (made.preprocessing.order == "BGR") == given and (not given or made.preprocessing.mean == (1, 2, 3))
    batch = next(made.batches())
    loss, _ = made.train_step(batch)
    assert np.isfinite(float(loss))


def test_padding_has_the_colour_of_the_mean_whatever_the_networks_order():
    data = training.load_dataset("digits")
    recipe = trainer.make_plan("ResNet20", "digits", "resnet_cifar", {"pad": 8}, None).recipe
    bgr = Preprocessing(mean=(30, 20, 10), order="BGR")
    images = recipe.augment(data, bgr, None)(np.full((200, 8, 8, 3), 99), tf.constant([0, 0], tf.int64)).numpy()
    colours = {tuple(colour) for colour in images.reshape(-1, 3).tolist()}
    assert colours == {(99, 99, 99), (10, 20, 30)}


def test_metrics_are_json_where_inference_overflows(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "mean_loss", lambda *_: float("nan"))
    run = fit(tmp_path / "run")
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    strict = [json.loads(line, parse_constant=lambda text: pytest.fail(text)) for line in lines]
    assert strict and all(record["val_loss"] is None for record in strict) and run.finished


@pytest.mark.heavy
def test_a_checkpoint_of_an_earlier_version_resumes(monkeypatch, tmp_path):
    """Its state had "watch", "warming" and "running_error" in place of "schedule"."""
    make_quick(monkeypatch)
    overrides = {"iterations": 12, "batch_size": 400, "holdout": 100, "warmup": True, "seed": 2}

    def interrupted(self, step):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.TrainingProgress, "advance", interrupted)
        with pytest.raises(Interrupted, match="stopped at step 5 of 12; the same command resumes it"):
            fit(tmp_path / "run", **overrides)
    path = tmp_path / "run" / "checkpoints" / "00000005" / "state.json"
    state = json.loads(path.read_text())
    schedule = state.pop("schedule")
    # 1437 images, 100 of them held out, are seen once after 4 steps of 400: one report.
    assert schedule["warmup"]["active"] and 0.9 < schedule["warmup"]["running_error"] < 1 and len(state["records"]) == 1
    state["watch"] = {"best": schedule["best"], "reference": None, "waited": 0, "since": 0, "divisions": 0}
    state["warming"], state["running_error"] = True, schedule["warmup"]["running_error"]
    assert set(state) == {"step", "records", "watch", "warming", "running_error", "sums", "first_loss"}
    path.write_text(json.dumps(state))
    resumed, unbroken = fit(tmp_path / "run", **overrides), fit(tmp_path / "unbroken", **overrides)
    assert [list(record.values()) for record in resumed.metrics()] == [
        pytest.approx(list(record.values()), rel=1e-4) for record in unbroken.metrics()
    ]
    for one, other in zip(resumed.model().get_weights(), unbroken.model().get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
