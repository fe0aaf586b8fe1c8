"""The reports of a training: records of `metrics.jsonl` and events for TensorBoard."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_convnets.training.plan import Plan

# Maximum number of reports: small data sets have very short epochs.
MOST_REPORTS = 200


class Reports:
    """The records of a run, and the losses of the steps since the last one.

    Args:
        plan: of the run.

    Attributes:
        records: of `metrics.jsonl`, a dictionary each.
    """

    def __init__(self, plan: Plan):
        self._plan, self._images = plan, plan.data.split("train").size
        self.records: list[dict[str, Any]] = []
        # (loss, number right); tensors, so that a GPU is not waited for.
        self._sums: list[tuple[Any, Any]] = []

    def observe(self, sums: tuple[Any, Any]) -> None:
        """Take in (loss, number right) of a step."""
        self._sums.append(sums)

    def losses(self) -> list[float]:
        """Return the losses of the steps since the last report, when they are computed."""
        self._sums = [(float(loss), float(right)) for loss, right in self._sums]
        return [loss for loss, _ in self._sums]

    def is_due(self, step: int) -> bool:
        """Whether to report after this step: at the ends of epochs, not too often, and at the end of the run."""
        batch_size, total = self._plan.recipe.batch_size, self._plan.total_steps
        epoch_ended = step * batch_size // self._images > (step - 1) * batch_size // self._images
        if step == total:
            return True
        last = self.records[-1]["step"] if self.records else 0
        return epoch_ended and step - last >= total / MOST_REPORTS

    def begin(self, step: int, learning_rate: float) -> dict[str, Any] | None:
        """Return the record of the steps since the last report; None where loss scaling skipped all of them."""
        batch_size = self._plan.recipe.batch_size
        losses = [loss for loss in self.losses() if math.isfinite(loss)]
        if not losses:  # they are in the next report
            return None
        return {
            "step": step,
            "epoch": round(step * batch_size / self._images, 2),
            "loss": float(np.mean(losses)),
            "top1": float(np.mean([float(right) for _, right in self._sums])) / batch_size,
            "learning_rate": learning_rate,
        }

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record that is complete, and write it to the TensorBoard events of the present writer."""
        self.records.append(record)
        self._sums = []
        for name, value in record.items():
            if name not in ("step", "epoch") and value is not None:
                tf.summary.scalar(name, value, step=record["step"])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain data for JSON."""
        return {"records": self.records, "sums": [[float(loss), float(right)] for loss, right in self._sums]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.records, self._sums = state["records"], [tuple(pair) for pair in state["sums"]]
