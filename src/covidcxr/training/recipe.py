"""Recipes: a published system as configuration, and its runs.

A recipe is a YAML file for `covidcxr fit` (`model`, `data`, `trainer`, ...) with further keys: a description, the
variants that are compared, and the search space. It holds names only; all code is in this library. `base: NAME` starts
from another recipe and changes it.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import yaml

from covidcxr import aliases
from covidcxr.aliases import MODULES, RECIPES
from covidcxr.config import check_keys
from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.io.folders import replace_file
from covidcxr.registry import DATASETS
from covidcxr.training.changes import Changes, Parameter, read_search
from covidcxr.types import GEOMETRY
from covidcxr.utils.plain import user_path

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "RECIPE_KEYS",
    "Recipe",
    "allow_registered_only",
    "claim",
    "data_class",
    "recipe_file",
    "recipe_paths",
    "task_class",
    "write_yaml",
    "read_yaml",
]

_ABOUT = ("about", "paper", "published")
_STEPS = ("ensemble", "masks")
RECIPE_KEYS = (*_ABOUT, *_STEPS, "base", "compare", "search")
"""Keys of a recipe that are not keys of a training config."""
_TRAINING_KEYS = {
    *("seed_everything", "trainer", "model", "data", "output", "coverage", "coverage_by", "compute_mean_std"),
    *("optimizer", "lr_scheduler", "ckpt_path", "weights_only", "verbose", "return_predictions"),
}
_TASKS = {"segmentation": "SegmentationTask", "classification": "ClassificationTask", "multitask": "MultiTask"}
_LIGHTNING = (
    *("callbacks.EarlyStopping", "callbacks.LearningRateMonitor", "callbacks.ModelCheckpoint"),
    *("loggers.CSVLogger", "loggers.TensorBoardLogger"),
)
"""What a config may name of Lightning after `allow_registered_only`: nothing that calls a function it is given."""
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
        name: Name of the file without its suffix.
        about: What it trains, in a sentence.
        paper: The publication.
        published: The published scores, as text.
        config: Config of the training: plain data.
        compare: From axis to variant to its changes, from dotted key in the config to value. Every combination of
            variants is a run.
        search: Parameters that `covidcxr tune` searches, by name.
        ensemble: How the models of the runs are combined at the end; see `covidcxr.recipes.ensemble.EnsembleStep`.
            None = not.
        masks: How lung masks are predicted before the runs, for data sets without masks: arguments of
            `covidcxr.pipeline.lung_masks.draw_masks` (`model`, `postprocess`, `min_lung_area`). None = not.

    Example:
        ```python
        from covidcxr.training import Recipe

        recipe = Recipe.read("mini-lungs")
        assert recipe.count == 1 and recipe.config["model"]["class_path"]
        ```
    """

    name: str
    config: Mapping[str, Any]
    about: str = ""
    paper: str = ""
    published: str = ""
    compare: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    search: Mapping[str, Parameter] = field(default_factory=dict)
    ensemble: Mapping[str, Any] | None = None
    masks: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, name: str) -> Self:
        """Read a bundled recipe, or a YAML file.

        Args:
            name: Name of a bundled recipe, or path of a YAML file.

        Returns:
            The recipe, merged with its base.

        Raises:
            UnknownNameError: If there is no such recipe or file; says the nearest.
            ConfigError: If it is not valid YAML, a key is unknown, or `compare` or `search` is wrong.
        """
        path = recipe_file(name)
        data = read_yaml(path)
        if (base := data.pop("base", None)) is not None:
            return cls.read(str(base))._changed(path.stem, data)
        return cls(path.stem, {})._changed(path.stem, data)

    def _changed(self, name: str, data: Mapping[str, Any]) -> Self:
        """Merge the keys of another file into this recipe."""
        check_keys(data, _TRAINING_KEYS.union(RECIPE_KEYS), f"the recipe {name}")
        for key in _STEPS:
            if not isinstance(data.get(key) or {}, Mapping):
                raise ConfigError(f"{key} of the recipe {name} must map keys to values, not be {data[key]!r}.")
        about = {key: str(data[key]).strip() for key in _ABOUT if key in data}
        compare = _check_axes(data.get("compare", self.compare) or {}, f"the recipe {name}")
        search = read_search(data["search"] or {}, f"the recipe {name}") if "search" in data else self.search
        steps = {key: data.get(key, getattr(self, key)) for key in _STEPS}
        config = _merge(self.config, {key: value for key, value in data.items() if key not in RECIPE_KEYS})
        parts = {"config": config, "compare": compare, "search": search, **about, **steps}
        return replace(self, name=name, **parts)

    @property
    def count(self) -> int:
        """Number of runs."""
        return math.prod(len(axis) for axis in self.compare.values())

    def base(self) -> dict[str, Any]:
        """Return the config without the changes of variants; registry names are replaced by classes.

        Raises:
            UnknownNameError: If there is no such data set or task; says the nearest.
        """
        config = copy.deepcopy(dict(self.config))
        _resolve_names(config, f"the recipe {self.name}")
        return config

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """Return the recipe with a value for each parameter of its search, and no search.

        Args:
            values: From name of a parameter to its value.

        Returns:
            The recipe with these values in its config.

        Raises:
            ConfigError: If a parameter sets a key that is not in the config; says the nearest.
        """
        config = copy.deepcopy(dict(self.config))
        for name, value in values.items():
            for key, setting in self.search[name].changes(value).items():
                _change(config, key, setting, f"{name!r} in the search of the recipe {self.name}")
        return replace(self, config=config, search={})

    def runs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return the runs, in order; a recipe without `compare` is a single run named "".

        Yields:
            Name and config of each run.

        Raises:
            ConfigError: If a variant changes a key that is not in the config, or a name is unknown; says the nearest.
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
    folder = Path(str(files("covidcxr"))) / "recipes" / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def recipe_file(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: Name of a bundled recipe, also an old one; or path of a YAML file.

    Returns:
        The path of a file that exists.

    Raises:
        UnknownNameError: If there is no such recipe or file; says the nearest.
    """
    path = recipe_paths().get(RECIPES.get(name, name), user_path(name))
    if not path.is_file():
        raise UnknownNameError(f"There is no config file and no recipe {name!r}. {did_you_mean(name, recipe_paths())}")
    return path


def claim(folder: Path, settings: object, changes: Changes) -> str:
    """Claim a folder for a run with these settings.

    Args:
        folder: Folder of the run; created if it does not exist.
        settings: Plain data.
        changes: Changes of the settings.

    Returns:
        SHA-256 of the settings in hexadecimal digits, as the file `settings.sha256` of the folder holds it.

    Raises:
        ConfigError: If the folder holds files of a run with other settings; a run that failed its check leaves none.
    """
    entries = changes.without("data.root")
    joined = [f"--{change.key}={change.text}" for change in entries]  # 0.1.0 kept flags as they were written
    spellings = _spellings(settings)
    digest, *earlier = (_digest(spelling, flags) for flags in (entries.flags(), joined) for spelling in spellings)
    stamp = folder / "settings.sha256"
    present = stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else digest
    if present != digest and present in earlier:
        return present
    if present != digest and {path.name for path in folder.iterdir()} - {stamp.name, "config.yaml"}:
        raise ConfigError(f"{folder} holds a run with other settings. Remove it, or choose another --out.")
    with replace_file(stamp) as draft:
        draft.write_text(digest + "\n", encoding="utf-8")
    return digest


def _digest(settings: object, flags: Sequence[str]) -> str:
    text = json.dumps([settings, flags], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _spellings(settings: Any) -> tuple[Any, Any]:
    """Return settings as they are hashed, and as 0.1.0 spelt them, so that its runs are recognised.

    Classes are named by the modules of that time. Which class is positive is left out: it changes no training.
    0.1.0 said the geometry in the data module too.
    """
    plain = _map_tables(settings, lambda table: {key: value for key, value in table.items() if key != "positive"})
    return plain, _map_tables(plain, _with_doubled_geometry)


def _map_tables(settings: Any, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    if isinstance(settings, Mapping):
        table = change(settings).items()
        return {key: _old_path(value) if key == "class_path" else _map_tables(value, change) for key, value in table}
    return [_map_tables(value, change) for value in settings] if isinstance(settings, list | tuple) else settings


def _with_doubled_geometry(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Copy the geometry of a config's model into its data module."""
    model = (table.get("model") or {}).get("init_args") if isinstance(table.get("model"), Mapping) else None
    if not model or not isinstance(table.get("data"), Mapping):
        return table
    preprocess = (model.get("model") or model.get("segmentation") or {}).get("preprocess") or {}
    doubled = {name: preprocess[name] for name in GEOMETRY if name in preprocess and preprocess[name] != "letterbox"}
    arguments = {**doubled, **(table["data"].get("init_args") or {})}
    return {**table, "data": {**table["data"], "init_args": arguments}}


def _old_path(path: object) -> object:
    """Return the path of a class in 0.1.0, where a module that now holds several classes was one module for each."""
    module, _, name = str(path).removeprefix("covidcxr.").rpartition(".")
    old = [old for old, present in MODULES.items() if present == module and not module.startswith("tasks.")]
    old.sort(key=lambda old: (not name.lower().startswith(old.rpartition(".")[2].replace("_", "")), len(old)))
    return f"covidcxr.{old[0]}.{name}" if old else path


def _merge(old: Any, new: Any) -> Any:
    """Merge a config into another; the settings of another class than before are replaced as a whole."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    if "class_path" in new and new["class_path"] != old.get("class_path"):
        return dict(new)
    return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}


def _check_axes(axes: object, where: str) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    if not isinstance(axes, Mapping) or not all(isinstance(axis, Mapping) and axis for axis in axes.values()):
        raise ConfigError(f"compare in {where} must map each axis to its variants, and each variant to its changes.")
    for variant, changes in itertools.chain(*(axis.items() for axis in axes.values())):
        if not _NAME.fullmatch(str(variant)):
            raise ConfigError(
                f"A variant is a folder's name (letters, digits, '.', '-', '_'), not {variant!r} in {where}."
            )
        if not isinstance(changes or {}, Mapping):
            raise ConfigError(f"The variant {variant!r} of {where} must map dotted keys to values, not be {changes!r}.")
    return {name: {str(variant): changes or {} for variant, changes in axis.items()} for name, axis in axes.items()}


def _change(config: dict[str, Any], key: str, value: object, where: str) -> None:
    """Set a dotted key; all its parts but the last must exist."""
    *parents, last = key.split(".")
    table: Any = config
    for parent in parents:
        if not isinstance(table.get(parent), dict):
            raise ConfigError(f"Unknown key {key!r} in {where}: there is no {parent!r}. {did_you_mean(parent, table)}")
        table = table[parent]
    table[last] = value


def _resolve_names(config: dict[str, Any], where: str) -> None:
    """Replace registry names under `class_path` by dotted paths."""
    for part, resolve in (("data", data_class), ("model", task_class)):
        table = config.get(part)
        if isinstance(table, dict) and isinstance(table.get("class_path"), str):
            try:
                table["class_path"] = resolve(table["class_path"])
            except UnknownNameError as error:
                raise UnknownNameError(f"{part}.class_path in {where}: {error}") from error


def data_class(name: str) -> str:
    """Return the dotted path of the class of a data set.

    Args:
        name: Registry name of the data set; class names and dotted paths stay as they are.

    Returns:
        Dotted path, or class name.

    Raises:
        UnknownNameError: If there is no such data set; says the nearest.
    """
    if name not in DATASETS:
        if "." in name:
            return name
        classes = [DATASETS.get(known).__qualname__ for known in DATASETS]
        if name in classes:
            return name
        raise UnknownNameError(f"There is no data set {name!r}. {did_you_mean(name, [*DATASETS, *classes])}")
    entry = DATASETS.get(name)
    return f"{entry.__module__}.{entry.__qualname__}"


def allow_registered_only() -> None:
    """Let configs name only data sets, networks and the like that are registered, from now on in this process.

    A config is code: reading it imports what it names by a dotted path. A few loggers and callbacks stay allowed.

    Raises:
        ConfigError: If the installed jsonargparse cannot do that.
    """
    from jsonargparse import set_parsing_settings

    from covidcxr import tasks

    classes = [*(DATASETS.get(name) for name in DATASETS), *(getattr(tasks, name) for name in _TASKS.values())]
    for name in _LIGHTNING:
        module, _, attribute = name.partition(".")
        classes.append(getattr(import_module(f"lightning.pytorch.{module}"), attribute))
    # A package may offer the class of a module below it under its own name.
    modules = {each: each.__module__.split(".") for each in classes}
    paths = {".".join([*modules[each][:depth], each.__qualname__]) for each in classes for depth in range(1, 9)}
    try:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(paths))
    except TypeError:
        raise ConfigError('--safe needs a newer jsonargparse: pip install "jsonargparse>=4.53"') from None


def task_class(name: str) -> str:
    """Return the class name of a task.

    Args:
        name: Short name of the task ("segmentation", say); class names and dotted paths stay as they are.

    Returns:
        Class name, or dotted path.

    Raises:
        UnknownNameError: If there is no such task; says the nearest.
    """
    known = {*_TASKS, *_TASKS.values()}
    if name not in known and "." not in name:
        raise UnknownNameError(f"There is no task {name!r}. {did_you_mean(name, known)}")
    return _TASKS.get(name, name)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a table, of which YAML keeps the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        known: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in known:
                    raise ConfigError(
                        f"the key {key.value!r} stands twice in one table (line {key.start_mark.line + 1})."
                    )
                known.add((key.tag, key.value))
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values.

    Args:
        path: The file.

    Returns:
        Plain data: mappings, lists, text, numbers, dates and None.

    Raises:
        ConfigError: If it is no YAML, has a tag that makes an object (`!!python/...`), a key that stands twice in one
            table, or holds something other than keys and values.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values (model, data, trainer, ...).")
    return data


def write_yaml(path: Path, config: Mapping[str, Any]) -> Path:
    """Write a config as YAML, atomically.

    Args:
        path: The file to write.
        config: Plain data.

    Returns:
        The path.
    """
    with replace_file(path) as draft:
        draft.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
