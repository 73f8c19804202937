"""Decision curves in a report: at which thresholds is acting on the model better than treating everyone, or no one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.decision_curve import DecisionCurve, decision_curve
from covidcxr.evaluation.metrics.scores import format_estimate, on_picture
from covidcxr.evaluation.plots import COLORS, INK, as_picture, panels
from covidcxr.evaluation.predictions.predictions import PredictionTable
from covidcxr.evaluation.report.headline import LEAST, scored_classes
from covidcxr.page import Block, Section, Table, Words, sections_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DecisionCurves", "plot_decision_curves", "score_decisions"]

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
