"""Learning rates: every recipe, schedule, warm-up and length against independent formulas; invalid combinations."""

from __future__ import annotations

import json
import math

import pytest
import tiny

from keras_convnets.errors import UserError
from keras_convnets.training.recipes import RECIPES, get_recipe
from keras_convnets.training.schedules import schedule_state

PLATEAUS = ("alexnet", "vgg", "resnet_imagenet")
IMAGES = 12_800


def paper(name, fraction):
    """The paper's schedule in parts of the first rate, where the holdout improves to the end."""
    if name in PLATEAUS:
        return 0.1 ** sum(fraction >= late for late in (0.7, 0.8, 0.9))
    if name == "googlenet":
        return 0.96 ** math.floor(8 * fraction)
    return 0.1 ** sum(fraction >= drop for drop in (0.5, 0.75)) if name.endswith("cifar") else 1.0


def expected(name, schedule, warm, step, total):
    fraction = step / total
    if schedule == "one_cycle":
        peak = warm or 0.3
        return min(1.0, (step + 1) / (peak * total), (1 - fraction) / (1 - peak))
    rise = min(1.0, (step + 1) / (warm * total)) if warm else 1.0
    if schedule == "paper":
        return rise * paper(name, fraction)
    return rise * (1 + math.cos(math.pi * max(0.0, fraction - warm) / (1 - warm))) / 2


@pytest.mark.parametrize("length", [{"iterations": 1000}, {"epochs": 9}, {"iterations": 20}], ids=str)
@pytest.mark.parametrize("warm", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("schedule", ["paper", "cosine", "one_cycle"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_combination_is_its_formula(name, schedule, warm, length):
    overrides = {"schedule": schedule, "warmup_share": warm, "learning_rate": 2.0, "batch_size": 128, **length}
    recipe = get_recipe(name, overrides).for_network(20)
    total = recipe.total_steps(IMAGES)
    assert total == length.get("iterations", 900)
    improving = [0.1 + number / 100 for number in range(9)]
    found = tiny.rates(recipe.make_schedule(total), total, improving)
    assert found == pytest.approx([2 * expected(name, schedule, warm, step, total) for step in range(total)])
    assert max(found) <= 2.0


@pytest.mark.parametrize("name", PLATEAUS)
@pytest.mark.parametrize("length, reports", [({"epochs": 9}, 9), ({"iterations": 4}, 4), ({"epochs": 90}, 90)])
@pytest.mark.parametrize("improves", [True, False])
def test_a_plateau_recipe_of_any_length_divides_three_times(name, length, reports, improves):
    recipe = get_recipe(name, {"learning_rate": 1.0, "batch_size": 128, **length})
    figures = [0.5 + improves * number / 1000 for number in range(reports)]
    total = recipe.total_steps(IMAGES)
    found = tiny.rates(recipe.make_schedule(total), total, figures)
    assert sorted({round(rate, 6) for rate in found}) == [0.001, 0.01, 0.1, 1.0]
    assert found == sorted(found, reverse=True)
    first = next(step for step, rate in enumerate(found) if rate < 1) / len(found)
    if reports >= 9:
        # Without a better report: a twentieth of the run after the first one, or at the next report.
        waited = math.ceil(0.05 * reports) / reports
        assert first == pytest.approx(0.7 if improves else 1 / reports + waited, abs=1e-9)


@pytest.mark.parametrize("name", PLATEAUS)
def test_without_a_holdout_the_rate_falls_at_even_parts(name):
    recipe = get_recipe(name, {"learning_rate": 1.0, "holdout": 0, "iterations": 100})
    found = [recipe.make_schedule(100).rate(step) for step in range(100)]
    assert found == pytest.approx([0.1 ** (step // 25) for step in range(100)])


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_plateaus_belong_to_the_papers_schedule(schedule):
    recipe = get_recipe("alexnet", {"schedule": schedule, "iterations": 100})
    found = tiny.rates(recipe.make_schedule(100), 100, [0.5] * 50)
    assert found == pytest.approx([recipe.base_learning_rate() * expected("", schedule, 0, n, 100) for n in range(100)])


def test_a_plateau_is_not_counted_while_the_rate_rises():
    recipe = get_recipe("alexnet", {"learning_rate": 1.0, "iterations": 100, "warmup_share": 0.4})
    found = tiny.rates(recipe.make_schedule(100), 100, [0.5] * 100)
    assert found[:40] == pytest.approx([(step + 1) / 40 for step in range(40)])
    # The first report that counts is that of step 41; 5 steps without a better one divide the rate.
    assert [step for step in range(41, 100) if found[step] < 0.5 * found[step - 1]] == [46, 51, 56]


def test_the_papers_warm_up_is_never_above_the_schedule():
    recipe = get_recipe("resnet_cifar", {"learning_rate": 1.0, "iterations": 100, "warmup": True})
    found = tiny.rates(recipe.make_schedule(100), 100, [0.1])
    assert found == pytest.approx([0.1] * 75 + [0.01] * 25)


@pytest.mark.parametrize("values", [{"schedule": "cosine"}, {"schedule": "one_cycle"}, {"warmup_share": 0.1}], ids=str)
def test_two_warm_ups_are_refused(values):
    with pytest.raises(UserError, match="belongs to schedule=paper without a warmup_share: set warmup=false"):
        get_recipe("resnet_cifar", {"warmup": True, **values})
    assert get_recipe("resnet_cifar", values).for_network(110).warmup is False


@pytest.mark.parametrize("name, overrides", [
    ("resnet_imagenet", {"plateau_patience": 0.1}), ("alexnet", {"warmup_share": 0.2}), ("googlenet", {}),
    ("resnet_cifar", {"warmup": True}), ("finetune", {"stop_patience": 3}),
])  # fmt: skip
def test_a_schedule_restored_at_any_step_continues_as_the_unbroken_one(name, overrides):
    """Also from a checkpoint that carried the state as "watch", "warming" and "running_error"."""
    recipe = get_recipe(name, {"learning_rate": 1.0, "iterations": 100, **overrides})

    def run(restored=None):
        schedule, seen = recipe.make_schedule(100), []
        for step in range(100):
            seen.append((schedule.rate(step), schedule.warming, schedule.ends_early, schedule.best))
            if schedule.warming:
                schedule.observe_training_error(0.9 - step / 100)
            if step % 4 == 3:
                figure = (0.1, 0.5, 0.4, 0.6, 0.6, 0.3)[step // 4 % 6]
                schedule.observe_holdout(step + 1, {"val_top1": figure, "val_loss": 1 - figure})
            if restored is not None:
                state = json.loads(json.dumps(schedule.state()))
                schedule = recipe.make_schedule(100)
                schedule.restore(restored(state))
        return seen

    def as_before(state):
        nothing = {"reference": None, "waited": 0, "since": 0}
        watch = {
            "divisions": 0,
            **nothing,
            **(state["curve"] or state.get("early_stopping", {})),
            "best": state["best"],
        }
        warmup = state.get("warmup", {"active": False, "running_error": 1.0})
        return schedule_state({"watch": watch, "warming": warmup["active"], "running_error": warmup["running_error"]})

    unbroken = run()
    assert run(lambda state: state) == unbroken and run(as_before) == unbroken
    assert len({rate for rate, *_ in unbroken}) > 1
