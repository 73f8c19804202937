"""What probes predict: labels and sources, within one source or view too, and how far labels and traits go together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.data.collection import Collection
from covidcxr.data.records import Record
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many

__all__ = ["Target", "label_targets", "source_target", "targets_within", "ENOUGH", "CrossTable", "Pair", "cross_table"]

_FINDINGS = 3
_SOURCES = 10
_GROUPS = 6


@dataclass(frozen=True)
class Target:
    """What is predicted from what a probe sees.

    Attributes:
        name: "label", "source", or the name of a finding.
        classes: Names of the classes.
        labels: Index of the true class of each image; -1 = the image does not count.

    Example:
        ```python
        import numpy as np

        from covidcxr.evaluation.shortcuts.targets import Target

        target = Target("label", ("normal", "covid19"), np.array([0, 0, 1, -1]))
        few = target.select(np.ones(4, bool), patients=np.arange(4), least=2)
        assert few.classes == ("normal",)
        ```
    """

    name: str
    classes: tuple[str, ...]
    labels: Integer[np.ndarray, " images"]

    def select(
        self, images: Bool[np.ndarray, " images"], patients: Integer[np.ndarray, " images"], least: int
    ) -> Target:
        """Return the target restricted to some of the images; classes with too few patients there are dropped.

        Args:
            images: The images that are kept.
            patients: Patient of each image.
            least: Patients that a class must have.

        Returns:
            The target with as many labels as before; the other images have -1.
        """
        labels = np.full(len(self.labels), -1)
        kept: list[str] = []
        for number, name in enumerate(self.classes):
            own = images & (self.labels == number)
            if len(np.unique(patients[own])) >= least:
                labels[own] = len(kept)
                kept.append(name)
        return Target(self.name, tuple(kept), labels)

    def counts(self, patients: Integer[np.ndarray, " images"]) -> tuple[dict[str, int], dict[str, int]]:
        """Count images and patients of each class.

        Args:
            patients: Patient of each image.

        Returns:
            Images and patients, each by class.
        """
        classes = {name: self.labels == number for number, name in enumerate(self.classes)}
        return (
            {name: int(own.sum()) for name, own in classes.items()},
            {name: len(np.unique(patients[own])) for name, own in classes.items()},
        )


def label_targets(
    data: Collection,
    records: Sequence[Record],
    patients: Integer[np.ndarray, " images"],
    least: int,
    notes: list[str],
) -> list[Target]:
    """Return the label as a target; where classes are not exclusive, each of the most frequent findings.

    Args:
        data: The data set; it has the names of the classes.
        records: The images.
        patients: Patient of each.
        least: Patients that each class must have.
        notes: Receives a sentence on whatever is left out.

    Returns:
        The targets; empty where fewer than two classes are left.
    """
    if any(record.findings for record in records):
        return _finding_targets(records, patients, least, notes)
    counts = Counter(record.label for record in records if record.label is not None)
    classes = tuple(name for name in data.classes if counts[name]) or tuple(sorted(counts))
    target = _select(Target("label", classes, _indices(classes, [record.label for record in records])), patients, least)
    if dropped := [name for name in classes if name not in target.classes]:
        notes.append(f"Labels with fewer than {least} patients are left out: {', '.join(dropped)}.")
    if unlabelled := sum(record.label not in classes for record in records):
        notes.append(f"{unlabelled:,} images have no label, or one that is not a class; probes leave them out.")
    return [target] if len(target.classes) > 1 else []


def _finding_targets(
    records: Sequence[Record], patients: Integer[np.ndarray, " images"], least: int, notes: list[str]
) -> list[Target]:
    counts = Counter(name for record in records for name, value in record.findings.items() if value)
    targets: list[Target] = []
    for name, _ in counts.most_common():
        values = [record.findings.get(name) for record in records]
        labels = np.array([-1 if value is None else int(value) for value in values])
        target = _select(Target(name, (f"no {name}", name), labels), patients, least)
        if len(target.classes) == 2 and len(targets) < _FINDINGS:
            targets.append(target)
    names = ", ".join(target.name for target in targets) or "none has enough patients"
    notes.append(
        f"Classes are not exclusive: of {len(counts)} findings the most frequent are probed one by one ({names})."
    )
    return targets


def source_target(records: Sequence[Record], patients: Integer[np.ndarray, " images"], least: int) -> Target | None:
    """Return the source of an image as a target, among the most frequent sources.

    Args:
        records: The images.
        patients: Patient of each.
        least: Patients that each source must have.

    Returns:
        The target; None where fewer than two sources are left.
    """
    sources = [record.source for record in records]
    classes = tuple(name for name, _ in Counter(sources).most_common(_SOURCES))
    target = _select(Target("source", classes, _indices(classes, sources)), patients, least)
    return target if len(target.classes) > 1 else None


def targets_within(
    records: Sequence[Record], target: Target, patients: Integer[np.ndarray, " images"], least: int
) -> dict[str, Target]:
    """Return a target within each view and each source that has two of its classes, for the largest of these groups.

    Args:
        records: The images.
        target: The target on all images.
        patients: Patient of each image.
        least: Patients that a class must have to count within a group.

    Returns:
        From "view PA" or "source nih" to the target there.
    """
    columns = {
        "view": np.array([_projection(record) for record in records]),
        "source": np.array([record.source for record in records]),
    }
    within: dict[str, Target] = {}
    total = int((target.labels >= 0).sum())
    for kind, values in columns.items():
        for value in sorted({*values.tolist()} - {""}):
            part = target.select(values == value, patients, least)
            if len(part.classes) > 1 and (part.labels >= 0).sum() < 0.95 * total:
                within[f"{kind} {value}"] = part
    largest = sorted(within, key=lambda name: -int((within[name].labels >= 0).sum()))[:_GROUPS]
    return {name: part for name, part in within.items() if name in largest}


def _indices(classes: Sequence[str], names: Sequence[str | None]) -> Integer[np.ndarray, " images"]:
    return np.array([classes.index(name) if name in classes else -1 for name in names])


def _select(target: Target, patients: Integer[np.ndarray, " images"], least: int) -> Target:
    return target.select(target.labels >= 0, patients, least)


def _projection(record: Record) -> str:
    """Return "AP" for "AP supine", "AP", ...; "PA" likewise; "" where the view is neither."""
    match = re.match(r"\s*(AP|PA)\b", record.view or "", re.IGNORECASE)
    return match[1].upper() if match else ""


ENOUGH = 20
"""Patients of each label within one source or view from which a comparison there counts as supported."""

_MOST = 30  # columns of a table; further values count as one


@dataclass(frozen=True)
class Pair:
    """Two labels, and the sources or views that have both.

    Attributes:
        labels: The two labels.
        shared: From a value that has both (a source) to its patients of the first and of the second label.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts import Pair

        pair = Pair(("normal", "covid19"), {"north": (40, 25), "south": (60, 3)})
        assert pair.supported == ["north"]
        ```
    """

    labels: tuple[str, str]
    shared: dict[str, tuple[int, int]]

    @property
    def supported(self) -> list[str]:
        """The values with `ENOUGH` patients of both labels."""
        return [value for value, patients in self.shared.items() if min(patients) >= ENOUGH]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"labels": list(self.labels), "patients": {name: list(pair) for name, pair in self.shared.items()}}


@dataclass(frozen=True)
class CrossTable:
    """Labels by the values of another column.

    Attributes:
        column: "source" or "view".
        labels: The rows.
        values: The columns, most images first.
        images: Number of images of each.
        patients: Number of patients of each.
        cramers_v: Association of label and column, from 0 to 1, corrected for chance (Bergsma 2013); NaN where there
            is one value or one label.

    Example:
        ```python
        import numpy as np

        from covidcxr.evaluation.shortcuts.targets import cross_table
        from covidcxr.evaluation.shortcuts.targets import Target

        target = Target("label", ("normal", "covid19"), np.arange(40) % 2)
        table = cross_table("source", target, ["north", "south"] * 20, patients=np.arange(40))
        assert table.single == {"north": "normal", "south": "covid19"}
        assert table.cramers_v.value > 0.9
        ```
    """

    column: str
    labels: tuple[str, ...]
    values: tuple[str, ...]
    images: Integer[np.ndarray, "labels values"]
    patients: Integer[np.ndarray, "labels values"]
    cramers_v: Estimate

    @property
    def single(self) -> dict[str, str]:
        """The values that have only one label, with that label."""
        return {
            value: self.labels[int(column.argmax())]
            for value, column in zip(self.values, self.images.T, strict=True)
            if (column > 0).sum() == 1
        }

    @property
    def pairs(self) -> list[Pair]:
        """Every pair of labels, with the values that have both."""
        return [
            Pair(
                (self.labels[first], self.labels[second]),
                {
                    value: (int(column[first]), int(column[second]))
                    for value, column in zip(self.values, self.patients.T, strict=True)
                    if column[first] and column[second]
                },
            )
            for first, second in combinations(range(len(self.labels)), 2)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        named = [dict(zip(self.values, row, strict=True)) for row in self.images.tolist()]
        people = [dict(zip(self.values, row, strict=True)) for row in self.patients.tolist()]
        return {
            "column": self.column,
            "films": dict(zip(self.labels, named, strict=True)),
            "patients": dict(zip(self.labels, people, strict=True)),
            "cramers_v": self.cramers_v.to_dict(),
            "one_label_only": self.single,
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


def cross_table(
    column: str,
    target: Target,
    values: Sequence[str | None],
    patients: Integer[np.ndarray, " images"],
    seed: int = 0,
) -> CrossTable:
    """Count labels by the values of another column.

    Args:
        column: Name of the column.
        target: The labels; images that do not count are left out.
        values: Value of the column for each image; None = not stated.
        patients: Patient of each image.
        seed: Seeds the interval.

    Returns:
        The counts of images and patients, and the association of both.
    """
    images = np.flatnonzero(target.labels >= 0)
    named = ["not stated" if (value := values[n]) is None else value for n in images.tolist()]
    frequent = [name for name, _ in sorted(Counter(named).items(), key=lambda item: (-item[1], item[0]))]
    kept = frequent if len(frequent) <= _MOST else [*frequent[: _MOST - 1], f"{len(frequent) - _MOST + 1} more"]
    place = {name: number for number, name in enumerate(kept)}
    number = np.array([place.get(name, len(kept) - 1) for name in named])
    rows, columns = len(target.classes), len(kept)
    cell = target.labels[images] * columns + number
    owners = patients[images]
    counts = np.bincount(cell, minlength=rows * columns).reshape(rows, columns)
    people = np.bincount(np.unique(np.stack([cell, owners]), axis=1)[0], minlength=rows * columns)
    indicator = np.eye(rows * columns)[cell]

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"v": _cramers_v((weights @ indicator).reshape(-1, rows, columns))}

    resamples = min(1000, max(200, 20_000_000 // len(images)))
    v = bootstrap_many(table, groups=owners.tolist(), shares=("v",), resamples=resamples, seed=seed)["v"]
    return CrossTable(column, target.classes, tuple(kept), counts, people.reshape(rows, columns), v)


def _cramers_v(counts: Float[np.ndarray, "resamples labels values"]) -> Float[np.ndarray, " resamples"]:
    """Return Cramér's V with Bergsma's correction of its bias; empty rows and columns do not count."""
    total = counts.sum((1, 2))
    rows, columns = counts.sum(2), counts.sum(1)
    expected = rows[:, :, None] * columns[:, None, :] / total[:, None, None]
    terms = np.divide((counts - expected) ** 2, expected, out=np.zeros_like(counts), where=expected > 0)
    phi = terms.sum((1, 2)) / total
    r, c = (rows > 0).sum(1), (columns > 0).sum(1)
    phi = np.maximum(0, phi - (r - 1) * (c - 1) / (total - 1).clip(1))
    r, c = r - (r - 1) ** 2 / (total - 1).clip(1), c - (c - 1) ** 2 / (total - 1).clip(1)
    most = np.minimum(r, c) - 1
    share: np.ndarray = np.divide(phi, most, out=np.full(len(counts), np.nan), where=most > 1e-9)
    v: np.ndarray = np.sqrt(share).clip(0, 1)
    return v
