"""The radiologist's page: a server with a page, a REST interface, and a store of what readers said.

Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from covidcxr.utils.lazy import lazy_names

__all__ = ["Limits", "ServeSettings", "create_app", "serve", "Store", "export_feedback", "post_test"]

if TYPE_CHECKING:
    from covidcxr.serve.report import export_feedback
    from covidcxr.serve.schema import post_test
    from covidcxr.serve.server import create_app, serve
    from covidcxr.serve.settings import Limits, ServeSettings
    from covidcxr.serve.store import Store

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Limits": "settings",
        "ServeSettings": "settings",
        "create_app": "server",
        "serve": "server",
        "Store": "store",
        "export_feedback": "report",
        "post_test": "schema",
    },
)
