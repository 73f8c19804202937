"""Names for networks, losses, scores, data sets, augmentations, preprocessing and clean-up steps.

A config file holds a *name*; a registry turns it into the class or function. covidcxr's own entries are
found in the source of their package, and their module is imported only when the name is used: a list of names
costs milliseconds. Another package adds its own by the decorator or by an entry point, which is imported only
when its name is used:

    [project.entry-points."covidcxr.segmentation_losses"]
    squared = "my_package.losses:Squared"
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from covidcxr.errors import ConfigError, NameClashError, UnknownNameError, did_you_mean

__all__ = [
    "Registry",
    "DATASETS",
    "SEGMENTATION_NETWORKS",
    "CLASSIFICATION_NETWORKS",
    "SEGMENTATION_LOSSES",
    "CLASSIFICATION_LOSSES",
    "CLASSIFICATION_SCORES",
    "AUGMENTATIONS",
    "PREPROCESS_STEPS",
    "POSTPROCESS_STEPS",
]

Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry:
    """A table from names to the classes or functions that build the named thing.

    Args:
        kind: What the entries are, in words for error messages ("segmentation loss").
        group: Entry-point group through which other packages add theirs. Its last word, in capitals, is the name of
            the variable that holds the table.
        package: Module, or package whose modules register covidcxr's own entries by the decorator
            `@TABLE.register("name")`, at the start of a line; None = it has none.

    Example:
        ```python
        from covidcxr.registry import SEGMENTATION_LOSSES

        assert "dice" in SEGMENTATION_LOSSES
        assert SEGMENTATION_LOSSES.get("dice").__name__ == "DiceLoss"
        ```
    """

    def __init__(self, kind: str, *, group: str, package: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._package = package
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that registers a class or function under `name`.

        Args:
            name: The new name, without a `+`.

        Returns:
            The decorator; it returns the class or function unchanged.

        Raises:
            NameClashError: If something else has that name already.
            ConfigError: If `name` is no name, or holds a `+`, which adds losses.
        """
        given: object = name  # `@register` without parentheses hands over the class itself
        if not isinstance(given, str) or not given or "+" in given:
            raise ConfigError(f'A {self.kind} is registered under a name: .register("my_name"), not {name!r}.')

        def decorator(entry: Entry) -> Entry:
            if not str(entry.__module__).startswith("covidcxr."):
                self._load_own(name)  # so that the message of a clash names the new entry, not this library's own
            taken = self._entries.get(name)
            if taken is not None and _identity(taken) != _identity(entry):
                raise NameClashError(
                    f"The {self.kind} name {name!r} is taken by {_identity(taken)}; "
                    f"{_identity(entry)} needs another name."
                )
            self._entries[name] = entry  # the same definition again (a reloaded notebook cell) replaces itself
            return entry

        return decorator

    def get(self, name: str) -> Callable[..., Any]:
        """Return the entry of a name.

        Args:
            name: One of `names()`.

        Returns:
            The registered class or function.

        Raises:
            UnknownNameError: If there is none; the message names the nearest.
            NameClashError: If another package's entry point has the name of an entry here, or two have one name.
        """
        self._load_own(name)
        plugins = self._plugins()
        if name in plugins:
            self.register(name)(self._load(plugins[name]))
        if name not in self._entries:
            raise UnknownNameError(f"There is no {self.kind} {name!r}. {did_you_mean(name, self)}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted, without importing what they stand for."""
        return tuple(sorted({*self._entries, *self.sources, *self._plugins()}))

    def load(self) -> None:
        """Import all of covidcxr's own entries, none of other packages."""
        for name in self.sources:
            self._load_own(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __repr__(self) -> str:
        return f"<Registry {self.group}: {', '.join(self)}>"

    @cached_property
    def sources(self) -> Mapping[str, Path]:
        """From the name of each of covidcxr's own entries to the source file that registers it; nothing is imported."""
        if self._package is None:
            return {}
        top, *parts = self._package.split(".")
        spec = find_spec(top)
        place = Path(str(spec.origin if spec else "")).parent.joinpath(*parts)
        files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        decorator = re.compile(
            rf"""^@{self.group.rpartition(".")[2].upper()}\.register\(['"](.+?)['"]\)""", re.MULTILINE
        )
        return {name: file for file in files for name in decorator.findall(file.read_text(encoding="utf-8"))}

    def _load_own(self, name: str) -> None:
        """Import the module of one of covidcxr's own entries."""
        if name not in self._entries and name in self.sources and self._package is not None:
            file = self.sources[name]
            is_module = file.stem == self._package.rpartition(".")[2]
            import_module(self._package if is_module else f"{self._package}.{file.stem}")

    def _load(self, point: EntryPoint) -> Callable[..., Any]:
        try:
            entry: Callable[..., Any] = point.load()
        except (ImportError, AttributeError) as error:
            package = point.dist.name if point.dist else "an installed package"
            raise UnknownNameError(
                f"The {self.kind} {point.name!r} of {package} ({point.value}) cannot be loaded: {error}. "
                f"Repair or uninstall that package."
            ) from error
        return entry

    def _plugins(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in installed_points(self.group):
            known = points.setdefault(point.name, point)
            if known.value != point.value:
                raise NameClashError(
                    f"Two installed packages offer a {self.kind} {point.name!r}: "
                    f"{known.value} and {point.value}. Uninstall one or rename its entry point."
                )
        return points


def installed_points(group: str) -> list[EntryPoint]:
    """Return the entry points of installed packages; what is installed is read once, until it changes.

    Args:
        group: Group of the entry points.

    Returns:
        The entry points.
    """
    places = tuple(path for path in map(Path, sys.path) if path.is_dir())
    return list(_read_points(places, tuple(path.stat().st_mtime for path in places)).select(group=group))


@lru_cache(maxsize=2)
def _read_points(places: tuple[Path, ...], changed: tuple[float, ...]) -> Any:
    return entry_points()


def _identity(entry: Callable[..., Any]) -> str:
    return f"{entry.__module__}.{getattr(entry, '__qualname__', repr(entry))}"


DATASETS = Registry("data set", group="covidcxr.datasets", package="covidcxr.data.datasets")
SEGMENTATION_NETWORKS = Registry(
    "segmentation network", group="covidcxr.segmentation_networks", package="covidcxr.networks"
)
CLASSIFICATION_NETWORKS = Registry(
    "classification network", group="covidcxr.classification_networks", package="covidcxr.networks"
)
SEGMENTATION_LOSSES = Registry("segmentation loss", group="covidcxr.segmentation_losses", package="covidcxr.losses")
CLASSIFICATION_LOSSES = Registry(
    "classification loss", group="covidcxr.classification_losses", package="covidcxr.losses"
)
CLASSIFICATION_SCORES = Registry("classification score", group="covidcxr.classification_scores")
AUGMENTATIONS = Registry("augmentation", group="covidcxr.augmentations", package="covidcxr.transforms.augment")
PREPROCESS_STEPS = Registry(
    "preprocessing step", group="covidcxr.preprocess_steps", package="covidcxr.transforms.preprocess"
)
POSTPROCESS_STEPS = Registry(
    "clean-up step", group="covidcxr.postprocess_steps", package="covidcxr.transforms.postprocess"
)
