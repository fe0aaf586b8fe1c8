"""The trainer: a recipe, a network and a data set over all local devices, into a run directory."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from keras_convnets.card import ModelCard, center_view, current_git_revision, current_versions
from keras_convnets.errors import Interrupted, UserError
from keras_convnets.files import sha256
from keras_convnets.preprocessing import Preprocessing
from keras_convnets.registry import get_architecture, get_model
from keras_convnets.training.data import DataSet, load_dataset
from keras_convnets.training.evaluation import predict_split, top_k_accuracy
from keras_convnets.training.plots import learning_curves
from keras_convnets.training.progress import TrainingProgress
from keras_convnets.training.recipes import Recipe, get_recipe
from keras_convnets.training.run import BEST, FINAL, Run

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
    recipe: str | Recipe = "resnet_cifar",
    overrides: dict[str, Any] | None = None,
    data_dir: str | os.PathLike | None = None,
    console: Console | None = None,
) -> Run:
    """Train a network by a recipe; go on where an earlier call with the same arguments was stopped.

    Args:
        model: a registered name, such as "ResNet20".
        dataset: what `load_dataset` takes.
        run: the run directory.
        recipe: a recipe or its name.
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
    plan = make_plan(model, dataset, recipe, overrides, data_dir)
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


@dataclass(frozen=True)
class Plan:
    """A training that is settled but not begun.

    Attributes:
        architecture: the registered name.
        recipe: with everything settled that depends on the network.
        data: at the network's input size, the holdout split off.
    """

    architecture: str
    recipe: Recipe
    data: DataSet

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.recipe.total_steps(self.data.split("train").size)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, 3)."""
        return (*self.data.image_size, 3)

    def data_facts(self) -> dict[str, Any]:
        """Return what the run's configuration and the card say of the data."""
        sizes = {name: split.size for name, split in self.data.splits.items()}
        return {"name": self.data.name, "images": sizes, "fingerprint": self.data.fingerprint()}

    def config(self) -> dict[str, Any]:
        """Return the resolved configuration, what a resumed run must have in common with this one."""
        return {
            "model": self.architecture,
            "input_shape": list(self.input_shape),
            "data": self.data_facts(),
            "recipe": self.recipe.to_dict(),
        }


def make_plan(model: str, dataset, recipe, overrides, data_dir) -> Plan:
    """Settle names, fields, input size and splits; nothing is built or written. Arguments as of `fit`."""
    architecture = get_architecture(model)
    settled = get_recipe(recipe, overrides).for_network(architecture.depth)
    data = load_dataset(dataset, data_dir).with_holdout(settled.holdout)
    if settled.image_size is not None:
        size = (settled.image_size, settled.image_size)
    else:
        size = data.image_size or architecture.input_shape[:2]
    return Plan(architecture.name, settled, data.at_size(*size))


def local_strategy() -> tf.distribute.Strategy:
    """Return MirroredStrategy over all local GPUs, or all logical CPU devices where there is no GPU.

    The reduction is chosen here: TensorFlow's own choice names its collectives by a counter that every strategy starts
    anew, so that a second training in the same process fails on several devices.
    """
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    reduction = tf.distribute.NcclAllReduce() if gpus else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([device.name for device in devices], cross_device_ops=reduction)


def make_step(network: keras.Model, optimizer, recipe: Recipe, strategy: tf.distribute.Strategy) -> Callable:
    """Return the compiled training step: (images, labels) of all replicas -> (loss, number right), both summed.

    The loss is the mean cross-entropy over the global batch. Weight decay is L2 in the gradient, as the papers'
    solvers had it; Keras' own argument decays outside the momentum and is weaker.

    Args:
        network: gives logits [b, classes].
        optimizer: a Keras optimizer, which sums the gradients over the replicas.
        recipe: batch size, weight decay and its scope.
        strategy: what the variables were created under.
    """
    variables = network.trainable_variables
    replicas = strategy.num_replicas_in_sync
    # Each replica adds its share, because the gradients are summed.
    decay = recipe.weight_decay / replicas
    decays = [recipe.weight_decay_scope == "all" or variable.name == "kernel" for variable in variables]

    def replica_step(images, labels):
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))
            loss = tf.reduce_sum(losses) / recipe.batch_size
        gradients = tape.gradient(loss, variables)
        gradients = [
            gradient + decay * variable if with_decay else gradient
            for gradient, variable, with_decay in zip(gradients, variables, decays, strict=True)
        ]
        optimizer.apply(gradients, variables)
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, axis=-1) == labels, tf.float32))
        return loss, right

    @tf.function(jit_compile=False)
    def step(images, labels):
        loss, right = strategy.run(replica_step, (images, labels))
        return strategy.reduce("SUM", loss, axis=None), strategy.reduce("SUM", right, axis=None)

    return step


def training_batches(plan: Plan, preprocessing: Preprocessing | None, first_step: int = 0) -> tf.data.Dataset:
    """Return the endless stream of augmented batches; a function of the seed and the step alone.

    Returns:
        A dataset of (images float32 [batch_size, H, W, 3], labels int64 [batch_size]).
    """
    recipe, train = plan.recipe, plan.data.split("train")
    augment = recipe.augment(plan.data, preprocessing)
    batches = train.shuffled(recipe.batch_size, recipe.seed, first_step * recipe.batch_size)

    def augmented(step, batch):
        images, labels = batch
        return augment(images, tf.stack([tf.constant(recipe.seed, tf.int64), step])), labels

    numbered = tf.data.Dataset.zip(tf.data.Dataset.counter(first_step), batches)
    dataset = numbered.map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


class _Training:
    """One process's part of a training: built, put back to the newest checkpoint, and run to the end."""

    def __init__(self, plan: Plan, run: Run, console: Console | None):
        self.plan, self.run, self.console = plan, run, console
        recipe = plan.recipe
        keras.utils.set_random_seed(recipe.seed)
        self.preprocessing = recipe.preprocessing(plan.data.split("train"))
        self.arguments = {"classes": len(plan.data.class_names), "input_shape": list(plan.input_shape)}
        self.strategy = local_strategy()
        with self.strategy.scope():
            self.model = get_model(
                plan.architecture,
                classes=self.arguments["classes"],
                input_shape=plan.input_shape,
                preprocessing=self.preprocessing,
            )
            # Training works on the logits; both models share their layers.
            self.network = keras.Model(self.model.inputs, self.model.get_layer("predictions").output)
            self.optimizer = keras.optimizers.SGD(recipe.base_learning_rate(), momentum=recipe.momentum)
            self.optimizer.build(self.network.trainable_variables)
            state = run.load_checkpoint(self.model, self.optimizer)
        self.step = 0
        self.records: list[dict[str, Any]] = []
        self.best: float | None = None
        self.warming = bool(getattr(recipe, "warmup", False))
        self.running_error = 1.0
        # (loss, number right) of the steps since the last report; tensors, so that a GPU is not waited for.
        self.sums: list[tuple[Any, Any]] = []
        if state:
            self.step, self.records, self.best = state["step"], state["records"], state["best"]
            self.warming, self.running_error = state["warming"], state["running_error"]
            self.sums = [tuple(pair) for pair in state["sums"]]
            if console:
                console.print(f"going on with {run.path} at step {self.step} of {plan.total_steps}", highlight=False)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside weights and optimizer."""
        return {
            "records": self.records,
            "best": self.best,
            "warming": self.warming,
            "running_error": self.running_error,
            "sums": [[float(loss), float(right)] for loss, right in self.sums],
        }

    def checkpoint(self) -> None:
        """Write a checkpoint and the metrics so far."""
        self.run.save_checkpoint(self.step, self.model, self.optimizer, self.state())
        self.run.write_metrics(self.records)

    def to_the_end(self, stop: threading.Event) -> None:
        """Train what is left, then write the networks and the card."""
        plan, total = self.plan, self.plan.total_steps
        train_step = make_step(self.network, self.optimizer, plan.recipe, self.strategy)
        batches = iter(
            self.strategy.experimental_distribute_dataset(training_batches(plan, self.preprocessing, self.step))
        )
        events = tf.summary.create_file_writer(str(self.run.path / "events"))
        saved = time.monotonic()
        with TrainingProgress(total, plan.recipe.batch_size, self.step, self.console) as progress, events.as_default():
            while self.step < total:
                self._set_learning_rate()
                self.sums.append(train_step(*next(batches)))
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

    def _set_learning_rate(self) -> None:
        recipe = self.plan.recipe
        rate = (
            recipe.warmup_learning_rate() if self.warming else recipe.learning_rate_at(self.step, self.plan.total_steps)
        )
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
            split = self.plan.data.split("holdout")
            probabilities = predict_split(self.model, split, batch_size)
            record["val_top1"] = top_k_accuracy(probabilities, split.labels, 1)
            if self.best is None or record["val_top1"] > self.best:
                self.best = record["val_top1"]
                self.run.save_model(self.model, BEST)
        self.records.append(record)
        self.sums = []
        for name, value in record.items():
            if name not in ("step", "epoch"):
                tf.summary.scalar(name, value, step=self.step)
        progress.report(record)

    def _finish(self) -> None:
        """Write `final.keras` last: with it the run counts as finished."""
        run, plan = self.run, self.plan
        run.write_metrics(self.records)
        if "holdout" not in plan.data.splits:
            run.save_model(self.model, BEST)
        card = ModelCard(
            architecture=plan.architecture,
            arguments=self.arguments,
            class_names=plan.data.class_names,
            preprocessing=self.preprocessing or self.model.get_layer("preprocessing").preprocessing,
            view=center_view(*plan.data.image_size),
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
        run.drop_checkpoints()


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
