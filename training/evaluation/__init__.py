"""Evaluation: protocols, metrics, and the figures of a classifier on a split."""

from keras_convnets.training.evaluation.evaluator import evaluate
from keras_convnets.training.evaluation.protocols import AVERAGES, CENTER, PROTOCOLS, Protocol, get_protocol
from keras_convnets.training.evaluation.result import Evaluation

__all__ = ["AVERAGES", "CENTER", "PROTOCOLS", "Evaluation", "Protocol", "evaluate", "get_protocol"]
