"""The wheel contains all three packages and works without the checkout."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, so that building leaves nothing in the checkout.
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    source = folder / "source"
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    # What `python -m build` calls, without two further processes.
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A virtual environment with the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder, site


def imported(path):
    """The names of ours that a file imports, also inside functions and for the type checker."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names} | {node.module for node in froms}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.startswith("keras_convnets.")}


def test_export_imports_no_circle_and_never_training():
    modules = {}
    for path in (ROOT / "export").rglob("*.py"):
        parts = ("keras_convnets", *path.relative_to(ROOT).with_suffix("").parts)
        modules[".".join(parts).removesuffix(".__init__")] = imported(path)
    assert len(modules) > 40
    assert not {name for names in modules.values() for name in names if name.startswith("keras_convnets.training")}
    # A package counts as imported where nothing inside it is.
    below = {module: {name for name in names & modules.keys() - {module}} for module, names in modules.items()}
    below = {
        module: {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
        for module, names in below.items()
    }
    # Raises CycleError, with the circle.
    list(graphlib.TopologicalSorter(below).static_order())


def test_the_wheel_holds_the_rooms_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "keras_convnets/py.typed",
        "keras_convnets/imagenet_classes.txt",
        "keras_convnets/training/trainer.py",
        "keras_convnets/export/serving/rest/app.py",
    } <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2 and "keras_convnets" in tops  # the package and its dist-info
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    shipped = {name for name in tracked if name.split("/")[0] in ("keras_convnets", "training", "export")}
    inside = {name if name.startswith("keras_convnets") else f"keras_convnets/{name}" for name in shipped}
    assert inside == {name for name in names if name.endswith(".py")}


def test_type_checkers_see_the_signatures_of_the_installed_wheel(environment, tmp_path):
    folder, _ = environment
    (tmp_path / "users.py").write_text(
        "import keras_convnets\n"
        "from keras_convnets import export, training\n"
        "reveal_type(keras_convnets.ResNet50)\n"
        "keras_convnets.ResNet50(classes=10, shortcut='C')\n"
        "keras_convnets.ResNet50(clases=10)\n"
        "keras_convnets.ResNet50(classes='10')\n"
        "reveal_type(export.load('saved_models/digits').card.class_names)\n"
        "reveal_type(training.fit('ResNet20', 'digits', run='runs/digits').metrics())\n"
        "keras_convnets.ResNet51()\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file=", "users.py"]
    command += ["--python-executable", str(folder / "bin" / "python")]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = {}
    for line in process.stdout.splitlines():
        if line.startswith("users.py:"):
            said.setdefault(int(line.split(":")[1]), line.split(": ", 1)[1])
    assert said.keys() == {3, 5, 6, 7, 8, 9}, process.stdout
    assert "classes: int =" in said[3] and "shortcut: " in said[3]
    assert said[5].startswith('error: Unexpected keyword argument "clases" for "ResNet50"')
    assert said[6].startswith('error: Argument "classes" to "ResNet50" has incompatible type "str"')
    assert "tuple[str, ...]" in said[7] and "list[dict[str, Any]]" in said[8]
    assert said[9].startswith('error: Module has no attribute "ResNet51"')


def test_the_installed_wheel_runs_the_command_line_elsewhere(environment, tmp_path, run_python):
    _, target = environment
    # A user's own files of these names must not shadow ours.
    (tmp_path / "export.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "training").mkdir()
    script = (
        "import keras_convnets, keras_convnets.training as t, keras_convnets.export as e;"
        "print(keras_convnets.__file__, t.__file__, e.__file__, t.load_dataset('digits').name, e.publish.__name__)"
    )
    process = run_python("-c", script, cwd=tmp_path, env={"PYTHONPATH": str(target)})
    assert process.returncode == 0, process.stderr
    *files, name, function = process.stdout.split()
    assert all(file.startswith(str(target)) for file in files) and (name, function) == ("digits", "publish")
    process = run_python("-m", "keras_convnets", "models", "ResNet2*", cwd=tmp_path, env={"PYTHONPATH": str(target)})
    assert process.returncode == 0 and "269,722" in process.stdout
    assert (target / "bin" / "keras-convnets").is_file()


@pytest.mark.heavy
def test_a_clean_environment_with_the_wheel_alone_does_the_main_job(wheel, tmp_path):
    """What a dependency brought here by chance would hide: only the wheel's own requirements are installed."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "pip"), "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, f"{wheel}[all]"], check=True, capture_output=True)
    command = [str(environment / "bin" / "keras-convnets"), "quickstart"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "over REST (n=360)" in process.stdout.splitlines()[-1]
