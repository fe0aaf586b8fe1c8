"""The fraction of a training's time spent waiting for input, for each recipe.

    python benchmarks/input_wait.py FOLDER [--weights FILE]

Each recipe trains its paper's network for some steps on the folder of photographs, the CIFAR recipes on random images
of 32x32. Printed and appended to results/input_wait.csv: that fraction, the training's images/s, and the images/s of
input alone and of the step alone, as `train --dry_run` measures them. Batches are small where a step of the paper's
size would take a CPU a minute; the fraction hardly depends on it. With weights, those of a GoogLeNet, `finetune` is
measured too.
"""

from __future__ import annotations

import argparse
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from reporting import append_row

from keras_convnets import training
from keras_convnets.training.data import ArraySplit, DataSet
from keras_convnets.training.dry_run import measure as measure_alone
from keras_convnets.training.plan import make_plan

# Network, batch and steps of each recipe.
PHOTOGRAPHS = {
    "alexnet": ("AlexNet", 32, 12),
    "vgg": ("VGG11", 8, 6),
    "googlenet": ("GoogLeNet", 32, 8),
    "resnet_imagenet": ("ResNet50", 16, 6),
}
SMALL = {"resnet_cifar": ("ResNet20", 128, 60), "fast_cifar": ("ResNet20", 256, 30)}


def small_images() -> DataSet:
    rng = np.random.default_rng(0)
    split = ArraySplit(rng.integers(0, 256, (10_000, 32, 32, 3), np.uint8), rng.integers(0, 10, 10_000))
    return DataSet("made", tuple("0123456789"), True, {"train": split}, (32, 32))


def measure(recipe: str, network: str, data: str | DataSet, batch: int, steps: int, weights: str | None) -> None:
    overrides = {"batch_size": batch, "iterations": steps, "holdout": 0}
    plan = make_plan(network, data, recipe, overrides, None, weights)
    with tempfile.TemporaryDirectory() as folder:
        directory = training.Run(f"{folder}/run")
        with directory.claimed(plan.config(), {}):
            trained = training.Trainer(plan, directory)
            trained.run()
    fraction, speed = trained.progress.input_wait, trained.progress.images_per_second
    alone = measure_alone(plan)
    print(
        f"{recipe:<16} {network:<10} input wait {fraction:6.1%}  {speed:7.1f} images/s; input alone "
        f"{alone.input_rate:,.0f}, step alone {alone.compute_rate:,.1f}: limited by {alone.limit}",
        flush=True,
    )
    figures = {"input_wait": fraction, "images_s": speed, "input_s": alone.input_rate, "step_s": alone.compute_rate}
    append_row("input_wait", {"recipe": recipe, "network": network, "batch": batch, "steps": steps, **figures})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="photographs in a folder a class")
    parser.add_argument("--weights", help="of a GoogLeNet, for the recipe finetune")
    args = parser.parse_args()
    for recipe, (network, batch, steps) in PHOTOGRAPHS.items():
        measure(recipe, network, args.folder, batch, steps, None)
    if args.weights:
        measure("finetune", "GoogLeNet", args.folder, 32, 12, args.weights)
    for recipe, (network, batch, steps) in SMALL.items():
        measure(recipe, network, small_images(), batch, steps, None)


if __name__ == "__main__":
    main()
