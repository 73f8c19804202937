"""Statistics for `bootstrap`: each takes weights [resamples, films] first and returns one number a resample.

Unknown values (NaN) are left out, and what is not defined in a resample (the AUROC of one kind of film) is NaN.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Integer

__all__ = [
    "bin_of",
    "ratio",
    "two_columns",
    "weighted_auroc",
    "weighted_average_precision",
    "weighted_calibration_error",
    "weighted_confusion",
    "weighted_mean",
]


def weighted_mean(weights: Float[np.ndarray, "resamples films"], values: np.ndarray) -> Float[np.ndarray, " resamples"]:
    """Return the mean of `values` [films] (float, int or bool) in each resample; NaN = unknown, left out."""
    known = ~np.isnan(values)
    return ratio(weights @ np.where(known, values, 0.0), weights @ known.astype(float))


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
    return ratio(wins / 2, sick_weights.sum(1) * below[:, -1])


def weighted_average_precision(
    weights: Float[np.ndarray, "resamples films"],
    scores: Float[np.ndarray, " films"],
    positive: Bool[np.ndarray, " films"],
) -> Float[np.ndarray, " resamples"]:
    """Return the average precision in each resample: the mean, over sick films, of the precision at their score.

    Films of one score are called together, and nothing is interpolated (Davis and Goadrich 2006).

    Args:
        weights: Weight of each film.
        scores: Higher = more likely positive; NaN = unknown, left out.
        positive: Which films are positive.

    Returns:
        In [0, 1]; NaN where a resample holds no positive film. Guessing gives the share of positive films.
    """
    films = np.flatnonzero(~np.isnan(scores))
    films = films[np.argsort(-scores[films], kind="stable")]
    sick = np.flatnonzero(positive[films])
    # Number of films, and of sick ones, that are called at the score of each sick film
    called = np.searchsorted(-scores[films], -scores[films][sick], side="right")
    found = np.searchsorted(sick, called)
    weight_called = np.cumsum(weights[:, films], axis=1)[:, called - 1]
    sick_weights = weights[:, films[sick]]
    hits = np.cumsum(sick_weights, axis=1)[:, found - 1]
    # Where nothing is called at a score, its film has no weight.
    precision = np.divide(hits, weight_called, out=np.zeros_like(hits), where=weight_called > 0)
    return ratio((sick_weights * precision).sum(1), sick_weights.sum(1))


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


def weighted_calibration_error(
    weights: Float[np.ndarray, "resamples films"],
    probabilities: Float[np.ndarray, "films classes"],
    labels: Integer[np.ndarray, " films"],
    bins: int = 15,
) -> Float[np.ndarray, " resamples"]:
    """Return the expected calibration error in each resample; see `expected_calibration_error`."""
    probabilities = two_columns(probabilities, 1.0)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    cells = np.eye(bins)[bin_of(confidence, bins)]
    gaps = weights @ (cells * (correct - confidence)[:, None])
    return ratio(np.abs(gaps).sum(1), weights.sum(1))


def bin_of(confidence: Float[np.ndarray, " films"], bins: int) -> Integer[np.ndarray, " films"]:
    """Return the bin, of so many of equal width in [0, 1], of each number; bins are open below and closed above."""
    numbers: np.ndarray = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return numbers


def two_columns(values: np.ndarray, whole: float) -> np.ndarray:
    """Write one column as two: logits get 0 beside them (`whole` = 0), probabilities their complement to 1."""
    return np.concatenate([whole - whole * values, values], axis=1) if values.shape[1] == 1 else values


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to divide by."""
    quotient: np.ndarray = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return quotient
