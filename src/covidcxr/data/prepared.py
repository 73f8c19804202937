"""Compact copies of data sets: reading the index that `prepare` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.data.records import Record

if TYPE_CHECKING:
    from covidcxr.data.collection import Collection

__all__ = ["INDEX", "Prepared"]

INDEX = "covidcxr-prepared.json"
"""The file by which a compact copy is known; it is written last."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The index of a compact copy.

    Attributes:
        root: Folder of the copy.
        dataset: Class name of the data module that it is a copy of.
        settings: What the data module was told when it was copied.
        classes: Its classes, before any `label_map`.
        image_size: Height and width of the frame that films were fitted to.
        fit: How.
    """

    root: Path
    dataset: str
    settings: Mapping[str, Any]
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    fit: str

    @classmethod
    def find(cls, root: Path) -> Prepared | None:
        """Return the index of the copy in `root`; None if there is no copy."""
        if not (root / INDEX).is_file():
            return None
        raise NotImplementedError(json.dumps({"todo": str(root)}))

    def read(self, collection: Collection) -> Iterator[Record]:
        """Return the records of the copy."""
        raise NotImplementedError
