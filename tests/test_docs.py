"""The pages say what the code does."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.util
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_convnets
from keras_convnets.commands import main as command_line
from keras_convnets.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.py"))


def test_the_page_of_models_is_the_registrys():
    spec = importlib.util.spec_from_file_location("make_models_page", ROOT / "docs" / "make_models_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run make docs"
    assert all(f"| {name} |" in module.page() for name in keras_convnets.list_models())


def test_the_page_of_results_is_that_of_the_kept_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "cifar10_page.py"), run_name="cifar10_page")
    runs = script["kept_runs"]()
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](runs), "run make results"
    assert len(runs) >= 5 and all(f"| {run['network']} |" in script["page"](runs) for run in runs)


@pytest.mark.heavy
def test_the_conversion_of_a_keras_twin_works():
    """The code block of the page, run as it stands."""
    text = (ROOT / "docs" / "from-keras-applications.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(import keras\nimport keras_convnets\n.*?)```", text, re.DOTALL)[1]
    found: dict[str, Any] = {}
    exec(block, found)
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    given = keras.applications.resnet.preprocess_input(images.astype(np.float32))
    expected = keras.ops.convert_to_numpy(found["theirs"](given))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found["ours"](images)), expected, atol=1e-5)


@pytest.mark.heavy
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


def test_the_readme_is_short_and_begins_with_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.index("make quickstart") < readme.index("make test") < 800
    assert len(readme.splitlines()) <= 150


def test_every_dependency_has_its_reason():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    names = {re.match(r"[\w-]+", line)[0] for text in listed for line in text.split("\n") if line}
    names.remove("keras-convnets")  # extras that stand for others
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    table = page[page.index("## Every dependency") :]
    missing = [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", table)]
    assert len(names) > 15 and not missing, missing


def test_every_extra_is_on_the_page_of_installing():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    users = set(setup["options.extras_require"]) - {"dev", "docs"}
    assert users == set(re.findall(r"\| `keras_convnets\[(\w+)\]` \|", page))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built so that a warning is an error: broken links and anchors, names that docstrings do not have."""
    pytest.importorskip("mkdocs", reason="the site is built by the extra docs")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_is_built_and_shows_what_is_made_from_the_code(site: Path):
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {"index.html", "models.html", "contributing.html", "changelog.html", "api/export.html"} <= pages.keys()
    reference = pages["api/networks.html"] + pages["api/training.html"] + pages["api/export.html"]
    names = [f"keras_convnets.{name}" for name in keras_convnets.__all__ if not name.startswith("_")]
    for module in ("keras_convnets.training", "keras_convnets.export"):
        names += [f"{module}.{name}" for name in importlib.import_module(module).__all__]
    missing = [name for name in names if f'id="{name}"' not in reference]
    assert len(names) > 50 and not missing, missing
    assert all(f'id="{name}"' in pages["commands.html"] for name in command_line.COMMANDS)
    assert "--rest_api_timeout_in_ms" in pages["commands.html"]
    assert all(
        f'id="{path.stem}"' in pages["recipes.html"] for path in RECIPES if "--recipe" in path.read_text("utf-8")
    )
    assert "{{" not in pages["commands.html"] + pages["recipes.html"]


def test_the_site_asks_nothing_of_other_hosts(site: Path):
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    found = [f"{path.name}: {tag}" for path in site.rglob("*.html") for tag in loads.findall(path.read_text("utf-8"))]
    styles = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//")
    found += [path.name for path in site.rglob("*.css") if styles.search(path.read_text(encoding="utf-8"))]
    assert not found, found
    assert list(site.rglob("search_index.json"))


def commands_shown() -> Iterator[tuple[str, str, bool]]:
    """Give file, command and whether it is whole, of each command of ours that pages and recipes show."""
    for path in (*PAGES, *RECIPES):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ *(keras-convnets [a-z].*)$", text, re.MULTILINE):
            yield path.name, line, True
        for inline in re.findall(r"`(keras-convnets [^`]+)`", text):
            yield path.name, inline, False


def test_commands_that_pages_show_are_taken():
    shown, wrong = list(commands_shown()), []
    for page, line, whole in shown:
        try:
            command_line._parse(shlex.split(line, comments=True)[1:])
        except UserError as error:
            # In a sentence a command may stand for any with other arguments.
            if whole or "required" not in str(error):
                wrong.append(f"{page}: {line}: {error}")
    assert len(shown) > 40 and not wrong, "\n".join(wrong)


def python_shown() -> Iterator[tuple[str, str]]:
    """Give file and text of each Python block that pages show."""
    for path in PAGES:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            yield path.name, block


def ours(tree: ast.AST) -> dict[str, Any]:
    """Return what a block's imports of this package are bound to; fails where there is no such name."""
    bound: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] == "keras_convnets"]
            bound |= {"keras_convnets": keras_convnets} if names else {}
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "keras_convnets":
            module = importlib.import_module(node.module)
            for alias in node.names:
                found = getattr(module, alias.name, None)
                bound[alias.asname or alias.name] = found or importlib.import_module(f"{node.module}.{alias.name}")
    return bound


def test_python_that_pages_show_compiles_and_names_what_there_is():
    blocks, calls = list(python_shown()), 0
    for page, block in blocks:
        tree = ast.parse(block, page)
        bound = ours(tree)

        def value(node: ast.AST, bound: dict[str, Any] = bound) -> Any:
            if isinstance(node, ast.Name):
                return bound.get(node.id)
            if isinstance(node, ast.Attribute) and (owner := value(node.value)) is not None:
                return getattr(owner, node.attr)
            return None

        for node in ast.walk(tree):
            called = value(node.func) if isinstance(node, ast.Call) else None
            if called is not None:
                words = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(called).bind(*node.args, **words)
                calls += 1
            value(node)
    assert len(blocks) > 12 and calls > 20


def test_files_that_pages_name_are_there():
    named = re.compile(r"`((?:keras_convnets|training|export|tests|docs|benchmarks|saved_models)/[\w./-]*)`")
    found = {(path.name, name) for path in PAGES for name in named.findall(path.read_text(encoding="utf-8"))}
    # What only exports make has a number in its path.
    missing = [place for place in found if not (ROOT / place[1]).exists() and not re.search(r"/\d+/", place[1])]
    assert len(found) > 40 and not missing, missing
