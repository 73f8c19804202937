"""Every example in a docstring runs as it stands, and says nothing that the code does not do."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import covidcxr
from covidcxr.phantom import write_dataset

SOURCE = Path(covidcxr.__file__).parent
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.M | re.S)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module, of its classes and functions, and of their methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "name", "module"), inspect.cleandoc(ast.get_docstring(node) or "")


def examples() -> Iterator[Any]:
    """A case for each example: the code, named by its place."""
    for path in sorted(SOURCE.rglob("*.py")):
        for name, text in docstrings(path):
            for number, match in enumerate(BLOCK.finditer(text)):
                place = ".".join((*path.relative_to(SOURCE).with_suffix("").parts, name))
                yield pytest.param(textwrap.dedent(match[2]), id=f"{place}-{number}" if number else place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where examples run: `phantoms/` is a drawn data set of 24 images, `image.png` one of them."""
    folder = tmp_path_factory.mktemp("examples")
    write_dataset(folder / "phantoms", 24)
    first = sorted((folder / "phantoms" / "images").glob("*.png"))[0]
    (folder / "image.png").write_bytes(first.read_bytes())
    return folder


@pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning", "ignore:.*is smaller than the logging interval"
)
@pytest.mark.parametrize("code", list(examples()))
def test_example_runs(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = re.match(r"# not run: \S", code)
    monkeypatch.chdir(folder)
    compiled = compile(code, "<example>", "exec", dont_inherit=True)
    if reason is None:
        exec(compiled, {"__name__": "example"})
