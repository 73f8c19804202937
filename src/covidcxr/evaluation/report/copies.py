"""Test images that have a copy in training: how many, and what a model scores without them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.scores import format_estimate
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.evaluation.report.headline import group_scores
from covidcxr.page import Block, Section, Words, sections_of
from covidcxr.utils.plain import count_of, plain_result

__all__ = ["CopyScores", "score_copies"]

_TITLES = {"all": "all images", "new": "without images that have a copy in training", "copied": "these images alone"}


@dataclass(frozen=True)
class CopyScores:
    """A model's AUROC with and without the images that have a copy among its training images.

    Attributes:
        images: Images with a label and a prediction.
        copied: Those of them with a copy in training.
        scores: AUROC of "all" images, of the "new" ones that have no such copy, and of those that are "copied".
        loss: AUROC of all images less that of the new ones, on the same resamples; None = no image is copied.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(40)]
        result = evaluate_rows(rows, copied=["0", "1"], resamples=20).parts["copies"]
        assert result.copied == 2 and result.scores["new"].count == 38
        ```
    """

    images: int
    copied: int
    scores: Mapping[str, Estimate]
    loss: Estimate | None

    @property
    def new(self) -> int:
        """Number of images without a copy in training."""
        return self.images - self.copied

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        values = {"images": self.images, "copied": self.copied, "scores": self.scores, "loss": self.loss}
        result: dict[str, Any] = plain_result(values)
        return result


@sections_of.register
def _(result: CopyScores) -> list[Section]:
    lead = f"{result.copied} of {count_of(result.images, 'test image')} have a copy among the training images."
    if not result.copied or result.loss is None:
        return [Section("Copies in training", lead)]
    change = f"AUROC with all images less that without: {format_estimate(result.loss, signed=True)}."
    blocks: list[Block] = [Words(f"A model that remembers an image is right on its copy. {change}", warning=True)]
    shown = {_TITLES[name]: estimate for name, estimate in result.scores.items()}
    figure = plot_estimates(shown, title="AUROC (0.5 = chance)", chance=0.5)
    blocks.append(as_picture(figure, "AUROC with and without the images that have a copy in training"))
    return [Section("Copies in training", lead, blocks)]


def score_copies(
    predictions: PredictionTable,
    copied: Collection[str],
    *,
    positive: int | None,
    resamples: int = 1000,
    seed: int = 0,
) -> CopyScores | None:
    """Score a classifier with and without the images that have a copy in training.

    Args:
        predictions: The images.
        copied: Ids of images with a copy among the training images.
        positive: Number of the positive class; None = there is none.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        None where there is no classifier, or no image has both a label and a prediction.
    """
    predictions = predictions.scored
    if not len(predictions) or not predictions.classes:
        return None
    ids = set(copied)
    known = np.array([row["image_id"] in ids for row in predictions.rows])
    parts = {"all": np.ones(len(predictions), bool), "new": ~known, "copied": known}
    if not known.any():
        parts = {"all": parts["all"]}
    auroc = group_scores(predictions, positive)["auroc"]

    def table(weights: np.ndarray) -> dict[str, np.ndarray]:
        numbers = {name: auroc.statistic(weights, images) for name, images in parts.items()}
        return numbers | ({"loss": numbers["all"] - numbers["new"]} if "new" in numbers else {})

    estimates = bootstrap_many(
        table,
        groups=predictions.patients,
        images=parts | {"loss": parts.get("new", parts["all"])},
        shares=tuple(parts),
        resamples=resamples,
        seed=seed,
    )
    scores = {name: estimates[name] for name in parts}
    return CopyScores(len(predictions), int(known.sum()), scores, estimates.get("loss"))
