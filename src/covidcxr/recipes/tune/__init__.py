"""`covidcxr tune`: a search over the settings of a recipe, shared by any number of processes.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = ["Findings", "tune"]

if TYPE_CHECKING:
    from covidcxr.recipes.tune.engine import Findings, tune

__getattr__, __dir__ = lazy_names(__name__, {"Findings": "findings", "tune": "engine"})
