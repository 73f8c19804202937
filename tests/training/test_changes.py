"""Changes of a config are the same whether flags, a table or a call say them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from covidcxr.errors import ConfigError
from covidcxr.training.changes import Changes
from covidcxr.training.recipe import claim, without_root

FLAGS = [
    *("--data", "csv", "--data.root=images", "--model.lr", "-0.5", "--trainer.callbacks+=Timer"),
    *(
        "--trainer.callbacks.interval",
        "step",
        "--trainer.callbacks+=Timer",
        "--model.preprocess",
        "{mean: 0.5}",
        "--safe",
    ),
]


def test_flags_are_values_by_key() -> None:
    changes = Changes.of(FLAGS)
    assert [(change.key, change.value) for change in changes] == [
        ("data", "csv"),
        ("data.root", "images"),
        ("model.lr", -0.5),
        ("trainer.callbacks+", "Timer"),
        ("trainer.callbacks.interval", "step"),
        ("trainer.callbacks+", "Timer"),
        ("model.preprocess", {"mean": 0.5}),
        ("safe", None),
    ]
    assert Changes.of(changes.flags()) == changes
    assert list(changes.tables()) == [{"model": {"preprocess": {"mean": 0.5}}}]


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"data.root": "images", "trainer.max_epochs": 3}, ["--data.root", "images", "--trainer.max_epochs", "3"]),
        ({"seed_everything": False, "output": None}, ["--seed_everything", "false", "--output", "null"]),
        ({"data.fractions": [0.5, 0.2]}, ["--data.fractions", "[0.5, 0.2]"]),
        (["stray", "--output", "", "-c", "x.yaml", "-q"], ["stray", "--output", "", "--config", "x.yaml", "-q"]),
    ],
)
def test_changes_are_flags_again(given: object, flags: list[str]) -> None:
    assert Changes.of(given).flags() == flags  # type: ignore[arg-type]


def test_parts_and_settings() -> None:
    changes = Changes.of(FLAGS)
    assert changes.part("data").flags() == ["--data", "csv", "--data.root", "images"]
    assert "model.init_args.lr" in changes
    assert "data.roots" not in changes
    assert "model.lr" not in changes.without("model")
    assert (changes.part("data") + {"data.views": "all"}).flags()[-2:] == ["--data.views", "all"]
    assert not Changes.of({"data.root": "images"}).without("data.root")
    assert without_root(["--data.root", "images", "--model.lr", "1"]) == ["--model.lr", "1"]


@pytest.mark.parametrize("flags", [["--model.lr", "0.10"], ["--model.lr=0.10"]])
def test_a_folder_that_0_1_0_claimed_is_claimed_by_the_same_flags(flags: list[str], tmp_path: Path) -> None:
    digest = hashlib.sha256(json.dumps([{"seed_everything": 0}, flags], sort_keys=True).encode()).hexdigest()
    (tmp_path / "settings.sha256").write_text(digest)
    (tmp_path / "scores.json").write_text("{}")
    changes = Changes.of(["--data.root", "elsewhere", *flags])
    assert claim(tmp_path, {"seed_everything": 0}, changes) == digest
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        claim(tmp_path, {"seed_everything": 0}, Changes.of({"model.lr": 0.2}))
