"""Training images/s of the trainer as a ratio to a bare compiled train step on data that lie in memory.

    python benchmarks/training_throughput.py

ResNet-20, batch 128, 32x32 images, all local devices. The bare step is forward, backward and SGD with momentum in one
tf.function on one batch that never changes: no input, no augmentation, no weight decay, no strategy. The trainer does
all of that, shuffling, padding, cropping and flipping included. Keras' own `fit` on the same data stands beside them.
The three are timed in turn, several rounds, and the medians of the ratios are printed and appended to
results/training_throughput.csv. Aim: trainer / bare at least 0.95.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from reporting import append_row

from keras_convnets import ResNet20, training
from keras_convnets.training import trainer
from keras_convnets.training.data import ArraySplit, DataSet

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
    model = ResNet20()
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


def our_trainer(data: DataSet):
    speeds = []

    class Recording(trainer.TrainingProgress):
        def advance(self, step, loss=None):
            super().advance(step, loss)
            if step == self._total:
                speeds.append(self.images_per_second(step))

    trainer.TrainingProgress = Recording

    def measure(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            training.fit(
                "ResNet20", data, run=f"{folder}/run", overrides={"iterations": steps + 1, "batch_size": BATCH}
            )
        return speeds[-1]

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    data = made_data()
    ways = {"bare": bare_step(data), "fit": keras_fit(data), "trainer": our_trainer(data)}
    rounds = [{name: measure(args.steps) for name, measure in ways.items()} for _ in range(args.rounds)]
    for name in ways:
        print(f"{name:<8} {np.median([r[name] for r in rounds]):8.1f} images/s (median of {args.rounds})")
    row = {"rounds": args.rounds, "steps": args.steps}
    for name in ("trainer", "fit"):
        ratios = [r[name] / r["bare"] for r in rounds]
        row |= {f"{name}_to_bare": np.median(ratios), f"{name}_lowest": min(ratios), f"{name}_highest": max(ratios)}
        print(f"{name} / bare step: {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    append_row("training_throughput", row)


if __name__ == "__main__":
    main()
