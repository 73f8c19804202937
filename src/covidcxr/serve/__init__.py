"""The radiologist's page: a server with a page, a REST interface, and a store of what readers said.

Names are loaded on first use: the worker that decodes films imports this room and needs neither web server nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_ROOMS = {
    "Limits": "settings",
    "ServeSettings": "settings",
    "create_app": "app",
    "serve": "server",
    "Store": "store",
    "export_feedback": "export",
    "post_test": "bayes",
}

__all__ = ["Limits", "ServeSettings", "create_app", "serve", "Store", "export_feedback", "post_test"]

if TYPE_CHECKING:
    from covidcxr.serve.app import create_app
    from covidcxr.serve.bayes import post_test
    from covidcxr.serve.export import export_feedback
    from covidcxr.serve.server import serve
    from covidcxr.serve.settings import Limits, ServeSettings
    from covidcxr.serve.store import Store


def __getattr__(name: str) -> Any:
    """Load a public name from its file, on first use."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'covidcxr.serve' has no attribute {name!r}")
    value = getattr(import_module(f"covidcxr.serve.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
