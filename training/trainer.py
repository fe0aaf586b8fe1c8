"""The trainer: a recipe, a network and a data set over all local devices, into a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from keras_convnets.card import ModelCard, current_git_revision, current_versions
from keras_convnets.display import printable
from keras_convnets.errors import Diverged, Interrupted, UserError
from keras_convnets.files import sha256, writing
from keras_convnets.networks.googlenet import without_auxiliary
from keras_convnets.networks.registry import get_model
from keras_convnets.networks.spec import ModelSpec
from keras_convnets.training.data import DataSet
from keras_convnets.training.data.cached_passes import reporting
from keras_convnets.training.evaluation import mean_loss, predict_split, top_k_accuracy
from keras_convnets.training.holdout import HoldoutWatch
from keras_convnets.training.input_pipeline import training_batches
from keras_convnets.training.plan import Plan, make_plan
from keras_convnets.training.plots import learning_curves
from keras_convnets.training.progress import PassProgress, TrainingProgress
from keras_convnets.training.recipes import Recipe
from keras_convnets.training.run import BEST, FINAL, Run
from keras_convnets.training.train_step import local_strategy, make_optimizer, make_step
from keras_convnets.training.weight_averages import Averages

# A checkpoint is written this long after the last one: at the end of an epoch, and in the middle of a long one.
CHECKPOINT_SECONDS_AT_REPORTS = 10.0
CHECKPOINT_SECONDS = 60.0
# More reports than this tell nothing more: small data sets have very short epochs.
MOST_REPORTS = 200
# The warm-up watches the training error as a running mean over about this many steps.
WARMUP_WINDOW = 20
# With loss scaling a step whose gradients overflow is skipped, and the next one computes with smaller ones; so many
# skipped ones in a row, and it won't recover.
MOST_SKIPPED = 20


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
    """Train a network by a recipe; go on where an earlier call with the same arguments was stopped.

    Args:
        model: a network's name, such as "ResNet20", with arguments of its own, such as "ResNet34(shortcut=A)", or a
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
            learning rate goes on from it.

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
    then = "mend that, and the same command goes on from the last checkpoint, or name another with --run"
    with writing(directory.path, then), directory.claimed(plan.config(), source):
        if directory.finished:
            directory.drop_checkpoints()
        else:
            with _stop_signals() as stop, reporting(PassProgress(console)):
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
        self.records: list[dict[str, Any]] = []
        self.watch = HoldoutWatch()
        self.warming = bool(getattr(recipe, "warmup", False))
        self.running_error = 1.0
        # (loss, number right) of the steps since the last report; tensors, so that a GPU is not waited for.
        self.sums: list[tuple[Any, Any]] = []
        # The loss of the run's first step, and of the step after each checkpoint, which tells how good it is.
        self.first_loss: Any = None
        self.losses_after: dict[int, Any] = {}
        self._go_on(run.load_checkpoint(self.whole, self.variables))

    def _go_on(self, state: dict[str, Any] | None) -> None:
        """Take a checkpoint's state over; None: there is none."""
        if not state:
            return
        self.step, self.records, self.watch = state["step"], state["records"], HoldoutWatch(**state["watch"])
        self.warming, self.running_error = state["warming"], state["running_error"]
        self.sums, self.first_loss = [tuple(pair) for pair in state["sums"]], state["first_loss"]
        self.losses_after = {self.step: None}
        if self.console:
            going_on = f"going on with {printable(self.run.path)} at step {self.step} of {self.plan.total_steps}"
            self.console.print(going_on, highlight=False, markup=False)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside weights and variables."""
        return {
            "records": self.records,
            "watch": dataclasses.asdict(self.watch),
            "warming": self.warming,
            "running_error": self.running_error,
            "sums": [[float(loss), float(right)] for loss, right in self.sums],
            "first_loss": float(self.first_loss),
        }

    def checkpoint(self) -> None:
        """Write a checkpoint and the metrics so far.

        Raises:
            Diverged: if something is not finite; nothing is written then.
        """
        self._check_finite()
        self.run.save_checkpoint(self.step, self.whole, self.variables, self.state())
        self.run.write_metrics(self.records)
        self.losses_after[self.step] = None

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
                self._take(steps[plan.recipe.head_only(self.step, total)](*batch))
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

    def _take(self, sums: tuple[Any, Any]) -> None:
        """Count a step that is done, by its (loss, number right)."""
        if self.step == 0:
            self.first_loss = sums[0]
        if self.step in self.losses_after:
            self.losses_after[self.step] = sums[0]
        self.sums.append(sums)
        self.step += 1
        self._watch_warmup(sums)

    def steps(self) -> dict[bool, Any]:
        """Return the training step of the classifier alone, by True, and of the whole network, by False."""
        recipe = self.plan.recipe
        given = {"loss_weights": recipe.loss_weights(self.plan.architecture), "averages": self.averages}
        multipliers = recipe.rate_multipliers(self.model)
        whole = make_step(self.network, self.optimizer, recipe, self.strategy, multipliers=multipliers, **given)
        head = make_step(self.network, self.optimizer, recipe, self.strategy, only="predictions", **given)
        return {True: head, False: whole}

    def _has_settled(self) -> bool:
        """Whether the holdout has not improved for as long as the recipe waits before it stops early."""
        patience = getattr(self.plan.recipe, "stop_patience", None)
        return patience is not None and self.watch.waited >= patience

    def _set_learning_rate(self) -> None:
        recipe, total = self.plan.recipe, self.plan.total_steps
        self.watch.divide(recipe.divisions_by(self.step, total), self.step)
        rate = recipe.scheduled_rate(self.step, total, self.watch.divisions)
        if self.warming:
            rate = min(rate, recipe.warmup_learning_rate())
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
        """Add a record to the metrics; on the holdout, keep the network if it is the best yet.

        Raises:
            Diverged: if something is not finite; nothing is kept then.
        """
        self._check_finite()
        batch_size = self.plan.recipe.batch_size
        losses = [loss for loss, _ in self.sums if math.isfinite(loss)]
        if not losses:  # all steps since the last report were skipped; the next one tells of them
            return
        record = {
            "step": self.step,
            "epoch": round(self.step * batch_size / self.plan.data.split("train").size, 2),
            "loss": float(np.mean(losses)),
            "top1": float(np.mean([float(right) for _, right in self.sums])) / batch_size,
            "learning_rate": self._rate,
        }
        if "holdout" in self.plan.data.splits:
            self._look_at_holdout(record)
        self.records.append(record)
        self.sums = []
        for name, value in record.items():
            if name not in ("step", "epoch") and value is not None:
                tf.summary.scalar(name, value, step=self.step)
        progress.report(record)

    def _look_at_holdout(self, record: dict[str, Any]) -> None:
        """Measure the network on the holdout, keep it if it is the best yet, and let the recipe's plateau see it."""
        recipe, split = self.plan.recipe, self.plan.data.split("holdout")
        with self._averaged():
            probabilities = predict_split(self.model, split, recipe.batch_size)
            record["val_top1"] = top_k_accuracy(probabilities, split.labels, 1)
            loss = mean_loss(probabilities, split.labels)
            # What is finite in training may overflow in inference; JSON knows no such number.
            record["val_loss"] = loss if math.isfinite(loss) else None
            if self.judge(record):
                self.run.save_model(self.model, BEST)

    def judge(self, record: dict[str, Any]) -> bool:
        """Return whether a report's figures on the holdout are the best yet; a plateau divides the learning rate.

        Neither the plateau nor early stopping counts reports of the classifier trained alone or of a warm-up.
        """
        recipe, watch, total = self.plan.recipe, self.watch, self.plan.total_steps
        loss = math.inf if record["val_loss"] is None else record["val_loss"]
        figure = -loss if recipe.best_is == "val_loss" or math.isinf(loss) else record["val_top1"]
        last = self.step - 1
        rising = self.warming or last < recipe.warmup_share * total
        is_best = watch.see(figure, self.step, counts=not (rising or recipe.head_only(last, total)))
        plateau = recipe.plateau(total)
        if plateau is not None and watch.waited and self.step - watch.since >= plateau:
            watch.divide(min(watch.divisions + 1, recipe.plateau_drops), self.step)
        return is_best

    def _check_finite(self) -> None:
        """End the run where losses or weights are no longer finite, before anything is written of them.

        Raises:
            Diverged: the sentence says what to do.
        """
        self.sums = [(float(loss), float(right)) for loss, right in self.sums]
        strange = [loss for loss, _ in self.sums if not math.isfinite(loss)]
        if self.plan.recipe.precision == "mixed_float16":
            last = [loss for loss, _ in self.sums[-MOST_SKIPPED:]]
            never = self.step == self.plan.total_steps and not self.records
            hopeless = len(last) == MOST_SKIPPED or never
            strange = last if hopeless and last and not any(map(math.isfinite, last)) else []
        if strange:
            self._diverge(f"the loss is {strange[0]}")
        if not _all_finite([*self.whole.weights, *self.variables]):
            self._diverge("the weights are not finite")

    def _diverge(self, what: str) -> None:
        recipe, first = self.plan.recipe, float(self.first_loss)

        def sound(step: int) -> bool:
            # A checkpoint whose next loss is above that of the run's first step is worse than the beginning.
            after = self.losses_after.get(step)
            return after is None or float(after) <= first

        begin = self.run.note_divergence(self.step, sound)
        present = recipe.base_learning_rate()
        usual = dataclasses.replace(recipe, learning_rate=type(recipe).learning_rate).base_learning_rate()
        mended = float(f"{usual if usual < present else present / 10:.3g}")
        back = f"goes on from step {begin}" if begin else "begins anew"
        raise Diverged(
            f"{what} at step {self.step} of {self.plan.total_steps}: the training diverged, and nothing that is not "
            f"finite was kept; try a lower learning_rate: the same command with --set learning_rate={mended:g} {back}.",
            mended,
        )

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Have the weights' running averages in the network, where the recipe keeps them."""
        return self.averages.in_network() if self.averages else contextlib.nullcontext()

    def _finish(self) -> None:
        """Write `final.keras` last: with it the run counts as finished."""
        with self._averaged():
            self._write_results()
        self.run.drop_checkpoints()

    def _write_results(self) -> None:
        run, plan = self.run, self.plan
        run.write_metrics(self.records)
        if self.watch.best is None:
            run.save_model(self.model, BEST)
        diverged = run.config().get("diverged")
        card = ModelCard(
            architecture=plan.architecture,
            arguments=dict(self.model.built_as.arguments),
            class_names=plan.data.class_names,
            preprocessing=self.preprocessing,
            view=plan.view,
            trained=True,
            data=plan.data_facts(),
            # With the learning rates that it diverged at and went on from, if it did.
            recipe={**plan.recipe.to_dict(), **({"diverged": diverged} if diverged else {})},
            seed=plan.recipe.seed,
            weights={"file": BEST, "sha256": sha256(run.path / BEST)},
            versions=current_versions(),
            git_revision=current_git_revision(),
        )
        run.save_samples(plan.data)
        card.write(run.path)
        title = f"{plan.model} on {plan.data.name}"
        learning_curves(self.records, run.path / "plots" / "learning_curves.png", title)
        run.save_model(self.model, FINAL)


def _all_finite(variables: Sequence[Any]) -> bool:
    """Whether all values of some variables are finite; whole numbers always are."""
    values = [tf.convert_to_tensor(variable) for variable in variables]
    return all(bool(tf.reduce_all(tf.math.is_finite(value))) for value in values if value.dtype.is_floating)


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
