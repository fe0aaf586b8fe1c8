"""What every recipe has: fields with their documentation, values read from text, and the schedule that they name."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_convnets.errors import UserError, unknown_name
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.numbers import finite_number, whole_number
from keras_convnets.training.data import DataSet, SizedSplit
from keras_convnets.training.schedules import (
    Constant,
    Cosine,
    Curve,
    EarlyStopping,
    LinearWarmup,
    OneCycle,
    Schedule,
    TrainingErrorWarmup,
)

# (images [b, H, W, 3], seed int [2]) -> images
Augmentation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
SCHEDULES = ("paper", "cosine", "one_cycle")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
# The one-cycle rate rises over this fraction of the run, unless `warmup_share` says another, and falls after it.
ONE_CYCLE_PEAK = 0.3


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """Return a dataclass field with its documentation and the values it allows.

    Args:
        default: its value.
        doc: what it is.
        low: the least number.
        high: the greatest.
        below: what every number is below.
        choices: the texts, where it is one of a few.
    """
    rules = {"doc": doc, "low": low, "high": high, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=rules)


@dataclass(frozen=True)
class Recipe:
    """The fields of every recipe; a subclass sets its paper's values.

    `iterations` and `epochs` are alternatives: setting one clears the other.
    """

    batch_size: int = option(128, "images in a step, over all devices", low=1)
    iterations: int | None = option(None, "length in steps", low=1)
    epochs: float | None = option(None, "length in passes over the training images", low=0)
    learning_rate: float | None = option(None, "at the start; none: by the recipe's relation", low=0)
    momentum: float = option(0.9, "of the SGD", low=0, high=1)
    nesterov: bool = option(False, "Nesterov's form of the momentum")
    weight_decay: float = option(0.0, "L2 in the gradient: weight_decay * w is added to dL/dw", low=0)
    weight_decay_scope: str = option("all", "which weights decay: all, or kernels", choices=("all", "kernels"))
    holdout: float = option(
        0, "training images held out to choose the best epoch: a number, or a fraction below 1", low=0
    )
    image_size: int | None = option(None, "side of the square input; none: the data's own size", low=1)
    schedule: str = option("paper", "of the learning rate: paper, cosine or one_cycle", choices=SCHEDULES)
    warmup_share: float = option(0.0, "fraction of the run in which the rate rises", low=0, high=0.9)
    label_smoothing: float = option(0.0, "fraction of the target spread evenly over all classes", low=0, high=0.9)
    clip_norm: float | None = option(None, "largest norm of the whole gradient; none: any", low=1e-9)
    ema: float | None = option(None, "largest decay a step of the weights' average, the final network", low=0, below=1)
    precision: str = option("float32", "of the network's computations", choices=PRECISIONS)
    balanced: bool = option(False, "draw every class equally often")
    broken_images: float = option(0.05, "fraction of a split's images that may be unreadable", low=0, high=1)
    seed: int = option(0, "of initialisation, order and augmentation", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        hints = _hints(self)
        for field in dataclasses.fields(self):
            value = _checked(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if (self.iterations is None) == (self.epochs is None) and (self.iterations or not self.has_length):
            raise UserError(
                f"iterations is {self.iterations} and epochs is {self.epochs}; they are alternatives: set one."
            )

    @property
    def name(self) -> str:
        """The recipe's name, that of its module."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def override(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with fields set; texts are read as the field's type.

        Raises:
            UserError: if a field is unknown, a value does not fit, or both iterations and epochs are set.
        """
        fields = {field.name: field for field in dataclasses.fields(self)}
        hints = _hints(self)
        read = {}
        for key, value in values.items():
            if key not in fields:
                raise unknown_name(f"field of recipe {self.name}", key, fields)
            read[key] = _read(fields[key], hints[key], value) if isinstance(value, str) else value
        for one, other in (("iterations", "epochs"), ("epochs", "iterations")):
            if read.get(one) is not None and other not in read:
                read[other] = None
        return dataclasses.replace(self, **read)

    def to_dict(self) -> dict[str, Any]:
        """Return name and fields as plain data."""
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {"name": self.name, **fields}

    def total_steps(self, train_images: int) -> int:
        """Return the number of steps for a number of training images."""
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None, "recipes without epochs override this method"
        return max(1, math.ceil(self.epochs * train_images / self.batch_size))

    def base_learning_rate(self) -> float:
        """Return the learning rate at the start: the field, or the recipe's relation."""
        return self.learning_rate if self.learning_rate is not None else 0.1

    def make_schedule(self, total_steps: int) -> Schedule:
        """Return the objects that decide the learning rate of each step and the end of a run of `total_steps` steps.

        The rate rises linearly over `warmup_share`. The cosine decays over the remaining steps, the paper's schedule is
        multiplied by the rise, and one-cycle has its own rise, whose length the field sets.
        """
        base, warmup = self.base_learning_rate(), self.warmup_share
        if self.schedule == "one_cycle":
            curve: Curve = OneCycle(base, total_steps, warmup or ONE_CYCLE_PEAK)
        elif self.schedule == "cosine":
            curve = Cosine(base, total_steps, warmup)
        else:
            paper = self.paper_curve(total_steps)
            curve = LinearWarmup(paper, total_steps, warmup) if warmup else paper
        return Schedule(
            curve,
            best_is=self.best_is,
            warmup=self.paper_warmup(),
            early_stopping=self.early_stopping(),
            head_only_steps=self.head_only_fraction * total_steps,
            patient_steps=max(warmup * total_steps, self.head_only_fraction * total_steps),
        )

    def paper_curve(self, total_steps: int) -> Curve:
        """Return the learning rates of `schedule=paper`, the warm-ups aside."""
        return Constant(self.base_learning_rate())

    def paper_warmup(self) -> TrainingErrorWarmup | None:
        """Return a warm-up that lasts until the training error falls; None: there is none."""
        return None

    def early_stopping(self) -> EarlyStopping | None:
        """Return what ends a run before its length; None: nothing does."""
        return None

    @property
    def has_length(self) -> bool:
        """Whether the recipe knows its length without iterations and epochs."""
        return False

    @property
    def best_is(self) -> str:
        """What the best network on the holdout is chosen by: "val_top1", the highest, or "val_loss", the lowest."""
        return "val_top1"

    @property
    def head_only_fraction(self) -> float:
        """Fraction of the run, from its start, in which only the classifier is trained."""
        return 0.0

    def rate_multipliers(self, model: keras.Model) -> Mapping[str, float]:
        """Return what the learning rate of single weights is multiplied by, by their paths; 1 where none is given."""
        return {}

    def prepare(self, model: keras.Model) -> None:
        """Change a network before it is trained, as by freezing layers; nothing by default."""

    def builder_arguments(self, architecture: str) -> dict[str, Any]:
        """Return what the builder is given besides classes, input and weights."""
        return {}

    def loss_weights(self, architecture: str) -> Mapping[str, float]:
        """Return the weight of each classifier's loss, by the name of the layer that gives its logits."""
        return {"predictions": 1.0}

    @property
    def protocol(self) -> str:
        """The evaluation protocol that the expected result was measured with."""
        return "center"

    @property
    def resize(self) -> int | None:
        """The shorter side, in pixels, to which evaluation brings an image before cropping; None: the input's."""
        return None

    @property
    def reads_photographs(self) -> bool:
        """Whether each image is cropped from its encoded file, by `read`, instead of resized and centre-cropped."""
        return False

    def read(self, encoded: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """Return a training view of an encoded photograph, [size, size, 3] in 0-255; for `reads_photographs`."""
        raise TypeError(f"recipe {self.name} reads no photographs")

    def preprocessing(self, train: SizedSplit) -> Preprocessing | None:
        """Return what the network's first layer shall do, computed from the training images; None: its default."""
        return None

    def augment(
        self, data: DataSet, preprocessing: Preprocessing | None, sample: Callable[[], SizedSplit]
    ) -> Augmentation:
        """Return a pure function (images [b, H, W, 3], seed int [2]) -> [b, H, W, 3] for training.

        Args:
            data: says whether flips keep labels.
            preprocessing: what the network's first layer does.
            sample: gives training images, resized and centre-cropped, for what is computed from them.
        """
        return lambda images, seed: tf.cast(images, tf.float32)

    def for_network(self, depth: int) -> Recipe:
        """Return the recipe with the fields resolved that depend on the network."""
        return self

    def for_data(self, train_images: int) -> Recipe:
        """Return the recipe with the fields resolved that depend on the number of training images."""
        return self


def _read(field: dataclasses.Field, hint: Any, text: str) -> Any:
    """Read a field's value from the text of a `--set`."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text.lower() == "none" and type(None) in allowed:
        return None
    kind = next(kind for kind in allowed if kind is not type(None))
    readers: dict[Any, Callable[[str], Any]] = {bool: _read_bool, int: int, float: float, str: str}
    try:
        if typing.get_origin(kind) is tuple:
            return tuple(float(part) for part in text.strip("()[]").split(",") if part.strip())
        return readers[kind](text)
    except (ValueError, KeyError):
        raise _refusal(field, text, f"a value of type {_type_name(kind)}") from None


def _read_bool(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]


def _type_name(kind: Any) -> str:
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(kind, "numbers with commas")


def _hints(recipe: Recipe) -> dict[str, Any]:
    """Return the types of a recipe's fields, by name."""
    kind: type = type(recipe)
    return _hints_of(kind)


_hints_of = functools.cache(typing.get_type_hints)


def _checked(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    """Return a field's value as plain Python; refuse one of another type or outside the field's range."""
    rules = field.metadata
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    if choices := rules.get("choices"):
        if not isinstance(value, str) or value not in choices:
            raise _refusal(field, value, f"one of {', '.join(choices)}")
        return value
    kind = next(kind for kind in allowed if kind is not type(None))
    plain = _of_kind(value, kind)
    if plain is None:
        raise _refusal(field, value, f"a value of type {_type_name(kind)}")
    if kind is not bool and not all(_within(part, rules) for part in (plain if isinstance(plain, tuple) else (plain,))):
        limits = [
            *([f"at least {rules['low']}"] if rules.get("low") is not None else []),
            *([f"at most {rules['high']}"] if rules.get("high") is not None else []),
            *([f"below {rules['below']}"] if rules.get("below") is not None else []),
        ]
        what = "numbers, each" if isinstance(plain, tuple) else "a number,"
        raise _refusal(field, value, f"{what} {' and '.join(limits)}")
    return plain


def _of_kind(value: Any, kind: Any) -> Any:
    """Return a value as Python's own of a field's kind; None where it is none. NumPy's numbers count as Python's."""
    if kind is bool:
        is_numpys = getattr(getattr(value, "dtype", None), "kind", None) == "b" and value.ndim == 0
        return bool(value) if isinstance(value, bool) or is_numpys else None
    if kind is int:
        return whole_number(value)
    if kind is float:
        return finite_number(value)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return None
    parts = tuple(finite_number(part) for part in value)
    return None if None in parts else parts


def _within(value: float, rules: Mapping[str, Any]) -> bool:
    low, high, below = rules.get("low"), rules.get("high"), rules.get("below")
    return (low is None or value >= low) and (high is None or value <= high) and (below is None or value < below)


def _refusal(field: dataclasses.Field, value: Any, allowed: str) -> UserError:
    return UserError(
        f"{field.name} is {value!r}; it must be {allowed} ({field.metadata.get('doc', 'see the recipe')})."
    )
