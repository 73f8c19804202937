"""Scores of masks, image by image and as means, and how far infected fractions agree with those of readers.

Infected fractions are measured within the same lungs for both: those of the reader where there are any, else those of
the pipeline. So what differs is the infection, not the lungs. What lies outside of them does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, PatientIds, Statistics, bootstrap_many, check_length
from covidcxr.evaluation.metrics.weighted import ratio, weighted_mean
from covidcxr.transforms.geometry import LUNGS_OF_REGION
from covidcxr.transforms.postprocess import lung_reasons, lung_sides

__all__ = [
    "dice_score",
    "iou_score",
    "mask_statistics",
    "precision_score",
    "recall_score",
    "segmentation_metrics",
    "PLACES",
    "SEVERITIES",
    "Agreement",
    "image_agreement",
    "infected_fractions",
    "limits_of_agreement",
]


def segmentation_metrics(
    scores: Mapping[str, Float[np.ndarray, " images"]],
    patient_ids: PatientIds,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Average scores of masks over images.

    Args:
        scores: By name (`"dice_lung"`), one score an image; NaN = the true mask is unknown: the image does not count.
        patient_ids: Patient of each image; None or NaN = unknown, taken as a patient of its own.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
        confidence: Nominal coverage of the intervals.

    Returns:
        Means over images, under the names of `scores`.

    Raises:
        ConfigError: If lengths differ or there are no images.
    """
    for values in scores.values():
        check_length(len(values), patient_ids)
    return mask_statistics(scores).estimate(patient_ids, resamples, seed, confidence)


def mask_statistics(scores: Mapping[str, Float[np.ndarray, " images"]]) -> Statistics:
    """Prepare the means of `segmentation_metrics`, for weights that are not known yet.

    Args:
        scores: By name ("dice_lung"), one score an image; NaN = the true mask is unknown.

    Returns:
        The means as functions of weights.
    """

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: weighted_mean(weights, values) for name, values in scores.items()}

    return Statistics(compute, {name: ~np.isnan(values) for name, values in scores.items()})


def dice_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Compute twice the overlap over the sum of areas (Dice 1945).

    Args:
        mask: The predicted mask.
        target: The true mask.

    Returns:
        Dice in [0, 1]; 1 if both are empty.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, drawn, true = _areas(mask, target)
    return 2 * both / (drawn + true) if drawn + true else 1.0


def iou_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Compute intersection over union (Jaccard 1912).

    Args:
        mask: The predicted mask.
        target: The true mask.

    Returns:
        IoU in [0, 1]; 1 if both are empty.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, drawn, true = _areas(mask, target)
    return both / (drawn + true - both) if drawn + true else 1.0


def precision_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Compute the share of the predicted mask that is true.

    Args:
        mask: The predicted mask.
        target: The true mask.

    Returns:
        Precision in [0, 1]; 1 if the predicted mask is empty: nothing in it is false.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, drawn, _ = _areas(mask, target)
    return both / drawn if drawn else 1.0


def recall_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Compute the share of the true mask that is predicted.

    Args:
        mask: The predicted mask.
        target: The true mask.

    Returns:
        Recall in [0, 1]; 1 if the true mask is empty: nothing is missed.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, _, true = _areas(mask, target)
    return both / true if true else 1.0


def _areas(mask: np.ndarray, target: np.ndarray) -> tuple[int, int, int]:
    """Return the pixels in both, in the mask and in the target."""
    if mask.shape != target.shape or mask.dtype != bool or target.dtype != bool:
        raise ConfigError(
            f"Masks to compare must be bool and of one shape, not {mask.dtype} {mask.shape} and "
            f"{target.dtype} {target.shape}."
        )
    return int((mask & target).sum()), int(mask.sum()), int(target.sum())


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

    Attributes:
        bias: Mean of the differences, predicted less read.
        lower: 1.96 standard deviations of the differences below the bias; NaN of a single image.
        upper: As much above it.
        predicted: The images that count: one number each.
        read: The same by the reader.

    Example:
        ```python
        import numpy as np
        from covidcxr.evaluation.metrics.segmentation import limits_of_agreement

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

    def to_dict(self) -> dict[str, Any]:
        """Return bias and limits."""
        return {name: getattr(self, name).to_dict() for name in ("bias", "lower", "upper")}


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

    The spread is that of images. Intervals are resampled over patients, as in `bootstrap`.

    Args:
        predicted: One number an image; NaN = not measured: the image does not count.
        read: The same by the reader.
        patient_ids: Patient of each image; None or NaN = unknown, taken as a patient of its own.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
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
    middle = float(differences[known].mean())
    centred = differences - middle  # or small spreads around a large bias are lost in rounding

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        mean, square = weighted_mean(weights, centred), weighted_mean(weights, centred**2)
        images = weights @ known.astype(float)
        spread = REACH * np.sqrt(ratio((square - mean**2).clip(0) * images, images - 1))
        return {"bias": middle + mean, "lower": middle + mean - spread, "upper": middle + mean + spread}

    measured = bootstrap_many(
        compute,
        groups=patient_ids,
        images=dict.fromkeys(("bias", "lower", "upper"), known),
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )
    return Agreement(**measured, predicted=predicted[known], read=read[known])


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
