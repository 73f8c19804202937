"""Any statistic with a patient-clustered bootstrap interval, vectorised over the resamples.

A resample draws as many patients as there are, with replacement; an image's weight is how often its patient was
drawn. So a statistic is a function of weights [resamples, images] that returns one number a resample, and the
whole bootstrap is matrix work: no image is ever copied, and all scores of a table share their resamples.

    bootstrap(weighted_mean, dice, groups=patient_ids)
    bootstrap(weighted_auroc, probability, label == 1, groups=patient_ids)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.intervals import (
    Clusters,
    Estimate,
    Interval,
    difference_interval,
    share_interval,
    statistic_interval,
)

__all__ = [
    "Estimate",
    "FindInterval",
    "PatientIds",
    "Statistics",
    "bootstrap",
    "bootstrap_many",
    "check_length",
    "number_patients",
]

PatientIds: TypeAlias = Sequence[Hashable] | np.ndarray
"""One id an image; None or NaN = unknown."""

FindInterval: TypeAlias = Callable[[Integer[np.ndarray, " images"], float], Interval]
"""Finds an interval without resamples, from the number of the patient of each image and the nominal coverage."""

CHUNK = 200_000
"""Weights held at a time (1.6 MB): a processor's cache holds them, which makes them fast to go through."""


@dataclass(frozen=True)
class Statistics:
    """Scores as functions of the weights of images, which the bootstrap draws.

    Attributes:
        compute: Weights [resamples, images] -> one number a resample, by name.
        images: By name, the images that a number is about.
        shares: Names of the numbers that are shares in [0, 1]; see `bootstrap_many`.
        kinds: By name, the kinds of images that a number needs; see `bootstrap_many`.
        intervals: By name, how to find an interval without resamples.

    Example:
        ```python
        import numpy as np
        from covidcxr.evaluation.metrics.bootstrap import Statistics

        right = np.array([1.0, 0.0, 1.0, 1.0])
        scores = Statistics(lambda weights: {"accuracy": weights @ right / weights.sum(1)}, {"accuracy": right >= 0})
        assert scores.estimate(["a", "b", "c", "d"], resamples=20)["accuracy"].value == 0.75
        ```
    """

    compute: Callable[[Float[np.ndarray, "resamples images"]], Mapping[str, np.ndarray]]
    images: Mapping[str, Bool[np.ndarray, " images"]]
    shares: Collection[str] = ()
    kinds: Mapping[str, Sequence[Bool[np.ndarray, " images"]]] = field(default_factory=dict)
    intervals: Mapping[str, FindInterval] = field(default_factory=dict)

    def estimate(
        self, patient_ids: PatientIds, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
    ) -> dict[str, Estimate]:
        """Estimate every score with its interval; see `bootstrap_many`.

        Args:
            patient_ids: Patient of each image; None or NaN = unknown, taken as a patient of its own.
            resamples: How often to resample patients.
            seed: Same seed, same intervals.
            confidence: Nominal coverage of the intervals, in (0, 1).

        Returns:
            Estimates by name.
        """
        return bootstrap_many(
            self.compute,
            groups=patient_ids,
            images=self.images,
            shares=self.shares,
            kinds=self.kinds,
            intervals=self.intervals,
            resamples=resamples,
            seed=seed,
            confidence=confidence,
        )


def bootstrap(
    statistic: Callable[..., Float[np.ndarray, " resamples"]],
    *values: np.ndarray,
    groups: PatientIds,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    share: bool = False,
) -> Estimate:
    """Estimate one statistic with its interval, resampling groups (Efron 1979; Field and Welsh 2007).

    The interval is as wide as so few patients demand, and longer on the side to which resamples are skewed; see
    `covidcxr.evaluation.metrics.intervals`. The guide "Intervals" says how often each kind of interval holds.

    Args:
        statistic: `statistic(weights, *values)` -> one number a resample; weights are float [resamples, images].
        *values: Arrays whose first axis is images, handed to the statistic as they are.
        groups: Patient of each image; None or NaN = unknown, taken as a patient of its own.
        resamples: How often to resample.
        seed: Same seed, same interval.
        confidence: Nominal coverage of the interval, in (0, 1).
        share: The number is a share in [0, 1], such as a sensitivity or an AUROC. Its interval stays in [0, 1], and
            holds where the number is at 0 or 1 and no resample moves it.

    Returns:
        The estimate. Resamples in which the number is not defined are left out of the interval.

    Raises:
        ConfigError: If there are no images, lengths differ, or a setting is out of range.
    """

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"value": statistic(weights, *values)}

    for array in values:
        check_length(len(array), groups)
    shares = ("value",) if share else ()
    estimates = bootstrap_many(
        table, groups=groups, shares=shares, resamples=resamples, seed=seed, confidence=confidence
    )
    return estimates["value"]


def bootstrap_many(
    statistics: Callable[[Float[np.ndarray, "resamples images"]], Mapping[str, Float[np.ndarray, " resamples"]]],
    *,
    groups: PatientIds,
    images: Mapping[str, Bool[np.ndarray, " images"]] | None = None,
    shares: Collection[str] = (),
    kinds: Mapping[str, Sequence[Bool[np.ndarray, " images"]]] | None = None,
    intervals: Mapping[str, FindInterval] | None = None,
    differences: Mapping[str, tuple[str, str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Estimate a table of statistics on the same resamples; see `bootstrap`.

    Args:
        statistics: Weights -> one number a resample, by name.
        groups: Patient of each image.
        images: By name, the images that a number is about (of a sensitivity: those of the class); default all.
        shares: Names of the numbers that are shares in [0, 1]; see `bootstrap`.
        kinds: By name, the kinds of images that a number needs and that weigh equally in it: of an AUROC those with the
            class and those without, of a balanced accuracy those of each class. A number of two kinds is known no
            better than the rarer kind allows. Default: the images that it is about.
        intervals: By name, how to find an interval without resamples.
        differences: By name, the two numbers whose difference is wanted, the first minus the second. Its interval is
            made from both of theirs (MOVER; Zou and Donner 2008), so it has a width where no resample moves either.
        resamples: How often to resample.
        seed: Same seed, same intervals.
        confidence: Nominal coverage, in (0, 1).

    Returns:
        Estimates by name, in the order of `statistics`; then the differences.

    Raises:
        ConfigError: If there are no images or a setting is out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ConfigError(f"confidence must be in (0, 1) and resamples above 0, not {confidence} and {resamples}.")
    patient = number_patients(groups)
    whole = statistics(np.ones((1, len(patient))))
    with _thread_pools().limit(limits=1, user_api="blas"):
        drawn = [statistics(weights) for weights in _resample(patient, resamples, seed)]
    everyone = np.ones(len(patient), bool)
    count = _cluster_counter(patient)
    values, table = {}, {}
    for name, value in whole.items():
        about = everyone if images is None else images.get(name, everyone)
        clusters = count((about,) if kinds is None else kinds.get(name, (about,)))
        values[name] = np.concatenate([part[name] for part in drawn])
        if intervals is not None and name in intervals:
            interval = intervals[name](patient, confidence)
        else:
            known = values[name][~np.isnan(values[name])]
            interval = _interval(known, float(value[0]), clusters, confidence, name in shares)
        table[name] = _estimate(float(value[0]), interval, about, patient)
    for name, (first, second) in (differences or {}).items():
        about = everyone if images is None else images.get(name, everyone)
        interval = difference_interval(table[first], table[second], _correlation(values[first], values[second]))
        table[name] = _estimate(table[first].value - table[second].value, interval, about, patient)
    return table


def _cluster_counter(patient: np.ndarray) -> Callable[[Sequence[np.ndarray]], Clusters]:
    """Return what counts clusters, and remembers them: many numbers are about the same images."""
    known: dict[bytes, Clusters] = {}

    def count(kinds: Sequence[np.ndarray]) -> Clusters:
        key = b"".join(kind.tobytes() for kind in kinds)
        if key not in known:
            known[key] = Clusters.count(patient, kinds)
        return known[key]

    return count


def _interval(values: np.ndarray, value: float, clusters: Clusters, confidence: float, share: bool) -> Interval:
    if share:
        return share_interval(value, float(np.var(values)) if len(values) else math.nan, clusters, confidence)
    return statistic_interval(values, value, clusters, confidence)


def _estimate(value: float, interval: Interval, about: np.ndarray, patient: np.ndarray) -> Estimate:
    patients = len(np.unique(patient[about]))
    return Estimate(value, interval.low, interval.high, int(about.sum()), patients, interval.note)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of two numbers over resamples; 0 where one of them never moves."""
    known = ~np.isnan(first) & ~np.isnan(second)
    if not known.any() or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
        return 0.0
    return float(np.corrcoef(first[known], second[known])[0, 1])


def check_length(images: int, groups: PatientIds) -> None:
    """Refuse a table whose columns differ in length.

    Args:
        images: Number of images.
        groups: Patient of each image.

    Raises:
        ConfigError: If there is not one patient id an image.
    """
    if images != len(groups):
        raise ConfigError(f"There are {images} images but {len(groups)} patient ids: give one for each image.")


def number_patients(groups: PatientIds) -> Integer[np.ndarray, " images"]:
    """Number patients from 0, in the order of their ids, so that the order of rows does not matter.

    Args:
        groups: Patient of each image; None or NaN = unknown, a patient of its own.

    Returns:
        Number of the patient of each image.

    Raises:
        ConfigError: If there are no images.
    """
    if not len(groups):
        raise ConfigError("There are no images to score.")
    # A table's missing id is None or NaN, and NaN alone differs from itself.
    known = {g for g in groups if g is not None and g == g}
    numbers = {g: number for number, g in enumerate(sorted(known, key=lambda g: (type(g).__name__, str(g))))}
    unknown = itertools.count(len(numbers))
    return np.array([next(unknown) if g is None or g != g else numbers[g] for g in groups])


def _resample(patient: np.ndarray, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "resamples images"]]:
    """Yield the images' weights, a chunk of resamples at a time."""
    rng = np.random.default_rng(seed)
    patients = int(patient.max()) + 1
    step = max(1, CHUNK // len(patient))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        yield counts.astype(float)[:, patient]


@cache
def _thread_pools() -> Any:
    """Return the libraries whose threads wait for one another.

    Products as thin as these gain nothing by several threads, which on a busy machine spin at barriers: measured, ten
    times the time of one.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
