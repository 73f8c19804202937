"""Draw the diagram of the pipeline, and tables of the benchmarks as plots: `python docs/assets/make_plots.py`.

The numbers are those that the tables of `docs/benchmarks.md` hold: what is drawn is what is written.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
PAGE = HERE.parent / "benchmarks.md"
GREY = "#8a8f98"  # legible on light and on dark pages
COLORS = ("#2196c9", "#e0683c", "#6f9e3f", "#b07cc6")
ESTIMATE = re.compile(r"(\d\.\d+) \[(\d\.\d+), (\d\.\d+)\]")
Estimates = dict[str, dict[str, tuple[float, float, float]]]

PLOTS = {
    "plot-changed-images": ("| Image | Dice `lung_field` |", "Dice of the lungs on images that were changed"),
    "plot-probes": ("| Probe |", "AUROC of probes that see no lung; 0.5 is chance"),
    "plot-new-hospital": (
        "| Region | Macro AUROC, all images |",
        "Scores on a hospital that it has never seen",
    ),
}
"""From the picture to the head of its table, and its title."""


def read_table(head: str) -> Estimates:
    """Read the table whose first line begins with `head`: from row to column to value and interval."""
    lines = PAGE.read_text(encoding="utf-8").split(f"\n{head}", 1)[1].splitlines()
    names = [re.sub(r"[`*]", "", cell).strip() for cell in (head + lines[0]).strip("|").split("|")][1:]
    table: Estimates = {}
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found = {name: ESTIMATE.match(cell) for name, cell in zip(names, cells, strict=False)}
        values = {name: tuple(map(float, match.groups())) for name, match in found.items() if match}
        table[re.sub(r"[`*]", "", first)] = values  # type: ignore[assignment]
    return table


def draw_table(table: Estimates, title: str) -> Figure:
    """Draw a dot and its interval a cell, a line a row."""
    columns = list(dict.fromkeys(name for values in table.values() for name in values))[: len(COLORS)]
    figure = Figure(figsize=(8, 1.3 + 0.42 * len(table)), layout="constrained")
    axes = figure.subplots()
    for place, (column, color) in enumerate(zip(columns, COLORS, strict=False)):
        for row, values in enumerate(table.values()):
            if column in values:
                value, low, high = values[column]
                y = row + 0.16 * (place - (len(columns) - 1) / 2)
                axes.plot([low, high], [y, y], color=color, linewidth=2, solid_capstyle="round")
                axes.plot(value, y, "o", color=color, markersize=5, label=column if row == 0 else None)
    axes.set_yticks(range(len(table)), list(table))
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(axis="x", color=GREY, alpha=0.3)
    axes.set_title(title, loc="left", fontsize=11, color=GREY)
    handles = [mpl.lines.Line2D([], [], color=color, marker="o") for color, _ in zip(COLORS, columns, strict=False)]
    figure.legend(handles, columns, loc="outside lower center", ncols=2, frameon=False, labelcolor=GREY)
    axes.tick_params(colors=GREY, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


STEPS = (
    ("image", "PNG, JPEG, TIFF,\nDICOM, array", "read"),
    ("view check", "a frontal chest?\ninverted? turned?", "or a reason"),
    ("lungs", "lung field,\nlung", "or a reason"),
    ("findings", "infection\nand others", "masks"),
    ("classifier", "of a region;\ncalibrated", "probabilities"),
    ("prediction", "a label, or\nNone and why", "JSON, overlay"),
)


def draw_pipeline() -> Figure:
    """Draw the way of an image."""
    figure = Figure(figsize=(10, 2.1), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-0.1, len(STEPS) * 1.7 - 0.2)
    axes.set_ylim(-0.35, 1.15)
    for place, (name, what, result) in enumerate(STEPS):
        left, color = place * 1.7, COLORS[0] if place in (0, len(STEPS) - 1) else GREY
        axes.add_patch(
            FancyBboxPatch((left, 0), 1.3, 1, boxstyle="round,pad=0.05", fill=False, edgecolor=color, linewidth=1.5)
        )
        axes.text(left + 0.65, 0.75, name, ha="center", va="center", fontsize=11, weight="bold", color=color)
        axes.text(left + 0.65, 0.32, what, ha="center", va="center", fontsize=8.5, color=GREY)
        axes.text(left + 0.65, -0.22, result, ha="center", va="center", fontsize=8.5, style="italic", color=GREY)
        if place:
            arrow = {"arrowstyle": "->", "color": GREY}
            axes.annotate("", (left - 0.07, 0.5), (left - 0.33, 0.5), arrowprops=arrow)
    return figure


def save(figure: Figure, name: str) -> None:
    """Write an SVG without a date, so that the same numbers give the same file."""
    with mpl.rc_context({"svg.hashsalt": "covidcxr", "svg.fonttype": "none"}):
        figure.savefig(HERE / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    for picture, (head, title) in PLOTS.items():
        save(draw_table(read_table(head), title), picture)
    save(draw_pipeline(), "pipeline")
