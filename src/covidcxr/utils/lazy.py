"""Names that are imported on first use (PEP 562), modules under their old names, and names that will go."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from covidcxr.aliases import MODULES, find

__all__ = ["deprecated", "install_old_modules", "lazy_names", "old_arguments"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


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
            return find(package, name)
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(modules)


class _Alias(ModuleType):
    """A module under its old name: what it has is what the module of the present name has."""

    def __getattr__(self, name: str) -> Any:
        target = import_module(self.target)
        return getattr(target, name) if hasattr(target, name) else find(self.target, name)


class _AliasFinder(MetaPathFinder, Loader):
    """Finds a module by its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "covidcxr" or name not in MODULES:  # every import of the process passes here
            return None
        return ModuleSpec(fullname, self, is_package=any(old.startswith(f"{name}.") for old in MODULES))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _Alias(spec.name)
        module.__dict__["target"] = f"covidcxr.{MODULES[spec.name.partition('.')[2]]}"
        return module

    def exec_module(self, module: ModuleType) -> None:
        target = import_module(module.__dict__["target"])
        module.__dict__.update(__doc__=target.__doc__, __all__=getattr(target, "__all__", []))


def deprecated(
    *, since: str, removed: str, instead: str
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator for a function that will be removed: calling it gives a `DeprecationWarning`.

    Args:
        since: Release that deprecates it, "0.2" say.
        removed: Release that will not have it any more.
        instead: What to use in its place.

    Returns:
        The decorator.

    Example:
        ```python
        import warnings

        from covidcxr.utils.lazy import deprecated

        @deprecated(since="0.2", removed="0.4", instead="covidcxr.read_image")
        def read_xray(path: str) -> str:
            return path

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read_xray("image.png")
        assert "Use covidcxr.read_image" in str(caught[0].message)
        ```
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(function)
        def call(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
            warnings.warn(
                f"{function.__qualname__} is deprecated since covidcxr {since} and goes with {removed}. Use {instead}.",
                DeprecationWarning,
                stacklevel=2,
            )
            return function(*arguments, **keywords)

        return call

    return decorate


def old_arguments(**renamed: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that lets a function be called with the old names of its keyword arguments too.

    Args:
        renamed: From old to present name. Type checkers know the present one only.

    Returns:
        The decorator.

    Raises:
        TypeError: When the decorated function gets a keyword argument under both its names.

    Example:
        ```python
        from covidcxr.utils.lazy import old_arguments

        @old_arguments(max_films="max_images")
        def draw(*, max_images: int) -> int:
            return max_images

        assert draw(**{"max_films": 3}) == draw(max_images=3) == 3
        ```
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(function)
        def call(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
            for old in renamed.keys() & keywords.keys():
                if renamed[old] in keywords:
                    raise TypeError(f"{old} is the old name of {renamed[old]}: give one of them.")
                keywords[renamed[old]] = keywords.pop(old)
            return function(*arguments, **keywords)

        return call

    return decorate


def install_old_modules() -> None:
    """Let Python's import system find modules by the names of `covidcxr.aliases.MODULES`."""
    if not any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AliasFinder())
