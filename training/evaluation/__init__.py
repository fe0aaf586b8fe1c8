"""Evaluation: protocols, metrics, and the figures of a classifier on a split."""

from keras_convnets.training.evaluation.evaluator import evaluate
from keras_convnets.training.evaluation.predictions import Predictions
from keras_convnets.training.evaluation.protocols import CENTER, PROTOCOLS, Protocol
from keras_convnets.training.evaluation.result import Evaluation

__all__ = ["CENTER", "PROTOCOLS", "Evaluation", "Predictions", "Protocol", "evaluate"]
