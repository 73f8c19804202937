"""What probes predict: the label or the most frequent findings, the source, and the label within one source or view."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer

from covidcxr.data.collection import Collection
from covidcxr.data.records import Record

__all__ = ["Target", "label_targets", "source_target", "targets_within"]

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
