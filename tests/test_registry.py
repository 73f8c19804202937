"""Names to things: the decorator, clashes, unknown names, and other packages' entry points."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from covidcxr import registry as registry_module
from covidcxr.errors import ConfigError, CovidCXRError, NameClashError, UnknownNameError
from covidcxr.registry import Registry

TABLES = {name: getattr(registry_module, name) for name in registry_module.__all__ if name != "Registry"}


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The entry points of other installed packages; append to it."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(
        registry_module, "installed_points", lambda group: [point for point in points if point.group == group]
    )
    return points


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: list[EntryPoint]) -> Registry:
    """A registry whose package registers `brick` in a module that nobody has imported yet, and a package beside it."""
    package = tmp_path / "package_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "table_of_tests.py").write_text(
        "from covidcxr.registry import Registry\n"
        "STONES = Registry('stone', package='package_of_tests', group='tests.stones')\n"
    )
    (package / "bricks.py").write_text(
        "from table_of_tests import STONES\n@STONES.register('brick')\ndef brick(): return 'a brick'\n"
    )
    (tmp_path / "elsewhere.py").write_text("def pebble(): return 'a pebble'\ndef brick(): return 'another brick'\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("package_of_tests", "package_of_tests.bricks", "table_of_tests", "elsewhere", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from table_of_tests import STONES

    return STONES


def stone(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="tests.stones")


def test_own_entries_register_when_first_asked_for(table: Registry) -> None:
    assert "package_of_tests.bricks" not in sys.modules
    assert table.names() == ("brick",)
    assert "package_of_tests.bricks" not in sys.modules, "a list of names imports nothing"
    assert table.get("brick")() == "a brick"
    assert "brick" in table
    assert "pebble" not in table
    assert list(table) == ["brick"]
    assert len(table) == 1
    assert repr(table).endswith("stones: brick>")


def test_decorator_gives_back_what_it_registers(table: Registry) -> None:
    class Marble:
        pass

    assert table.register("marble")(Marble) is Marble
    assert table.get("marble") is Marble
    assert table.names() == ("brick", "marble")


def test_clash_names_both(table: Registry) -> None:
    table.names()
    with pytest.raises(NameClashError) as caught:

        @table.register("brick")
        class Cobble:
            pass

    for part in ("stone", "'brick'", "package_of_tests.bricks.brick", "Cobble", __name__):
        assert part in str(caught.value)
    assert table.get("brick")() == "a brick"


def test_the_same_definition_again_replaces_itself(table: Registry) -> None:
    def define(answer: int) -> object:
        @table.register("marble")
        def marble() -> int:
            return answer

        return marble

    first, second = define(1), define(2)
    assert first is not second
    assert table.get("marble") is second


def test_unknown_name_offers_the_nearest(table: Registry) -> None:
    with pytest.raises(UnknownNameError, match=r"There is no stone 'brik'\. Did you mean 'brick'\?"):
        table.get("brik")
    with pytest.raises(ConfigError, match=r"Known: brick\."):
        table.get("zzz")


def test_plugins_are_named_without_being_imported(table: Registry, plugins: list[EntryPoint]) -> None:
    plugins += [stone("pebble", "elsewhere:pebble"), stone("bad", "broken:anything")]
    assert table.names() == ("bad", "brick", "pebble")
    assert "pebble" in table
    with pytest.raises(UnknownNameError, match="Did you mean 'pebble'"):
        table.get("pebbel")
    assert not {"elsewhere", "broken"} & set(sys.modules)


def test_plugins_are_imported_when_asked_for(table: Registry, plugins: list[EntryPoint]) -> None:
    plugins += [stone("pebble", "elsewhere:pebble"), stone("bad", "broken:anything")]
    assert table.get("pebble")() == "a pebble"
    assert table.get("pebble") is table.get("pebble")
    assert "broken" not in sys.modules


def test_plugins_of_other_groups_are_not_ours(table: Registry, plugins: list[EntryPoint]) -> None:
    plugins.append(EntryPoint(name="pebble", value="elsewhere:pebble", group="tests.sticks"))
    assert "pebble" not in table


def test_plugin_with_a_name_of_ours(table: Registry, plugins: list[EntryPoint]) -> None:
    plugins.append(stone("brick", "elsewhere:brick"))
    with pytest.raises(NameClashError, match=r"package_of_tests\.bricks\.brick.*elsewhere\.brick"):
        table.get("brick")


def test_two_plugins_with_one_name(table: Registry, plugins: list[EntryPoint]) -> None:
    plugins += [stone("pebble", "elsewhere:pebble"), stone("pebble", "broken:pebble")]
    with pytest.raises(NameClashError, match=r"'pebble': elsewhere:pebble and broken:pebble\. Uninstall one"):
        table.get("pebble")
    with pytest.raises(NameClashError):
        table.names()


def test_one_plugin_found_twice_is_no_clash(table: Registry, plugins: list[EntryPoint]) -> None:
    plugins += [stone("pebble", "elsewhere:pebble")] * 2  # a package on two entries of sys.path
    assert table.get("pebble")() == "a pebble"


@pytest.mark.parametrize("name", TABLES)
def test_each_table_of_ours_resolves_all_its_names(name: str, plugins: list[EntryPoint]) -> None:
    table = TABLES[name]
    assert table.group == f"covidcxr.{name.lower()}"
    assert all(callable(table.get(entry)) for entry in table.names())
    assert list(table.names()) == sorted(table.names())
    with pytest.raises(CovidCXRError, match=table.kind):
        table.get("no such thing")


@pytest.mark.parametrize(
    "name", sorted(set(TABLES) - {"SEGMENTATION_NETWORKS", "CLASSIFICATION_NETWORKS", "CLASSIFICATION_SCORES"})
)
def test_tables_that_come_filled(name: str, plugins: list[EntryPoint]) -> None:
    assert len(TABLES[name]) > 0


def test_a_decorator_without_parentheses_or_with_a_plus_is_refused() -> None:
    from covidcxr.registry import SEGMENTATION_LOSSES

    class Mine:
        pass

    for name in (Mine, "", "a+b"):
        with pytest.raises(ConfigError, match="my_name"):
            SEGMENTATION_LOSSES.register(name)  # type: ignore[arg-type]


def test_a_clash_with_our_own_entry_blames_the_newcomer() -> None:
    code = (
        "from covidcxr.errors import NameClashError\n"
        "from covidcxr.registry import SEGMENTATION_LOSSES\n"
        "try:\n"
        "    @SEGMENTATION_LOSSES.register('dice')\n"
        "    class Mine: pass\n"
        "except NameClashError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "DiceLoss" in done.stdout
    assert "Mine needs another name" in done.stdout
