"""What changes in the course of a run: the learning rate, its warm-ups and drops, the best holdout figure, the end.

Each object owns its rate, what it observes and its state; a recipe only names them (`Recipe.make_schedule`). Steps are
counted from 0; fractions are those of the run's length, so that a shortened run keeps its shape.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

# The paper's warm-up observes the training error as a running mean over about this many steps.
WARMUP_WINDOW = 20
# Where the drops do not wait for a plateau any longer, a tenth of the run is left for each rate after the first.
FRACTION_OF_A_RATE = 0.1


class HoldoutFigures(TypedDict):
    """What a network is measured by during the training.

    Attributes:
        val_top1: the fraction of the held-out images whose likeliest class is right.
        val_loss: their mean loss; None where it is not finite.
    """

    val_top1: float
    val_loss: float | None


class Curve(abc.ABC):
    """The learning rate as a function of the step; sub-classes that observe the holdout have a state."""

    @abc.abstractmethod
    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""

    # Most curves observe nothing and have no state.
    def observe_holdout(self, step: int, figure: float) -> None:  # noqa: B027
        """Record a holdout metric, for which higher is better, after a number of steps."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain data for JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over what `state` returned."""


@dataclass(frozen=True)
class Constant(Curve):
    """The same rate throughout."""

    base: float

    def rate(self, step: int) -> float:
        """Return the base rate."""
        return self.base


@dataclass(frozen=True)
class StepDivision(Curve):
    """The rate is multiplied by a factor at given fractions of the run.

    Attributes:
        base: the rate at the start.
        total_steps: length of the run.
        fractions: at which the rate falls.
        factor: what it is multiplied by.
    """

    base: float
    total_steps: int
    fractions: tuple[float, ...]
    factor: float

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        passed = sum(step >= round(fraction * self.total_steps) for fraction in self.fractions)
        return self.base * self.factor**passed


@dataclass(frozen=True)
class EvenDivision(Curve):
    """The run is divided into equal parts, and the rate is multiplied by a factor after each.

    Attributes:
        base: the rate of the first part.
        total_steps: length of the run.
        parts: how many.
        factor: what the rate is multiplied by.
    """

    base: float
    total_steps: int
    parts: int
    factor: float

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        return self.base * self.factor ** (step * self.parts // self.total_steps)


@dataclass(frozen=True)
class Cosine(Curve):
    """The rate rises linearly over the warm-up and falls to nothing by half a cosine (Loshchilov and Hutter 2017).

    Attributes:
        base: the highest rate.
        total_steps: length of the run.
        warmup: fraction of the run in which the rate rises.
    """

    base: float
    total_steps: int
    warmup: float = 0.0

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        progress = max(0.0, step / self.total_steps - self.warmup) / (1 - self.warmup)
        return self.base * linear_rise(step, self.total_steps, self.warmup) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class OneCycle(Curve):
    """The rate rises linearly to its peak and falls linearly to nothing (Smith 2018, arXiv:1803.09820).

    Attributes:
        base: the highest rate.
        total_steps: length of the run.
        peak: fraction of the run at which the rate is highest.
    """

    base: float
    total_steps: int
    peak: float

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        rise = (step + 1) / (self.peak * self.total_steps)
        return self.base * min(1.0, rise, (1 - step / self.total_steps) / (1 - self.peak))


@dataclass(frozen=True)
class LinearWarmup(Curve):
    """Another curve, multiplied by a linear rise over the first part of the run.

    Attributes:
        curve: the other one.
        total_steps: length of the run.
        fraction: of the run in which the rate rises.
    """

    curve: Curve
    total_steps: int
    fraction: float

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        return linear_rise(step, self.total_steps, self.fraction) * self.curve.rate(step)

    def observe_holdout(self, step: int, figure: float) -> None:
        """Hand the figure to the curve."""
        self.curve.observe_holdout(step, figure)

    def state(self) -> dict[str, Any]:
        """Return that of the curve."""
        return self.curve.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the curve."""
        self.curve.restore(state)


def linear_rise(step: int, total_steps: int, fraction: float) -> float:
    """Return what the rate is multiplied by in a linear warm-up over a fraction of the run: 1 after it."""
    return min(1.0, (step + 1) / (fraction * total_steps)) if fraction else 1.0


@dataclass
class Patience:
    """For how long the holdout has not improved.

    Attributes:
        reference: the highest figure observed, or None before the first.
        waited: reports since the reference was reached, or since patience was renewed.
        since: the step of that.
    """

    reference: float | None = None
    waited: int = 0
    since: int = 0

    def observe(self, step: int, figure: float) -> None:
        """Take in a figure, more being better."""
        if figure > (-math.inf if self.reference is None else self.reference):
            self.reference, self.waited, self.since = figure, 0, step
        else:
            self.waited += 1

    def renew(self, step: int) -> None:
        """Start waiting again."""
        self.waited, self.since = 0, step

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the attributes from plain data."""
        self.reference, self.waited, self.since = state["reference"], state["waited"], state["since"]


class Plateau(Curve):
    """The rate falls when the holdout stops improving, and towards the end without waiting for that any longer.

    It falls `drops` times in every run, however short: a tenth of the run, or less where there are many drops, is left
    for each of the lower rates.

    Args:
        base: the rate at the start.
        total_steps: length of the run.
        patience: fraction of the run without a better holdout after which the rate falls.
        drops: how often it falls.
        factor: what it is multiplied by.
    """

    def __init__(self, base: float, total_steps: int, patience: float, drops: int, factor: float):
        self._base, self._patience_steps, self._factor = base, patience * total_steps, factor
        left = min(FRACTION_OF_A_RATE, 1 / (drops + 1))
        # The latest step of each drop; a step at least is left for each of the lower rates.
        self._latest = [
            min(round((1 - rates * left) * total_steps), total_steps - rates) for rates in range(drops, 0, -1)
        ]
        self.divisions = 0
        self._patience = Patience()

    def _overdue(self, step: int) -> int:
        """Return how often the rate has fallen by a step, whatever the holdout says."""
        return sum(step >= latest for latest in self._latest)

    def rate(self, step: int) -> float:
        """Return the rate of a step."""
        return self._base * self._factor ** max(self.divisions, self._overdue(step))

    def observe_holdout(self, step: int, figure: float) -> None:
        """Let the rate fall where the figure has not improved for the patience, which starts again with each fall."""
        overdue = self._overdue(step - 1)
        if overdue > self.divisions:
            self.divisions = overdue
            self._patience.renew(self._latest[overdue - 1])
        self._patience.observe(step, figure)
        has_waited = self._patience.waited and step - self._patience.since >= self._patience_steps
        if has_waited and self.divisions < len(self._latest):
            self.divisions += 1
            self._patience.renew(step)

    def state(self) -> dict[str, Any]:
        """Return the falls and the patience."""
        return {"divisions": self.divisions, **dataclasses.asdict(self._patience)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the falls and the patience."""
        self.divisions = state["divisions"]
        self._patience.restore(state)


@dataclass
class TrainingErrorWarmup:
    """A low rate until the running training error falls below a bound (He et al. 2015, section 4.2).

    "we use 0.01 to warm up the training until the training error is below 80% (about 400 iterations), and then go back
    to 0.1".

    Attributes:
        rate: the highest rate meanwhile.
        bound: the training error, 0 to 1, below which it ends.
        active: whether it still lasts.
        running_error: the running mean of the training error, from 1 on.
    """

    rate: float
    bound: float
    active: bool = True
    running_error: float = 1.0

    def observe(self, error: float) -> None:
        """Take in the training error of a step, 0 to 1."""
        self.running_error += (error - self.running_error) / WARMUP_WINDOW
        if self.running_error < self.bound:
            self.active = False

    def state(self) -> dict[str, Any]:
        """Return whether it lasts, and the running error."""
        return {"active": self.active, "running_error": self.running_error}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.active, self.running_error = state["active"], state["running_error"]


@dataclass
class EarlyStopping:
    """The run ends when the holdout metric has not improved for a number of reports.

    Attributes:
        reports: how many.
    """

    reports: int
    _patience: Patience = field(default_factory=Patience)

    @property
    def reached(self) -> bool:
        """Whether the run is to end."""
        return self._patience.waited >= self.reports

    def observe_holdout(self, step: int, figure: float) -> None:
        """Take in a figure on the holdout, more being better."""
        self._patience.observe(step, figure)

    def state(self) -> dict[str, Any]:
        """Return the patience."""
        return dataclasses.asdict(self._patience)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self._patience.restore(state)


class Schedule:
    """The trainer's interface to learning rate and early stopping; created by `Recipe.make_schedule`.

    Args:
        curve: the learning rate.
        best_is: what the best network is chosen by: "val_top1", the highest, or "val_loss", the lowest.
        warmup: a low rate at the start until the training error falls, or None.
        early_stopping: when the run ends before its length, or None.
        head_only_steps: for how many steps the classifier alone is trained.
        patient_steps: for how many steps reports on the holdout do not count as waiting: while the classifier is
            trained alone or the learning rate rises linearly. Nor do they while `warmup` is active.

    Example:
        >>> get_recipe("resnet_cifar").make_schedule(64_000).rate(32_000)
        0.01
    """

    def __init__(
        self,
        curve: Curve,
        *,
        best_is: str = "val_top1",
        warmup: TrainingErrorWarmup | None = None,
        early_stopping: EarlyStopping | None = None,
        head_only_steps: float = 0.0,
        patient_steps: float = 0.0,
    ):
        self.curve, self.warmup, self.early_stopping = curve, warmup, early_stopping
        self.best: float | None = None
        self._best_is, self._head_only_steps, self._patient_steps = best_is, head_only_steps, patient_steps

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        rate = self.curve.rate(step)
        return min(rate, self.warmup.rate) if self.warmup is not None and self.warmup.active else rate

    def head_only(self, step: int) -> bool:
        """Whether only the classifier is trained at a step."""
        return step < self._head_only_steps

    @property
    def warming(self) -> bool:
        """Whether the training error is to be observed: a warm-up lasts until it falls."""
        return self.warmup is not None and self.warmup.active

    @property
    def ends_early(self) -> bool:
        """Whether the run is to end now."""
        return self.early_stopping is not None and self.early_stopping.reached

    def observe_training_error(self, error: float) -> None:
        """Take in the training error of a step, 0 to 1, while `warming`."""
        if self.warmup is not None:
            self.warmup.observe(error)

    def observe_holdout(self, step: int, figures: HoldoutFigures) -> bool:
        """Record the metrics of a report after a number of steps; return whether they are the best yet.

        Args:
            step: how many steps are done.
            figures: of the network; one whose loss is not finite is never the best.
        """
        loss = figures["val_loss"]
        figure = -math.inf if loss is None else -loss if self._best_is == "val_loss" else figures["val_top1"]
        is_best = figure > (-math.inf if self.best is None else self.best)
        if is_best:
            self.best = figure
        if step - 1 >= self._patient_steps and not self.warming:
            self.curve.observe_holdout(step, figure)
            if self.early_stopping is not None:
                self.early_stopping.observe_holdout(step, figure)
        return is_best

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain data for JSON."""
        parts = {"curve": self.curve, "warmup": self.warmup, "early_stopping": self.early_stopping}
        return {"best": self.best, **{name: part.state() for name, part in parts.items() if part is not None}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned for the same recipe and length."""
        self.best = state["best"]
        self.curve.restore(state["curve"])
        if self.warmup is not None:
            self.warmup.restore(state["warmup"])
        if self.early_stopping is not None:
            self.early_stopping.restore(state["early_stopping"])


def schedule_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `Schedule.restore` takes of a checkpoint's state, also of one of an earlier version.

    Those had "watch", "warming" and "running_error" in place of "schedule".
    """
    if "schedule" in checkpoint:
        return checkpoint["schedule"]
    watch = checkpoint["watch"]
    warmup = {"active": checkpoint["warming"], "running_error": checkpoint["running_error"]}
    return {"best": watch["best"], "curve": watch, "warmup": warmup, "early_stopping": watch}
