"""Probabilities that mean what they say, and sets of answers that hold the truth as often as wanted."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.classification import check_labels, check_predictions
from covidcxr.evaluation.metrics.weighted import two_columns, weighted_calibration_error

__all__ = ["fit_temperature", "expected_calibration_error", "conformal_threshold"]

COLDEST, HOTTEST = 0.05, 20.0
"""Limits of the temperature: on films that are all answered right the best one would be 0."""


def fit_temperature(logits: Float[np.ndarray, "films outputs"], labels: Integer[np.ndarray, " films"]) -> float:
    """Find the temperature that makes a classifier's probabilities most likely (Guo 2017).

    Args:
        logits: Of validation films; one column = sigmoid of the second class, else softmax over the columns.
        labels: Index of the true class of each film.

    Returns:
        T in [0.05, 20]: divide logits by it before softmax or sigmoid. Above 1 = the classifier was too sure.

    Raises:
        ConfigError: If shapes differ, a label is out of range or a logit is not finite.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels) or not np.isfinite(logits).all():
        raise ConfigError(
            f"Logits must be finite [films, outputs] with one label each, not {logits.shape} with {labels.shape}."
        )
    check_labels(labels, logits.shape[1])
    logits = two_columns(logits.astype(float), 0.0)
    films = np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature), axis=1)[films, labels].mean())

    best = minimize_scalar(cost, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return math.exp(best.x)


def expected_calibration_error(
    probabilities: Float[np.ndarray, "films classes"], labels: Integer[np.ndarray, " films"], bins: int = 15
) -> float:
    """Return how far confidence is from accuracy, mean over films in bins of equal width (Naeini 2015; Guo 2017).

    Args:
        probabilities: One row a film; one column = probability of the second class.
        labels: Index of the true class of each film.
        bins: Number of bins of the top class's probability.

    Returns:
        In [0, 1]; 0 = calibrated. It is biased upwards when bins hold few films.

    Raises:
        ConfigError: If shapes differ, a label is out of range or a probability is not in [0, 1].
    """
    check_predictions(probabilities, labels)
    if bins < 1:
        raise ConfigError(f"bins must be above 0, not {bins}.")
    return float(weighted_calibration_error(np.ones((1, len(labels))), probabilities, labels, bins)[0])


def conformal_threshold(
    probabilities: Float[np.ndarray, "films classes"], labels: Integer[np.ndarray, " films"], coverage: float = 0.9
) -> float:
    """Find the probability from which a class belongs to the answer (split conformal; Sadinle 2019, LAC).

    The set of classes at or above it holds the truth of a new film with at least this probability, as long as new
    films come like these: same hospitals, same mix of classes, one film a patient.

    Args:
        probabilities: Of films that were not trained on; one column = probability of the second class.
        labels: Index of the true class of each film.
        coverage: Wanted share of films whose set holds the truth, in (0, 1).

    Returns:
        In [0, 1]. It is 0 (every class belongs) when there are too few films to promise the coverage.

    Raises:
        ConfigError: If shapes differ, a label is out of range, or coverage is not in (0, 1).
    """
    check_predictions(probabilities, labels)
    if not 0 < coverage < 1:
        raise ConfigError(f"coverage must be in (0, 1), not {coverage}.")
    films = len(labels)
    of_truth = np.sort(two_columns(probabilities, 1.0)[np.arange(films), labels])
    rank = math.ceil((films + 1) * coverage - 1e-9)  # finite-sample correction; 1e-9: 10 * 0.9 may be 9.000...01
    return float(of_truth[films - rank]) if rank <= films else 0.0
