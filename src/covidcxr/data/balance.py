"""Weights against imbalance: for the loss, and for drawing films."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from covidcxr.data.records import Record
from covidcxr.errors import DatasetError

__all__ = ["Balance", "class_weights", "positive_weights", "sampling_weights"]

Balance = Literal["none", "class", "source", "class+source"]
"""What is drawn equally often: classes, sources, or classes and within each class its sources."""


def class_weights(labels: Int[Tensor, " films"], classes: Sequence[str]) -> Float[Tensor, " classes"]:
    """Weigh classes inversely to their frequency; the mean over the films is 1.

    Args:
        labels: One class number a film; -1 = not labelled.
        classes: Names of the classes.

    Raises:
        DatasetError: If a class has no film.
    """
    counts = Counter(label for label in labels.tolist() if label >= 0)
    lacking = [name for place, name in enumerate(classes) if counts[place] == 0]
    if lacking or not classes:
        raise DatasetError(
            f"No training film is labelled {', '.join(lacking) or 'at all'}: classes cannot be weighted."
        )
    return torch.tensor([counts.total() / (len(classes) * counts[place]) for place in range(len(classes))])


def positive_weights(labels: Float[Tensor, "films classes"], classes: Sequence[str]) -> Float[Tensor, " classes"]:
    """Weigh findings by how many films without them there are for each film with them.

    Args:
        labels: 1, 0, or NaN where it is not known; that counts for neither side.
        classes: Names of the classes.

    Raises:
        DatasetError: If no film has a finding, or none is known to be without it.
    """
    with_it, without = (labels == 1).sum(0), (labels == 0).sum(0)
    lacking = [name for name, few in zip(classes, torch.minimum(with_it, without).tolist(), strict=True) if few == 0]
    if lacking or not classes:
        raise DatasetError(
            f"No training film is known to have, or none to lack, {', '.join(lacking) or 'any finding'}: classes "
            f"cannot be weighted."
        )
    return without / with_it


def sampling_weights(records: Sequence[Record], balance: Balance) -> Float64[Tensor, " films"] | None:
    """Weigh films so that the groups of `balance` are drawn equally often; None for "none"."""
    if balance == "none":
        return None
    if balance == "class+source":
        cells = Counter((record.label, record.source) for record in records)
        sources = Counter(label for label, _ in cells)
        shares = [1 / (sources[record.label] * cells[record.label, record.source]) for record in records]
    else:
        groups = [record.label if balance == "class" else record.source for record in records]
        sizes = Counter(groups)
        shares = [1 / sizes[group] for group in groups]
    return torch.tensor(shares, dtype=torch.float64)
