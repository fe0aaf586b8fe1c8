"""The core alone builds, loads and predicts; what needs an extra says so in one sentence before it begins."""

from __future__ import annotations

import configparser
import json
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from keras_convnets.extras import EXTRAS, MissingExtra, require

ROOT = Path(__file__).parent.parent
# Takes the modules that are blocked, and prints what each that needs an extra says.
CORE = """
import contextlib, io, json, os, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None  # as if it were not installed
import numpy as np
import keras_convnets
from keras_convnets.commands.main import main
from keras_convnets.images.files import encode_png
shape = {"classes": 3, "input_shape": (8, 8, 3)}
model = keras_convnets.CIFARResNet(8, **shape)
model.save("tiny.keras")
again = keras_convnets.CIFARResNet(8, weights="tiny.keras", **shape)
images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
probabilities = model.predict(images, verbose=0)
assert probabilities.shape == (2, 3) and (again.predict(images, verbose=0) == probabilities).all()
with open("image.png", "wb") as file:
    file.write(encode_png(images[0]))
os.makedirs("saved_models/m/1")
for empty in ("model.onnx", "saved_models/m/1/saved_model.pb"):
    open(empty, "w").close()
with contextlib.redirect_stdout(io.StringIO()) as shown:
    assert main(["predict", "image.png", "--model", "tiny.keras"]) == main(["models", "ResNet2*"]) == 0
assert "image.png" in shown.getvalue() and "269,722" in shown.getvalue()
from keras_convnets import export, training
from keras_convnets.export import serving
said = {}
for name, ask in {
    "fit": lambda: training.fit, "publish": lambda: export.publish, "Client": lambda: export.Client,
    "ModelServer": lambda: serving.ModelServer, "load": lambda: export.load("model.onnx"),
}.items():
    try:
        said[name] = repr(ask())
    except ValueError as error:
        said[name] = str(error)
for command in (
    "train --model ResNet20 --dataset digits --run r", "evaluate tiny.keras --dataset digits", "export tiny.keras",
    "serve .", "predict image.png --url http://h/m", "repo rollback m --version 1",
    "predict image.png --model model.onnx", "quickstart",
):
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        status = main(command.split())
    said[command] = f"{status} {shown.getvalue()}"
print(json.dumps(said))
"""


def required(section: str, key: str) -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return [Requirement(line) for line in config[section][key].splitlines() if line and not line.startswith("#")]


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def beyond_the_core() -> list[str]:
    """Return the modules that are installed here and that nothing brings which the core requires."""
    brought, queue = set(), [normal(item.name) for item in required("options", "install_requires")]
    while queue:
        name = queue.pop()
        if name not in brought:
            brought.add(name)
            needed = map(Requirement, metadata.requires(name) or ())
            queue += [normal(item.name) for item in needed if not item.marker or item.marker.evaluate({"extra": ""})]
    modules = metadata.packages_distributions()
    return [module for module, names in modules.items() if not brought & set(map(normal, names))]


def test_the_core_works_alone_and_says_what_is_missing(run_python, tmp_path):
    # The package itself is installed here, and what is brought by nothing but the tests' own start.
    blocked = [name for name in beyond_the_core() if "keras_convnets" not in name and not name.startswith("_")]
    assert {"matplotlib", "sklearn", "tensorflow_datasets", "tf2onnx", "onnxruntime", "uvicorn"} <= set(blocked)
    assert not {"keras", "tensorflow", "onnx", "PIL"} & set(blocked)
    process = run_python("-c", CORE, json.dumps(blocked), cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    said = json.loads(process.stdout)

    def sentence(doing: str, distribution: str, extra: str) -> str:
        install = f"run: pip install 'keras-convnets[{extra}]'"
        return f"{doing} needs {distribution}, which is not installed; {install}"

    client, onnx = sentence("the client", "grpcio-health-checking", "serving"), "an ONNX file needs onnxruntime"
    server, training = sentence("the local server", "grpcio-health-checking", "serving"), "needs matplotlib"
    assert said["fit"] == sentence("training", "matplotlib", "train")
    assert said["publish"] == sentence("exporting", "onnxruntime", "export")
    assert (said["Client"], said["ModelServer"]) == (client, server)
    assert said["load"] == sentence("an ONNX file", "onnxruntime", "export")
    assert said["serve ."] == f"2 keras-convnets: {server}\n"
    assert said["predict image.png --url http://h/m"] == f"2 keras-convnets: {client}\n"
    for command, words in (("train", training), ("evaluate", training), ("export", "exporting needs onnxruntime"),
                           ("repo", "needs tensorflow-serving-api"), ("predict image.png --model", onnx),
                           ("quickstart", "the quickstart needs matplotlib")):  # fmt: skip
        (line,) = (text for given, text in said.items() if given.startswith(command) and "--url" not in given)
        assert line.startswith("2 keras-convnets: ") and line.count("\n") == 1 and words in line, line
        assert "pip install 'keras-convnets[" in line


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extras_are_those_of_the_installation(extra):
    assert sorted(EXTRAS[extra].values()) == sorted(item.name for item in required("options.extras_require", extra))
    (everything,) = required("options.extras_require", "all")
    assert (everything.name, extra in everything.extras) == ("keras-convnets", True)


def test_what_is_installed_is_not_asked_for(monkeypatch):
    monkeypatch.setitem(EXTRAS, "made", {"json": "json", "no_such_module": "no-such-thing"})
    require("made", "a test", "json")
    with pytest.raises(MissingExtra, match=r"a test needs no-such-thing, .* 'keras-convnets\[made\]'"):
        require("made", "a test")
