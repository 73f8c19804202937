"""The few scores by which groups of images, models and shortcuts are compared, on any part of the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from covidcxr import aliases
from covidcxr.evaluation.metrics.weighted import Ranking, weighted_mean
from covidcxr.evaluation.predictions.predictions import PredictionTable

__all__ = ["LEAST", "Score", "scored_classes", "group_scores", "rank"]

__getattr__ = partial(aliases.find, __name__)

LEAST = 10
"""Patients of a kind below which a group's score is not shown: an interval of ten covers too little."""

Weights: TypeAlias = Float[np.ndarray, "resamples images"]


@dataclass(frozen=True)
class Score:
    """A score of any part of the images.

    Attributes:
        statistic: Weights [resamples, images] and the images that count -> one number a resample.
        kinds: The images of each kind that it needs: of an AUROC those with the class and those without.
        chance: What guessing scores; None = no such thing.

    Example:
        ```python
        import numpy as np
        from covidcxr.evaluation.predictions.predictions import PredictionTable
        from covidcxr.evaluation.report.headline import group_scores

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(20)]
        auroc = group_scores(PredictionTable.read(rows), positive=1)["auroc"]
        assert auroc.statistic(np.ones((1, 20)), np.ones(20, bool))[0] == 1
        ```
    """

    statistic: Callable[[Weights, Bool[np.ndarray, " images"]], Float[np.ndarray, " resamples"]] = field(repr=False)
    kinds: tuple[Bool[np.ndarray, " images"], ...] = field(repr=False)
    chance: float | None = None

    def too_few(self, predictions: PredictionTable, images: Bool[np.ndarray, " images"]) -> int | None:
        """Say whether a score rests on too few patients of a kind.

        Args:
            predictions: All images.
            images: Which of them count.

        Returns:
            The number of patients of the rarest kind, if it is below `LEAST`; else None.
        """
        least = min(predictions.number_of(images & kind) for kind in self.kinds)
        return least if least < LEAST else None


def group_scores(predictions: PredictionTable, positive: int | None = None) -> dict[str, Score]:
    """Choose the scores of groups: AUROC, rates of exclusive classes, and Dice of masks.

    Args:
        predictions: All images; those without label or answer count in no score of classes.
        positive: Number of the positive class; None = there is none.

    Returns:
        By name: `auroc`; of exclusive classes `accuracy`, and `sensitivity` and `specificity` of the positive class;
        `dice_MASK`.
    """
    scores: dict[str, Score] = {}
    known = ~np.isnan(predictions.truths) & ~np.isnan(predictions.probabilities)
    if predictions.classes and known.any():
        scores["auroc"] = _auroc(predictions, known, positive)
        if predictions.exclusive:
            scores |= _rates(predictions, known.all(1), positive)
    for name, values in predictions.masks.items():
        if name.startswith("dice_"):
            scores[name] = Score(_mean(values), (~np.isnan(values),))
    return scores


def scored_classes(predictions: PredictionTable, positive: int | None) -> list[int]:
    """Choose the classes that are scored against the rest; of two exclusive ones one says all.

    Args:
        predictions: The images.
        positive: Number of the positive class; None = there is none.

    Returns:
        Numbers of classes.
    """
    if predictions.exclusive and len(predictions.classes) == 2:
        return [1 if positive is None else positive]
    return list(range(len(predictions.classes)))


def _auroc(predictions: PredictionTable, known: np.ndarray, positive: int | None) -> Score:
    scored_columns = scored_classes(predictions, positive)
    kinds = [known[:, c] & (predictions.truths[:, c] == kind) for c in scored_columns for kind in (1, 0)]
    present = [kind for kind in kinds if kind.any()] or kinds

    ranked: dict[bytes, list[Ranking]] = {}  # images are sorted once, not once for every few resamples

    def statistic(weights: Weights, images: np.ndarray) -> np.ndarray:
        part = images.tobytes()
        if part not in ranked:
            defined = [c for c in scored_columns if _both(predictions.truths[images, c], known[images, c])]
            ranked[part] = [rank(predictions.probabilities[images, c], predictions.truths[images, c]) for c in defined]
        areas = [ranking.areas(weights[:, images])[0] for ranking in ranked[part]]
        return np.asarray(np.mean(areas, axis=0)) if areas else np.full(len(weights), np.nan)

    return Score(statistic, tuple(present), 0.5)


def _both(truth: np.ndarray, known: np.ndarray) -> bool:
    return bool((truth[known] == 1).any() and (truth[known] == 0).any())


def _rates(predictions: PredictionTable, known: np.ndarray, positive: int | None) -> dict[str, Score]:
    truth = predictions.truths.argmax(1)
    answer = np.nan_to_num(predictions.probabilities, nan=-1).argmax(1)
    scores = {"accuracy": Score(_mean(np.where(known, truth == answer, np.nan)), (known,))}
    if positive is not None:
        positives, predicted_positive = truth == positive, answer == positive
        scores["sensitivity"] = Score(
            _mean(np.where(known & positives, predicted_positive, np.nan)), (known & positives,)
        )
        scores["specificity"] = Score(
            _mean(np.where(known & ~positives, ~predicted_positive, np.nan)), (known & ~positives,)
        )
    return scores


def _mean(values: np.ndarray) -> Callable[[Weights, np.ndarray], np.ndarray]:
    def statistic(weights: Weights, images: np.ndarray) -> np.ndarray:
        return weighted_mean(weights[:, images], values[images])

    return statistic


def rank(score: Float[np.ndarray, " images"], truth: Float[np.ndarray, " images"]) -> Ranking:
    """Sort images for the AUROC of a class against the rest.

    Args:
        score: Probability of the class; NaN = unknown, left out.
        truth: 1, 0 or NaN = unknown, left out.

    Returns:
        The images in order.
    """
    return Ranking(np.where(np.isnan(truth), np.nan, score), truth == 1)
