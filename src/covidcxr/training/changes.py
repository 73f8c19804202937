"""Changes of a config, values by dotted key: what flags or a call from Python set, and what a search may choose."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import yaml

from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.utils.plain import is_number, json_text

__all__ = ["Change", "Changes", "Choice", "GivenChanges", "Number", "Parameter", "read_search", "require_search"]

_NUMBER = re.compile(r"-[\d.]")
_SHORT = {"-c": "config"}


class Change(NamedTuple):
    """One setting.

    Attributes:
        key: Dotted key in the config, `trainer.max_epochs`; `trainer.callbacks+` appends to a list; "" for a word of a
            command line that belongs to no flag, which the parser refuses.
        value: Plain data.
        text: The value as it stands on a command line; None = a flag without a value.

    Example:
        ```python
        from covidcxr.training.changes import Change

        assert Change("trainer.max_epochs", 3, "3").flags == ["--trainer.max_epochs", "3"]
        ```
    """

    key: str
    value: Any
    text: str | None

    @property
    def flags(self) -> list[str]:
        """The words of a command line."""
        return [f"--{self.key}"] * bool(self.key) + ([] if self.text is None else [self.text])

    @property
    def plain_key(self) -> str:
        """The key as it is written for short: `model.lr` for `model.init_args.lr`."""
        return self.key.replace(".init_args", "")


@dataclass(frozen=True)
class Changes:
    """The changes of a config, in order: a later one wins.

    Attributes:
        entries: Each change; a key may come twice.

    Example:
        ```python
        from covidcxr.training.changes import Changes

        changes = Changes.of(["--data.root", "images", "--model.lr=0.001"])
        assert changes == Changes.of({"data.root": "images", "model.lr": 0.001})
        assert changes.part("data").flags() == ["--data.root", "images"]
        ```
    """

    entries: tuple[Change, ...] = ()

    @classmethod
    def of(cls, given: GivenChanges) -> Self:
        """Read changes.

        Args:
            given: From dotted key to value; or flags of `covidcxr fit`, `["--data.root", "images"]`; or changes.

        Returns:
            The changes.
        """
        if isinstance(given, Changes):
            return cls(given.entries)
        if isinstance(given, Mapping):
            return cls(tuple(Change(key, value, _text(value)) for key, value in given.items()))
        return cls(tuple(_read_flags(given)))

    def __iter__(self) -> Iterator[Change]:
        return iter(self.entries)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def __contains__(self, key: str) -> bool:
        return any(change.plain_key == key.replace(".init_args", "") for change in self)

    def __add__(self, given: GivenChanges) -> Self:
        return type(self)((*self.entries, *Changes.of(given)))

    def part(self, name: str) -> Self:
        """Return the changes of a part of the config.

        Args:
            name: Key of the part: "data" for `data` and `data.KEY`.

        Returns:
            The changes of the part.
        """
        return type(self)(tuple(change for change in self if change.key.partition(".")[0] == name))

    def without(self, name: str) -> Self:
        """Return the changes without those of a part of the config, or of a setting.

        Args:
            name: Dotted key; "data.root", the folder of the data, may differ between machines.

        Returns:
            The other changes.
        """
        return type(self)(tuple(change for change in self if not f"{change.key}.".startswith(f"{name}.")))

    def tables(self) -> Iterator[dict[str, Any]]:
        """Return the changes whose value is a table.

        Yields:
            Each as a config that holds nothing else.
        """
        for change in self:
            table = change.value
            if isinstance(table, Mapping):
                for key in reversed(change.key.rstrip("+").split(".")):
                    table = {key: table}
                yield dict(table)

    def flags(self) -> list[str]:
        """Return the words of a command line that makes these changes."""
        return [word for change in self for word in change.flags]


GivenChanges: TypeAlias = Changes | Mapping[str, Any] | Sequence[str]
"""Changes; or values by dotted key; or flags of `covidcxr fit`."""


def _read_flags(words: Sequence[str]) -> Iterator[Change]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        if not word.startswith("--") and name not in _SHORT:
            yield Change("", word, word)
            continue
        has_value = bool(equals) or (bool(rest) and (not rest[0].startswith("-") or _NUMBER.match(rest[0]) is not None))
        written = (text if equals else rest.pop(0)) if has_value else None
        yield Change(_SHORT.get(name, name.removeprefix("--")), _value(written), written)


def _without_root(words: Sequence[str]) -> list[str]:
    """Remove the folder of the data from flags; the function `without_root` of 0.1.0."""
    return Changes.of(words).without("data.root").flags()


def _value(text: str | None) -> Any:
    try:
        value = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return text
    return value if isinstance(value, int | float | list | dict) or text in ("null", None) else text


def _text(value: object) -> str:
    return value if isinstance(value, str) else json_text(value, default=str)


_KNOWN = ("key", "keys", "values", "low", "high", "log", "int", "step")


class _Trial(Protocol):
    """The part of `optuna.Trial` that draws values."""

    def suggest_categorical(self, name: str, choices: Sequence[str], /) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...


@dataclass(frozen=True)
class Choice:
    """A parameter that takes one of several values.

    Attributes:
        name: Its name in the tables.
        values: From the name of a value to its changes, from dotted key in the config to value.

    Example:
        ```python
        from covidcxr.training.changes import Choice

        choice = Choice("optimizer", {"sgd": {"model.init_args.optimizer": "sgd"}, "adamw": {}})
        assert choice.changes("sgd") == {"model.init_args.optimizer": "sgd"}
        ```
    """

    name: str
    values: Mapping[str, Mapping[str, Any]]

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys in the config that it may change."""
        return tuple({key: None for changes in self.values.values() for key in changes})

    def suggest(self, trial: _Trial) -> str:
        """Let a trial draw a value.

        Args:
            trial: A trial of Optuna.

        Returns:
            Name of the value.
        """
        return str(trial.suggest_categorical(self.name, list(self.values)))

    def changes(self, value: str) -> Mapping[str, Any]:
        """Return the changes of a value.

        Args:
            value: Name of the value.

        Returns:
            From dotted key in the config to value.
        """
        return self.values[value]

    def probe(self, number: int) -> str:
        """Return a value for a check of the search; `range(len(values))` gives them all.

        Args:
            number: Number of the check, from 0.

        Returns:
            Name of the value.
        """
        return list(self.values)[number % len(self.values)]


@dataclass(frozen=True)
class Number:
    """A parameter that takes a number from `low` to `high`, both included.

    Attributes:
        name: Its name in the tables.
        keys: The dotted keys in the config that get the number.
        low: Lower bound.
        high: Upper bound.
        log: Draw uniformly on a logarithmic scale.
        whole: Whole numbers only.
        step: Distance of neighbouring values; None = any number within the bounds.

    Example:
        ```python
        from covidcxr.training.changes import Number

        rate = Number("lr", ("model.init_args.lr",), low=1e-4, high=1e-1, log=True)
        assert rate.changes(0.01) == {"model.init_args.lr": 0.01}
        ```
    """

    name: str
    keys: tuple[str, ...]
    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None

    def suggest(self, trial: _Trial) -> float:
        """Let a trial draw a number.

        Args:
            trial: A trial of Optuna.

        Returns:
            A number in [low, high].
        """
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def changes(self, value: float) -> Mapping[str, Any]:
        """Return the changes of a number.

        Args:
            value: A number in [low, high].

        Returns:
            From dotted key in the config to the number.
        """
        return dict.fromkeys(self.keys, value)

    def probe(self, number: int) -> float:
        """Return a number near a bound for a check of the search; it is no integer where it need not be.

        Args:
            number: Number of the check; even = near `low`, odd = near `high`.

        Returns:
            A number in [low, high].
        """
        if self.whole or self.step is not None:
            return (self.low, self.high)[number % 2]
        inwards = (self.high - self.low) * 1e-3
        return self.low + inwards if number % 2 == 0 else self.high - inwards


Parameter: TypeAlias = "Choice | Number"


def read_search(search: object, where: str) -> dict[str, Parameter]:
    """Read the key `search` of a recipe.

    Args:
        search: From name to `{key: dotted key in the config, values: [...]}`; or `{key, low, high}` with `log: true`,
            `int: true` or `step`; or `{values: {name: changes, ...}}`, with changes as in `compare`. `keys: [...]` in
            place of `key` sets several alike.
        where: Name of the recipe, for error messages.

    Returns:
        The parameters, by name.

    Raises:
        ConfigError: If the search has another form.
    """
    if not isinstance(search, Mapping) or not all(isinstance(entry, Mapping) for entry in search.values()):
        raise ConfigError(f"search in {where} must map each name to its key and its values.")
    parameters = {str(name): _read(str(name), entry, where) for name, entry in search.items()}
    taken: dict[str, str] = {}
    for name, parameter in parameters.items():
        for key in parameter.keys:
            if (earlier := taken.setdefault(key, name)) != name:
                raise ConfigError(f"{earlier!r} and {name!r} in the search of {where} both change {key!r}.")
    return parameters


def require_search(search: Mapping[str, Parameter], where: str) -> None:
    """Refuse a recipe that leaves nothing to search.

    Args:
        search: Its parameters, by name.
        where: Name of the recipe, for the error message.

    Raises:
        ConfigError: If there is none.
    """
    if not search:
        raise ConfigError(
            f"{where[:1].upper()}{where[1:]} has no `search`; `covidcxr recipes show wali2021-next` shows one."
        )


def _read(name: str, entry: Mapping[str, Any], where: str) -> Parameter:
    place = f"{name!r} in the search of {where}"
    for key in entry:
        if key not in _KNOWN:
            raise ConfigError(f"Unknown key {key!r} of {place}. {did_you_mean(str(key), _KNOWN)}")
    ranged = entry.keys() & {"low", "high", "log", "int", "step"}
    if ("values" in entry) == bool(ranged):
        raise ConfigError(f"{place} needs either values, or low and high.")
    return _read_number(name, entry, place) if ranged else _read_choice(name, entry, place)


def _read_choice(name: str, entry: Mapping[str, Any], place: str) -> Choice:
    values = entry["values"]
    if not isinstance(values, Mapping | list) or not values:
        raise ConfigError(f"values of {place} must be a list, or map each name to its changes.")
    if isinstance(values, list):
        keys = _keys(entry, place)
        named = {value if isinstance(value, str) else json.dumps(value): dict.fromkeys(keys, value) for value in values}
        if len(named) < len(values):
            raise ConfigError(f"A value of {place} is listed twice.")
        return Choice(name, named)
    if "key" in entry or "keys" in entry:
        raise ConfigError(f"{place} has a key too many: its values name their own keys.")
    if not all(changes is None or isinstance(changes, Mapping) for changes in values.values()):
        raise ConfigError(f"Each value of {place} must map dotted keys of the config to what they become.")
    return Choice(name, {str(value): dict(changes or {}) for value, changes in values.items()})


def _read_number(name: str, entry: Mapping[str, Any], place: str) -> Number:
    for key in ("log", "int"):
        if not isinstance(entry.get(key, False), bool):
            raise ConfigError(f"{key} of {place} must be true or false, not {entry[key]!r}.")
    for key in ("low", "high", "step"):
        value = entry.get(key, 1)
        if not is_number(value) or not math.isfinite(value):
            hint = f" (in YAML {value} is a word; write a point in it)" if isinstance(value, str) else ""
            raise ConfigError(f"{key} of {place} must be a number, not {value!r}{hint}.")
        if entry.get("int") and value != int(value):
            raise ConfigError(f"{key} of {place} must be a whole number, not {value}.")
    low, high, step, log = entry.get("low"), entry.get("high"), entry.get("step"), entry.get("log", False)
    if low is None or high is None or low >= high:
        raise ConfigError(f"{place} needs low and high, and low below high.")
    if log and (low <= 0 or step is not None):
        raise ConfigError(f"log of {place} needs low above 0, and no step.")
    if step is not None and (step <= 0 or not ((high - low) / step + 1e-9) % 1 < 2e-9):
        raise ConfigError(f"step of {place} must be above 0 and lead from low to high, not {step}.")
    whole = entry.get("int", False)
    kind = int if whole else float
    return Number(name, _keys(entry, place), kind(low), kind(high), log, whole, step)


def _keys(entry: Mapping[str, Any], place: str) -> tuple[str, ...]:
    keys = entry.get("keys", entry.get("key"))
    keys = [keys] if isinstance(keys, str) else keys
    if ("key" in entry) == ("keys" in entry) or not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
        raise ConfigError(f"{place} needs key: the dotted key in the config that it sets (or keys: a list of them).")
    return tuple(keys)
