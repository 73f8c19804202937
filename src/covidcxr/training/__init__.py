"""Training, validation and testing with Lightning, as functions of plain configuration.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = ["Recipe", "Session", "build", "check", "fit", "open_data", "recipe_paths", "test", "train", "validate"]

if TYPE_CHECKING:
    from covidcxr.training.parser import open_data
    from covidcxr.training.recipe import Recipe, recipe_paths
    from covidcxr.training.session import Session, build, check, fit, test, train, validate

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Recipe": "recipe",
        "Session": "session",
        "build": "session",
        "check": "session",
        "fit": "session",
        "open_data": "parser",
        "recipe_paths": "recipe",
        "test": "session",
        "train": "session",
        "validate": "session",
    },
)
