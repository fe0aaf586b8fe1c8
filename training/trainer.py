"""The trainer: a recipe, a network and a data set over all local devices, into a run directory."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console

from keras_convnets.display import printable
from keras_convnets.errors import Interrupted, UserError
from keras_convnets.files import wrap_write_errors
from keras_convnets.networks.googlenet import without_auxiliary
from keras_convnets.networks.registry import get_model
from keras_convnets.networks.spec import ModelSpec
from keras_convnets.training.data import DataSet
from keras_convnets.training.data.cached_passes import reporting
from keras_convnets.training.divergence import DivergenceCheck
from keras_convnets.training.evaluation.metrics import mean_loss, top_k_accuracy
from keras_convnets.training.evaluation.prediction import predict_split
from keras_convnets.training.input_pipeline import training_batches
from keras_convnets.training.plan import Plan, make_plan
from keras_convnets.training.progress import PassProgress, TrainingProgress
from keras_convnets.training.recipes import Recipe
from keras_convnets.training.reports import Reports
from keras_convnets.training.results import write_results
from keras_convnets.training.run import BEST, Run
from keras_convnets.training.schedules import HoldoutFigures, schedule_state
from keras_convnets.training.stop_signals import stop_signals
from keras_convnets.training.train_step import local_strategy, make_optimizer, make_step
from keras_convnets.training.weight_averages import Averages

# A checkpoint is written this long after the last one: at the end of an epoch, and in the middle of a long one.
CHECKPOINT_SECONDS_AT_REPORTS = 10.0
CHECKPOINT_SECONDS = 60.0


def fit(
    model: str | ModelSpec,
    dataset: str | os.PathLike | DataSet,
    *,
    run: str | os.PathLike,
    recipe: str | Recipe | None = None,
    weights: Any = None,
    overrides: dict[str, Any] | None = None,
    data_dir: str | os.PathLike | None = None,
    console: Console | None = None,
) -> Run:
    """Train a network by a recipe; resume where an earlier call with the same arguments was stopped.

    Args:
        model: a network's name, such as "ResNet20", with arguments, such as "ResNet34(shortcut=A)", or a
            `ModelSpec`; also MODEL:WEIGHTS.
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
        UserError: if a name, a field or the data do not fit, or the directory holds another run or can't be written.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
        Diverged: if losses or weights are no longer finite. What was written is, and the same call with another
            learning rate resumes from it.

    Example:
        >>> fit("ResNet20", "digits", run="runs/digits", overrides={"epochs": 40}).card().metrics
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"training runs on TensorFlow, and Keras runs on {keras.backend.backend()}; unset KERAS_BACKEND."
        )
    with reporting(PassProgress(console)):
        plan = make_plan(model, dataset, recipe, overrides, data_dir, weights)
    directory = Run(run)
    source = {"dataset": dataset_place(dataset), "data_dir": None if data_dir is None else os.path.abspath(data_dir)}
    advice = "fix that, and the same command resumes from the last checkpoint, or give another directory with --run"
    with wrap_write_errors(directory.path, advice), directory.claimed(plan.config(), source):
        if directory.finished:
            directory.drop_checkpoints()
        else:
            with stop_signals() as stop, reporting(PassProgress(console)):
                Trainer(plan, directory, console).run(stop)
    return directory


def dataset_place(dataset: str | os.PathLike | DataSet) -> str | None:
    """Return what finds a data set again from any folder, or None for one that was made in Python."""
    if isinstance(dataset, DataSet):
        return None
    return os.path.abspath(dataset) if os.path.isdir(dataset) else os.fspath(dataset)


class Trainer:
    """A training on all local devices: built from a plan, resumed from the newest checkpoint, and run to its end.

    `fit` is a thin layer over it. Single steps, as for a measurement, are taken with `train_step`.

    Args:
        plan: what to train, from `training.plan.make_plan`.
        directory: the run directory. `run` needs it claimed, as in `with directory.claimed(plan.config(), {})`.
        console: where progress is shown; None shows nothing.

    Attributes:
        model: the network as it is evaluated and saved, without auxiliary classifiers.
        preprocessing: what its first layer does.
        strategy: distributes batches over the devices.
        optimizer: SGD with momentum.
        averages: the weights' running averages, or None where the recipe keeps none.
        schedule: the learning rate of each step, and the end of the run.
        step: how many steps are done.
        learning_rate: of the present step; None before the first.
        reports: the records of `metrics.jsonl`.
        whole_step: the compiled step of the whole network: a distributed batch -> (loss, number right).
        head_step: that of the classifier alone.
        progress: the speed of `run`.

    Example:
        >>> trainer = Trainer(make_plan("ResNet20", "digits", overrides={"holdout": 100}), Run("runs/digits"))
        >>> loss, right = trainer.train_step(next(trainer.batches()))
        >>> trainer.evaluate_holdout()
        {'val_top1': 0.1, 'val_loss': 2.4}
    """

    def __init__(self, plan: Plan, directory: Run, console: Console | None = None):
        self.plan, self.directory, self.console = plan, directory, console
        recipe = plan.recipe
        keras.utils.set_random_seed(recipe.seed)
        self.arguments = {"classes": len(plan.data.class_names), "input_shape": list(plan.input_shape)}
        self.strategy = local_strategy()
        with self.strategy.scope(), _policy(recipe.precision):
            # With its auxiliary classifiers, where it is trained with them; `self.model` is the network without.
            self.whole = get_model(
                plan.architecture,
                classes=self.arguments["classes"],
                input_shape=plan.input_shape,
                weights=plan.weights,
                # Weights bring the preprocessing that they were trained with.
                preprocessing=None if plan.weights else recipe.preprocessing(plan.sample()),
                **{**plan.model.arguments, **recipe.builder_arguments(plan.architecture)},
            )
            self.preprocessing = self.whole.get_layer("preprocessing").preprocessing
            recipe.prepare(self.whole)
            self.model = self.whole
            if isinstance(self.whole.output, dict):
                self.model = without_auxiliary(self.whole)
            # Training works on the logits; all models share their layers.
            logits = {name: self.whole.get_layer(name).output for name in recipe.loss_weights(plan.architecture)}
            self.network = keras.Model(self.whole.inputs, logits)
            self.optimizer = make_optimizer(recipe)
            self.optimizer.build(self.network.trainable_variables)
            self.averages = None if recipe.ema is None else Averages(self.network, recipe.ema)
        # What a checkpoint keeps besides the network's weights.
        self.variables = [*self.optimizer.variables, *(self.averages.variables if self.averages else ())]
        self.step = 0
        self.learning_rate: float | None = None
        self.schedule = recipe.make_schedule(plan.total_steps)
        self.reports = Reports(plan)
        self.divergence = DivergenceCheck(plan, directory)
        self.progress = TrainingProgress(plan.total_steps, recipe.batch_size, console)
        self.whole_step, self.head_step = self.compile_steps()

    def compile_steps(self) -> tuple[Callable, Callable]:
        """Return the training step of the whole network and of the classifier alone."""
        recipe = self.plan.recipe
        weights = recipe.loss_weights(self.plan.architecture)
        make = functools.partial(make_step, self.network, self.optimizer, recipe, self.strategy, loss_weights=weights)
        whole = make(multipliers=recipe.rate_multipliers(self.model), averages=self.averages)
        return whole, make(only="predictions", averages=self.averages)

    def batches(self) -> Iterator[Any]:
        """Return the endless stream of batches from the present step on, distributed over the devices."""
        stream = training_batches(self.plan, self.preprocessing, self.step)
        return iter(self.strategy.experimental_distribute_dataset(stream))

    def train_step(self, batch: Any) -> tuple[Any, Any]:
        """Take one step at the schedule's learning rate.

        Args:
            batch: (images, labels) as `batches` gives it.

        Returns:
            The loss and the number of images that were classified rightly, as tensors: a GPU is not waited for.
        """
        self.set_learning_rate()
        compiled = self.head_step if self.schedule.head_only(self.step) else self.whole_step
        loss, right = compiled(*batch)
        self.divergence.observe(self.step, loss)
        self.reports.observe((loss, right))
        self.step += 1
        if self.schedule.warming:
            self._observe_training_error(right)
        return loss, right

    def set_learning_rate(self) -> None:
        """Give the optimizer the learning rate of the present step."""
        rate = self.schedule.rate(self.step)
        if rate != self.learning_rate:
            self.optimizer.learning_rate.assign(rate)
            self.learning_rate = rate

    def _observe_training_error(self, right: Any) -> None:
        self.schedule.observe_training_error(1 - float(right) / self.plan.recipe.batch_size)
        if not self.schedule.warming and self.console:
            self.console.print(f"warm-up ended at step {self.step}", highlight=False)

    def evaluate_holdout(self) -> HoldoutFigures:
        """Return "val_top1" and "val_loss" of the network, averaged where the recipe says so, on the held-out images.

        Raises:
            UserError: if the plan holds none out.
        """
        split = self.plan.data.split("holdout")
        with self.averaged_weights():
            probabilities = predict_split(self.model, split, self.plan.recipe.batch_size)
        loss = mean_loss(probabilities, split.labels)
        # What is finite in training may overflow in inference; JSON knows no such number.
        finite_loss = loss if math.isfinite(loss) else None
        return {"val_top1": top_k_accuracy(probabilities, split.labels, 1), "val_loss": finite_loss}

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Have the weights' running averages in the network, where the recipe keeps them."""
        return self.averages.in_network() if self.averages else contextlib.nullcontext()

    def report(self) -> None:
        """Add a record to the metrics; on the holdout, keep the network if it is the best yet.

        Raises:
            Diverged: if something is not finite; nothing is kept then.
        """
        self._check_finite()
        assert self.learning_rate is not None, "a report follows a step"
        record = self.reports.begin(self.step, self.learning_rate)
        if record is None:
            return
        if "holdout" in self.plan.data.splits:
            figures = self.evaluate_holdout()
            record.update(figures)
            if self.schedule.observe_holdout(self.step, figures):
                self._save(BEST)
        self.reports.add(record)
        self.progress.report(record)

    def _save(self, name: str) -> None:
        with self.averaged_weights():
            self.directory.save_model(self.model, name)

    def _check_finite(self) -> None:
        variables = [*self.whole.weights, *self.variables]
        self.divergence.check(self.step, self.reports.losses(), bool(self.reports.records), variables)

    def checkpoint(self) -> None:
        """Write a checkpoint and the metrics so far.

        Raises:
            Diverged: if something is not finite; nothing is written then.
        """
        self._check_finite()
        self.directory.save_checkpoint(self.step, self.whole, self.variables, self.state())
        self.directory.write_metrics(self.reports.records)
        self.divergence.expect_loss_after(self.step)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside weights and variables, as plain data for JSON."""
        first_loss = self.divergence.first_loss
        return {**self.reports.state(), "schedule": self.schedule.state(), "first_loss": first_loss}

    def restore(self) -> None:
        """Resume from the directory's newest checkpoint, if there is one."""
        state = self.directory.load_checkpoint(self.whole, self.variables)
        if state is None:
            return
        self.step = state["step"]
        self.reports.restore(state)
        self.schedule.restore(schedule_state(state))
        self.divergence.restore(self.step, state["first_loss"])
        if self.console:
            resuming = f"resuming {printable(self.directory.path)} at step {self.step} of {self.plan.total_steps}"
            self.console.print(resuming, highlight=False, markup=False)

    def run(self, stop: threading.Event | None = None) -> None:
        """Resume from the newest checkpoint, train the remaining steps, then write the networks and the card.

        Args:
            stop: if set, the run writes a checkpoint and ends.

        Raises:
            Interrupted: if `stop` was set before the end.
            Diverged: if losses or weights are not finite.
        """
        if self.step == 0:
            self.restore()
        stop, total = stop or threading.Event(), self.plan.total_steps
        batches = self.batches()
        events = tf.summary.create_file_writer(str(self.directory.path / "events"))
        saved = time.monotonic()
        with self.progress.starting_at(self.step), events.as_default():
            while self.step < total and not self.schedule.ends_early:
                with self.progress.waiting():
                    batch = next(batches)
                self.train_step(batch)
                self.progress.advance(self.step)
                interval = CHECKPOINT_SECONDS
                if self.reports.is_due(self.step):
                    self.report()
                    interval = CHECKPOINT_SECONDS_AT_REPORTS
                if stop.is_set() or time.monotonic() - saved > interval:
                    self.checkpoint()
                    saved = time.monotonic()
                if stop.is_set() and self.step < total:
                    raise Interrupted(f"stopped at step {self.step} of {total}; the same command resumes it.")
        self.finish()

    def finish(self) -> None:
        """Write `final.keras` last: with it the run counts as finished."""
        if self.schedule.best is None:
            self._save(BEST)
        with self.averaged_weights():
            write_results(self.directory, self.plan, self.model, self.preprocessing, self.reports.records)
        self.directory.drop_checkpoints()


@contextmanager
def _policy(precision: str) -> Iterator[None]:
    """Build layers under a dtype policy; the global one comes back."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
