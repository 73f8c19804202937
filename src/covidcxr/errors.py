"""Every error that covidcxr raises on purpose.

    CovidCXRError
    ├── ImageReadError          an image or mask cannot be read; says which file and what to do
    ├── DatasetError            a data set on disk is missing, incomplete or contradicts itself
    ├── ConfigError             a setting, key or value is wrong
    │   └── UnknownNameError    no such network, loss, data set, ...; says the nearest known name
    ├── NameClashError          two things were registered under one name
    └── PretrainedError         a saved model cannot be found or cannot be trusted

Each message says what happened, where, and what to do about it. Wrong *input* raises one of these;
a bug in covidcxr raises whatever Python raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CovidCXRError",
    "ImageReadError",
    "DatasetError",
    "ConfigError",
    "UnknownNameError",
    "NameClashError",
    "PretrainedError",
    "did_you_mean",
    "nearest_argument",
]


class CovidCXRError(Exception):
    """Base of all errors of this library: catch this one to catch them all."""


class ImageReadError(CovidCXRError, ValueError):
    """An image or a mask cannot be read."""


class DatasetError(CovidCXRError, ValueError):
    """A data set on disk is missing, incomplete or contradicts itself."""


class ConfigError(CovidCXRError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class UnknownNameError(ConfigError):
    """A name is in no registry; the message offers the nearest known one."""


class NameClashError(CovidCXRError, ValueError):
    """Two things were registered under one name."""


class PretrainedError(CovidCXRError, OSError):
    """A saved model cannot be found, or what was found is damaged, tampered with or too new."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Finish an error message about an unknown name.

    Args:
        name: What the user wrote.
        known: All names that would have been right.

    Returns:
        `"Did you mean 'dice'?"` when something is near, else the list of all known names.
    """
    options = sorted(known)
    near = get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(options) or 'none'}."


def nearest_argument(error: Exception, known: Iterable[str]) -> str:
    """Finish a message about a keyword argument that a function has not.

    Args:
        error: What Python raised.
        known: The arguments that it has.

    Returns:
        `" Did you mean 'drop_rate'?"`, or `""` where nothing is near or something else is wrong.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    near = get_close_matches(found[1], sorted(known), n=1) if found else []
    return f" Did you mean {near[0]!r}?" if near else ""
