"""The contact sheet of predictions: one HTML page of overlays, labels and reasons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covidcxr.io.atomic import replace_file
from covidcxr.page import STYLE, load_template
from covidcxr.pipeline.prediction import in_words
from covidcxr.pipeline.severity import interval_in_words
from covidcxr.transforms.overlay import mask_colors

__all__ = ["SHOWN_LABELS", "write_sheet"]

SHOWN_LABELS = {"cannot say": "indeterminate"}
"""Labels of the summary that people read under another name."""


def write_sheet(path: Path, entries: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write the contact sheet; its pictures are the overlays in `films/` beside it.

    Args:
        path: The HTML file.
        entries: For each image its `name` and what `Prediction.to_dict` or `FailedPrediction.to_dict` returned.
        summary: What `predict_folder` returns; of drawn images also `drawn`, from name to label.
    """
    from markupsafe import Markup

    classes = dict.fromkeys(name for entry in entries for name in entry.get("mask_areas", {}))
    counts = (f"{count} {SHOWN_LABELS.get(label, label)}" for label, count in summary["answers"].items())
    page = load_template("contact_sheet.html.jinja").render(
        style=Markup(STYLE),
        summary={"drawn": {}, **summary},
        counts=", ".join(counts),
        left_out=", ".join(f"{count} {suffix}" for suffix, count in summary["left_out"].items()),
        colors={name.replace("_", " "): color for name, color in mask_colors(classes).items()},
        cards=[
            {"name": entry["name"], "error": entry["error"]} if "error" in entry else _card(entry) for entry in entries
        ],
    )
    with replace_file(path) as temporary:
        temporary.write_text(f"{page}\n", encoding="utf-8", errors="backslashreplace")


def _card(entry: dict[str, Any]) -> dict[str, Any]:
    """Return what the contact sheet shows of a prediction."""
    areas = [] if entry["lung_fraction"] is None else [f"lungs {entry['lung_fraction']:.0%} of the image"]
    shares = entry["finding_fractions"].items()
    overlays = [ending for ending in entry.get("files", ["overlay.png"]) if ending.startswith("overlay.")]
    undecided = SHOWN_LABELS["cannot say"] if entry["probabilities"] or entry["reasons"] else ""
    return {
        "name": entry["name"],
        "picture": quote(f"films/{entry['name']}.{overlays[0]}") if overlays else None,
        "label": entry["label"],
        "result": entry["label"] or undecided,
        "probabilities": {name: value for name, value in entry["probabilities"].items() if value is not None},
        "sentences": [in_words(word) for word in (*entry["reasons"], *entry["notes"])],
        "areas": "; ".join([*areas, *(_share(entry, name, share) for name, share in shares)]),
    }


def _share(entry: dict[str, Any], name: str, share: float) -> str:
    interval = interval_in_words(entry.get("infected_interval")) if name == "infection" else ""
    return f"{name.replace('_', ' ')} {share:.0%} of the lungs{interval}"
