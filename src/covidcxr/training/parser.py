"""Parse a plain config, or command-line flags, into the checked settings of a training."""

from __future__ import annotations

import ast
import copy
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn, TypeAlias

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError, CovidCXRError, did_you_mean
from covidcxr.models import NetworkModel, load_model
from covidcxr.registry import DATASETS
from covidcxr.tasks import Task
from covidcxr.tasks.base import with_network
from covidcxr.training.changes import Change, Changes, GivenChanges
from covidcxr.training.recipe import RECIPE_KEYS, Recipe, data_class, task_class, write_yaml
from covidcxr.types import CoverageBy, TaskName

__all__ = [
    "Verb",
    "apply_changes",
    "in_one_line",
    "make_parser",
    "open_data",
    "parse_data",
    "parse_masks",
    "own_errors",
    "parse_words",
    "read_settings",
    "to_plain",
    "CLASS_KEYS",
]

Verb: TypeAlias = Literal["fit", "validate", "test"]

_HELP = {
    "fit": "Train a model. Example: covidcxr fit --config mini-lungs --data.root DIR --out my-lungs",
    "validate": "Score a model on validation images. "
    "Example: covidcxr validate --model.init_from my-lungs --config mini-lungs --data.root DIR",
    "test": "Score a model on test images. "
    "Example: covidcxr test --model.init_from my-model --data folder --data.root DIR --out scores",
}


class _Parser(LightningArgumentParser):
    """Raises an error of one line, with the nearest valid key, in place of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        vars(self).pop("print_config", None)  # of this command; the parser is kept for the next one
        raise _own_error(ex) or ConfigError(in_one_line(message, self._known()))

    def _known(self) -> set[str]:
        """Return the dotted keys that the parser accepts, and the further keys of a recipe."""
        keys = {action.dest for action in self._actions} - {"help"}
        of_recipe = set(RECIPE_KEYS) if "config" in keys else set()  # a class in the config has a parser of its own
        return {key.removesuffix(".help") for key in keys} | of_recipe


@cache
def make_parser(verb: Verb = "fit") -> LightningArgumentParser:
    """Return the parser of all settings of a training; it is slow to build, so it is cached.

    Args:
        verb: Verb of the command line, whose help the parser prints.

    Returns:
        A parser of `trainer`, `model` (a task), `data`, and of covidcxr's own settings.
    """
    DATASETS.load()  # so that a YAML file may say `class_path: CSVDataModule`
    description = (
        f"{_HELP[verb]} A config may name classes by class_path, which are imported: it is code. With --safe only what "
        f"is registered may be named. For research only; not for clinical use."
    )
    parser = _Parser(prog=f"covidcxr {verb}", description=description, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config", help="a recipe's name, or the path of a YAML file")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="seed of everything random; false = none")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(Task, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="fit: folder for the trained model, which from_pretrained reads; test: folder for scores and rows",
    )
    _add_coverage(parser)
    parser.add_argument(
        "--compute_mean_std",
        type=bool,
        default=False,
        help="fit: normalise by the mean and standard deviation of the training images, in place of preprocess.mean "
        "and preprocess.std",
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="checkpoint to resume from, or to score; fit: last = its own, in checkpoints of the output",
    )
    parser.add_argument("--weights_only", type=bool | None, default=None, help="load a checkpoint without pickled code")
    parser.add_argument("--verbose", type=bool, default=False, help="validate, test: print Lightning's own table too")
    return parser


def _add_coverage(parser: LightningArgumentParser) -> None:
    parser.add_argument(
        "--coverage",
        type=float | None,
        default=None,
        help="fit: coverage of a classifier's sets of plausible classes (0.9, say); it abstains from an image whose "
        "set does not hold exactly one class; null = it never abstains",
    )
    parser.add_argument(
        "--coverage_by",
        type=CoverageBy,
        default="class",
        help="fit: whom the coverage is promised: each class (class), each class in each source (source), or all "
        "images together (all), where a rare class may get less",
    )


def read_settings(config: Mapping[str, Any]) -> Namespace:
    """Check a config and fill in the defaults.

    Args:
        config: Plain data: `model`, `data`, `trainer` and the other keys of `covidcxr fit`, as in the YAML of a recipe.

    Returns:
        All settings.

    Raises:
        CovidCXRError: If a key is unknown (says the nearest), a value is wrong, or a setting is missing.
    """
    with own_errors():
        settings: Namespace = make_parser().parse_object(copy.deepcopy(dict(config)))
        _check_known(config, settings)
    if settings.coverage is not None and not 0 < settings.coverage < 1:
        raise ConfigError(f"coverage must be between 0 and 1 (or null), not {settings.coverage}.")
    return settings


def parse_words(words: GivenChanges, verb: Verb = "fit") -> dict[str, Any]:
    """Parse command-line flags into a config.

    Args:
        words: Flags of `covidcxr fit`, or changes; `config` also takes the name of a recipe, `data` a registry name
            and `model` the short name of a task.
        verb: The verb of the command line.

    Returns:
        A complete config: plain data.

    Raises:
        CovidCXRError: If a flag is unknown or a value is wrong.
    """
    changes = Changes.of(words)
    if changes.part("data") and not any(key in changes for key in ("config", "data", "data.class_path")):
        raise ConfigError(f"These settings are missing: data ({_HINTS['data']}).")
    with own_errors(), TemporaryDirectory() as scratch:
        files: list[Mapping[str, Any]] = []
        settings = make_parser(verb).parse_args(list(_resolve_names(changes, Path(scratch), files)))
        for given in (*files, *changes.tables()):
            _check_known(given, settings)
        return to_plain(settings)


def apply_changes(config: Mapping[str, Any], changes: GivenChanges) -> dict[str, Any]:
    """Change settings of a config.

    Args:
        config: Plain data.
        changes: Values by dotted key, or flags of `covidcxr fit`; empty = only the defaults are filled in.

    Returns:
        A complete config: plain data.

    Raises:
        CovidCXRError: If a flag is unknown or a value is wrong.
    """
    with TemporaryDirectory() as scratch:
        path = write_yaml(Path(scratch) / "config.yaml", config)
        return parse_words(Changes.of({"config": str(path)}) + changes)


def open_data(config: Mapping[str, Any], changes: GivenChanges = ()) -> CXRDataModule:
    """Build the data module of a config, without a model.

    Args:
        config: Plain data, of which the key `data` is used.
        changes: Changes of `data`, by dotted key or as flags of `covidcxr fit`.

    Returns:
        The data module.

    Raises:
        CovidCXRError: If a flag is unknown or a setting is wrong.
    """
    parser = _part_parser("data")
    with own_errors():
        data: CXRDataModule = parser.instantiate_classes(_parse_part(parser, "data", config, changes)).data
    return data


def parse_data(config: Mapping[str, Any], changes: GivenChanges) -> dict[str, Any]:
    """Return the complete settings of a data module.

    Args:
        config: Plain data, of which the key `data` is used.
        changes: Changes of `data`, by dotted key or as flags of `covidcxr fit`.

    Returns:
        Plain data: `class_path` and `init_args`.

    Raises:
        CovidCXRError: If a flag is unknown or a setting is wrong.
    """
    parser = _part_parser("data")
    return dict(yaml.safe_load(parser.dump(_parse_part(parser, "data", config, changes), skip_none=False))["data"])


def parse_masks(masks: Mapping[str, Any], changes: GivenChanges) -> dict[str, Any]:
    """Override the settings under `masks` of a recipe.

    Args:
        masks: Plain data: arguments of `covidcxr.pipeline.lung_masks.draw_masks`.
        changes: Changes of `masks`, by dotted key or as flags.

    Returns:
        The settings that are set, plain data.

    Raises:
        CovidCXRError: If a flag is unknown or a setting is wrong.
    """
    parser = _part_parser("masks")
    settings = _parse_part(parser, "masks", {"masks": dict(masks)}, changes)
    return dict(yaml.safe_load(parser.dump(settings, skip_none=True)).get("masks", {}))


def _part_parser(part: str) -> _Parser:
    """Return a parser of one part of a config."""
    parser = _Parser(allow_abbrev=False)
    parser.add_argument("--config", action="config")
    if part == "data":
        DATASETS.load()
        parser.add_lightning_class_args(CXRDataModule, "data", subclass_mode=True)
    else:
        parser.add_argument("--masks.model", type=str | None)
        parser.add_argument("--masks.postprocess", type=list[str | dict[str, Any]] | None)
        parser.add_argument("--masks.min_lung_area", type=float | None)
    return parser


def _parse_part(parser: _Parser, part: str, config: Mapping[str, Any], given_changes: GivenChanges) -> Namespace:
    given, changes = {part: config[part]}, Changes.of(given_changes)
    with own_errors(), TemporaryDirectory() as scratch:
        path = write_yaml(Path(scratch) / "config.yaml", given)
        settings: Namespace = parser.parse_args([f"--config={path}", *_resolve_names(changes, Path(scratch), [])])
        for table in (given, *changes.tables()):
            _check_known(table, settings)
    return settings


def to_plain(settings: Namespace) -> dict[str, Any]:
    """Return settings as plain data, which `read_settings` reads back.

    Args:
        settings: Settings that a parser returned.

    Returns:
        Mappings, lists, text, numbers and None.
    """
    return dict(yaml.safe_load(make_parser().dump(settings, skip_none=False, skip_validation=True)))


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise the covidcxr error that jsonargparse wrapped in errors of its own.

    Yields:
        Nothing.

    Raises:
        CovidCXRError: The error of a constructor; one of another library's, in one line.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        if (own := _own_error(error)) is not None:
            raise own from None
        raise ConfigError(_refusal(str(error))) from error


def _own_error(error: BaseException | None) -> CovidCXRError | None:
    while error is not None and not isinstance(error, CovidCXRError):
        error = error.__cause__ or error.__context__
    return error


def _check_known(given: Any, settings: Any, place: str = "") -> None:
    """Raise an error for a key that is not in the settings.

    The parser passes over unknown keys whose value is an empty table, at any depth.
    """
    if isinstance(settings, list):
        parts = given if isinstance(given, list) else [given]
        for part, setting in zip(reversed(parts), reversed(settings), strict=False):  # a flag may append to a list
            _check_known(part, setting, place)
    elif isinstance(given, Mapping) and isinstance(settings, Namespace):
        if "class_path" in given and _name(given["class_path"]) != _name(settings.get("class_path")):
            return  # replaced by another class since
        if "init_args" in settings and not given.keys() & set(CLASS_KEYS):
            settings = settings.init_args  # `--model.lr` is short for `--model.init_args.lr`
        for key, value in given.items():
            if key not in settings:
                known = {f"{place}{name}" for name in vars(settings)} | set(() if place else RECIPE_KEYS)
                raise ConfigError(_unknown_key(f"{place}{key}", known))
            _check_known(value, settings[key], f"{place}{key}.")


def _name(path: object) -> str:
    return str(path).rpartition(".")[2]


def _resolve_names(changes: Changes, scratch: Path, configs: list[Mapping[str, Any]]) -> Iterator[str]:
    """Return changes as flags; names of recipes, data sets and tasks become files and classes.

    The configs of the recipes are appended to `configs`.
    """

    def recipe(name: str) -> str:
        configs.append(Recipe.read(name).base())
        return str(write_yaml(scratch / f"{len(configs)}.yaml", configs[-1]))

    if model := _saved_model(changes):
        configs.append({"model": model})
        yield f"--config={write_yaml(scratch / 'model.yaml', configs[-1])}"
    resolvers = {"data": data_class, "model": task_class, "config": recipe}
    for key, _, text in changes:
        if text is None or not key:
            yield from Change(key, None, text).flags
        else:
            yield f"--{key}={resolvers[key](text) if key in resolvers else text}"


def _saved_model(changes: Changes) -> dict[str, Any]:
    """Return task and model as `model.init_from` saved them, where neither a config nor another flag says them."""
    said = ("config", "model.class_path", "model.model", "model.segmentation", "model.classification")
    given = {change.plain_key: change.value for change in changes}
    if not given.get("model.init_from") or any(f"{key}.".startswith(f"{name}.") for key in given for name in said):
        return {}
    name = task_class(given["model"]) if isinstance(given.get("model"), str) else None

    def saved(task: TaskName) -> NetworkModel:
        return with_network(load_model(given["model.init_from"], prefer=task))

    if name == task_class("multitask"):
        parts: tuple[TaskName, ...] = ("segmentation", "classification")
        return {"class_path": name, "init_args": {part: saved(part).config.to_dict() for part in parts}}
    if name not in (None, task_class("segmentation"), task_class("classification")):
        return {}
    model = saved("segmentation" if name == task_class("segmentation") else "classification")
    return {"class_path": name or task_class(model.task), "init_args": {"model": model.config.to_dict()}}


CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
"""Keys of a class in a config."""
_LONGEST = 600  # characters of a message
_PLUGINS = ("loggers", "callbacks", "profilers", "strategies")
"""Modules of Lightning whose classes a config may name without the module."""
_OPTION = re.compile(r"Option '([\w.]+)' is not accepted|[Kk]ey \"?'?([\w.]+)\"?'? is not expected")
_PART_OF = re.compile(r"(Subcommand|Group) '([\w.]+)' does not accept option '([\w.]+)'")
_ARGUMENT = re.compile(r"[Uu]nrecognized arguments: (-*)([^\s=]+)")
_MISSING = re.compile(r"arguments are required: ([\w., ]+)")
_ABSTRACT = re.compile(r"Parser key \"(model|data)\":.+Expected an instantiatable class", re.DOTALL)
_HINTS = {
    "model": "--config RECIPE, --model classification or segmentation, or --model.init_from FOLDER for a saved model",
    "model.task": "as --model.model.task and so on, or --model.init_from FOLDER for a saved model",
    "data": "--data NAME names the data set, --data.root DIR its folder",
    "data.root": "--data.root DIR names the data set's folder",
    "root": "--data.root DIR names the data set's folder",
}
_CHOICE = re.compile(r"Parser key \"([\w.]+)\":\s+Expected a typing\.Literal\[(.+?)\]\. Got value: (.+)")
_ATTRIBUTE = re.compile(r"Problem with given class_path '([\w.]+)':\s+module '([\w.]+)' has no attribute '(\w+)'")
_REFUSED = re.compile(r"Problem with given class_path '([\w.]+)':\s+(.+?)(?:\n\s*- |\nGiven |$)", re.DOTALL)
_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")
_SHORT_NAME = re.compile(r"Parser key \"([\w.]+)\":.+Expected a dot import path string: ([\w.]+)", re.DOTALL)
_GIVEN = re.compile(r"Parser key \"([\w.]+)\":.+Given value: (\{.+\})", re.DOTALL)


def in_one_line(message: str, known: Collection[str]) -> str:
    """Shorten an error message of jsonargparse, which lists every type that a value was tried for.

    Args:
        message: Message of jsonargparse.
        known: Dotted keys that the parser accepts.

    Returns:
        One line that names the wrong key or value, and the nearest valid one.
    """
    if match := _PART_OF.search(message):
        kind, group, key = match.groups()
        return _unknown_key(key if kind == "Subcommand" else f"{group}.{key}", known)
    if match := _last(_OPTION, message):
        return _unknown_key(match[1] or match[2], known)
    if match := _ARGUMENT.search(message):
        return _unknown_argument(match[2], set(known) - set(RECIPE_KEYS))
    if match := _last(_MISSING, message) or _ABSTRACT.search(message):
        names = [name.strip() for name in match[1].split(",")]
        hints = "; ".join(hint for name in names if (hint := _HINTS.get(name)))
        return f"These settings are missing: {', '.join(names)}{f' ({hints})' if hints else ''}."
    if match := _CHOICE.search(message):
        choices = [choice.strip().strip("'\"") for choice in match[2].split(",")]
        value = match[3].strip()
        return f"{match[1]} must be one of {', '.join(choices)}, not {value!r}.{_near(value, choices)}"
    return _about_classes(message) or " ".join(message.split())[:_LONGEST]


def _refusal(message: str) -> str:
    """Say in one line why an object that a config names could not be built."""
    match = _REFUSED.search(message)
    return " ".join((f"{match[1]}: {match[2]}" if match else message).split())[:_LONGEST]


def _about_classes(message: str) -> str | None:
    """Describe what is wrong with a class that a config names; None = nothing is known to be."""
    if match := _DENIED.search(message):
        return f"{match[1]!r} is not registered, and with --safe nothing else is imported."
    if match := _ATTRIBUTE.search(message):
        names = [name for name in dir(sys.modules.get(match[2])) if not name.startswith("_")]
        return f"There is no {match[1]!r}: {match[2]} has no {match[3]!r}.{_near(match[3], names)}"
    if match := _SHORT_NAME.search(message):
        modules = (sys.modules.get(f"lightning.pytorch.{module}") for module in _PLUGINS)
        names = [name for module in modules for name in getattr(module, "__all__", ())]
        return f"There is no class {match[2]!r} for {match[1]}.{_near(match[2], names)}"
    if match := _GIVEN.search(message):
        try:
            given: dict[str, Any] = ast.literal_eval(match[2])
        except (ValueError, SyntaxError):  # it holds an object, or was cut off
            return None
        for key in given.keys() - set(CLASS_KEYS) if "class_path" in given else ():
            return f"Unknown key '{match[1]}.{key}'. {did_you_mean(str(key), CLASS_KEYS)}"
    return None


def _unknown_key(key: str, known: Collection[str]) -> str:
    """Return the message about a key that is not known, with the nearest valid key."""
    return f"Unknown key {key!r} in the config. {_nearest(key, known)}"


def _unknown_argument(word: str, known: Collection[str]) -> str:
    if word in known:
        return f"Unknown argument {word!r}. Did you mean '--{word}'?"
    return f"Unknown argument {word!r}. {_nearest(word, known)}"


def _nearest(key: str, known: Iterable[str]) -> str:
    """Find the first wrong part of a dotted key, and suggest the nearest valid one."""
    known = list(known)
    parts = key.split(".")
    for number, part in enumerate(parts):
        before = "".join(f"{parent}." for parent in parts[:number])
        here = {name.removeprefix(before).partition(".")[0] for name in known if name.startswith(before)}
        if part not in here:
            rest = "".join(f".{child}" for child in parts[number + 1 :])
            near = get_close_matches(part, sorted(here), n=1)
            return f"Did you mean '{before}{near[0]}{rest}'?" if near else did_you_mean(part, here)
    return f"It takes no further part: {key!r} is set as a whole."


def _near(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _last(pattern: re.Pattern[str], message: str) -> re.Match[str] | None:
    matches = list(pattern.finditer(message))
    return matches[-1] if matches else None
