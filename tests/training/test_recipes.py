"""Recipes: the paper's numbers, schedules in fractions, and what a --set refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from keras_convnets.errors import UserError
from keras_convnets.training.recipes import RECIPES, get_recipe


def test_the_cifar_recipe_is_the_papers():
    recipe = get_recipe("resnet_cifar")
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay, recipe.weight_decay_scope) == (
        128,
        0.9,
        1e-4,
        "all",
    )
    assert recipe.total_steps(50_000) == 64_000
    schedule = recipe.make_schedule(64_000)
    rates = {step: schedule.rate(step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)}
    assert list(rates.values()) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("depth, warm", [(20, False), (56, False), (110, True), (1202, True)])
def test_the_warm_up_is_for_the_deepest(depth, warm):
    recipe = get_recipe("resnet_cifar").for_network(depth)
    assert recipe.warmup is warm
    assert recipe.warmup_until_error == 0.8
    schedule = recipe.make_schedule(64_000)
    assert schedule.warming is warm and schedule.rate(0) == pytest.approx(0.01 if warm else 0.1)


def test_a_warm_up_that_is_set_stays():
    assert get_recipe("resnet_cifar", {"warmup": "true"}).for_network(20).warmup is True
    assert get_recipe("resnet_cifar", {"warmup": "no"}).for_network(110).warmup is False


def test_a_shortened_run_keeps_its_shape():
    recipe = get_recipe("resnet_cifar", {"epochs": "3"})
    assert recipe.iterations is None
    assert recipe.total_steps(5000) == 118  # 3 * 5000 / 128 = 117.2: the last images are seen too
    assert [recipe.make_schedule(118).rate(step) for step in (58, 59, 88)] == pytest.approx([0.1, 0.01, 0.001])
    assert get_recipe(recipe, {"iterations": 7}).epochs is None


def test_the_rate_follows_the_batch_unless_it_is_set():
    assert get_recipe("resnet_cifar", {"batch_size": "64"}).base_learning_rate() == pytest.approx(0.05)
    both = get_recipe("resnet_cifar", {"batch_size": "64", "learning_rate": "0.2"})
    assert both.base_learning_rate() == pytest.approx(0.2)


def test_texts_are_read_as_the_fields_type():
    values = {"drops": "0.25,0.5,0.75", "flip": "no", "pad": "none", "seed": "3", "weight_decay": "5e-4"}
    recipe = get_recipe("resnet_cifar", values)
    assert (recipe.drops, recipe.flip, recipe.pad, recipe.seed, recipe.weight_decay) == (
        (0.25, 0.5, 0.75),
        False,
        None,
        3,
        5e-4,
    )


@pytest.mark.parametrize("values, sentence", [
    ({"epoch": "3"}, r"unknown field of recipe resnet_cifar 'epoch'; the nearest valid names? (is|are) epochs"),
    ({"epochs": "many"}, r"epochs is 'many'; it must be a value of type number \(length in passes"),
    ({"batch_size": "0"}, r"batch_size is 0; it must be a number, at least 1"),
    ({"batch_size": "1.5"}, r"batch_size is '1.5'; it must be a value of type whole number"),
    ({"momentum": "1.5"}, r"momentum is 1.5; it must be a number, at least 0 and at most 1"),
    ({"learning_rate": "nan"}, r"learning_rate is nan"),
    ({"weight_decay_scope": "some"}, r"weight_decay_scope is 'some'; it must be one of all, kernels"),
    ({"flip": "maybe"}, r"flip is 'maybe'; it must be a value of type true or false"),
    ({"epochs": "3", "iterations": "5"}, r"they are alternatives"),
    ({"drops": "0.5,x"}, r"drops is '0.5,x'"),
    ({"drops": "0.5,1.5"}, r"drops is \(0.5, 1.5\)"),
    ({"iterations": 3.5}, r"iterations is 3.5; it must be a value of type whole number"),
    ({"iterations": 3.0}, r"iterations is 3.0; it must be a value of type whole number"),
    ({"iterations": True}, r"iterations is True; it must be a value of type whole number"),
    ({"batch_size": None}, r"batch_size is None; it must be a value of type whole number"),
    ({"batch_size": np.float64(64)}, r"it must be a value of type whole number"),
    ({"seed": "1e3"}, r"seed is '1e3'; it must be a value of type whole number"),
    ({"flip": 1}, r"flip is 1; it must be a value of type true or false"),
    ({"learning_rate": True}, r"learning_rate is True; it must be a value of type number"),
    ({"learning_rate": float("inf")}, r"learning_rate is inf; it must be a value of type number"),
    ({"weight_decay": np.float32("nan")}, r"weight_decay is .*nan.*; it must be a value of type number"),
    ({"ema": 1.0}, r"ema is 1.0; it must be a number, at least 0 and below 1"),
    ({"weight_decay_scope": 3}, r"weight_decay_scope is 3; it must be one of all, kernels"),
    ({"drops": 0.5}, r"drops is 0.5; it must be a value of type numbers with commas"),
    ({"drops": (0.5, float("nan"))}, r"drops is \(0.5, nan\)"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_sentence(values, sentence):
    with pytest.raises(UserError, match=sentence):
        get_recipe("resnet_cifar", values)


def test_numpys_numbers_are_taken_as_pythons():
    given = {"iterations": np.int64(7), "learning_rate": np.float32(0.5), "flip": np.bool_(False), "pad": np.int8(2)}
    recipe = get_recipe("resnet_cifar", {**given, "drops": np.array([0.25, 0.5])})
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict()
    found = (recipe.iterations, recipe.learning_rate, recipe.flip, recipe.pad, recipe.drops)
    assert found == (7, 0.5, False, 2, (0.25, 0.5))


def test_unknown_recipes_name_the_nearest():
    with pytest.raises(UserError, match="unknown recipe 'resnet_cfar'; the nearest valid names are resnet_cifar,"):
        get_recipe("resnet_cfar")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_frozen_plain_data_with_documented_fields(name):
    recipe = get_recipe(name)
    assert recipe.to_dict()["name"] == name
    assert all(field.metadata["doc"] for field in dataclasses.fields(recipe))
    assert f"--recipe {name}" in __import__(type(recipe).__module__, fromlist=["x"]).__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1
