"""Confidence intervals from few patients, who may have very different numbers of images.

Every interval starts from how far patients differ, and is as wide as so few of them demand: Student's quantile for the
degrees of freedom that patients of unequal size leave, under a working model in which half of what tells images apart
is their patient's. Those of Bell and McCaffrey (2002) are too few where a few patients hold most images, the number of
patients less one is too many; the geometric mean of both holds. The guide "Intervals" says how often each kind does.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.utils.plain import count_of

__all__ = [
    "NONE_PREDICTED",
    "NO_VALUE",
    "ONE_PATIENT",
    "Estimate",
    "Interval",
    "difference_interval",
    "ratio_interval",
    "widen",
    "Clusters",
    "mean_interval",
    "quantile_interval",
    "share_interval",
    "statistic_interval",
    "two_part_interval",
]


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
        if math.isnan(self.value):
            return self.note or NO_VALUE.note
        if math.isnan(self.low):
            return f"{self.value:.3f} (no interval{': ' if self.note else ''}{self.note})"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def _repr_html_(self) -> str:
        """Show the number, its interval and what is behind them in a notebook."""
        value, _, interval = html.escape(str(self)).partition(" ")
        return f"<b>{value}</b> {interval}, {count_of(self.count, 'image')} of {count_of(self.patients, 'patient')}"

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
        from covidcxr.evaluation.metrics.intervals import Interval

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


NO_VALUE = Interval(note="not defined")
NONE_PREDICTED = Interval(note="not defined: nothing was predicted positive")
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

    def reach(near: float, far: float) -> float:
        return math.sqrt(max(0.0, near**2 - 2 * correlation * near * far + far**2))

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


WITHIN = 0.5
"""Share of the variance of images that is their patient's, in the working model for degrees of freedom."""

FEWEST_OF_A_MEDIAN = 6
"""Patients from which a median has an interval: all of five lie on one side of it in 6 % of samples."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """What the images of patients allow to know.

    Attributes:
        correction: By what the variance of resamples is too small, from 1 up.
        freedom: Degrees of freedom of that variance; 0 = fewer than two patients of a kind.
        patients: As many patients of equal size would say as much, if images of a patient were all alike.
        images: As many images of equal kinds would say as much, if images of a patient were not alike at all.

    Example:
        ```python
        import numpy as np
        from covidcxr.evaluation.metrics.intervals import Clusters

        clusters = Clusters.count(np.repeat(np.arange(10), 3), [np.ones(30, bool)])
        assert round(clusters.freedom) == 9 and round(clusters.patients) == 10 and clusters.images == 30
        ```
    """

    correction: float
    freedom: float
    patients: float
    images: float

    @classmethod
    def count(cls, patient: Integer[np.ndarray, " images"], kinds: Sequence[Bool[np.ndarray, " images"]]) -> Clusters:
        """Count what stands behind a number.

        Args:
            patient: Number of the patient of each image.
            kinds: The images of each kind that the number needs, weighing equally: of an AUROC those with the class and
                those without. Kinds without images do not count.

        Returns:
            The counts, as the harmonic mean over kinds.
        """
        parts = [_count_kind(np.bincount(patient[kind])) for kind in kinds if kind.any()]
        if not parts or min(part[1] for part in parts) <= 0:
            return cls(math.nan, 0.0, 0.0, 0.0)
        wanted, drawn, squares, patients, images = (math.fsum(column) for column in zip(*parts, strict=True))
        numbers = [len(np.unique(patient[kind])) for kind in kinds if kind.any()]
        plain = sum(1 / n for n in numbers) ** 2 / sum(1 / n**2 / (n - 1) for n in numbers)  # Welch 1947
        freedom, kinds_squared = math.sqrt(plain * drawn**2 / squares), len(parts) ** 2
        return cls(wanted / drawn, freedom, kinds_squared / patients, kinds_squared / images)

    @property
    def alike_by_half(self) -> float:
        """As many independent images would say as much, in the working model."""
        return 1 / (WITHIN / self.patients + (1 - WITHIN) / self.images)

    def student(self, confidence: float) -> float:
        """Return how many standard errors an interval reaches.

        Args:
            confidence: Nominal coverage, in (0, 1).

        Returns:
            Student's quantile.
        """
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, (1 + confidence) / 2))


def _count_kind(sizes: Integer[np.ndarray, " patients"]) -> tuple[float, float, float, float, float]:
    """Return, in the working model, the variance of a mean, what resamples show of it, and the variance of that.

    And one over the effective number of patients, and of images.
    """
    sizes = np.sort(sizes[sizes > 0])  # sums do not depend on who comes first
    weight = sizes / sizes.sum()
    own = WITHIN + (1 - WITHIN) / sizes  # variance of a patient's mean
    square, lever = weight**2, weight * own
    variance = float(square @ own)
    seen = square * (own - 2 * lever + variance)
    # Sum over all pairs of patients of the squared covariance of their residuals, written out
    total, first, second = square.sum(), square @ lever, square @ lever**2
    pairs = variance**2 * total**2 + 2 * total * second - 4 * variance * total * first + 2 * first**2
    pairs += float((seen**2).sum() - (square**2 * (variance - 2 * lever) ** 2).sum())
    return variance, float(seen.sum()) if len(sizes) > 1 else 0.0, float(pairs), float(square.sum()), 1 / sizes.sum()


def statistic_interval(
    values: Float[np.ndarray, " resamples"], value: float, clusters: Clusters, confidence: float
) -> Interval:
    """Find the interval of any number, by the spread of its resamples.

    Student's interval, longer on the side to which the number is skewed (Johnson 1978).

    Args:
        values: The number in each resample, without NaN.
        value: The number.
        clusters: What stands behind it.
        confidence: Nominal coverage.

    Returns:
        The interval.
    """
    if math.isnan(value) or not len(values):
        return NO_VALUE
    if not clusters.freedom:
        return ONE_PATIENT
    centred = values - values.mean()
    return _skewed(value, float((centred**2).mean()), float((centred**3).mean()), clusters, confidence)


def mean_interval(
    values: Float[np.ndarray, " images"], patient: Integer[np.ndarray, " images"], confidence: float
) -> Interval:
    """Find the interval of a mean over images.

    Args:
        values: One number an image; NaN = unknown, left out.
        patient: Number of the patient of each image.
        confidence: Nominal coverage.

    Returns:
        The interval.
    """
    known = ~np.isnan(values)
    if not known.any():
        return NO_VALUE
    clusters = Clusters.count(patient, [known])
    if not clusters.freedom:
        return ONE_PATIENT
    value, spread = _spread(values[known], patient[known])
    return _skewed(value, float((spread**2).sum()), float((spread**3).sum()), clusters, confidence)


def _spread(values: np.ndarray, patient: np.ndarray) -> tuple[float, Float[np.ndarray, " patients"]]:
    """Return the mean over images, and how far each patient moves it."""
    value = float(values.mean())
    return value, np.bincount(patient, values - value) / len(values)


def _skewed(value: float, variance: float, third: float, clusters: Clusters, confidence: float) -> Interval:
    from scipy.special import ndtri

    error = math.sqrt(variance * clusters.correction)
    if error < 1e-12 * max(1.0, abs(value)):  # of rounding
        return Interval(value, value)
    reach = clusters.student(confidence)
    shift = error * third / variance**1.5 * (2 * float(ndtri((1 + confidence) / 2)) ** 2 + 1) / 6
    return Interval(value - reach * error + min(0.0, shift), value + reach * error + max(0.0, shift))


def share_interval(value: float, variance: float, clusters: Clusters, confidence: float) -> Interval:
    """Find the interval of a share in [0, 1], or of what behaves like one.

    The mid-P interval of as many independent images as would spread like the resamples (Korn and Graubard 1998;
    Lancaster 1961), but not of more images than there are. At 0 and 1, where no resample moves the share, each patient
    counts as one image.

    Args:
        value: The share.
        variance: Its variance over resamples of patients.
        clusters: What stands behind it.
        confidence: Nominal coverage.

    Returns:
        The interval, in [0, 1].
    """
    from scipy.special import ndtri

    if math.isnan(value) or math.isnan(variance):
        return NO_VALUE
    if not clusters.freedom:
        return ONE_PATIENT
    if min(value, 1 - value) < 1e-9:  # of rounding
        images = clusters.patients
    else:
        variance = max(variance * clusters.correction, value * (1 - value) / clusters.images)
        images = value * (1 - value) / variance
        images *= (float(ndtri((1 + confidence) / 2)) / clusters.student(confidence)) ** 2
    low = _mid_p(value * images, images, (1 - confidence) / 2)
    high = 1 - _mid_p((1 - value) * images, images, (1 - confidence) / 2)
    return Interval(min(value, low), max(value, high))


def _mid_p(hits: float, images: float, tail: float) -> float:
    """Return the share under which as many hits have half of their own probability, and all of more, in one tail."""
    from scipy.special import betainc

    if hits <= 0:
        return 0.0
    if hits >= images:
        return float((2 * tail) ** (1 / images))
    low, high = 0.0, hits / images
    for _ in range(40):
        middle = (low + high) / 2
        at_least = betainc(hits, images - hits + 1, middle)
        more = betainc(hits + 1, images - hits, middle)
        low, high = (middle, high) if (at_least + more) / 2 < tail else (low, middle)
    return high


def two_part_interval(
    values: Float[np.ndarray, " images"],
    failed: Bool[np.ndarray, " images"],
    patient: Integer[np.ndarray, " images"],
    confidence: float,
    worst: float = 0.0,
) -> Interval:
    """Find the interval of a mean that a few failures decide, whether these images hold any or not.

    A mean is made of the share of failures, the mean of the other images and that of the failures. Each has an interval
    of its own, and these are put together (MOVER; Zou and Donner 2008). So ten patients without a failure leave open
    what ten patients leave open, and the mean may be lower than any of them.

    Args:
        values: One number an image; NaN = unknown, left out.
        failed: Which images failed.
        patient: Number of the patient of each image.
        confidence: Nominal coverage.
        worst: What a failure may be worth; counts where there is none.

    Returns:
        The interval.
    """
    known = ~np.isnan(values)
    if not known.any():
        return NO_VALUE
    values, failed, patient = values[known], failed[known], patient[known]
    share, spread = _spread(failed.astype(float), patient)
    clusters = Clusters.count(patient, [np.ones(len(failed), bool)])
    shares = share_interval(share, float((spread**2).sum()), clusters, confidence)
    if math.isnan(shares.low):
        return shares
    means = {part: float(values[failed == part].mean()) if (failed == part).any() else worst for part in (True, False)}
    if not (~failed).any():
        means[False] = float(values.max())
    gap = means[False] - means[True]
    ends = sorted((gap * (share - shares.high), gap * (share - shares.low)))
    reaches, moves = [(-ends[0], ends[1])], [-gap * (failed - share)]
    for part, weight in ((True, share), (False, 1 - share)):
        if not weight:
            continue
        inside = values[failed == part]
        interval = mean_interval(inside, patient[failed == part], confidence)
        if math.isnan(interval.low):  # one patient's: anything between the worst and the best
            interval = Interval(min(worst, float(inside.min())), float(values.max()))
        reaches.append((weight * (means[part] - interval.low), weight * (interval.high - means[part])))
        moves.append((failed == part) * (values - means[part]))
    lower, higher = np.array(reaches).T
    alike = _correlations(np.stack([np.bincount(patient, move) for move in moves]))
    value = float(values.mean())
    return Interval(value - math.sqrt(lower @ alike @ lower), value + math.sqrt(higher @ alike @ higher))


def _correlations(moves: Float[np.ndarray, "parts patients"]) -> Float[np.ndarray, "parts parts"]:
    """Return how far parts of a mean move together over patients; never below 0, which would narrow an interval."""
    products = moves @ moves.T
    sizes = np.sqrt(np.diag(products))
    scale = np.outer(sizes, sizes)
    alike: np.ndarray = np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0).clip(0, 1)
    np.fill_diagonal(alike, 1.0)
    return alike


def quantile_interval(
    values: Float[np.ndarray, " images"], patient: Integer[np.ndarray, " images"], level: float, confidence: float
) -> Interval:
    """Find the interval of a quantile over images, whatever their distribution (Woodruff 1952).

    Args:
        values: One number an image; NaN = unknown, left out.
        patient: Number of the patient of each image.
        level: Share of the images below it, in (0, 1); 0.5 = the median.
        confidence: Nominal coverage.

    Returns:
        The interval; none where these images cannot bound the quantile.
    """
    known = ~np.isnan(values)
    if not known.any():
        return NO_VALUE
    values, patient = values[known], patient[known]
    _, spread = _spread((values <= np.quantile(values, level, method="inverted_cdf")).astype(float), patient)
    clusters = Clusters.count(patient, [np.ones(len(values), bool)])
    if round(clusters.freedom) + 1 < FEWEST_OF_A_MEDIAN:
        return Interval(note=f"fewer than {FEWEST_OF_A_MEDIAN} patients, of equal size, stand behind it")
    shares = share_interval(level, float((spread**2).sum()), clusters, confidence)
    # A quantile is bounded if, most often, images lie on both sides of it; whether they do must not decide.
    unbounded = max(level, 1 - level) ** clusters.alike_by_half > (1 - confidence) / 2
    if unbounded or shares.low * len(values) < 1 or (1 - shares.high) * len(values) < 1:
        return Interval(note=f"{len(values)} images are too few to bound a quantile of {level:.1%}")
    ordered = np.sort(values)
    low, high = math.floor(shares.low * len(values)), math.ceil(shares.high * len(values))
    return Interval(float(ordered[low - 1]), float(ordered[min(high, len(values) - 1)]))
