"""What the holdout has shown so far: the best figure, and for how long there has been no better one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class HoldoutWatch:
    """The memory of early stopping and of plateaus; part of each checkpoint.

    Attributes:
        best: the highest figure of the run, or None before the first.
        reference: the highest since patience counts: since the whole network trains at its full learning rate.
        waited: reports since the reference was reached, or since the learning rate fell.
        since: the step of that report.
        divisions: how often the learning rate has fallen.
    """

    best: float | None = None
    reference: float | None = None
    waited: int = 0
    since: int = 0
    divisions: int = 0

    def see(self, figure: float, step: int, *, counts: bool = True) -> bool:
        """Take a report's figure in and return whether it is the best yet.

        Args:
            figure: more is better; one that is not finite is never the best.
            step: of the report.
            counts: whether a figure that is no better tries the patience.
        """
        figure = figure if math.isfinite(figure) else -math.inf
        is_best = figure > (-math.inf if self.best is None else self.best)
        if is_best:
            self.best = figure
        if not counts:
            return is_best
        if figure > (-math.inf if self.reference is None else self.reference):
            self.reference, self.waited, self.since = figure, 0, step
        else:
            self.waited += 1
        return is_best

    def divide(self, divisions: int, step: int) -> None:
        """Note that the learning rate has fallen so often in all; patience begins anew with each fall."""
        if divisions > self.divisions:
            self.divisions, self.waited, self.since = divisions, 0, step
