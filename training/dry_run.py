"""What a training would take, measured in a few steps whose results are discarded: nothing is written."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_convnets.images.preprocessing import IMAGENET, Preprocessing
from keras_convnets.training.input_pipeline import training_batches
from keras_convnets.training.plan import Plan
from keras_convnets.training.run import Run
from keras_convnets.training.trainer import Trainer
from keras_convnets.weights.loading import choose_preprocessing

# For each measurement; one step where a step takes longer.
SECONDS = 4.0
# Input or compute is the limit where it is slower than the other by more than this; less is within the variation.
CLEARLY = 1.1


@dataclass(frozen=True)
class Measurement:
    """Measured rates, and what follows from them.

    Attributes:
        input_rate: images/s that reading, decoding and augmentation give without a network; None: not measured.
        compute_rate: images/s of the training step on one batch of random images in memory; None: not measured.
        memory: the process's largest resident size so far, in bytes; on GPUs the devices' peak instead. None where the
            system does not report it, as Windows.
    """

    input_rate: float | None
    compute_rate: float | None
    memory: int | None

    @property
    def rate(self) -> float:
        """Images/s to expect: those of the slower of the two."""
        return min(rate for rate in (self.input_rate, self.compute_rate) if rate is not None)

    @property
    def limit(self) -> str:
        """The bottleneck: "input", "compute", or "neither alone" where they are about as fast."""
        if self.input_rate is None or self.compute_rate is None:
            return "unknown"
        if self.input_rate * CLEARLY < self.compute_rate:
            return "input"
        return "compute" if self.compute_rate * CLEARLY < self.input_rate else "neither alone"


def measure(plan: Plan, *, with_input: bool = True, with_compute: bool = True, seconds: float = SECONDS) -> Measurement:
    """Measure a training's input alone, on the real data, and its step alone, on random images.

    On a CPU the two share the cores, so training is slower than either; the figures show which one is the bottleneck.

    Args:
        plan: from `make_plan`, with `sampled`.
        with_input: whether to measure the input.
        with_compute: whether to measure the step.
        seconds: for each.
    """
    input_rate = _rate_of_input(plan, _preprocessing(plan), seconds) if with_input else None
    compute_rate = None
    if with_compute:
        with tempfile.TemporaryDirectory() as nowhere:
            compute_rate = _rate_of_steps(plan, Trainer(plan, Run(nowhere)), seconds)
    return Measurement(input_rate, compute_rate, _memory())


def _preprocessing(plan: Plan) -> Preprocessing | None:
    """Return what the network's first layer would do, without the network: padding has the colour of its mean."""
    if plan.weights is None:
        return plan.recipe.preprocessing(plan.sample())
    return choose_preprocessing(None, plan.weights, IMAGENET)


def _rate_of_input(plan: Plan, preprocessing: Any, seconds: float) -> float:
    batches = iter(training_batches(plan, preprocessing))
    return plan.recipe.batch_size * _per_second(lambda: next(batches), seconds)


def _rate_of_steps(plan: Plan, trainer: Trainer, seconds: float) -> float:
    size = (plan.recipe.batch_size, *plan.input_shape)
    images = tf.random.stateless_uniform(size, [0, 1], 0, 255)
    labels = tf.random.stateless_uniform(size[:1], [0, 2], 0, len(plan.data.class_names), tf.int64)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    stream = tf.data.Dataset.from_tensors((images, labels)).repeat().with_options(options)
    batch = next(iter(trainer.strategy.experimental_distribute_dataset(stream)))
    return plan.recipe.batch_size * _per_second(lambda: float(trainer.whole_step(*batch)[0]), seconds)


def _per_second(call: Callable[[], Any], seconds: float) -> float:
    """Return calls a second, without the first one, which compiles and fills buffers."""
    call()
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < seconds:
        call()
        calls += 1
    return calls / (time.perf_counter() - began)


def _memory() -> int | None:
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return sum(tf.config.experimental.get_memory_info(gpu.name.removeprefix("/device:"))["peak"] for gpu in gpus)
    try:
        import resource
    except ImportError:  # no POSIX system
        return None
    # In kilobytes on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(plan: Plan, measured: Measurement) -> list[tuple[str, str]]:
    """Return what a training is and would take, as rows of (what, text)."""
    recipe, data = plan.recipe, plan.data
    devices = [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]
    sizes = ", ".join(f"{name} {count:,}" for name, count in plan.images.items())
    sample_sizes = {name: split.size for name, split in data.splits.items()}
    sampled = ", ".join(f"{name} {count:,}" for name, count in sample_sizes.items())
    fields = {key: value for key, value in recipe.to_dict().items() if key != "name"}
    seconds = plan.total_steps * recipe.batch_size / measured.rate
    rates = {"input alone": measured.input_rate, "compute alone": measured.compute_rate}
    peak = measured.memory
    return [
        ("model", f"{plan.model}, {'x'.join(map(str, plan.input_shape))}, {len(data.class_names)} classes"),
        ("weights", str(plan.weights.path) if plan.weights else "random, as the paper draws them"),
        ("recipe", recipe.name),
        *((f"  {key}", str(value)) for key, value in fields.items()),
        ("data", f"{data.name}: {sizes}"),
        *((("sample", f"only these many images were looked at: {sampled}"),) if sample_sizes != plan.images else ()),
        *((("left out", f"{len(plan.broken)} unreadable images"),) if plan.broken else ()),
        ("devices", ", ".join(devices)),
        ("steps", f"{plan.total_steps:,} of {recipe.batch_size} images"),
        *((name, f"{rate:,.0f} images/s") for name, rate in rates.items() if rate is not None),
        ("limit", measured.limit),
        ("time", f"about {_duration(seconds)} at {measured.rate:,.0f} images/s"),
        ("memory", "not reported by this system" if peak is None else f"{peak / 1e9:.1f} GB at the peak"),
    ]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return (
        f"{minutes} min"
        if minutes < 120
        else f"{minutes / 60:.1f} h"
        if minutes < 4320
        else f"{minutes / 1440:.1f} days"
    )
