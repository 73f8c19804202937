"""How far a reader's infected fraction of a single image may lie from the predicted one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from covidcxr.config import check_keys
from covidcxr.config.checks import check_number
from covidcxr.errors import ConfigError

__all__ = ["InfectionInterval", "interval_in_words"]

_MOST_GROUPS = 4


@dataclass(frozen=True, slots=True)
class InfectionInterval:
    """Interval of the infected fraction of one image, by how large the predicted one is (split conformal prediction).

    The interval of a new image holds the fraction that a reader would outline with probability `coverage`, as long as
    new images come like those that it was made from: same hospitals, same readers, one image a patient (Vovk 2005; by
    size of the prediction as in Boström and Johansson 2020, "Mondrian conformal regressors").

    Args:
        coverage: How often it holds the reader's fraction, in (0, 1).
        upto: Largest predicted fraction of each group of sizes, ascending; the last is 1.
        below: By group: how far the reader's fraction may lie below the predicted one, in [0, 1].
        above: By group: how far above it.

    Raises:
        ConfigError: If a number is out of range, or there is not one for each group.

    Example:
        ```python
        from covidcxr.pipeline.severity import InfectionInterval

        interval = InfectionInterval(coverage=0.9, upto=(0.2, 1.0), below=(0.1, 0.2), above=(0.05, 0.3))
        assert interval.of(0.5) == (0.3, 0.8) and interval.of(0.02) == (0.0, 0.07)
        ```
    """

    coverage: float
    upto: tuple[float, ...]
    below: tuple[float, ...]
    above: tuple[float, ...]

    def __post_init__(self) -> None:
        check_number(self.coverage, "coverage", 0, 1)
        for name in ("upto", "below", "above"):
            for value in getattr(self, name):
                check_number(value, f"{name} of the interval", 0, 1)
        ascending = all(a < b for a, b in pairwise(self.upto)) and self.upto[-1:] == (1.0,)
        if not ascending or not len(self.upto) == len(self.below) == len(self.above):
            raise ConfigError(
                f"The interval of the infected fraction needs sizes that ascend to 1, and one number below and above "
                f"for each of them, not {self}."
            )

    def of(self, fraction: float) -> tuple[float, float]:
        """Return the interval around a predicted fraction.

        Args:
            fraction: In [0, 1].

        Returns:
            Its lower and upper end, in [0, 1], rounded to 4 digits.
        """
        group = int(np.searchsorted(self.upto, min(fraction, 1.0)))
        low, high = fraction - self.below[group], fraction + self.above[group]
        return round(max(0.0, low), 4), round(min(1.0, high), 4)

    @classmethod
    def fit(
        cls,
        predicted: Float[np.ndarray, " images"],
        read: Float[np.ndarray, " images"],
        patients: Sequence[str],
        coverage: float = 0.9,
    ) -> Self:
        """Make it from images that trained nothing, of which every patient counts once, however many images there are.

        Args:
            predicted: Infected fractions, in [0, 1].
            read: The readers'.
            patients: Whose images they are.
            coverage: How often the interval shall hold the reader's fraction, in (0, 1).

        Returns:
            The interval, with as many groups of sizes, up to four, as leave enough patients in each.

        Raises:
            ConfigError: If there are too few patients for the coverage, or a number is out of range.
        """
        if not 0 < coverage < 1:
            raise ConfigError(f"coverage must be in (0, 1), not {coverage}.")
        tail = (1 - coverage) / 2
        least = math.ceil(1 / tail - 1 - 1e-9)
        if (count := len({*patients})) < least:
            raise ConfigError(
                f"An interval of the infected fraction that holds for {coverage:.0%} of images needs outlined "
                f"infections of at least {least} validation patients; there are {count}."
            )
        groups, upto = _groups(predicted, patients, least)
        level = 1 - tail
        limits = [
            [_limit(error[groups == group], _taken(patients, groups == group), level) for group in range(len(upto))]
            for error in (predicted - read, read - predicted)
        ]
        return cls(coverage, upto, tuple(limits[0]), tuple(limits[1]))

    def to_config(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_config(cls, data: Any, where: str) -> Self:
        """Read what `to_config` returned.

        Args:
            data: Plain data.
            where: Where it stands, for messages.

        Returns:
            The interval.

        Raises:
            ConfigError: If a key or number is missing or wrong.
        """
        keys = set(cls.__dataclass_fields__)
        if not isinstance(data, Mapping) or set(data) != keys:
            if isinstance(data, Mapping):
                check_keys(data, keys, where)
            raise ConfigError(f"{where} must have the keys {', '.join(sorted(keys))}.")
        lists = [data[name] for name in ("upto", "below", "above")]
        if not all(isinstance(values, list | tuple) for values in lists):
            raise ConfigError(f"upto, below and above of {where} must be lists of numbers.")
        upto, below, above = (tuple(values) for values in lists)
        return cls(data["coverage"], upto, below, above)


def interval_in_words(interval: Sequence[float] | None) -> str:
    """Write an interval behind the infected fraction: " (12 to 35 % as readers outline it)".

    Args:
        interval: Its ends, in [0, 1]; None = there is none.

    Returns:
        The words; "" where there is none.
    """
    if interval is None:
        return ""
    return f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f} % as readers outline it)"


def _groups(predicted: np.ndarray, patients: Sequence[str], least: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """Part images by predicted size, patients equally, into as many groups as leave `least` patients in each."""
    weights = _weights(patients)
    for number in range(_MOST_GROUPS, 0, -1):
        ends = dict.fromkeys(_quantile(predicted, weights, place / number) for place in range(1, number))
        upto = (*(end for end in ends if 0 < end < 1), 1.0)
        groups = np.searchsorted(upto, predicted)
        if all(len({*_taken(patients, groups == group)}) >= least for group in range(len(upto))):
            break
    return groups, upto


def _limit(errors: np.ndarray, patients: Sequence[str], level: float) -> float:
    """Return what errors reach at most, with a probability of `level` for the next patient's."""
    corrected = level * (1 + 1 / len({*patients}))  # for a finite sample
    return min(1.0, max(0.0, _quantile(errors, _weights(patients), corrected)))


def _taken(patients: Sequence[str], wanted: np.ndarray) -> list[str]:
    return [patient for patient, take in zip(patients, wanted, strict=True) if take]


def _weights(patients: Sequence[str]) -> np.ndarray:
    """Weigh images so that every patient counts once."""
    counts = Counter(patients)
    return np.array([1 / counts[patient] for patient in patients])


def _quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """Return the smallest value with this share of the weights at or below it; the largest where none has."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    place = int(np.searchsorted(reached, level - 1e-9))
    return float(values[order][min(place, len(values) - 1)])
