"""Cross-validation and leave-one-source-out: a config is trained several times, each time tested on other images.

Every image is tested once, by a model that was trained without its patient (or without its source), so the rows of all
parts are scored as a single test.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from covidcxr import aliases
from covidcxr.data import CXRDataModule, Record, assign_splits
from covidcxr.data.records import labels_of
from covidcxr.errors import ConfigError

__all__ = ["Fold", "pool_rows", "without_sources"]

__getattr__ = partial(aliases.find, __name__)


@dataclass(frozen=True)
class Fold:
    """A part of a cross-validated run: which images it tests.

    Attributes:
        name: Name of the part and its folder: "fold-0", "without-hannover".
        settings: Arguments of the data module by which it tests these images.

    Example:
        ```python
        from covidcxr.recipes.cross_validation import Fold

        config = Fold.folds(5)[1].apply({"data": {"class_path": "CSVDataModule"}})
        assert config["data"]["init_args"] == {"fold": 1, "folds": 5}
        ```
    """

    name: str
    settings: Mapping[str, Any]

    @classmethod
    def folds(cls, count: int) -> tuple[Fold, ...]:
        """Return the folds of a cross-validation; all images of a patient are in the same fold.

        Args:
            count: Number of folds, 3 or more.

        Returns:
            The folds, in order.

        Raises:
            ConfigError: If there are fewer than 3 folds: one tests, one validates, the others train.
        """
        if count < 3:
            raise ConfigError(f"--folds must be 3 or more (one tests, one validates, the others train), not {count}.")
        return tuple(cls(f"fold-{number}", {"fold": number, "folds": count}) for number in range(count))

    def apply(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config whose data module tests the images of this part.

        Args:
            config: Config of the run: plain data, not changed.

        Returns:
            A changed copy.

        Raises:
            ConfigError: If the config names no data module, or holds images out already.
        """
        changed = copy.deepcopy(dict(config))
        data = changed.get("data")
        if not isinstance(data, dict) or "class_path" not in data:
            raise ConfigError("Folds and held-out sources need data.class_path in the config.")
        settings = data.setdefault("init_args", {})
        for name in ("fold", "folds", "hold_out_source"):
            if settings.get(name) is not None:
                raise ConfigError(f"data.init_args.{name} is set already: leave it out, or --folds and the like.")
        settings.update(self.settings)
        return changed


def without_sources(data: CXRDataModule, labels: bool = True) -> tuple[tuple[Fold, ...], dict[str, str]]:
    """Return the sources that can be held out, each in turn, and why others cannot.

    Args:
        data: Data module with all images.
        labels: Whether the model learns labels; if not, it learns the masks in `mask_classes` only.

    Returns:
        A part for each source; and from each other source to the reason why it is never held out.

    Raises:
        ConfigError: If no source can be held out.
    """
    records = data.unsplit_records()
    everything = _learnt(records, data, labels)
    parts, reasons = [], {}
    for source in sorted({record.source for record in records if _learnt([record], data, labels)}):
        split = assign_splits(records, data.fractions, seed=data.split_seed, hold_out_source=source)
        left = _learnt([record for record in split if record.split == "train"], data, labels)
        if lacking := sorted(everything - left):
            reasons[source] = f"without {source} there is no image to learn {', '.join(lacking)} from"
        else:
            parts.append(Fold(f"without-{re.sub(r'[^A-Za-z0-9._-]+', '_', source)}", {"hold_out_source": source}))
    if not parts:
        why = "; ".join(reasons.values()) or "no image has a label or a mask"
        raise ConfigError(f"No source can be held out: {why}.")
    return tuple(parts), reasons


def pool_rows(parts: Iterable[tuple[Fold, Iterable[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    """Concatenate the rows of all parts.

    The images that a patient of a held-out source has in other sources are tested with them; they are counted in the
    part that holds out their own source.

    Args:
        parts: Each part, and the rows of its test images.

    Returns:
        The rows, each with the name of its part as `fold`.
    """
    pooled = []
    for part, rows in parts:
        source = part.settings.get("hold_out_source")
        pooled += [{**row, "fold": part.name} for row in rows if source is None or row["source"] == source]
    return pooled


def _learnt(records: Iterable[Record], data: CXRDataModule, labels: bool) -> set[str]:
    """Return the labels and the mask classes that can be learnt from images."""
    learnt: set[str] = set()
    for record in records:
        if labels:
            learnt.update(name for name in labels_of(record) if name in data.classes)
        learnt.update(name for name in record.mask_paths if name in data.mask_classes)
    return learnt
