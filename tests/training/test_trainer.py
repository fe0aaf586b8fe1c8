"""Training: the papers' update rule, any number of devices, and runs that go on after any end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from keras_convnets import CIFARResNet, training
from keras_convnets.errors import Interrupted, UserError
from keras_convnets.files import exclusive_lock
from keras_convnets.training import trainer
from keras_convnets.training.recipes import get_recipe

pytestmark = pytest.mark.usefixtures("no_pictures")

TESTS = Path(__file__).parent.parent  # where scripts find the module `tiny`


def two_steps(recipe, kind):
    """Take two steps of the trainer on a small network; return its weights before and after, and the batch."""
    keras.utils.set_random_seed(1)
    model = CIFARResNet(8, input_shape=(8, 8, 3), classes=3)
    network = keras.Model(model.inputs, model.get_layer("predictions").output)
    rng = np.random.default_rng(2)
    for variable in network.trainable_variables:
        if variable.name in ("gamma", "beta", "bias"):
            variable.assign(rng.normal(1, 0.3, variable.shape))
    strategy = tf.distribute.get_strategy()
    optimizer = keras.optimizers.SGD(0.05, momentum=recipe.momentum)
    optimizer.build(network.trainable_variables)
    step = trainer.make_step(network, optimizer, recipe, strategy)
    images, labels = (
        tf.constant(rng.uniform(0, 255, (6, 8, 8, 3)), tf.float32),
        tf.constant([0, 1, 2, 2, 1, 0], tf.int64),
    )
    before = [variable.numpy() for variable in network.trainable_variables]
    gradients = []
    for _ in range(2):
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))
        gradients.append([g.numpy() for g in tape.gradient(loss, network.trainable_variables)])
        got, right = step(images, labels)
        assert float(got) == pytest.approx(float(loss), rel=1e-5)
        assert float(right) == float(tf.reduce_sum(tf.cast(tf.argmax(logits, -1) == labels, tf.float32)))
    return before, gradients, [variable.numpy() for variable in network.trainable_variables], network


@pytest.mark.parametrize("scope", ["all", "kernels"])
def test_the_update_is_l2_in_the_gradient_inside_the_momentum(scope):
    recipe = get_recipe("resnet_cifar", {"batch_size": 6, "weight_decay": 0.1, "weight_decay_scope": scope})
    before, gradients, after, network = two_steps(recipe, scope)
    for index, variable in enumerate(network.trainable_variables):
        decay = 0.1 if scope == "all" or variable.name == "kernel" else 0.0
        weight, velocity = before[index].astype(np.float64), 0.0
        for gradient in gradients:
            velocity = 0.9 * velocity - 0.05 * (gradient[index] + decay * weight)
            weight = weight + velocity
        # float32 rounding of two steps; decoupled decay would be off by some 1e-2 of the weight.
        np.testing.assert_allclose(after[index], weight, rtol=1e-4, atol=1e-5, err_msg=variable.path)


TWO_DEVICES = """
import json, sys
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, tiny
from keras_convnets.training import trainer
from keras_convnets.training.weight_averages import Averages
from keras_convnets.training.recipes import get_recipe

recipe = get_recipe("resnet_cifar", {"batch_size": 7, "weight_decay": 0.1})
rng = np.random.default_rng(0)
images, labels = rng.normal(size=(21, 4, 4, 3)).astype("float32"), rng.integers(0, 3, 21)

def train(strategy):
    with strategy.scope():
        # No batch normalisation: its statistics are each replica's own, and then two devices differ from one.
        network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
        network.set_weights([np.linspace(-1, 1, 144).reshape(48, 3), np.zeros(3)])
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(network.trainable_variables)
        averages = Averages(network, 0.5)
    step = trainer.make_step(network, optimizer, recipe, strategy, averages=averages)
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices((images, labels)).batch(7))
    figures = [[float(x) for x in step(*batch)] for batch in batches]
    return figures, [*network.get_weights(), *(average.numpy() for average in averages.variables)]

def skipped(strategy):
    # A step in which the gradients of the last device alone overflow, and what it changes.
    with strategy.scope():
        network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
        optimizer = trainer.make_optimizer(get_recipe("resnet_cifar", {"precision": "mixed_float16"}))
        optimizer.build(network.trainable_variables)
    step, before = trainer.make_step(network, optimizer, recipe, strategy), network.get_weights()
    strange = np.concatenate([images[:6], np.full_like(images[:1], np.inf)])
    data = tf.data.Dataset.from_tensor_slices((strange, labels[:7])).batch(7)
    step(*next(iter(strategy.experimental_distribute_dataset(data))))
    change = max(float(np.abs(a - b).max()) for a, b in zip(before, network.get_weights()))
    return change, float(optimizer.dynamic_scale.numpy())

both = trainer.local_strategy()
one, other = train(tf.distribute.get_strategy()), train(both)
difference = max(float(np.abs(a - b).max()) for a, b in zip(one[1], other[1]))
overrides = dict(iterations=3, batch_size=33, holdout=50, ema=0.9)
trainer.get_model = tiny.network
run = trainer.fit("ResNet20", "digits", run=sys.argv[1], overrides=overrides)
print(json.dumps({"replicas": both.num_replicas_in_sync, "one": one[0], "other": other[0], "difference": difference,
                  "steps": run.metrics()[-1]["step"], "skipped": skipped(both)}))
"""


def test_two_devices_train_as_one(run_python, tmp_path):
    """Batches of 7 over 2 devices: uneven batches per device, and the L2 counted once."""
    process = run_python("-c", TWO_DEVICES, str(tmp_path / "run"), cwd=TESTS)
    assert process.returncode == 0, process.stderr[-3000:]
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["replicas"] == 2 and result["steps"] == 3
    np.testing.assert_allclose(result["other"], result["one"], rtol=1e-5)
    assert result["difference"] < 1e-5
    # Float16: a step that overflows on one device is skipped on all, and the loss is scaled by half as much.
    assert result["skipped"] == [0.0, 2.0**14]


KILLED = """
import os, signal, sys
import tiny
from keras_convnets.training import trainer
trainer.get_model = tiny.network
kill_at, *paths = sys.argv[1:]
kill_at = int(kill_at)
trainer.CHECKPOINT_SECONDS = trainer.CHECKPOINT_SECONDS_AT_REPORTS = -1.0 if kill_at else 3600.0
advance = trainer.TrainingProgress.advance
def killing(self, step):
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(self, step)
trainer.TrainingProgress.advance = killing
overrides = dict(iterations=24, holdout=0.1, batch_size=64, warmup=True, ema=0.9)
for path in paths:
    trainer.fit("ResNet20", "digits", run=path, overrides=overrides)
"""


def test_a_killed_run_that_goes_on_equals_the_unbroken_one(run_python, tmp_path):
    """To the bit: one inter-op thread makes this machine's arithmetic repeatable; order and crops are the seed's."""
    once = {"TF_NUM_INTEROP_THREADS": "1"}
    unbroken, broken = (training.Run(tmp_path / name) for name in ("unbroken", "broken"))
    process = run_python("-c", KILLED, "14", str(broken.path), cwd=TESTS, env=once)
    assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
    assert not broken.finished
    process = run_python("-c", KILLED, "0", str(broken.path), str(unbroken.path), cwd=TESTS, env=once)
    assert process.returncode == 0, process.stderr[-3000:]
    assert broken.metrics() == unbroken.metrics()
    for file in ("final.keras", "best.keras"):
        one, other = (keras.saving.load_model(run.path / file).get_weights() for run in (unbroken, broken))
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert not (broken.path / "checkpoints").exists()


COMMAND_LINE = """
import sys
import tiny
from keras_convnets.commands.main import main
from keras_convnets.training import trainer
trainer.get_model = tiny.network
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    command = [sys.executable, "-c", COMMAND_LINE, "train", "--model", "ResNet20", "--dataset", "digits"]
    command += ["--run", str(tmp_path / "run"), "--set", "iterations=20000"]
    process = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "step" in process.stdout.readline()  # the first epoch is reported
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes it" in errors and "Traceback" not in errors
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) >= 1
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("*/state.json")).read_text())
    assert state["step"] > 0


def test_a_finished_run_is_whole_and_better_than_chance(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    whole = {"model.json", "config.json", "metrics.jsonl", "best.keras", "final.keras", "plots", "events", "samples"}
    assert whole <= names and "checkpoints" not in names
    run = training.Run.existing(trained_run)
    card = run.card()
    assert card.architecture == "ResNet20" and card.class_names == tuple("0123456789") and card.trained
    assert card.preprocessing.mean_image.shape == (8, 8, 3)
    assert card.arguments == {"classes": 10, "input_shape": [8, 8, 3]} and not card.metrics
    assert run.model().built_as.architecture == "ResNet20"
    assert card.data["images"] == {"train": 1293, "test": 360, "holdout": 144}
    metrics = run.metrics()
    assert metrics[-1]["step"] == 122 and metrics[0]["learning_rate"] == pytest.approx(0.05)
    assert max(record["val_top1"] for record in metrics) > 0.85
    assert (trained_run / "plots" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    # best.keras is the network of the best epoch on the holdout.
    data = training.load_dataset("digits").with_holdout(0.1)
    held = training.evaluate(run.model(), data, split="holdout")
    assert held.top1 == pytest.approx(max(record["val_top1"] for record in metrics))


def test_a_finished_run_is_left_as_it_is_and_another_recipe_is_refused(trained_run, tmp_path):
    before = (trained_run / "final.keras").stat().st_mtime_ns
    same = {"epochs": 6, "holdout": 0.1, "batch_size": 64}
    training.fit("ResNet20", "digits", run=trained_run, overrides=same)
    assert (trained_run / "final.keras").stat().st_mtime_ns == before
    for changed, sentence in (({"epochs": 7}, "recipe.epochs = 6, not 7"), ({"seed": 1}, "recipe.seed = 0, not 1")):
        with pytest.raises(UserError, match=sentence):
            training.fit("ResNet20", "digits", run=trained_run, overrides={**same, **changed})
    with pytest.raises(UserError, match="model = 'ResNet20', not 'PlainNet20'"):
        training.fit("PlainNet20", "digits", run=trained_run, overrides=same)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run directory and not empty"):
        training.fit("ResNet20", "digits", run=tmp_path, overrides=same)
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_network_that_does_not_take_the_images_leaves_the_directory_free(tmp_path, monkeypatch):
    cifar = {"run": tmp_path / "run", "recipe": "resnet_cifar"}
    with pytest.raises(UserError, match="at least 32x32 pixels"):
        training.fit("ResNet18", "digits", **cifar, overrides={"iterations": 1})
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    assert training.fit("ResNet18", "digits", **cifar, overrides={"iterations": 1, "image_size": 32}).finished


def test_two_trainings_do_not_share_a_directory(tmp_path):
    tmp_path.joinpath("run").mkdir()
    with (
        exclusive_lock(tmp_path / "run", "trained in"),
        pytest.raises(UserError, match="is being trained in by another process"),
    ):
        training.fit("ResNet20", "digits", run=tmp_path / "run", overrides={"iterations": 1})


def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    with pytest.raises(FloatingPointError, match="try a lower learning_rate"):
        training.fit("ResNet20", "digits", run=tmp_path / "run", overrides={"iterations": 4, "learning_rate": 1e30})
    assert not training.Run(tmp_path / "run").finished


def test_the_warm_up_ends_when_the_training_error_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    overrides = {"epochs": 4, "batch_size": 64, "warmup": True, "drops": ()}
    run = training.fit("ResNet20", "digits", run=tmp_path / "run", overrides=overrides)
    rates = [record["learning_rate"] for record in run.metrics()]
    assert rates[-1] == pytest.approx(0.05)
    plan = trainer.make_plan("ResNet20", "digits", "resnet_cifar", overrides, None)
    made = training.Trainer(plan, training.Run(tmp_path / "other"))
    made.set_learning_rate()
    assert float(keras.ops.convert_to_numpy(made.optimizer.learning_rate)) == pytest.approx(0.005)
    errors = []
    for _ in range(200):
        made.schedule.observe_training_error(0.5)  # half of each batch is wrong
        errors.append(made.schedule.warmup.running_error)
        if not made.schedule.warming:
            break
    made.set_learning_rate()
    assert float(keras.ops.convert_to_numpy(made.optimizer.learning_rate)) == pytest.approx(0.05)
    # A running mean over 20 steps from 1 to 0.5 passes 0.8 after ln(0.3 / 0.5) / ln(0.95) = 9.96 steps.
    assert len(errors) == 10 and errors[-1] < 0.8 <= errors[-2]


def test_a_stopped_training_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "get_model", tiny.network)

    def stop_at_once(self, step):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trainer.TrainingProgress, "advance", stop_at_once)
    with pytest.raises(Interrupted, match="stopped at step 2 of 50"):
        training.fit("ResNet20", "digits", run=tmp_path / "run", overrides={"iterations": 50})
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000002"]


@pytest.mark.heavy  # test_photograph_recipes.py trains on smaller folders
def test_a_folder_of_photographs_trains_at_the_size_asked_for(real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "get_model", tiny.network)
    overrides = {"epochs": 1, "image_size": 24, "batch_size": 32}
    run = training.fit("ResNet20", real_data / "ants_bees", run=tmp_path / "run", overrides=overrides)
    card = run.card()
    assert card.view.crop == (24, 24) and card.class_names == ("ants", "bees")
    assert card.recipe["flip"] is True


def test_the_endless_stream_gives_full_batches_over_many_epochs():
    plan = trainer.make_plan("ResNet20", "digits", "resnet_cifar", {"batch_size": 128}, None)
    preprocessing = plan.recipe.preprocessing(plan.data.split("train"))
    counts = np.zeros(10, int)
    for images, labels in trainer.training_batches(plan, preprocessing).take(1437 * 2 // 128):
        assert images.shape == (128, 8, 8, 3) and labels.shape == (128,)
        counts += np.bincount(labels, minlength=10)
    # Two epochs except for the last 58 images; the class counts differ by these in total.
    assert np.abs(counts - 2 * np.bincount(plan.data.splits["train"].labels)).sum() == 2 * 1437 - 22 * 128
