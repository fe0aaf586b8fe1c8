"""Committees: ensembles of several networks with the same classes, exported as one version."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_convnets.card import ModelCard, current_git_revision, current_versions
from keras_convnets.classes import names_and_ids
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.prediction import Classifier, keras_classifier

if TYPE_CHECKING:
    import keras

# Architecture in a committee's card, and default name in a repository.
ARCHITECTURE, NAME = "Committee", "committee"


@dataclass(frozen=True)
class Member:
    """A member of a committee: a network with its model card.

    Attributes:
        model: the network.
        card: its model card.
        name: name of the model, or of the run or file it was loaded from.
        place: path of the run or file; None for a model in memory.
    """

    model: keras.Model
    card: ModelCard
    name: str
    place: Path | None = None

    @property
    def source(self) -> str:
        """Path or name of the member, for messages."""
        return self.name if self.place is None else str(self.place)


def committee_card(members: Sequence[Member]) -> ModelCard:
    """Return the model card of a committee, with the shared classes and the cards of the members.

    Its view is that of the first member. If the members have different views, each one is in the member's card.

    Raises:
        UserError: if there are fewer than two members, or if their classes or the order of the classes differ.
    """
    if len(members) < 2:
        raise UserError(f"a committee got {len(members)} network; give at least two, or export the network alone.")
    first = members[0].card
    for member in members[1:]:
        _check_classes(members[0], member)
    known = next((member.card for member in members if member.card.class_ids), first)
    cards = tuple(_with_sha256(member) for member in members)
    return ModelCard(
        architecture=ARCHITECTURE,
        arguments={},
        class_names=known.class_names,
        # The preprocessing is part of each member.
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0)),
        view=first.view,
        trained=all(card.trained for card in cards),
        data=first.data if all(card.data == first.data for card in cards) else {},
        versions=current_versions(),
        git_revision=current_git_revision(),
        class_ids=known.class_ids,
        members=cards,
    )


def committee_classifier(members: Sequence[Member], card: ModelCard) -> Classifier:
    """Return a classifier that predicts with each Keras member in its own view and averages with NumPy.

    Args:
        members: the members.
        card: card of the committee.
    """
    classifiers = [keras_classifier(member.model, member.card) for member in members]

    def predict_images(images: np.ndarray) -> np.ndarray:
        return _mean([classifier(images) for classifier in classifiers])

    def predict_encoded(encoded: Sequence[bytes]) -> np.ndarray:
        return _mean([classifier.predict(encoded) for classifier in classifiers])

    return Classifier(card, predict_images if card.has_one_view else None, predict_encoded)


def committee_network(networks: Sequence[keras.Model], size: tuple[int, int]) -> keras.Model:
    """Return an inference network, `images` -> {"probabilities"}, of members that share a view.

    Args:
        networks: inference networks, whose outputs are dicts with "probabilities" [batch, classes].
        size: (height, width) of the images.
    """
    import keras

    images = keras.Input((*size, 3), name="images")
    # Each member becomes a layer; layer names must be unique.
    members = [
        keras.Model(network.inputs[0], network.output["probabilities"], name=f"member_{number}")
        for number, network in enumerate(networks, 1)
    ]
    mean = keras.layers.Average(name="average")([member(images) for member in members])
    return keras.Model(images, {"probabilities": mean}, name=NAME)


def _mean(answers: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(answers, axis=0, dtype=np.float64), np.float32)


def _check_classes(first: Member, other: Member) -> None:
    """Check that a member has the same classes in the same order, so that the probabilities can be averaged."""
    ours, theirs = first.card, other.card
    ids = names_and_ids(ours)[1]
    if ours.class_names == theirs.class_names or (ids and ids == names_and_ids(theirs)[1]):
        return
    if sorted(ours.class_names) == sorted(theirs.class_names):
        place = next(at for at, name in enumerate(ours.class_names) if name != theirs.class_names[at])
        what = (
            f"has the classes of {first.source} in a different order (class {place} is {theirs.class_names[place]} and "
            f"{ours.class_names[place]})"
        )
    else:
        what = f"has {_shortened(theirs.class_names)} and {first.source} has {_shortened(ours.class_names)}"
    raise UserError(f"{other.source} {what}; a committee needs networks with the same classes in the same order.")


def _shortened(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most]) + (" ..." if len(names) > most else "")
    return f"{len(names)} classes ({shown})"


def _with_sha256(member: Member) -> ModelCard:
    """Return a member's card with a sha256 of its weights: that of the file if known, else that of the arrays."""
    if "sha256" in member.card.weights:
        return member.card
    import keras

    digest = hashlib.sha256()
    for weight in member.model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).data)
    return dataclasses.replace(member.card, weights={"sha256": digest.hexdigest()})
