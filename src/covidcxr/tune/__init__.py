"""`covidcxr tune`: a search over the settings of a recipe, shared by as many processes as one likes.

Names are loaded on first use: the command line imports this room for its `--help`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_ROOMS = {"tune": "engine", "Findings": "findings"}

__all__ = ["tune", "Findings"]

if TYPE_CHECKING:
    from covidcxr.tune.engine import tune
    from covidcxr.tune.findings import Findings


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'covidcxr.tune' has no attribute {name!r}")
    value = getattr(import_module(f"covidcxr.tune.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
