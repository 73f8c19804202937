"""Changes of a config: what the flags of a command line, or a call from Python, set in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias

import yaml

from covidcxr.utils.plain import json_text

__all__ = ["Change", "Changes", "GivenChanges"]

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
