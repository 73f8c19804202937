"""Training, validation and testing with Lightning, as functions of plain configuration.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = [
    "RECIPE_KEYS",
    "Recipe",
    "claim",
    "data_class",
    "recipe_paths",
    "task_class",
    "without_root",
    "write_yaml",
]

if TYPE_CHECKING:
    from covidcxr.training.recipe import (
        RECIPE_KEYS,
        Recipe,
        claim,
        data_class,
        recipe_paths,
        task_class,
        without_root,
        write_yaml,
    )

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "RECIPE_KEYS": "recipe",
        "Recipe": "recipe",
        "claim": "recipe",
        "data_class": "recipe",
        "recipe_paths": "recipe",
        "task_class": "recipe",
        "without_root": "recipe",
        "write_yaml": "recipe",
    },
)
