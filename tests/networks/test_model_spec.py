"""A network as a value: its text, its checks against the builder, and its way through training, card and export."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import pytest
import tiny

import keras_convnets
from keras_convnets import ModelSpec, export, training
from keras_convnets.card import ModelCard
from keras_convnets.commands.main import main
from keras_convnets.errors import UserError
from keras_convnets.networks.spec import model_name, read_settings, split_weights, with_settings
from keras_convnets.training import trainer
from keras_convnets.training.plan import make_plan


@pytest.mark.parametrize(
    "given, settings, canonical",
    [
        ("resnet50", None, "ResNet50"),
        ("ResNet34(shortcut=A)", None, "ResNet34(shortcut='A')"),
        ("ResNet34", {"shortcut": "A"}, "ResNet34(shortcut='A')"),
        ("ResNet34(shortcut='B')", None, "ResNet34"),  # the default
        ("cifarresnet(26)", None, "CIFARResNet(depth=26)"),
        ("CIFARResNet", {"depth": 26}, "CIFARResNet(depth=26)"),
        ("CIFARPlainNet( depth = 8 )", {"classes": 3}, "CIFARPlainNet(depth=8, classes=3)"),
        ("CIFARResNet(8, pooling=avg)", {"classes": 3}, "CIFARResNet(depth=8, pooling='avg', classes=3)"),
        ("AlexNet(lrn={'k': 1, 'alpha': 2e-5})", None, "AlexNet(lrn={'k': 1.0, 'alpha': 2e-05})"),
        ("GoogLeNet(auxiliary=true)", None, "GoogLeNet(auxiliary=True)"),
        ("ResNet18(input_shape=(None, 32, 3))", None, "ResNet18(input_shape=[None, 32, 3])"),
        ("ResNet18(classifier_activation=null)", None, "ResNet18(classifier_activation=None)"),
        (ModelSpec("vgg16", {"classes": 5}), None, "VGG16(classes=5)"),
    ],
)  # fmt: skip
def test_a_spec_has_one_text_which_gives_it_again(given, settings, canonical):
    spec = ModelSpec.of(given, settings)
    assert str(spec) == canonical
    assert ModelSpec.of(canonical) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "given, settings, sentence",
    [
        ("ResNet21", None, "unknown model 'ResNet21'; the nearest valid names are"),
        ("ResNet21(26)", None, "unknown model 'ResNet21'"),
        (7, None, "model is 7; give a network's name"),
        ("ResNet34(short=A)", None, "unknown argument of ResNet34 'short'; the nearest valid name is shortcut"),
        ("PlainNet34(shortcut=A)", None, "unknown argument of PlainNet34 'shortcut'"),
        ("ResNet34(shortcut=D)", None, "shortcut of ResNet34 is 'D'; it must be one of 'A', 'B', 'C'"),
        ("ResNet34(weights=imagenet)", None, "weights can't be set .* give them as MODEL:WEIGHTS"),
        ("ResNet34(preprocessing=None)", None, "preprocessing can't be set .* it comes with the weights"),
        ("ResNet34", {"input_tensor": 1}, "input_tensor can't be set"),
        ("CIFARResNet", None, "CIFARResNet got no depth; give it, as in CIFARResNet\\(26\\)"),
        ("CIFARResNet(x)", None, "depth of CIFARResNet is 'x'; it must be a whole number"),
        ("CIFARResNet(true)", None, "depth of CIFARResNet is True; it must be a whole number"),
        ("CIFARResNet(8.5)", None, "depth of CIFARResNet is 8.5"),
        ("CIFARResNet(8, depth=14)", None, "CIFARResNet got depth twice"),
        ("CIFARResNet(depth=8)", {"depth": 14}, "CIFARResNet got depth as 8 and as 14; give it once"),
        ("ResNet18(1, 2, 3, 4, 5, 6, 7, 8, 9)", None, "at most 8 arguments without a name and got 9"),
        ("GoogLeNet(auxiliary=1)", None, "auxiliary of GoogLeNet is 1; it must be true or false"),
        ("ResNet18(pooling=mean)", None, "pooling of ResNet18 is 'mean'; it must be one of 'avg', 'max' or None"),
        ("ResNet18(classes='5')", None, "classes of ResNet18 is '5'; it must be a whole number"),
        ("ResNet18(input_shape=32)", None, "input_shape of ResNet18 is 32; it must be a list"),
        ("AlexNet(lrn={'q': 1})", None, "lrn of AlexNet is {'q': 1}; .* by some of the names n, k, alpha, beta"),
        ("AlexNet(lrn={'k': 'x'})", None, "lrn of AlexNet is {'k': 'x'}"),
        ("ResNet34(a b)", None, "its arguments can't be read"),
        ("ResNet34(**{})", None, "its arguments can't be read"),
        ("ResNet34(shortcut=open('x'))", None, "its arguments can't be read"),
    ],
)  # fmt: skip
def test_what_a_builder_does_not_take_is_told_in_one_sentence(given, settings, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        ModelSpec.of(given, settings)
    assert "\n" not in str(caught.value)


def test_a_source_is_a_model_with_arguments_and_weights():
    assert split_weights("AlexNet(lrn={'k': 1}):mine(1).onnx") == ("AlexNet(lrn={'k': 1})", "mine(1).onnx")
    assert split_weights("ResNet50:C:/weights.h5") == ("ResNet50", "C:/weights.h5")
    assert split_weights("ResNet50") == ("ResNet50", None)
    assert model_name("resnet50:imagenet") == "resnet50" and model_name("CIFARResNet(26)") == "CIFARResNet(26)"
    assert model_name("runs/ResNet50") is model_name("C:/x.keras") is None
    assert with_settings("resnet34:mine.onnx", {"shortcut": "A"}) == "ResNet34(shortcut='A'):mine.onnx"


def test_settings_are_json_literals_or_text():
    texts = ["shortcut=A", "depth=26", 'lrn={"k": 1}', "lrn-b={'k': 1}", "auxiliary=true", "pooling=null", "name=a=b"]
    wanted = {"shortcut": "A", "depth": 26, "lrn": {"k": 1}, "lrn_b": {"k": 1}, "auxiliary": True, "pooling": None}
    assert read_settings(texts, "--set-model") == {**wanted, "name": "a=b"}
    for texts, sentence in ((["shortcut"], "takes FIELD=VALUE"), (["=A"], "FIELD=VALUE"), (["a=1", "a=1"], "a twice")):
        with pytest.raises(UserError, match=sentence):
            read_settings(texts, "--set-model")


def test_a_spec_without_arguments_needs_no_keras():
    script = (
        "import sys; from keras_convnets import ModelSpec; ModelSpec.of('resnet50');"
        "assert not {'keras', 'numpy'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_spec_builds_what_its_builder_builds():
    spec = ModelSpec.of("ResNet18(shortcut=A)")
    model = spec.build(classes=3, input_shape=(32, 32, 3))
    assert model.built_as == ModelSpec("ResNet18", {"classes": 3, "input_shape": [32, 32, 3], "shortcut": "A"})
    assert sum(isinstance(layer, keras_convnets.networks.layers.ShortcutA) for layer in model.layers) == 3
    assert model.built_as.build().to_json() == model.to_json()
    lrn = ModelSpec.of("AlexNet(lrn={'k': 1})").build(input_shape=(64, 64, 3), classes=2)
    assert lrn.get_layer("norm1").k == 1.0 and lrn.get_layer("norm1").alpha == 1e-4
    assert (spec.depth, ModelSpec.of("CIFARPlainNet(14)").depth) == (18, 14)
    with pytest.raises(UserError, match="unknown argument of ResNet18 'dilation'"):
        ModelSpec("ResNet18", {"dilation": 2}).build()


@pytest.mark.parametrize(
    "model, sentence",
    [
        ("ResNet20(classes=4)", "classes can't be set on a network that is to be trained; .* the data set's classes"),
        ("ResNet20(input_shape=(8, 8, 3))", "input_shape can't be set .*--set image_size=224"),
        ("GoogLeNet(auxiliary=true)", "auxiliary can't be set .* the recipe googlenet"),
        ("ResNet20(include_top=false)", "include_top can't be set .* training takes the whole classifier"),
        (ModelSpec("ResNet20", {"name": "mine"}), "name can't be set"),
    ],
)
def test_what_a_training_settles_is_not_set_on_its_network(model, sentence):
    with pytest.raises(UserError, match=sentence):
        make_plan(model, "digits", None, None, None)


def test_the_configuration_of_a_run_names_the_network_as_before_and_its_arguments_behind():
    def named(model):
        return make_plan(model, "digits", "resnet_cifar", None, None, sampled=True).config()["model"]

    assert named("ResNet20") == "ResNet20"
    assert named("ResNet18(shortcut=A)") == named(ModelSpec("ResNet18", {"shortcut": "A"})) == "ResNet18(shortcut='A')"


def test_the_trainer_gives_the_builder_the_specs_arguments(monkeypatch, tmp_path):
    given = []

    def network(name, *, shortcut, **arguments):
        given.append((name, shortcut))
        return tiny.network(name, **arguments)

    monkeypatch.setattr(trainer, "get_model", network)
    command = ["train", "--model", "resnet18", "--set-model", "shortcut=A", "--recipe", "resnet_cifar"]
    command += ["--dataset", "digits", "--run", str(tmp_path / "run"), "--set", "iterations=1"]
    assert main(command) == 0
    assert given == [("ResNet18", "A")]
    assert training.Run(tmp_path / "run").config()["model"] == "ResNet18(shortcut='A')"


@pytest.fixture(scope="module")
def run_of_depth_8(tmp_path_factory):
    path = tmp_path_factory.mktemp("depth_8") / "run"
    command = ["train", "--model", "CIFARResNet", "--set-model", "depth=8", "--dataset", "digits", "--run", str(path)]
    assert main([*command, "--set", "iterations=2", "--set", "batch_size=8"]) == 0
    return path


def test_a_network_of_any_depth_is_trained_and_its_card_builds_it_again(run_of_depth_8):
    run = training.Run(run_of_depth_8)
    card = run.card()
    assert (card.architecture, card.arguments) == ("CIFARResNet", {"classes": 10, "input_shape": [8, 8, 3], "depth": 8})
    trained, again = run.model(), card.build()
    assert again.to_json() == trained.to_json() and again.built_as == trained.built_as
    again.set_weights(trained.get_weights())
    images = keras.ops.ones((1, 8, 8, 3)) * 100
    assert keras.ops.all(again(images) == trained(images))


def test_a_run_goes_on_with_its_own_spec_alone(run_of_depth_8, capsys):
    def train(*model):
        command = ["train", "--model", *model, "--dataset", "digits", "--run", str(run_of_depth_8)]
        return main([*command, "--set", "iterations=2", "--set", "batch_size=8"])

    assert train("CIFARResNet(8)") == 0  # the same network, written otherwise
    assert train("CIFARResNet", "--set-model", "depth=14") == 2
    sentence = "was started with model = 'CIFARResNet(depth=8)', not 'CIFARResNet(depth=14)'"
    assert sentence in capsys.readouterr().err


def test_a_run_of_any_depth_is_exported(run_of_depth_8, verified_here, tmp_path):
    folder = export.publish(run_of_depth_8, name="eight", to=tmp_path, formats=("saved_model",))
    card = ModelCard.read(folder / "assets.extra")
    assert (card.architecture, card.arguments["depth"]) == ("CIFARResNet", 8)
    assert card.build().built_as == training.Run(run_of_depth_8).model().built_as


def test_info_and_export_take_a_networks_arguments(capsys, monkeypatch, run_of_depth_8):
    assert main(["info", "CIFARResNet(8)", "--json"]) == 0
    eight = json.loads(capsys.readouterr().out)
    assert (eight["name"], eight["depth"], len(eight["layers"])) == ("CIFARResNet(depth=8)", 8, 8)
    # Option A has no projections: the weights are those of the plain network.
    assert main(["info", "ResNet18", "--set-model", "shortcut=A", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == keras_convnets.ARCHITECTURES["PlainNet18"].parameters

    def publish(source, **arguments):
        raise UserError(f"got {source.built_as.arguments['depth']}")

    monkeypatch.setattr(export, "publish", publish)
    assert main(["export", "CIFARPlainNet", "--set-model", "depth=8"]) == 2
    assert "got 8" in capsys.readouterr().err
    assert main(["export", str(run_of_depth_8), "--set-model", "depth=8"]) == 2
    assert "whose network is made already" in capsys.readouterr().err
    assert main(["evaluate", "CIFARResNet(8)", "--dataset", "digits"]) == 2
    assert "CIFARResNet(8) names a network without weights" in capsys.readouterr().err
