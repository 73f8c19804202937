"""Any statistic with a patient-clustered bootstrap interval, vectorised over the resamples.

A resample draws as many patients as there are, with replacement; an image's weight is how often its patient was
drawn. So a statistic is a function of weights [resamples, images] that returns one number a resample, and the
whole bootstrap is matrix work: no image is ever copied, and all scores of a table share their resamples.

    bootstrap(weighted_mean, dice, groups=patient_ids)
    bootstrap(weighted_mean, dice_a - dice_b, groups=patient_ids)        # paired difference of two models
    bootstrap(weighted_auroc, probability, label == 1, groups=patient_ids)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.utils.plain import count_of

__all__ = ["Estimate", "PatientIds", "Statistics", "bootstrap", "bootstrap_many", "check_length"]

PatientIds: TypeAlias = Sequence[Hashable] | np.ndarray
"""One id an image; None or NaN = unknown."""

CHUNK = 200_000
"""Weights held at a time (1.6 MB): a processor's cache holds them, which makes them fast to go through."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
        value: The number on all images; NaN where it is not defined (the AUROC of a class without images).
        low: Lower end of the interval; NaN where fewer than two patients stand behind the number.
        high: Upper end.
        count: Images that the number is about.
        patients: Patients that these images come from.

    Example:
        ```python
        from covidcxr.evaluation import Estimate

        assert str(Estimate(0.8, 0.7, 0.9, count=40, patients=20)) == "0.800 [0.700, 0.900]"
        ```
    """

    value: float
    low: float
    high: float
    count: int
    patients: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def _repr_html_(self) -> str:
        """Show the number, its interval and what is behind them in a notebook."""
        behind = f"{count_of(self.count, 'image')} of {count_of(self.patients, 'patient')}"
        return f"<b>{self.value:.3f}</b> [{self.low:.3f}, {self.high:.3f}], {behind}"

    def to_dict(self) -> dict[str, float | int | None]:
        """Return plain data for JSON, which has no NaN: None stands for it."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        """Return the estimate that `to_dict` wrote.

        Args:
            values: Plain data; None stands for NaN.

        Returns:
            The estimate.
        """
        numbers: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
        return cls(**numbers)


@dataclass(frozen=True)
class Statistics:
    """Scores as functions of the weights of images, which the bootstrap draws.

    Attributes:
        compute: Weights [resamples, images] -> one number a resample, by name.
        images: By name, the images that a number is about.
        shares: Names of the numbers that are shares in [0, 1]; see `bootstrap_many`.
        errors: Names of the numbers that chance alone raises.

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
    errors: Collection[str] = ()

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
            errors=self.errors,
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

    The interval lies between percentiles of the resamples, a little further out the fewer patients there are
    (Hesterberg 2015, the expanded percentile interval).

    Args:
        statistic: `statistic(weights, *values)` -> one number a resample; weights are float [resamples, images].
        *values: Arrays whose first axis is images, handed to the statistic as they are.
        groups: Patient of each image; None or NaN = unknown, taken as a patient of its own.
        resamples: How often to resample.
        seed: Same seed, same interval.
        confidence: Nominal coverage of the interval, in (0, 1). Those of 95 % were measured to hold a mean in 94 % with
            10, 30 or 60 patients of three images each, and a share of 0.7 to 0.97 in 94 to 98 % with 10 to 200. Those
            of an AUROC of 0.95 held it in 92 % with 30 patients, half of them positive, and in 94 to 95 % with 60 or
            more.
        share: The number is a share in [0, 1], such as a sensitivity or an AUROC. Its interval is Wilson's for as many
            independent images as would spread like the resamples (Dean and Pagano 2015): it stays in [0, 1], and holds
            where the number is at 0 or 1 and no resample moves it.

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
    errors: Collection[str] = (),
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
        errors: Names of numbers from 0 up that chance alone raises, such as a calibration error: resampling raises
            them again by as much, so their interval is mirrored at the value (the reverse percentile interval).
        resamples: How often to resample.
        seed: Same seed, same intervals.
        confidence: Nominal coverage, in (0, 1).

    Returns:
        Estimates by name, in the order of `statistics`.

    Raises:
        ConfigError: If there are no images or a setting is out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ConfigError(f"confidence must be in (0, 1) and resamples above 0, not {confidence} and {resamples}.")
    patient = _number(groups)
    whole = statistics(np.ones((1, len(patient))))
    with _thread_pools().limit(limits=1, user_api="blas"):
        drawn = [statistics(weights) for weights in _resample(patient, resamples, seed)]
    everyone = np.ones(len(patient), bool)
    table = {}
    for name, value in whole.items():
        about = everyone if images is None else images.get(name, everyone)
        patients = len(np.unique(patient[about]))
        values = np.concatenate([part[name] for part in drawn])
        find = _share_interval if name in shares else _error_interval if name in errors else _interval
        low, high = find(values[~np.isnan(values)], float(value[0]), confidence, patients)
        table[name] = Estimate(float(value[0]), low, high, int(about.sum()), patients)
    return table


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


def _number(groups: PatientIds) -> Integer[np.ndarray, " images"]:
    """Return patients as numbers from 0; each unknown one is a patient of its own."""
    if not len(groups):
        raise ConfigError("There are no images to score.")
    numbers: dict[Any, int] = {}
    # A table's missing id is None or NaN, and NaN alone differs from itself.
    return np.array([numbers.setdefault(object() if g is None or g != g else g, len(numbers)) for g in groups])


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


def _interval(values: np.ndarray, value: float, confidence: float, patients: int) -> tuple[float, float]:
    """Return the expanded percentile interval (Hesterberg 2015); `values` are those of the resamples."""
    from scipy.special import ndtr

    if patients < 2 or not len(values):  # resampling one patient always draws that patient: there is no interval
        return math.nan, math.nan
    # Resamples spread sqrt((n - 1) / n) too little, and the spread itself is known from n patients only.
    reach = math.sqrt(patients / (patients - 1)) * _student(confidence, patients)
    low, high = np.quantile(values, [ndtr(-reach), ndtr(reach)])
    return float(low), float(high)


def _error_interval(values: np.ndarray, value: float, confidence: float, patients: int) -> tuple[float, float]:
    """Return the percentile interval mirrored at the value, not below 0, and never without the value itself."""
    low, high = _interval(values, value, confidence, patients)
    return (max(0.0, 2 * value - high), max(value, 2 * value - low)) if low == low else (low, high)


def _share_interval(values: np.ndarray, value: float, confidence: float, patients: int) -> tuple[float, float]:
    """Return Wilson's interval (1927) for as many independent images as would spread like the resamples.

    Near 0 and 1 percentiles miss: where no image is answered wrongly, none is in any resample.
    """
    if patients < 2 or not len(values):
        return math.nan, math.nan
    variance = float(np.var(values)) * patients / (patients - 1)
    images = patients if value in (0, 1) else value * (1 - value) / variance if variance else math.inf
    spread = _student(confidence, patients) ** 2 / images
    middle, half = value + spread / 2, math.sqrt(spread * value * (1 - value) + spread**2 / 4)
    # At 0 and 1 the end is the value itself, but for rounding.
    return max(0.0, min(value, (middle - half) / (1 + spread))), min(1.0, max(value, (middle + half) / (1 + spread)))


def _student(confidence: float, patients: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(patients - 1, (1 + confidence) / 2))
