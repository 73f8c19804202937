"""How far probabilities are from what is true: calibration error, and what chance adds to it; slope, intercept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.evaluation.metrics.intervals import ONE_PATIENT, Clusters, Estimate, Interval, two_part_interval

__all__ = ["brier_interval", "brier_of", "error_intervals", "recalibration"]


def brier_of(
    probabilities: Float[np.ndarray, "images classes"], labels: Integer[np.ndarray, " images"]
) -> Float[np.ndarray, " images"]:
    """Compute the squared distance of probabilities from the truth (Brier 1950).

    Args:
        probabilities: A row an image, in [0, 1].
        labels: Index of the true class of each image.

    Returns:
        One number an image, in [0, 2]; of two classes the squared error of the second one, in [0, 1].
    """
    squares = np.square(probabilities - np.eye(probabilities.shape[1])[labels])
    distance: np.ndarray = squares[:, 1] if squares.shape[1] == 2 else squares.sum(1)
    return distance


def brier_interval(
    squares: Float[np.ndarray, " images"],
    wrong: Bool[np.ndarray, " images"],
    patient: Integer[np.ndarray, " images"],
    confidence: float,
    worst: float = 1.0,
) -> Interval:
    """Find the interval of a Brier score, which wrong answers decide; see `two_part_interval`.

    Args:
        squares: What `brier_of` returned.
        wrong: Which answers are wrong.
        patient: Number of the patient of each image.
        confidence: Nominal coverage.
        worst: What a wrong answer may cost, 1 or 2.

    Returns:
        The interval.
    """
    return two_part_interval(squares, wrong, patient, confidence, worst).clip(0, worst)


DRAWS = 1000
"""Calibration errors drawn to find the interval of one."""


def error_intervals(
    gaps: Float[np.ndarray, "images bins"], patient: Integer[np.ndarray, " images"], confidence: float, seed: int = 0
) -> dict[str, Estimate]:
    """Find the interval of a calibration error, which chance alone raises above 0.

    Errors of so many images are drawn for models whose gaps are those measured times a factor; 0 = calibrated. The
    interval holds the factors under which the measured error is not surprising (test inversion), as consistency
    resampling asks for the factor 0 (Bröcker and Smith 2007; Vaicenavicius 2019). Measured gaps hold chance already,
    so that errors drawn from them are too large and the upper end alone would be too low: it is at least Student's,
    from half way between the debiased and the measured error.

    Args:
        gaps: What each image adds to the gap of each bin; see `covidcxr.evaluation.metrics.weighted.calibration_gaps`.
        patient: Number of the patient of each image.
        confidence: Nominal coverage.
        seed: Same seed, same interval.

    Returns:
        `measured` (the error of these images, with the interval of the true one), `debiased` (the error under which
        that of these images is the median, with the same interval) and `calibrated` (the error that a calibrated model
        shows on so many images; between its ends lie 95 % of them).
    """
    images = len(gaps)
    gap = gaps.sum(0) / images
    value = float(np.abs(gap).sum())
    clusters = Clusters.count(patient, [np.ones(images, bool)])
    counts: dict[str, Any] = {"count": images, "patients": len(np.unique(patient))}
    if not clusters.freedom:
        ends: dict[str, Any] = {"low": math.nan, "high": math.nan, "note": ONE_PATIENT.note}
        numbers = {"measured": value, "debiased": math.nan, "calibrated": math.nan}
        return {name: Estimate(number, **counts, **ends) for name, number in numbers.items()}
    sizes = np.bincount(patient)
    sums = np.stack([np.bincount(patient, column) for column in gaps.T], axis=1)
    moves = (sums - sizes[:, None] * gap) / (images - sizes)[:, None]  # of the gaps, as each patient is left out
    noise = _noise(gaps, moves, clusters, seed)

    def errors(factor: float) -> np.ndarray:
        return np.asarray(np.abs(factor * gap + noise).sum(1))

    tail = (1 - confidence) / 2
    low, middle, high = (value * _factor(errors, value, share) for share in (tail, 0.5, 1 - tail))
    null = errors(0.0)
    if not value:
        high = float(np.quantile(null, 1 - tail))
    error = math.sqrt(clusters.correction * float(np.square(moves @ np.sign(gap)).sum()))
    high = max(high, (middle + value) / 2 + clusters.student(confidence) * error)
    least, most = (float(number) for number in np.quantile(null, [tail, 1 - tail]))
    return {
        "measured": Estimate(value, min(low, value), min(1.0, max(high, value)), **counts),
        "debiased": Estimate(middle, low, min(1.0, high), **counts),
        "calibrated": Estimate(float(null.mean()), least, most, **counts),
    }


def _factor(errors: Callable[[float], np.ndarray], value: float, share: float) -> float:
    """Return the factor under which that share of errors is at least the measured one."""
    if not value or (errors(0.0) >= value).mean() >= share:
        return 0.0
    low, high = 0.0, 2.0
    while (errors(high) >= value).mean() < share and high < 1e6:
        high *= 2
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if (errors(middle) >= value).mean() < share else (low, middle)
    return high


def _noise(gaps: np.ndarray, moves: np.ndarray, clusters: Clusters, seed: int) -> Float[np.ndarray, "draws bins"]:
    """Draw what chance adds to the gap of each bin.

    A bin varies as patients differ in it, each left out in turn, but no less than independent images of a calibrated
    model do; bins vary together as they do over patients. Few patients have longer tails (Student).
    """
    images, held = len(gaps), (gaps != 0).sum(0)
    held[-1] += images - held.sum()  # right, with a probability of 1
    # An image adds 1 - p or -p to its bin, so p (1 - p) follows from what it adds.
    own = (np.abs(gaps) * (1 - np.abs(gaps))).sum(0)
    missed = np.where(gaps < 0, 1 + gaps, gaps).sum(0)  # the sum of 1 - p
    middle = (missed + 0.5) / (held + 1)
    own = np.maximum(own, np.where(held > 0, held * middle * (1 - middle), 0)) / images**2
    products = moves.T @ moves
    seen = np.diag(products).copy()
    scale = np.sqrt(np.outer(seen, seen))
    alike = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    np.fill_diagonal(alike, 1.0)
    spreads, axes = np.linalg.eigh(alike)
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((DRAWS, len(own))) @ (axes * np.sqrt(spreads.clip(0))).T
    drawn *= np.sqrt(clusters.freedom / rng.chisquare(clusters.freedom, (DRAWS, 1)))
    return np.asarray(drawn * np.sqrt(np.maximum(own, seen)))


LEAST_OF_A_SLOPE = 24
"""Patients, as `Clusters` counts them over images with and without a class, below which a slope has no interval."""


def recalibration(
    probability: Float[np.ndarray, " images"],
    positive: Bool[np.ndarray, " images"],
    patient: Integer[np.ndarray, " images"],
    confidence: float,
) -> tuple[Estimate, Estimate]:
    """Fit the logistic model that would put probabilities right (Cox 1958; Van Calster 2019).

    Args:
        probability: Of the class, in [0, 1].
        positive: Which images are of the class.
        patient: Number of the patient of each image.
        confidence: Nominal coverage.

    Returns:
        Intercept (at slope 1; above 0 = probabilities are too low) and slope (below 1 = too extreme), both with
        intervals that are robust to images of a patient being alike; 0 and 1 = calibrated.
    """
    logit = np.log(probability.clip(1e-6, 1 - 1e-6) / (1 - probability).clip(1e-6, 1 - 1e-6))
    counts: dict[str, Any] = {"count": len(positive), "patients": len(np.unique(patient))}
    if not positive.any() or positive.all():
        unknown = Estimate(math.nan, math.nan, math.nan, **counts, note="all images are of one kind")
        return unknown, unknown
    clusters = Clusters.count(patient, [positive, ~positive])
    fits = (
        _fit(np.ones((len(logit), 1)), logit, positive, patient),
        _fit(np.stack([np.ones_like(logit), logit], axis=1), np.zeros_like(logit), positive, patient),
    )
    estimates = []
    for fit in fits:
        if fit is None:
            note = "the probabilities tell all images apart"
            estimates.append(Estimate(math.nan, math.nan, math.nan, **counts, note=note))
        elif not clusters.freedom or round(clusters.patients) < LEAST_OF_A_SLOPE:
            note = f"fewer than {LEAST_OF_A_SLOPE} patients stand behind it, or than so many of two kinds weigh"
            estimates.append(Estimate(fit[0], math.nan, math.nan, **counts, note=note))
        else:
            reach = clusters.student(confidence) * math.sqrt(clusters.correction) * fit[1]
            estimates.append(Estimate(fit[0], fit[0] - reach, fit[0] + reach, **counts))
    return estimates[0], estimates[1]


def _fit(
    inputs: Float[np.ndarray, "images inputs"], offset: np.ndarray, positive: np.ndarray, patient: np.ndarray
) -> tuple[float, float] | None:
    """Return the last coefficient of a logistic regression and its standard error; None = it is infinite."""
    from scipy.special import expit

    weight = np.zeros(inputs.shape[1])
    for _ in range(50):
        expected = expit(offset + inputs @ weight)
        curvature = inputs.T @ (inputs * (expected * (1 - expected))[:, None])
        if np.linalg.cond(curvature) > 1e10 or np.abs(weight).max() > 100:
            return None
        step = np.linalg.solve(curvature, inputs.T @ (positive - expected))
        weight = weight + step
        if np.abs(step).max() < 1e-9:
            break
    pulls = inputs * (positive - expit(offset + inputs @ weight))[:, None]
    sums = np.stack([np.bincount(patient, column) for column in pulls.T], axis=1)
    inverse = np.linalg.inv(curvature)
    return float(weight[-1]), float(np.sqrt((inverse @ sums.T @ sums @ inverse)[-1, -1]))
