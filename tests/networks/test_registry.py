"""The registry against the papers' tables, and what importing the package costs. Only the last tests need Keras."""

import ast
import dataclasses
import importlib
import inspect
import json
import pickle
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import keras_convnets
from keras_convnets.errors import UserError, unknown_name
from keras_convnets.networks.registry import ARCHITECTURES, BUILDERS, get_architecture, get_model, list_models
from keras_convnets.networks.table import FAMILIES

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


def kernels(*rows):
    """Sum (parameters, multiply-adds) over rows of (kernel side, maps in, maps out, side of the output map).

    Every filter has one bias.
    """
    parameters = sum(kernel * kernel * before * after + after for kernel, before, after, _ in rows)
    return parameters, sum(kernel * kernel * before * after * side * side for kernel, before, after, side in rows)


def alexnet_numbers(name):
    """AlexNet paper, figure 2: the kernels of conv2, conv4 and conv5 reach the maps of their own GPU only."""
    towers = 1 if name == "AlexNetOneTower" else 2
    rows = [
        (11, 3, 96, 55),
        (5, 96 // towers, 256, 27),
        (3, 256, 384, 13),
        (3, 384 // towers, 384, 13),
        (3, 384 // towers, 256, 13),
    ]
    if name == "AlexNetSixConvs":
        rows += [(3, 256, 256, 6)]
    rows += [(1, 6 * 6 * 256, 4096, 1), (1, 4096, 4096, 1), (1, 4096, 1000, 1)]
    return *kernels(*rows), len(rows)


def vgg_numbers(name):
    """VGG paper, table 1, columns A, B, D and E: the convolutions before each of the five poolings."""
    columns = {
        "VGG11": "64 | 128 | 256 256 | 512 512 | 512 512",
        "VGG13": "64 64 | 128 128 | 256 256 | 512 512 | 512 512",
        "VGG16": "64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512",
        "VGG19": "64 64 | 128 128 | 256 256 256 256 | 512 512 512 512 | 512 512 512 512",
    }
    rows, channels = [], 3
    for side, widths in zip((224, 112, 56, 28, 14), columns[name].split(" | "), strict=True):
        for width in map(int, widths.split()):
            rows.append((3, channels, width, side))
            channels = width
    rows += [(1, 7 * 7 * 512, 4096, 1), (1, 4096, 4096, 1), (1, 4096, 1000, 1)]
    return *kernels(*rows), len(rows)


# GoogLeNet paper, table 1: side, maps in, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj; ops in millions.
INCEPTION = {
    "3a": ((28, 192, 64, 96, 128, 16, 32, 32), 128),
    "3b": ((28, 256, 128, 128, 192, 32, 96, 64), 304),
    "4a": ((14, 480, 192, 96, 208, 16, 48, 64), 73),
    "4b": ((14, 512, 160, 112, 224, 24, 64, 64), 88),
    "4c": ((14, 512, 128, 128, 256, 24, 64, 64), 100),
    "4d": ((14, 512, 112, 144, 288, 32, 64, 64), 119),
    "4e": ((14, 528, 256, 160, 320, 32, 128, 128), 170),
    "5a": ((7, 832, 256, 160, 320, 32, 128, 128), 54),
    "5b": ((7, 832, 384, 192, 384, 48, 128, 128), 71),
}


def inception(side, before, n1, reduce3, n3, reduce5, n5, projection):
    branches = ((1, before, n1), (1, before, reduce3), (3, reduce3, n3), (1, before, reduce5), (5, reduce5, n5))
    return kernels(*((*branch, side) for branch in (*branches, (1, before, projection))))


def googlenet_numbers(name):
    """GoogLeNet paper, table 1: two layers to an Inception module, the auxiliary heads not counted."""
    parts = [kernels((7, 3, 64, 112), (1, 64, 64, 56), (3, 64, 192, 56), (1, 1024, 1000, 1))]
    parts += [inception(*row) for row, _ in INCEPTION.values()]
    parameters, multiply_adds = map(sum, zip(*parts, strict=True))
    return parameters, multiply_adds, 1 + 2 + 2 * len(INCEPTION) + 1


def resnet_numbers(name):
    """ResNet paper, table 1, option B: a projection where a stage's first block changes size or width."""
    depth = int(re.match(r"(?:ResNet|PlainNet)(\d+)", name).group(1))
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    # (kernel side, maps in, maps out, side of the output map), none with a bias, each with gamma and beta
    rows, projections = [(7, 3, 64, 112)], []
    channels, before = 64, 56
    for count, filters, side in zip(counts, (64, 128, 256, 512), (56, 28, 14, 7), strict=True):
        for _ in range(count):
            if depth < 50:
                after = filters
                rows += [(3, channels, filters, side), (3, filters, filters, side)]
            else:
                after = 4 * filters
                # The variant's first 1x1 convolution still sees the larger map.
                first = before if name.endswith("v1_5") else side
                rows += [(1, channels, filters, first), (3, filters, filters, side), (1, filters, after, side)]
            if channels != after and name.startswith("ResNet"):
                projections.append((1, channels, after, side))
            channels, before = after, side
    parameters, multiply_adds = kernels(*rows, *projections)
    # Beta is where the bias would be; gamma is one more.
    parameters += sum(after for _, _, after, _ in rows + projections)
    return parameters + channels * 1000 + 1000, multiply_adds + channels * 1000, len(rows) + 1


FORMULAS = {
    "keras_convnets.networks.alexnet": alexnet_numbers,
    "keras_convnets.networks.vgg": vgg_numbers,
    "keras_convnets.networks.googlenet": googlenet_numbers,
    "keras_convnets.networks.resnet": resnet_numbers,
    "keras_convnets.networks.resnet_cifar": cifar_numbers,
}

# Multiply-adds as printed, 1e9: ResNet paper, table 1 and section 3.3.
PRINTED_MULTIPLY_ADDS = {
    "ResNet18": 1.8,
    "ResNet34": 3.6,
    "PlainNet34": 3.6,
    "ResNet50": 3.8,
    "ResNet101": 7.6,
    "ResNet152": 11.3,
    "VGG16": 15.3,
    "VGG19": 19.6,
}

TEN, ONE = "ten crops", "one crop"
SCALES = "fully convolutional at scales 224, 256, 384, 480, 640"

# Errors on ImageNet 2012 val as printed: (protocol, top-1, top-5) in percent, table, what the note must say.
PRINTED_ERRORS = {
    "AlexNet": [(TEN, 40.7, 18.2, "Table 2", "1 CNN")],
    "AlexNetOneTower": [],
    "AlexNetSixConvs": [(TEN, 39.0, 16.6, "Table 2", "pre-trained")],
    "VGG11": [],
    "VGG13": [],
    "VGG16": [(TEN, 28.07, 9.33, "He et al. 2015, table 3", "")],
    "VGG19": [],
    "GoogLeNet": [
        (ONE, None, 10.07, "Table 3", ""),
        (TEN, None, 9.15, "Table 3", ""),
        ("144 crops", None, 7.89, "Table 3", ""),
    ],
    "ResNet18": [(TEN, 27.88, None, "Table 2", "shortcut A")],
    "ResNet34": [
        (TEN, 25.03, 7.76, "Table 3", "shortcut A"),
        (TEN, 24.52, 7.46, "Table 3", "shortcut B"),
        (TEN, 24.19, 7.40, "Table 3", "shortcut C"),
        (SCALES, 21.84, 5.71, "Table 4", "shortcut B"),
        (SCALES, 21.53, 5.60, "Table 4", "shortcut C"),
    ],
    "ResNet50": [(TEN, 22.85, 6.71, "Table 3", ""), (SCALES, 20.74, 5.25, "Table 4", "")],
    "ResNet101": [(TEN, 21.75, 6.05, "Table 3", ""), (SCALES, 19.87, 4.60, "Table 4", "")],
    "ResNet152": [(TEN, 21.43, 5.71, "Table 3", ""), (SCALES, 19.38, 4.49, "Table 4", "")],
    "PlainNet18": [(TEN, 27.94, None, "Table 2", "")],
    "PlainNet34": [(TEN, 28.54, 10.02, "Table 3", "")],
    # No paper printed these.
    "ResNet50v1_5": [],
    "ResNet101v1_5": [],
    "ResNet152v1_5": [],
}

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


@pytest.mark.parametrize("name", PRINTED_MULTIPLY_ADDS)
def test_multiply_adds_agree_with_what_the_paper_prints(name):
    assert ARCHITECTURES[name].multiply_adds == pytest.approx(PRINTED_MULTIPLY_ADDS[name] * 1e9, rel=0.02)


def test_alexnet_has_60_million_parameters():
    assert ARCHITECTURES["AlexNet"].parameters == pytest.approx(60e6, rel=0.02)


# The 54M printed for 5a are not what its row gives: it has the widths of 4e on 832 maps.
@pytest.mark.parametrize("module", sorted(set(INCEPTION) - {"5a"}))
def test_the_inception_formula_gives_the_papers_ops(module):
    row, millions = INCEPTION[module]
    assert inception(*row)[1] == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize("name", [name for name, entry in ARCHITECTURES.items() if entry.classes == 1000])
def test_imagenet_errors_are_the_papers(name):
    def row(error):
        return error.protocol, error.top1, error.top5, error.source

    published, printed = ARCHITECTURES[name].published, PRINTED_ERRORS[name]
    assert {row(error) for error in published} == {wanted[:4] for wanted in printed}
    assert len(published) == len(printed)
    assert all(error.data == "ImageNet 2012 val" for error in published)
    notes = {row(error): error.note for error in published}
    assert all(wanted[4] in notes[wanted[:4]] for wanted in printed)


def test_the_networks_for_imagenet_are_all_there():
    found = {name for name, entry in ARCHITECTURES.items() if entry.module != "keras_convnets.networks.resnet_cifar"}
    assert found == set(PRINTED_ERRORS)
    assert all(ARCHITECTURES[name].input_shape == (224, 224, 3) for name in found)


def test_the_networks_of_section_4_2_are_all_there():
    depths = (20, 32, 44, 56, 110)
    wanted = {*(f"ResNet{depth}" for depth in (*depths, 1202)), *(f"PlainNet{depth}" for depth in depths)}
    found = {name for name, entry in ARCHITECTURES.items() if entry.module == "keras_convnets.networks.resnet_cifar"}
    assert found == wanted


def test_the_paper_gives_no_figures_for_plain_networks_on_cifar():
    plain = [ARCHITECTURES[name] for name in list_models("PlainNet*") if ARCHITECTURES[name].classes == 10]
    assert len(plain) == 5 and not any(entry.published for entry in plain)
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
        ("vgg*", ["VGG11", "VGG13", "VGG16", "VGG19"]),
        ("*v1_5", ["ResNet50v1_5", "ResNet101v1_5", "ResNet152v1_5"]),
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
    from keras_convnets import ResNet20
    from keras_convnets.networks import resnet_cifar

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


def guarded_imports(module):
    """What a module imports for type checkers alone: {name: its home}, names of `import *` by its `__all__`."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    guards = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    (guarded,) = [node for node in guards if node.test.id == "TYPE_CHECKING"]
    seen = {}
    for line in guarded.body:
        home = importlib.import_module(line.module)
        if [alias.name for alias in line.names] != ["*"]:
            # Type checkers take a name for public that is imported as itself.
            assert all(alias.asname == alias.name for alias in line.names)
            seen |= {alias.name: home for alias in line.names}
        else:
            seen |= {name: home for name in home.__all__} if hasattr(home, "__all__") else guarded_imports(home)
    return seen


def test_editors_see_every_lazy_name():
    seen = guarded_imports(keras_convnets)
    assert set(seen) == set(keras_convnets.__all__) - {"__version__", "get_model", "list_models"}
    for name, home in seen.items():
        assert getattr(home, name) is getattr(keras_convnets, name)


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


def test_a_builder_takes_its_arguments_as_keras_applications_do():
    model = keras_convnets.ResNet20(True, None, None, (8, 8, 3), None, 5)
    assert (model.input_shape, model.output_shape, model.name) == ((None, 8, 8, 3), (None, 5), "resnet20")
    with pytest.raises(TypeError, match=r"^ResNet20\(\) got an unexpected keyword argument 'shortcut'"):
        keras_convnets.ResNet20(shortcut="A")
    with pytest.raises(TypeError, match=r"^CIFARResNet\(\) missing a required argument: 'depth'"):
        keras_convnets.CIFARResNet()


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_is_an_ordinary_function_with_types_and_help(name):
    import keras

    builder = getattr(keras_convnets, name)
    assert inspect.isfunction(builder) and pickle.loads(pickle.dumps(builder)) is builder
    signature, hints = inspect.signature(builder), typing.get_type_hints(builder)
    assert hints == {key: item.annotation for key, item in signature.parameters.items()}
    assert hints["classes"] is int and hints["include_top"] is bool and signature.return_annotation is keras.Model
    # Where it stands in its family's file, its own docstring is one sentence with the source.
    source = inspect.getsource(builder)
    assert f"def {name}(common: Common" in source and re.search(r'"""[^\n]+\."""\n', source)
    summary, _, rest = inspect.getdoc(builder).partition("\n\n")
    assert f'"""{summary}"""' in source and all(f"\n    {key}: " in rest for key in signature.parameters)
    for key, literals in (("shortcut", ("A", "B", "C")), ("pooling", ("avg", "max", None))):
        if key in hints:
            given = typing.get_args(hints[key])
            assert given == literals or given == (typing.Literal[literals[:2]], type(None))


def test_every_public_name_of_a_familys_file_is_a_builder_of_the_table():
    for family in FAMILIES:
        public = set(importlib.import_module(family.path).__all__) - {"without_auxiliary"}
        assert public == {name for name, own in BUILDERS.items() if own is family}
