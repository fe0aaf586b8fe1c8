"""Training images/s of the trainer as a ratio to a bare compiled train step, to Keras' `fit` and to PyTorch.

    python benchmarks/training_throughput.py

ResNet-20, batch 128, 32x32 images, float32, all local devices. The bare step is forward, backward and SGD with momentum
in one tf.function on one batch that never changes: no input, no augmentation, no weight decay, no strategy. The trainer
does all of that, shuffling, padding, cropping and flipping included. Keras' own `fit` on the same data stands beside
them, with its own batch normalisation, and PyTorch's training of the same network where PyTorch is installed: channels
last, in a separate process, on one batch that never changes. They are timed in turn, several rounds, and the medians
of the ratios are printed and appended to results/training_throughput.csv. Aims: trainer / bare at least 0.95, and
trainer / PyTorch at least 1.0.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from reporting import append_row

from keras_convnets import ResNet20, training
from keras_convnets.training.data import ArraySplit, DataSet
from keras_convnets.training.plan import make_plan

BATCH, IMAGES = 128, 10_000


def made_data() -> DataSet:
    rng = np.random.default_rng(0)
    split = ArraySplit(rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), rng.integers(0, 10, IMAGES))
    return DataSet("made", tuple("0123456789"), True, {"train": split}, (32, 32))


def bare_step(data: DataSet):
    model = ResNet20()
    network = keras.Model(model.inputs, model.get_layer("predictions").output)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(network.trainable_variables)
    train = data.splits["train"]
    images, labels = tf.constant(train.images[:BATCH], tf.float32), tf.constant(train.labels[:BATCH])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
        return loss

    step()

    def measure(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            loss = step()
        float(loss)
        return steps * BATCH / (time.perf_counter() - began)

    return measure


def keras_fit(data: DataSet):
    model = keras.models.clone_model(ResNet20(), clone_function=with_keras_own_normalization)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    train = data.splits["train"]
    images, labels = train.images, train.labels
    model.fit(images[:BATCH], labels[:BATCH], batch_size=BATCH, verbose=0)

    def measure(steps: int) -> float:
        count = steps * BATCH
        began = time.perf_counter()
        model.fit(images[:count], labels[:count], batch_size=BATCH, verbose=0)
        return count / (time.perf_counter() - began)

    return measure


def with_keras_own_normalization(layer: keras.Layer) -> keras.Layer:
    kind = keras.layers.BatchNormalization if isinstance(layer, keras.layers.BatchNormalization) else type(layer)
    return kind.from_config(layer.get_config())


def pytorch():
    """Return the measure of a process that trains with PyTorch: steps go to it, images/s come back."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--pytorch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def measure(steps: int) -> float:
        print(steps, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    return measure


def train_with_pytorch() -> None:
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        """Two 3x3 convolutions and shortcut A."""

        def __init__(self, maps: int, filters: int):
            super().__init__()
            self.stride, self.more = filters // maps, filters - maps
            self.first = nn.Conv2d(maps, filters, 3, self.stride, 1, bias=False)
            self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList([nn.BatchNorm2d(filters) for _ in range(2)])

        def forward(self, x):
            y = functional.relu(self.norms[0](self.first(x)))
            y = self.norms[1](self.second(y))
            if self.more:
                x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            return functional.relu(x + y)

    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(maps, filters) for maps, filters in zip(widths, widths[1:], strict=False)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    step()
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(int(line) * BATCH / (time.perf_counter() - began), flush=True)


def our_trainer(data: DataSet):
    def measure(steps: int) -> float:
        overrides = {"iterations": steps + 1, "batch_size": BATCH}
        with tempfile.TemporaryDirectory() as folder:
            plan = make_plan("ResNet20", data, None, overrides, None)
            directory = training.Run(f"{folder}/run")
            with directory.claimed(plan.config(), {}):
                trained = training.Trainer(plan, directory)
                trained.run()
        return trained.progress.images_per_second

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pytorch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pytorch:
        train_with_pytorch()
        return
    data = made_data()
    ways = {"bare": bare_step(data), "fit": keras_fit(data), "trainer": our_trainer(data)}
    others = ["bare", "fit"]
    if importlib.util.find_spec("torch"):
        ways["pytorch"] = pytorch()
        others.append("pytorch")
    rounds = [{name: measure(args.steps) for name, measure in ways.items()} for _ in range(args.rounds)]
    for name in ways:
        print(f"{name:<8} {np.median([r[name] for r in rounds]):8.1f} images/s (median of {args.rounds})")
    for name in others:
        ratios = [r["trainer"] / r[name] for r in rounds]
        print(f"trainer / {name}: {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        row = {"trainer_to": name, "rounds": args.rounds, "steps": args.steps}
        append_row(
            "training_throughput",
            {**row, "median": float(np.median(ratios)), "lowest": min(ratios), "highest": max(ratios)},
        )


if __name__ == "__main__":
    main()
