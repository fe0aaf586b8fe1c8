"""Evaluation: test protocols, metrics, predictions, paired comparisons, ensembles, calibration and HTML reports.

Example:
    >>> a, b = (training.evaluate(model, data).predictions for model in (small, large))
    >>> compare(a, b).sentence()
    >>> ensemble([a, b]).best
"""

from keras_convnets.training.evaluation.calibration import Calibration, calibrate
from keras_convnets.training.evaluation.class_map import ClassMap
from keras_convnets.training.evaluation.comparison import Comparison, compare
from keras_convnets.training.evaluation.ensembles import Ensemble, ensemble
from keras_convnets.training.evaluation.evaluator import evaluate
from keras_convnets.training.evaluation.predictions import Predictions
from keras_convnets.training.evaluation.protocols import AVERAGES, CENTER, PROTOCOLS, Protocol, get_protocol
from keras_convnets.training.evaluation.report_page import report
from keras_convnets.training.evaluation.result import Evaluation

__all__ = [
    "AVERAGES",
    "CENTER",
    "PROTOCOLS",
    "Calibration",
    "ClassMap",
    "Comparison",
    "Ensemble",
    "Evaluation",
    "Predictions",
    "Protocol",
    "calibrate",
    "compare",
    "ensemble",
    "evaluate",
    "get_protocol",
    "report",
]
