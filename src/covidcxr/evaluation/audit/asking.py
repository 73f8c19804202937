"""Every probe is asked every question: of all films, on the official split, within one source or view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from covidcxr.data.records import Record
from covidcxr.data.threads import Progress
from covidcxr.evaluation.audit.confounding import cross_table
from covidcxr.evaluation.audit.features import Sheet
from covidcxr.evaluation.audit.probes import PROBES, Probe, ProbeScore, Question, cross_validate, train_and_test
from covidcxr.evaluation.audit.questions import strata
from covidcxr.evaluation.audit.result import QuestionAudit

__all__ = ["AskedTable", "ask_all"]


@dataclass(frozen=True)
class AskedTable:
    """What all probes share.

    Attributes:
        records: The films.
        patients: Patient of each.
        folds: Fold of each; no patient is in two.
        sheets: Features by probe.
        least: Patients that an answer must have within one source or view.
        seed: Seeds classifiers and intervals.
    """

    records: Sequence[Record]
    patients: Integer[np.ndarray, " films"]
    folds: Integer[np.ndarray, " films"]
    sheets: dict[str, Sheet]
    least: int
    seed: int


def ask_all(
    table: AskedTable, asked: Sequence[Question], source: Question | None, seconds: dict[str, float], bar: Progress
) -> tuple[tuple[QuestionAudit, ...], QuestionAudit | None]:
    """Ask every probe every question.

    Args:
        table: What is known of the films.
        asked: The questions for the label.
        source: The question for the source; None = there is one source.
        seconds: Told what each probe took.
        bar: Told how many rounds of questions are done.
    """
    runs = sum(1 + _has_test(table.records) + len(_strata(table, question)) for question in asked) + bool(source)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        bar(done, runs)

    audits = []
    for question in asked:
        whole = _cross_validated(table, question, seconds)
        tick()
        official = _official(table, question)
        if _has_test(table.records):
            tick()
        within = {}
        for name, part in _strata(table, question).items():
            if found := _cross_validated(table, part, seconds):
                within[name] = found
            tick()
        audits.append(
            QuestionAudit(
                question.name,
                *_counts(question, table.patients),
                probes=whole,
                official=official,
                within=within,
                by_source=cross_table(
                    "source", question, [r.source for r in table.records], table.patients, table.seed
                ),
                by_view=cross_table("view", question, [r.view for r in table.records], table.patients, table.seed),
            )
        )
    if source is None:
        return tuple(audits), None
    scores = _cross_validated(table, source, seconds)
    tick()
    return tuple(audits), QuestionAudit("source", *_counts(source, table.patients), probes=scores)


def _counts(question: Question, patients: np.ndarray) -> tuple[dict[str, int], dict[str, int]]:
    films, people = {}, {}
    for number, name in enumerate(question.classes):
        own = question.labels == number
        films[name], people[name] = int(own.sum()), len(np.unique(patients[own]))
    return films, people


def _strata(table: AskedTable, question: Question) -> dict[str, Question]:
    return strata(table.records, question, table.patients, table.least)


def _askable(table: AskedTable, question: Question) -> Iterator[tuple[Probe, Sheet, Question]]:
    """Yield the probes that can be asked, with the question narrowed to the films that they know."""
    for probe in PROBES:
        sheet = table.sheets.get(probe.name)
        if sheet is None or probe.name == question.name:
            continue
        known = question.among(sheet.known, table.patients, len(np.unique(table.folds)))
        asked = Sheet(sheet.values, sheet.known & (known.labels >= 0))
        if len(known.classes) > 1 and asked.tells:
            yield probe, asked, known


def _cross_validated(table: AskedTable, question: Question, seconds: dict[str, float]) -> tuple[ProbeScore, ...]:
    found = []
    for probe, sheet, asked in _askable(table, question):
        score = cross_validate(probe, sheet, asked, table.folds, table.patients, table.seed)
        seconds[f"probe {probe.name}"] = seconds.get(f"probe {probe.name}", 0.0) + score.seconds
        found.append(score)
    return tuple(found)


def _official(table: AskedTable, question: Question) -> tuple[ProbeScore, ...]:
    """Train on the official training and validation films, score on the official test films."""
    test = np.array([record.split == "test" for record in table.records])
    train = np.array([record.split in ("train", "val") for record in table.records])
    if not test.any() or not train.any():
        return ()
    found = [
        train_and_test(probe, sheet, asked, train, test, table.patients, table.seed)
        for probe, sheet, asked in _askable(table, question)
    ]
    return tuple(one for one in found if one is not None)


def _has_test(records: Sequence[Record]) -> bool:
    return any(record.split == "test" for record in records)
