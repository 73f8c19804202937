"""Scores of a classifier of findings, which may come together, each with its patient-clustered interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, PatientIds, check_length
from covidcxr.evaluation.metrics.classification import (
    CURVES,
    Statistics,
    areas_of,
    by_class,
    check_classes,
    check_probabilities,
    rates_of,
)
from covidcxr.evaluation.metrics.weighted import Ranking, weighted_mean

__all__ = ["finding_metrics", "finding_statistics"]


def finding_metrics(
    probabilities: Float[np.ndarray, "films classes"],
    truths: Float[np.ndarray, "films classes"],
    patient_ids: PatientIds,
    classes: Sequence[str],
    *,
    thresholds: float | Mapping[str, float] = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Score a classifier of findings, of which a film may show several or none.

    A finding is called from its threshold up. What is not labelled is left out, finding by finding. Means over
    findings leave out those that are nowhere, and for the AUROC those that are everywhere.

    Args:
        probabilities: One row a film.
        truths: 1 = the film shows it, 0 = it does not, NaN = not labelled.
        patient_ids: Patient of each film; None or NaN = unknown, taken as a patient of its own.
        classes: Names, in the order of the columns.
        thresholds: From which probability a finding is called: one for all, or by name.
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
    probabilities: Float[np.ndarray, "films classes"],
    truths: Float[np.ndarray, "films classes"],
    classes: Sequence[str],
    thresholds: float | Mapping[str, float] = 0.5,
) -> Statistics:
    """Prepare the scores of `finding_metrics`, which says more."""
    if probabilities.ndim != 2 or truths.shape != probabilities.shape:
        raise ConfigError(
            f"Probabilities and truths must be [films, classes], not {probabilities.shape}, {truths.shape}."
        )
    check_probabilities(probabilities)
    check_classes(probabilities, classes, least=1)
    known, true, absent = ~np.isnan(truths), truths == 1, truths == 0
    if (known & ~true & ~absent).any():
        raise ConfigError("A finding is 1 (shown), 0 (not shown) or NaN (not labelled), nothing else.")
    called = known & (probabilities >= _thresholds(thresholds, classes))
    both = {"auroc": true.any(0) & absent.any(0), "average_precision": true.any(0)}
    squares = np.square(probabilities - truths)
    rankings = [
        Ranking(np.where(about, column, np.nan), positive)
        for about, column, positive in zip(known.T, probabilities.T, true.T, strict=True)
    ]
    cells = np.concatenate([true & called, true, called, known], axis=1).astype(float)

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        per_class = areas_of(rankings, weights)
        scores = {f"macro_{name}": _mean(per_class[name][:, kept]) for name, kept in both.items()}
        per_class |= rates_of(*np.split(weights @ cells, 4, axis=1))
        per_class["brier"] = np.stack([weighted_mean(weights, column) for column in squares.T], axis=1)
        return scores | by_class(per_class, classes)

    films: dict[str, np.ndarray] = {f"macro_{name}": known[:, kept].any(1) for name, kept in both.items()}
    shares = set(films)
    for c, name in enumerate(classes):
        about = dict.fromkeys(CURVES, known) | {"sensitivity": true, "f1": true}
        about |= {"specificity": absent, "precision": called, "brier": known}
        films |= {f"{part}_{name}": which[:, c] for part, which in about.items()}
        shares |= {f"{part}_{name}" for part in about if part != "brier"}
    return Statistics(compute, films, shares)


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
