"""Scores of masks, image by image and as means; what counts where a mask is empty follows Metrics Reloaded.

An image whose true mask is empty has no recall, and a Dice that says only whether anything was drawn: it counts in no
mean over images that have the structure, but in the share of false alarms on those that have not (Maier-Hein 2024). In
a table such an image has a Dice but no recall.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Integer

from covidcxr import aliases
from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, FindInterval, PatientIds, Statistics, check_length
from covidcxr.evaluation.metrics.intervals import Interval, mean_interval, quantile_interval, two_part_interval
from covidcxr.evaluation.metrics.weighted import weighted_mean, weighted_quantile

__all__ = [
    "FAILED",
    "count_failures",
    "dice_score",
    "iou_score",
    "lesion_scores",
    "mask_statistics",
    "of_structures",
    "precision_score",
    "recall_score",
    "segmentation_metrics",
]

__getattr__ = partial(aliases.find, __name__)

FAILED = 0.5
"""Dice below which a mask counts as a failure."""

LEAST_OVERLAP = 0.1
"""Share of its pixels from which a lesion counts as found, and a drawn one as true."""

_SHARES = ("failed_", "false_alarm_")
_NO_MEAN_DISTANCE = Interval(note="a few failures decide a mean of distances: see its median")


def segmentation_metrics(
    scores: Mapping[str, Float[np.ndarray, " images"]],
    patient_ids: PatientIds,
    *,
    failures: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Average scores of masks over images.

    A few failures decide a mean, and few patients may show none of them: so the interval of a mean of Dice holds what
    failures so many patients leave open, and is wide. What these images show more sharply stands beside it.

    Args:
        scores: By name (`"dice_lung"`), one score an image; NaN = the true mask is unknown: the image does not count.
        patient_ids: Patient of each image; None or NaN = unknown, taken as a patient of its own.
        failures: Add `failed_<mask>` (the share of images whose Dice is below 0.5), `rest_<mask>` (the mean Dice of the
            others), `median_<mask>` (the median Dice) and `median_hd95_<mask>`.
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
    scores = {**scores, **count_failures(scores)} if failures else scores
    return mask_statistics(scores).estimate(patient_ids, resamples, seed, confidence)


def count_failures(scores: Mapping[str, Float[np.ndarray, " images"]]) -> dict[str, Float[np.ndarray, " images"]]:
    """Tell failures apart from other images, by their Dice.

    Args:
        scores: By name ("dice_lung"), one score an image; NaN = the true mask is unknown.

    Returns:
        `failed_<mask>`, `rest_<mask>`, `median_<mask>` and `median_hd95_<mask>`, see `segmentation_metrics`: what
        `mask_statistics` takes.
    """
    columns = {}
    for name, dice in scores.items():
        mask = name.removeprefix("dice_")
        if mask != name:
            columns[f"failed_{mask}"] = np.where(np.isnan(dice), np.nan, dice < FAILED)
            columns[f"rest_{mask}"] = np.where(dice >= FAILED, dice, np.nan)
            columns[f"median_{mask}"] = dice
            if f"hd95_{mask}" in scores:
                columns[f"median_hd95_{mask}"] = scores[f"hd95_{mask}"]
    return columns


def of_structures(scores: Mapping[str, Float[np.ndarray, " images"]]) -> dict[str, Float[np.ndarray, " images"]]:
    """Leave images without a structure out of its scores, and count false alarms on them.

    Args:
        scores: By name, one score an image; NaN = not known. An image that has a Dice but no recall is one whose true
            mask is empty.

    Returns:
        The scores of images that have the structure, and `false_alarm_<mask>`: of the others, whether anything was
        drawn (1 or 0); absent where every image has the structure.
    """
    columns = dict(scores)
    for name, recall in scores.items():
        mask = name.removeprefix("recall_")
        dice = scores.get(f"dice_{mask}")
        if mask == name or dice is None or not (absent := np.isnan(recall) & ~np.isnan(dice)).any():
            continue
        own = [
            kind for kind in scores if kind.endswith(f"_{mask}") and kind.removesuffix(f"_{mask}") in _OF_A_STRUCTURE
        ]
        columns |= {kind: np.where(absent, np.nan, scores[kind]) for kind in own}
        columns[f"false_alarm_{mask}"] = np.where(absent, dice < 1, np.nan)
    return columns


_OF_A_STRUCTURE = ("dice", "iou", "precision", "hd95", "nsd", "lesion_sensitivity")


def mask_statistics(scores: Mapping[str, Float[np.ndarray, " images"]]) -> Statistics:
    """Prepare the means of `segmentation_metrics`, for weights that are not known yet.

    Args:
        scores: By name ("dice_lung"), one score an image; NaN = the true mask is unknown.

    Returns:
        The means as functions of weights.
    """

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: _average(name, weights, values) for name, values in scores.items()}

    shares = [name for name in scores if name.startswith(_SHARES)]
    intervals = {name: _interval_of(name, scores) for name in scores if name not in shares}
    return Statistics(compute, {name: ~np.isnan(values) for name, values in scores.items()}, shares, {}, intervals)


def _average(name: str, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return weighted_quantile(weights, values, 0.5) if name.startswith("median_") else weighted_mean(weights, values)


def _interval_of(name: str, scores: Mapping[str, np.ndarray]) -> FindInterval:
    values = scores[name]
    if name.startswith("median_"):
        return lambda patient, confidence: quantile_interval(values, patient, 0.5, confidence)
    if name.startswith("rest_"):
        return lambda patient, confidence: mean_interval(values, patient, confidence).clip(FAILED, 1)
    if name.startswith("hd95_"):
        return lambda patient, confidence: _NO_MEAN_DISTANCE
    if name.startswith("false_lesions_"):
        return partial(_two_parts, values, values > 0, worst=1.0, most=np.inf)
    dice = scores.get(f"dice_{name.partition('_')[2]}", values)
    return partial(_two_parts, values, (values if np.isnan(dice).all() else dice) < FAILED)


def _two_parts(
    values: np.ndarray,
    failed: np.ndarray,
    patient: Integer[np.ndarray, " images"],
    confidence: float,
    worst: float = 0.0,
    most: float = 1.0,
) -> Interval:
    return two_part_interval(values, failed, patient, confidence, worst).clip(0, most)


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
        Precision in [0, 1]; 0 if only the predicted mask is empty, NaN if both are.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, drawn, true = _areas(mask, target)
    return both / drawn if drawn else 0.0 if true else math.nan


def recall_score(mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]) -> float:
    """Compute the share of the true mask that is predicted.

    Args:
        mask: The predicted mask.
        target: The true mask.

    Returns:
        Recall in [0, 1]; NaN if the true mask is empty.

    Raises:
        ConfigError: If shapes differ or an array is not bool (probabilities must be thresholded first).
    """
    both, _, true = _areas(mask, target)
    return both / true if true else math.nan


def lesion_scores(
    mask: Bool[np.ndarray, "height width"], target: Bool[np.ndarray, "height width"]
) -> tuple[float, int]:
    """Compare masks lesion by lesion; a lesion is what hangs together, at edges or corners of pixels.

    Args:
        mask: The predicted mask.
        target: The true mask.

    Returns:
        The share of true lesions that are found, of which a tenth or more is drawn, NaN if there are none; and the
        number of false lesions, of which less than a tenth is true.

    Raises:
        ConfigError: If shapes differ or an array is not bool.
    """
    from scipy.ndimage import label

    _areas(mask, target)
    corners = np.ones((3, 3))  # lesions that touch at a corner are one
    detected, true = (
        np.bincount(lesions.ravel(), counterpart.ravel())[1:] / np.bincount(lesions.ravel())[1:] >= LEAST_OVERLAP
        for lesions, counterpart in ((label(target, corners)[0], mask), (label(mask, corners)[0], target))
    )
    return float(detected.mean()) if len(detected) else math.nan, int((~true).sum())


def _areas(mask: np.ndarray, target: np.ndarray) -> tuple[int, int, int]:
    """Return the pixels in both, in the mask and in the target."""
    if mask.shape != target.shape or mask.dtype != bool or target.dtype != bool:
        raise ConfigError(
            f"Masks to compare must be bool and of one shape, not {mask.dtype} {mask.shape} and "
            f"{target.dtype} {target.shape}."
        )
    return int((mask & target).sum()), int(mask.sum()), int(target.sum())
