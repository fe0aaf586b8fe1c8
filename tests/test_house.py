"""The package layout: which module imports which, and how many files a new network touches."""

from __future__ import annotations

import ast
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Folders of the checkout, and the names they are imported by.
PACKAGES = {
    "keras_convnets": "keras_convnets",
    "training": "keras_convnets.training",
    "export": "keras_convnets.export",
}
MODULES = {
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for folder, package in PACKAGES.items()
    for path in (ROOT / folder).rglob("*.py")
}


def imported(node: ast.AST) -> set[str]:
    """The modules of this package that a piece of code imports, also in functions; not under TYPE_CHECKING."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return set().union(*map(imported, node.orelse))
    found = set().union(*map(imported, ast.iter_child_nodes(node)))
    if isinstance(node, ast.Import):
        found |= {alias.name for alias in node.names} & MODULES.keys()
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            found |= {inner if inner in MODULES else node.module} & MODULES.keys()
    return found


IMPORTS = {
    name: imported(ast.parse(path.read_text(encoding="utf-8"))) - {name} for name, path in sorted(MODULES.items())
}


def cycle_of(name: str, imports: dict[str, set[str]]) -> list[str] | None:
    """A shortest import cycle through a module, or None."""
    before = {inner: name for inner in imports[name]}
    waiting = list(before)
    for module in waiting:
        if module == name:
            path = [name]
            while (previous := before[path[-1]]) != name:
                path.append(previous)
            return [name, *path[::-1]]
        new = [inner for inner in sorted(imports[module]) if inner not in before]
        before |= dict.fromkeys(new, module)
        waiting += new
    return None


def test_a_cycle_is_found():
    imports = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}
    assert [cycle_of(name, imports) for name in "abd"] == [list("abca"), list("bcab"), None]
    code = "import keras_convnets.card\nif TYPE_CHECKING:\n    import keras_convnets.files\n"
    code += "def f():\n    from keras_convnets import classes\n    from keras_convnets.errors import UserError"
    assert imported(ast.parse(code)) == {f"keras_convnets.{name}" for name in ("card", "classes", "errors")}


def test_no_module_imports_itself_through_others():
    cycles = [" -> ".join(path) for name in IMPORTS if (path := cycle_of(name, IMPORTS))]
    assert not cycles, "\n".join(cycles)


def area_of(module: str) -> str:
    below = module.removeprefix("keras_convnets").removeprefix(".").partition(".")[0]
    if module == "keras_convnets.__main__":
        return "commands"
    return below if below in ("commands", "training", "export") else "applications"


def test_imports_between_the_areas_go_in_one_direction():
    allowed = {"applications": (), "training": ("applications",), "export": ("applications",)}
    for module, inner in IMPORTS.items():
        area = area_of(module)
        wrong = [other for other in inner if area_of(other) not in (area, *allowed.get(area, PACKAGES), "applications")]
        assert not wrong, f"{module} imports {', '.join(wrong)}"


def at_top_level(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return set().union(*(imported(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))))


@pytest.mark.parametrize("name", [name for name in MODULES if area_of(name) == "commands"])
def test_the_commands_import_the_other_areas_inside_functions_only(name):
    areas = {area_of(module) for module in at_top_level(MODULES[name])}
    assert areas <= {"commands", "applications"}


# A small family, like LeNet-5 at any size: it needs its own file and rows of the table only.
NETWORK = '''
"""A toy family."""

from __future__ import annotations

import keras
from keras import layers

from keras_convnets.images.preprocessing import CIFAR10
from keras_convnets.networks.application import Common, application, common_arguments

__all__ = ["ToyNet3"]


@application(common_arguments)
def ToyNet3(common: Common) -> keras.Model:
    """ToyNet-3 of nobody, table 0."""
    inputs, x = common.start((32, 32, 3), 8, CIFAR10)
    x = layers.Conv2D(6, 5, strides=2, activation="relu", name="toy1_conv")(x)
    x = layers.Conv2D(16, 3, activation="relu", name="toy2_conv")(x)
    if not common.include_top:
        return common.finish(inputs, common.without_top(x))
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return common.finish(inputs, common.classifier(x, "he_normal"))
'''
FAMILY = """_TOY = Family(
    module="toy",
    paper="Nobody: Toys, 1998",
    section="0",
    input_shape=(32, 32, 3),
    classes=1000,
    errors_on="CIFAR-10 test",
    recipe="vgg",
    stages=((r"(toy\\d)_conv", "{}"),),
    conventions={".h5": Convention("CAFFE_MEANS", input_shape=(40, 40, 3))},
)
_TEN_CROP"""
USES = """
import sys
from pathlib import Path
import keras_convnets
assert keras_convnets.__file__.startswith(sys.argv[1]), keras_convnets.__file__
assert keras_convnets.list_models("toy*") == ["ToyNet3"] and "ToyNet3" in dir(keras_convnets)
assert "keras" not in sys.modules

from keras_convnets import ModelSpec, ToyNet3, get_model, model_info, stages
assert ToyNet3.__module__ == "keras_convnets.networks.toy" and "pooling:" in ToyNet3.__doc__
model = get_model("toynet3", classes=7)
assert {name: stage.stride for name, stage in stages(model).items()} == {"toy1": 2, "toy2": 2}
assert model_info("ToyNet3").parameters == keras_convnets.ARCHITECTURES["ToyNet3"].parameters
assert model.built_as == ModelSpec("ToyNet3", {"classes": 7, "input_shape": [32, 32, 3]})

from keras_convnets.card import card_of_model
assert card_of_model(model).build().built_as == model.built_as

from keras_convnets.weights.loading import find_weights
Path("toy.h5").write_bytes(b"numbers")
weights = find_weights("toy.h5", "ToyNet3")
assert (weights.input_shape, len(weights.class_names)) == ((40, 40, 3), 1000)

from keras_convnets.training.recipes import default_recipe
assert default_recipe(ModelSpec.of("ToyNet3"), None) == "vgg"

from keras_convnets.commands.main import main
assert main(["models", "toy*"]) == main(["info", "ToyNet3"]) == 0
sys.path.insert(0, sys.argv[2])
import test_registry
test_registry.test_editors_see_every_lazy_name()
"""


def test_a_new_network_touches_its_familys_file_and_the_table(tmp_path):
    for folder, package in PACKAGES.items():
        shutil.copytree(
            ROOT / folder, tmp_path / package.replace(".", "/"), ignore=shutil.ignore_patterns("__pycache__")
        )
    networks = tmp_path / "keras_convnets" / "networks"
    (networks / "toy.py").write_text(NETWORK.lstrip())
    table = (networks / "table.py").read_text(encoding="utf-8")
    imports = "    from keras_convnets.networks.resnet_cifar import *  # noqa: F403\n"
    new = imports + imports.replace("resnet_cifar", "toy")
    row = '    (_TOY, "ToyNet3", 3, 456 + 880 + 17_000, 14 * 14 * 450 + 12 * 12 * 864 + 16_000),\n'
    for old, now in ((imports, new), ("_TEN_CROP", FAMILY), ("    (_VGG, ", row + "    (_VGG, ")):
        assert old in table
        table = table.replace(old, now, 1)
    (networks / "table.py").write_text(table, encoding="utf-8")
    changed = {
        path.relative_to(tmp_path).as_posix()
        for path in tmp_path.rglob("*.py")
        if not (original := original_of(path, tmp_path)).exists() or not filecmp.cmp(path, original, shallow=False)
    }
    assert changed == {"keras_convnets/networks/toy.py", "keras_convnets/networks/table.py"}
    command = [sys.executable, "-c", USES, str(tmp_path), str(ROOT / "tests" / "networks")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "ToyNet3" in process.stdout and "18,336" in process.stdout


def original_of(path: Path, copy: Path) -> Path:
    """The file of the checkout that a file of the copy was made of."""
    parts = path.relative_to(copy).parts
    return ROOT.joinpath(*(parts[1:] if parts[1] in ("training", "export") else parts))
