"""Scores of a classifier as part of a report: each class with its support, confusion, curves and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.classification import classification_metrics, finding_metrics
from covidcxr.evaluation.metrics.operating_point import OperatingPoint, choose_point, score_at
from covidcxr.evaluation.plots import (
    COLORS,
    INK,
    LINE,
    as_picture,
    panels,
    plot_confusion,
    plot_estimates,
)
from covidcxr.evaluation.predictions.predictions import Answers
from covidcxr.evaluation.report.headline import in_words, on_picture, plain
from covidcxr.page import Block, Section, Table, Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ClassScores", "score_classes", "plot_curves", "PointScores", "score_point"]


def plot_curves(
    answers: Answers, classes: Sequence[int], point: tuple[float, float, float] | None = None
) -> Figure | None:
    """Draw the curves of classes, each against the rest.

    Args:
        answers: The images.
        classes: Numbers of the classes to draw; those without images of both kinds are left out.
        point: Specificity, sensitivity and precision at an operating point, which is marked.

    Returns:
        None if there is nothing to draw.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    kept = [(c, known) for c in classes if (known := _both_kinds(answers, c)) is not None]
    if not kept:
        return None
    figure, (left, right) = panels(2, width=4.2, height=3.8)
    left.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    for number, (c, known) in enumerate(kept):
        truth, score = answers.truths[known, c] == 1, answers.probabilities[known, c]
        color = COLORS[number % len(COLORS)]
        alarms, hits, _ = roc_curve(truth, score)
        left.plot(alarms, hits, color=color, label=on_picture(answers.classes[c]))
        precision, recall, _ = precision_recall_curve(truth, score)
        recall, precision = recall[:-1], precision[:-1]  # the last is a point that no threshold gives
        right.step(recall, precision, color=color, where="post")
        right.axhline(truth.mean(), color=color, linewidth=0.8, linestyle=":")
    if point is not None:
        specificity, sensitivity, precise = point
        left.plot(
            1 - specificity, sensitivity, "x", color=INK, markersize=9, markeredgewidth=2, label="operating point"
        )
        right.plot(sensitivity, precise, "x", color=INK, markersize=9, markeredgewidth=2)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    right.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    left.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _both_kinds(answers: Answers, c: int) -> np.ndarray | None:
    known: np.ndarray = ~np.isnan(answers.truths[:, c]) & ~np.isnan(answers.probabilities[:, c])
    truth = answers.truths[known, c]
    return known if 0 < truth.sum() < len(truth) else None


_PARTS = ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision", "brier")


_MEANS = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_average_precision", "macro_precision")


@dataclass(frozen=True)
class ClassScores:
    """Scores of a classifier.

    Attributes:
        scores: By name, as `classification_metrics` or `finding_metrics` names them.
        support: By class: images and patients.
        confusion: Rows = true class, columns = answer, in the order of `support`; empty for findings.
        answers: The images behind them.
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
        support = {name: {"films": images, "patients": patients} for name, (images, patients) in self.support.items()}
        return {"scores": plain(self.scores), "support": support, "confusion": plain(self.confusion)}

    def sections(self) -> list[Section]:
        """Return the parts of the report."""
        absent = [name for name, (images, _) in self.support.items() if not images]
        blocks: list[Block] = [
            Words(f"No image shows {name}: it has no sensitivity and no AUROC.", warning=True) for name in absent
        ]
        if self.means:
            figure = plot_estimates({in_words(name): one for name, one in self.means.items()}, title="all classes")
            blocks.append(as_picture(figure, "Scores over all classes with their intervals"))
        found = [part for part in _PARTS if any(f"{part}_{name}" in self.scores for name in self.support)]
        rows = [
            [name, str(images), str(patients), *(_cell(self.scores.get(f"{part}_{name}")) for part in found)]
            for name, (images, patients) in self.support.items()
        ]
        blocks.append(Table(["class", "images", "patients", *map(in_words, found)], rows, "Each class"))
        lead = "One class against the rest; the answer is the most probable one."
        sections = [Section("Scores by class", lead, blocks)]
        if self.answers.exclusive:
            sections.append(self._curves())
        return sections

    def _curves(self) -> Section:
        rows = exclusive_rows(self.answers)
        blocks: list[Block] = [
            as_picture(plot_confusion(rows), "Confusion matrix", "Share of the true class, and number of images"),
        ]
        several = range(len(self.answers.classes)) if len(self.answers.classes) > 2 else []
        if curves := plot_curves(self.answers, several):
            caption = "Each class against the rest; dotted: what guessing gives"
            blocks.append(as_picture(curves, "ROC and precision-recall curves of each class", caption))
        return Section("Answers", "Which class was taken for which, and what another threshold would give.", blocks)


def score_classes(answers: Answers, *, resamples: int = 1000, seed: int = 0) -> ClassScores | None:
    """Score a classifier.

    Args:
        answers: The images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no image is both labelled and answered.
    """
    answers = answers.scored
    if not len(answers) or not answers.classes:
        return None
    support = {
        name: (int(images.sum()), answers.number_of(images))
        for name, images in zip(answers.classes, (answers.truths == 1).T, strict=True)
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
    """Return rows of labelled images as the pictures want them."""
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


@dataclass(frozen=True)
class PointScores:
    """A class against the rest at one threshold.

    Attributes:
        class_name: The class that is called.
        threshold: From this probability up.
        point: How the threshold was chosen; None = there were no validation images: it is 0.5.
        prevalence: Share of the sick where the answers are used; None = as in these images.
        scores: `sensitivity`, `specificity`, `ppv`, `npv`, `prevalence`.
        answers: The images behind them.
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
                f"No validation images were given, so no threshold could be chosen: {self.class_name} is called from a "
                f"probability of 0.5 up.",
                warning=True,
            )
        else:
            words = Words(f"The threshold: {self.point}. These images took no part in the choice.")
        where = "these images" if self.prevalence is None else f"a place where {self.prevalence:.1%} are sick"
        names = {"ppv": f"PPV in {where}", "npv": f"NPV in {where}"}
        rows = [
            [names.get(name, in_words(name)), f"{one.value:.3f}", f"{one.low:.3f} to {one.high:.3f}", _basis(one)]
            for name, one in self.scores.items()
            if name != "prevalence"
        ]
        blocks: list[Block] = [words, Table(["score", "value", "95 % interval", "images (patients)"], rows)]
        number = self.answers.classes.index(self.class_name)
        found = self._share_right()
        mark = self.scores["specificity"].value, self.scores["sensitivity"].value, found
        if picture := plot_curves(self.answers, [number], mark):
            caption = "Left the ROC curve, right precision and recall on these images; the cross is the operating point"
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
    """Choose a threshold on validation images and score it on others.

    Args:
        answers: The images.
        validation: Other images of the same model; None = there are none: the threshold is 0.5.
        positive: Number of the class looked for.
        sensitivity: What is wanted of the threshold on the validation images, in (0, 1].
        prevalence: Share of the sick where the answers are used; None = as in these images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where no class is looked for, or no image tells whether it is of that class.
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
