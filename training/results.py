"""What a training writes at its end: card, samples, learning curves and the final network."""

from __future__ import annotations

from typing import Any

import keras

from keras_convnets.card import ModelCard, current_git_revision, current_versions
from keras_convnets.files import sha256
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.training.plan import Plan
from keras_convnets.training.plots import learning_curves
from keras_convnets.training.run import BEST, FINAL, Run


def write_results(
    directory: Run, plan: Plan, model: keras.Model, preprocessing: Preprocessing, records: list[dict[str, Any]]
) -> None:
    """Write all that a finished run has, `final.keras` last: with it the run counts as finished.

    Args:
        directory: the run's, with its `best.keras`.
        plan: what was trained.
        model: the final network.
        preprocessing: what its first layer does.
        records: of `metrics.jsonl`.
    """
    directory.write_metrics(records)
    diverged = directory.config().get("diverged")
    card = ModelCard(
        architecture=plan.architecture,
        arguments=dict(model.built_as.arguments),
        class_names=plan.data.class_names,
        preprocessing=preprocessing,
        view=plan.view,
        trained=True,
        data=plan.data_facts(),
        # With the learning rates that it diverged at and was resumed from, if it did.
        recipe={**plan.recipe.to_dict(), **({"diverged": diverged} if diverged else {})},
        seed=plan.recipe.seed,
        weights={"file": BEST, "sha256": sha256(directory.path / BEST)},
        versions=current_versions(),
        git_revision=current_git_revision(),
    )
    directory.save_samples(plan.data)
    card.write(directory.path)
    title = f"{plan.model} on {plan.data.name}"
    learning_curves(records, directory.path / "plots" / "learning_curves.png", title)
    directory.save_model(model, FINAL)
