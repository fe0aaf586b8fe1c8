"""What mkdocs calls while it builds the site: what pages show of the code, and where docstrings are read."""

from __future__ import annotations

import ast
import atexit
import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# The packages, and where each is when it is installed.
PACKAGES = {
    "keras_convnets": "keras_convnets",
    "training": "keras_convnets/training",
    "export": "keras_convnets/export",
}
RECIPES = ROOT / "training" / "recipes"
# Width of the terminal that the commands' help is written for.
COLUMNS = 92


@event_priority(100)  # before mkdocstrings reads its own
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let mkdocstrings read the packages as they are installed: training and export inside keras_convnets."""
    folder = Path(tempfile.mkdtemp(prefix="keras_convnets-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for source, target in PACKAGES.items():
        shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.rglob("*.py"):
        # The parser of docstrings knows this section in the plural only.
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"^( +)Example:$", r"\1Examples:", text, flags=re.MULTILINE), encoding="utf-8")
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand at the top of the project."""
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        files.append(File.generated(config, f"{name.lower()}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is made from the code in place of a page's line `{{ commands }}` or `{{ recipes }}`."""
    for name, made in (("commands", commands_text), ("recipes", recipes_text)):
        line = f"{{{{ {name} }}}}"
        if line in markdown:
            markdown = markdown.replace(line, made())
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link what stands as arXiv:NUMBER in texts and docstrings."""
    parts, inside = re.split(r"(<[^>]+>)", html), 0
    for position, part in enumerate(parts):
        if re.match(r"<(a|code|pre)\b", part):
            inside += 1
        elif re.match(r"</(a|code|pre)>", part):
            inside -= 1
        elif not inside and not part.startswith("<"):
            parts[position] = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">\g<0></a>', part)
    return "".join(parts)


def commands_text() -> str:
    """Return a section for each command: what its `--help` prints."""
    return "\n".join(f"## {' '.join(path)}\n\n```text\n{text}\n```\n" for path, text in _commands() if path)


def _commands(path: Sequence[str] = ()) -> Iterator[tuple[Sequence[str], str]]:
    """Give each command's words and its help, those of the program itself first."""
    text = _help(path)
    yield path, text
    # argparse lists sub-commands one level deeper than arguments.
    listed = re.search(r"^  (?:COMMAND|ACTION)\n((?:    .*\n)+)", text, re.MULTILINE)
    for name in re.findall(r"^    (\w+)", listed[1], re.MULTILINE) if listed else ():
        yield from _commands((*path, name))


def _help(path: Sequence[str]) -> str:
    from keras_convnets.commands.main import main

    printed = io.StringIO()
    terminal = mock.patch.dict(os.environ, {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"})
    with terminal, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*path, "--help"])
    if not printed.getvalue():
        raise PluginError(f"keras-convnets {' '.join(path)} --help printed nothing")
    return printed.getvalue().rstrip()


def recipes_text() -> str:
    """Return a section for each recipe, from its module's docstring, and the fields that it has or sets otherwise."""
    fields = {path.stem: _fields(path) for path in sorted(RECIPES.glob("*.py")) if path.stem != "__init__"}
    recipes, tables = [], [f"## Fields of every recipe\n\n{_table(fields.pop('base'))}"]
    for name, own in fields.items():
        text = ast.get_docstring(ast.parse((RECIPES / f"{name}.py").read_text(encoding="utf-8")))
        if "keras-convnets train" in text:
            recipes.append(f"## {name}\n\n{text}\n\n{_table(own)}")
        elif own:  # what several recipes share
            tables.append(f"## Fields of the recipes for {name}\n\n{_table(own)}")
    return "\n".join([*recipes, *tables])


def _fields(path: Path) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and documentation of the fields in a module, as they are written: nothing is run."""
    found = []
    for line in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(line, ast.AnnAssign) and getattr(getattr(line.value, "func", None), "id", "") == "option":
            default, doc = line.value.args[:2]
            found.append((line.target.id, ast.unparse(line.annotation), ast.unparse(default), ast.literal_eval(doc)))
    return found


def _table(fields: list[tuple[str, str, str, str]]) -> str:
    rows = "".join(
        f"| `{name}` | {kind.replace('|', 'or')} | `{default}` | {doc} |\n" for name, kind, default, doc in fields
    )
    return f"| field | type | default | |\n|---|---|---|---|\n{rows}"
