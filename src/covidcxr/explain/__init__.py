"""What a classifier's prediction rests on: heat maps as data and as pictures, and how faithful they are."""

from __future__ import annotations

from covidcxr.explain.engine import CURVES, Explanation, Faithfulness, explain, explain_many, faithfulness
from covidcxr.explain.methods import METHODS

__all__ = ["CURVES", "METHODS", "Explanation", "Faithfulness", "explain", "explain_many", "faithfulness"]
