"""Scores of classifiers, each with its patient-clustered interval."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr import aliases
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, FindInterval, PatientIds, Statistics, check_length
from covidcxr.evaluation.metrics.calibration import brier_interval, brier_of, error_intervals
from covidcxr.evaluation.metrics.intervals import NONE_PREDICTED, Interval
from covidcxr.evaluation.metrics.weighted import Ranking, calibration_gaps, ratio, weighted_confusion, weighted_mean
from covidcxr.registry import CLASSIFICATION_SCORES

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "BINS",
    "CURVES",
    "by_class",
    "check_classes",
    "check_labels",
    "check_predictions",
    "classification_metrics",
    "classification_statistics",
    "rates_of",
    "finding_metrics",
    "finding_statistics",
]

BINS = 15
"""Of the calibration error (Guo 2017)."""


def classification_metrics(
    probabilities: Float[np.ndarray, "images classes"],
    labels: Integer[np.ndarray, " images"],
    patient_ids: PatientIds,
    classes: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Score a classifier of exclusive classes; its answer is the most probable class.

    A class without images has no sensitivity, F1, AUROC or average precision (NaN), and the means over classes leave it
    out: it never counts as 0.

    Other packages add scores of their own by `covidcxr.registry.CLASSIFICATION_SCORES`: a function of the weights
    [resamples, images] of the images in each bootstrap sample, `probabilities` and `labels`, which returns one number a
    resample; its interval comes with it.

    Args:
        probabilities: One row an image.
        labels: Index of the true class of each image.
        patient_ids: Patient of each image; None or NaN = unknown, taken as a patient of its own.
        classes: Names, in the order of the columns.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
        confidence: Nominal coverage of the intervals.

    Returns:
        `accuracy`, `balanced_accuracy` (the mean sensitivity), `macro_specificity`, `macro_f1`, `macro_auroc`,
        `macro_average_precision`, `macro_precision`; `brier` (the mean squared distance of probabilities from the
        truth, in [0, 2]; with two classes the squared error of the second one's probability, in [0, 1]; Brier 1950) and
        `ece` (see `expected_calibration_error`), both the lower the better; then `sensitivity_<class>`,
        `specificity_<class>`, `precision_<class>`, `f1_<class>`, `auroc_<class>` and `average_precision_<class>` (one
        against the rest).

    Raises:
        ConfigError: If shapes differ, a label is out of range, a probability is not in [0, 1], or a registered score
            has the name of another one or does not return a number a resample.
    """
    statistics = classification_statistics(probabilities, labels, classes)
    check_length(len(labels), patient_ids)
    return statistics.estimate(patient_ids, resamples, seed, confidence)


def classification_statistics(
    probabilities: Float[np.ndarray, "images classes"], labels: Integer[np.ndarray, " images"], classes: Sequence[str]
) -> Statistics:
    """Prepare the scores of `classification_metrics`, for weights that are not known yet.

    Args:
        probabilities: A row an image, in [0, 1].
        labels: Index of the true class of each image.
        classes: Names, in the order of the columns.

    Returns:
        The scores as functions of weights.
    """
    check_predictions(probabilities, labels)
    check_classes(probabilities, classes)
    predicted = probabilities.argmax(1)
    present = np.isin(np.arange(len(classes)), labels)
    rankings = [Ranking(column, labels == c) for c, column in enumerate(probabilities.T)]
    registered = {name: CLASSIFICATION_SCORES.get(name) for name in CLASSIFICATION_SCORES}
    # Of these the rest are means or sums over images, one column each: brier, then the bins of the calibration error.
    columns = np.column_stack([brier_of(probabilities, labels), calibration_gaps(probabilities, labels, BINS)])

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        counts = weighted_confusion(weights, labels, predicted, len(classes))
        hits = np.diagonal(counts, axis1=1, axis2=2)
        total = counts.sum((1, 2))
        per_class = rates_of(hits, counts.sum(2), counts.sum(1), total[:, None])
        per_class |= _areas_of(rankings, weights)
        scores = {"accuracy": ratio(hits.sum(1), total)}
        parts = {"balanced_accuracy": "sensitivity", "macro_specificity": "specificity", "macro_f1": "f1"}
        parts |= {f"macro_{curve}": curve for curve in CURVES}
        for name, part in parts.items():
            scores[name] = per_class[part][:, present].mean(1)
        # A class that is never answered has no precision: it counts as 0 here, or being silent would pay.
        scores["macro_precision"] = np.nan_to_num(per_class["precision"])[:, present].mean(1)
        brier, *gaps = (weights @ columns).T
        scores |= {"brier": ratio(brier, total), "ece": ratio(np.abs(gaps).sum(0), total)}
        scores |= by_class(per_class, classes)
        return scores | {
            name: _registered_score(name, score(weights, probabilities, labels), len(weights), scores)
            for name, score in registered.items()
        }

    images, kinds = _images_of_scores(classes, labels, predicted)

    def of_ece(patient: np.ndarray, confidence: float) -> Interval:
        estimate = error_intervals(columns[:, 1:], patient, confidence)["measured"]
        return Interval(estimate.low, estimate.high, estimate.note)

    brier = partial(brier_interval, columns[:, 0], predicted != labels, worst=1.0 if len(classes) == 2 else 2.0)
    intervals: dict[str, FindInterval] = {"ece": of_ece, "brier": brier}
    intervals |= _undefined_precisions(predicted[:, None] == np.arange(len(classes)), classes)
    return Statistics(compute, images, {"accuracy", *kinds, *images}, kinds, intervals)


def _undefined_precisions(
    predicted_positive: Bool[np.ndarray, "images classes"], classes: Sequence[str]
) -> dict[str, FindInterval]:
    """Say of each class that is never predicted that its precision is not defined (Maier-Hein 2024)."""
    never = np.flatnonzero(~predicted_positive.any(0)).tolist()
    return {f"precision_{classes[c]}": lambda patient, confidence: NONE_PREDICTED for c in never}


def _images_of_scores(
    classes: Sequence[str], labels: Integer[np.ndarray, " images"], predicted: Integer[np.ndarray, " images"]
) -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    """Return which images each score of a class is about, and the kinds of image of which each score needs some."""
    means = ("balanced_accuracy", "macro_specificity", "macro_f1", "macro_precision", *(f"macro_{c}" for c in CURVES))
    images: dict[str, np.ndarray] = {}
    kinds: dict[str, list[np.ndarray]] = {mean: [labels == c for c in np.unique(labels)] for mean in means}
    for c, name in enumerate(classes):
        images |= {f"{part}_{name}": labels == c for part in ("sensitivity", "f1", *CURVES)}
        images |= {f"specificity_{name}": labels != c, f"precision_{name}": predicted == c}
        kinds |= {f"{curve}_{name}": [labels == c, labels != c] for curve in CURVES}
        kinds[f"f1_{name}"] = [(labels == c) | (predicted == c)]
    return images, kinds


def _registered_score(name: str, values: np.ndarray, resamples: int, others: Collection[str]) -> np.ndarray:
    """Check what a score of another package returned."""
    if name in others:
        raise ConfigError(f"The registered score {name!r} has the name of a score of covidcxr. Give it another one.")
    values = np.asarray(values, dtype=float)
    if values.shape != (resamples,):
        raise ConfigError(f"The registered score {name!r} returned {values.shape}, not one number a resample.")
    return values


def check_predictions(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Refuse predictions that cannot be scored.

    Args:
        probabilities: What should be [images, classes] in [0, 1].
        labels: What should be class indices, [images].

    Raises:
        ConfigError: If `probabilities` is not [images, classes] in [0, 1], or `labels` not as many class indices.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ConfigError(
            f"Probabilities of shape {probabilities.shape} and labels of shape {labels.shape} do not fit: they must "
            f"be [images, classes] and [images], with one image or more."
        )
    _check_probabilities(probabilities)
    check_labels(labels, probabilities.shape[1])


def check_labels(labels: np.ndarray, outputs: int) -> None:
    """Refuse labels that are no class indices.

    Args:
        labels: What should be whole numbers from 0, [images].
        outputs: Outputs of the classifier; 1 = two classes.

    Raises:
        ConfigError: If a label is out of range.
    """
    classes = max(outputs, 2)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(f"Labels must be whole numbers from 0 to {classes - 1}: leave unlabelled images out.")


CURVES = ("auroc", "average_precision")


def _check_probabilities(probabilities: np.ndarray) -> None:
    """Refuse numbers that are no probabilities."""
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ConfigError("Probabilities must be in [0, 1] without NaN: apply softmax or sigmoid to logits first.")


def check_classes(probabilities: np.ndarray, classes: Sequence[str], least: int = 2) -> None:
    """Refuse class names that do not name each column once.

    Args:
        probabilities: [images, classes].
        classes: The names.
        least: Fewest classes.

    Raises:
        ConfigError: If names are missing, surplus or doubled, or there are fewer than `least`.
    """
    if len(classes) != probabilities.shape[1] or len(set(classes)) != len(classes) or len(classes) < least:
        count = {1: "one", 2: "two"}[least]
        raise ConfigError(
            f"Each column of probabilities needs a class of its own, {count} or more: there are "
            f"{probabilities.shape[1]} columns and the names {list(classes)}."
        )


def _areas_of(rankings: Sequence[Ranking], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute AUROC and average precision of each class."""
    areas = zip(*(ranking.areas(weights) for ranking in rankings), strict=True)
    return {name: np.stack(area, axis=1) for name, area in zip(CURVES, areas, strict=True)}


def rates_of(
    true_positives: np.ndarray, positives: np.ndarray, predicted_positive: np.ndarray, total: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the rates of each class against the rest.

    Args:
        true_positives: Weight of the images that are of the class and predicted so, [resamples, classes].
        positives: Weight of the images that are of the class.
        predicted_positive: Weight of the images predicted so.
        total: Weight of all images.

    Returns:
        `sensitivity`, `specificity`, `precision` and `f1`, [resamples, classes]; NaN where undefined.
    """
    negatives = total - positives
    return {
        "sensitivity": ratio(true_positives, positives),
        "specificity": ratio(negatives - (predicted_positive - true_positives), negatives),
        "precision": ratio(true_positives, predicted_positive),
        "f1": np.where(positives > 0, ratio(2 * true_positives, positives + predicted_positive), np.nan),
    }


def by_class(per_class: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Name the scores of each class.

    Args:
        per_class: By score, [resamples, classes].
        classes: Names, in the order of the columns.

    Returns:
        By `<score>_<class>`, [resamples].
    """
    return {f"{part}_{name}": values[:, c] for c, name in enumerate(classes) for part, values in per_class.items()}


def finding_metrics(
    probabilities: Float[np.ndarray, "images classes"],
    truths: Float[np.ndarray, "images classes"],
    patient_ids: PatientIds,
    classes: Sequence[str],
    *,
    thresholds: float | Mapping[str, float] = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Score a classifier of findings, of which an image may show several or none.

    A finding is predicted from its threshold up. What is not labelled is left out, finding by finding. Means over
    findings leave out those that are nowhere, and for the AUROC those that are everywhere.

    Args:
        probabilities: One row an image.
        truths: 1 = the image shows it, 0 = it does not, NaN = not labelled.
        patient_ids: Patient of each image; None or NaN = unknown, taken as a patient of its own.
        classes: Names, in the order of the columns.
        thresholds: From which probability a finding is predicted: one for all, or by name.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
        confidence: Nominal coverage of the intervals.

    Returns:
        `macro_auroc`, `macro_average_precision`, then `auroc_<class>`, `average_precision_<class>`,
        `sensitivity_<class>`, `specificity_<class>`, `precision_<class>`, `f1_<class>` and `brier_<class>` (the mean
        squared error of the probability).

    Raises:
        ConfigError: If shapes differ, a truth is not 0, 1 or NaN, a probability is not in [0, 1], or a finding has no
            threshold.
    """
    statistics = finding_statistics(probabilities, truths, classes, thresholds)
    check_length(len(truths), patient_ids)
    return statistics.estimate(patient_ids, resamples, seed, confidence)


def finding_statistics(
    probabilities: Float[np.ndarray, "images classes"],
    truths: Float[np.ndarray, "images classes"],
    classes: Sequence[str],
    thresholds: float | Mapping[str, float] = 0.5,
) -> Statistics:
    """Prepare the scores of `finding_metrics`, for weights that are not known yet.

    Args:
        probabilities: A row an image, in [0, 1].
        truths: 1 = the image shows it, 0 = it does not, NaN = not labelled.
        classes: Names, in the order of the columns.
        thresholds: From which probability a finding is predicted: one for all, or by name.

    Returns:
        The scores as functions of weights.

    Raises:
        ConfigError: If shapes differ, a truth is not 0, 1 or NaN, a probability is not in [0, 1], or a finding has no
            threshold.
    """
    if probabilities.ndim != 2 or truths.shape != probabilities.shape:
        raise ConfigError(
            f"Probabilities and truths must be [images, classes], not {probabilities.shape}, {truths.shape}."
        )
    _check_probabilities(probabilities)
    check_classes(probabilities, classes, least=1)
    known, true, absent = ~np.isnan(truths), truths == 1, truths == 0
    if (known & ~true & ~absent).any():
        raise ConfigError("A finding is 1 (shown), 0 (not shown) or NaN (not labelled), nothing else.")
    predicted_positive = known & (probabilities >= _thresholds(thresholds, classes))
    both = {"auroc": true.any(0) & absent.any(0), "average_precision": true.any(0)}
    squares = np.square(probabilities - truths)
    rankings = [
        Ranking(np.where(about, column, np.nan), positive)
        for about, column, positive in zip(known.T, probabilities.T, true.T, strict=True)
    ]
    cells = np.concatenate([true & predicted_positive, true, predicted_positive, known], axis=1).astype(float)

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        per_class = _areas_of(rankings, weights)
        scores = {f"macro_{name}": _mean(per_class[name][:, kept]) for name, kept in both.items()}
        per_class |= rates_of(*np.split(weights @ cells, 4, axis=1))
        per_class["brier"] = np.stack([weighted_mean(weights, column) for column in squares.T], axis=1)
        return scores | by_class(per_class, classes)

    images: dict[str, np.ndarray] = {f"macro_{name}": known[:, kept].any(1) for name, kept in both.items()}
    shares, kinds, intervals = set(images), {}, _undefined_precisions(predicted_positive, classes)
    for name, kept in both.items():
        kinds[f"macro_{name}"] = [kind[:, c] for c in np.flatnonzero(kept) for kind in (true, absent)]
    for c, name in enumerate(classes):
        kinds |= {f"{curve}_{name}": [true[:, c], absent[:, c]] for curve in CURVES}
        kinds[f"f1_{name}"] = [true[:, c] | predicted_positive[:, c]]
        wrong = (probabilities[:, c] >= 0.5) != true[:, c]
        intervals[f"brier_{name}"] = partial(brier_interval, squares[:, c], wrong)
        about = dict.fromkeys(CURVES, known) | {"sensitivity": true, "f1": true}
        about |= {"specificity": absent, "precision": predicted_positive, "brier": known}
        images |= {f"{part}_{name}": which[:, c] for part, which in about.items()}
        shares |= {f"{part}_{name}" for part in about if part != "brier"}
    return Statistics(compute, images, shares, kinds, intervals)


def _thresholds(thresholds: float | Mapping[str, float], classes: Sequence[str]) -> np.ndarray:
    if not isinstance(thresholds, Mapping):
        return np.full(len(classes), thresholds)
    missing = [name for name in classes if name not in thresholds]
    if missing:
        raise ConfigError(f"There is no threshold for {', '.join(missing)}.")
    return np.array([thresholds[name] for name in classes])


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over classes, [resamples]; NaN without any."""
    return values.mean(1) if values.shape[1] else np.full(len(values), np.nan)
