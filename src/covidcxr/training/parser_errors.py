"""Messages of the config parser, each in one line that names the wrong key or value and the nearest valid one."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from covidcxr.errors import did_you_mean
from covidcxr.training.recipe import RECIPE_KEYS

__all__ = ["CLASS_KEYS", "in_one_line", "refusal", "unknown_key"]

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
"""Keys of a class in a config."""
_LONGEST = 600  # characters of a message
_PLUGINS = ("loggers", "callbacks", "profilers", "strategies")
"""Modules of Lightning whose classes a config may name without the module."""
_OPTION = re.compile(r"Option '([\w.]+)' is not accepted|[Kk]ey \"?'?([\w.]+)\"?'? is not expected")
_PART_OF = re.compile(r"(Subcommand|Group) '([\w.]+)' does not accept option '([\w.]+)'")
_ARGUMENT = re.compile(r"[Uu]nrecognized arguments: (-*)([^\s=]+)")
_MISSING = re.compile(r"arguments are required: ([\w., ]+)")
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
        return unknown_key(key if kind == "Subcommand" else f"{group}.{key}", known)
    if match := _last(_OPTION, message):
        return unknown_key(match[1] or match[2], known)
    if match := _ARGUMENT.search(message):
        return _unknown_argument(match[2], set(known) - set(RECIPE_KEYS))
    if match := _last(_MISSING, message):
        root = " (--data.root DIR names the data set's folder)" if "root" in match[1] or "data" in match[1] else ""
        return f"These settings are missing: {match[1].strip()}{root}."
    if match := _CHOICE.search(message):
        choices = [choice.strip().strip("'\"") for choice in match[2].split(",")]
        value = match[3].strip()
        return f"{match[1]} must be one of {', '.join(choices)}, not {value!r}.{_near(value, choices)}"
    return _about_classes(message) or " ".join(message.split())[:_LONGEST]


def refusal(message: str) -> str:
    """Say in one line why an object that a config names could not be built.

    Args:
        message: Message of jsonargparse, or of the object's constructor.

    Returns:
        The class and its reason.
    """
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


def unknown_key(key: str, known: Collection[str]) -> str:
    """Return the message about a key that is not known.

    Args:
        key: The dotted key.
        known: The dotted keys that are known.

    Returns:
        One line, with the nearest valid key.
    """
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
