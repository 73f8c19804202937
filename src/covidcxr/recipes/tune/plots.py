"""Pictures of a search, in the dress of those of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covidcxr.evaluation.plots import COLORS, INK, LINE, panels, save_figure
from covidcxr.training.search_space import Choice, Parameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_course", "draw_importances", "draw_slices"]


def draw_course(rows: Sequence[Mapping[str, Any]], monitor: str, path: Path) -> None:
    """Draw the value of each trial, and the best so far.

    Args:
        rows: A row a trial: trial, state and value.
        monitor: Name of the value.
        path: The PNG to write.
    """
    figure, (axis,) = panels(1, width=5.2, height=3)
    _dots(axis, rows, [row["trial"] for row in rows], None)
    complete = [row for row in rows if row["state"] == "complete"]
    if complete:
        best = np.maximum.accumulate([row["value"] for row in complete])
        trials = [row["trial"] for row in complete]
        axis.step(trials, best, where="post", color=COLORS[1], linewidth=1.4, label="best so far")
    axis.set(xlabel="trial", ylabel=monitor)
    axis.locator_params(axis="x", integer=True)
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    save_figure(figure, path)


def draw_slices(rows: Sequence[Mapping[str, Any]], search: Mapping[str, Parameter], monitor: str, path: Path) -> None:
    """Draw the trials over the values of each parameter, later trials darker.

    Args:
        rows: A row a trial: trial, state, value and parameters.
        search: The parameters, by name.
        monitor: Name of the value.
        path: The PNG to write.
    """
    figure, axes = panels(len(search), width=2.8, height=2.6, columns=3)
    shades = np.array([row["trial"] for row in rows], float)
    for number, (axis, (name, parameter)) in enumerate(zip(axes, search.items(), strict=True)):
        values = [row["parameters"][name] for row in rows]
        if isinstance(parameter, Choice):
            _name_values(axis, list(parameter.values))
            aside = 0.5 * (shades / max(shades.max(), 1) - 0.5)  # side by side, in the order of the trials
            values = np.array([list(parameter.values).index(value) for value in values]) + aside
        elif parameter.log:
            axis.set_xscale("log")
            axis.tick_params(which="minor", color=LINE)
        elif parameter.whole:
            axis.locator_params(axis="x", integer=True)
        _dots(axis, rows, values, shades)
        axis.set(xlabel=name, ylabel=monitor if number % 3 == 0 else "")
    save_figure(figure, path)


def draw_importances(importances: Mapping[str, float], path: Path) -> None:
    """Draw a bar a parameter.

    Args:
        importances: From parameter to its share, in [0, 1].
        path: The PNG to write.
    """
    names = sorted(importances, key=lambda name: importances[name])
    figure, (axis,) = panels(1, width=4.4, height=0.9 + 0.32 * len(names))
    axis.barh(names, [importances[name] for name in names], color=COLORS[0], height=0.6)
    for place, name in enumerate(names):
        axis.text(importances[name] + 0.01, place, f"{importances[name]:.2f}", va="center", fontsize=8, color=INK)
    axis.set(xlabel="share in being among the best trials", xlim=(0, 1.1))
    axis.grid(visible=False, axis="y")
    save_figure(figure, path)


def _dots(axis: Axes, rows: Sequence[Mapping[str, Any]], places: Sequence[float], shades: np.ndarray | None) -> None:
    """Draw a dot a trial, all alike or by shades; one that was pruned is a cross."""
    pruned = np.array([row["state"] == "pruned" for row in rows])
    x, y = np.array(places, float), np.array([row["value"] for row in rows], float)
    for which, marker, label in ((~pruned, "o", "trial"), (pruned, "x", "pruned, best of its epochs")):
        style: dict[str, Any] = {"color": COLORS[0]}
        if shades is not None:
            style = {"c": shades[which], "cmap": "Blues", "vmin": -0.5 * shades.max() - 1, "vmax": shades.max() + 1}
        if which.any():
            axis.scatter(x[which], y[which], marker=marker, s=22, label=label, linewidths=1, **style)


def _name_values(axis: Axes, names: Sequence[str]) -> None:
    axis.set(xticks=range(len(names)), xlim=(-0.5, len(names) - 0.5))
    if sum(map(len, names)) > 24:
        axis.set_xticklabels(names, rotation=20, ha="right", rotation_mode="anchor")
    else:
        axis.set_xticklabels(names)
