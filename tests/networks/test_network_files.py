"""Networks saved and loaded, also in a fresh process; files of another network are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from network_checks import (
    FEW,
    IMAGENET,
    QUICK,
    as_numpy,
    built,
    digest,
    images_of,
    load_in_a_fresh_process,
    own_preset,
    randomise,
    smallest,
    unsaturate,
)

from keras_convnets import (
    CIFARResNet,
    Preprocessing,
    get_model,
)
from keras_convnets.errors import UserError

# Files of a hundred megabytes are for the heavy run.
FILES = ["ResNet20", "GoogLeNet"]
FIRST = [*FEW, "AlexNet", "GoogLeNet", "ResNet18"]
OTHERS = [FIRST, [name for name in QUICK if name not in FEW], *([name] for name in IMAGENET if name not in FIRST)]


@pytest.mark.parametrize(
    "names, first, second",
    [
        (FILES, "keras", "keras_convnets"),
        *(pytest.param(names, "keras_convnets", "keras", marks=pytest.mark.heavy) for names in OTHERS),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value,
)
def test_keras_files_in_a_fresh_process(names, first, second, tmp_path):
    """Networks with random weights, saved and loaded in a process that knows nothing of them.

    Keras finds the layers whichever package is imported first.
    """
    images, expected = images_of(64, 64), {}
    for name in names:
        side = 32 if name in QUICK else smallest(name)
        own = {"preprocessing": own_preset("BGR, std and mean image", (side, side))} if name in QUICK else {}
        model = get_model(name, input_shape=(side, side, 3), classes=3, **own)
        randomise(model)
        unsaturate(model)
        path = tmp_path / f"{name}.keras"
        model.save(path)
        structure = hashlib.sha256(model.to_json().encode()).hexdigest()
        expected[str(path)] = (digest(model), as_numpy(model(images[:, :side, :side])), structure)
    found, _ = load_in_a_fresh_process(images, [Path(path) for path in expected], first, second)
    for path, (weights, outputs, structure) in expected.items():
        assert found[path][0] == weights, path
        assert found[path][2] == structure, path
        np.testing.assert_allclose(found[path][1], outputs, rtol=1e-4, atol=1e-6, err_msg=path)
        Path(path).unlink()  # pytest keeps what is left


@pytest.mark.parametrize(
    "name", [name if name == "ResNet20" else pytest.param(name, marks=pytest.mark.heavy) for name in QUICK]
)
@pytest.mark.parametrize("kind, suffix", [
    (str, ".weights.h5"),
    (Path, ".keras"),
    pytest.param(str, ".keras", marks=pytest.mark.heavy),
    pytest.param(Path, ".weights.h5", marks=pytest.mark.heavy),
])  # fmt: skip
def test_weights_argument(name, suffix, kind, tmp_path):
    path = tmp_path / f"file{suffix}"
    (built(name).save if suffix == ".keras" else built(name).save_weights)(path)
    assert digest(get_model(name, weights=kind(path))) == digest(built(name))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that are not what ResNet20 with ten classes wants."""
    folder = tmp_path_factory.mktemp("files")
    built("ResNet32").save_weights(folder / "deeper.weights.h5")
    CIFARResNet(14).save_weights(folder / "shallower.weights.h5")
    built("ResNet32").save(folder / "deeper.keras")
    # It has the same weights, but adds no shortcuts.
    built("PlainNet20").save(folder / "plain.keras")
    for name in ("broken.weights.h5", "broken.keras"):
        (folder / name).write_bytes(b"this is no weights file")
    (folder / "folder.keras").mkdir()
    (folder / "other.txt").write_text("text")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "deeper.weights.h5",
        "shallower.weights.h5",
        "deeper.keras",
        "plain.keras",
        "broken.weights.h5",
        "broken.keras",
        "folder.keras",
        "other.txt",
    ],
)
@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_another_networks_weights_are_refused(files, name):
    with pytest.raises(UserError) as caught:
        get_model("ResNet20", weights=files / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_keras_files_preprocessing_comes_with_its_weights(tmp_path):
    preset = own_preset("BGR, std and mean image", (8, 8))
    model = CIFARResNet(8, input_shape=(8, 8, 3), preprocessing=preset)
    model.save(tmp_path / "model.keras")

    def loaded(**arguments):
        return CIFARResNet(8, weights=tmp_path / "model.keras", input_shape=(8, 8, 3), **arguments)

    assert loaded().get_layer("preprocessing").preprocessing == preset
    # Unless another is asked for.
    own = Preprocessing((1, 2, 3))
    assert loaded(preprocessing=own).get_layer("preprocessing").preprocessing == own
    assert digest(loaded(include_preprocessing=False)) == digest(model)
