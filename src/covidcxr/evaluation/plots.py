"""Pictures of trainings and scores; light, for print and page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.reliability import Reliability, measure_reliability
from covidcxr.evaluation.metrics.scores import on_picture, title
from covidcxr.evaluation.predictions import PredictionTable, Rows
from covidcxr.io.folders import replace_file
from covidcxr.page import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "as_picture",
    "draw_comparison",
    "draw_run",
    "panels",
    "plot_confusion",
    "plot_curves",
    "plot_estimates",
    "plot_history",
    "plot_panels",
    "plot_precision_recall",
    "plot_reliability",
    "plot_roc",
    "save_figure",
]

COLORS = ("#3b6fd4", "#d4663b", "#2f8f6b", "#8a5bc7", "#b08a1e", "#c2477f")
INK, LINE = "#1c2128", "#d5dae1"

_LOGGED = ("loss", "accuracy", "f1", "dice", "auroc")
"""The scores of an epoch that are drawn."""


def plot_history(*histories: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the learning curves of one or several trainings: the losses, and what else was logged.

    Args:
        *histories: What `fit` wrote as history.json: an entry an epoch, from "train/loss", ... to value.

    Returns:
        The figure, a panel for each score.

    Raises:
        ConfigError: If there is no epoch.
    """
    logged = {name for epochs in histories for entry in epochs for name in entry}
    scores = [score for score in _LOGGED if {f"train/{score}", f"val/{score}"} & logged]
    if not scores:
        raise ConfigError("There is no epoch to draw.")
    figure, axes = panels(len(scores), columns=3)
    width, alpha = (0.8, 0.7) if len(histories) > 1 else (1.6, 1.0)
    for axis, score in zip(axes, scores, strict=True):
        for stage, color in (("train", COLORS[0]), ("val", COLORS[1])):
            name = f"{stage}/{score}"
            for epochs in histories:
                points = [(entry["epoch"] + 1, entry[name]) for entry in epochs if entry.get(name) is not None]
                marker = "o" if len(points) < 10 else None  # a line through one point is not seen
                style: dict[str, Any] = {"linewidth": width, "alpha": alpha, "marker": marker, "markersize": 4}
                if points:
                    axis.plot(*zip(*points, strict=True), color=color, **style)
        axis.set(xlabel="epoch", title=title(score))
        axis.locator_params(axis="x", integer=True)
    for stage, color in (("training", COLORS[0]), ("validation", COLORS[1])):
        axes[0].plot([], [], color=color, label=stage)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def plot_confusion(rows: Rows) -> Figure:
    """Draw the confusion matrix of a classifier's most probable classes: shares of the true class, and images.

    Args:
        rows: Rows of exclusive classes; see `covidcxr.evaluation.score_rows`.

    Returns:
        The figure.

    Raises:
        ConfigError: If classes are not exclusive, or no image has both a label and probabilities.
    """
    predictions = _exclusive(rows)
    names = [on_picture(name) for name in predictions.classes]
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (predictions.labels, predictions.probabilities.argmax(1)), 1)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure, (axis,) = panels(1, width=1.2 + 1.1 * len(names), height=1.2 + 0.9 * len(names))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else INK
        text = f"{shares[row, column]:.0%}\n{count}"
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    axis.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted class", ylabel="true class")
    axis.set_xticklabels(names, rotation=20 if max(map(len, names)) > 9 else 0)
    axis.set_yticklabels(names)
    axis.grid(visible=False)
    return figure


def plot_roc(rows: Rows) -> Figure:
    """Draw a ROC curve for each class against the rest; of two classes one curve.

    Args:
        rows: Rows of exclusive classes; see `covidcxr.evaluation.score_rows`.

    Returns:
        The figure; classes without images, or with all of them, are left out.

    Raises:
        ConfigError: If classes are not exclusive, or no image has both a label and probabilities.
    """
    figure, (axis,) = panels(1, width=4.2, height=4)
    _draw_roc(axis, _curves(_exclusive(rows)))
    return figure


def plot_precision_recall(rows: Rows) -> Figure:
    """Draw a precision-recall curve for each class against the rest; the dotted line is what guessing gives.

    Args:
        rows: Rows of exclusive classes; see `covidcxr.evaluation.score_rows`.

    Returns:
        The figure; classes without images, or with all of them, are left out.

    Raises:
        ConfigError: If classes are not exclusive, or no image has both a label and probabilities.
    """
    figure, (axis,) = panels(1, width=4.2, height=4)
    _draw_precision_recall(axis, _curves(_exclusive(rows)))
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def plot_curves(
    predictions: PredictionTable, classes: Sequence[int], point: tuple[float, float, float] | None = None
) -> Figure | None:
    """Draw ROC and precision-recall curves of classes, each against the rest.

    Args:
        predictions: The images.
        classes: Numbers of the classes to draw; those without images of both kinds are left out.
        point: Specificity, sensitivity and precision at an operating point, which is marked.

    Returns:
        The figure; None if there is nothing to draw.
    """
    curves = _curves(predictions, classes)
    if not curves:
        return None
    figure, (left, right) = panels(2, width=4.2, height=3.8)
    _draw_roc(left, curves)
    _draw_precision_recall(right, curves)
    if point is not None:
        specificity, sensitivity, precision = point
        mark: dict[str, Any] = {"color": INK, "marker": "x", "markersize": 9, "markeredgewidth": 2, "linestyle": "none"}
        left.plot(1 - specificity, sensitivity, label="operating point", **mark)
        right.plot(sensitivity, precision, **mark)
        left.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def plot_reliability(rows: Rows | Reliability, class_name: str | None = None) -> Figure:
    """Draw a reliability diagram: how often what was given a probability came true, and how many images there are.

    Args:
        rows: A row an image, as for `measure_reliability`; or what that returned.
        class_name: Whose probability; None = that of each image's most probable class.

    Returns:
        The figure.
    """
    reliability = rows if isinstance(rows, Reliability) else measure_reliability(rows, class_name)
    # Bins that hold many of the images count; the others are pale.
    images = np.array([bin_.share.count for bin_ in reliability.bins])
    figure, (axis,) = panels(1, width=4.2, height=4)
    axis.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
    for bin_, part in zip(reliability.bins, images / images.sum(), strict=True):
        alpha = min(1.0, 0.3 + 7 * part)
        axis.bar(bin_.low, part, bin_.high - bin_.low, align="edge", color=LINE, edgecolor="white")
        axis.plot([bin_.confidence] * 2, [bin_.share.low, bin_.share.high], color=COLORS[0], linewidth=2, alpha=alpha)
        axis.plot(bin_.confidence, bin_.share.value, "o", color=COLORS[0], markersize=5, alpha=alpha)
    text = f"ECE {reliability.ece}\nBrier {reliability.brier}"
    axis.text(0.03, 0.97, text, va="top", fontsize=8, color=INK, bbox={"color": "white", "alpha": 0.8, "pad": 1})
    subject = "most probable class" if reliability.of == "the answer" else reliability.of
    axis.set(xlabel=f"probability of {subject}", ylabel="came true (grey: share of images)")
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    return figure


def plot_estimates(estimates: Mapping[str, Estimate], *, title: str = "", chance: float | None = None) -> Figure:
    """Draw scores with their intervals, one below the other.

    Args:
        estimates: By name; those that are not defined are left out.
        title: What the scores are.
        chance: Where a dotted line shows what guessing gives; None = no line.

    Returns:
        The figure, from 0 to 1, or as far as the intervals reach.
    """
    shown = {name: estimate for name, estimate in estimates.items() if not math.isnan(estimate.value)}
    figure, (axis,) = panels(1, width=6.4, height=0.9 + 0.3 * len(shown))
    if chance is not None:
        axis.axvline(chance, color=INK, linewidth=1, linestyle=":")
    _draw_estimates(axis, list(shown.values()), [f"{name}  ({estimate.count})" for name, estimate in shown.items()])
    ends = [end for estimate in shown.values() for end in (estimate.low, estimate.high) if not math.isnan(end)]
    axis.set(xlim=(min([-0.02, *ends]), max([1.02, *ends])))
    axis.set_title(title, fontsize=9, color=INK)
    axis.set_xlabel("value and 95 % interval over patients; in brackets the images", fontsize=8, color=INK)
    return figure


def plot_panels(rows: Mapping[str, Mapping[str, Estimate]], titles: Mapping[str, str]) -> Figure:
    """Draw several scores of several runs, changes or the like with their intervals, a panel for each score.

    Args:
        rows: From what is compared to its scores, by name.
        titles: Titles of the panels, by name of the score; a dotted line stands at 0 where the name ends in "_change".

    Returns:
        The figure.
    """
    figure, axes = panels(len(titles), width=2, height=0.9 + 0.25 * len(rows))
    for axis, (name, text) in zip(axes, titles.items(), strict=True):
        if name.endswith("_change"):
            axis.axvline(0, color=INK, linewidth=1, linestyle=":")
        _draw_estimates(axis, [scores.get(name) for scores in rows.values()], list(rows) if axis is axes[0] else [])
        axis.set(title=text)
    figure.supxlabel("value and 95 % interval over patients", fontsize=8, color=INK)
    return figure


def _draw_estimates(axis: Axes, estimates: Sequence[Estimate | None], names: Sequence[str]) -> None:
    """Draw values with their intervals, one below the other."""
    for place, estimate in enumerate(estimates):
        if estimate is not None and not math.isnan(estimate.value):
            axis.plot([estimate.low, estimate.high], [place, place], color=COLORS[0], linewidth=2)
            axis.plot(estimate.value, place, "o", color=COLORS[0], markersize=5)
    axis.set(ylim=(len(estimates) - 0.4, -0.6), yticks=range(len(estimates)))
    axis.set_yticklabels(names or [""] * len(estimates))
    axis.grid(visible=False, axis="y")


def draw_comparison(runs: Mapping[str, Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    """Draw the scores of several runs with their intervals, a panel for each score.

    Args:
        runs: From run to its scores, each as `Estimate.to_dict` returns it.
        names: The scores to draw.
        path: The PNG to write.
    """
    rows = {run: {name: Estimate.from_dict(score) for name, score in scores.items()} for run, scores in runs.items()}
    save_figure(plot_panels(rows, {name: title(name) for name in names}), path)


def draw_run(folder: Path) -> None:
    """Draw what a run left in its folder: learning curves, and for exclusive classes confusion, ROC and precision.

    Args:
        folder: Holds predictions.csv and, in `model/`, history.json; pictures are written beside them.
    """
    history = folder / "model" / "history.json"
    if history.is_file() and (epochs := json.loads(history.read_text(encoding="utf-8"))):
        save_figure(plot_history(epochs), folder / "learning_curves.png")
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        predictions = PredictionTable.read(list(csv.DictReader(file))).scored
    if predictions.exclusive and len(predictions):
        save_figure(plot_confusion(predictions), folder / "confusion.png")
        save_figure(plot_roc(predictions), folder / "roc.png")
        save_figure(plot_precision_recall(predictions), folder / "precision_recall.png")


_Curve: TypeAlias = tuple[str, Bool[np.ndarray, " images"], Float[np.ndarray, " images"], str]
"""A class against the rest: its name, which images are of it, its probabilities, and its color."""


def _exclusive(rows: Rows) -> PredictionTable:
    predictions = PredictionTable.read(rows).scored
    if not predictions.exclusive or not len(predictions):
        raise ConfigError("Each row needs `label` and `probability_CLASS` for each class.")
    return predictions


def _curves(predictions: PredictionTable, classes: Sequence[int] | None = None) -> list[_Curve]:
    """Return the classes that have images of both kinds; of two exclusive ones the second says all."""
    if classes is None:
        classes = range(len(predictions.classes))[len(predictions.classes) == 2 :]
    curves = []
    for number, c in enumerate(classes):
        truth, score = predictions.truths[:, c], predictions.probabilities[:, c]
        known = ~np.isnan(truth) & ~np.isnan(score)
        if 0 < truth[known].sum() < known.sum():
            color = COLORS[number % len(COLORS)]
            curves.append((on_picture(predictions.classes[c]), truth[known] == 1, score[known], color))
    return curves


def _draw_roc(axis: Axes, curves: Sequence[_Curve]) -> None:
    from sklearn.metrics import roc_curve

    axis.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    for name, truth, score, color in curves:
        false_positives, true_positives, _ = roc_curve(truth, score)
        axis.plot(false_positives, true_positives, color=color, label=name)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_precision_recall(axis: Axes, curves: Sequence[_Curve]) -> None:
    from sklearn.metrics import precision_recall_curve

    for name, truth, score, color in curves:
        precision, recall, _ = precision_recall_curve(truth, score)
        # The last is a point that no threshold gives.
        axis.step(recall[:-1], precision[:-1], color=color, label=name, where="post")
        axis.axhline(truth.mean(), color=color, linewidth=0.8, linestyle=":")
    axis.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def panels(count: int, width: float = 3.6, height: float = 2.8, columns: int = 9) -> tuple[Figure, Sequence[Axes]]:
    """Start a figure.

    Args:
        count: Number of panels.
        width: Width of each, in inches.
        height: Height of each, in inches.
        columns: Most panels in a row.

    Returns:
        The figure, and its panels.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps global state

    columns = max(1, min(count, columns))
    lines = -(-max(count, 1) // columns)
    figure = Figure(figsize=(columns * width + 0.8, lines * height), layout="constrained", dpi=150)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in grid[max(count, 1) :]:
        axis.remove()
    axes = list(grid[: max(count, 1)])
    for axis in axes:
        axis.grid(visible=True, color=LINE, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(LINE)
        axis.tick_params(colors=INK, labelsize=8, color=LINE)
        axis.title.set(fontsize=9, color=INK)
        axis.xaxis.label.set(fontsize=8, color=INK)
        axis.yaxis.label.set(fontsize=8, color=INK)
    return figure, axes


def as_picture(figure: Figure, alt: str, caption: str = "") -> Picture:
    """Return a figure for a page.

    Args:
        figure: The figure.
        alt: What it shows, for those who cannot see it.
        caption: Below it.

    Returns:
        The picture, as PNG.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Picture(buffer.getvalue(), alt, caption)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the file appears whole or not at all.

    Args:
        figure: The figure.
        path: The file.
    """
    with replace_file(path) as draft:
        figure.savefig(draft, format="png")
