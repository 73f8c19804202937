"""How far infected fractions agree with those of readers.

Infected fractions are measured within the same lungs for both: those of the reader where there are any, else those of
the pipeline. So what differs is the infection, not the lungs. What lies outside of them does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from covidcxr import aliases
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, PatientIds, check_length, number_patients
from covidcxr.evaluation.metrics.intervals import Clusters, Interval, mean_interval, quantile_interval
from covidcxr.transforms.postprocess import lung_reasons, lung_sides
from covidcxr.types import LUNGS_OF_REGION

__all__ = ["PLACES", "SEVERITIES", "Agreement", "image_agreement", "infected_fractions", "limits_of_agreement"]

__getattr__ = partial(aliases.find, __name__)

PLACES: dict[str, str] = {
    "lungs": "both lungs",
    "right": "right lung",
    "left": "left lung",
    **{f"{side}_{zone}": f"{side} {zone} zone" for side in ("right", "left") for zone in ("upper", "middle", "lower")},
}
"""Where infection is measured, in words. The sides are the patient's: the right lung lies on the image's left. Zones
are the thirds of each lung by its own height."""

SEVERITIES: dict[str, str] = {
    "none": "none",
    "mild": "mild, under 25 %",
    "moderate": "moderate, 25 to 50 %",
    "severe": "severe, over 50 %",
}
"""Images by how much of both lungs the reader outlined, in words; "none" = the reader outlined nothing at all. The cuts
are those of Wong 2020 (Radiology), who score each lung by 25, 50 and 75 %; that both lungs are taken together, that the
upper two parts are one, and the names are ours."""

REACH = 1.96
"""Standard deviations from the bias to a limit: within the limits lie 95 % of differences that are spread normally."""

LEAST_OF_LIMITS = 20
"""Patients from which limits have an interval; skewed differences of fewer are often taken for normal ones."""

FEW = f"fewer than {LEAST_OF_LIMITS} patients, of equal size, do not show the shape that limits rest on"
SKEWED = "the differences are skewed: see their quantiles"

_ZONES = ("upper", "middle", "lower")


def infected_fractions(
    infection: Bool[np.ndarray, "height width"], lungs: Bool[np.ndarray, "height width"]
) -> dict[str, float]:
    """Measure how much of the lungs, of each lung and of each zone is infected.

    Args:
        infection: Outline of the infection; what lies outside the lungs does not count.
        lungs: Lungs of an upright image.

    Returns:
        Fractions in [0, 1] by the names of `PLACES`; those of which the image shows nothing are absent.

    Raises:
        ConfigError: If the masks are not of one shape.
    """
    if infection.shape != lungs.shape:
        raise ConfigError(
            f"The masks must be of one shape, not {infection.shape} (infection) and {lungs.shape} (lungs)."
        )
    parts = {"lungs": lungs}
    for side, lung in zip(("right", "left"), lung_sides(lungs), strict=True):
        parts[side] = lung
        parts |= {f"{side}_{zone}": part for zone, part in zip(_ZONES, _thirds(lung), strict=True)}
    return {name: float((infection & parts[name]).sum() / parts[name].sum()) for name in PLACES if parts[name].any()}


def image_agreement(
    drawn: Mapping[str, Bool[np.ndarray, "height width"]], true: Mapping[str, Bool[np.ndarray, "height width"]]
) -> dict[str, float | str]:
    """Measure the infected fractions of one image by both outlines of the infection.

    Args:
        drawn: The pipeline's masks of an upright image: "infection", "lung_field" and/or "lung".
        true: The reader's.

    Returns:
        `infected_PLACE` (the pipeline's) and `reader_PLACE`, in [0, 1], for `PLACES`; `reader_outside`, the share of
        the reader's infection that lies outside of these lungs; `severity`, one of `SEVERITIES`; `lungs_by`: "reader",
        "pipeline", "no-lungs" (neither has any: nothing is measured) or "not-drawn" (the pipeline drew no infection).
        Empty without a reader's infection.

    Raises:
        ConfigError: If masks are not of one shape.
    """
    if "infection" not in true:
        return {}
    if "infection" not in drawn:
        return {"lungs_by": "not-drawn"}
    lungs, owner = _lungs(true), "reader"
    if lungs is None:
        lungs, owner = _lungs(drawn), "pipeline"
    if lungs is None:
        return {"lungs_by": "no-lungs"}
    infection = true["infection"]
    measured: dict[str, float | str] = {"lungs_by": owner}
    measured |= {f"infected_{place}": part for place, part in infected_fractions(drawn["infection"], lungs).items()}
    read = infected_fractions(infection, lungs)
    measured |= {f"reader_{place}": part for place, part in read.items()}
    measured["severity"] = "none"
    if infection.any():
        measured["severity"] = "mild" if read["lungs"] < 0.25 else "moderate" if read["lungs"] <= 0.5 else "severe"
        measured["reader_outside"] = float((infection & ~lungs).sum() / infection.sum())
    return measured


@dataclass(frozen=True, eq=False)
class Agreement:
    """Bias and limits of agreement of two measurements of the same images (Bland and Altman, Lancet 1986).

    Limits rest on differences that are spread normally. Where they are skewed, or so few patients cannot show whether
    they are, the limits have no interval, and quantiles tell where the differences lie.

    Attributes:
        bias: Mean of the differences, predicted less read.
        lower: 1.96 standard deviations of the differences below the bias; NaN of a single image.
        upper: As much above it.
        lower_quantile: The quantile of 2.5 % of the differences, whatever their shape.
        upper_quantile: The quantile of 97.5 %.
        expected: Between which ends 95 % of further differences are expected if they are spread normally: the
            small-sample limits, farther out than the others by what so few patients leave open (Carkeet 2015); NaN of
            one patient.
        skewed: Whether the differences are clearly skewed.
        predicted: The images that count: one number each.
        read: The same by the reader.

    Example:
        ```python
        import numpy as np
        from covidcxr.evaluation.metrics.agreement import limits_of_agreement

        read = np.linspace(0, 0.5, 10)
        agreement = limits_of_agreement(read + 0.1, read, patient_ids=range(10), resamples=20)
        assert abs(agreement.bias.value - 0.1) < 1e-9
        ```
    """

    bias: Estimate
    lower: Estimate
    upper: Estimate
    predicted: Float[np.ndarray, " images"] = field(repr=False)
    read: Float[np.ndarray, " images"] = field(repr=False)
    lower_quantile: Estimate
    upper_quantile: Estimate
    expected: tuple[float, float]
    skewed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return bias and limits."""
        names = ("bias", "lower", "upper", "lower_quantile", "upper_quantile")
        expected = [None if math.isnan(end) else end for end in self.expected]
        return {name: getattr(self, name).to_dict() for name in names} | {"expected": expected, "skewed": self.skewed}


def limits_of_agreement(
    predicted: Float[np.ndarray, " images"],
    read: Float[np.ndarray, " images"],
    patient_ids: PatientIds,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Agreement:
    """Compare two measurements of the same images (Bland and Altman, Lancet 1986).

    The spread is that of images; intervals count patients.

    Args:
        predicted: One number an image; NaN = not measured: the image does not count.
        read: The same by the reader.
        patient_ids: Patient of each image; None or NaN = unknown, taken as a patient of its own.
        resamples: Not used: no interval is resampled.
        seed: Not used.
        confidence: Nominal coverage of the intervals.

    Returns:
        Bias and limits of agreement with their intervals.

    Raises:
        ConfigError: If lengths differ, or no image has both numbers.
    """
    check_length(len(predicted), patient_ids)
    check_length(len(read), patient_ids)
    differences = predicted - read
    known = ~np.isnan(differences)
    if not known.any():
        raise ConfigError("No image has both numbers, predicted and read: there is nothing to compare.")
    differences, patient = differences[known], number_patients(patient_ids)[known]
    images, patients = len(differences), len(np.unique(patient))
    clusters = Clusters.count(patient, [np.ones(images, bool)])
    bias, spread = float(differences.mean()), float(differences.std(ddof=1)) if images > 1 else math.nan
    around, skewed = mean_interval(differences, patient, confidence), _is_skewed(differences, clusters)
    reach = _reaches(differences, patient, clusters, confidence)
    ends = [_limit_interval(around, skewed, clusters, bias, end * REACH * spread, reach) for end in (-1, 1)]

    def estimate(value: float, interval: Interval) -> Estimate:
        return Estimate(value, interval.low, interval.high, images, patients, interval.note)

    def quantile(level: float) -> Estimate:
        value = float(np.quantile(differences, level, method="inverted_cdf"))
        return estimate(value, quantile_interval(differences, patient, level, confidence))

    further = _further(spread, clusters)
    return Agreement(
        bias=estimate(bias, around),
        lower=estimate(bias - REACH * spread, ends[0]),
        upper=estimate(bias + REACH * spread, ends[1]),
        predicted=predicted[known],
        read=read[known],
        lower_quantile=quantile(0.025),
        upper_quantile=quantile(0.975),
        expected=(bias - further, bias + further),
        skewed=skewed,
    )


def _further(spread: float, clusters: Clusters) -> float:
    """Return how far from the bias 95 % of further differences are expected."""
    if not clusters.freedom:
        return math.nan
    return clusters.student(0.95) * spread * math.sqrt(1 + 1 / clusters.patients)


def _limit_interval(
    around: Interval, skewed: bool, clusters: Clusters, bias: float, distance: float, reach: tuple[float, float]
) -> Interval:
    """Put the intervals of the bias and of a limit's distance from it together (MOVER; Zou 2013)."""
    if not clusters.freedom:
        return around
    if skewed or round(clusters.patients) < LEAST_OF_LIMITS:
        return Interval(note=SKEWED if skewed else FEW)
    below, above, limit = bias - around.low, around.high - bias, bias + distance
    down, up = reach if distance > 0 else reach[::-1]
    return Interval(limit - math.hypot(below, down), limit + math.hypot(above, up))


def _is_skewed(differences: np.ndarray, clusters: Clusters) -> bool:
    """Whether the skewness is above what one in ten normal samples shows (Fisher 1930)."""
    centred = differences - differences.mean()
    variance = float((centred**2).mean())
    if not variance or not clusters.freedom:
        return False
    # Of images that are alike by half, three of a patient say as much as two.
    return bool(abs(float((centred**3).mean())) / variance**1.5 > 1.64 * math.sqrt(4 / clusters.patients))


def _reaches(
    differences: np.ndarray, patient: np.ndarray, clusters: Clusters, confidence: float
) -> tuple[float, float]:
    """Return how far the distance of a limit from the bias may lie below and above its estimate."""
    from scipy.special import chdtri

    images = len(differences)
    if not clusters.freedom:
        return math.nan, math.nan
    squares = np.square(differences - differences.mean())
    variance = float(squares.sum() / max(1, images - 1))
    moved = np.bincount(patient, squares - squares.mean()) / images
    spread = float((moved**2).sum()) * clusters.correction
    freedom = min(2 * variance**2 / spread, images - 1) if spread else images - 1
    tail, middle = (1 - confidence) / 2, REACH * math.sqrt(variance)
    low, high = (middle * math.sqrt(freedom / chdtri(freedom, part)) for part in (tail, 1 - tail))
    return middle - low, high - middle


def _lungs(masks: Mapping[str, Bool[np.ndarray, "height width"]]) -> Bool[np.ndarray, "height width"] | None:
    """Return the lung fields where they are known, else the whole lungs; None if there are none worth the name."""
    for name in LUNGS_OF_REGION["lungs"]:
        if name in masks and lung_reasons(masks[name]) != ("lungs-not-found",):
            return masks[name]
    return None


def _thirds(lung: Bool[np.ndarray, "height width"]) -> list[Bool[np.ndarray, "height width"]]:
    rows = np.flatnonzero(lung.any(1))
    if not len(rows):
        return [lung, lung, lung]
    # A row belongs to the third in which its middle lies.
    thirds = np.floor((np.arange(len(lung)) + 0.5 - rows[0]) * 3 / (rows[-1] + 1 - rows[0]))
    return [lung & (thirds == third)[:, None] for third in range(3)]
