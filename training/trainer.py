"""The trainer: a recipe, a network and a data set over all local devices, into a run directory."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from keras_convnets.card import ModelCard, current_git_revision, current_versions
from keras_convnets.display import printable
from keras_convnets.errors import Interrupted, UserError
from keras_convnets.files import sha256
from keras_convnets.googlenet import without_auxiliary
from keras_convnets.registry import get_model
from keras_convnets.training.data import DataSet
from keras_convnets.training.evaluation import mean_loss, predict_split, top_k_accuracy
from keras_convnets.training.inputs import training_batches
from keras_convnets.training.plan import Plan, make_plan
from keras_convnets.training.plots import learning_curves
from keras_convnets.training.progress import TrainingProgress
from keras_convnets.training.recipes import Recipe
from keras_convnets.training.run import BEST, FINAL, Run
from keras_convnets.training.step import local_strategy, make_optimizer, make_step

# A checkpoint is written this long after the last one: at the end of an epoch, and in the middle of a long one.
CHECKPOINT_SECONDS_AT_REPORTS = 10.0
CHECKPOINT_SECONDS = 60.0
# More reports than this tell nothing more: small data sets have very short epochs.
MOST_REPORTS = 200
# The warm-up watches the training error as a running mean over about this many steps.
WARMUP_WINDOW = 20


def fit(
    model: str,
    dataset: str | os.PathLike | DataSet,
    *,
    run: str | os.PathLike,
    recipe: str | Recipe | None = None,
    weights: Any = None,
    overrides: dict[str, Any] | None = None,
    data_dir: str | os.PathLike | None = None,
    console: Console | None = None,
) -> Run:
    """Train a network by a recipe; go on where an earlier call with the same arguments was stopped.

    Args:
        model: a registered name, such as "ResNet20", or MODEL:WEIGHTS.
        dataset: what `load_dataset` takes.
        run: the run directory.
        recipe: a recipe or its name; by default "finetune" where there are weights to start from, else that of the
            network's paper.
        weights: what to start from, as the builders take it; by default what the network is initialised with.
        overrides: recipe fields set otherwise, such as {"epochs": 3}.
        data_dir: where prepared TFDS directories are.
        console: where progress is shown; None shows nothing.

    Returns:
        The finished run.

    Raises:
        UserError: if a name, a field or the data do not fit, or the directory holds another run.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
        FloatingPointError: if the loss is no longer finite; the last checkpoint stays.

    Example:
        >>> fit("ResNet20", "digits", run="runs/digits", overrides={"epochs": 40}).card().metrics
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"training runs on TensorFlow, and Keras runs on {keras.backend.backend()}; unset KERAS_BACKEND."
        )
    plan = make_plan(model, dataset, recipe, overrides, data_dir, weights)
    directory = Run(run)
    source = {"dataset": dataset_place(dataset), "data_dir": None if data_dir is None else os.path.abspath(data_dir)}
    with directory.claimed(plan.config(), source):
        if not directory.finished:
            with _stop_signals() as stop:
                _Training(plan, directory, console).to_the_end(stop)
    return directory


def dataset_place(dataset: str | os.PathLike | DataSet) -> str | None:
    """Return what finds a data set again from any folder, or None for one that was made in Python."""
    if isinstance(dataset, DataSet):
        return None
    return os.path.abspath(dataset) if os.path.isdir(dataset) else os.fspath(dataset)


class _Training:
    """One process's part of a training: built, put back to the newest checkpoint, and run to the end."""

    def __init__(self, plan: Plan, run: Run, console: Console | None):
        self.plan, self.run, self.console = plan, run, console
        recipe = plan.recipe
        keras.utils.set_random_seed(recipe.seed)
        # Weights bring the preprocessing that they were trained with.
        self.preprocessing = None if plan.weights else recipe.preprocessing(plan.sample())
        self.arguments = {"classes": len(plan.data.class_names), "input_shape": list(plan.input_shape)}
        self.strategy = local_strategy()
        with self.strategy.scope(), _policy(recipe.precision):
            # With its auxiliary classifiers, where it is trained with them; `self.model` is the network without.
            self.whole = get_model(
                plan.architecture,
                classes=self.arguments["classes"],
                input_shape=plan.input_shape,
                weights=plan.weights,
                preprocessing=self.preprocessing,
                **recipe.builder_arguments(plan.architecture),
            )
            recipe.prepare(self.whole)
            self.model = self.whole
            if isinstance(self.whole.output, dict):
                self.model = without_auxiliary(self.whole)
            # Training works on the logits; all models share their layers.
            logits = {name: self.whole.get_layer(name).output for name in recipe.loss_weights(plan.architecture)}
            self.network = keras.Model(self.whole.inputs, logits)
            self.optimizer = make_optimizer(recipe)
            self.optimizer.build(self.network.trainable_variables)
            state = run.load_checkpoint(self.whole, self.optimizer)
        self.step = 0
        self.records: list[dict[str, Any]] = []
        self.best: float | None = None
        # Of a plateau schedule and of early stopping: reports since the last improvement, and divisions so far.
        self.waited, self.divisions = 0, 0
        self.warming = bool(getattr(recipe, "warmup", False))
        self.running_error = 1.0
        # (loss, number right) of the steps since the last report; tensors, so that a GPU is not waited for.
        self.sums: list[tuple[Any, Any]] = []
        if state:
            self.step, self.records, self.best = state["step"], state["records"], state["best"]
            self.waited, self.divisions = state["waited"], state["divisions"]
            self.warming, self.running_error = state["warming"], state["running_error"]
            self.sums = [tuple(pair) for pair in state["sums"]]
            if console:
                going_on = f"going on with {printable(run.path)} at step {self.step} of {plan.total_steps}"
                console.print(going_on, highlight=False, markup=False)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside weights and optimizer."""
        return {
            "records": self.records,
            "best": self.best,
            "waited": self.waited,
            "divisions": self.divisions,
            "warming": self.warming,
            "running_error": self.running_error,
            "sums": [[float(loss), float(right)] for loss, right in self.sums],
        }

    def checkpoint(self) -> None:
        """Write a checkpoint and the metrics so far."""
        self.run.save_checkpoint(self.step, self.whole, self.optimizer, self.state())
        self.run.write_metrics(self.records)

    def to_the_end(self, stop: threading.Event) -> None:
        """Train what is left, then write the networks and the card."""
        plan, total = self.plan, self.plan.total_steps
        steps = self.steps()
        batches = iter(
            self.strategy.experimental_distribute_dataset(training_batches(plan, self.preprocessing, self.step))
        )
        events = tf.summary.create_file_writer(str(self.run.path / "events"))
        saved = time.monotonic()
        with TrainingProgress(total, plan.recipe.batch_size, self.step, self.console) as progress, events.as_default():
            while self.step < total and not self._has_settled():
                self._set_learning_rate()
                with progress.waiting():
                    batch = next(batches)
                self.sums.append(steps[plan.recipe.head_only(self.step, total)](*batch))
                self.step += 1
                self._watch_warmup(self.sums[-1])
                progress.advance(self.step)
                due = CHECKPOINT_SECONDS
                if self._report_due():
                    self._report(progress)
                    due = CHECKPOINT_SECONDS_AT_REPORTS
                if stop.is_set() or time.monotonic() - saved > due:
                    self.checkpoint()
                    saved = time.monotonic()
                if stop.is_set() and self.step < total:
                    raise Interrupted(f"stopped at step {self.step} of {total}; the same command goes on with it.")
        self._finish()

    def steps(self) -> dict[bool, Any]:
        """Return the training step of the classifier alone, by True, and of the whole network, by False."""
        recipe = self.plan.recipe
        given = {"loss_weights": recipe.loss_weights(self.plan.architecture)}
        multipliers = recipe.rate_multipliers(self.model)
        whole = make_step(self.network, self.optimizer, recipe, self.strategy, multipliers=multipliers, **given)
        head = make_step(self.network, self.optimizer, recipe, self.strategy, only="predictions", **given)
        return {True: head, False: whole}

    def _has_settled(self) -> bool:
        """Whether the holdout has not improved for as long as the recipe waits before it stops early."""
        patience = getattr(self.plan.recipe, "stop_patience", None)
        return patience is not None and self.waited >= patience

    def _set_learning_rate(self) -> None:
        recipe = self.plan.recipe
        rate = (
            recipe.warmup_learning_rate() if self.warming else recipe.scheduled_rate(self.step, self.plan.total_steps)
        )
        rate *= getattr(recipe, "drop_factor", 1.0) ** self.divisions
        if rate != getattr(self, "_rate", None):
            self.optimizer.learning_rate.assign(rate)
            self._rate = rate

    def _watch_warmup(self, sums: tuple[Any, Any]) -> None:
        """End the warm-up when the running training error falls below the recipe's bound."""
        if not self.warming:
            return
        error = 1 - float(sums[1]) / self.plan.recipe.batch_size
        self.running_error += (error - self.running_error) / WARMUP_WINDOW
        if self.running_error < self.plan.recipe.warmup_until_error:
            self.warming = False
            if self.console:
                self.console.print(f"warm-up ended at step {self.step}", highlight=False)

    def _report_due(self) -> bool:
        batch_size, images = self.plan.recipe.batch_size, self.plan.data.split("train").size
        epoch_ended = self.step * batch_size // images > (self.step - 1) * batch_size // images
        if self.step == self.plan.total_steps:
            return True
        last = self.records[-1]["step"] if self.records else 0
        return epoch_ended and self.step - last >= self.plan.total_steps / MOST_REPORTS

    def _report(self, progress: TrainingProgress) -> None:
        """Add a record to the metrics; on the holdout, keep the network if it is the best yet."""
        batch_size = self.plan.recipe.batch_size
        loss = float(np.mean([float(loss) for loss, _ in self.sums]))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.step}; the last checkpoint stays: try a lower learning_rate."
            )
        record = {
            "step": self.step,
            "epoch": round(self.step * batch_size / self.plan.data.split("train").size, 2),
            "loss": loss,
            "top1": float(np.mean([float(right) for _, right in self.sums])) / batch_size,
            "learning_rate": self._rate,
        }
        if "holdout" in self.plan.data.splits:
            self._look_at_holdout(record)
        self.records.append(record)
        self.sums = []
        for name, value in record.items():
            if name not in ("step", "epoch"):
                tf.summary.scalar(name, value, step=self.step)
        progress.report(record)

    def _look_at_holdout(self, record: dict[str, Any]) -> None:
        """Measure the network on the holdout, keep it if it is the best yet, and let the recipe's plateau see it."""
        recipe, split = self.plan.recipe, self.plan.data.split("holdout")
        with self._averaged():
            probabilities = predict_split(self.model, split, recipe.batch_size)
            record["val_top1"] = top_k_accuracy(probabilities, split.labels, 1)
            record["val_loss"] = mean_loss(probabilities, split.labels)
            if self.judge(record):
                self.run.save_model(self.model, BEST)

    def judge(self, record: dict[str, Any]) -> bool:
        """Return whether a report's figures on the holdout are the best yet; a plateau divides the learning rate."""
        recipe = self.plan.recipe
        figure = record["val_top1"] if recipe.best_is == "val_top1" else -record["val_loss"]
        if self.best is None or figure > self.best:
            self.best, self.waited = figure, 0
            return True
        self.waited += 1
        patience = getattr(recipe, "plateau_patience", None)
        if patience is not None and self.waited >= patience and self.divisions < recipe.plateau_drops:
            self.divisions, self.waited = self.divisions + 1, 0
        return False

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Have the weights' running averages in the network, where the recipe keeps them."""
        if self.plan.recipe.ema is None or self.step == 0:
            yield
            return
        self._exchange_averages()
        try:
            yield
        finally:
            self._exchange_averages()

    def _exchange_averages(self) -> None:
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        for variable, average in zip(
            self.network.trainable_variables, inner._model_variables_moving_average, strict=True
        ):
            value = variable.numpy()
            variable.assign(average.numpy())
            average.assign(value)

    def _finish(self) -> None:
        """Write `final.keras` last: with it the run counts as finished."""
        with self._averaged():
            self._write_results()
        self.run.drop_checkpoints()

    def _write_results(self) -> None:
        run, plan = self.run, self.plan
        run.write_metrics(self.records)
        if self.best is None:
            run.save_model(self.model, BEST)
        card = ModelCard(
            architecture=plan.architecture,
            arguments=dict(self.model.built_as.arguments),
            class_names=plan.data.class_names,
            preprocessing=self.preprocessing or self.model.get_layer("preprocessing").preprocessing,
            view=plan.view,
            trained=True,
            data=plan.data_facts(),
            recipe=plan.recipe.to_dict(),
            seed=plan.recipe.seed,
            weights={"file": BEST, "sha256": sha256(run.path / BEST)},
            versions=current_versions(),
            git_revision=current_git_revision(),
        )
        run.save_samples(plan.data)
        card.write(run.path)
        run.save_model(self.model, FINAL)
        learning_curves(
            self.records, run.path / "plots" / "learning_curves.png", f"{plan.architecture} on {plan.data.name}"
        )


@contextmanager
def _policy(precision: str) -> Iterator[None]:
    """Build layers under a dtype policy; the global one comes back."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set; a second signal stops at once. Only the main thread can listen."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def asked(number, frame):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
