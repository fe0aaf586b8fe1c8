"""CIFAR-10 runs: keep their metrics, ship their weights in the package, write the page of results.

    keras-convnets train --model ResNet20 --dataset cifar10 --recipe resnet_cifar --run runs/resnet20
    python benchmarks/cifar10.py keep runs/resnet20 [--data_dir DIR]
    python benchmarks/cifar10.py ship runs/resnet20 [--holdout_run runs/resnet20_45k]

`keep` evaluates a finished run's final network on the test images, and on the images that its training held out, and
writes results/cifar10/NETWORK-RECIPE-sSEED-nIMAGES.json: command, resolved recipe, learning curve, errors with n.
`ship` writes the network into keras_convnets/weights/trained/ with kernels in float16, measures that very file, and
adds its record to records.json. The final network is shipped, never the best on the test images.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import keras
import numpy as np
from reporting import RESULTS, machine

import keras_convnets
from keras_convnets import training
from keras_convnets.files import atomic_file, sha256, write_json
from keras_convnets.networks.functional import load_keras
from keras_convnets.networks.registry import ARCHITECTURES
from keras_convnets.training.evaluation.metrics import wilson_interval
from keras_convnets.weights.pretrained import trained_folder

KEPT = RESULTS / "cifar10"
# What `train` writes of each report; the rest is the same in every line.
CURVE = ("step", "epoch", "loss", "top1", "val_loss", "val_top1", "learning_rate")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("keep", "ship"))
    parser.add_argument("run", help="a finished run directory")
    parser.add_argument("--data_dir", help="where CIFAR-10 is prepared; by default where the run was trained from")
    parser.add_argument(
        "--holdout_run", help="a run by the same recipe with images held out, whose error is stated too"
    )
    args = parser.parse_args()
    run = training.Run.existing(args.run)
    if not run.finished:
        parser.error(f"{args.run} has not finished; run its training to the end.")
    if args.command == "keep":
        keep(run, args.data_dir)
    else:
        ship(run, args.data_dir, args.holdout_run)


def keep(run: training.Run, data_dir: str | None) -> dict[str, Any]:
    """Evaluate a run's final network and write what is known of the run; returns that."""
    config, card = run.config(), run.card()
    model, recipe = load_keras(run.path / "final.keras"), card.recipe
    data = training.load_dataset("cifar10", data_dir=data_dir or config["source"]["data_dir"])
    images = config["data"]["images"]["train"]
    kept = {
        "network": card.architecture,
        "command": command_of(card.architecture, recipe),
        "recipe": recipe,
        "seed": card.seed,
        "images": images,
        "hardware": machine(),
        "versions": card.versions,
        "test": figures(model, data, "test"),
        "train_top1": run.metrics()[-1]["top1"],
        "curve": [{key: record[key] for key in CURVE if key in record} for record in run.metrics()],
    }
    if recipe["holdout"]:
        kept["holdout"] = figures(model, data.with_holdout(recipe["holdout"]), "holdout")
    KEPT.mkdir(parents=True, exist_ok=True)
    write_json(KEPT / f"{card.architecture}-{recipe['name']}-s{card.seed}-n{images}.json", kept)
    print(f"{card.architecture}: test {kept['test']}, holdout {kept.get('holdout')}")
    return kept


def figures(model: keras.Model, data: training.DataSet, split: str) -> dict[str, Any]:
    """Return n, top-1 accuracy and its 95 % interval on a split."""
    result = training.evaluate(model, data, split=split)
    right = round(result.top1 * result.n)
    return {"n": result.n, "top1": result.top1, "interval": wilson_interval(right, result.n)}


def command_of(architecture: str, recipe: dict[str, Any]) -> str:
    """Return the command that trains so: the recipe by name and the settings that are not its defaults."""
    default = training.get_recipe(recipe["name"]).to_dict()
    settings = {key: value for key, value in recipe.items() if default.get(key) != value}
    if settings.get("iterations") is None:
        settings.pop("iterations", None)
    words = ["keras-convnets", "train", "--model", architecture, "--dataset", "cifar10", "--recipe", recipe["name"]]
    for key, value in settings.items():
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        words += ["--set", f"{key}={value}"]
    return shlex.join([*words, "--run", f"runs/{architecture.lower()}"])


def ship(run: training.Run, data_dir: str | None, holdout_run: str | None) -> None:
    """Write a run's final network and its record into the package."""
    kept = keep(run, data_dir)
    card, model = run.card(), load_keras(run.path / "final.keras")
    name = "cifar10"
    path = trained_folder() / f"{card.architecture}-{name}.weights.h5"
    with atomic_file(path) as temporary:
        model.save_weights(temporary)
        halve(temporary)
    shipped = getattr(keras_convnets, card.architecture)(weights=path, preprocessing=card.preprocessing)
    data = training.load_dataset("cifar10", data_dir=data_dir or run.config()["source"]["data_dir"])
    measured = figures(shipped, data, "test")
    print(f"float32 {kept['test']['top1']:.4f}, float16 {measured['top1']:.4f} on the test images")
    accuracies = [accuracy("CIFAR-10 test, the first 1,000 of 10,000 images", measured, "of this very file")]
    twin = kept if holdout_run is None else keep(training.Run.existing(holdout_run), data_dir)
    if twin["recipe"]["name"] != kept["recipe"]["name"]:
        raise SystemExit(f"{holdout_run} was trained by {twin['recipe']['name']}, not by {kept['recipe']['name']}.")
    if "holdout" in twin:
        source = f"of a network trained by the same recipe on the other {twin['images']:,} images"
        accuracies.append(accuracy("CIFAR-10, 5,000 training images held out", twin["holdout"], source))
    record = {
        "architecture": card.architecture,
        "name": name,
        "file": path.name,
        "locations": [],
        "size": path.stat().st_size,
        "sha256": sha256(path),
        "format": "weights.h5",
        "preprocessing": card.preprocessing.to_dict(),
        "input_shape": [32, 32, 3],
        "resize": 32,
        "protocol": "cifar",
        "data": f"CIFAR-10, {kept['images']:,} training images",
        "own_classes": list(card.class_names),
        "accuracies": accuracies,
        "license": "Apache-2.0",
        "obtained": f"trained by this package, recipe {kept['recipe']['name']}, seed {kept['seed']}, {machine()}",
        "training": {key: kept[key] for key in ("command", "recipe", "seed", "hardware", "versions")},
    }
    file = trained_folder() / "records.json"
    others = [other for other in json.loads(file.read_text()) if other["file"] != path.name]
    order = list(ARCHITECTURES)
    write_json(file, sorted([*others, record], key=lambda item: order.index(item["architecture"])))


def accuracy(data: str, measured: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a record's `Accuracy` as plain data."""
    low, high = (round(100 * bound, 2) for bound in measured["interval"])
    return {
        "data": data,
        "n": measured["n"],
        "top1": round(100 * measured["top1"], 2),
        "top5": None,
        "protocol": "single view of the 32x32 image",
        "source": f"measured by this package, {source}",
        "interval": [low, high],
    }


def halve(path: Path) -> None:
    """Write the kernels of a .weights.h5 file in float16; biases, scales and statistics stay float32."""
    # Groups of the latest HDF5 format take a fifth of the bytes: 130 kB less in ResNet-20's 740 kB.
    with h5py.File(path, "r") as old, h5py.File(path.with_name("half.h5"), "w", libver="latest") as new:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                values = item[()]
                values = values.astype(np.float16) if values.ndim > 1 and values.dtype == np.float32 else values
                new.create_dataset(name, data=values).attrs.update(item.attrs)
            else:
                new.require_group(name).attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(copy)
    os.replace(path.with_name("half.h5"), path)


if __name__ == "__main__":
    main()
