"""Abstentions and net benefit: what an answer, or none, is worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate, bootstrap_many
from covidcxr.evaluation.metrics.operating_point import DecisionCurve, decision_curve
from covidcxr.evaluation.metrics.scores import LEAST, format_estimate, on_picture, scored_classes
from covidcxr.evaluation.metrics.weighted import weighted_mean
from covidcxr.evaluation.plots import COLORS, INK, as_picture, panels, plot_estimates
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.page import Block, Section, Table, Words, sections_of
from covidcxr.pipeline.prediction import in_words
from covidcxr.utils.plain import count_of, field_values, plain_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["DecisionCurves", "plot_decision_curves", "score_decisions", "Abstention", "score_abstention"]

SHOWN = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Thresholds of the table; the JSON has all."""


@dataclass(frozen=True)
class DecisionCurves:
    """Decision curves of a model.

    Attributes:
        curves: Of the positive class at the prevalence of the images and at each stated one; then of other classes.

    Example:
        ```python
        from covidcxr.evaluation.report import evaluate_rows

        rows = [{"image_id": f"{n}", "label": "ab"[n % 2], "probability_b": 0.2 + 0.5 * (n % 2)} for n in range(40)]
        result = evaluate_rows(rows, resamples=20, prevalence=0.1).parts["decisions"]
        assert [curve.prevalence for curve in result.curves] == [0.5, 0.1]
        ```
    """

    curves: tuple[DecisionCurve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers."""
        return {"curves": [curve.to_dict() for curve in self.curves]}


@sections_of.register
def _(result: DecisionCurves) -> list[Section]:
    blocks: list[Block] = [Words(_describe(curve)) for curve in result.curves]
    caption = (
        "The band is the 95 % interval at each threshold, over patients; dotted: treat everyone; the line at 0: no one"
    )
    blocks.append(as_picture(plot_decision_curves(result.curves), "Net benefit by threshold of each class", caption))
    for curve in result.curves:
        blocks.append(_table(curve))
    lead = (
        "Net benefit, for each 100 images: those treated that need it, less those treated in vain, which weigh "
        "t / (1 - t) where patients are treated from a probability of t up. A model is of use where it is above "
        "treating everyone and above treating no one (0). A threshold means what it says only if probabilities are "
        "calibrated, and intervals hold for each threshold by itself."
    )
    return [Section("Decision curves", lead, blocks)]


def _title(curve: DecisionCurve) -> str:
    return f"{curve.class_name}, prevalence {curve.prevalence:.1%}{'' if curve.stated else ' as in these images'}"


def _describe(curve: DecisionCurve) -> str:
    better = _words(curve.useful)
    better = f"clearly better than treating everyone and than treating no one at {better}" if better else ""
    worse = f"clearly worse than treating no one at {_words(curve.harmful)}" if curve.harmful else ""
    said = ", and ".join(filter(None, (better, worse))) or "at no threshold clearly better than both"
    return f"{_title(curve)}: the model is {said}."


def _words(runs: Sequence[tuple[float, float]]) -> str:
    return " and ".join(f"{low:g} to {high:g}" if low < high else f"{low:g}" for low, high in runs)


def _table(curve: DecisionCurve) -> Table:
    rows = [
        [f"{threshold:g}", *(format_estimate(estimate, digits=1, scale=100) for estimate in estimates)]
        for threshold, *estimates in zip(curve.thresholds, curve.net_benefit, curve.treat_all, curve.gain, strict=True)
        if threshold in SHOWN
    ]
    heads = ["threshold", "by the model", "treat everyone", "model less everyone"]
    return Table(heads, rows, f"Net benefit for each 100 images: {_title(curve)}")


def plot_decision_curves(curves: Sequence[DecisionCurve]) -> Figure:
    """Draw decision curves, a panel each: net benefit by threshold, with its interval.

    Args:
        curves: What `decision_curve` returned, one or more.

    Returns:
        The figure.

    Raises:
        ConfigError: If there is no curve.
    """
    if not curves:
        raise ConfigError("There is no decision curve to draw.")
    figure, axes = panels(len(curves), width=4.2, height=3.4, columns=2)
    for axis, curve in zip(axes, curves, strict=True):
        values, low, high = (
            [getattr(estimate, end) for estimate in curve.net_benefit] for end in ("value", "low", "high")
        )
        axis.fill_between(curve.thresholds, low, high, color=COLORS[0], alpha=0.2, linewidth=0)
        axis.plot(curve.thresholds, values, color=COLORS[0], label="by the model")
        everyone = [estimate.value for estimate in curve.treat_all]
        axis.plot(curve.thresholds, everyone, color=INK, linewidth=1, linestyle=":", label="treat everyone")
        axis.axhline(0, color=INK, linewidth=1, label="treat no one")
        top = max([curve.prevalence, *(end for end in high if not math.isnan(end))])
        axis.set(xlabel="threshold: treat from this probability up", ylabel="net benefit, per image")
        axis.set(xlim=(0, 1), ylim=(-0.25 * top, 1.08 * top))
        axis.set_title(f"{on_picture(curve.class_name)}, prevalence {curve.prevalence:.1%}", fontsize=9, color=INK)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def score_decisions(
    predictions: PredictionTable, *, positive: int | None = None, prevalences: Sequence[float] = ()
) -> DecisionCurves | None:
    """Measure the decision curve of each class against the rest, and of the positive class at stated prevalences.

    Args:
        predictions: The images.
        positive: Number of the positive class; None = there is none.
        prevalences: Shares of positive patients in places of use, each in (0, 1).

    Returns:
        None where no class has 10 patients with it and 10 without.

    Raises:
        ConfigError: If a prevalence is out of range.
    """
    predictions = predictions.scored
    if not len(predictions):
        return None
    classes = scored_classes(predictions, positive)
    classes.sort(key=lambda number: number != positive)
    curves = []
    for number in classes:
        truth = predictions.truths[:, number]
        if min(predictions.number_of(truth == kind) for kind in (0, 1)) >= LEAST:
            stated = prevalences if number == positive else ()
            name = predictions.classes[number]
            curves += [decision_curve(predictions, name, prevalence=share) for share in (None, *stated)]
    return DecisionCurves(tuple(curves)) if curves else None


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
