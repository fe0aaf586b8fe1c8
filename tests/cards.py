"""A model card with a non-default value in every field."""

from __future__ import annotations

import numpy as np

from keras_convnets import ModelCard, Preprocessing
from keras_convnets.card import current_versions
from keras_convnets.images.view import View


def filled_card():
    """A card with a non-default value in every field."""
    return ModelCard(
        architecture="ResNet20",
        arguments={"classes": 2, "input_shape": [8, 8, 3]},
        class_names=("猫", "dog"),
        preprocessing=Preprocessing(
            (1.5, 2.5, 3.5), (2.0, 3.0, 4.0), "BGR", np.random.default_rng(0).uniform(size=(8, 8, 3))
        ),
        view=View(8, (8, 8)),
        trained=True,
        data={"name": "animals", "train": 10},
        recipe={"epochs": 3, "learning_rate": 0.1},
        metrics={"animals/test/center": {"top1": 0.1, "n": 4}},
        seed=7,
        weights={"file": "best.keras", "sha256": "0" * 64},
        versions=current_versions(),
        git_revision="f" * 40,
        class_ids=("n1", "n2"),
        export={"onnx": 1e-7},
        members=(ModelCard("VGG11", {}, ("猫", "dog"), Preprocessing((1.0, 2.0, 3.0)), View(9, (8, 8))),),
    )
