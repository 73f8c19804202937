"""Shortcut probes: small classifiers that see one thing beside the lungs, cross-validated with whole patients."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.intervals import widen
from covidcxr.evaluation.metrics.weighted import ratio, weighted_auroc, weighted_confusion
from covidcxr.evaluation.shortcuts.association import MARGIN, FeatureTest, strongest_features
from covidcxr.evaluation.shortcuts.features import FeatureTable
from covidcxr.evaluation.shortcuts.targets import Target

__all__ = [
    "MARGIN",
    "PROBES",
    "SCATTER",
    "Probe",
    "ProbeScore",
    "count_tests",
    "cross_validate",
    "has_clear_feature",
    "standard_error",
    "stands_out",
    "train_and_test",
]

ModelName: TypeAlias = Literal["table", "forest", "pixels"]
"""Logistic regression on the values of a column, random forest on numbers, strongly regularised logistic regression on
pixels."""

SCATTER = 1.4
"""By how much a cross-validated AUROC scatters wider than its interval says, which takes its classifiers as given; on
clean data 1.3 was measured (375 audits' worth of probes, 60 to 600 images). No interval is free of it (Bengio and
Grandvalet 2004)."""

_MOST_TRAINING_IMAGES = 20_000
_TREES = 60
_TREE_IMAGES = 1_000  # each tree of a forest sees no more: that bounds the time for any number of images


@dataclass(frozen=True)
class Probe:
    """What one probe sees.

    Attributes:
        name: Its key.
        title: Its name in words.
        sees: What it is shown, in words that complete "... sees only ...".
        model: Its classifier.
        blind: Whether it sees no lung. A probe that sees the whole image coarsely does not prove a shortcut: an opacity
            may be visible in a thumbnail.
        kind: "column" of the table, or "image".

    Example:
        ```python
        from covidcxr.evaluation.shortcuts import PROBES

        assert [probe.name for probe in PROBES if not probe.blind] == ["grey", "thumbnail"]
        ```
    """

    name: str
    title: str
    sees: str
    model: ModelName
    blind: bool = True
    kind: Literal["column", "image"] = "image"


PROBES = (
    Probe("source", "source", "the name of the source", "table", kind="column"),
    Probe("view", "view", "the view as it is stated", "table", kind="column"),
    Probe("sex", "sex", "the patient's sex", "table", kind="column"),
    Probe("age", "age", "the patient's age", "forest", kind="column"),
    Probe("facts", "view, sex and age", "view, sex and age together", "forest", kind="column"),
    Probe("header", "file header", "format, mode, size in bytes and other entries of the file's header", "forest"),
    Probe("shape", "image shape", "height, width and their ratio", "forest"),
    Probe("border", "border", "the outermost 2 % of each side, and frames of one grey", "forest"),
    Probe("corners", "corners", "a small picture of each corner", "pixels"),
    Probe("marks", "marks", "how far bright and dark details stand out at each edge, outside the lungs", "forest"),
    Probe("texture", "texture", "noise, sharpness and JPEG blocks by frequency, outside lungs and rim", "forest"),
    Probe("background", "lungs removed", "the image without the lungs, as a thumbnail", "pixels"),
    Probe("grey", "grey values", "brightness, contrast and other grey statistics of the image", "forest", blind=False),
    Probe("thumbnail", "thumbnail", "the image squeezed to 24 x 24 pixels", "pixels", blind=False),
)
"""All probes, those that see no lung first."""


@dataclass(frozen=True)
class ProbeScore:
    """How well a probe predicts a target.

    Attributes:
        probe: What it sees.
        auroc: Mean over the classes, each against the rest; chance is 0.5.
        balanced_accuracy: Mean sensitivity; chance is 1 / number of classes.
        accuracy: Share of correct predictions; to be compared with `majority`.
        majority: Share of the most frequent class.
        by_class: AUROC of each class against the rest, counted over the images of the class.
        alarm: Whether it sees no lung and yet predicts a class above chance, corrected for all that was tried.
        seconds: Computing time.
        strongest: From class to the one feature that goes with it most; see `FeatureTest`.
        above_chance: Whether it predicts a class above chance, whatever it sees, corrected for all that was tried.

    Example:
        ```python
        from covidcxr.evaluation import Estimate
        from covidcxr.evaluation.shortcuts import PROBES, ProbeScore

        half, most = (Estimate(value, value - 0.1, value + 0.1, 40, 20) for value in (0.5, 0.8))
        score = ProbeScore(PROBES[0], half, half, half, 0.5, {"normal": half, "covid19": most})
        assert score.best == ("covid19", most)
        ```
    """

    probe: Probe
    auroc: Estimate
    balanced_accuracy: Estimate
    accuracy: Estimate
    majority: float
    by_class: Mapping[str, Estimate]
    alarm: bool = False
    seconds: float = 0.0
    strongest: Mapping[str, FeatureTest] = field(default_factory=dict)
    above_chance: bool = False

    @property
    def best(self) -> tuple[str, Estimate]:
        """The class that it predicts best against the rest."""
        return max(self.by_class.items(), key=lambda item: item[1].value)

    @property
    def best_feature(self) -> tuple[str, FeatureTest] | None:
        """The class that one feature goes with most clearly, and that feature; None = no feature was tested."""
        return min(self.strongest.items(), key=lambda item: item[1].p_value, default=None)

    @property
    def strength(self) -> float:
        """The AUROC of its best class, or of the feature that goes with a class most clearly where that is higher."""
        feature = self.best_feature
        return max(self.best[1].value, feature[1].auroc if feature and self.above_chance else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "probe": self.probe.name,
            "sees": self.probe.sees,
            "sees_no_lung": self.probe.blind,
            "auroc": self.auroc.to_dict(),
            "balanced_accuracy": self.balanced_accuracy.to_dict(),
            "chance_of_balanced_accuracy": 1 / len(self.by_class),
            "accuracy": self.accuracy.to_dict(),
            "majority": self.majority,
            "auroc_by_class": {name: estimate.to_dict() for name, estimate in self.by_class.items()},
            "strongest_feature_by_class": {name: test.to_dict() for name, test in self.strongest.items()},
            "above_chance": self.above_chance,
            "alarm": self.alarm,
        }


def cross_validate(
    probe: Probe,
    table: FeatureTable,
    target: Target,
    folds: Integer[np.ndarray, " images"],
    patients: Integer[np.ndarray, " images"],
    seed: int,
) -> ProbeScore:
    """Score a probe on images of patients that it was not trained on.

    Args:
        probe: What it sees.
        table: Its features; images without features do not count.
        target: What it predicts.
        folds: Fold of each image; no patient is in two.
        patients: Patient of each image.
        seed: Seeds classifier and resamples.

    Returns:
        Its score, with 95 % intervals over patients.
    """
    start = time.perf_counter()
    count = len(target.classes)
    images = np.flatnonzero(table.known & (target.labels >= 0))
    labels, values, fold = target.labels[images], table.values[images], folds[images]
    probabilities = np.full((len(images), count), 1 / count)
    weighted = probabilities.copy()
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        if len(np.unique(labels[train])) > 1:
            probabilities[test] = _predict(probe.model, values[train], labels[train], values[test], count, seed)
            weighted[test] = probabilities[test] * np.bincount(labels[train], minlength=count)
    score = _score(probe, probabilities, weighted, target, labels, patients[images], seed)
    strongest = strongest_features(values, labels, patients[images], target.classes, seed)
    return replace(score, strongest=strongest, seconds=time.perf_counter() - start)


def train_and_test(
    probe: Probe,
    table: FeatureTable,
    target: Target,
    train: Bool[np.ndarray, " images"],
    test: Bool[np.ndarray, " images"],
    patients: Integer[np.ndarray, " images"],
    seed: int,
) -> ProbeScore | None:
    """Train a probe on some images and score it on others, as an official split defines them.

    Args:
        probe: What it sees.
        table: Its features; images without features do not count.
        target: What it predicts.
        train: The training images.
        test: The test images.
        patients: Patient of each image.
        seed: Seeds classifier and resamples.

    Returns:
        Its score, with 95 % intervals over patients; None if either part has fewer than two classes.
    """
    start = time.perf_counter()
    usable = table.known & (target.labels >= 0)
    train, test = train & usable, test & usable
    labels, count = target.labels, len(target.classes)
    if len(np.unique(labels[train])) < 2 or len(np.unique(labels[test])) < 2:
        return None
    probabilities = _predict(probe.model, table.values[train], labels[train], table.values[test], count, seed)
    weighted = probabilities * np.bincount(labels[train], minlength=count)
    score = _score(probe, probabilities, weighted, target, labels[test], patients[test], seed)
    return replace(score, seconds=time.perf_counter() - start)


def _predict(
    model: ModelName, values: np.ndarray, labels: np.ndarray, others: np.ndarray, classes: int, seed: int
) -> Float[np.ndarray, "images classes"]:
    """Train a classifier with equally weighted classes, and return its probabilities for other images."""
    if len(values) > _MOST_TRAINING_IMAGES:
        kept = np.sort(np.random.default_rng(seed).permutation(len(values))[:_MOST_TRAINING_IMAGES])
        values, labels = values[kept], labels[kept]
    values, others = values.astype(np.float32), others.astype(np.float32)
    if model == "forest":
        return _predict_forest(values, labels, others, classes, seed)
    classifier = _logistic(model)
    classifier.fit(values, labels)
    probabilities = np.zeros((len(others), classes))
    probabilities[:, classifier.classes_] = classifier.predict_proba(others)
    return probabilities


def _predict_forest(
    values: np.ndarray, labels: np.ndarray, others: np.ndarray, classes: int, seed: int
) -> Float[np.ndarray, "images classes"]:
    """Predict by a random forest: the mean squared error of classes as 0 and 1 is Gini's impurity, and faster."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(
        n_estimators=_TREES,
        min_samples_leaf=3,
        max_features="sqrt",
        max_samples=min(len(values), _TREE_IMAGES),
        random_state=seed,
    )
    weights = len(labels) / np.maximum(np.bincount(labels, minlength=classes), 1)
    forest.fit(values, np.eye(classes, dtype=np.float32)[labels], sample_weight=weights[labels])
    return np.asarray(forest.predict(others), float)


def _logistic(name: ModelName) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "table":
        return LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000, tol=1e-3))


def _score(
    probe: Probe,
    probabilities: Float[np.ndarray, "images classes"],
    weighted: Float[np.ndarray, "images classes"],
    target: Target,
    labels: Integer[np.ndarray, " images"],
    patients: Integer[np.ndarray, " images"],
    seed: int,
) -> ProbeScore:
    """Score probabilities; plain accuracy uses `weighted`, which has the class frequencies of the training images."""
    classes, count = target.classes, len(target.classes)
    present = np.isin(np.arange(count), labels)
    predicted, correct = probabilities.argmax(1), weighted.argmax(1) == labels

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        # Of two classes, both have the same AUROC.
        areas = [weighted_auroc(weights, probabilities[:, c], labels == c) for c in range(1 if count == 2 else count)]
        areas = areas * 2 if count == 2 else areas
        counts = weighted_confusion(weights, labels, predicted, count)
        rates = ratio(np.diagonal(counts, axis1=1, axis2=2), counts.sum(2))
        rows = {"auroc": np.stack(areas, 1)[:, present].mean(1), "balanced_accuracy": rates[:, present].mean(1)}
        rows["accuracy"] = (weights @ correct.astype(float)) / weights.sum(1)
        return rows | {f"auroc {name}": areas[c] for c, name in enumerate(classes) if present[c]}

    resamples = min(1000, max(200, 3_000_000 // len(labels)))
    images = {f"auroc {name}": labels == c for c, name in enumerate(classes)}
    kinds = {name: [kind, ~kind] for name, kind in images.items()}
    kinds |= {name: [labels == c for c in np.flatnonzero(present)] for name in ("auroc", "balanced_accuracy")}
    estimates = bootstrap_many(
        table,
        groups=patients.tolist(),
        images=images,
        shares=("auroc", "balanced_accuracy", "accuracy", *images),
        kinds=kinds,
        resamples=resamples,
        seed=seed,
    )
    estimates = {name: widen(estimate, SCATTER, 0, 1) for name, estimate in estimates.items()}
    return ProbeScore(
        probe,
        estimates["auroc"],
        estimates["balanced_accuracy"],
        estimates["accuracy"],
        float(np.bincount(labels).max() / len(labels)),
        {name: estimates[f"auroc {name}"] for c, name in enumerate(classes) if present[c]},
    )


def count_tests(scores: Iterable[ProbeScore]) -> int:
    """Count the AUROCs among which an alarm must stand out, of classifiers and of features; two classes have one each.

    Args:
        scores: All scores of an audit.

    Returns:
        Their number.
    """
    return sum(
        (1 if len(score.by_class) == 2 else len(score.by_class)) * (1 + bool(score.strongest)) for score in scores
    )


def standard_error(auroc: Estimate, patients: int) -> float:
    """Return the standard error of the AUROC of a class: that of its interval, or that of chance times `SCATTER`.

    The interval holds `SCATTER` already. The larger of the two counts, because the interval of a perfect prediction may
    be narrow, however few patients there are. The error under chance is that of the Mann-Whitney statistic (Mann and
    Whitney 1947), with patients as units.

    Args:
        auroc: The AUROC, counted over the images of the class.
        patients: Patients of all classes.

    Returns:
        The standard error, in units of the AUROC.
    """
    others = max(1, patients - auroc.patients)
    by_chance = math.sqrt((auroc.patients + others + 1) / (12 * max(1, auroc.patients) * others))
    measured = (auroc.high - auroc.low) / (2 * 1.96)
    return SCATTER * by_chance if math.isnan(measured) else max(measured, SCATTER * by_chance)


def has_clear_feature(score: ProbeScore, tests: int) -> bool:
    """Tell whether one feature of a probe goes with a class by `MARGIN`, and not by chance.

    Args:
        score: Its score.
        tests: Number of AUROCs that are compared with chance.

    Returns:
        True for an alarm.
    """
    return any(test.auroc >= 0.5 + MARGIN and test.p_value < 0.025 / max(1, tests) for test in score.strongest.values())


def stands_out(score: ProbeScore, required: float) -> bool:
    """Tell whether a probe predicts any class better than chance by `MARGIN` and by enough standard errors.

    Args:
        score: Its score.
        required: Standard errors above chance, from `standard_errors_required`.

    Returns:
        True for an alarm.
    """
    return any(
        auroc.value >= 0.5 + MARGIN and auroc.value - 0.5 > required * standard_error(auroc, score.auroc.patients)
        for auroc in score.by_class.values()
    )
