"""Checks of what a config holds: plain data that may come from anybody's file."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping
from reprlib import Repr
from typing import Any, cast

from covidcxr.errors import ConfigError, PretrainedError, did_you_mean
from covidcxr.utils.plain import is_number, plain

__all__ = [
    "FORMAT_VERSION",
    "check_choice",
    "check_format_version",
    "check_keys",
    "check_mapping",
    "check_name",
    "check_names",
    "check_number",
    "check_whole",
    "json_values",
    "numbers",
    "plain_steps",
    "short",
]

FORMAT_VERSION = 1
"""Version of the saved format that this release writes; it reads this one and all older ones."""


MOST_CLASSES = 1000
MOST_STEPS = 16
"""Longest chain of steps; each takes its time for every image."""
LARGEST_NUMBER = 1_000_000
"""In the arguments of a network, where a larger number would ask for more memory than there is."""
_LONGEST_NAME = 64
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_TAKEN = {"overlay"}
_WINDOWS_CHARACTERS = frozenset('<>:"|?*')
_WINDOWS_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{number}" for port in ("com", "lpt") for number in "123456789"),
}
_FORBIDDEN = {"Cc": "a control character", "Cf": "an invisible character", "Cs": "no character"}
_FORBIDDEN |= {"Zl": "a line break", "Zp": "a line break"}


def check_keys(data: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuse unknown keys, which would be ignored otherwise.

    Args:
        data: The keys and values to check.
        known: All valid keys.
        where: The place of `data`, for messages.

    Raises:
        ConfigError: If `data` has a key that is not in `known`; names the key, the place and the nearest valid key.
    """
    for key in data:
        if key not in known:
            raise ConfigError(f"Unknown key {short(key)} in {where}. {did_you_mean(key, known)}")


def check_format_version(version: object, where: str) -> None:
    """Refuse a file that a newer release wrote.

    Args:
        version: The value of the key `format_version`.
        where: The file, for messages.

    Raises:
        PretrainedError: If `version` is newer than `FORMAT_VERSION`.
        ConfigError: If it is no whole number from 1 up.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError(f"format_version in {where} must be a whole number from 1 up, not {short(version)}.")
    if version > FORMAT_VERSION:
        raise PretrainedError(
            f"{where} has format version {version}; this release reads up to {FORMAT_VERSION}. "
            f"Upgrade with: pip install --upgrade covidcxr"
        )


def short(value: object) -> str:
    """Return a value as text for a message: the beginning of what is long.

    Args:
        value: Anything.

    Returns:
        One line.
    """
    return _SHORT.repr(value)


def check_name(name: object, what: str) -> None:
    """Refuse the name of a class that could not be part of a file's name: masks are written as `IMAGE.CLASS.png`.

    Args:
        name: The name; spaces within it and letters of any alphabet are fine.
        what: What it names, for messages.

    Raises:
        ConfigError: If it is no text, empty, too long, begins with a dot, or holds a separator of paths, a character
            that cannot be seen or one that Windows refuses, or if it is the name of a device there.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{what} must be a name, not {short(name)}.")
    fault = next((_FORBIDDEN[kind] for kind in map(unicodedata.category, name) if kind in _FORBIDDEN), None)
    if len(name) > _LONGEST_NAME:
        fault = f"more than {_LONGEST_NAME} characters"
    elif "/" in name or "\\" in name:
        fault = "a separator of paths"
    elif name[0] == ".":
        fault = "a dot at its beginning"
    elif characters := sorted(_WINDOWS_CHARACTERS.intersection(name)):
        fault = f"{' '.join(characters)}, which no file of Windows may have"
    elif name.partition(".")[0].strip().casefold() in _WINDOWS_DEVICES:
        fault = "the meaning of a device on Windows"
    if fault:
        raise ConfigError(f"{what} {name[:_LONGEST_NAME]!r} has {fault}, so it cannot name files: rename it.")


def check_names(names: object, what: str, *, files: bool) -> tuple[str, ...]:
    """Check the names of classes, and return them.

    Args:
        names: A list of names.
        what: What it is, for messages.
        files: Whether each becomes the name of a file, where upper and lower case may be the same.

    Returns:
        The names.

    Raises:
        ConfigError: If it is no list, a name cannot be used, or two are alike.
    """
    names = plain(names)
    if not isinstance(names, list | tuple) or not 0 < len(names) <= MOST_CLASSES:
        raise ConfigError(f"{what} must be a list of 1 to {MOST_CLASSES} names, not {short(names)}.")
    seen: dict[str, str] = {}
    for name in names:
        check_name(name, f"{what}: the name")
        key = unicodedata.normalize("NFC", name).casefold() if files else name
        if files and key in _TAKEN:
            raise ConfigError(f"{what}: {name!r} is the name of another file beside the masks: rename it.")
        if key in seen:
            raise ConfigError(f"{what} must be distinct names: {seen[key]!r} and {name!r} are the same.")
        seen[key] = name
    return tuple(names)


def check_mapping(data: object, where: str) -> None:
    """Refuse what is no table of keys and values.

    Args:
        data: To be checked.
        where: Its place, for messages.

    Raises:
        ConfigError: If it is none.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a table of keys and values, not {type(data).__name__}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name: The key.
        value: Its value.
        choices: What it may be.

    Raises:
        ConfigError: If it is another.
    """
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {short(value)}.")


def check_number(value: object, name: str, low: float, high: float) -> float:
    """Check a number, and return it as Python's own.

    Args:
        value: The number; one of numpy or torch, too.
        name: Its name, for messages.
        low: The least that it may be.
        high: The most that it may be.

    Returns:
        The number.

    Raises:
        ConfigError: If it is none, or out of range.
    """
    number: Any = plain(value)
    if not _is_number(number) or not low <= number <= high:
        span = "above 0, in" if low > 0 else "in"
        raise ConfigError(f"{name} must be a number {span} [{low:g}, {high:g}], not {short(number)}.")
    return cast(float, number)


def check_whole(value: object, name: str, low: int, high: int | None = None) -> int:
    """Check a whole number, and return it as Python's own.

    Args:
        value: The number; one of numpy or torch, too.
        name: Its name, for messages.
        low: The least that it may be.
        high: The most that it may be; None = any.

    Returns:
        The number.

    Raises:
        ConfigError: If it is none, or out of range.
    """
    number: Any = plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < low or (high is not None and number > high):
        span = f"from {low} up" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{name} must be a whole number {span}, not {short(number)}.")
    return number


def numbers(values: object, kind: type, name: str) -> tuple[Any, ...]:
    """Check a list of numbers, and return them.

    Args:
        values: A list, a tuple, or an array of numpy or torch.
        kind: int or float.
        name: Its name, for messages.

    Returns:
        The numbers, of that kind.

    Raises:
        ConfigError: If it is no list, empty, or a value is no such number.
    """
    values = plain(values)
    if not isinstance(values, list | tuple) or not values or not all(_is_number(value) for value in values):
        raise ConfigError(f"{name} must be a list of numbers, not {short(values)}.")
    if kind is int and any(value != int(value) for value in values):
        raise ConfigError(f"{name} must hold whole numbers, not {short(values)}.")
    return tuple(kind(value) for value in values)


def json_values(data: Any, name: str) -> Any:
    """Copy what JSON can hold, numbers of numpy as Python's own.

    Args:
        data: Tables, lists, text, numbers, true, false and None.
        name: Its name, for messages.

    Returns:
        The copy.

    Raises:
        ConfigError: If it holds something else, or a number above 1,000,000.
    """
    try:
        copied = json.loads(json.dumps(plain(data), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} must hold JSON values only: {error}.") from error
    parts = [copied]
    for part in parts:  # grows as it goes
        if isinstance(part, list | dict):
            parts.extend(part.values() if isinstance(part, dict) else part)
        elif isinstance(part, int | float) and abs(part) > LARGEST_NUMBER:
            raise ConfigError(f"{name} holds a number above {LARGEST_NUMBER:,}; no setting is that large.")
    return copied


def plain_steps(steps: object) -> tuple[str | dict[str, Any], ...]:
    """Check that steps are plain data, and copy them; the model that is built from them knows their names.

    Args:
        steps: Names, and tables with a name and parameters.

    Returns:
        The copy.

    Raises:
        ConfigError: If it is no list of these, or too long.
    """
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str | dict) for step in steps):
        raise ConfigError(f"steps must be a list of names, or of tables with name and parameters, not {short(steps)}.")
    if len(steps) > MOST_STEPS:
        raise ConfigError(f"There can be {MOST_STEPS} steps at most, not {len(steps)}.")
    return tuple(json_values(steps, "steps"))


def _is_number(value: object) -> bool:
    # JSON knows NaN, Infinity and whole numbers of any length; no setting of ours may be one of them.
    return is_number(value) and abs(value) <= sys.float_info.max
