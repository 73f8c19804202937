"""How often a pipeline could not say, why, and how good it is where it does say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.weighted import weighted_mean
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.evaluation.report.headline import plain
from covidcxr.page import Section, Table, Words, sections_of
from covidcxr.pipeline.prediction import in_words
from covidcxr.utils.plain import field_values

__all__ = ["Abstention", "score_abstention"]

_TITLES = {
    "answered": "share of images answered",
    "right": "right among those answered",
    "right_if_forced": "right if it always had to say",
    "covered": "the truth is among the plausible answers",
}


@dataclass(frozen=True)
class Abstention:
    """Answers and "cannot say".

    Attributes:
        images: Images that were asked about.
        scores: `answered` (share), and of labelled images `right` (share of right answers among those given),
            `right_if_forced` (the most probable class), `covered` (the truth is among the plausible answers).
        reasons: Why it could not say, and for how many images.
        errors: Images that could not be read, with the reason.
    """

    images: int
    scores: Mapping[str, Estimate]
    reasons: Mapping[str, int]
    errors: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain(value) for name, value in field_values(self).items()}


@sections_of.register
def _(result: Abstention) -> list[Section]:
    shown = {_TITLES[name]: estimate for name, estimate in result.scores.items()}
    blocks: list[Any] = [as_picture(plot_estimates(shown), "How often it answers and how often it is right")]
    if result.reasons:
        rows = [[_sentence(reason), str(count)] for reason, count in result.reasons.items()]
        blocks.append(Table(["why it could not say", "images"], rows))
    for image, error in list(result.errors.items())[:5]:
        blocks.append(Words(f"{image}: {error}", warning=True))
    if len(result.errors) > 5:
        blocks.append(Words(f"{len(result.errors) - 5} more images could not be read; report.json lists them."))
    return [Section("When it cannot say", f"Of {result.images} images that were asked about.", blocks)]


def score_abstention(predictions: PredictionTable, *, resamples: int = 1000, seed: int = 0) -> Abstention | None:
    """Score what a pipeline left open; None where the rows do not tell its answers.

    Args:
        predictions: Rows of `pipeline_rows`, with `answer`, `plausible` and `reasons`.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.
    """
    if not predictions.exclusive or not predictions.classes or not any("answer" in row for row in predictions.rows):
        return None
    answered = np.array([row.get("answer") or "" for row in predictions.rows])
    truth = np.array([str(row.get("label") or "") for row in predictions.rows])
    plausible = [set(str(row.get("plausible") or "").split(";")) for row in predictions.rows]
    likely = np.array(predictions.classes)[np.nan_to_num(predictions.probabilities, nan=-1).argmax(1)]
    predicted = ~np.isnan(predictions.probabilities).any(1)
    labelled = (truth != "") & predicted
    covered = np.array([label in classes for label, classes in zip(truth.tolist(), plausible, strict=True)])
    values = {
        "answered": (answered != "").astype(float),
        "right": np.where(labelled & (answered != ""), answered == truth, np.nan),
        "right_if_forced": np.where(labelled, likely == truth, np.nan),
        "covered": np.where(labelled, covered, np.nan),
    }
    scores = bootstrap_many(
        lambda weights: {name: weighted_mean(weights, column) for name, column in values.items()},
        groups=predictions.patients,
        images={name: ~np.isnan(column) for name, column in values.items()},
        shares=tuple(values),
        resamples=resamples,
        seed=seed,
    )
    reasons = Counter(
        reason for row in predictions.rows for reason in str(row.get("reasons") or "").split(";") if reason
    )
    errors = {str(row["image_id"]): str(row["error"]) for row in predictions.rows if row.get("error")}
    return Abstention(len(predictions), scores, dict(reasons.most_common()), errors)


def _sentence(reason: str) -> str:
    return "The image cannot be read." if reason == "cannot-be-read" else in_words(reason)
