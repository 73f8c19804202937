"""Scores of a classifier as part of a report: each class with its support, confusion, curves and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from covidcxr.evaluation.answers import Answers
from covidcxr.evaluation.findings import finding_metrics
from covidcxr.evaluation.intervals import Estimate
from covidcxr.evaluation.metrics import classification_metrics
from covidcxr.evaluation.plots import (
    as_picture,
    plot_confusion,
    plot_estimates,
)
from covidcxr.evaluation.report.chief import in_words, on_picture, plain
from covidcxr.evaluation.report.curves import plot_curves
from covidcxr.page import Block, Section, Table, Words

__all__ = ["ClassScores", "score_classes"]

_PARTS = ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision", "brier")
_MEANS = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_average_precision", "macro_precision")


@dataclass(frozen=True)
class ClassScores:
    """Scores of a classifier.

    Attributes:
        scores: By name, as `classification_metrics` or `finding_metrics` names them.
        support: By class: films and patients.
        confusion: Rows = true class, columns = answer, in the order of `support`; empty for findings.
        answers: The films behind them.
    """

    scores: Mapping[str, Estimate]
    support: Mapping[str, tuple[int, int]]
    confusion: tuple[tuple[int, ...], ...]
    answers: Answers = field(repr=False)

    @property
    def means(self) -> dict[str, Estimate]:
        """The scores over all classes."""
        return {name: self.scores[name] for name in _MEANS if name in self.scores}

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        support = {name: {"films": films, "patients": patients} for name, (films, patients) in self.support.items()}
        return {"scores": plain(self.scores), "support": support, "confusion": plain(self.confusion)}

    def sections(self) -> list[Section]:
        """Return the parts of the report."""
        absent = [name for name, (films, _) in self.support.items() if not films]
        blocks: list[Block] = [
            Words(f"No film shows {name}: it has no sensitivity and no AUROC.", warning=True) for name in absent
        ]
        if self.means:
            figure = plot_estimates({in_words(name): one for name, one in self.means.items()}, title="all classes")
            blocks.append(as_picture(figure, "Scores over all classes with their intervals"))
        found = [part for part in _PARTS if any(f"{part}_{name}" in self.scores for name in self.support)]
        rows = [
            [name, str(films), str(patients), *(_cell(self.scores.get(f"{part}_{name}")) for part in found)]
            for name, (films, patients) in self.support.items()
        ]
        blocks.append(Table(["class", "films", "patients", *map(in_words, found)], rows, "Each class"))
        lead = "One class against the rest; the answer is the most probable one."
        sections = [Section("Scores by class", lead, blocks)]
        if self.answers.exclusive:
            sections.append(self._curves())
        return sections

    def _curves(self) -> Section:
        rows = exclusive_rows(self.answers)
        blocks: list[Block] = [
            as_picture(plot_confusion(rows), "Confusion matrix", "Share of the true class, and number of films"),
        ]
        several = range(len(self.answers.classes)) if len(self.answers.classes) > 2 else []
        if curves := plot_curves(self.answers, several):
            caption = "Each class against the rest; dotted: what guessing gives"
            blocks.append(as_picture(curves, "ROC and precision-recall curves of each class", caption))
        return Section("Answers", "Which class was taken for which, and what another threshold would give.", blocks)


def score_classes(answers: Answers, *, resamples: int = 1000, seed: int = 0) -> ClassScores | None:
    """Score a classifier.

    Args:
        answers: The films.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no film is both labelled and answered.
    """
    answers = answers.scored
    if not len(answers) or not answers.classes:
        return None
    support = {
        name: (int(films.sum()), answers.number_of(films))
        for name, films in zip(answers.classes, (answers.truths == 1).T, strict=True)
    }
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    if not answers.exclusive:
        scores = finding_metrics(answers.probabilities, answers.truths, answers.patients, answers.classes, **settings)
        return ClassScores(scores, support, (), answers)
    scores = classification_metrics(
        answers.probabilities, answers.labels, answers.patients, answers.classes, **settings
    )
    counts = np.zeros((len(answers.classes),) * 2, int)
    np.add.at(counts, (answers.labels, answers.probabilities.argmax(1)), 1)
    return ClassScores(scores, support, tuple(map(tuple, counts.tolist())), answers)


def exclusive_rows(answers: Answers) -> list[dict[str, Any]]:
    """Return rows of labelled films as the pictures want them."""
    names = [on_picture(name) for name in answers.classes]
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names, 1)]
    return [
        {"label": names[label], **{f"probability_{n}": p for n, p in zip(names, row, strict=True)}}
        for label, row in zip(answers.labels.tolist(), answers.probabilities.tolist(), strict=True)
    ]


def _cell(one: Estimate | None) -> str:
    if one is None or one.value != one.value:
        return "-"
    return str(one)
