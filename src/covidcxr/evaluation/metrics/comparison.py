"""Differences between two models on the same images, and between two groups of images, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, PatientIds, Statistics, bootstrap, check_length
from covidcxr.evaluation.metrics.segmentation import mask_statistics
from covidcxr.evaluation.predictions.predictions import PredictionTable, Rows
from covidcxr.evaluation.predictions.table import answer_statistics

__all__ = ["compare_rows", "unpaired_difference"]


def compare_rows(
    rows: Rows, others: Rows, *, common: bool = False, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Compare two models on the same images: the paired difference of every score that both have.

    Images are matched by `image_id`. Both models are scored on the same resampled patients, so what makes an image hard
    for both of them cancels: the interval is narrower than that of either score.

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
        differences |= _subtract(answer_statistics(matched), answer_statistics(matched_other)).estimate(
            matched.patients, resamples, seed
        )
    if first.masks and second.masks:
        matched, matched_other = _match(first, second, common)
        gaps = {
            name: values - matched_other.masks[name]
            for name, values in matched.masks.items()
            if name in matched_other.masks
        }
        differences |= mask_statistics(gaps).estimate(matched.patients, resamples, seed)
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

    Returns:
        The first minus the second.

    Raises:
        ConfigError: If there are no images, lengths differ, or a setting is out of range.
    """
    for values, ids in zip((first, second), groups, strict=True):
        for array in values:
            check_length(len(array), ids)
    images = len(groups[0])

    def difference(weights: np.ndarray) -> np.ndarray:
        gap: np.ndarray = statistic(weights[:, :images], *first) - statistic(weights[:, images:], *second)
        return gap

    all_groups = [*groups[0], *groups[1]]
    return bootstrap(difference, groups=all_groups, resamples=resamples, seed=seed, confidence=confidence)


def _match(first: PredictionTable, second: PredictionTable, common: bool) -> tuple[PredictionTable, PredictionTable]:
    """Return the same images of both, in the order of the first."""
    places = [_places(first), _places(second)]
    shared = [name for name in places[0] if name in places[1]]
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
    names = [row.get("image_id") for row in predictions.rows]
    if None in names:
        raise ConfigError("Images are matched by image_id, which some rows lack.")
    places = {str(name): place for place, name in enumerate(names)}
    if len(places) < len(names):
        raise ConfigError(f"{len(names) - len(places)} images are in the rows of one model more than once.")
    return places


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


def _subtract(first: Statistics, second: Statistics) -> Statistics:
    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        matched, matched_other = first.compute(weights), second.compute(weights)
        return {name: values - matched_other[name] for name, values in matched.items() if name in matched_other}

    images = {name: images | second.images[name] for name, images in first.images.items() if name in second.images}
    return Statistics(compute, images)
