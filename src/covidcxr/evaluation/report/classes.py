"""A classifier in a report: scores by class, confusion, curves, calibration and operating point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from covidcxr import aliases
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.classification import classification_metrics, finding_metrics
from covidcxr.evaluation.metrics.operating_point import OperatingPoint, choose_point, score_at
from covidcxr.evaluation.metrics.reliability import Reliability
from covidcxr.evaluation.metrics.scores import LEAST, SCORES, format_estimate, rank, title
from covidcxr.evaluation.metrics.weighted import Ranking, ratio
from covidcxr.evaluation.plots import as_picture, plot_confusion, plot_curves, plot_estimates, plot_reliability
from covidcxr.evaluation.predictions import PredictionTable, Rows
from covidcxr.page import Block, Section, Table, Words, sections_of
from covidcxr.registry import CLASSIFICATION_SCORES
from covidcxr.utils.plain import plain_result

__all__ = ["ClassScores", "score_classes", "plot_curves", "PointScores", "score_point"]

__getattr__ = partial(aliases.find, __name__)


@dataclass(frozen=True)
class ClassScores:
    """Scores of a classifier.

    Attributes:
        scores: By name, as `classification_metrics` or `finding_metrics` names them.
        support: By class: images and patients.
        confusion: Rows = true class, columns = predicted class, in the order of `support`; empty for findings.
        predictions: The images behind them.
        pairs: Of more than two exclusive classes, by "A and B": AUROC of the images of these two, by how much more
            probable A is than B.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        result = evaluate_rows(rows, resamples=20).parts["classes"]
        assert result.scores["accuracy"].value == 1
        ```
    """

    scores: Mapping[str, Estimate]
    support: Mapping[str, tuple[int, int]]
    confusion: tuple[tuple[int, ...], ...]
    predictions: PredictionTable = field(repr=False)
    pairs: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, Estimate]:
        """The scores over all classes, those of other packages too."""
        names = [name for name, kind in SCORES.items() if kind.of == "images" and kind.best]
        return {name: self.scores[name] for name in (*names, *CLASSIFICATION_SCORES) if name in self.scores}

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        support = {name: {"films": images, "patients": patients} for name, (images, patients) in self.support.items()}
        numbers = {"scores": self.scores, "support": support, "confusion": self.confusion, "pairs": self.pairs}
        result: dict[str, Any] = plain_result(numbers)
        return result


@sections_of.register
def _(result: ClassScores) -> list[Section]:
    absent = [name for name, (images, _) in result.support.items() if not images]
    blocks: list[Block] = [
        Words(f"No image shows {name}: it has no sensitivity and no AUROC.", warning=True) for name in absent
    ]
    if result.means:
        means = {title(name): estimate for name, estimate in result.means.items()}
        figure = plot_estimates(means, title="all classes")
        blocks.append(as_picture(figure, "Scores over all classes with their intervals"))
    present = [
        part
        for part, kind in SCORES.items()
        if kind.of == "class" and any(f"{part}_{name}" in result.scores for name in result.support)
    ]
    rows = [
        [name, str(images), str(patients), *(format_estimate(result.scores.get(f"{part}_{name}")) for part in present)]
        for name, (images, patients) in result.support.items()
    ]
    blocks.append(Table(["class", "images", "patients", *map(title, present)], rows, "Each class"))
    if result.pairs:
        rows = [
            [pair, format_estimate(auroc), f"{auroc.count} ({auroc.patients})"] for pair, auroc in result.pairs.items()
        ]
        blocks.append(Table(["pair", "AUROC", "images (patients)"], rows, "Two classes at a time"))
    lead = "One class against the rest; the predicted class is the most probable one."
    sections = [Section("Scores by class", lead, blocks)]
    if result.predictions.exclusive:
        sections.append(_curves(result.predictions))
    return sections


def _curves(predictions: PredictionTable) -> Section:
    blocks: list[Block] = [
        as_picture(plot_confusion(predictions), "Confusion matrix", "Share of the true class, and number of images")
    ]
    several = range(len(predictions.classes)) if len(predictions.classes) > 2 else []
    if curves := plot_curves(predictions, several):
        caption = "Each class against the rest; dotted: what guessing gives"
        blocks.append(as_picture(curves, "ROC and precision-recall curves of each class", caption))
    return Section("Predictions", "Which classes were confused, and what another threshold would give.", blocks)


def score_classes(predictions: PredictionTable, *, resamples: int = 1000, seed: int = 0) -> ClassScores | None:
    """Score a classifier.

    Args:
        predictions: The images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no image has both a label and a prediction.
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
    pairs = _pairs(predictions, **settings)
    return ClassScores(scores, support, tuple(map(tuple, counts.tolist())), predictions, pairs)


def _pairs(predictions: PredictionTable, *, resamples: int, seed: int) -> dict[str, Estimate]:
    """Score each pair of more than two exclusive classes, where both have enough patients."""
    names, labels, given = predictions.classes, predictions.labels, predictions.probabilities
    enough = [c for c in range(len(names)) if predictions.number_of(labels == c) >= LEAST]
    if len(names) < 3 or len(enough) < 2:
        return {}
    images: dict[str, np.ndarray] = {}
    ranked: dict[str, Ranking] = {}
    for a, b in combinations(enough, 2):
        pair = f"{names[a]} and {names[b]}"
        images[pair] = own = (labels == a) | (labels == b)
        ranked[pair] = rank(ratio(given[own, a], given[own, a] + given[own, b]), (labels[own] == a).astype(float))

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {pair: ranking.areas(weights[:, images[pair]])[0] for pair, ranking in ranked.items()}

    return bootstrap_many(
        table, groups=predictions.patients, images=images, shares=tuple(images), resamples=resamples, seed=seed
    )


@dataclass(frozen=True)
class PointScores:
    """A class against the rest at one decision threshold.

    Attributes:
        class_name: The positive class.
        threshold: From this probability up.
        point: How the threshold was chosen; None = there were no validation images: it is 0.5.
        prevalence: Share of positive patients where the model is used; None = as in these images.
        scores: `sensitivity`, `specificity`, `ppv`, `npv`, `prevalence`.
        predictions: The images behind them.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        result = evaluate_rows(rows, resamples=20).parts["point"]
        assert result.threshold == 0.5 and result.scores["sensitivity"].value == 1
        ```
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
            "point": plain_result(self.point),
            "prevalence": self.prevalence,
            "scores": plain_result(self.scores),
        }


@sections_of.register
def _(result: PointScores) -> list[Section]:
    if result.point is None:
        words = Words(
            f"No validation images were given, so no threshold could be chosen: {result.class_name} is predicted from "
            f"a probability of 0.5 up.",
            warning=True,
        )
    else:
        words = Words(f"The threshold: {result.point}. These images took no part in the choice.")
    where = "these images" if result.prevalence is None else f"a place with a prevalence of {result.prevalence:.1%}"
    names = {"ppv": f"PPV in {where}", "npv": f"NPV in {where}"}
    rows = [
        [names.get(name, title(name)), format_estimate(estimate), f"{estimate.count} ({estimate.patients})"]
        for name, estimate in result.scores.items()
        if name != "prevalence"
    ]
    blocks: list[Block] = [words, Table(["score", "value [95 % interval]", "images (patients)"], rows)]
    number = result.predictions.classes.index(result.class_name)
    mark = result.scores["specificity"].value, result.scores["sensitivity"].value, _precision(result)
    if picture := plot_curves(result.predictions, [number], mark):
        caption = "Left the ROC curve, right precision and recall on these images; the cross is the operating point"
        blocks.append(as_picture(picture, f"Curves of {result.class_name} against the rest", caption))
    lead = f"How often {result.class_name} is found, and how often a positive and a negative prediction are right."
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
    validation: Rows | None,
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
        positive: Number of the positive class; None = there is none.
        sensitivity: What is wanted of the threshold on the validation images, in (0, 1].
        prevalence: Share of positive patients where the model is used; None = as in these images.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no positive class, or no image is labelled as it or not.
    """
    predictions = predictions.scored
    if positive is None or not len(predictions):
        return None
    predictions = predictions.take(~np.isnan(predictions.truths[:, positive]))
    name = predictions.classes[positive]
    if not len(predictions):
        return None
    point = None
    chosen_on = None if validation is None else PredictionTable.read(validation).scored
    if chosen_on is not None and name in chosen_on.classes:
        positives = chosen_on.truths[:, chosen_on.classes.index(name)] == 1
        point = choose_point(chosen_on, name, sensitivity=sensitivity) if positives.any() else None
    scores = score_at(predictions, name, point or 0.5, prevalence, resamples=resamples, seed=seed)
    threshold = 0.5 if point is None else point.threshold
    return PointScores(name, threshold, point, prevalence, scores, predictions)


@sections_of.register
def _(reliability: Reliability) -> list[Section]:
    what = "the most probable class" if reliability.of == "the answer" else reliability.of
    lead = (
        f"Of the images to which {what} was given a probability of 0.8, eight in ten should be right: on the dotted "
        f"line. Below it the model is overconfident, above it underconfident."
    )
    alt = f"Reliability diagram: expected calibration error {reliability.ece}, Brier score {reliability.brier}"
    picture = as_picture(plot_reliability(reliability), alt)
    return [Section("Calibration", lead, [picture, _calibration_numbers(reliability)])]


def _calibration_numbers(result: Reliability) -> Table:
    numbers = {
        "ECE": result.ece,
        "ECE without what chance adds": result.debiased,
        "ECE that a calibrated model of this size shows": result.calibrated,
        "Brier score": result.brier,
        "Brier skill (1 = perfect, 0 = guessing)": result.skill,
        **{f"ECE of {name}": estimate for name, estimate in result.by_class.items()},
    }
    rows = [[name, format_estimate(estimate)] for name, estimate in numbers.items()]
    return Table(["calibration", "value [95 % interval]"], rows, "Chance alone raises the ECE above 0")
