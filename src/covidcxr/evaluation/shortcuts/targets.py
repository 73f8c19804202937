"""What probes are asked: the label or the most frequent findings, the source, and the label within one roof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from covidcxr.data.collection import Collection
from covidcxr.data.records import Record
from covidcxr.evaluation.shortcuts.features import projection_family
from covidcxr.evaluation.shortcuts.probes import Question

__all__ = ["ask_labels", "ask_source", "strata"]

_FINDINGS = 3
_SOURCES = 10
_STRATA = 6


def ask_labels(
    data: Collection, records: Sequence[Record], patients: np.ndarray, least: int, notes: list[str]
) -> list[Question]:
    """Return the question for the label; where classes are not exclusive, one for each of the most frequent findings.

    Args:
        data: Names the classes.
        records: The images.
        patients: Patient of each.
        least: Patients that each answer must have.
        notes: Told what is left out.
    """
    if any(record.findings for record in records):
        return _ask_findings(records, patients, least, notes)
    found = Counter(record.label for record in records if record.label is not None)
    classes = tuple(name for name in data.classes if found[name]) or tuple(sorted(found))
    place = {name: number for number, name in enumerate(classes)}
    labels = np.array([place.get(record.label or "", -1) for record in records])
    question = Question("label", classes, labels).among(labels >= 0, patients, least)
    if lost := [name for name in classes if name not in question.classes]:
        notes.append(f"Labels with fewer than {least} patients are left out: {', '.join(lost)}.")
    if without := int((labels < 0).sum()):
        notes.append(f"{without:,} images have no label, or one that is no class; no probe is asked about them.")
    return [question] if len(question.classes) > 1 else []


def _ask_findings(records: Sequence[Record], patients: np.ndarray, least: int, notes: list[str]) -> list[Question]:
    shown = Counter(name for record in records for name, value in record.findings.items() if value)
    asked: list[Question] = []
    for name, _ in shown.most_common():
        answers = [record.findings.get(name) for record in records]
        labels = np.array([-1 if value is None else int(value) for value in answers])
        question = Question(name, (f"no {name}", name), labels).among(labels >= 0, patients, least)
        if len(question.classes) == 2 and len(asked) < _FINDINGS:
            asked.append(question)
    names = ", ".join(question.name for question in asked) or "none has patients enough"
    notes.append(
        f"Classes are not exclusive: of {len(shown)} findings the most frequent are asked one by one ({names})."
    )
    return asked


def ask_source(records: Sequence[Record], patients: np.ndarray, least: int) -> Question | None:
    """Return the question for the source, among the most frequent ones; None if there is one."""
    classes = [name for name, _ in Counter(record.source for record in records).most_common(_SOURCES)]
    place = {name: number for number, name in enumerate(classes)}
    labels = np.array([place.get(record.source, -1) for record in records])
    question = Question("source", tuple(classes), labels).among(labels >= 0, patients, least)
    return question if len(question.classes) > 1 else None


def strata(records: Sequence[Record], question: Question, patients: np.ndarray, least: int) -> dict[str, Question]:
    """Return the question within each view and each source in which two answers are found, the largest first.

    Args:
        records: The images.
        question: What is asked of all.
        patients: Patient of each image.
        least: Patients that an answer must have to count there.
    """
    roofs = {
        "view": np.array([projection_family(record) or "" for record in records]),
        "source": np.array([record.source for record in records]),
    }
    found: dict[str, Question] = {}
    whole = int((question.labels >= 0).sum())
    for kind, values in roofs.items():
        for value in sorted({*values.tolist()} - {""}):
            part = question.among(values == value, patients, least)
            if len(part.classes) > 1 and (part.labels >= 0).sum() < 0.95 * whole:
                found[f"{kind} {value}"] = part
    largest = sorted(found, key=lambda name: -int((found[name].labels >= 0).sum()))[:_STRATA]
    return {name: found[name] for name in found if name in largest}
