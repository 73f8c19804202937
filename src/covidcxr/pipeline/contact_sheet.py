"""The contact sheet: one HTML page over a folder of answers, no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covidcxr.io.atomic import replace_file
from covidcxr.page import STYLE
from covidcxr.pipeline.prediction import in_words
from covidcxr.transforms.overlay import MASK_COLORS

__all__ = ["write_sheet"]

_STYLE = """
.key i { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin: 0 .3em 0 .9em; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem; margin-top: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.card img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; }
.card div { padding: .6rem .8rem .8rem; }
.name { font-size: .8rem; color: var(--dim); overflow-wrap: anywhere; }
.answer { font-weight: 600; font-size: 1.05rem; } .doubt { color: var(--doubt); } .bad { color: var(--bad); }
.row { display: grid; grid-template-columns: 6.5rem 1fr 3rem; gap: .5rem; align-items: center; font-size: .85rem; }
.row b { font-weight: 400; } .row span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.bar { height: .5rem; border-radius: 3px; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--bar); }
"""


def write_sheet(path: Path, entries: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write the page; its pictures are the overlays in `films/` beside it.

    Args:
        path: Where to write.
        entries: One a film: its `name` and what `Prediction.to_dict` or `FailedPrediction.to_dict` gave.
        summary: What `covidcxr.batch.predict_folder` counts.
    """
    cards = "\n".join(_failure(entry) if "error" in entry else _card(entry) for entry in entries)
    counts = ", ".join(f"{count} {escape(label)}" for label, count in summary["answers"].items()) or "no answers"
    used = {name for entry in entries for name in entry.get("mask_areas", {})}
    key = "".join(
        f'<i style="background:rgb{color}"></i>{escape(name.replace("_", " "))}'
        for name, color in MASK_COLORS.items()
        if name in used
    )
    left_out = ", ".join(f"{count} {escape(suffix)}" for suffix, count in summary["left_out"].items())
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        '<link rel="icon" href="data:,">',
        f"<title>covidcxr: {summary['films']} films</title><style>{STYLE}{_STYLE}</style></head><body>",
        f"<h1>{summary['films']} films</h1><p>{counts}; {summary['failed']} unreadable</p>",
        f'<p class="dim">Left out, no films: {left_out}</p>' if left_out else "",
        f'<p class="key dim">Outlines:{key}</p>' if key else "",
        '<p class="notice">For research only, not for clinical use. A probability is what this model says after '
        "calibration on its own data; on films from elsewhere it can be wrong and sure.</p>",
        f'<main class="grid">{cards}</main></body></html>',
    ]
    with replace_file(path) as temporary:
        page = "\n".join(line for line in lines if line) + "\n"
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _card(entry: dict[str, Any]) -> str:
    name = entry["name"]
    picture = escape(quote(f"films/{name}.overlay.png"), quote=True)
    rows = "".join(
        f'<p class="row"><b>{escape(label)}</b><span class="bar"><i style="width:{value:.1%}"></i></span>'
        f"<span>{value:.0%}</span></p>"
        for label, value in entry["probabilities"].items()
    )
    said = [*entry["reasons"], *entry["notes"]]
    doubts = "".join(f'<p class="doubt">{escape(in_words(word))}</p>' for word in said)
    parts = (("lung_fraction", "lungs {:.0%} of the film"), ("infected_fraction", "infected {:.0%} of the lungs"))
    areas = [words.format(entry[part]) for part, words in parts if entry[part] is not None]
    answer = escape(entry["label"] or ("cannot say" if entry["probabilities"] or entry["reasons"] else ""))
    return (
        f'<article class="card"><img loading="lazy" src="{picture}" alt="{escape(name, quote=True)} with outlines">'
        f'<div><p class="name">{escape(name)}</p><p class="answer{"" if entry["label"] else " doubt"}">{answer}</p>'
        f'{rows}{doubts}<p class="name">{escape("; ".join(areas))}</p></div></article>'
    )


def _failure(entry: dict[str, Any]) -> str:
    return (
        f'<article class="card"><div><p class="name">{escape(entry["name"])}</p>'
        f'<p class="answer bad">unreadable</p><p>{escape(entry["error"])}</p></div></article>'
    )
