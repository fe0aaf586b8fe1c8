"""The networks beside keras.applications' twins: time to build, time to run, memory to train; and build time by depth.

    python benchmarks/networks.py

Everything is a ratio of ours to theirs, timed in turn in the same run; medians, with lowest and highest, are printed
and appended to results/networks.csv. Building is mostly drawing the first weights: ours are the papers' Gaussians,
theirs uniform numbers, which are drawn in half the time; "zeros" builds both without drawing. Aims: build at most 0.7,
forward at most 1.0, memory at most 1.0, and a build time that grows about linearly with depth. Theirs runs on images
preprocessed beforehand and has convolution biases; ours normalises inside.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from reporting import append_row

import keras_convnets

TWINS = ("VGG16", "ResNet50", "ResNet101", "ResNet152")
DEPTHS = (20, 56, 110, 302, 602, 1202)


def builders(name: str):
    return getattr(keras_convnets, name), getattr(keras.applications, name)


def build_seconds(build) -> float:
    keras.backend.clear_session()
    began = time.perf_counter()
    build(weights=None)
    return time.perf_counter() - began


@contextlib.contextmanager
def drawing_nothing():
    """Let every initialiser give zeros."""
    kinds = (keras.initializers.VarianceScaling, keras.initializers.RandomNormal)
    before = [kind.__call__ for kind in kinds]
    for kind in kinds:
        kind.__call__ = lambda self, shape, dtype=None, **_: keras.ops.zeros(shape, dtype)
    try:
        yield
    finally:
        for kind, call in zip(kinds, before, strict=True):
            kind.__call__ = call


def forward_seconds(name: str, batch: int, rounds: int, repeats: int) -> list[float]:
    """Return ratios of the time of compiled inference, ours to theirs."""
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (batch, 224, 224, 3)), tf.float32)
    functions = []
    for build in builders(name):
        model = build(weights=None)
        function = tf.function(lambda x, model=model: model(x, training=False))
        function(images)
        functions.append(function)

    def seconds(function) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            function(images)
        return time.perf_counter() - began

    return [seconds(functions[0]) / seconds(functions[1]) for _ in range(rounds)]


def training_memory(whose: str) -> None:
    """Take two training steps of ResNet-50 in this process and print its peak resident memory in MiB."""
    build = builders("ResNet50")[0 if whose == "ours" else 1]
    model = build(weights=None)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
    images = np.zeros((16, 224, 224, 3), np.float32)
    for _ in range(2):
        model.train_on_batch(images, np.zeros(16, np.int64))
    print(peak_resident_mib())


def peak_resident_mib() -> float:
    """Return this process's peak; getrusage would count what the parent held when it started this one."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def memory_of(whose: str) -> float:
    command = [sys.executable, __file__, "--memory", whose]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def report(what: str, ratios: list[float]) -> None:
    print(
        f"{what:<28} {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)", flush=True
    )
    row = {"what": what, "rounds": len(ratios), "median": float(np.median(ratios))}
    append_row("networks", {**row, "lowest": float(min(ratios)), "highest": float(max(ratios))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        training_memory(args.memory)
        return
    for name in TWINS:
        ours, theirs = builders(name)
        build_seconds(ours), build_seconds(theirs)
        report(f"build {name}", [build_seconds(ours) / build_seconds(theirs) for _ in range(args.rounds)])
    with drawing_nothing():
        for name in TWINS:
            ours, theirs = builders(name)
            ratios = [build_seconds(ours) / build_seconds(theirs) for _ in range(args.rounds)]
            report(f"build {name}, zeros", ratios)
    for name, batch in (("ResNet50", 1), ("ResNet50", 8), ("VGG16", 1), ("VGG16", 8)):
        report(
            f"forward {name} batch {batch}", forward_seconds(name, batch, args.rounds, repeats=4 if batch == 1 else 1)
        )
    report("memory ResNet50 training", [memory_of("ours") / memory_of("theirs") for _ in range(min(3, args.rounds))])
    per_layer = {
        depth: build_seconds(lambda weights, d=depth: keras_convnets.CIFARResNet(d)) / depth for depth in DEPTHS
    }
    for depth in DEPTHS:
        report(f"build s/layer, {depth} to 56", [per_layer[depth] / per_layer[56]])


if __name__ == "__main__":
    main()
