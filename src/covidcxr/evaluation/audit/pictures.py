"""Pictures of an audit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from covidcxr.evaluation.audit.confounding import CrossTable
from covidcxr.evaluation.audit.leakage import RandomSplit
from covidcxr.evaluation.audit.probes import ProbeScore
from covidcxr.evaluation.plots import COLORS, INK, LINE, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_cross_table", "draw_probes", "draw_random_split"]

_ALARM, _QUIET, _LOOK = COLORS[1], COLORS[0], "#8a939e"


def draw_probes(panels_of: Mapping[str, Sequence[ProbeScore]]) -> Figure:
    """Draw how well probes tell, a panel a question: the mean AUROC, and the class told best as a ring.

    Args:
        panels_of: Scores by the title of their panel.
    """
    names = list(dict.fromkeys(one.probe.name for scores in panels_of.values() for one in scores))
    titles = {one.probe.name: one.probe.title for scores in panels_of.values() for one in scores}
    lows = [one.auroc.low for scores in panels_of.values() for one in scores if not math.isnan(one.auroc.low)]
    columns = min(3, len(panels_of))
    lines = -(-len(panels_of) // columns)
    figure, axes = panels(
        len(panels_of), width=7.5 if columns == 1 else 3.5, height=0.9 + 0.27 * len(names), columns=columns
    )
    for number, (axis, (title, scores)) in enumerate(zip(axes, panels_of.items(), strict=True)):
        axis.axvline(0.5, color=INK, linewidth=1, linestyle=":")
        for score in scores:
            place = len(names) - names.index(score.probe.name)
            color = _ALARM if score.alarm else _QUIET if score.probe.blind else _LOOK
            one, best = score.auroc, score.best[1]
            if len(score.by_class) > 2:
                axis.plot([best.low, best.high], [place + 0.22] * 2, color=color, linewidth=1, alpha=0.7)
                axis.plot(best.value, place + 0.22, "o", color=color, markersize=4, markerfacecolor="white")
            if not math.isnan(one.low):
                axis.plot([one.low, one.high], [place, place], color=color, linewidth=2)
            axis.plot(one.value, place, "o", color=color, markersize=5)
        axis.set(title=title if len(panels_of) > 1 else "", xlim=(min([0.35, *lows]), 1.02))
        axis.set(ylim=(0.4, len(names) + 0.7), yticks=range(len(names), 0, -1))
        axis.set_yticklabels([titles[name] for name in names] if number % columns == 0 else [])
        axis.grid(visible=False, axis="y")
        if number >= (lines - 1) * columns:
            axis.set_xlabel("AUROC, with 95 % interval over patients")
    return figure


def draw_cross_table(table: CrossTable) -> Figure:
    """Draw the films of each label by another column, shaded by their share of the column."""
    shares = table.films / table.films.sum(0, keepdims=True).clip(1)
    rows, columns = table.films.shape
    figure, (axis,) = panels(1, width=min(11, 2.6 + 0.95 * columns), height=1.1 + 0.5 * rows)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(table.films):
        color = "white" if shares[row, column] > 0.6 else INK
        axis.text(column, row, f"{count:,}" if count else "·", ha="center", va="center", color=color, fontsize=8)
    axis.set(xticks=range(columns), yticks=range(rows), xlabel=table.column)
    long = max(map(len, table.values)) > 8
    axis.set_xticklabels(table.values, rotation=30 if long else 0, ha="right" if long else "center")
    axis.set_yticklabels(table.labels)
    axis.grid(visible=False)
    return figure


def draw_random_split(splits: Mapping[str, RandomSplit]) -> Figure:
    """Draw how many of the films that a random split by image holds out have their patient in training."""
    figure, (axis,) = panels(1, width=7.5, height=0.9 + 0.3 * len(splits))
    places = range(len(splits), 0, -1)
    for place, one in zip(places, splits.values(), strict=True):
        axis.barh(place, one.share, color=COLORS[1], height=0.6)
        axis.text(one.share + 0.01, place, f"{one.share:.0%}", va="center", fontsize=8, color=INK)
    axis.set(xlim=(0, 1.08), yticks=places, xlabel="share of the films held out whose patient is in training too")
    axis.set_yticklabels(
        [f"{name}  ({one.films:,} films of {one.patients:,} patients)" for name, one in splits.items()]
    )
    axis.grid(visible=True, axis="x", color=LINE)
    axis.grid(visible=False, axis="y")
    return figure
