"""Cross-validation and leave-one-source-out: one config trained several times, each time tested on other images.

Every image is tested once, by a model that saw neither it nor its patient (nor, without its source, any image from
there). So the rows of all parts together are scored as one test.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from covidcxr.data import CXRDataModule, Record, assign_splits
from covidcxr.data.records import labels_of
from covidcxr.errors import ConfigError

__all__ = ["HeldOut", "pool_rows", "without_sources"]


@dataclass(frozen=True)
class HeldOut:
    """Which images a part of a pooled run tests.

    Attributes:
        name: Names the part and its folder: "fold-0", "without-hannover".
        settings: Arguments of the data module by which it tests these images.
    """

    name: str
    settings: Mapping[str, Any]

    @classmethod
    def folds(cls, count: int) -> tuple[HeldOut, ...]:
        """Return the folds of a cross-validation, patients whole.

        Raises:
            ConfigError: If there are fewer than 3: one tests, one validates, the others train.
        """
        if count < 3:
            raise ConfigError(f"--folds must be 3 or more (one tests, one validates, the others train), not {count}.")
        return tuple(cls(f"fold-{number}", {"fold": number, "folds": count}) for number in range(count))

    def apply(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config whose data module tests these images.

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


def without_sources(data: CXRDataModule, labels: bool = True) -> tuple[tuple[HeldOut, ...], dict[str, str]]:
    """Return the sources that can be held out, one at a time, and why others cannot.

    Args:
        data: The images.
        labels: Whether labels are learnt; else only the masks that the data module is asked for are.

    Returns:
        The parts; and from source to the reason why it is never held out.

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
            parts.append(HeldOut(f"without-{re.sub(r'[^A-Za-z0-9._-]+', '_', source)}", {"hold_out_source": source}))
    if not parts:
        why = "; ".join(reasons.values()) or "no image has a label or a mask"
        raise ConfigError(f"No source can be held out: {why}.")
    return tuple(parts), reasons


def pool_rows(parts: Iterable[tuple[HeldOut, Iterable[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    """Put the rows of all parts together, each with the name of the part that tested it as `fold`.

    A patient of a held-out source is tested with images of other sources, too; these count where their own is held out.
    """
    pooled = []
    for part, rows in parts:
        source = part.settings.get("hold_out_source")
        pooled += [{**row, "fold": part.name} for row in rows if source is None or row["source"] == source]
    return pooled


def _learnt(records: Iterable[Record], data: CXRDataModule, labels: bool) -> set[str]:
    """Return what can be learnt from images: labels, and the masks asked for."""
    found: set[str] = set()
    for record in records:
        if labels:
            found.update(name for name in labels_of(record) if name in data.classes)
        found.update(name for name in record.mask_paths if name in data.mask_classes)
    return found
