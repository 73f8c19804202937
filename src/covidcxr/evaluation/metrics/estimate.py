"""A number with its confidence interval, and what follows from the intervals of two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from covidcxr.utils.plain import count_of

__all__ = ["NO_VALUE", "ONE_PATIENT", "Estimate", "Interval", "difference_interval", "ratio_interval", "widen"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
        value: The number on all images; NaN where it is not defined (the AUROC of a class without images).
        low: Lower end of the interval; NaN where so few patients bound nothing: `note` says why.
        high: Upper end.
        count: Images that the number is about.
        patients: Patients that these images come from.
        note: Why there is no interval; empty where there is one.

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
    note: str = ""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def _repr_html_(self) -> str:
        """Show the number, its interval and what is behind them in a notebook."""
        behind = f"{count_of(self.count, 'image')} of {count_of(self.patients, 'patient')}"
        return f"<b>{self.value:.3f}</b> [{self.low:.3f}, {self.high:.3f}], {behind}"

    def to_dict(self) -> dict[str, float | int | str | None]:
        """Return plain data for JSON, which has no NaN: None stands for it, with a note that says why."""
        plain = asdict(self) if self.note else {name: value for name, value in asdict(self).items() if name != "note"}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in plain.items()
        }

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


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends of an interval, or why there is none.

    Attributes:
        low: Lower end; NaN = there is none.
        high: Upper end.
        note: Why there is no interval; empty where there is one.

    Example:
        ```python
        from covidcxr.evaluation.metrics.estimate import Interval

        assert Interval(0.7, 0.9).clip(0.8, 1.0) == Interval(0.8, 0.9)
        ```
    """

    low: float = math.nan
    high: float = math.nan
    note: str = ""

    def clip(self, least: float, most: float) -> Interval:
        """Cut the interval to a range.

        Args:
            least: Lower end of the range.
            most: Upper end.

        Returns:
            The interval within the range.
        """
        return self if math.isnan(self.low) else Interval(max(least, self.low), min(most, self.high))


NO_VALUE = Interval(note="the number is not defined")
ONE_PATIENT = Interval(note="fewer than two patients stand behind it")


def difference_interval(first: Estimate, second: Estimate, correlation: float) -> Interval:
    """Find the interval of a difference from those of both numbers (MOVER; Newcombe 1998; Zou and Donner 2008).

    Args:
        first: The one number.
        second: The number that is subtracted.
        correlation: Of the two, over resamples of patients.

    Returns:
        The interval.
    """
    for estimate in (first, second):
        if math.isnan(estimate.low):
            return Interval(note=estimate.note or NO_VALUE.note)
    value = first.value - second.value

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    return Interval(
        value - reach(first.value - first.low, second.high - second.value),
        value + reach(first.high - first.value, second.value - second.low),
    )


def ratio_interval(first: Estimate, second: Estimate) -> Interval:
    """Find the interval of a ratio of two independent shares from those of both (MOVER-R; Donner and Zou 2012).

    Args:
        first: The dividend, from 0 up.
        second: The divisor, from 0 up.

    Returns:
        The interval; its upper end is infinite where the divisor may be 0.
    """
    if math.isnan(first.low) or math.isnan(second.low):
        return Interval(note=first.note or second.note or NO_VALUE.note)
    product = first.value * second.value

    def end(of_first: float, of_second: float, sign: int) -> float:
        below = of_second * (2 * second.value - of_second)
        if below <= 0:
            return math.inf if sign > 0 else 0.0
        inner = product**2 - of_first * of_second * (2 * first.value - of_first) * (2 * second.value - of_second)
        return max(0.0, (product + sign * math.sqrt(max(0.0, inner))) / below)

    return Interval(end(first.low, second.high, -1), end(first.high, second.low, 1))


def widen(estimate: Estimate, factor: float, least: float = -math.inf, most: float = math.inf) -> Estimate:
    """Move both ends of an interval away from its value.

    Args:
        estimate: The estimate.
        factor: By how much farther they lie, as of a cross-validated number, whose classifiers vary too.
        least: Lower end of what the number can be.
        most: Upper end.

    Returns:
        The estimate with its wider interval.
    """
    low, high = (estimate.value + factor * (end - estimate.value) for end in (estimate.low, estimate.high))
    return replace(estimate, low=max(least, low), high=min(most, high)) if low == low else estimate
