"""The evaluation report: a self-contained HTML page with metrics, comparisons, calibration and misclassified images."""

from keras_convnets.training.evaluation.report_page.page import report

__all__ = ["report"]
