"""YAML files of configs: what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from covidcxr.errors import ConfigError
from covidcxr.training.recipe import read_yaml, write_yaml


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = {"b": [1, 2.5, None], "a": {"x": True, "text": "Überblick"}}
    assert read_yaml(write_yaml(tmp_path / "config.yaml", config)) == config


def test_merged_tables_may_override(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "one: &one {rate: 1, size: 2}\ntwo: &two {<<: *one, rate: 3}\nthree: {<<: *two, size: 4}\n"
    )
    assert read_yaml(tmp_path / "a.yaml")["three"] == {"rate": 3, "size": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x\nmodel: {lr: 1, loss: bce, lr: 2}\n", r"a\.yaml: the key 'lr' stands twice in one table \(line 2\)"),
        ("trainer: {}\nabout: x\ntrainer: {max_epochs: 1}\n", r"'trainer' stands twice .*line 3"),
        ("data: !!python/object/apply:os.system [ls]\n", r"a\.yaml is no YAML: .*python/object/apply:os.system"),
        ("data: !!python/name:os.system\n", "is no YAML: .*python/name"),
        ("data: !mine 3\n", "is no YAML: .*!mine"),
        ("model: [\n", "is no YAML"),
        ("a: *nothing\n", "is no YAML: .*undefined alias"),
        ("? [a, b]\n: c\n? {a: b}\n: d\n", "is no YAML: .*unhashable"),
        ("[" * 5000, "is no YAML"),
        ("- a\n- b\n", "must hold keys and values"),
        ("", "must hold keys and values"),
    ],
)
def test_everything_else_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
