"""How often a pipeline abstains and is right, and whether its plausible classes hold the truth as promised."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.scores import format_estimate
from covidcxr.evaluation.metrics.weighted import weighted_mean
from covidcxr.evaluation.plots import as_picture, plot_estimates
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.page import Section, Table, Words, sections_of
from covidcxr.pipeline.prediction import in_words
from covidcxr.utils.plain import count_of, field_values, plain_result

__all__ = ["Abstention", "score_abstention"]

_TITLES = {
    "answered": "share of images with a prediction",
    "right": "right among these",
    "right_if_forced": "right if it never abstained",
    "covered": "the true class is among the plausible ones",
}


@dataclass(frozen=True)
class Abstention:
    """How often a pipeline abstains, and how often it is right.

    Attributes:
        images: Number of images.
        scores: `answered` (share), and of labelled images `right` (share of right predictions where there is one),
            `right_if_forced` (the most probable class), `covered` (the true class is among the plausible ones), and
            that of each class (`covered_CLASS`) and each source (`covered_source_SOURCE`).
        reasons: Why it abstained, and for how many images.
        errors: Images that could not be read, with the reason.
        coverage: How often the plausible classes shall hold the truth, as the model promises; None = not known.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"label": "b", "probability_b": 0.9, "answer": "b" * (n % 4 > 0)} for n in range(20)]
        result = evaluate_rows(rows, resamples=20).parts["answers"]
        assert result.scores["answered"].value == 0.75
        ```
    """

    images: int
    scores: Mapping[str, Estimate]
    reasons: Mapping[str, int]
    errors: Mapping[str, str]
    coverage: float | None = None

    @property
    def broken(self) -> dict[str, Estimate]:
        """For whom the promise is not kept: the whole interval lies below it."""
        wanted = self.coverage
        return {} if wanted is None else {whom: kept for whom, kept in self.kept.items() if kept.high < wanted}

    @property
    def kept(self) -> dict[str, Estimate]:
        """How often the plausible classes hold the truth, for all images, each class and each source."""
        prefix = "covered_source_"
        names = {
            "covered": "all images",
            **{n: f"source {n.removeprefix(prefix)}" for n in self.scores if n.startswith(prefix)},
        }
        classes = {n: n.removeprefix("covered_") for n in self.scores if n.startswith("covered_") and n not in names}
        names = {"covered": names.pop("covered"), **classes, **names}
        return {words: self.scores[name] for name, words in names.items() if name in self.scores}

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {name: plain_result(value) for name, value in field_values(self).items()}


@sections_of.register
def _(result: Abstention) -> list[Section]:
    shown = {words: result.scores[name] for name, words in _TITLES.items()}
    blocks: list[Any] = [as_picture(plot_estimates(shown), "How often it gives a class and how often that is right")]
    if result.reasons:
        rows = [(_sentence(reason), str(count)) for reason, count in result.reasons.items()]
        blocks.append(Table(["why it abstained", "images"], rows))
    blocks += [Words(f"{image}: {error}", warning=True) for image, error in list(result.errors.items())[:5]]
    if len(result.errors) > 5:
        blocks.append(Words(f"{len(result.errors) - 5} more images could not be read; report.json lists them."))
    sections = [Section("Abstention", f"Of {count_of(result.images, 'image')}.", blocks)]
    return [*sections, _coverage(result)] if len(result.kept) > 1 else sections


def _coverage(result: Abstention) -> Section:
    """Show for whom the plausible classes hold the truth as often as promised."""
    wanted = result.coverage
    rows = [
        [
            whom,
            format_estimate(kept),
            f"{kept.count} ({kept.patients})",
            *([] if wanted is None else [_is_kept(kept, wanted)]),
        ]
        for whom, kept in result.kept.items()
    ]
    columns = ["images of", "the plausible classes hold the truth", "images (patients)"]
    if wanted is None:
        return Section("Coverage", "The model promises no coverage.", [Table(columns, rows)])
    lead = f"The model promises that its plausible classes hold the truth of {wanted:.0%} of the images."
    return Section("Coverage", lead, [Table([*columns, "promise kept?"], rows)])


def _is_kept(kept: Estimate, wanted: float) -> str:
    if math.isnan(kept.value):
        return ""
    return "no" if kept.high < wanted else "yes" if kept.value >= wanted else "not refuted"


def score_abstention(
    predictions: PredictionTable, *, coverage: float | None = None, resamples: int = 1000, seed: int = 0
) -> Abstention | None:
    """Score how often a pipeline abstains, and how often it is right.

    Args:
        predictions: Rows of `pipeline_rows`, with `answer`, `plausible` and `reasons`.
        coverage: How often the plausible classes shall hold the truth, as the model promises; None = not known.
        resamples: How often to resample patients.
        seed: Same seed, same intervals.

    Returns:
        The shares; None where rows have no column `answer`.
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
    parts = {f"covered_{name}": truth == name for name in predictions.classes}
    parts |= {f"covered_source_{name}": images for name, images in predictions.groups("source").items()}
    values |= {name: np.where(labelled & part, covered, np.nan) for name, part in parts.items()}
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
    return Abstention(len(predictions), scores, dict(reasons.most_common()), errors, coverage)


def _sentence(reason: str) -> str:
    return "The image cannot be read." if reason == "cannot-be-read" else in_words(reason)
