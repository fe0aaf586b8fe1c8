"""The recipes for photographs and the options of every recipe, on real photographs."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from keras_convnets import CIFARResNet, GoogLeNet, training
from keras_convnets.errors import UserError
from keras_convnets.networks.graph import leaves
from keras_convnets.prediction import Classifier
from keras_convnets.training import trainer
from keras_convnets.training.plan import make_plan
from keras_convnets.training.recipes import RECIPES, default_recipe, get_recipe
from keras_convnets.training.train_step import make_optimizer, make_step

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Parts of scikit-learn's two photographs as two classes: 24 to train, 8 to validate."""
    from sklearn import datasets

    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name in ("china", "flower"):
        whole = Image.open(Path(datasets.__file__).parent / "images" / f"{name}.jpg")
        for split, count in (("train", 12), ("val", 4)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                left, top = rng.integers(0, whole.width - 160), rng.integers(0, whole.height - 120)
                part = whole.crop((left, top, left + 160, top + 120))
                part.save(root / split / name / f"{number}.jpg", quality=92)
    return root


@pytest.mark.parametrize("model, recipe", [
    ("AlexNet", "alexnet"), ("VGG16", "vgg"), ("GoogLeNet", "googlenet"), ("ResNet50", "resnet_imagenet"),
    ("PlainNet34", "resnet_imagenet"), ("ResNet20", "resnet_cifar"),
])  # fmt: skip
def test_every_family_has_its_papers_recipe(model, recipe):
    from keras_convnets.networks.registry import get_architecture

    assert default_recipe(get_architecture(model), None) == recipe
    assert default_recipe(get_architecture(model), "imagenet") == "finetune"


def test_the_papers_numbers():
    alexnet, vgg, googlenet, resnet = map(get_recipe, ("alexnet", "vgg", "googlenet", "resnet_imagenet"))
    assert [(r.batch_size, r.momentum, r.weight_decay, r.base_learning_rate()) for r in (alexnet, vgg, resnet)] == [
        (128, 0.9, 5e-4, 0.01),
        (256, 0.9, 5e-4, 0.01),
        (256, 0.9, 1e-4, 0.1),
    ]
    assert (alexnet.epochs, vgg.iterations, resnet.iterations) == (90, 370_000, 600_000)
    assert (alexnet.plateau_drops, vgg.plateau_drops, alexnet.colour_shift, vgg.colour_shift) == (3, 3, 0.1, 0.1)
    assert [r.weight_decay_scope for r in (alexnet, vgg, googlenet, resnet)] == ["kernels"] * 3 + ["all"]
    assert googlenet.momentum == 0.9 and googlenet.ema is not None
    weights = {"predictions": 1.0, "aux1_predictions": 0.3, "aux2_predictions": 0.3}
    assert googlenet.loss_weights("GoogLeNet") == weights and googlenet.loss_weights("ResNet50") == {"predictions": 1.0}
    rates = [googlenet.make_schedule(800).rate(step) / 0.01 for step in (0, 99, 100, 799)]
    assert rates == pytest.approx([1, 1, 0.96, 0.96**7])


CASES = [
    # Half of 4096 dropped out: its loss over a few images varies by a third, and falls in so few steps by some seeds.
    pytest.param("AlexNet", "alexnet", {"image_size": 67, "learning_rate": 3e-5, "seed": 3}, marks=pytest.mark.heavy),
    pytest.param("VGG11", "vgg", {"image_size": 32, "learning_rate": 5e-4}, marks=pytest.mark.heavy),
    pytest.param(
        "GoogLeNet", "googlenet", {"image_size": 79, "learning_rate": 0.02, "ema": 0.5}, marks=pytest.mark.heavy
    ),
    pytest.param("ResNet18", "resnet_imagenet", {"image_size": 32, "learning_rate": 3e-4}, marks=pytest.mark.heavy),
    pytest.param(
        "CIFARResNet(8)", "resnet_imagenet", {"image_size": 32, "learning_rate": 3e-3}, marks=pytest.mark.heavy
    ),
]


@pytest.mark.parametrize(
    "model, recipe, overrides", CASES, ids=["alexnet", "vgg", "googlenet", "resnet", "small resnet"]
)
def test_every_recipe_learns_from_photographs(photographs, tmp_path, model, recipe, overrides):
    run = training.fit(
        model,
        photographs,
        run=tmp_path / "run",
        recipe=recipe,
        overrides={"epochs": 5, "iterations": None, "batch_size": 6, "holdout": 6, **overrides},
    )
    losses = [record["loss"] for record in run.metrics()]
    assert len(losses) >= 4 and losses[-1] < losses[0]
    card = run.card()
    assert card.recipe["name"] == recipe and card.view.resize > card.view.crop[0] == overrides["image_size"]
    # What is kept classifies alone: one output, whatever classifiers helped to train it.
    result = training.evaluate(
        run.model(), training.load_dataset(photographs).at_size(*card.view.crop, resize=card.view.resize)
    )
    assert result.n == 8 and run.model().output_shape == (None, 2)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A file of weights of a small residual network with three classes."""
    keras.utils.set_random_seed(0)
    model = CIFARResNet(8, classes=3, input_shape=(32, 32, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # As after training: what comes out is of the size of what goes in, or less.
            layer.moving_variance.assign(np.full(layer.moving_variance.shape, 20.0))
    path = tmp_path_factory.mktemp("weights") / "resnet8.weights.h5"
    model.save_weights(path)
    return path


def test_finetuning_starts_with_the_classifier_and_keeps_statistics(photographs, pretrained, tmp_path, monkeypatch):
    before = CIFARResNet(8, classes=3, input_shape=(32, 32, 3), weights=pretrained)
    seen = {}
    report = trainer.Trainer.report

    def looking(self):
        seen[self.step] = [weight.numpy() for weight in self.model.get_layer("conv1_conv").weights]
        report(self)

    monkeypatch.setattr(trainer.Trainer, "report", looking)
    run = training.fit(
        "CIFARResNet(8)",
        photographs,
        weights=pretrained,
        run=tmp_path / "run",
        overrides={
            "image_size": 32,
            "batch_size": 6,
            "epochs": 4,
            "holdout": 6,
            "head_share": 0.5,
            "stop_patience": None,
        },
    )
    first = before.get_layer("conv1_conv").kernel.numpy()
    steps = sorted(seen)
    assert steps[-1] == 12 and all(np.array_equal(seen[step][0], first) for step in steps if step <= 6)
    assert not np.array_equal(seen[12][0], first)
    after = keras.saving.load_model(run.path / "final.keras")
    for name in ("conv1_bn", "conv4_block1_2_bn"):
        for old, new in zip(before.get_layer(name).weights, after.get_layer(name).weights, strict=True):
            assert np.array_equal(old.numpy(), new.numpy()), name
    assert after.output_shape == (None, 2) and run.config()["weights"]["file"] == "resnet8.weights.h5"
    other = CIFARResNet(8, classes=3, input_shape=(32, 32, 3))
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(UserError, match="another"):
        training.fit("CIFARResNet(8)", photographs, weights=tmp_path / "other.weights.h5", run=run.path, overrides={})


def test_finetuning_gives_later_layers_more(pretrained):
    model = CIFARResNet(8, classes=2, input_shape=(32, 32, 3), weights=pretrained)
    recipe = get_recipe("finetune")
    recipe.prepare(model)
    rates = recipe.rate_multipliers(model)
    kernels = [layer.kernel.path for layer in model.layers if hasattr(layer, "kernel")]
    assert rates[kernels[0]] == pytest.approx(recipe.first_rate)
    values = [rates[path] for path in kernels[:-1]]
    assert values == sorted(values) and values[-1] == pytest.approx(recipe.last_rate) and kernels[-1] not in rates


def test_finetuning_reaches_into_nested_networks():
    """Deeper than 110 layers, networks are made of networks."""
    model = CIFARResNet(116, classes=2)
    recipe = get_recipe("finetune")
    recipe.prepare(model)
    norms = [layer for layer in leaves(model) if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 115 and not any(layer.trainable or layer.trainable_weights for layer in norms)
    rates = recipe.rate_multipliers(model)
    kernels = [layer.kernel.path for layer in leaves(model) if hasattr(layer, "kernel") and layer.name != "predictions"]
    values = [rates[path] for path in kernels]
    assert len(values) == 115 and values == sorted(values) and len(set(values)) == 115
    assert (values[0], values[-1]) == pytest.approx((recipe.first_rate, recipe.last_rate))
    assert len(model.trainable_variables) == 115 + 2


@pytest.mark.parametrize("images, passes", [(100, 17.3), (250, 12), (1000, 6.9), (100_000, 3)])
def test_finetuning_settles_its_length_by_the_data(images, passes):
    steps = get_recipe("finetune").total_steps(images)
    assert steps * 32 / images == pytest.approx(passes, rel=0.05)
    assert get_recipe("finetune", {"epochs": "2"}).total_steps(images) == -(-2 * images // 32)


@pytest.mark.heavy  # the rule itself is tested by its formula
def test_it_stops_early_when_the_holdout_no_longer_improves(photographs, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    overrides = {"image_size": 32, "batch_size": 6, "epochs": 50, "holdout": 6, "learning_rate": 0, "stop_patience": 2}
    overrides["head_share"] = 0.02
    run = training.fit("CIFARResNet(8)", photographs, weights=pretrained, run=tmp_path / "run", overrides=overrides)
    # At a rate of nothing the first report of the whole network is its best and two more show it; one of the classifier
    # alone comes before.
    assert run.finished and len(run.metrics()) == 4


def test_patience_begins_when_the_whole_network_trains():
    recipe = get_recipe("finetune", {"iterations": 100, "head_share": 0.5, "stop_patience": 3})
    schedule = recipe.make_schedule(100)
    # (step, loss on the holdout, whether it is the best, whether the run ends): training the classifier alone stalls,
    # and the whole network is worse at first, and then better from report to report.
    for step, loss, best, ends in (
        (10, 0.5, True, False), (20, 0.6, False, False), (30, 0.6, False, False), (40, 0.6, False, False),
        (50, 0.6, False, False), (60, 0.9, False, False), (70, 0.8, False, False), (80, 0.7, False, False),
        (85, 0.6, False, False), (90, 0.7, False, False), (95, 0.7, False, False), (98, 0.7, False, True),
    ):  # fmt: skip
        is_best = schedule.observe_holdout(step, {"val_top1": 0.5, "val_loss": loss})
        assert (is_best, schedule.ends_early) == (best, ends), step
    schedule.observe_holdout(98, {"val_top1": 0.5, "val_loss": 0.4})
    assert schedule.best == -0.4 and not schedule.ends_early


def test_a_network_that_overflows_on_the_holdout_is_never_the_best():
    for name, best in (("finetune", -0.4), ("resnet_cifar", 0.3)):
        schedule = get_recipe(name, {"iterations": 100}).make_schedule(100)
        assert not schedule.observe_holdout(60, {"val_top1": 0.9, "val_loss": None}) and schedule.best is None
        assert schedule.observe_holdout(60, {"val_top1": 0.3, "val_loss": 0.4}) and schedule.best == best
        assert not schedule.observe_holdout(60, {"val_top1": 0.9, "val_loss": None}) and schedule.best == best


@pytest.mark.heavy  # the rule itself is tested by its formula
def test_a_plateau_divides_the_rate(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    overrides = {"image_size": 32, "batch_size": 6, "epochs": 3, "holdout": 6, "learning_rate": 0, "iterations": None}
    run = training.fit(
        "ResNet18",
        photographs,
        run=tmp_path / "run",
        overrides={**overrides, "plateau_patience": 0.1, "plateau_drops": 2},
    )
    assert [record["learning_rate"] for record in run.metrics()] == [0] * 3
    recipe = get_recipe("resnet_imagenet", {"iterations": 100, "learning_rate": 1.0, "plateau_patience": 0.1})
    # A report every 5 steps; two without a better one are a tenth of the run.
    figures = [0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, *[0.7] * 9]
    rates = [round(rate, 6) for rate in tiny.rates(recipe.make_schedule(100), 100, figures)[5::5]]
    assert rates == [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, *[0.001] * 12]


def small_step(overrides, **arguments):
    """Take one step of a recipe on a small network; return the gradient's effect, the network and the optimizer."""
    keras.utils.set_random_seed(1)
    recipe = get_recipe("resnet_cifar", {"batch_size": 6, "weight_decay": 0.0, "momentum": 0.0, **overrides})
    network = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3, name="predictions")]
    )
    optimizer = make_optimizer(recipe)
    optimizer.learning_rate.assign(1.0)
    optimizer.build(network.trainable_variables)
    rng = np.random.default_rng(2)
    images, labels = rng.normal(size=(6, 4, 4, 3)).astype(np.float32), np.array([0, 1, 2, 2, 1, 0])
    before = [value.copy() for value in network.get_weights()]
    step = make_step(network, optimizer, recipe, tf.distribute.get_strategy(), **arguments)
    loss, _ = step(tf.constant(images), tf.constant(labels, tf.int64))
    logits = images.reshape(6, -1) @ before[0] + before[1]
    return (
        float(loss),
        [old - new for old, new in zip(before, network.get_weights(), strict=True)],
        logits,
        labels,
        images,
    )


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_label_smoothing_is_the_cross_entropy_with_the_smoothed_target():
    loss, (kernel, bias), logits, labels, images = small_step({"label_smoothing": 0.3})
    target = 0.7 * np.eye(3)[labels] + 0.1
    assert loss == pytest.approx(-(target * np.log(softmax(logits))).sum(axis=1).mean(), rel=1e-5)
    expected = images.reshape(6, -1).T @ (softmax(logits) - target) / 6
    np.testing.assert_allclose(kernel, expected, rtol=1e-3, atol=1e-5)


def test_clipping_shortens_the_whole_gradient_and_nothing_shorter():
    _, free, *_ = small_step({})
    norm = np.sqrt(sum((part**2).sum() for part in free))
    _, clipped, *_ = small_step({"clip_norm": float(norm) / 4})
    for one, other in zip(free, clipped, strict=True):
        np.testing.assert_allclose(other, one / 4, rtol=1e-4, atol=1e-7)
    _, wide, *_ = small_step({"clip_norm": float(norm) * 4})
    for one, other in zip(free, wide, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5)


def test_schedules():
    base = {"learning_rate": "1", "iterations": "100"}
    cosine = get_recipe("resnet_cifar", {**base, "schedule": "cosine", "warmup_share": "0.1"})
    rates = [cosine.make_schedule(100).rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[55] == pytest.approx(0.5) and rates[99] < 1e-3
    cycle = get_recipe("resnet_cifar", {**base, "schedule": "one_cycle"})
    rates = [cycle.make_schedule(100).rate(step) for step in range(100)]
    assert max(rates) == pytest.approx(1) and rates.index(max(rates)) == pytest.approx(30, abs=1)
    assert rates[0] < 0.05 and rates[99] < 0.02


def test_the_running_average_is_what_is_kept(tmp_path, monkeypatch):
    """After two updates: a tenth and two elevenths of what was averaged before, statistics included."""
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    seen = []

    def noting(self, batch):
        sums = train_step(self, batch)
        seen.append([weight.numpy() for weight in self.model.weights])
        return sums

    train_step = trainer.Trainer.train_step
    monkeypatch.setattr(trainer.Trainer, "train_step", noting)
    overrides = {"batch_size": 16, "iterations": 2, "ema": 0.9, "holdout": 50, "learning_rate": 1e-3}
    keras.utils.set_random_seed(0)
    run = training.fit("ResNet20", "digits", run=tmp_path / "run", overrides=overrides)
    keras.utils.set_random_seed(0)
    plan = make_plan("ResNet20", "digits", None, overrides, None)
    start = training.Trainer(plan, training.Run(tmp_path / "other")).model.get_weights()
    for file in ("final.keras", "best.keras"):
        kept = keras.saving.load_model(run.path / file).get_weights()
        for one, two, three, averaged in zip(start, *seen, kept, strict=True):
            once = 0.1 * one + 0.9 * two
            np.testing.assert_allclose(averaged, 2 / 11 * once + 9 / 11 * three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [pytest.param("mixed_bfloat16", marks=pytest.mark.heavy), "mixed_float16"])
def test_lower_precision_trains_and_exports_in_float32(tmp_path, precision):
    run = training.fit(
        "CIFARResNet(8)",
        "digits",
        run=tmp_path / "run",
        overrides={"iterations": 3, "batch_size": 32, "precision": precision},
    )
    assert run.model().get_layer("conv1_conv").compute_dtype == precision.removeprefix("mixed_")
    assert keras.config.dtype_policy().name == "float32" and np.isfinite(run.metrics()[-1]["loss"])


def test_the_auxiliary_losses_weigh_three_tenths(eager_functions):
    keras.utils.set_random_seed(0)
    model = GoogLeNet(auxiliary=True, input_shape=(79, 79, 3), classes=3)
    recipe = get_recipe("googlenet", {"batch_size": 2, "weight_decay": 0})
    weights = recipe.loss_weights("GoogLeNet")
    network = keras.Model(model.inputs, {name: model.get_layer(name).output for name in weights})
    for layer in network.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    optimizer = make_optimizer(recipe)
    optimizer.build(network.trainable_variables)
    images = np.random.default_rng(0).uniform(0, 255, (2, 79, 79, 3)).astype(np.float32)
    named = {name: value.numpy() for name, value in network(images, training=True).items()}
    step = make_step(network, optimizer, recipe, tf.distribute.get_strategy(), loss_weights=weights)
    loss, _ = step(tf.constant(images), tf.constant([0, 2], tf.int64))
    each = {name: -np.log(softmax(value)[[0, 1], [0, 2]]).mean() for name, value in named.items()}
    expected = each["predictions"] + 0.3 * (each["aux1_predictions"] + each["aux2_predictions"])
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_a_flip_that_the_data_forbid_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    with pytest.raises(UserError, match="a mirrored image of digits has another label or none; set flip=false"):
        training.fit(
            "ResNet18", "digits", run=tmp_path / "run", overrides={"flip": True, "image_size": 32, "iterations": 1}
        )


def test_weights_are_given_once(tmp_path, photographs, pretrained):
    with pytest.raises(UserError, match="give the weights once"):
        training.fit(f"CIFARResNet(8):{pretrained}", photographs, weights=pretrained, run=tmp_path / "run")


@pytest.mark.heavy
def test_googlenet_learns_ants_and_bees(real_data, tmp_path):
    """A short part of the default fine-tuning: the classifier alone tells most of them."""
    weights = real_data.parent / "weights" / "bvlc_googlenet.onnx"
    run = training.fit(
        "GoogLeNet",
        real_data / "ants_bees",
        weights=weights,
        run=tmp_path / "run",
        overrides={"epochs": 1.5, "head_share": 1.0, "holdout": 0},
    )
    card = run.card()
    data = training.load_dataset(real_data / "ants_bees").at_size(224, 224, resize=card.view.resize)
    assert card.view.resize == 256 and card.preprocessing.order == "BGR"
    result = training.evaluate(run.model(), data)
    # 94 % after the whole recipe; the bound leaves four standard errors of 153 images.
    assert result.n == 153 and result.top1 > 0.85


# The others take a quick step, from weights, in test_broken_runs.py.
QUICK = ("resnet_imagenet", "googlenet", "resnet_cifar")


@pytest.fixture
def only_train(photographs, tmp_path, monkeypatch):
    """The photographs to train on and no others, and the smallest network to train."""
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(photographs / "train")
    return tmp_path / "data"


@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.heavy) for name in RECIPES]
)
def test_every_recipe_ends_on_data_with_train_alone(only_train, tmp_path, recipe):
    """Neither a holdout nor a split to evaluate on."""
    overrides = {"iterations": 2, "batch_size": 4, "holdout": 0, "image_size": 16}
    run = training.fit("ResNet20", only_train, run=tmp_path / "run", recipe=recipe, overrides=overrides)
    written = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*.*")}
    assert {"best.keras", "final.keras", "model.json", "plots/learning_curves.png"} <= written
    kept = [Image.open(path).size for path in run.path.glob("samples/*/*")]
    assert run.finished and len(kept) == 23


def test_evaluate_takes_data_as_they_are_loaded(only_train, tmp_path):
    overrides = {"iterations": 1, "batch_size": 4, "holdout": 0, "image_size": 16}
    run = training.fit("ResNet20", only_train, run=tmp_path / "run", recipe="resnet_imagenet", overrides=overrides)
    model, view, data = run.model(), run.card().view, training.load_dataset(only_train)
    seen = []

    def looking(images):
        seen.append(images)
        return model(images).numpy()

    result = training.evaluate(model, data, split="train")
    data, _ = data.without_broken()
    sized = data.at_size(*view.crop, resize=view.resize)
    assert view.resize > 16 and result.n == 24
    assert (result.confusion == training.evaluate(looking, sized, split="train").confusion).all()
    training.evaluate(Classifier(run.card(), looking), data, split="train")
    assert (seen[0] == seen[1]).all() and seen[0].shape == (24, 16, 16, 3)
    # Without a run the model's input tells, and without a model nothing does.
    bare = keras.saving.load_model(run.path / "best.keras")
    plain = data.at_size(16, 16)
    assert (
        training.evaluate(bare, data, split="train").confusion
        == training.evaluate(looking, plain, split="train").confusion
    ).all()
    with pytest.raises(UserError, match=r"resize them with dataset.at_size\(height, width\)"):
        training.evaluate(looking, data, split="train")
    with pytest.raises(UserError, match="was resized to 8 x 8 pixels and the classifier's input is 16 x 16"):
        training.evaluate(model, data.at_size(8, 8), split="train")
