"""Operating points: a decision threshold chosen on validation images, and its scores on test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Statistics, number_patients
from covidcxr.evaluation.metrics.intervals import (
    Clusters,
    Estimate,
    Interval,
    difference_interval,
    ratio_interval,
    share_interval,
)
from covidcxr.evaluation.metrics.reliability import of_class
from covidcxr.evaluation.metrics.weighted import ratio
from covidcxr.evaluation.predictions import PredictionTable, Rows
from covidcxr.utils.plain import count_of, field_values, plain_result

__all__ = [
    "OperatingPoint",
    "choose_point",
    "choose_threshold",
    "predictive_values",
    "score_at",
    "THRESHOLDS",
    "DecisionCurve",
    "decision_curve",
]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A decision threshold and where it comes from.

    Attributes:
        class_name: The positive class.
        threshold: It is predicted from this probability up.
        wanted: What the threshold was chosen for, "sensitivity" or "specificity".
        least: The wanted value, in (0, 1].
        chosen_on: Which images it was chosen on.
        images: How many they were.
        patients: How many patients they came from.

    Example:
        ```python
        from covidcxr.evaluation import choose_point

        rows = [{"label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        point = choose_point(rows, "b", sensitivity=0.9)
        assert point.threshold == 0.7 and point.images == 20
        ```
    """

    class_name: str
    threshold: float
    wanted: str
    least: float
    chosen_on: str
    images: int
    patients: int

    def __str__(self) -> str:
        return (
            f"{self.class_name} from {self.threshold:.3f} up, chosen for a {self.wanted} of {self.least:.0%} on "
            f"{self.images} {self.chosen_on} of {count_of(self.patients, 'patient')}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return field_values(self)


def choose_threshold(
    probability: Float[np.ndarray, " images"],
    positive: Bool[np.ndarray, " images"],
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> float:
    """Find the threshold that reaches a wanted sensitivity, or specificity, and costs least of the other.

    An image is predicted positive from the threshold up. Choose on validation images: scores on the images that a
    threshold was chosen on are too good.

    Args:
        probability: Of the class, in [0, 1].
        positive: Which images are of the class.
        sensitivity: Wanted share of positive images that are predicted so, in (0, 1]: the highest threshold that
            reaches it.
        specificity: Wanted share of other images that are not, in (0, 1]: the lowest probability that reaches it;
            just above all of them if none does.

    Returns:
        One of the probabilities, or a number just above all of them.

    Raises:
        ConfigError: If not exactly one of the two is wanted, it is out of range, or there are no images to reach it on.
    """
    wanted = sensitivity if specificity is None else specificity
    if (sensitivity is None) == (specificity is None) or wanted is None or not 0 < wanted <= 1:
        raise ConfigError(
            f"Say one of sensitivity and specificity, in (0, 1], not sensitivity={sensitivity} and "
            f"specificity={specificity}."
        )
    if probability.shape != positive.shape or np.isnan(probability).any():
        raise ConfigError("Each image needs a probability, without NaN, and whether it is positive.")
    about = np.sort(probability[positive if specificity is None else ~positive])
    if not len(about):
        raise ConfigError(f"There are no {'positive' if specificity is None else 'negative'} images to choose on.")
    least = math.ceil(wanted * len(about) - 1e-9)  # images to be right; 1e-9: 10 * 0.9 may be 9.000...01
    if specificity is None:
        return float(about[len(about) - least])
    above = probability[probability > about[least - 1]]
    return float(above.min() if len(above) else np.nextafter(about[least - 1], 2))


def choose_point(
    rows: Rows,
    class_name: str,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    chosen_on: str = "validation images",
) -> OperatingPoint:
    """Choose an operating point on the rows of validation images; see `choose_threshold`.

    Args:
        rows: See `score_rows`.
        class_name: The positive class.
        sensitivity: Wanted share of its images that are predicted positive.
        specificity: Wanted share of other images that are not.
        chosen_on: What these images are, in words.

    Returns:
        The operating point.

    Raises:
        ConfigError: If there is no such class, or nothing to choose on; see `choose_threshold`.
    """
    predictions, probability, positive = of_class(PredictionTable.read(rows).scored, class_name)
    threshold = choose_threshold(probability, positive, sensitivity=sensitivity, specificity=specificity)
    wanted, least = ("sensitivity", sensitivity) if specificity is None else ("specificity", specificity)
    return OperatingPoint(
        class_name, threshold, wanted, float(least or 0), chosen_on, len(predictions), predictions.number_of()
    )


def score_at(
    rows: Rows,
    class_name: str,
    point: OperatingPoint | float,
    prevalence: float | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Score a class against the rest at an operating point, with predictive values at a given prevalence.

    Predictive values depend on the prevalence, which is rarely that of the test set: give that of the place of use.
    They follow from sensitivity and specificity by `predictive_values`, and their intervals from those of both
    (MOVER-R; Donner and Zou 2012).

    Args:
        rows: Of test images, on which the point was not chosen; see `score_rows`.
        class_name: The positive class.
        point: From which probability up.
        prevalence: Share of patients who are positive, in (0, 1); None = that of the images, with its own uncertainty.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        `sensitivity`, `specificity`, `ppv` and `npv` (the share of positive and of negative answers that are right),
        and `prevalence`.

    Raises:
        ConfigError: If there is no such class, nothing to score, or the prevalence is not in (0, 1).
    """
    if prevalence is not None and not 0 < prevalence < 1:
        raise ConfigError(f"The prevalence must be in (0, 1), not {prevalence}.")
    predictions, probability, positive = of_class(PredictionTable.read(rows).in_order.scored, class_name)
    predicted_positive = probability >= (point.threshold if isinstance(point, OperatingPoint) else point)
    cells = np.stack(
        [positive & predicted_positive, positive, ~positive & ~predicted_positive, ~positive], axis=1
    ).astype(float)

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        true_positives, positives, true_negatives, negatives = (weights @ cells).T
        sensitivities, specificities = ratio(true_positives, positives), ratio(true_negatives, negatives)
        share = positives / (positives + negatives) if prevalence is None else np.full(len(weights), prevalence)
        ppv, npv = predictive_values(sensitivities, specificities, share)
        return {"sensitivity": sensitivities, "specificity": specificities, "ppv": ppv, "npv": npv, "prevalence": share}

    images = {"sensitivity": positive, "specificity": ~positive}
    if prevalence is None:
        images |= {"ppv": predicted_positive, "npv": ~predicted_positive}
    shares = ("sensitivity", "specificity", *(("ppv", "npv", "prevalence") if prevalence is None else ()))
    estimates = Statistics(compute, images, shares).estimate(predictions.patients, resamples, seed)
    return estimates if prevalence is None else estimates | _at_prevalence(estimates, prevalence)


def _at_prevalence(estimates: Mapping[str, Estimate], prevalence: float) -> dict[str, Estimate]:
    """Find the intervals of predictive values: each falls as the ratio of its false to its true answers rises."""
    odds = prevalence / (1 - prevalence)
    values = {}
    for name, right, of_wrong, factor in (
        ("ppv", "sensitivity", "specificity", 1 / odds),
        ("npv", "specificity", "sensitivity", odds),
    ):
        whole = estimates[of_wrong]
        wrong = replace(whole, value=1 - whole.value, low=1 - whole.high, high=1 - whole.low)
        ends = ratio_interval(wrong, estimates[right])
        low, high = (1 / (1 + factor * end) for end in (ends.high, ends.low))
        values[name] = replace(estimates[name], low=low, high=high, note=ends.note)
    return values


@overload
def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]: ...


@overload
def predictive_values(
    sensitivity: np.ndarray, specificity: np.ndarray, prevalence: np.ndarray
) -> tuple[np.ndarray, np.ndarray]: ...


def predictive_values(sensitivity: Any, specificity: Any, prevalence: Any) -> tuple[Any, Any]:
    """Return how often a positive and a negative answer are right, by Bayes' rule (Altman and Bland 1994).

        PPV = se p / (se p + (1 - sp) (1 - p))
        NPV = sp (1 - p) / (sp (1 - p) + (1 - se) p)

    Args:
        sensitivity: Share of positive patients who are predicted positive, se.
        specificity: Share of negative patients who are predicted negative, sp.
        prevalence: Share of positive patients, p.

    Returns:
        PPV and NPV, numbers or arrays as what was given; NaN where there are no such answers.
    """
    sensitivities, specificities, share = (
        np.asarray(rate, dtype=float) for rate in (sensitivity, specificity, prevalence)
    )
    true_positives, false_positives = np.asarray(sensitivities * share), np.asarray((1 - specificities) * (1 - share))
    true_negatives, false_negatives = np.asarray(specificities * (1 - share)), np.asarray((1 - sensitivities) * share)
    ppv, npv = (
        ratio(true_positives, np.asarray(true_positives + false_positives)),
        ratio(true_negatives, np.asarray(true_negatives + false_negatives)),
    )
    return (ppv, npv) if ppv.ndim else (float(ppv), float(npv))


THRESHOLDS = tuple(round(0.01 * percent, 2) for percent in range(1, 100))
"""Where a curve is drawn unless told otherwise."""

_EXACT = "it follows from the prevalence that was stated"


@dataclass(frozen=True)
class DecisionCurve:
    """The net benefit of a class against the rest, threshold by threshold.

    Attributes:
        class_name: The class that is treated.
        prevalence: Its share in the place of use, in (0, 1).
        stated: Whether the prevalence was stated; else it is that of the images, with its own uncertainty.
        thresholds: Probabilities from which a patient is treated, in (0, 1), rising.
        net_benefit: Of treating by the model, at each threshold.
        treat_all: Of treating everyone; exact where the prevalence was stated.
        gain: Of the model above treating everyone. What it gains above treating no one is its net benefit.

    Example:
        ```python
        from covidcxr.evaluation import decision_curve

        rows = [{"label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        curve = decision_curve(rows, "b", thresholds=[0.25, 0.5])
        assert [estimate.value for estimate in curve.net_benefit] == [0.5, 0.5] and curve.useful == [(0.25, 0.5)]
        ```
    """

    class_name: str
    prevalence: float
    stated: bool
    thresholds: tuple[float, ...]
    net_benefit: tuple[Estimate, ...]
    treat_all: tuple[Estimate, ...]
    gain: tuple[Estimate, ...]

    @property
    def useful(self) -> list[tuple[float, float]]:
        """Runs of thresholds, first and last, at which both intervals say that the model is better than either."""
        return self._runs(
            [benefit.low > 0 and gain.low > 0 for benefit, gain in zip(self.net_benefit, self.gain, strict=True)]
        )

    @property
    def harmful(self) -> list[tuple[float, float]]:
        """Runs of thresholds at which the interval says that treating no one is better."""
        return self._runs([benefit.high < 0 for benefit in self.net_benefit])

    def _runs(self, held: Sequence[bool]) -> list[tuple[float, float]]:
        runs = groupby(zip(self.thresholds, held, strict=True), key=lambda pair: pair[1])
        kept = [[threshold for threshold, _ in run] for is_held, run in runs if is_held]
        return [(run[0], run[-1]) for run in kept]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {
            "class": self.class_name,
            "prevalence": self.prevalence,
            "stated": self.stated,
            "useful": [list(run) for run in self.useful],
            "harmful": [list(run) for run in self.harmful],
            **{name: plain_result(getattr(self, name)) for name in ("thresholds", "net_benefit", "treat_all", "gain")},
        }


def decision_curve(
    rows: Rows,
    class_name: str,
    *,
    thresholds: Sequence[float] | None = None,
    prevalence: float | None = None,
    adjust: bool = False,
    confidence: float = 0.95,
) -> DecisionCurve:
    """Measure the net benefit of a class against the rest (Vickers and Elkin 2006).

    A net benefit is a difference of two shares, weighed: images treated that need it, and images treated that do not.
    Its interval is made from those of both shares and their correlation over patients (MOVER; Zou and Donner 2008), so
    it has a width where no image is treated in vain, or none at all. Intervals hold for each threshold by itself.

    A threshold means what it says only if probabilities are calibrated. Those that are calibrated on these images are
    not where the prevalence is another one: `adjust` brings them there by Bayes' rule (Saerens 2002). Without it the
    curve is that of the model as it is.

    Args:
        rows: Of test images; see `score_rows`.
        class_name: The class that is treated.
        thresholds: Probabilities from which a patient is treated, in (0, 1); None = from 0.01 to 0.99.
        prevalence: Share of patients of the class in the place of use, in (0, 1); None = that of the images.
        adjust: Bring probabilities from the prevalence of the images to the stated one.
        confidence: Nominal coverage of the intervals, in (0, 1).

    Returns:
        The curve, thresholds rising.

    Raises:
        ConfigError: If there is no such class, nothing to score, or a setting is out of range.
    """
    chosen = sorted({float(threshold) for threshold in (THRESHOLDS if thresholds is None else thresholds)})
    for name, values in {"thresholds": chosen, "prevalence": [0.5 if prevalence is None else prevalence]}.items():
        if not values or not all(0 < value < 1 for value in values):
            raise ConfigError(f"The {name} of a decision curve must be in (0, 1), not {values}.")
    predictions, probability, positive = of_class(PredictionTable.read(rows).in_order.scored, class_name)
    measured = float(positive.mean())
    if adjust and prevalence is not None and 0 < measured < 1:
        odds = prevalence / (1 - prevalence) * (1 - measured) / measured
        probability = odds * probability / (odds * probability + 1 - probability)
    images = _Images(positive, number_patients(predictions.patients), prevalence, confidence)
    net_benefit, treat_all, gain, everyone = [], [], [], np.ones_like(positive)
    for threshold in chosen:
        treated, harm = probability >= threshold, threshold / (1 - threshold)
        net_benefit.append(images.weigh(images.part(True, treated, 1.0), images.part(False, treated, harm)))
        gain.append(images.weigh(images.part(False, ~treated, harm), images.part(True, ~treated, 1.0)))
        treat_all.append(images.weigh(images.part(True, everyone, 1.0), images.part(False, everyone, harm)))
    if prevalence is not None:
        treat_all = [Estimate(all_.value, math.nan, math.nan, all_.count, all_.patients, _EXACT) for all_ in treat_all]
    share = measured if prevalence is None else prevalence
    return DecisionCurve(
        class_name, share, prevalence is not None, tuple(chosen), tuple(net_benefit), tuple(treat_all), tuple(gain)
    )


@dataclass(frozen=True)
class _Part:
    """What some images add to a net benefit.

    Attributes:
        worth: With its interval.
        moves: How far each patient moves the share of these images.
    """

    worth: Estimate
    moves: Float[np.ndarray, " patients"]


@dataclass(frozen=True)
class _Images:
    """Images with and without a class, and how often it comes in the place of use."""

    positive: Bool[np.ndarray, " images"]
    patient: Integer[np.ndarray, " images"]
    prevalence: float | None
    confidence: float
    known: dict[bytes, tuple[float, Interval, np.ndarray]] = field(default_factory=dict)
    clusters: dict[bytes, Clusters] = field(default_factory=dict)

    def part(self, of_class: bool, chosen: Bool[np.ndarray, " images"], worth: float) -> _Part:
        """Weigh the chosen images of a kind: as shares of all images, or of their kind times its stated share."""
        kind = self.positive == of_class
        about, held = (np.ones_like(kind), kind & chosen) if self.prevalence is None else (kind, chosen)
        if self.prevalence is not None:
            worth *= self.prevalence if of_class else 1 - self.prevalence
        counts: dict[str, Any] = {"count": len(self.patient), "patients": len(np.unique(self.patient))}
        if not about.any():
            note = f"no image is {'of the class' if of_class else 'of another class'}"
            return _Part(Estimate(math.nan, math.nan, math.nan, **counts, note=note), np.zeros(1))
        key = held.tobytes() + about.tobytes()  # many thresholds treat the same images
        if key not in self.known:
            self.known[key] = self._share(held, about)
        share, ends, moves = self.known[key]
        return _Part(Estimate(worth * share, worth * ends.low, worth * ends.high, **counts, note=ends.note), moves)

    def _share(self, held: np.ndarray, about: np.ndarray) -> tuple[float, Interval, np.ndarray]:
        """Return the share of images that are held, its interval, and how far each patient moves it."""
        patient = self.patient[about]
        share = float(held[about].mean())
        moves = np.bincount(patient, held[about] - share, int(self.patient.max()) + 1) / len(patient)
        key = about.tobytes()
        if key not in self.clusters:
            self.clusters[key] = Clusters.count(self.patient, [about])
        return share, share_interval(share, float(moves @ moves), self.clusters[key], self.confidence), moves

    def weigh(self, gained: _Part, lost: _Part) -> Estimate:
        """Subtract what is lost."""
        lengths = float(np.linalg.norm(gained.moves) * np.linalg.norm(lost.moves))
        correlation = float(gained.moves @ lost.moves) / lengths if lengths else 0.0
        interval = difference_interval(gained.worth, lost.worth, correlation)
        value = gained.worth.value - lost.worth.value
        return replace(gained.worth, value=value, low=interval.low, high=interval.high, note=interval.note)
