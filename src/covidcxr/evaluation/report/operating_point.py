"""Where a classifier says yes: the threshold chosen on validation films, and what its answers are worth there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.operating_point import OperatingPoint, choose_point, score_at
from covidcxr.evaluation.plots import as_picture
from covidcxr.evaluation.predictions.predictions import Answers
from covidcxr.evaluation.report.classes import plot_curves
from covidcxr.evaluation.report.headline import in_words, plain
from covidcxr.page import Block, Section, Table, Words

__all__ = ["PointScores", "score_point"]


@dataclass(frozen=True)
class PointScores:
    """A class against the rest at one threshold.

    Attributes:
        class_name: The class that is called.
        threshold: From this probability up.
        point: How the threshold was chosen; None = there were no validation films: it is 0.5.
        prevalence: Share of the sick where the answers are used; None = as in these films.
        scores: `sensitivity`, `specificity`, `ppv`, `npv`, `prevalence`.
        answers: The films behind them.
    """

    class_name: str
    threshold: float
    point: OperatingPoint | None
    prevalence: float | None
    scores: Mapping[str, Estimate]
    answers: Answers = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {
            "class": self.class_name,
            "threshold": self.threshold,
            "point": plain(self.point),
            "prevalence": self.prevalence,
            "scores": plain(self.scores),
        }

    def sections(self) -> list[Section]:
        """Return the part of the report."""
        if self.point is None:
            words = Words(
                f"No validation films were given, so no threshold could be chosen: {self.class_name} is called from a "
                f"probability of 0.5 up.",
                warning=True,
            )
        else:
            words = Words(f"The threshold: {self.point}. These films took no part in the choice.")
        where = "these films" if self.prevalence is None else f"a place where {self.prevalence:.1%} are sick"
        names = {"ppv": f"PPV in {where}", "npv": f"NPV in {where}"}
        rows = [
            [names.get(name, in_words(name)), f"{one.value:.3f}", f"{one.low:.3f} to {one.high:.3f}", _basis(one)]
            for name, one in self.scores.items()
            if name != "prevalence"
        ]
        blocks: list[Block] = [words, Table(["score", "value", "95 % interval", "films (patients)"], rows)]
        number = self.answers.classes.index(self.class_name)
        found = self._share_right()
        mark = self.scores["specificity"].value, self.scores["sensitivity"].value, found
        if picture := plot_curves(self.answers, [number], mark):
            caption = "Left the ROC curve, right precision and recall on these films; the cross is the operating point"
            blocks.append(as_picture(picture, f"Curves of {self.class_name} against the rest", caption))
        lead = f"How often {self.class_name} is found, and what a yes and a no are worth."
        return [Section("Operating point", lead, blocks)]

    def _share_right(self) -> float:
        number = self.answers.classes.index(self.class_name)
        called = self.answers.probabilities[:, number] >= self.threshold
        return float(self.answers.truths[called, number].mean()) if called.any() else float("nan")


def score_point(
    answers: Answers,
    validation: Answers | None,
    *,
    positive: int | None,
    sensitivity: float = 0.95,
    prevalence: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> PointScores | None:
    """Choose a threshold on validation films and score it on others.

    Args:
        answers: The films.
        validation: Other films of the same model; None = there are none: the threshold is 0.5.
        positive: Number of the class looked for.
        sensitivity: What is wanted of the threshold on the validation films, in (0, 1].
        prevalence: Share of the sick where the answers are used; None = as in these films.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where no class is looked for, or no film tells whether it is of that class.
    """
    answers = answers.scored
    if positive is None or not len(answers):
        return None
    answers = answers.take(~np.isnan(answers.truths[:, positive]))
    name = answers.classes[positive]
    if not len(answers):
        return None
    point = None
    if validation is not None and name in validation.classes:
        sick = validation.scored.truths[:, validation.classes.index(name)] == 1
        point = choose_point(validation.rows, name, sensitivity=sensitivity) if sick.any() else None
    scores = score_at(answers.rows, name, point or 0.5, prevalence, resamples=resamples, seed=seed)
    threshold = 0.5 if point is None else point.threshold
    return PointScores(name, threshold, point, prevalence, scores, answers)


def _basis(one: Estimate) -> str:
    return f"{one.count} ({one.patients})"
