"""Decision curves: is acting on a model better than treating everyone, or no one (Vickers and Elkin 2006)?

Who treats from a probability of t up says that one missed case is as bad as (1 - t) / t needless treatments. The net
benefit counts both in one currency, per image:

    net benefit = sensitivity p - (1 - specificity) (1 - p) t / (1 - t)

with the prevalence p. Treating everyone has the sensitivity 1 and the specificity 0; treating no one has a net benefit
of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import number_patients
from covidcxr.evaluation.metrics.estimate import Estimate, Interval, difference_interval
from covidcxr.evaluation.metrics.intervals import Clusters, share_interval
from covidcxr.evaluation.metrics.reliability import of_class
from covidcxr.evaluation.predictions.predictions import PredictionTable, Rows
from covidcxr.utils.plain import plain_result

__all__ = ["THRESHOLDS", "DecisionCurve", "decision_curve"]

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
