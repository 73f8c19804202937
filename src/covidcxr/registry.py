"""Names for networks, losses, scores, data sets, augmentations, preprocessing and clean-up steps.

A config file holds a *name*; a registry turns it into the class or function. covidcxr's own entries
register themselves when their package is first used; another package adds its own by the decorator or by
an entry point, which is imported only when its name is used:

    [project.entry-points."covidcxr.segmentation_losses"]
    squared = "my_package.losses:Squared"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
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
        package: Module, or package whose modules register covidcxr's own entries when they are imported.
        group: Entry-point group through which other packages add theirs.

    Example:
        ```python
        from covidcxr.registry import SEGMENTATION_LOSSES

        assert "dice" in SEGMENTATION_LOSSES
        assert SEGMENTATION_LOSSES.get("dice").__name__ == "DiceLoss"
        ```
    """

    def __init__(self, kind: str, *, package: str, group: str) -> None:
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
                self._load_package()  # so that the message of a clash names the new entry, not this library's own
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
        self._load_package()
        plugins = self._plugins()
        if name in plugins:
            self.register(name)(self._load(plugins[name]))
        if name not in self._entries:
            raise UnknownNameError(f"There is no {self.kind} {name!r}. {did_you_mean(name, self)}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted, without importing any other package's entry."""
        self._load_package()
        return tuple(sorted({*self._entries, *self._plugins()}))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __repr__(self) -> str:
        return f"<Registry {self.group}: {', '.join(self)}>"

    def _load_package(self) -> None:
        package = import_module(self._package)
        for module in iter_modules(getattr(package, "__path__", ())):
            import_module(f"{self._package}.{module.name}")

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
        for point in entry_points(group=self.group):
            other = points.setdefault(point.name, point)
            if other.value != point.value:
                raise NameClashError(
                    f"Two installed packages offer a {self.kind} {point.name!r}: "
                    f"{other.value} and {point.value}. Uninstall one or rename its entry point."
                )
        return points


def _identity(entry: Callable[..., Any]) -> str:
    return f"{entry.__module__}.{getattr(entry, '__qualname__', repr(entry))}"


DATASETS = Registry("data set", package="covidcxr.data.datasets", group="covidcxr.datasets")
SEGMENTATION_NETWORKS = Registry(
    "segmentation network", package="covidcxr.networks.zoo", group="covidcxr.segmentation_networks"
)
CLASSIFICATION_NETWORKS = Registry(
    "classification network", package="covidcxr.networks.zoo", group="covidcxr.classification_networks"
)
SEGMENTATION_LOSSES = Registry("segmentation loss", package="covidcxr.losses", group="covidcxr.segmentation_losses")
CLASSIFICATION_LOSSES = Registry(
    "classification loss", package="covidcxr.losses", group="covidcxr.classification_losses"
)
CLASSIFICATION_SCORES = Registry(
    "classification score", package="covidcxr.evaluation.metrics.classification", group="covidcxr.classification_scores"
)
AUGMENTATIONS = Registry("augmentation", package="covidcxr.transforms.augment", group="covidcxr.augmentations")
PREPROCESS_STEPS = Registry(
    "preprocessing step", package="covidcxr.transforms.preprocess", group="covidcxr.preprocess_steps"
)
POSTPROCESS_STEPS = Registry(
    "clean-up step", package="covidcxr.transforms.postprocess", group="covidcxr.postprocess_steps"
)
