"""Differences between two models on the same images, and between two groups of images, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import (
    Estimate,
    PatientIds,
    Statistics,
    bootstrap_many,
    check_length,
    number_patients,
)
from covidcxr.evaluation.metrics.segmentation import count_failures, mask_statistics
from covidcxr.evaluation.predictions import PredictionTable, Rows
from covidcxr.evaluation.predictions.table import answer_statistics

__all__ = ["compare_rows", "delong_test", "mcnemar_test", "significance", "subtract", "unpaired_difference"]


def compare_rows(
    rows: Rows, others: Rows, *, common: bool = False, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Compare two models on the same images: the paired difference of every score that both have.

    Images are matched by `image_id`. Both models are scored on the same resampled patients, so what makes an image hard
    for both of them cancels. The interval of a difference is made from those of both scores and their correlation
    (MOVER; Newcombe 1998; Zou and Donner 2008), so it has a width where both models are right on every image.

    Args:
        rows: Of the one model; see `score_rows`.
        others: Of the other one.
        common: Compare on the images that both have; else images that only one of them has are an error.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        Differences, the first model minus the second, under the names of the scores. Where the interval leaves out 0,
        the models differ on these images.

    Raises:
        ConfigError: If images are in one of them only or twice in one, their truths or the classes differ, or there is
            nothing that both were scored on.
    """
    first, second = PredictionTable.read(rows), PredictionTable.read(others)
    differences: dict[str, Estimate] = {}
    if first.classes and second.classes:
        matched, matched_other = _match(first.scored, second.scored, common)
        _check_truths(matched, matched_other)
        pair = answer_statistics(matched), answer_statistics(matched_other)
        differences |= subtract(*pair, matched.patients, resamples, seed)
    if first.masks and second.masks:
        matched, matched_other = _match(first, second, common)
        tables = [{**table, **count_failures(table)} for table in _known_to_both(matched.masks, matched_other.masks)]
        pair = mask_statistics(tables[0]), mask_statistics(tables[1])
        differences |= subtract(*pair, matched.patients, resamples, seed)
    if not differences:
        raise ConfigError("There is nothing to compare: the rows of the two models have no score in common.")
    return differences


def unpaired_difference(
    statistic: Callable[..., Float[np.ndarray, " resamples"]],
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    groups: tuple[PatientIds, PatientIds],
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    share: bool = False,
) -> Estimate:
    """Estimate how far a statistic of some images is above that of others: two hospitals, women and men, two views.

    Patients of both are drawn together; one who has images in both is drawn with all of them.

    Args:
        statistic: As for `bootstrap`.
        first: What the statistic takes besides weights, of the one group of images.
        second: The same of the other.
        groups: Patient of each image, of the one group and of the other; None or NaN = unknown.
        resamples: How often to resample.
        seed: Same seed, same interval.
        confidence: Nominal coverage of the interval, in (0, 1).
        share: The statistic is a share in [0, 1]; see `bootstrap`.

    Returns:
        The first minus the second.

    Raises:
        ConfigError: If there are no images, lengths differ, or a setting is out of range.
    """
    for values, ids in zip((first, second), groups, strict=True):
        for array in values:
            check_length(len(array), ids)
    images = len(groups[0])

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"0": statistic(weights[:, :images], *first), "1": statistic(weights[:, images:], *second)}

    all_groups = [*groups[0], *groups[1]]
    of_first = np.arange(len(all_groups)) < images
    estimates = bootstrap_many(
        compute,
        groups=all_groups,
        images={"0": of_first, "1": ~of_first},
        shares=("0", "1") if share else (),
        differences={"difference": ("0", "1")},
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )
    return estimates["difference"]


def significance(rows: Rows, others: Rows, *, common: bool = False) -> dict[str, float]:
    """Test whether two models differ on the same images: the tests that readers expect beside an interval.

    Args:
        rows: Of the one model; see `score_rows`.
        others: Of the other one.
        common: As for `compare_rows`.

    Returns:
        P values, two-sided and not corrected: of exclusive classes `accuracy` by McNemar's test, and `auroc_<class>` by
        DeLong's; empty without classes. Both count patients, not images.

    Raises:
        ConfigError: As `compare_rows`.
    """
    first, second = PredictionTable.read(rows), PredictionTable.read(others)
    if not first.classes or not second.classes:
        return {}
    first, second = _match(first.scored, second.scored, common)
    _check_truths(first, second)
    order = [second.classes.index(name) for name in first.classes]
    pair = first.probabilities, second.probabilities[:, order]
    values = {}
    if first.exclusive:
        ours, theirs = (probabilities.argmax(1) == first.labels for probabilities in pair)
        values["accuracy"] = mcnemar_test(ours, theirs, first.patients)
    for place, name in enumerate(first.classes):
        known = ~np.isnan(first.truths[:, place])
        left, right = (probabilities[known, place] for probabilities in pair)
        patients = [first.patients[image] for image in np.flatnonzero(known)]
        values[f"auroc_{name}"] = delong_test(left, right, first.truths[known, place] == 1, patients)
    return values


def mcnemar_test(
    first: Bool[np.ndarray, " images"], second: Bool[np.ndarray, " images"], patient_ids: PatientIds
) -> float:
    """Test whether two models are right equally often on the same images.

    McNemar's exact test (1947) where every patient has one image; else that of Durkalski (2003), in which each patient
    weighs the same.

    Args:
        first: Where the one model is right.
        second: Where the other one is.
        patient_ids: Patient of each image; None or NaN = unknown.

    Returns:
        The two-sided p value; 1 where the models never differ.
    """
    from scipy.stats import binomtest, chi2

    check_length(len(first), patient_ids)
    patient = number_patients(patient_ids)
    sizes = np.bincount(patient)
    gaps = np.bincount(patient, first.astype(float) - second) / sizes
    if not (first != second).any():
        return 1.0
    if sizes.max() == 1:
        return float(binomtest(int((first & ~second).sum()), int((first != second).sum())).pvalue)
    return float(chi2.sf(gaps.sum() ** 2 / np.square(gaps).sum(), 1)) if gaps.any() else 1.0


def delong_test(
    first: Float[np.ndarray, " images"],
    second: Float[np.ndarray, " images"],
    positive: Bool[np.ndarray, " images"],
    patient_ids: PatientIds,
) -> float:
    """Test whether two AUROCs of the same images are equal (DeLong 1988), counting patients (Obuchowski 1997).

    Args:
        first: Scores of the one model, higher = more likely positive.
        second: Those of the other.
        positive: Which images are positive.
        patient_ids: Patient of each image; None or NaN = unknown. With one image each this is DeLong's test.

    Returns:
        The two-sided p value; 1 where the models rank all images alike, NaN with fewer than two patients of a kind.
    """
    from scipy.stats import norm, rankdata

    check_length(len(first), patient_ids)
    patient = number_patients(patient_ids)
    placed = []  # how often each image stands on the right side of one of the other kind
    for scores in (first, second):
        own = np.empty(len(scores))
        for kind in (positive, ~positive):
            own[kind] = rankdata(scores[kind])
        share = (rankdata(scores) - own) / np.where(positive, (~positive).sum(), positive.sum())
        placed.append(np.where(positive, share, 1 - share))
    gap = placed[0] - placed[1]
    kinds, everyone = (positive, ~positive), int(patient.max()) + 1
    numbers = [len(np.unique(patient[kind])) for kind in kinds]
    if min(numbers) < 2:
        return math.nan
    sums = [np.bincount(patient[kind], gap[kind] - gap[kind].mean(), everyone) / kind.sum() for kind in kinds]
    variance = sum(number / (number - 1) * float(part @ part) for part, number in zip(sums, numbers, strict=True))
    variance += 2 * everyone / (everyone - 1) * float(sums[0] @ sums[1])
    difference = float(gap[positive].mean())
    if variance <= 0:
        return 1.0 if abs(difference) < 1e-12 else math.nan
    return float(2 * norm.sf(abs(difference) / math.sqrt(variance)))


def _match(first: PredictionTable, second: PredictionTable, common: bool) -> tuple[PredictionTable, PredictionTable]:
    """Return the same images of both, in the order of their ids."""
    places = [_places(first), _places(second)]
    shared = sorted(name for name in places[0] if name in places[1])
    alone = [len(matched) - len(shared) for matched in places]
    if any(alone) and not common:
        raise ConfigError(
            f"The models were not tested on the same images: {alone[0]} images have an answer of the first model only, "
            f"{alone[1]} of the second only. Compare on the {len(shared)} common ones with common=True."
        )
    if not shared:
        raise ConfigError("The two models were tested on different images: no image_id is in the rows of both.")
    matched, matched_other = (np.array([place[name] for name in shared]) for place in places)
    return first.take(matched), second.take(matched_other)


def _places(predictions: PredictionTable) -> dict[str, int]:
    return {str(row["image_id"]): place for place, row in enumerate(predictions.rows)}


def _check_truths(first: PredictionTable, second: PredictionTable) -> None:
    if set(first.classes) != set(second.classes) or first.exclusive != second.exclusive:
        raise ConfigError(
            f"The models know different classes, {list(first.classes)} and {list(second.classes)}: their scores are "
            f"not of the same thing."
        )
    order = [second.classes.index(name) for name in first.classes]
    differ = ~((first.truths == second.truths[:, order]) | np.isnan(first.truths) & np.isnan(second.truths[:, order]))
    if differ.any():
        raise ConfigError(f"{differ.any(1).sum()} images have another truth in the rows of the second model.")


def _known_to_both(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the scores that both models have, of the images for which both are known."""
    names = [name for name in first if name in second]
    known = {name: ~np.isnan(first[name]) & ~np.isnan(second[name]) for name in names}
    return [{name: np.where(known[name], table[name], np.nan) for name in names} for table in (first, second)]


def subtract(
    first: Statistics, second: Statistics, patients: PatientIds, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Estimate the differences of all scores that two models have, on the same resamples.

    Args:
        first: Scores of the one model.
        second: Scores of the other, on the same images.
        patients: Patient of each image.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        By name, the first minus the second.
    """
    pair = {"0 ": first, "1 ": second}

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {model + name: values for model, part in pair.items() for name, values in part.compute(weights).items()}

    def of_both(table: str) -> dict[str, Any]:
        return {model + name: entry for model, part in pair.items() for name, entry in getattr(part, table).items()}

    whole = np.ones((1, len(patients)))
    others = second.compute(whole)
    names = [name for name in first.compute(whole) if name in others]
    images = {name: first.images[name] | second.images[name] for name in names if name in first.images}
    estimates = bootstrap_many(
        compute,
        groups=patients,
        images=of_both("images") | images,
        shares=[model + name for model, part in pair.items() for name in part.shares],
        kinds=of_both("kinds"),
        intervals=of_both("intervals"),
        differences={name: (f"0 {name}", f"1 {name}") for name in names},
        resamples=resamples,
        seed=seed,
    )
    return {name: estimates[name] for name in names}
