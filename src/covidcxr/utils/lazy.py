"""Public names of a package that are imported on first use (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from covidcxr import aliases

__all__ = ["lazy_names"]


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose names are imported on first use.

    Args:
        package: The package's `__name__`.
        modules: From public name to the module, below the package, that defines it.

    Returns:
        The two functions, to be bound at the top level of the package's `__init__.py`.

    Example:
        ```python
        from covidcxr.utils.lazy import lazy_names

        load, names = lazy_names("covidcxr.data", {"Record": "records"})
        assert load("Record").__name__ == "Record" and names() == ["Record"]
        ```
    """

    def load(name: str) -> Any:
        if name not in modules:
            return aliases.find(package, name)
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(modules)
