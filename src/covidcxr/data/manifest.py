"""Films of several data sets that one table lists: `manifest.csv`, a row a film, beside the films and their masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from covidcxr.data.records import Record
from covidcxr.data.rows import Table
from covidcxr.data.table import parse_age
from covidcxr.errors import DatasetError

__all__ = ["read_manifest"]

_NEEDED = ("path", "source", "label", "patient_id", "view", "sex", "age", "lung_mask", "infection_mask")
_LUNGS = {"montgomery": "lung_field", "shenzhen": "lung_field"}  # all others: V7's, with the part behind the heart


def read_manifest(
    root: Path, sources: Collection[str], labels: Mapping[str, str], fault: Callable[[DatasetError], None]
) -> list[Record]:
    """Read the films of some sources from the `manifest.csv` of a collection.

    Args:
        root: Folder of the collection.
        sources: What `source` must be.
        labels: From the table's labels to the data set's own; others stay as they are.
        fault: Told of rows that are damaged.

    Returns:
        The films, in the table's order; none where there is no such table, or one of other data sets.
    """
    path = root / "manifest.csv"
    if not path.is_file():
        return []
    table = Table(path, fault=fault)
    if not set(_NEEDED) <= set(table.columns):
        return []
    return [_record(root, row, labels) for _, row in table if row["source"] in sources]


def _record(root: Path, row: Mapping[str, str], labels: Mapping[str, str]) -> Record:
    masks = {_LUNGS.get(row["source"], "lung"): row["lung_mask"], "infection": row["infection_mask"]}
    return Record(
        root / row["path"],
        label=labels.get(row["label"], row["label"]),
        patient_id=row["patient_id"],
        source=row["source"],
        mask_paths={name: root / mask for name, mask in masks.items() if mask},
        view=row["view"] or None,
        sex=row["sex"] or None,
        age=parse_age(row["age"]),
    )
