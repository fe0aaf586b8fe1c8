"""The report: one HTML page with the figures of an evaluation, which needs no network."""

from keras_convnets.training.evaluation.report_page.page import report

__all__ = ["report"]
