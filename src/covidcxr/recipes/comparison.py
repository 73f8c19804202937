"""What is written beside the table of a comparison: scores of each class, values by epoch, and curves of all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covidcxr.evaluation.metrics.scores import format_interval, title
from covidcxr.evaluation.plots import COLORS, panels, save_figure
from covidcxr.io.atomic import replace_file

__all__ = ["class_table", "draw_curves", "epoch_table", "format_score", "write_table"]

_OF_CLASSES = ("sensitivity", "specificity", "precision", "f1", "auroc")
_OF_EPOCHS = ("loss", "accuracy", "f1", "dice")
_EPOCHS = (5, 10, 20, 50, 100)
_LINES = ("-", "--", ":", "-.")

History = Sequence[Mapping[str, float]]


def class_table(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the scores of each class, for the runs with more than two classes.

    Args:
        scores: From run to its scores, each with value, low, high and count; see `Run.scores`.

    Returns:
        Text: a header, and a row for each run and class; empty if no run has more than two classes.
    """
    rows = []
    for run, table in scores.items():
        classes = [name.removeprefix("sensitivity_") for name in table if name.startswith("sensitivity_")]
        for each in classes if len(classes) > 2 else ():
            rows.append([run, each, *(format_score(table.get(f"{score}_{each}")) for score in _OF_CLASSES)])
    return [["run", "class", *_OF_CLASSES], *rows] if rows else []


def epoch_table(histories: Mapping[str, History]) -> list[list[str]]:
    """Return what was logged after 5, 10, 20, 50 and 100 epochs and after the last one, without intervals.

    Args:
        histories: From run to what `fit` wrote as history.json.

    Returns:
        Text: a header, and a row for each run and epoch; empty if there is no epoch.
    """
    logged = {name for epochs in histories.values() for entry in epochs for name in entry}
    stages = {"train": "training", "val": "validation"}
    names = [f"{stage}/{score}" for score in _OF_EPOCHS for stage in stages if f"{stage}/{score}" in logged]
    rows = []
    for run, epochs in histories.items():
        for number, entry in enumerate(epochs, 1):
            if number in _EPOCHS or number == len(epochs):
                values = (entry.get(name) for name in names)
                rows.append([run, str(number), *("-" if value is None else f"{value:.4f}" for value in values)])
    heads = (name.partition("/") for name in names)
    return [["run", "epochs", *(f"{stages[stage]} {score}" for stage, _, score in heads)], *rows] if rows else []


def draw_curves(histories: Mapping[str, History], path: Path) -> None:
    """Draw the curves of all runs over each other: a panel for each score of training and of validation images.

    Args:
        histories: From run to what `fit` wrote as history.json.
        path: The PNG to write; nothing is written if there is no epoch.
    """
    logged = {name for epochs in histories.values() for entry in epochs for name in entry}
    names = [f"{stage}/{score}" for score in _OF_EPOCHS for stage in ("train", "val") if f"{stage}/{score}" in logged]
    if not names:
        return
    figure, axes = panels(len(names), columns=2)
    for axis, name in zip(axes, names, strict=True):
        for place, (run, epochs) in enumerate(histories.items()):
            points = [(number, entry[name]) for number, entry in enumerate(epochs, 1) if entry.get(name) is not None]
            style: dict[str, Any] = {
                "color": COLORS[place % len(COLORS)],
                "linestyle": _LINES[place // len(COLORS) % len(_LINES)],
            }
            marker = "o" if len(points) < 10 else None  # a line through one point is not seen
            axis.plot([x for x, _ in points], [y for _, y in points], label=run, marker=marker, markersize=4, **style)
        stage, _, score = name.partition("/")
        of_stage = "training images" if stage == "train" else "validation images"
        axis.set(xlabel="epoch", title=f"{title(score)}, {of_stage}")
        axis.locator_params(axis="x", integer=True)
    axes[0].legend(frameon=False, fontsize=7)
    save_figure(figure, path)


def write_table(table: Sequence[Sequence[str]], path: Path) -> None:
    """Write a table as Markdown, atomically.

    Args:
        table: A header and rows of text; nothing is written if it is empty.
        path: The file to write.
    """
    if table:
        header, *rows = table
        lines = [header, ["---"] * len(header), *rows]
        with replace_file(path) as draft:
            draft.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


def format_score(score: Mapping[str, Any] | None) -> str:
    """Return a score with its 95 % confidence interval as text.

    Args:
        score: Has value, low and high; None = there is no such score.

    Returns:
        Text; "-" for None.
    """
    return "-" if score is None else format_interval(score["value"], score["low"], score["high"])
