"""`covidcxr datasets`: what data sets there are, whether a copy is complete, what is in it, and compact copies.

Names are loaded on first use: the command line imports this room for its `--help`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_ROOMS = {
    "list_datasets": "catalogue",
    "describe_dataset": "catalogue",
    "open_dataset": "catalogue",
    "survey": "counting",
    "draw_contact_sheet": "contact",
    "draw_charts": "charts",
}

__all__ = [
    "list_datasets",
    "describe_dataset",
    "open_dataset",
    "survey",
    "draw_contact_sheet",
    "draw_charts",
]

if TYPE_CHECKING:
    from covidcxr.datasets.catalogue import describe_dataset, list_datasets, open_dataset
    from covidcxr.datasets.charts import draw_charts
    from covidcxr.datasets.contact import draw_contact_sheet
    from covidcxr.datasets.counting import survey


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'covidcxr.datasets' has no attribute {name!r}")
    value = getattr(import_module(f"covidcxr.datasets.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
