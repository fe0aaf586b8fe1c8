"""The pages say what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import keras
import numpy as np

import keras_convnets

ROOT = Path(__file__).parent.parent


def test_the_page_of_models_is_the_registrys():
    spec = importlib.util.spec_from_file_location("make_models_page", ROOT / "docs" / "make_models_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run make docs"
    assert all(f"| {name} |" in module.page() for name in keras_convnets.list_models())


def test_the_weights_recipe_for_a_keras_twin_works():
    """The code block of the page, run as it stands, on a network with randomised biases and statistics."""
    text = (ROOT / "docs" / "from-keras-applications.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    rng = np.random.default_rng(0)
    theirs = keras.applications.ResNet50(weights=None, classes=10, input_shape=(64, 64, 3))
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights(
                [rng.uniform(0.3, 0.6, shape), *rng.normal(0, 0.1, (2, *shape)), rng.uniform(0.5, 2, shape)]
            )
        elif isinstance(layer, keras.layers.Conv2D):
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))
    ours = keras_convnets.ResNet50(classes=10, input_shape=(64, 64, 3), include_preprocessing=False)
    carrying = block[block.index("for layer in theirs.layers") :]
    exec(carrying, {"keras": keras, "theirs": theirs, "ours": ours})  # the page's own lines
    images = rng.normal(0, 1, (2, 64, 64, 3)).astype(np.float32)
    expected = theirs.predict(images, verbose=0)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(ours.predict(images, verbose=0), expected, atol=1e-5)


def test_the_network_for_greyscale_of_16_bits_works():
    text = (ROOT / "docs" / "from-keras-applications.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    made = {}
    exec(block.replace("224", "32"), made)  # the page's own lines, smaller
    images = np.random.default_rng(0).integers(0, 65536, (2, 32, 32, 1), np.uint16)
    model = made["model"]
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert np.isfinite(model.train_on_batch(images, np.array([0, 1])))
    assert model.predict(images, verbose=0).shape == (2, 2)


def test_the_readme_shows_the_two_commands_and_every_dependency():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.index("make quickstart") < readme.index("make test") < 800
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    required = re.search(r"install_requires =\n(.*?)\n\n", setup, re.DOTALL)[1]
    extras = re.search(r"\[options.extras_require\]\n(.*?)\n\n", setup, re.DOTALL)[1]
    names = re.findall(r"^    ([a-zA-Z0-9_-]+)", f"{required}\n{extras}", re.MULTILINE)
    table = readme[readme.index("## What it needs") :]
    missing = [name for name in names if name not in table]
    assert len(names) > 15 and not missing, missing
