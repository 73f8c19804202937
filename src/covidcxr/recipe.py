"""Recipes: a published system as configuration, and the runs that it is made of.

A recipe is a YAML file for LightningCLI (`model`, `data`, `trainer`, ...) with a few keys more: what it is, and what is
compared. It holds names only; what a system needs is a piece of this library.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import yaml

from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.files import replace_file
from covidcxr.registry import DATASETS

__all__ = ["Recipe", "data_class", "recipe_paths", "task_class", "write_yaml"]

_ABOUT = ("about", "paper", "published")
_TASKS = {"segmentation": "SegmentationTask", "classification": "ClassificationTask"}
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        name: Name of the file without its ending.
        about: What it trains, in a sentence.
        paper: Where it was published.
        published: The figures that were published, in words.
        config: What LightningCLI reads.
        compare: What is compared, an axis each: from axis to variant to the changes that it makes, each from the
            dotted key in the config to its value. Every combination of variants is one run.
    """

    name: str
    config: Mapping[str, Any]
    about: str = ""
    paper: str = ""
    published: str = ""
    compare: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str) -> Self:
        """Read a bundled recipe by its name, or any YAML file.

        Raises:
            UnknownNameError: If there is no such recipe or file; says the nearest.
            ConfigError: If it is no YAML, or `compare` is wrong.
        """
        path = recipe_paths().get(name, Path(name))
        if not path.is_file():
            raise UnknownNameError(
                f"There is no config file and no recipe {name!r}. {did_you_mean(name, recipe_paths())}"
            )
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} must hold keys and values (model, data, trainer, ...).")
        config = {key: value for key, value in data.items() if key not in (*_ABOUT, "compare")}
        about, paper, published = (str(data.get(key, "")).strip() for key in _ABOUT)
        compare = _check_axes(data.get("compare") or {}, str(path))
        return cls(path.stem, config, about, paper, published, compare)

    @property
    def count(self) -> int:
        """Number of runs."""
        return math.prod(len(axis) for axis in self.compare.values())

    def base(self) -> dict[str, Any]:
        """Return the config without any variant's changes, registry names turned into classes.

        Raises:
            UnknownNameError: If there is no such data set or task; says the nearest.
        """
        config = copy.deepcopy(dict(self.config))
        _resolve_names(config, f"the recipe {self.name}")
        return config

    def runs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return the name and the config of each run, in order; a recipe that compares nothing is one run named "".

        Raises:
            ConfigError: If a variant changes a key that the config has not, or a name is unknown; says the nearest.
        """
        axes = [[(variant, changes) for variant, changes in axis.items()] for axis in self.compare.values()]
        for choice in itertools.product(*axes):
            config = copy.deepcopy(dict(self.config))
            for variant, changes in choice:
                for key, value in changes.items():
                    _change(config, key, value, f"the variant {variant!r} of the recipe {self.name}")
            _resolve_names(config, f"the recipe {self.name}")
            yield "+".join(variant for variant, _ in choice), config


def recipe_paths() -> dict[str, Path]:
    """Return the bundled recipes by name."""
    folder = Path(str(files("covidcxr"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def write_yaml(path: Path, config: Mapping[str, Any]) -> Path:
    """Write a config as YAML; the file appears whole or not at all."""
    with replace_file(path) as draft:
        draft.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _check_axes(axes: object, where: str) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    if not isinstance(axes, Mapping) or not all(isinstance(axis, Mapping) and axis for axis in axes.values()):
        raise ConfigError(f"compare in {where} must map each axis to its variants, and each variant to its changes.")
    for variant in itertools.chain(*axes.values()):
        if not _NAME.fullmatch(str(variant)):
            raise ConfigError(
                f"A variant is a folder's name (letters, digits, '.', '-', '_'), not {variant!r} in {where}."
            )
    return {name: {str(variant): changes or {} for variant, changes in axis.items()} for name, axis in axes.items()}


def _change(config: dict[str, Any], key: str, value: object, where: str) -> None:
    """Set a dotted key; all but its last part must be there."""
    *parents, last = key.split(".")
    table: Any = config
    for parent in parents:
        if not isinstance(table.get(parent), dict):
            raise ConfigError(f"Unknown key {key!r} in {where}: there is no {parent!r}. {did_you_mean(parent, table)}")
        table = table[parent]
    table[last] = value


def _resolve_names(config: dict[str, Any], where: str) -> None:
    """Turn registry names under `class_path` into the dotted paths that LightningCLI imports."""
    for part, resolve in (("data", data_class), ("model", task_class)):
        table = config.get(part)
        if isinstance(table, dict) and isinstance(table.get("class_path"), str):
            try:
                table["class_path"] = resolve(table["class_path"])
            except UnknownNameError as error:
                raise UnknownNameError(f"{part}.class_path in {where}: {error}") from error


def data_class(name: str) -> str:
    """Return the dotted path of a data set's class from its registry name; class names and paths stay as they are.

    Raises:
        UnknownNameError: If there is no such data set; says the nearest.
    """
    if name not in DATASETS:
        classes = [DATASETS.get(known).__qualname__ for known in DATASETS]
        if "." in name or name in classes:
            return name  # a class name or a dotted path
        raise UnknownNameError(f"There is no data set {name!r}. {did_you_mean(name, [*DATASETS, *classes])}")
    entry = DATASETS.get(name)
    return f"{entry.__module__}.{entry.__qualname__}"


def task_class(name: str) -> str:
    """Return a task's class name from its short name; class names and dotted paths stay as they are.

    Raises:
        UnknownNameError: If there is no such task; says the nearest.
    """
    known = {*_TASKS, *_TASKS.values()}
    if name not in known and "." not in name:
        raise UnknownNameError(f"There is no task {name!r}. {did_you_mean(name, known)}")
    return _TASKS.get(name, name)
