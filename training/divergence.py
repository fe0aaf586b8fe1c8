"""Divergence: losses and weights that are not finite are never saved, and a run resumes from a checkpoint before."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_convnets.errors import Diverged
from keras_convnets.training.plan import Plan
from keras_convnets.training.run import Run

# Loss scaling skips a step whose gradients overflow and lowers the scale; after this many skipped steps in a row the
# run will not recover.
MOST_SKIPPED = 20


class DivergenceCheck:
    """Watches the losses of a run, and ends it where losses or weights are not finite.

    Args:
        plan: of the run.
        directory: where the divergence is noted.
    """

    def __init__(self, plan: Plan, directory: Run):
        self._plan, self._directory = plan, directory
        # The loss of the first step, and of the step after each checkpoint, which measures the checkpoint. Kept as
        # tensors, to avoid synchronising with the GPU.
        self._first_loss: Any = None
        self._losses_after: dict[int, Any] = {}

    def observe(self, step: int, loss: Any) -> None:
        """Record the loss of a step, counted from 0."""
        if step == 0:
            self._first_loss = loss
        if step in self._losses_after:
            self._losses_after[step] = loss

    def expect_loss_after(self, step: int) -> None:
        """Record the loss of the next step as that of the checkpoint written after `step` steps."""
        self._losses_after[step] = None

    @property
    def first_loss(self) -> float:
        """The loss of the run's first step, which a checkpoint keeps."""
        return float(self._first_loss)

    def restore(self, step: int, first_loss: float) -> None:
        """Resume from the checkpoint written after `step` steps."""
        self._first_loss, self._losses_after = first_loss, {step: None}

    def check(self, step: int, losses: Sequence[float], is_recorded: bool, variables: Sequence[Any]) -> None:
        """Raise `Diverged` for losses or variables that are not finite, before anything is saved.

        Args:
            step: number of completed steps.
            losses: since the last report.
            is_recorded: whether the run has a report.
            variables: what a checkpoint would keep.

        Raises:
            Diverged: the message says what to do.
        """
        not_finite = [loss for loss in losses if not math.isfinite(loss)]
        if self._plan.recipe.precision == "mixed_float16":
            last = losses[-MOST_SKIPPED:]
            never_finite = step == self._plan.total_steps and not is_recorded
            hopeless = len(last) == MOST_SKIPPED or never_finite
            not_finite = list(last) if hopeless and last and not any(map(math.isfinite, last)) else []
        if not_finite:
            self._end(step, f"the loss is {not_finite[0]}")
        if not _all_finite(variables):
            self._end(step, "the weights are not finite")

    def _end(self, step: int, what: str) -> None:
        recipe, first = self._plan.recipe, self.first_loss

        def sound(checkpoint: int) -> bool:
            # A checkpoint whose next loss is above that of the run's first step is worse than the beginning.
            after = self._losses_after.get(checkpoint)
            return after is None or float(after) <= first

        begin = self._directory.note_divergence(step, sound)
        present = recipe.base_learning_rate()
        usual = dataclasses.replace(recipe, learning_rate=type(recipe).learning_rate).base_learning_rate()
        lower = float(f"{usual if usual < present else present / 10:.3g}")
        back = f"resumes from step {begin}" if begin else "starts again from the beginning"
        raise Diverged(
            f"{what} at step {step} of {self._plan.total_steps}: the training diverged, and nothing that is not finite "
            f"was kept; try a lower learning_rate: the same command with --set learning_rate={lower:g} {back}.",
            lower,
        )


def _all_finite(variables: Sequence[Any]) -> bool:
    """Whether all values of some variables are finite; whole numbers always are."""
    values = [tf.convert_to_tensor(variable) for variable in variables]
    return all(bool(tf.reduce_all(tf.math.is_finite(value))) for value in values if value.dtype.is_floating)
