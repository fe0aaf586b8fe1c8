"""The result of an evaluation: metrics of a classifier on a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_convnets.training.evaluation.metrics import confusion_matrix, mean_loss, top_k_accuracy, wilson_interval
from keras_convnets.training.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a classifier on a split.

    Attributes:
        data: name of the data set.
        split: name of the split.
        protocol: name of the test protocol.
        n: number of images.
        top1: top-1 accuracy, 0 to 1.
        top5: top-5 accuracy, 0 to 1; None for five classes or fewer.
        class_names: class names.
        confusion: confusion matrix, int [classes, classes]; rows are true classes, columns predicted classes.
        of: number of images in all splits of the data set; None if unknown.
        predictions: predictions for each image; None if only the metrics are available.
        answers: "all" if the prediction was among all classes of the model, "subset" if among the data's classes only.
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
        """Compute the metrics of predictions.

        Args:
            predictions: predictions for the images of a split.
            of: number of images in all splits of the data set; None if unknown.
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
        """Top-1 accuracy (recall) and number of images of each class; accuracy None for a class without images."""
        counts = self.confusion.sum(axis=1)
        right = np.diag(self.confusion)
        return [
            {"class": name, "n": int(n), "top1": float(hits / n) if n else None}
            for name, n, hits in zip(self.class_names, counts, right, strict=True)
        ]

    @property
    def top1_wrong(self) -> int:
        """Number of top-1 errors."""
        return self.n - round(self.top1 * self.n)

    @property
    def top5_wrong(self) -> int | None:
        """Number of top-5 errors; None for five classes or fewer."""
        return None if self.top5 is None else self.n - round(self.top5 * self.n)

    @property
    def top1_error_interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the top-1 error."""
        return wilson_interval(self.top1_wrong, self.n)

    @property
    def top5_error_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % confidence interval of the top-5 error; None for five classes or fewer."""
        return None if self.top5_wrong is None else wilson_interval(self.top5_wrong, self.n)

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy in nats; None without predictions."""
        return mean_loss(self.predictions.probabilities, self.predictions.labels) if self.predictions else None

    @property
    def standard_error(self) -> float:
        """Standard error of the top-1 accuracy, for n independent images."""
        return float(np.sqrt(self.top1 * (1 - self.top1) / self.n))

    @property
    def key(self) -> str:
        """Key of these metrics in a model card, such as "imagenette/validation/center"."""
        among = "" if self.answers == "all" else f"/{self.answers}"
        return f"{self.data}/{self.split}/{self.protocol}{among}"

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as a JSON-serializable dict."""
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
        """Return the metrics that are stored in a model card."""
        return {"n": self.n, "top1": self.top1, "top1_standard_error": self.standard_error, "top5": self.top5}
