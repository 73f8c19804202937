"""`covidcxr datasets`: what data sets there are, whether a copy is complete, what is in it, and compact copies.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = ["list_datasets", "describe_dataset", "open_dataset", "survey", "draw_contact_sheet", "draw_charts"]

if TYPE_CHECKING:
    from covidcxr.data.summary.catalogue import describe_dataset, list_datasets, open_dataset
    from covidcxr.data.summary.pictures import draw_charts, draw_contact_sheet
    from covidcxr.data.summary.summary import survey

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "list_datasets": "catalogue",
        "describe_dataset": "catalogue",
        "open_dataset": "catalogue",
        "survey": "summary",
        "draw_contact_sheet": "contact_sheet",
        "draw_charts": "charts",
    },
)
