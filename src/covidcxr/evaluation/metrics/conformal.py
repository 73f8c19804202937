"""Sets of plausible answers that hold the truth as often as promised: conformal prediction, by class and by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from jaxtyping import Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, Statistics
from covidcxr.evaluation.metrics.classification import check_predictions
from covidcxr.evaluation.metrics.weighted import two_columns, weighted_mean
from covidcxr.evaluation.predictions import PredictionTable, Rows
from covidcxr.types import CoverageBy

__all__ = ["conformal_threshold", "conformal_thresholds", "score_sets"]

ROUNDING = 1e-9
"""9 / 10 may be less than 0.9 by this."""


def conformal_threshold(
    probabilities: Float[np.ndarray, "images classes"],
    labels: Integer[np.ndarray, " images"],
    coverage: float = 0.9,
    *,
    patients: Sequence[str | None] | None = None,
) -> float:
    """Find the probability from which a class belongs to the answer (split conformal; Sadinle 2019, LAC).

    The set of classes at or above it holds the truth of a new image with at least this probability, as long as new
    images come like these: same hospitals, same mix of classes. Every patient counts alike, however many images there
    are of each (hierarchical conformal prediction, Lee, Barber and Willett 2023): a new image is one of a new patient.

    Args:
        probabilities: Of images that were not trained on; one column = probability of the second class.
        labels: Index of the true class of each image.
        coverage: Wanted share of images whose set holds the truth, in (0, 1).
        patients: Patient of each image; None = not known, a patient of its own.

    Returns:
        In [0, 1]. It is 0 (every class belongs) when there are too few patients to promise the coverage.

    Raises:
        ConfigError: If shapes differ, a label is out of range, or coverage is not in (0, 1).
    """
    check_predictions(probabilities, labels)
    _check_coverage(coverage)
    of_truth = two_columns(probabilities, 1.0)[np.arange(len(labels)), labels]
    return _threshold(of_truth, _patient_numbers(patients, len(labels)), coverage)


def conformal_thresholds(
    probabilities: Float[np.ndarray, "images classes"],
    labels: Integer[np.ndarray, " images"],
    coverage: float = 0.9,
    *,
    by: CoverageBy = "class",
    patients: Sequence[str | None] | None = None,
    sources: Sequence[str] | None = None,
) -> Float[np.ndarray, " classes"]:
    """Find the probability from which each class belongs to the answer; see `conformal_threshold`.

    One threshold for all classes ("all") keeps the promise on average: a class that is hard to recognise gets less, an
    easy one more. A threshold of its own for each class, found on the images of that class (Mondrian conformal
    prediction, Vovk 2005), keeps it for each. With "source", it is the lowest of that and of those of the images of the
    class in each source that has enough patients to promise anything: what is promised then holds in each of these
    sources too, and sets are larger.

    Args:
        probabilities: Of images that were not trained on; one column = probability of the second class.
        labels: Index of the true class of each image.
        coverage: Wanted share of images whose set holds the truth, in (0, 1).
        by: "class", "source" or "all".
        patients: Patient of each image; None = not known, a patient of its own.
        sources: Source of each image; needed for "source".

    Returns:
        One threshold a class, in [0, 1]. It is 0 (the class always belongs) where there are too few patients.

    Raises:
        ConfigError: If shapes differ, a label is out of range, a setting is wrong, or there are no sources.

    Example:
        ```python
        import numpy as np

        from covidcxr.evaluation import conformal_thresholds

        probabilities = np.array([[0.9, 0.1]] * 20 + [[0.6, 0.4]] * 20)
        labels = np.repeat([0, 1], 20)
        assert conformal_thresholds(probabilities, labels, 0.9).tolist() == [0.9, 0.4]
        assert conformal_thresholds(probabilities, labels, 0.9, by="all").tolist() == [0.4, 0.4]
        ```
    """
    check_predictions(probabilities, labels)
    _check_coverage(coverage)
    if by not in get_args(CoverageBy):
        raise ConfigError(f"Coverage is promised by {', '.join(get_args(CoverageBy))}, not by {by!r}.")
    if by == "source" and sources is None:
        raise ConfigError('Coverage by="source" needs the source of each image.')
    both = two_columns(probabilities, 1.0)
    of_truth, people = both[np.arange(len(labels)), labels], _patient_numbers(patients, len(labels))
    parts = [labels == number if by != "all" else np.ones(len(labels), bool) for number in range(both.shape[1])]
    thresholds = [_threshold(of_truth[part], people[part], coverage) for part in parts]
    for source in np.unique(sources) if by == "source" and sources is not None else ():
        there = [part & (np.asarray(sources) == source) for part in parts]
        own = [_threshold(of_truth[part], people[part], coverage) for part in there]
        thresholds = [min(low, new) if new > 0 else low for low, new in zip(thresholds, own, strict=True)]
    return np.array(thresholds)


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ConfigError(f"coverage must be in (0, 1), not {coverage}.")


def _patient_numbers(patients: Sequence[str | None] | None, images: int) -> Integer[np.ndarray, " images"]:
    """Number the patients; each unknown one is a patient of its own."""
    names = [None] * images if patients is None else patients
    if len(names) != images:
        raise ConfigError(f"There are {images} images, but patients of {len(names)}.")
    keys = [(image, "") if name is None else (-1, str(name)) for image, name in enumerate(names)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], int)


def _threshold(of_truth: np.ndarray, people: np.ndarray, coverage: float) -> float:
    """Return the largest threshold at which the patients, and the one to come, hold the promised share."""
    if not len(of_truth):
        return 0.0
    _, person, images = np.unique(people, return_inverse=True, return_counts=True)
    order = np.argsort(-of_truth, kind="stable")
    share = np.cumsum(1 / images[person][order]) / (len(images) + 1)  # the one to come may lie below all
    enough = np.flatnonzero(share >= coverage - ROUNDING)
    return float(of_truth[order[enough[0]]]) if len(enough) else 0.0


def score_sets(
    rows: Rows, thresholds: Mapping[str, float], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Score the sets of plausible answers of a classifier of exclusive classes, which leaves open what is not clear.

    A class is plausible from its threshold up, as in `covidcxr.ClassificationModel.answer`.

    Args:
        rows: Of test images, on which the thresholds were not fitted; see `score_rows`.
        thresholds: By class name, say `model.config.thresholds`; see `calibrate`.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        `coverage` (how often the set holds the truth: what the thresholds promise), `coverage_<class>` of each true
        class, `coverage_source_<source>` of each source where sources are known, `answered` (how often exactly one
        class is plausible, so that there is an answer), `right_if_answered` (how often that is the truth), and
        `set_size` (the mean number of plausible classes).

    Raises:
        ConfigError: If classes are not exclusive, a class has no threshold, or there is nothing to score.
    """
    predictions = PredictionTable.read(rows).in_order.scored
    if not predictions.classes or not predictions.exclusive:
        raise ConfigError(
            "Sets of plausible answers are scored for exclusive classes, with label and probability_CLASS."
        )
    missing = [name for name in predictions.classes if name not in thresholds]
    if missing:
        raise ConfigError(f"There is no threshold for {', '.join(missing)}: calibrate with a coverage.")
    labels = predictions.labels
    plausible = predictions.probabilities >= np.array([thresholds[name] for name in predictions.classes])
    held, answered = plausible[np.arange(len(labels)), labels], plausible.sum(1) == 1
    columns = {
        "coverage": (held, np.ones(len(labels), bool)),
        **{f"coverage_{name}": (held, labels == number) for number, name in enumerate(predictions.classes)},
        **{f"coverage_source_{name}": (held, images) for name, images in predictions.groups("source").items()},
        "answered": (answered, np.ones(len(labels), bool)),
        "right_if_answered": (held, answered),
        "set_size": (plausible.sum(1), np.ones(len(labels), bool)),
    }
    values = {name: np.where(about, value, np.nan) for name, (value, about) in columns.items()}

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: weighted_mean(weights, value) for name, value in values.items()}

    images = {name: about for name, (_, about) in columns.items()}
    return Statistics(compute, images, images.keys() - {"set_size"}).estimate(predictions.patients, resamples, seed)
