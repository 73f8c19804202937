"""Published systems as recipes: single runs, sweeps, cross-validation, ensembles and hyper-parameter search.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = ["PooledRun", "Run", "Sweep", "run_recipe"]

if TYPE_CHECKING:
    from covidcxr.recipes.run import PooledRun, Run
    from covidcxr.recipes.sweep import Sweep, run_recipe

__getattr__, __dir__ = lazy_names(__name__, {"PooledRun": "run", "Run": "run", "Sweep": "sweep", "run_recipe": "sweep"})
