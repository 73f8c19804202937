"""Scores of a classifier as part of a report: each class with its support, confusion, curves and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.classification import classification_metrics, finding_metrics
from covidcxr.evaluation.metrics.operating_point import OperatingPoint, choose_point, score_at
from covidcxr.evaluation.metrics.reliability import Reliability
from covidcxr.evaluation.metrics.scores import SCORES, format_estimate, title
from covidcxr.evaluation.plots import (
    COLORS,
    INK,
    LINE,
    as_picture,
    panels,
    plot_confusion,
    plot_estimates,
    plot_reliability,
)
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.evaluation.report.headline import on_picture, plain
from covidcxr.page import Block, Section, Table, Words, sections_of
from covidcxr.registry import CLASSIFICATION_SCORES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ClassScores", "score_classes", "plot_curves", "PointScores", "score_point"]


def plot_curves(
    predictions: PredictionTable, classes: Sequence[int], point: tuple[float, float, float] | None = None
) -> Figure | None:
    """Draw the curves of classes, each against the rest.

    Args:
        predictions: The images.
        classes: Numbers of the classes to draw; those without images of both kinds are left out.
        point: Specificity, sensitivity and precision at an operating point, which is marked.

    Returns:
        None if there is nothing to draw.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    kept = [(c, known) for c in classes if (known := _both_kinds(predictions, c)) is not None]
    if not kept:
        return None
    figure, (left, right) = panels(2, width=4.2, height=3.8)
    left.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    for number, (c, known) in enumerate(kept):
        truth, score = predictions.truths[known, c] == 1, predictions.probabilities[known, c]
        color = COLORS[number % len(COLORS)]
        alarms, hits, _ = roc_curve(truth, score)
        left.plot(alarms, hits, color=color, label=on_picture(predictions.classes[c]))
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


def _both_kinds(predictions: PredictionTable, c: int) -> np.ndarray | None:
    known: np.ndarray = ~np.isnan(predictions.truths[:, c]) & ~np.isnan(predictions.probabilities[:, c])
    truth = predictions.truths[known, c]
    return known if 0 < truth.sum() < len(truth) else None


@dataclass(frozen=True)
class ClassScores:
    """Scores of a classifier.

    Attributes:
        scores: By name, as `classification_metrics` or `finding_metrics` names them.
        support: By class: images and patients.
        confusion: Rows = true class, columns = answer, in the order of `support`; empty for findings.
        predictions: The images behind them.
    """

    scores: Mapping[str, Estimate]
    support: Mapping[str, tuple[int, int]]
    confusion: tuple[tuple[int, ...], ...]
    predictions: PredictionTable = field(repr=False)

    @property
    def means(self) -> dict[str, Estimate]:
        """The scores over all classes, those of other packages too."""
        names = [name for name, kind in SCORES.items() if kind.of == "images" and kind.best]
        return {name: self.scores[name] for name in (*names, *CLASSIFICATION_SCORES) if name in self.scores}

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        support = {name: {"films": images, "patients": patients} for name, (images, patients) in self.support.items()}
        return {"scores": plain(self.scores), "support": support, "confusion": plain(self.confusion)}


@sections_of.register
def _(result: ClassScores) -> list[Section]:
    absent = [name for name, (images, _) in result.support.items() if not images]
    blocks: list[Block] = [
        Words(f"No image shows {name}: it has no sensitivity and no AUROC.", warning=True) for name in absent
    ]
    if result.means:
        means = {title(name): estimate for name, estimate in result.means.items()}
        lowest = min((estimate.low for estimate in means.values() if estimate.low < 0), default=0)  # registered scores
        highest = max((estimate.high for estimate in means.values() if estimate.high > 1), default=1)
        figure = plot_estimates(means, title="all classes", limits=(lowest, highest))
        blocks.append(as_picture(figure, "Scores over all classes with their intervals"))
    present = [
        part
        for part, kind in SCORES.items()
        if kind.of == "class" and any(f"{part}_{name}" in result.scores for name in result.support)
    ]
    rows = [
        [
            name,
            str(images),
            str(patients),
            *(format_estimate(result.scores.get(f"{part}_{name}")) for part in present),
        ]
        for name, (images, patients) in result.support.items()
    ]
    blocks.append(Table(["class", "images", "patients", *map(title, present)], rows, "Each class"))
    lead = "One class against the rest; the answer is the most probable one."
    sections = [Section("Scores by class", lead, blocks)]
    if result.predictions.exclusive:
        sections.append(_curves(result))
    return sections


def _curves(result: ClassScores) -> Section:
    rows = exclusive_rows(result.predictions)
    blocks: list[Block] = [
        as_picture(plot_confusion(rows), "Confusion matrix", "Share of the true class, and number of images"),
    ]
    several = range(len(result.predictions.classes)) if len(result.predictions.classes) > 2 else []
    if curves := plot_curves(result.predictions, several):
        caption = "Each class against the rest; dotted: what guessing gives"
        blocks.append(as_picture(curves, "ROC and precision-recall curves of each class", caption))
    return Section("Answers", "Which class was taken for which, and what another threshold would give.", blocks)


def score_classes(predictions: PredictionTable, *, resamples: int = 1000, seed: int = 0) -> ClassScores | None:
    """Score a classifier.

    Args:
        predictions: The images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no image is both labelled and answered.
    """
    predictions = predictions.scored
    if not len(predictions) or not predictions.classes:
        return None
    support = {
        name: (int(images.sum()), predictions.number_of(images))
        for name, images in zip(predictions.classes, (predictions.truths == 1).T, strict=True)
    }
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    if not predictions.exclusive:
        scores = finding_metrics(
            predictions.probabilities, predictions.truths, predictions.patients, predictions.classes, **settings
        )
        return ClassScores(scores, support, (), predictions)
    scores = classification_metrics(
        predictions.probabilities, predictions.labels, predictions.patients, predictions.classes, **settings
    )
    counts = np.zeros((len(predictions.classes),) * 2, int)
    np.add.at(counts, (predictions.labels, predictions.probabilities.argmax(1)), 1)
    return ClassScores(scores, support, tuple(map(tuple, counts.tolist())), predictions)


def exclusive_rows(predictions: PredictionTable) -> list[dict[str, Any]]:
    """Return rows of labelled images as the pictures want them."""
    names = [on_picture(name) for name in predictions.classes]
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names, 1)]
    return [
        {"label": names[label], **{f"probability_{n}": p for n, p in zip(names, row, strict=True)}}
        for label, row in zip(predictions.labels.tolist(), predictions.probabilities.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class PointScores:
    """A class against the rest at one threshold.

    Attributes:
        class_name: The class that is called.
        threshold: From this probability up.
        point: How the threshold was chosen; None = there were no validation images: it is 0.5.
        prevalence: Share of the sick where the answers are used; None = as in these images.
        scores: `sensitivity`, `specificity`, `ppv`, `npv`, `prevalence`.
        predictions: The images behind them.
    """

    class_name: str
    threshold: float
    point: OperatingPoint | None
    prevalence: float | None
    scores: Mapping[str, Estimate]
    predictions: PredictionTable = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {
            "class": self.class_name,
            "threshold": self.threshold,
            "point": plain(self.point),
            "prevalence": self.prevalence,
            "scores": plain(self.scores),
        }


@sections_of.register
def _(result: PointScores) -> list[Section]:
    if result.point is None:
        words = Words(
            f"No validation images were given, so no threshold could be chosen: {result.class_name} is called from a "
            f"probability of 0.5 up.",
            warning=True,
        )
    else:
        words = Words(f"The threshold: {result.point}. These images took no part in the choice.")
    where = "these images" if result.prevalence is None else f"a place where {result.prevalence:.1%} are sick"
    names = {"ppv": f"PPV in {where}", "npv": f"NPV in {where}"}
    rows = [
        [
            names.get(name, title(name)),
            format_estimate(estimate),
            _basis(estimate),
        ]
        for name, estimate in result.scores.items()
        if name != "prevalence"
    ]
    blocks: list[Block] = [words, Table(["score", "value [95 % interval]", "images (patients)"], rows)]
    number = result.predictions.classes.index(result.class_name)
    mark = result.scores["specificity"].value, result.scores["sensitivity"].value, _precision(result)
    if picture := plot_curves(result.predictions, [number], mark):
        caption = "Left the ROC curve, right precision and recall on these images; the cross is the operating point"
        blocks.append(as_picture(picture, f"Curves of {result.class_name} against the rest", caption))
    lead = f"How often {result.class_name} is found, and what a yes and a no are worth."
    return [Section("Operating point", lead, blocks)]


def _precision(result: PointScores) -> float:
    number = result.predictions.classes.index(result.class_name)
    predicted_positive = result.predictions.probabilities[:, number] >= result.threshold
    return (
        float(result.predictions.truths[predicted_positive, number].mean())
        if predicted_positive.any()
        else float("nan")
    )


def score_point(
    predictions: PredictionTable,
    validation: PredictionTable | None,
    *,
    positive: int | None,
    sensitivity: float = 0.95,
    prevalence: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> PointScores | None:
    """Choose a threshold on validation images and score it on others.

    Args:
        predictions: The images.
        validation: Other images of the same model; None = there are none: the threshold is 0.5.
        positive: Number of the class looked for.
        sensitivity: What is wanted of the threshold on the validation images, in (0, 1].
        prevalence: Share of the sick where the answers are used; None = as in these images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where no class is looked for, or no image tells whether it is of that class.
    """
    predictions = predictions.scored
    if positive is None or not len(predictions):
        return None
    predictions = predictions.take(~np.isnan(predictions.truths[:, positive]))
    name = predictions.classes[positive]
    if not len(predictions):
        return None
    point = None
    if validation is not None and name in validation.classes:
        positives = validation.scored.truths[:, validation.classes.index(name)] == 1
        point = choose_point(validation.rows, name, sensitivity=sensitivity) if positives.any() else None
    scores = score_at(predictions.rows, name, point or 0.5, prevalence, resamples=resamples, seed=seed)
    threshold = 0.5 if point is None else point.threshold
    return PointScores(name, threshold, point, prevalence, scores, predictions)


def _basis(estimate: Estimate) -> str:
    return f"{estimate.count} ({estimate.patients})"


@sections_of.register
def _(reliability: Reliability) -> list[Section]:
    what = "the most probable class" if reliability.of == "the answer" else reliability.of
    lead = (
        f"Of the images to which {what} was given a probability of 0.8, eight in ten should be right: on the dotted "
        f"line. Below it the model is too sure, above it not sure enough."
    )
    alt = f"Reliability diagram: expected calibration error {reliability.ece}, Brier score {reliability.brier}"
    picture = as_picture(plot_reliability(reliability), alt)
    return [Section("Do the probabilities mean what they say?", lead, [picture])]
