"""The registry against the papers' tables, and what importing the package costs. Only the last tests need Keras."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_convnets
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.registry import ARCHITECTURES, get_architecture, get_model, list_models

NAMES = list(ARCHITECTURES)

# A network built with the Keras applications' arguments: these, in this order, before any of its own.
APPLICATIONS_ARGUMENTS = {
    "include_top": True,
    "weights": None,
    "input_tensor": None,
    "input_shape": None,
    "pooling": None,
    "classes": 10,
    "classifier_activation": "softmax",
    "name": None,
}


def cifar_numbers(name):
    """ResNet paper, section 4.2: (parameters, multiply-adds, depth) by the table of output sizes, layers, filters."""
    depth = int(re.fullmatch(r"(?:ResNet|PlainNet)(\d+)", name).group(1))
    n = (depth - 2) // 6
    table = ((32, 1 + 2 * n, 16), (16, 2 * n, 32), (8, 2 * n, 64))
    parameters = multiply_adds = layers = 0
    channels = 3
    for side, count, filters in table:
        for _ in range(count):
            kernel = 3 * 3 * channels * filters  # no bias: batch normalisation's beta is one
            parameters += kernel + 2 * filters  # gamma and beta
            multiply_adds += kernel * side * side
            channels = filters
        layers += count
    # Option A has no weights, so the 10-way linear layer is all that is left.
    return parameters + 64 * 10 + 10, multiply_adds + 64 * 10, layers + 1


FORMULAS = {"keras_convnets.resnet_cifar": cifar_numbers}

# ResNet paper, Table 6: parameters in millions, error in percent.
TABLE_6 = {
    "ResNet20": (0.27, 8.75),
    "ResNet32": (0.46, 7.51),
    "ResNet44": (0.66, 7.17),
    "ResNet56": (0.85, 6.97),
    "ResNet110": (1.7, 6.43),
    "ResNet1202": (19.4, 7.93),
}


@pytest.mark.parametrize("name", NAMES)
def test_numbers_follow_from_the_papers_table(name):
    entry = ARCHITECTURES[name]
    assert entry.module in FORMULAS, f"{name} needs a formula over its paper's table in this file"
    assert (entry.parameters, entry.multiply_adds, entry.depth) == FORMULAS[entry.module](name)


@pytest.mark.parametrize("name", TABLE_6)
def test_numbers_agree_with_what_the_paper_prints(name):
    millions, error = TABLE_6[name]
    assert ARCHITECTURES[name].parameters == pytest.approx(millions * 1e6, rel=0.02)
    (published,) = ARCHITECTURES[name].published
    assert (published.top1, published.data, published.source) == (error, "CIFAR-10 test", "Table 6")
    assert "single view" in published.protocol


def test_the_networks_of_section_4_2_are_all_there():
    depths = (20, 32, 44, 56, 110)
    wanted = {*(f"ResNet{depth}" for depth in (*depths, 1202)), *(f"PlainNet{depth}" for depth in depths)}
    found = {name for name, entry in ARCHITECTURES.items() if entry.module == "keras_convnets.resnet_cifar"}
    assert found == wanted


def test_the_paper_gives_no_figures_for_plain_networks():
    assert all(not ARCHITECTURES[name].published for name in list_models("PlainNet*"))
    assert "6.61" in ARCHITECTURES["ResNet110"].published[0].note  # the mean of five runs stands beside their best


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_whole(name):
    entry = ARCHITECTURES[name]
    assert entry.name == name
    assert re.search(r"\b(19|20)\d\d\b", entry.paper) and entry.section
    assert len(entry.input_shape) == 3 and entry.input_shape[2] == 3


def test_the_registry_is_read_only():
    with pytest.raises(TypeError):
        ARCHITECTURES["ResNet20"] = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        ARCHITECTURES["ResNet20"].parameters = 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
def test_capital_letters_do_not_matter(name, spelling):
    assert get_architecture(spelling(name)) is ARCHITECTURES[name]


@pytest.mark.parametrize(
    "wrong, near", [("ResNet21", "ResNet20"), ("plain net 56", "PlainNet56"), ("resnet_110", "ResNet110")]
)
@pytest.mark.parametrize("look_up", [get_architecture, get_model])
def test_an_unknown_model_names_the_nearest(look_up, wrong, near):
    with pytest.raises(UserError) as caught:
        look_up(wrong)
    sentence = str(caught.value)
    assert repr(wrong) in sentence and "nearest" in sentence and "\n" not in sentence
    assert near in re.split(r"[ ,;.]+", sentence)


def test_a_name_near_to_none_gets_them_all():
    with pytest.raises(UserError) as caught:
        get_architecture("qqqq")
    assert "nearest" not in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)


def test_one_near_name_is_told_in_the_singular():
    error = unknown_name("model", "alpga", ["alpha", "omega42"], "see the list")
    assert str(error) == "unknown model 'alpga'; the nearest valid name is alpha; see the list."


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("*", NAMES),
        ("plain*0", ["PlainNet20", "PlainNet110"]),
        ("RESNET?2", ["ResNet32"]),
        ("resnet20", ["ResNet20"]),
        ("resnet2", []),
    ],
)
def test_list_models(pattern, found):
    assert list_models(pattern) == found


def run_python(code):
    """Run code in a fresh interpreter and return what it prints as JSON."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_importing_is_light():
    seconds, modules = run_python(
        "import json, sys, time\n"
        "start = time.perf_counter()\n"
        "import keras_convnets\n"
        "keras_convnets.list_models(); dir(keras_convnets); keras_convnets.ARCHITECTURES['ResNet20'].parameters\n"
        "print(json.dumps([time.perf_counter() - start, list(sys.modules)]))"
    )
    heavy = {"keras", "tensorflow", "numpy", "jax", "torch", "onnx", "h5py", "matplotlib", "PIL", "rich", "sklearn"}
    assert not heavy & set(modules)
    assert seconds < 1.0


def test_a_builder_can_be_imported_from_the_package():
    from keras_convnets import ResNet20, resnet_cifar

    assert ResNet20 is resnet_cifar.ResNet20


@pytest.mark.parametrize("name", keras_convnets.__all__)
def test_every_public_name_resolves(name):
    assert getattr(keras_convnets, name) is not None
    assert name in dir(keras_convnets)


def test_every_builder_is_public():
    names = {}
    exec("from keras_convnets import *", names)
    assert all(names[name] is getattr(keras_convnets, name) for name in NAMES)
    assert set(NAMES) <= set(keras_convnets.__all__)
    assert len(set(keras_convnets.__all__)) == len(keras_convnets.__all__)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="ResNet21"):
        keras_convnets.ResNet21  # noqa: B018


def test_editors_see_every_lazy_name():
    tree = ast.parse(Path(keras_convnets.__file__).read_text(encoding="utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING"]
    seen = {alias.asname: (line.module, alias.name) for line in guarded.body for alias in line.names}
    assert set(seen) == set(keras_convnets.__all__) - {"__version__", "get_model", "list_models"}
    for name, (module, original) in seen.items():
        assert original == name
        assert getattr(importlib.import_module(module), name) is getattr(keras_convnets, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_builder_has_the_applications_signature(name):
    entry = ARCHITECTURES[name]
    builder = getattr(importlib.import_module(entry.module), name)
    parameters = list(inspect.signature(builder).parameters.values())
    first, rest = parameters[: len(APPLICATIONS_ARGUMENTS)], parameters[len(APPLICATIONS_ARGUMENTS) :]
    wanted = {**APPLICATIONS_ARGUMENTS, "classes": entry.classes, "name": name.lower()}
    assert {parameter.name: parameter.default for parameter in first} == wanted
    assert [parameter.name for parameter in first] == list(APPLICATIONS_ARGUMENTS)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest)
    assert {"include_preprocessing", "preprocessing"} <= {parameter.name for parameter in rest}
    assert builder.__name__ == name and builder.__module__ == entry.module
    for section in ("Args:", "Returns:", "Raises:", *APPLICATIONS_ARGUMENTS):
        assert section in builder.__doc__
