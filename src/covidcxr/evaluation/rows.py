"""Scores of a table of predictions, a row a film, as `covidcxr test` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covidcxr.errors import ConfigError
from covidcxr.evaluation.intervals import Estimate, bootstrap_many
from covidcxr.evaluation.metrics import classification_metrics, segmentation_metrics, weighted_auroc

__all__ = ["score_rows"]

_PROBABILITY = "probability_"
_ID_COLUMNS = {"image_id", "patient_id", "source"}


def score_rows(rows: Sequence[Mapping[str, Any]], *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Score the rows of one test, each figure with its patient-clustered 95 % interval.

    Args:
        rows: What a task keeps in `test_rows`: `patient_id`, and either scores of masks (`dice_lung`, ...), or
            `probability_CLASS` with `label` (exclusive classes) or `label_CLASS` (findings, NaN = not labelled).
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        Estimates by name.

    Raises:
        ConfigError: If there are no rows, or they hold none of these columns.
    """
    if not rows:
        raise ConfigError("There are no films to score.")
    patients = [row.get("patient_id") for row in rows]
    classes = [name.removeprefix(_PROBABILITY) for name in rows[0] if name.startswith(_PROBABILITY)]
    if not classes:
        scores = {name: _column(rows, name) for name in rows[0] if name not in _ID_COLUMNS}
        known = {name: values for name, values in scores.items() if not np.isnan(values).all()}
        return segmentation_metrics(known, patients, resamples=resamples, seed=seed)
    probabilities = np.stack([_column(rows, _PROBABILITY + name) for name in classes], axis=1)
    if "label" in rows[0]:
        labels = np.array([classes.index(row["label"]) for row in rows])
        return classification_metrics(probabilities, labels, patients, classes, resamples=resamples, seed=seed)
    truths = {name: _column(rows, f"label_{name}") for name in classes}

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        columns = zip(truths.items(), probabilities.T, strict=True)
        return {
            f"auroc_{name}": weighted_auroc(weights, np.where(np.isnan(truth), np.nan, column), truth == 1)
            for (name, truth), column in columns
        }

    films = {f"auroc_{name}": ~np.isnan(truth) for name, truth in truths.items()}
    return bootstrap_many(table, groups=patients, films=films, resamples=resamples, seed=seed)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    try:
        return np.array([row[name] for row in rows], dtype=float)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"Each row needs a number in the column {name!r} ({error}).") from error
