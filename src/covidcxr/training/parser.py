"""From a plain config, or from command-line words, to checked settings of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn, TypeAlias

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.registry import DATASETS
from covidcxr.tasks import Task
from covidcxr.training.parser_errors import in_one_line
from covidcxr.training.recipe import RECIPE_KEYS, Recipe, data_class, task_class, write_yaml

__all__ = ["Verb", "apply_words", "make_parser", "open_data", "own_errors", "parse_words", "read_settings", "to_plain"]

Verb: TypeAlias = Literal["fit", "validate", "test"]

_HELP = {
    "fit": "Train a model. Example: covidcxr fit --config mini-lungs --data.root DIR --output my-lungs",
    "validate": "Score a model on validation images. "
    "Example: covidcxr validate --config mini-lungs --data.root DIR --model.init_from my-lungs",
    "test": "Score a model on test images. "
    "Example: covidcxr test --config mini-lungs --data.root DIR --model.init_from my-lungs --output scores",
}


class _Parser(LightningArgumentParser):
    """Says in one line which key is wrong, and the nearest valid one, in place of pages of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _own_error(ex) or ConfigError(in_one_line(message, self._known()))

    def _known(self) -> set[str]:
        """Return the dotted keys that it takes, and those that a recipe has besides."""
        keys = {action.dest for action in self._actions} - {"help"}
        return {key.removesuffix(".help") for key in keys} | set(RECIPE_KEYS)


@cache
def make_parser(verb: Verb = "fit") -> LightningArgumentParser:
    """Return the parser of all settings of a training; building it takes a moment, so there is one a verb.

    Args:
        verb: Whose help it prints.

    Returns:
        A parser of `trainer`, `model` (a task), `data`, and of covidcxr's own settings.
    """
    DATASETS.names()  # so that a YAML file may say `class_path: CSVDataModule`
    description = f"{_HELP[verb]} For research only; not for clinical use."
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
    parser.add_argument(
        "--coverage",
        type=float | None,
        default=None,
        help="fit: a classifier's set of plausible classes holds the truth this often (0.9); it abstains from an image "
        "with more or less than one plausible class; null = always the most probable class",
    )
    parser.add_argument(
        "--compute_mean_std",
        type=bool,
        default=False,
        help="fit: normalise by the mean and standard deviation of the training images, in place of preprocess.mean "
        "and preprocess.std",
    )
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to resume from, or to score")
    parser.add_argument("--weights_only", type=bool | None, default=None, help="load a checkpoint without pickled code")
    parser.add_argument("--verbose", type=bool, default=False, help="validate, test: print Lightning's own table too")
    return parser


def read_settings(config: Mapping[str, Any]) -> Namespace:
    """Check a config and fill in the defaults.

    Args:
        config: Plain data: `model`, `data`, `trainer` and the other keys of `covidcxr fit`, as a recipe's YAML has them.

    Returns:
        All settings.

    Raises:
        CovidCXRError: If a key is unknown (says the nearest), a value is wrong, or a setting is missing.
    """
    with own_errors():
        settings: Namespace = make_parser().parse_object(dict(config))
    if settings.coverage is not None and not 0 < settings.coverage < 1:
        raise ConfigError(f"coverage must be between 0 and 1 (or null), not {settings.coverage}.")
    return settings


def parse_words(words: Sequence[str], verb: Verb = "fit") -> dict[str, Any]:
    """Turn command-line words into a config.

    Args:
        words: Flags, as they follow `covidcxr fit`; `--config` also takes the name of a recipe, `--data` and `--model`
            those of the registry and of tasks.
        verb: Which of the verbs they follow.

    Returns:
        A complete config: plain data.

    Raises:
        CovidCXRError: If a flag is unknown or a value is wrong.
    """
    with own_errors(), TemporaryDirectory() as scratch:
        return to_plain(make_parser(verb).parse_args(list(_resolve_names(words, Path(scratch)))))


def apply_words(config: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Lay command-line words over a config.

    Args:
        config: Plain data.
        words: Flags, as they follow `covidcxr fit`; none = the config as it is.

    Returns:
        A complete config: plain data.

    Raises:
        CovidCXRError: If a flag is unknown or a value is wrong.
    """
    with TemporaryDirectory() as scratch:
        return parse_words(["--config", str(write_yaml(Path(scratch) / "config.yaml", config)), *words])


def open_data(config: Mapping[str, Any], words: Sequence[str] = ()) -> CXRDataModule:
    """Build the data module of a config, without a model.

    Args:
        config: Plain data; its key `data` counts.
        words: Command-line words of `covidcxr fit`; those that begin with `--data` count.

    Returns:
        The data module.

    Raises:
        CovidCXRError: If a setting is wrong.
    """
    parser = _Parser(allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(CXRDataModule, "data", subclass_mode=True)
    with own_errors(), TemporaryDirectory() as scratch:
        path = write_yaml(Path(scratch) / "config.yaml", {"data": config["data"]})
        settings = parser.parse_args([f"--config={path}", *_data_words(words)])
        data: CXRDataModule = parser.instantiate_classes(settings).data
    return data


def to_plain(settings: Namespace) -> dict[str, Any]:
    """Return settings as plain data, which `read_settings` reads back.

    Args:
        settings: What a parser returned.

    Returns:
        Mappings, lists, text, numbers and None.
    """
    plain: dict[str, Any] = yaml.safe_load(make_parser().dump(settings, skip_none=False, skip_validation=True))
    return plain


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise covidcxr's own error where jsonargparse wrapped it in pages of its own words.

    Yields:
        Nothing.

    Raises:
        CovidCXRError: The error that a constructor raised.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise _own_error(error) or error from None


def _own_error(error: BaseException | None) -> CovidCXRError | None:
    while error is not None and not isinstance(error, CovidCXRError):
        error = error.__cause__ or error.__context__
    return error


def _data_words(words: Sequence[str]) -> Iterator[str]:
    """Choose the words that begin with `--data`, with their values."""
    for word, value in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--data"):
            yield word
            if "=" not in word and not value.startswith("--"):
                yield value


def _resolve_names(words: Sequence[str], scratch: Path) -> Iterator[str]:
    """Turn names of recipes after --config, and of the registry after --data and --model, into what the parser knows."""

    def recipe(name: str) -> str:
        return str(write_yaml(scratch / f"{len(list(scratch.iterdir()))}.yaml", Recipe.read(name).base()))

    resolvers = {"--data": data_class, "--model": task_class, "--config": recipe, "-c": recipe}
    before = ""
    for word in words:
        flag, equals, value = word.partition("=")
        if equals and flag in resolvers:
            yield f"{flag}={resolvers[flag](value)}"
        else:
            yield resolvers[before](word) if before in resolvers else word
        before = "" if before in resolvers else word
