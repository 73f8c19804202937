"""What jsonargparse says of a wrong setting, in one line that names the key and the nearest right one."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from covidcxr.errors import did_you_mean

__all__ = ["in_one_line"]

_LONGEST = 600
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_PLUGS = ("loggers", "callbacks", "profilers", "strategies")
"""Modules of Lightning whose classes a config may name without their module."""

_OPTION = re.compile(r"Option '([\w.]+)' is not accepted|[Kk]ey \"?'?([\w.]+)\"?'? is not expected")
_PART_OF = re.compile(r"(Subcommand|Group) '([\w.]+)' does not accept option '([\w.]+)'")
_ARGUMENT = re.compile(r"[Uu]nrecognized arguments: (-*)([^\s=]+)")
_MISSING = re.compile(r"arguments are required: ([\w., ]+)")
_CHOICE = re.compile(r"Parser key \"([\w.]+)\":\s+Expected a typing\.Literal\[(.+?)\]\. Got value: (.+)")
_ATTRIBUTE = re.compile(r"Problem with given class_path '([\w.]+)':\s+module '([\w.]+)' has no attribute '(\w+)'")
_SHORT_NAME = re.compile(r"Parser key \"([\w.]+)\":.+Expected a dot import path string: ([\w.]+)", re.DOTALL)
_GIVEN = re.compile(r"Parser key \"([\w.]+)\":.+Given value: (\{.+\})", re.DOTALL)


def in_one_line(message: str, known: Collection[str]) -> str:
    """Shorten a message of jsonargparse, which tells of every type that a value was tried for.

    Args:
        message: What jsonargparse said.
        known: The dotted keys that the parser which said it would have taken.
    """
    if found := _PART_OF.search(message):
        kind, group, key = found.groups()
        return _unknown(key if kind == "Subcommand" else f"{group}.{key}", known)
    if found := _last(_OPTION, message):
        return _unknown(found[1] or found[2], known)
    if found := _ARGUMENT.search(message):
        return _unknown_argument(found[2], known)
    if found := _last(_MISSING, message):
        return f"These settings are missing: {found[1].strip()} (--data.root DIR names the data set's folder)."
    if found := _CHOICE.search(message):
        choices = [choice.strip().strip("'\"") for choice in found[2].split(",")]
        value = found[3].strip()
        return f"{found[1]} must be one of {', '.join(choices)}, not {value!r}.{_near(value, choices)}"
    return _about_classes(message) or " ".join(message.split())[:_LONGEST]


def _about_classes(message: str) -> str | None:
    """Tell what is wrong with a class that a config names."""
    if found := _ATTRIBUTE.search(message):
        names = [name for name in dir(sys.modules.get(found[2])) if not name.startswith("_")]
        return f"There is no {found[1]!r}: {found[2]} has no {found[3]!r}.{_near(found[3], names)}"
    if found := _SHORT_NAME.search(message):
        modules = (sys.modules.get(f"lightning.pytorch.{module}") for module in _PLUGS)
        names = [name for module in modules for name in getattr(module, "__all__", ())]
        return f"There is no class {found[2]!r} for {found[1]}.{_near(found[2], names)}"
    if found := _GIVEN.search(message):
        try:
            given: dict[str, Any] = ast.literal_eval(found[2])
        except (ValueError, SyntaxError):  # it holds an object, or was cut off
            return None
        for key in given.keys() - set(_CLASS_KEYS) if "class_path" in given else ():
            return f"Unknown key '{found[1]}.{key}'. {did_you_mean(str(key), _CLASS_KEYS)}"
    return None


def _unknown(key: str, known: Collection[str]) -> str:
    return f"Unknown key {key!r} in the config. {_nearest(key, known)}"


def _unknown_argument(word: str, known: Collection[str]) -> str:
    if word in known:
        return f"Unknown argument {word!r}. Did you mean '--{word}'?"
    return f"Unknown argument {word!r}. {_nearest(word, known)}"


def _nearest(key: str, known: Iterable[str]) -> str:
    """Find the first part of a dotted key that is wrong, and say what it should have been."""
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
    found = list(pattern.finditer(message))
    return found[-1] if found else None
