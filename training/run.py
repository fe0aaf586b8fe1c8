"""The run directory: what a training writes, and how it resumes after any end."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_convnets.card import FILE_NAME as CARD
from keras_convnets.card import ModelCard
from keras_convnets.errors import UserError
from keras_convnets.files import (
    TEMPORARY_PREFIX,
    atomic_file,
    atomic_folder,
    exclusive_lock,
    path_text,
    read_json,
    safe_names,
    wrap_write_errors,
    write_json,
    write_text,
)
from keras_convnets.networks.functional import load_keras
from keras_convnets.training.data import DataSet
from keras_convnets.training.data.integrity import image_type
from keras_convnets.training.data.splits import held_out
from keras_convnets.training.evaluation import Evaluation
from keras_convnets.training.plots import confusion_matrix

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
BEST, FINAL = "best.keras", "final.keras"
KEEP_CHECKPOINTS = 2
SAMPLES = 100
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "WebP": ".webp"}
# Recipe fields that may be changed for a run that diverged: neither data nor weights depend on them.
ADJUSTABLE = ("learning_rate", "clip_norm")


class Run:
    """A run directory: `config.json`, `model.json`, `metrics.jsonl`, `checkpoints/`, `best.keras`, `final.keras`.

    Args:
        path: the directory itself.

    Example:
        >>> Run("runs/digits").card().class_names[:3]
        ('0', '1', '2')
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path_text(path, "run"))
        self.checkpoints = self.path / "checkpoints"

    @classmethod
    def existing(cls, path: str | os.PathLike) -> Run:
        """Return a run that was trained here.

        Raises:
            UserError: if the path is not a run directory.
        """
        run = cls(path)
        if not (run.path / CONFIG).is_file():
            state = "is not a run directory" if run.path.exists() else "does not exist"
            raise UserError(f"{path} {state} (no {CONFIG}); give the --run of a keras-convnets train.")
        return run

    @property
    def finished(self) -> bool:
        """Whether the training went to its end: the final network is written last."""
        return (self.path / FINAL).is_file() and (self.path / CARD).is_file()

    @property
    def begun(self) -> bool:
        """Whether there is something to resume from or to keep: a checkpoint, or the final network."""
        return (self.path / FINAL).is_file() or bool(self.checkpoint_steps())

    @contextmanager
    def claimed(self, config: dict[str, Any], source: dict[str, Any]) -> Iterator[None]:
        """Hold the directory for one training; a new one is set up, an old one must have the same configuration.

        A run that ended before its first checkpoint is restarted, with any configuration. A run that diverged may
        resume with another learning rate or `clip_norm`.

        Args:
            config: the resolved configuration; a resumed run must have an equal one.
            source: where the data came from, kept for later commands; it may differ, as data may be moved.

        Raises:
            UserError: if the directory holds something else, another run's configuration, or is in use.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --run names a directory.")
        known = self.path / CONFIG
        if not known.exists() and self.path.is_dir() and any(not _ours(entry) for entry in self.path.iterdir()):
            raise UserError(
                f"{self.path} is not a run directory and not empty; give a new or empty directory as --run."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.path, "trained in"):
            is_new = not known.exists()
            if self.begun:
                self._check_resumable(config)
            else:
                self._clear()
                write_json(known, {**config, "source": source})
            try:
                yield
            except UserError:
                # Remove the configuration again if the mistake is found before anything else is written.
                if is_new and all(_ours(entry) or entry == known for entry in self.path.iterdir()):
                    known.unlink()
                raise

    def _check_resumable(self, config: dict[str, Any]) -> None:
        """Check that a configuration is the run's; after a divergence, accept and store changed `ADJUSTABLE` fields."""
        old = self.config()
        recipe, diverged = old["recipe"], old.get("diverged", [])
        updated = config
        if diverged and all(diverged[-1][field] == recipe[field] for field in ADJUSTABLE):
            updated = {**config, "recipe": {**config["recipe"], **{field: recipe[field] for field in ADJUSTABLE}}}
        _check_same(self.path, old, updated)
        if updated["recipe"] != config["recipe"]:
            write_json(self.path / CONFIG, {**old, **config})

    def _clear(self) -> None:
        """Remove the files of an earlier run that wrote no checkpoint."""
        for name in (METRICS, BEST, CARD):
            (self.path / name).unlink(missing_ok=True)
        for name in ("events", "plots", "samples", "checkpoints"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def note_divergence(self, step: int, sound: Callable[[int], bool]) -> int:
        """Record a divergence in the configuration, and delete the checkpoints that led to it.

        Args:
            step: at which it was seen.
            sound: whether the checkpoint of a step can be resumed from.

        Returns:
            The step to resume from; 0: the beginning.
        """
        for kept in self.checkpoint_steps():
            if not sound(kept):
                shutil.rmtree(self.checkpoints / f"{kept:08d}", ignore_errors=True)
        config = self.config()
        begin = max(self.checkpoint_steps(), default=0)
        noted = {"step": step, "back_to": begin, **{field: config["recipe"][field] for field in ADJUSTABLE}}
        write_json(self.path / CONFIG, {**config, "diverged": [*config.get("diverged", []), noted]})
        return begin

    def config(self) -> dict[str, Any]:
        """Return the resolved configuration."""
        return read_json(self.path / CONFIG, "run's configuration")

    def card(self) -> ModelCard:
        """Return the model card.

        Raises:
            UserError: if the training has not finished.
        """
        if not self.finished:
            raise UserError(f"run {self.path} has not finished; run the same keras-convnets train again to resume it.")
        return ModelCard.read(self.path)

    def model(self) -> keras.Model:
        """Return the best network, compiled for nothing; `evaluate` takes view and classes from its card."""
        card = self.card()
        model = load_keras(self.path / BEST)
        model.evaluation_view, model.evaluation_classes = card.view, card
        return model

    def add_evaluation(self, result: Evaluation) -> None:
        """Add an evaluation to the card, and write it whole as `evaluation.json` and `plots/confusion_matrix.png`."""
        title = f"{self.path.name} on {result.key}, n={result.n}"
        with wrap_write_errors(
            self.path, f"the evaluation (top-1 {result.top1:.2%}) is not saved: fix that and evaluate again"
        ):
            self.card().with_metrics(result.key, result.figures()).write(self.path)
            write_json(self.path / EVALUATION, result.to_dict())
            confusion_matrix(result.confusion, result.class_names, self.path / "plots" / "confusion_matrix.png", title)

    def write_metrics(self, records: list[dict[str, Any]]) -> None:
        """Write all records, a JSON object a line."""
        write_text(self.path / METRICS, "".join(json.dumps(record) + "\n" for record in records))

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of `metrics.jsonl`."""
        path = self.path / METRICS
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def save_model(self, model: keras.Model, name: str) -> Path:
        """Save a whole network atomically."""
        with atomic_file(self.path / name) as temporary:
            model.save(temporary)
        return self.path / name

    def save_samples(self, data: DataSet) -> None:
        """Keep a few images that were not trained on as `samples/<class>/<position>`, for checks and for a look.

        Encoded as the data hold them, not cropped: the view is applied to them as to any image.
        """
        unseen = ("test", "val", "validation", "holdout")
        name = next((name for name in unseen if name in data.splits and data.splits[name].labelled), "train")
        split = data.split(name)
        chosen, _ = held_out(split.labels, min(SAMPLES, split.size - 1)) if split.size > 1 else ([0], None)
        shutil.rmtree(self.path / "samples", ignore_errors=True)
        originals = split.originals.subset(np.asarray(chosen)).encoded_in_order().as_numpy_iterator()
        class_folders = safe_names(data.class_names)
        with atomic_folder(self.path / "samples") as folder:
            for position, (encoded, *_) in zip(chosen, originals, strict=True):
                of_class = folder / class_folders[split.labels[position]]
                of_class.mkdir(exist_ok=True)
                kind = image_type(encoded)
                assert kind is not None, "images that do not decode were left out"
                (of_class / f"{position:05d}{ENDINGS[kind]}").write_bytes(encoded)

    def save_checkpoint(self, step: int, model: keras.Model, variables: Sequence[Any], state: dict[str, Any]) -> None:
        """Write weights, other variables and state into a new checkpoint folder; delete all but the newest two."""
        if (self.checkpoints / f"{step:08d}").exists():
            return
        with atomic_folder(self.checkpoints / f"{step:08d}") as folder:
            model.save_weights(folder / "model.weights.h5")
            values = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
            np.savez(folder / "variables.npz", **values)
            (folder / "state.json").write_text(json.dumps({"step": step, **state}))
        for old in self.checkpoint_steps()[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(self.checkpoints / f"{old:08d}", ignore_errors=True)

    def load_checkpoint(self, model: keras.Model, variables: Sequence[Any]) -> dict[str, Any] | None:
        """Restore model and variables from the newest checkpoint; return its state, or None if there is none."""
        self._sweep()
        steps = self.checkpoint_steps()
        if not steps:
            return None
        folder = self.checkpoints / f"{steps[-1]:08d}"
        model.load_weights(folder / "model.weights.h5")
        with np.load(folder / "variables.npz") as values:
            for index, variable in enumerate(variables):
                variable.assign(values[str(index)])
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of a finished run."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def checkpoint_steps(self) -> list[int]:
        """Return the steps that there are checkpoints of, ascending."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.checkpoints.iterdir() if re.fullmatch(r"\d{8,}", path.name))

    def _sweep(self) -> None:
        """Remove the temporary files and folders of killed processes; the lock is held, so no process is writing."""
        for folder in (self.path, self.checkpoints):
            for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _ours(entry: Path) -> bool:
    return entry.name == ".lock" or entry.name.startswith(TEMPORARY_PREFIX)


def _check_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to resume with another model, data set or recipe; the error message names the difference."""
    for key in new:
        before, now = old.get(key), new[key]
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
            key, before, now = f"{key}.{name}", before.get(name), now.get(name)
        raise UserError(
            f"run {path} was started with {key} = {before!r}, not {now!r}; "
            "give the same command to resume it, or another --run."
        )
