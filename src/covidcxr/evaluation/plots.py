"""Pictures of trainings and scores; light, for print and page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.errors import ConfigError
from covidcxr.evaluation.metrics.bootstrap import Estimate
from covidcxr.evaluation.metrics.reliability import Reliability, measure_reliability
from covidcxr.evaluation.metrics.scores import title
from covidcxr.evaluation.predictions.table import answered_rows
from covidcxr.io.atomic import replace_file
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
    "plot_estimates",
    "plot_history",
    "plot_precision_recall",
    "plot_reliability",
    "plot_roc",
    "save_figure",
]

COLORS = ("#3b6fd4", "#d4663b", "#2f8f6b", "#8a5bc7", "#b08a1e", "#c2477f")
INK, LINE = "#1c2128", "#d5dae1"


def plot_history(epochs: Sequence[Mapping[str, float]]) -> Figure:
    """Draw learning curves: the losses, and what else was logged for training or validation.

    Args:
        epochs: What `fit` wrote as history.json: an entry an epoch, from "train/loss", "val/accuracy", ... to value.

    Raises:
        ConfigError: If there is no epoch.
    """
    if not epochs:
        raise ConfigError("There is no epoch to draw.")
    logged = {name for entry in epochs for name in entry}
    wanted = ("loss", "accuracy", "f1", "dice", "auroc")
    scores = [score for score in wanted if {f"train/{score}", f"val/{score}"} & logged]
    figure, axes = panels(len(scores))
    for axis, score in zip(axes, scores, strict=True):
        for stage, color in (("train", COLORS[0]), ("val", COLORS[1])):
            points = [(entry["epoch"] + 1, entry[name]) for entry in epochs if (name := f"{stage}/{score}") in entry]
            if points:
                label = {"val": "validation"}.get(stage, "training")
                marker = "o" if len(points) < 10 else None  # a line through one point is not seen
                axis.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, label=label)
        axis.set(xlabel="epoch", title=title(score))
        axis.locator_params(axis="x", integer=True)
        axis.legend(frameon=False, fontsize=8)
    return figure


def plot_confusion(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the confusion matrix of a classifier's most probable answers: shares of the true class, and images.

    Args:
        rows: A row an image: `label`, and `probability_CLASS` for each class.
    """
    classes, labels, probabilities = _predictions(rows)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, probabilities.argmax(1)), 1)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure, (axis,) = panels(1, width=1.2 + 1.1 * len(classes), height=1.2 + 0.9 * len(classes))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else INK
        text = f"{shares[row, column]:.0%}\n{count}"
        axis.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    axis.set(xticks=range(len(classes)), yticks=range(len(classes)), xlabel="answer", ylabel="truth")
    axis.set_xticklabels(classes, rotation=20 if max(map(len, classes)) > 9 else 0)
    axis.set_yticklabels(classes)
    axis.grid(visible=False)
    return figure


def plot_roc(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a ROC curve a class, each against the rest; classes without images, or with all of them, are left out."""
    figure, (axis,) = panels(1, width=4.2, height=4)
    axis.plot([0, 1], [0, 1], color=LINE, linewidth=1)
    for name, truth, score, color in _one_against_rest(rows):
        order = np.argsort(-score, kind="stable")
        last = np.append(np.diff(score[order]) != 0, True)  # ties are one point
        true_positives, false_positives = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
        axis.plot(
            np.r_[0, false_positives / false_positives[-1]],
            np.r_[0, true_positives / true_positives[-1]],
            color=color,
            label=name,
        )
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def plot_precision_recall(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw a precision-recall curve a class, each against the rest; the dotted line is what guessing gives."""
    figure, (axis,) = panels(1, width=4.2, height=4)
    for name, truth, score, color in _one_against_rest(rows):
        order = np.argsort(-score, kind="stable")
        last = np.append(np.diff(score[order]) != 0, True)
        true_positives, predicted_positive = np.cumsum(truth[order])[last], np.flatnonzero(last) + 1
        axis.step(
            np.r_[0, true_positives / true_positives[-1]],
            np.r_[true_positives[0] / predicted_positive[0], true_positives / predicted_positive],
            color=color,
            label=name,
        )
        axis.axhline(truth.mean(), color=color, linewidth=0.8, linestyle=":")
    axis.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def plot_reliability(rows: Sequence[Mapping[str, Any]] | Reliability, class_name: str | None = None) -> Figure:
    """Draw a reliability diagram: how often what was given a probability came true, and how many images there are.

    Args:
        rows: A row an image, as for `measure_reliability`; or what that returned.
        class_name: Whose probability; None = that of each image's most probable class.
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


def plot_estimates(
    estimates: Mapping[str, Estimate],
    *,
    title: str = "",
    chance: float | None = None,
    limits: tuple[float, float] = (0, 1),
) -> Figure:
    """Draw figures with their intervals, one below the other.

    Args:
        estimates: By name; those that are not defined are left out.
        title: What the figures are.
        chance: Where a dotted line tells what guessing gives; None = no line.
        limits: Ends of the axis.
    """
    shown = {name: estimate for name, estimate in estimates.items() if not math.isnan(estimate.value)}
    figure, (axis,) = panels(1, width=6.4, height=0.9 + 0.3 * len(shown))
    if chance is not None:
        axis.axvline(chance, color=INK, linewidth=1, linestyle=":")
    places = range(len(shown), 0, -1)
    for place, estimate in zip(places, shown.values(), strict=True):
        axis.plot([estimate.low, estimate.high], [place, place], color=COLORS[0], linewidth=2)
        axis.plot(estimate.value, place, "o", color=COLORS[0], markersize=5)
    axis.set(ylim=(0.4, len(shown) + 0.6), yticks=places, xlim=limits)
    axis.set_title(title, fontsize=9, color=INK)
    axis.set_yticklabels([f"{name}  ({estimate.count})" for name, estimate in shown.items()])
    axis.set_xlabel("value and 95 % interval over patients; in brackets the images", fontsize=8, color=INK)
    axis.grid(visible=True, axis="x", color=LINE)
    axis.grid(visible=False, axis="y")
    return figure


def draw_comparison(runs: Mapping[str, Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    """Draw the scores of several runs with their intervals, a panel a score.

    Args:
        runs: From run to its scores, each with value, low and high.
        names: The scores to draw.
        path: The PNG to write.
    """
    figure, axes = panels(len(names), width=1.9, height=0.9 + 0.32 * len(runs))
    places = np.arange(len(runs))[::-1]
    for number, (axis, name) in enumerate(zip(axes, names, strict=True)):
        for place, scores in zip(places, runs.values(), strict=True):
            score = scores.get(name)
            if score is not None and score["value"] is not None:
                if score["low"] is not None:
                    axis.plot([score["low"], score["high"]], [place, place], color=COLORS[0], linewidth=2)
                axis.plot(score["value"], place, "o", color=COLORS[0], markersize=5)
        axis.set(title=title(name), ylim=(-0.6, len(runs) - 0.4), yticks=places)
        axis.set_yticklabels(list(runs) if number == 0 else [])
        axis.grid(visible=True, axis="x", color=LINE)
    figure.supxlabel("value and 95 % interval over patients", fontsize=8, color=INK)
    save_figure(figure, path)


def draw_run(folder: Path) -> None:
    """Draw what a run left in its folder: learning curves, and for exclusive classes confusion, ROC and precision.

    Args:
        folder: Holds predictions.csv and, in `model/`, history.json; pictures are written beside them.
    """
    history = folder / "model" / "history.json"
    if history.is_file() and (epochs := json.loads(history.read_text(encoding="utf-8"))):
        save_figure(plot_history(epochs), folder / "learning_curves.png")
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = answered_rows(list(csv.DictReader(file)))
    if rows and "label" in rows[0]:
        save_figure(plot_confusion(rows), folder / "confusion.png")
        save_figure(plot_roc(rows), folder / "roc.png")
        save_figure(plot_precision_recall(rows), folder / "precision_recall.png")


def _predictions(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    prefix = "probability_"
    classes = [name.removeprefix(prefix) for name in (rows[0] if rows else ()) if name.startswith(prefix)]
    if not classes or "label" not in rows[0]:
        raise ConfigError("Each row needs `label` and `probability_CLASS` for each class.")
    labels = np.array([classes.index(row["label"]) for row in rows])
    return classes, labels, np.array([[float(row[prefix + name]) for name in classes] for row in rows])


def _one_against_rest(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, np.ndarray, np.ndarray, str]]:
    classes, labels, probabilities = _predictions(rows)
    curves = [(name, labels == number, probabilities[:, number]) for number, name in enumerate(classes)]
    # Of two classes one curve tells all: the second one's says all.
    kept = [entry for entry in curves[len(curves) == 2 :] if 0 < entry[1].sum() < len(labels)]
    return [(*entry, COLORS[number % len(COLORS)]) for number, entry in enumerate(kept)]


def panels(count: int, width: float = 3.6, height: float = 2.8, columns: int = 9) -> tuple[Figure, Sequence[Axes]]:
    """Start a figure.

    Args:
        count: Number of panels.
        width: Width of each, in inches.
        height: Height of each, in inches.
        columns: Most panels in a row.
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
    """Return a figure for a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Picture(buffer.getvalue(), alt, caption)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the file appears whole or not at all."""
    with replace_file(path) as draft:
        figure.savefig(draft, format="png")
