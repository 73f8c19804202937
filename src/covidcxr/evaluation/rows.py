"""Scores of a table of predictions, a row a film, as `covidcxr test` writes it, and calibration by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from covidcxr.config import EnsembleConfig, ModelConfig
from covidcxr.errors import ConfigError
from covidcxr.evaluation.calibration import conformal_threshold, fit_temperature
from covidcxr.evaluation.intervals import Estimate, bootstrap_many
from covidcxr.evaluation.metrics import classification_metrics, segmentation_metrics, weighted_auroc

__all__ = ["answered_rows", "calibrate", "score_rows"]

Config = TypeVar("Config", bound=ModelConfig | EnsembleConfig)

_PROBABILITY = "probability_"
_MASKS = ("dice_", "iou_", "precision_", "recall_")


def score_rows(rows: Sequence[Mapping[str, Any]], *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Score the rows of one test, each figure with its patient-clustered 95 % interval.

    Args:
        rows: What a task keeps in `rows`: `patient_id`, and scores of masks (`dice_lung`, ...; NaN = the mask is not
            known), or `probability_CLASS` with `label` (exclusive classes) or `label_CLASS` (findings, NaN = not
            labelled), or both; a film without a label may lack the latter.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        Estimates by name.

    Raises:
        ConfigError: If there are no rows, or they hold none of these columns.
    """
    if not rows:
        raise ConfigError("There are no films to score.")
    masks = [name for name in dict.fromkeys(name for row in rows for name in row) if name.startswith(_MASKS)]
    answered = answered_rows(rows)
    if not masks and not answered:
        raise ConfigError(f"The rows hold nothing to score, neither probability_CLASS nor dice_CLASS: {list(rows[0])}.")
    scores = _score_answers(answered, resamples, seed) if answered else {}
    columns = {name: _column(rows, name) for name in masks}
    known = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    patients = [row.get("patient_id") for row in rows]
    return scores | (segmentation_metrics(known, patients, resamples=resamples, seed=seed) if known else {})


def answered_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that hold probabilities: a film without a label has none, though its masks may be scored."""
    columns = {name for row in rows for name in row if name.startswith(_PROBABILITY)}
    return [row for row in rows if columns and all(row.get(name, "") not in ("", None) for name in columns)]


def _score_answers(rows: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Estimate]:
    patients = [row.get("patient_id") for row in rows]
    classes = [name.removeprefix(_PROBABILITY) for name in rows[0] if name.startswith(_PROBABILITY)]
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


def calibrate(config: Config, rows: Sequence[Mapping[str, Any]], coverage: float | None = None) -> Config:
    """Fit a classifier's temperature, and the thresholds of its answer sets, on the rows of validation films.

    Args:
        config: The classifier or ensemble that gave the probabilities; of exclusive classes.
        rows: What `Trainer.validate` left in the task's `rows`, or `covidcxr.tasks.predict_rows` returned.
        coverage: How often a set of plausible answers shall hold the truth, in (0, 1); None = no sets, the most
            probable class is the answer.

    Returns:
        The config with its temperature (Guo 2017) and its thresholds (split conformal prediction, Sadinle 2019).

    Raises:
        ConfigError: If the classes are not exclusive, or there are no rows.
    """
    rows = answered_rows(rows)
    if config.mode == "multilabel" or config.task != "classification" or not rows:
        raise ConfigError(f"Only exclusive classes of labelled films are calibrated, not {config.mode} {config.task}.")
    probabilities = np.stack([_column(rows, _PROBABILITY + name) for name in config.classes], axis=1)
    labels = np.array([config.classes.index(row["label"]) for row in rows])
    # Softmax forgets a constant, so the logarithm serves as logits; they were divided by the temperature already.
    logits = np.log(probabilities.clip(1e-12)) * config.temperature
    temperature = fit_temperature(logits, labels)
    config = replace(config, temperature=temperature, thresholds={})
    if coverage is None:
        return config
    scaled = np.exp(logits / temperature)
    threshold = conformal_threshold(scaled / scaled.sum(1, keepdims=True), labels, coverage)
    return replace(config, thresholds=dict.fromkeys(config.classes, threshold))


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    try:
        return np.array([row[name] for row in rows], dtype=float)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"Each row needs a number in the column {name!r} ({error}).") from error
