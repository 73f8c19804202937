"""Scores and their confidence intervals, as functions of predictions."""

from functools import partial

from covidcxr import aliases

__getattr__ = partial(aliases.find, __name__)  # 0.1.0 had a module of this name
