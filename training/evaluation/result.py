"""The figures of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """How well a classifier does on one split.

    Attributes:
        data: the data set's name.
        split: the split's name.
        protocol: the name of the protocol by which each image was shown.
        n: number of images.
        top1: fraction of images whose likeliest class is right.
        top5: fraction whose class is among the five likeliest; None for five classes or fewer.
        class_names: the classes.
        confusion: int [classes, classes]: row the truth, column the answer.
        of: number of images in all splits of the data set.
        answers: "all" where every class of the network was an answer, "subset" where only the data's classes were.
    """

    data: str
    split: str
    protocol: str
    n: int
    top1: float
    top5: float | None
    class_names: tuple[str, ...]
    confusion: np.ndarray
    of: int | None = None
    answers: str = "all"

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Accuracy (recall) and number of images of each class; None where a class has no image."""
        counts = self.confusion.sum(axis=1)
        right = np.diag(self.confusion)
        return [
            {"class": name, "n": int(n), "top1": float(hits / n) if n else None}
            for name, n, hits in zip(self.class_names, counts, right, strict=True)
        ]

    @property
    def standard_error(self) -> float:
        """Standard error of top-1, of n independent images."""
        return float(np.sqrt(self.top1 * (1 - self.top1) / self.n))

    @property
    def key(self) -> str:
        """The key under which a model card keeps these figures."""
        among = "" if self.answers == "all" else f"/{self.answers}"
        return f"{self.data}/{self.split}/{self.protocol}{among}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "data": self.data,
            "split": self.split,
            "protocol": self.protocol,
            "answers": self.answers,
            "n": self.n,
            "of": self.of,
            "top1": self.top1,
            "top1_standard_error": self.standard_error,
            "top5": self.top5,
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }

    def figures(self) -> dict[str, Any]:
        """Return what a model card keeps."""
        return {"n": self.n, "top1": self.top1, "top1_standard_error": self.standard_error, "top5": self.top5}
