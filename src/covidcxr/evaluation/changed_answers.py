"""Two or more answers to each film, compared with the first one film by film."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.data import Record
from covidcxr.evaluation.intervals import Estimate, bootstrap_many
from covidcxr.evaluation.statistics import weighted_auroc, weighted_mean
from covidcxr.models import Classifier
from covidcxr.prediction import Prediction

__all__ = ["compare_answers"]

Table = Float[np.ndarray, "films classes"]
Column = Float[np.ndarray, " films"]

_SEPARATOR = "\0"
_SHARES = ("accuracy", "macro_auroc", "changed", "unanswered")


def compare_answers(
    records: Sequence[Record],
    classifier: Classifier,
    clean: Sequence[Prediction],
    others: Mapping[str, Sequence[Prediction]],
    *,
    resamples: int,
    seed: int,
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Score answers by how they differ from the first ones, on the same resamples of patients.

    Args:
        records: The films.
        classifier: What was asked.
        clean: The first answers.
        others: Further answers to the same films, by name.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        `accuracy` and `macro_auroc` of the first answers, and by name the scores of `robustness.Effect`; those
        without a film are left out.
    """
    classes, exclusive = classifier.config.classes, classifier.config.mode != "multilabel"
    truth = np.array([_truth(record, classes) for record in records])
    first = _chances(clean, classes)
    chances = {name: _chances(found, classes) for name, found in others.items()}
    columns: dict[str, Column] = {}
    if exclusive:
        columns["accuracy"] = _right(_calls(first, classifier), truth, ~np.isnan(first[:, 0]))
    for name, values in chances.items():
        columns |= {f"{name}{_SEPARATOR}{key}": one for key, one in _changes(classifier, truth, first, values).items()}

    def table(weights: Float[np.ndarray, "resamples films"]) -> dict[str, np.ndarray]:
        rows = {name: weighted_mean(weights, values) for name, values in columns.items()}
        rows["macro_auroc"] = _macro_auroc(weights, truth, first)
        for name, values in chances.items():
            both = np.where(np.isnan(values[:, :1] + first[:, :1]), math.nan, 0.0)
            change = _macro_auroc(weights, truth, values + both) - _macro_auroc(weights, truth, first + both)
            rows[f"{name}{_SEPARATOR}macro_auroc_change"] = change
        return rows

    films = {name: ~np.isnan(values) for name, values in columns.items()}
    films["macro_auroc"] = _labelled(truth, first)
    for name, values in chances.items():
        films[f"{name}{_SEPARATOR}macro_auroc_change"] = _labelled(truth, values + first)
    groups = [record.patient for record in records]
    shares = [name for name in films if name.rpartition(_SEPARATOR)[2] in _SHARES]
    found = bootstrap_many(table, groups=groups, films=films, shares=shares, resamples=resamples, seed=seed)
    scores: dict[str, Any] = {name: {} for name in ("", *others)}
    for key, one in found.items():
        name, _, score = key.rpartition(_SEPARATOR)
        if one.count:
            scores[name][score] = one
    return scores.pop(""), scores


def _changes(classifier: Classifier, truth: Table, first: Table, values: Table) -> dict[str, Column]:
    """Return what differs on each film; NaN where it is not known."""
    asked = ~np.isnan(first[:, 0])
    both = asked & ~np.isnan(values[:, 0])
    was, now = _calls(first, classifier), _calls(values, classifier)
    found = {
        "changed": _where(both, (was != now).any(1)),
        "unanswered": _where(asked, ~both),
        "shift": _where(both, np.abs(np.nan_to_num(values - first)).max(1)),
    }
    if classifier.config.mode != "multilabel":
        found["accuracy_change"] = _right(now, truth, both) - _right(was, truth, both)
    return found


def _truth(record: Record, classes: Sequence[str]) -> list[float]:
    """Return for each class whether the film shows it; NaN = not known."""
    if record.findings:
        return [float(record.findings[name]) if name in record.findings else math.nan for name in classes]
    return [float(record.label == name) if record.label in classes else math.nan for name in classes]


def _chances(found: Sequence[Prediction], classes: Sequence[str]) -> Table:
    return np.array([[one.probabilities.get(name, math.nan) for name in classes] for one in found])


def _calls(chances: Table, classifier: Classifier) -> Bool[np.ndarray, "films classes"]:
    """Return which classes are called: the most probable one, or the findings from their thresholds up."""
    config = classifier.config
    if config.mode == "multilabel":
        return np.asarray(chances >= np.array([config.thresholds.get(name, 0.5) for name in config.classes]))
    return np.asarray(np.arange(chances.shape[1]) == np.nan_to_num(chances).argmax(1)[:, None])


def _right(calls: np.ndarray, truth: Table, known: np.ndarray) -> Column:
    return _where(known & ~np.isnan(truth[:, 0]), (calls == (truth == 1)).all(1))


def _where(known: np.ndarray, values: np.ndarray) -> Column:
    return np.where(known, values.astype(float), math.nan)


def _labelled(truth: Table, chances: Table) -> Bool[np.ndarray, " films"]:
    return np.asarray(~np.isnan(truth + chances).all(1))


def _macro_auroc(weights: np.ndarray, truth: Table, chances: Table) -> Float[np.ndarray, " resamples"]:
    """Return the mean AUROC of the classes that there are films with and without."""
    areas = []
    for column, scores in zip(truth.T, chances.T, strict=True):
        known = ~np.isnan(column + scores)
        if 0 < column[known].sum() < known.sum():
            areas.append(weighted_auroc(weights, np.where(known, scores, math.nan), column == 1))
    return np.asarray(np.mean(areas, axis=0)) if areas else np.full(len(weights), math.nan)
