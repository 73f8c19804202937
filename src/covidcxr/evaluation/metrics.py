"""Scores of classifiers and of masks, each with its patient-clustered interval.

The `weighted_*` functions are statistics for `bootstrap`: they take weights [resamples, films] first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.evaluation.intervals import Estimate, PatientIds, bootstrap_many, check_length

__all__ = [
    "weighted_mean",
    "weighted_auroc",
    "weighted_confusion",
    "classification_metrics",
    "segmentation_metrics",
    "dice_score",
    "iou_score",
    "check_labels",
    "check_predictions",
]


def weighted_mean(weights: Float[np.ndarray, "resamples films"], values: np.ndarray) -> Float[np.ndarray, " resamples"]:
    """Return the mean of `values` [films] (float, int or bool) in each resample; NaN = unknown, left out."""
    known = ~np.isnan(values)
    return _ratio(weights @ np.where(known, values, 0.0), weights @ known.astype(float))


def weighted_auroc(
    weights: Float[np.ndarray, "resamples films"],
    scores: Float[np.ndarray, " films"],
    positive: Bool[np.ndarray, " films"],
) -> Float[np.ndarray, " resamples"]:
    """Return the area under the ROC curve in each resample: P(a sick film scores above a healthy one), ties half.

    Args:
        weights: Weight of each film.
        scores: Higher = more likely positive; NaN = unknown, left out.
        positive: Which films are positive.

    Returns:
        In [0, 1]; NaN where a resample holds only one kind.
    """
    known = ~np.isnan(scores)
    healthy, sick = np.flatnonzero(known & ~positive), np.flatnonzero(known & positive)
    healthy = healthy[np.argsort(scores[healthy])]
    below = np.zeros((len(weights), len(healthy) + 1))  # [:, k] = weight of the k healthy films that score lowest
    np.cumsum(weights[:, healthy], axis=1, out=below[:, 1:])
    left = np.searchsorted(scores[healthy], scores[sick], side="left")
    right = np.searchsorted(scores[healthy], scores[sick], side="right")
    sick_weights = weights[:, sick]
    wins = (sick_weights * below[:, left]).sum(1) + (sick_weights * below[:, right]).sum(1)
    return _ratio(wins / 2, sick_weights.sum(1) * below[:, -1])


def weighted_confusion(
    weights: Float[np.ndarray, "resamples films"],
    labels: Integer[np.ndarray, " films"],
    answers: Integer[np.ndarray, " films"],
    classes: int,
) -> Float[np.ndarray, "resamples classes classes"]:
    """Return the confusion matrix of each resample: rows = true class, columns = answer."""
    cells = np.eye(classes * classes)[labels * classes + answers]
    counts: np.ndarray = weights @ cells
    return counts.reshape(len(weights), classes, classes)


def classification_metrics(
    probabilities: Float[np.ndarray, "films classes"],
    labels: Integer[np.ndarray, " films"],
    patient_ids: PatientIds,
    classes: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Score a classifier of exclusive classes; its answer is the most probable class.

    A class without films has no sensitivity, F1 or AUROC (NaN), and the means over classes leave it out: it never
    counts as 0.

    Args:
        probabilities: One row a film.
        labels: Index of the true class of each film.
        patient_ids: Patient of each film; None or NaN = unknown, taken as a patient of its own.
        classes: Names, in the order of the columns.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
        confidence: Nominal coverage of the intervals.

    Returns:
        `accuracy`, `balanced_accuracy` (the mean sensitivity), `macro_f1`, `macro_auroc`, `macro_precision`, then
        `sensitivity_<class>`, `specificity_<class>`, `precision_<class>`, `f1_<class>` and `auroc_<class>` (one against
        the rest).

    Raises:
        ConfigError: If shapes differ, a label is out of range or a probability is not in [0, 1].
    """
    check_predictions(probabilities, labels)
    if len(classes) != probabilities.shape[1] or len(set(classes)) != len(classes) or len(classes) < 2:
        raise ConfigError(
            f"Each column of probabilities needs a class of its own, two or more: there are {probabilities.shape[1]} "
            f"columns and the names {list(classes)}."
        )
    check_length(len(labels), patient_ids)
    answers = probabilities.argmax(1)
    present = np.isin(np.arange(len(classes)), labels)

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        counts = weighted_confusion(weights, labels, answers, len(classes))
        per_class = _rates(counts)
        areas = [weighted_auroc(weights, probabilities[:, c], labels == c) for c in range(len(classes))]
        per_class["auroc"] = np.stack(areas, axis=1)
        rows = {"accuracy": _ratio(np.trace(counts, axis1=1, axis2=2), counts.sum((1, 2)))}
        means = {"balanced_accuracy": "sensitivity", "macro_f1": "f1", "macro_auroc": "auroc"}
        for name, part in means.items():
            rows[name] = per_class[part][:, present].mean(1)
        # A class that is never answered has no precision: it counts as 0 here, or being silent would pay.
        rows["macro_precision"] = np.nan_to_num(per_class["precision"])[:, present].mean(1)
        return rows | {f"{part}_{name}": per_class[part][:, c] for c, name in enumerate(classes) for part in per_class}

    films: dict[str, np.ndarray] = {}
    for c, name in enumerate(classes):
        films |= {f"{part}_{name}": labels == c for part in ("sensitivity", "f1", "auroc")}
        films |= {f"specificity_{name}": labels != c, f"precision_{name}": answers == c}
    return bootstrap_many(table, groups=patient_ids, films=films, resamples=resamples, seed=seed, confidence=confidence)


def segmentation_metrics(
    scores: Mapping[str, Float[np.ndarray, " films"]],
    patient_ids: PatientIds,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Average scores of masks over films.

    Args:
        scores: By name (`"dice_lung"`), one score a film; NaN = the true mask is unknown: the film does not count.
        patient_ids: Patient of each film; None or NaN = unknown, taken as a patient of its own.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
        confidence: Nominal coverage of the intervals.

    Returns:
        Means over films, under the names of `scores`.

    Raises:
        ConfigError: If lengths differ or there are no films.
    """
    for values in scores.values():
        check_length(len(values), patient_ids)

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: weighted_mean(weights, values) for name, values in scores.items()}

    films = {name: ~np.isnan(values) for name, values in scores.items()}
    return bootstrap_many(table, groups=patient_ids, films=films, resamples=resamples, seed=seed, confidence=confidence)


def dice_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Return twice the overlap over the sum of areas, in [0, 1]; both empty is 1.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    overlap, area = _overlap(mask, target)
    return 2 * overlap / area if area else 1.0


def iou_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Return intersection over union, in [0, 1]; both empty is 1.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    overlap, area = _overlap(mask, target)
    return overlap / (area - overlap) if area else 1.0


def check_predictions(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Refuse predictions that cannot be scored.

    Raises:
        ConfigError: If `probabilities` is not [films, classes] in [0, 1], or `labels` not as many class indices.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ConfigError(
            f"Probabilities of shape {probabilities.shape} and labels of shape {labels.shape} do not fit: they must "
            f"be [films, classes] and [films], with one film or more."
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ConfigError("Probabilities must be in [0, 1] without NaN: apply softmax or sigmoid to logits first.")
    check_labels(labels, probabilities.shape[1])


def check_labels(labels: np.ndarray, outputs: int) -> None:
    """Refuse labels that are no class indices for a classifier with so many outputs (one output = two classes).

    Raises:
        ConfigError: If a label is out of range.
    """
    classes = max(outputs, 2)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(f"Labels must be whole numbers from 0 to {classes - 1}: leave unlabelled films out.")


def _rates(counts: Float[np.ndarray, "resamples classes classes"]) -> dict[str, np.ndarray]:
    """Return the rates of each class against the rest, [resamples, classes], from confusion matrices."""
    hits = np.diagonal(counts, axis1=1, axis2=2)
    true, called = counts.sum(2), counts.sum(1)
    others = counts.sum((1, 2))[:, None] - true
    f1 = _ratio(2 * hits, true + called)
    return {
        "sensitivity": _ratio(hits, true),
        "specificity": _ratio(others - (called - hits), others),
        "precision": _ratio(hits, called),
        "f1": np.where(true > 0, f1, np.nan),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to divide by."""
    ratio: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio


def _overlap(mask: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    if mask.shape != target.shape or mask.dtype != bool or target.dtype != bool:
        raise ConfigError(
            f"Masks to compare must be bool and of one shape, not {mask.dtype} {mask.shape} and "
            f"{target.dtype} {target.shape}."
        )
    return int((mask & target).sum()), int(mask.sum()) + int(target.sum())
