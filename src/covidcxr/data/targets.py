"""Records as numbers to learn from: one class a film, or findings that may come together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from covidcxr.data.records import Record
from covidcxr.errors import DatasetError, did_you_mean

__all__ = ["finding_table", "label_numbers"]


def label_numbers(records: Sequence[Record], classes: Sequence[str]) -> Int[Tensor, " films"]:
    """Number the labels by their place in `classes`; -1 = not labelled.

    Raises:
        DatasetError: If a label is no class.
    """
    places = {name: place for place, name in enumerate(classes)}
    found = Counter(record.label for record in records if record.label is not None)
    unknown = [f"{label!r} ({count})" for label, count in sorted(found.items()) if label not in places]
    if unknown:
        raise DatasetError(
            f"Films have labels that are no classes: {', '.join(unknown)}. The classes are {tuple(classes)}. "
            f"Add them to the classes, rename them by label_map, or leave the films out (label_map: LABEL: null)."
        )
    numbers = [-1 if record.label is None else places[record.label] for record in records]
    return torch.tensor(numbers, dtype=torch.int64)


def finding_table(records: Sequence[Record], classes: Sequence[str]) -> Float[Tensor, "films classes"]:
    """Write findings as 1 = shown, 0 = not shown, NaN = not known.

    Raises:
        DatasetError: If a finding is no class, or a film has a label in place of findings.
    """
    places = {name: place for place, name in enumerate(classes)}
    table = np.full((len(records), len(places)), np.nan, np.float32)
    for row, record in enumerate(records):
        if record.label is not None:
            raise DatasetError(
                f"{record.image_id} has the label {record.label!r}, but other films have findings, which may come "
                f"together. Say it as a finding: findings={{{record.label!r}: True}}."
            )
        for name, shown in record.findings.items():
            if name not in places:
                raise DatasetError(
                    f"{record.image_id} has the finding {name!r}, which is no class. {did_you_mean(name, places)}"
                )
            table[row, places[name]] = shown
    return torch.from_numpy(table)
