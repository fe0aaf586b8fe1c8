"""Evaluation: protocols, metrics, and the figures of a classifier on a split."""

from keras_convnets.training.evaluation.class_map import ClassMap
from keras_convnets.training.evaluation.evaluator import evaluate
from keras_convnets.training.evaluation.protocols import CENTER, PROTOCOLS, Protocol
from keras_convnets.training.evaluation.result import Evaluation

__all__ = ["CENTER", "PROTOCOLS", "ClassMap", "Evaluation", "Protocol", "evaluate"]
