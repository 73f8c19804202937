"""ROC and precision-recall curves side by side, with an operating point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from covidcxr.evaluation.answers import Answers
from covidcxr.evaluation.plots import COLORS, INK, LINE, panels
from covidcxr.evaluation.report.chief import on_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]


def plot_curves(
    answers: Answers, classes: Sequence[int], point: tuple[float, float, float] | None = None
) -> Figure | None:
    """Draw the curves of classes, each against the rest.

    Args:
        answers: The films.
        classes: Numbers of the classes to draw; those without films of both kinds are left out.
        point: Specificity, sensitivity and precision at an operating point, which is marked.

    Returns:
        None if there is nothing to draw.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    kept = [(c, known) for c in classes if (known := _both_kinds(answers, c)) is not None]
    if not kept:
        return None
    figure, (left, right) = panels(2, width=4.2, height=3.8)
    left.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    for number, (c, known) in enumerate(kept):
        truth, score = answers.truths[known, c] == 1, answers.probabilities[known, c]
        color = COLORS[number % len(COLORS)]
        alarms, hits, _ = roc_curve(truth, score)
        left.plot(alarms, hits, color=color, label=on_picture(answers.classes[c]))
        precision, recall, _ = precision_recall_curve(truth, score)
        recall, precision = recall[:-1], precision[:-1]  # the last is a point that no threshold gives
        right.step(recall, precision, color=color, where="post")
        right.axhline(truth.mean(), color=color, linewidth=0.8, linestyle=":")
    if point is not None:
        specificity, sensitivity, precise = point
        left.plot(
            1 - specificity, sensitivity, "x", color=INK, markersize=9, markeredgewidth=2, label="operating point"
        )
        right.plot(sensitivity, precise, "x", color=INK, markersize=9, markeredgewidth=2)
    left.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    right.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    left.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _both_kinds(answers: Answers, c: int) -> np.ndarray | None:
    known: np.ndarray = ~np.isnan(answers.truths[:, c]) & ~np.isnan(answers.probabilities[:, c])
    truth = answers.truths[known, c]
    return known if 0 < truth.sum() < len(truth) else None
