"""The figures of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_convnets.training.evaluation.metrics import confusion_matrix, mean_loss, top_k_accuracy, wilson_interval
from keras_convnets.training.evaluation.predictions import Predictions


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
        predictions: what was answered for each image; None of figures alone.
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
    predictions: Predictions | None = None
    answers: str = "all"

    @classmethod
    def of_predictions(cls, predictions: Predictions, of: int | None = None) -> Evaluation:
        """Return the figures of what was answered for each image.

        Args:
            predictions: of a split.
            of: number of images in all splits of the data set, where that is known.
        """
        protocol, _, answers = predictions.protocol.partition("/")
        probabilities, labels, classes = predictions.probabilities, predictions.labels, len(predictions.class_names)
        return cls(
            data=predictions.data,
            split=predictions.split,
            protocol=protocol,
            n=len(labels),
            top1=top_k_accuracy(probabilities, labels, 1),
            top5=top_k_accuracy(probabilities, labels, 5) if classes > 5 else None,
            class_names=predictions.class_names,
            confusion=confusion_matrix(labels, probabilities.argmax(axis=1), classes),
            of=of,
            predictions=predictions,
            answers=answers or "all",
        )

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
    def top1_wrong(self) -> int:
        """Number of images whose likeliest class is wrong."""
        return self.n - round(self.top1 * self.n)

    @property
    def top5_wrong(self) -> int | None:
        """Number of images whose class is not among the five likeliest; None for five classes or fewer."""
        return None if self.top5 is None else self.n - round(self.top5 * self.n)

    @property
    def top1_error_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the top-1 error."""
        return wilson_interval(self.top1_wrong, self.n)

    @property
    def top5_error_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the top-5 error; None for five classes or fewer."""
        return None if self.top5_wrong is None else wilson_interval(self.top5_wrong, self.n)

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy in nats; None without predictions."""
        return mean_loss(self.predictions.probabilities, self.predictions.labels) if self.predictions else None

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
            "top1_error_interval": list(self.top1_error_interval),
            "top5": self.top5,
            "top5_error_interval": None if self.top5_error_interval is None else list(self.top5_error_interval),
            "loss": self.loss,
            "left_out": [image._asdict() for image in self.predictions.left_out] if self.predictions else [],
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
        }

    def figures(self) -> dict[str, Any]:
        """Return what a model card keeps."""
        return {"n": self.n, "top1": self.top1, "top1_standard_error": self.standard_error, "top5": self.top5}
