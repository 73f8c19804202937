"""Scores of masks: image by image, and their means with patient-clustered intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, PatientIds, check_length
from covidcxr.evaluation.metrics.classification import Statistics
from covidcxr.evaluation.metrics.weighted import weighted_mean

__all__ = ["dice_score", "iou_score", "mask_statistics", "precision_score", "recall_score", "segmentation_metrics"]


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
    """Prepare the means of `segmentation_metrics`, which says more."""

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: weighted_mean(weights, values) for name, values in scores.items()}

    return Statistics(compute, {name: ~np.isnan(values) for name, values in scores.items()})


def dice_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Return twice the overlap over the sum of areas, in [0, 1]; both empty is 1.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, drawn, true = _areas(mask, target)
    return 2 * both / (drawn + true) if drawn + true else 1.0


def iou_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Return intersection over union, in [0, 1]; both empty is 1.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, drawn, true = _areas(mask, target)
    return both / (drawn + true - both) if drawn + true else 1.0


def precision_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Return the share of the drawn mask that is true, in [0, 1]; of an empty mask it is 1: nothing drawn is false.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, drawn, _ = _areas(mask, target)
    return both / drawn if drawn else 1.0


def recall_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Return the share of the true mask that is drawn, in [0, 1]; of an empty truth it is 1: nothing is missed.

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
