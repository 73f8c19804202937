"""The layout keeps its bounds: `python tests/benchmarks/layout.py` prints the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("benchmarks")))

import layout


@pytest.fixture(scope="module")
def measured() -> layout.Layout:
    return layout.measure()


BOUNDS = {
    "top_level": 25,
    "modules": 200,
    "single_importer": 40,
    "cycles": 0,
    "function_median": 10,
    "functions_over_60": 0,
    "files_over_500": 0,
    "classes_without_example": 0,
}
"""What a change may not exceed. A change that comes nearer to a goal lowers its bound."""


@pytest.mark.parametrize("figure", BOUNDS)
def test_the_layout_keeps_its_bounds(measured: layout.Layout, figure: str) -> None:
    assert measured.summary()[figure] <= BOUNDS[figure]


def test_public_functions_say_what_they_take_return_and_raise(measured: layout.Layout) -> None:
    assert measured.summary()["described_share"] == 1


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ('def f(a: int) -> int:\n    """Do."""\n    return a\n', ["Args, Returns"]),
        (
            'def f(a: int) -> None:\n    """Do.\n\n    Args:\n        a: It.\n    """\n    raise ValueError(a)\n',
            ["Raises"],
        ),
        ('def f() -> int:\n    """Do."""\n    return 1\n', []),
        ("def _f(a: int) -> int:\n    return a\n", []),
    ],
)
def test_missing_sections_are_seen(source: str, missing: list[str], tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(source + "class A:\n    'A.'\n")
    found = layout.measure(tmp_path / "package").without_sections
    assert [entry.partition(": ")[2] for entry in found] == missing


def test_cycles_and_single_importers_are_seen(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("from package import b\ndef f() -> None: ...\n")
    (package / "b.py").write_text("import package.a\n")
    (package / "c.py").write_text("def g() -> None:\n    from package.d import h\n")
    (package / "d.py").write_text("def h(x: int) -> None:\n    '''X.\n\n    Args:\n        x: X.\n    '''\n")
    measured = layout.measure(package)
    assert [set(cycle) for cycle in measured.cycles] == [{"package.a", "package.b"}]
    assert measured.single_importer == ["package.a", "package.b", "package.d"]
