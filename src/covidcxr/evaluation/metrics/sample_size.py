"""How many patients a study needs for a score to be known as precisely as wanted (Buderer 1996; Riley 2021).

The answer is that of the library's own intervals: the smallest number of patients at which the interval that
`covidcxr evaluate` would print, of a score as high as expected, reaches no farther than wanted to either side. Chance
makes the interval of about half of all studies of this size a little wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.evaluation.metrics.calibration import LEAST_OF_A_SLOPE
from covidcxr.evaluation.metrics.intervals import Clusters, Interval, share_interval
from covidcxr.utils.plain import field_values

__all__ = ["PLANNED", "SampleSize", "StudyDesign"]

PLANNED = ("sensitivity", "specificity", "accuracy", "auroc", "dice", "slope", "intercept")
"""The scores that can be planned for."""

MOST = 10_000_000
"""Patients beyond which nobody plans."""


@dataclass(frozen=True)
class SampleSize:
    """The patients that a score needs.

    Attributes:
        score: Which one.
        value: As high as it is expected to be.
        within: How far its interval reaches, to the farther side, at most.
        patients: To be recruited, those without an answer included.
        positives: Of them with the class; None = its prevalence does not matter here.
        images: Of all of them.
        low: Lower end of the interval to be expected; NaN = there is none.
        high: Upper end.
        note: Why there is no interval; empty where there is one.

    Example:
        ```python
        from covidcxr.evaluation import StudyDesign

        size = StudyDesign(prevalence=0.2).patients_for("sensitivity", 0.9, within=0.05)
        assert (size.patients, size.positives) == (930, 186)
        ```
    """

    score: str
    value: float
    within: float
    patients: int
    positives: int | None
    images: int
    low: float
    high: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; None stands for NaN."""
        return {name: None if value != value else value for name, value in field_values(self).items()}


@dataclass(frozen=True)
class StudyDesign:
    """Which patients a study recruits, and what images of them.

    Images of a patient are alike, so n images, m a patient, say as much as n / D images of different patients, with the
    design effect D = 1 + ((1 + spread^2) m - 1) icc (Eldridge 2006).

    Attributes:
        prevalence: Share of patients with the class, in (0, 1); None = not known.
        images_per_patient: On average, from 1 up.
        spread: Coefficient of variation of the number of images of a patient: standard deviation / mean.
        icc: How alike images of a patient are in what is scored, in [0, 1]: the intraclass correlation.
        abstention: Share of patients whom the model gives no answer, in [0, 1).
        sd: Standard deviation of the Dice of images that do not fail.
        failures: Share of images on which a mask fails (Dice of about 0), in [0, 1).
        auroc: Of the model, in (0.5, 1): how far apart its probabilities lie, for slope and intercept.
        confidence: Nominal coverage of the intervals, in (0, 1).

    Raises:
        ConfigError: If a number is out of range.

    Example:
        ```python
        from covidcxr.evaluation import StudyDesign

        design = StudyDesign(prevalence=0.2, images_per_patient=1.8)
        assert design.patients_for("auroc", 0.85, within=0.05).patients == 459
        assert round(design.expect("sensitivity", 0.9, patients=726).low, 2) == 0.85
        ```
    """

    prevalence: float | None = None
    images_per_patient: float = 1.0
    spread: float = 0.0
    icc: float = 0.5
    abstention: float = 0.0
    sd: float | None = None
    failures: float = 0.0
    auroc: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        ranges = {
            "prevalence": (self.prevalence is None or 0 < self.prevalence < 1, "in (0, 1)"),
            "images_per_patient": (1 <= self.images_per_patient < math.inf, "1 or more"),
            "spread": (0 <= self.spread < math.inf, "0 or more"),
            "icc": (0 <= self.icc <= 1, "in [0, 1]"),
            "abstention": (0 <= self.abstention < 1, "in [0, 1)"),
            "sd": (self.sd is None or 0 < self.sd < 1, "in (0, 1)"),
            "failures": (0 <= self.failures < 1, "in [0, 1)"),
            "auroc": (self.auroc is None or 0.5 < self.auroc < 1, "in (0.5, 1)"),
            "confidence": (0 < self.confidence < 1, "in (0, 1)"),
        }
        for name, (holds, wanted) in ranges.items():
            if not holds:
                raise ConfigError(f"The {name} of a study must be {wanted}, not {getattr(self, name)}.")

    def patients_for(self, score: str, value: float, within: float) -> SampleSize:
        """Find how many patients a score needs.

        Args:
            score: One of `PLANNED`; `accuracy` stands for any share of all images.
            value: As high as it is expected to be; of a slope 1, of an intercept 0.
            within: How far its interval may reach to either side, above 0.

        Returns:
            The smallest number of patients.

        Raises:
            ConfigError: If a number is out of range, one that is needed is missing, or 10 million patients are too few.
            UnknownNameError: If there is no such score.
        """
        if not 0 < within < math.inf:
            raise ConfigError(f"Say how far the interval of {score} may reach, above 0, not {within}.")
        ends = self._ends(score, value)

        def too_few(patients: int) -> bool:
            return not self._size(score, value, patients, ends).within <= within

        low, high = 1, 2
        while too_few(high):
            low, high = high, 2 * high
            if high > MOST:
                raise ConfigError(f"No {MOST:,} patients are enough for {score} {value:g} within {within:g}.")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if too_few(middle) else (low, middle)
        return replace(self._size(score, value, high, ends), within=within)

    def expect(self, score: str, value: float, patients: int) -> SampleSize:
        """Say what interval so many patients let expect.

        Args:
            score: Which one; see `patients_for`.
            value: As high as it is expected to be.
            patients: Who are recruited, those without an answer included; 1 or more.

        Returns:
            The interval, and how far it reaches.

        Raises:
            ConfigError: If a number is out of range or one that is needed is missing.
            UnknownNameError: If there is no such score.
        """
        if patients < 1:
            raise ConfigError(f"The number of patients must be 1 or more, not {patients}.")
        return self._size(score, value, patients, self._ends(score, value))

    def _size(self, score: str, value: float, patients: int, ends: Callable[[float], Interval]) -> SampleSize:
        interval = ends(patients * (1 - self.abstention))
        within = max(value - interval.low, interval.high - value)
        asks = score not in ("accuracy", "dice") and self.prevalence is not None
        positives = math.ceil(patients * (self.prevalence or 0) - 1e-9) if asks else None
        images = math.ceil(patients * self.images_per_patient - 1e-9)
        return SampleSize(score, value, within, patients, positives, images, interval.low, interval.high, interval.note)

    def _ends(self, score: str, value: float) -> Callable[[float], Interval]:
        """Return the interval as a function of the number of patients who get an answer."""
        if score not in PLANNED:
            raise UnknownNameError(f"There is no score {score!r}. {did_you_mean(score, PLANNED)}")
        if score in ("slope", "intercept"):
            return self._recalibration(score, value)
        if not 0 < value < 1 or (score == "auroc" and value < 0.5):
            raise ConfigError(f"The {score} that is expected must be in (0, 1), an AUROC from 0.5 up, not {value}.")
        if score == "dice":
            return self._dice(value)
        if score == "auroc":
            return self._auroc(value)
        share = {"sensitivity": self._share(score), "specificity": 1 - self._share(score)}.get(score, 1.0)
        return lambda patients: self._share_interval(value, value * (1 - value) / patients / share, patients * share)

    def _share(self, score: str) -> float:
        """Return the prevalence, which most scores need."""
        if self.prevalence is None and score != "accuracy":
            raise ConfigError(f"The number of patients for {score} depends on the prevalence of the class: say it.")
        return self.prevalence or 0.5

    @property
    def _inflation(self) -> float:
        """By how much the variance of a mean is above that of one image a patient."""
        images = self.images_per_patient
        return (1 + ((1 + self.spread**2) * images - 1) * self.icc) / images

    def _clusters(self, *kinds: float) -> Clusters:
        """Count what patients of each kind allow to know, as `Clusters.count` counts those that are there."""
        patients = [number / (1 + self.spread**2) for number in kinds]
        if min(patients) <= 1:
            return Clusters(1.0, 0.0, 0.0, 0.0)
        inverse = sum(1 / number for number in patients)
        freedom = inverse**2 / sum(1 / number**2 / (number - 1) for number in patients)
        images = sum(1 / (number * self.images_per_patient) for number in kinds)
        return Clusters(1.0, freedom, len(kinds) ** 2 / inverse, len(kinds) ** 2 / images)

    def _share_interval(self, value: float, variance: float, *kinds: float) -> Interval:
        return share_interval(value, variance * self._inflation, self._clusters(*kinds), self.confidence)

    def _auroc(self, value: float) -> Callable[[float], Interval]:
        """Return the interval of an AUROC, its variance by Hanley and McNeil (1982)."""
        share = self._share("auroc")
        both_positive, both_negative = value / (2 - value), 2 * value**2 / (1 + value)

        def ends(patients: float) -> Interval:
            positives, negatives = (part * patients / self._inflation for part in (share, 1 - share))
            variance = value * (1 - value)
            variance += (positives - 1) * (both_positive - value**2) + (negatives - 1) * (both_negative - value**2)
            variance /= positives * negatives * self._inflation
            return self._share_interval(value, max(variance, 0.0), share * patients, (1 - share) * patients)

        return ends

    def _dice(self, value: float) -> Callable[[float], Interval]:
        """Return the interval of a mean Dice: of the share of failures, which count 0, and of the mean of the rest."""
        if self.sd is None:
            raise ConfigError("The number of patients for a Dice depends on its standard deviation between images: sd.")
        spread, failed, rest = self.sd, self.failures, value / (1 - self.failures)
        if rest > 1:
            raise ConfigError(f"No mean Dice of {value:g} is possible where {failed:.0%} of images fail.")

        def ends(patients: float) -> Interval:
            clusters = self._clusters(patients)
            shares = self._share_interval(failed, failed * (1 - failed) / patients, patients)
            if math.isnan(shares.low):
                return shares
            reach = clusters.student(self.confidence) * spread * math.sqrt((1 - failed) * self._inflation / patients)
            below, above = rest * (shares.high - failed), rest * (failed - shares.low)
            return Interval(value - math.hypot(reach, below), value + math.hypot(reach, above)).clip(0, 1)

        return ends

    def _recalibration(self, score: str, value: float) -> Callable[[float], Interval]:
        """Return the interval of slope or intercept, of a calibrated model with this AUROC (Riley 2021)."""
        from scipy.special import expit, logit, ndtri

        share = self._share(score)
        if self.auroc is None:
            raise ConfigError(f"The number of patients for the {score} depends on the AUROC of the model: say it.")
        apart = math.sqrt(2) * float(ndtri(self.auroc))
        standard = np.linspace(-8, 8, 4001)
        density = np.exp(-(standard**2) / 2) / np.exp(-(standard**2) / 2).sum()
        moments = np.zeros(3)
        for part, sign in ((share, 1), (1 - share, -1)):  # logits of a calibrated model, normal in either kind
            logits = float(logit(share)) + sign * apart**2 / 2 + apart * standard
            known = part * density * expit(logits) * expit(-logits)
            moments += [float(known @ logits**power) for power in range(3)]
        variance = 1 / moments[0] if score == "intercept" else moments[0] / (moments[0] * moments[2] - moments[1] ** 2)

        def ends(patients: float) -> Interval:
            clusters = self._clusters(share * patients, (1 - share) * patients)
            if not clusters.freedom or round(clusters.patients) < LEAST_OF_A_SLOPE:
                return Interval(note=f"fewer than {LEAST_OF_A_SLOPE} patients stand behind it")
            reach = clusters.student(self.confidence) * math.sqrt(variance * self._inflation / patients)
            return Interval(value - reach, value + reach)

        return ends
