"""Gathers the results of run.sh and blind.py in one file, and draws them.

    python docs/assets/published/collect.py OUT

Reads OUT/*/predictions.csv and OUT/blind.json; writes figures.json and two charts beside this script. Each run is
scored twice: on all its test images ("official"), and on those whose group is known and has no image in training or
validation ("groups"); a run that split the groups anew on its own test images.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from blind import CLASSES, Rows, read_rows, test_parts

from covidcxr.evaluation.predictions.table import read_rows as read_predictions
from covidcxr.evaluation.predictions.table import score_rows

HERE = Path(__file__).parent
KEPT = ("accuracy", "balanced_accuracy", "auroc", "f1_", "precision_", "sensitivity_", "specificity_", "dice_", "iou_")


def score_runs(out: Path) -> dict[str, Any]:
    """Score the predictions of every finished run on both test parts."""
    rows = read_rows(out / "copy")
    parts = {part: {rows[n]["image_id"] for n in range(len(rows)) if own[n]} for part, own in test_parts(rows).items()}
    runs: dict[str, Any] = {}
    for path in sorted(out.glob("*/**/predictions.csv")):
        images = read_predictions(path)
        name = path.parent.relative_to(out).as_posix()
        # A training on a split of its own is scored on its own test images.
        for part, ids in {"own": None}.items() if name.partition("/")[0].endswith("-groups") else parts.items():
            own = images if ids is None else [row for row in images if row["image_id"] in ids]
            scores = score_rows(own)
            runs.setdefault(name, {})[part] = {
                key: value.to_dict() for key, value in scores.items() if key.startswith(KEPT)
            }
    return runs


def count_sources(out: Path) -> dict[str, dict[str, int]]:
    """Count the images of each label by source, and by age group where the source tells it."""
    counts = Counter((row["label"], row.get("source", "unknown")) for row in read_rows(out / "copy"))
    return {label: {source: n for (own, source), n in counts.items() if own == label} for label in CLASSES}


def count_leaks(rows: Rows) -> dict[str, Any]:
    """Count groups in several official parts, and test images whose group trains or is not known, or of children."""
    parts: dict[str, set[str]] = {}
    for row in rows:
        if row.get("patient_id"):
            parts.setdefault(row["patient_id"], set()).add(row["split"])
    tests = [row for row in rows if row["split"] == "test"]
    trains = [row["label"] for row in tests if "train" in parts.get(row.get("patient_id", ""), ())]
    return {
        "groups": len(parts),
        "groups_in_several_parts": sum(len(own) > 1 for own in parts.values()),
        "test_images_whose_group_trains": dict(Counter(trains)),
        "test_images_of_unknown_group": dict(Counter(row["label"] for row in tests if not row.get("patient_id"))),
        "test_images_of_children": dict(Counter(row["label"] for row in tests if row.get("age_group") == "child")),
    }


PARTS = {"official": ("official test part", "#1c7ed6"), "groups": ("groups apart from training", "#e8590c")}
SOURCES = {
    "bimcv": ("BIMCV", "#1864ab"),
    "quex_mixed": ("articles and web pages", "#4dabf7"),
    "unknown": ("not known", "#ced4da"),
    "rsna": ("RSNA, adults", "#2b8a3e"),
    "kermany": ("Kermany, children", "#f08c00"),
}


def draw_accuracies(figures: dict[str, Any], path: Path) -> None:
    """Draw the accuracy of each probe and of the run, with intervals, beside the published one."""
    from matplotlib import pyplot

    probes = figures["probes"]
    rows = {title: {part: probes[part][title]["accuracy"] for part in PARTS} for title in probes["official"]}
    run = figures["runs"].get("xception-official")
    if run:
        rows["small run of the recipe"] = {part: run[part]["accuracy"] for part in PARTS}
    figure, axis = pyplot.subplots(figsize=(7.2, 0.42 * len(rows) + 1.6), layout="constrained")
    for place, estimates in enumerate(rows.values()):
        for (part, (title, color)), shift in zip(PARTS.items(), (-0.14, 0.14), strict=True):
            value = estimates[part]
            interval = [[value["value"] - value["low"]], [value["high"] - value["value"]]]
            axis.errorbar(
                value["value"], place + shift, xerr=interval, fmt="o", color=color, label="" if place else title
            )
    axis.axvline(0.83, color="#495057", linestyle="--", linewidth=1)
    axis.annotate("published: 0.83", (0.84, -0.7), color="#495057", fontsize=9)
    axis.set(yticks=range(len(rows)), yticklabels=rows, xlabel="accuracy, three classes", xlim=(0.3, 1.0))
    axis.set_ylim(len(rows) - 0.5, -1.1)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def draw_sources(sources: dict[str, dict[str, int]], path: Path) -> None:
    """Draw the images of each label by source."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.2, 2.4), layout="constrained")
    left = dict.fromkeys(sources, 0)
    for name, (title, color) in SOURCES.items():
        counts = [own.get(name, 0) for own in sources.values()]
        axis.barh(list(sources), counts, left=list(left.values()), color=color, label=title)
        left = {label: left[label] + n for label, n in zip(sources, counts, strict=True)}
    axis.invert_yaxis()
    axis.set_xlabel("images")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=5, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main(out: Path) -> None:
    """Write figures.json and the charts."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "covidcxr"  # the same file for the same figures
    blind = json.loads((out / "blind.json").read_text(encoding="utf-8"))
    leaks = count_leaks(read_rows(out / "copy"))
    figures = {"sources": count_sources(out), "leaks": leaks, "runs": score_runs(out), **blind}
    (HERE / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw_accuracies(figures, HERE / "accuracy.svg")
    draw_sources(figures["sources"], HERE / "sources.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
