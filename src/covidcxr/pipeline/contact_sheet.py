"""The contact sheet of predictions: HTML pages of overlays, labels and reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covidcxr.io.folders import replace_file
from covidcxr.page import STYLE, load_template
from covidcxr.pipeline.prediction import in_words
from covidcxr.pipeline.severity import interval_in_words
from covidcxr.transforms.overlay import mask_colors

__all__ = ["PAGES", "PAGE_IMAGES", "SHOWN_LABELS", "write_sheet"]

SHOWN_LABELS = {"cannot say": "indeterminate"}
"""Labels of the summary that people read under another name."""

PAGE_IMAGES = 200
"""Images of a page: a browser shows so many at once."""

PAGES = "pages"
"""The folder of the pages where there are several."""

Entry = dict[str, Any]


def write_sheet(path: Path, entries: Iterable[Entry], summary: dict[str, Any]) -> None:
    """Write the contact sheet; its pictures are the overlays in `films/` beside it.

    More than `PAGE_IMAGES` images stand on pages of their own, by answer and by reason, and the file holds the counts
    with links to them. The entries are read one by one: memory does not grow with their number.

    Args:
        path: The HTML file.
        entries: For each image its `name` and what `Prediction.to_dict` or `FailedPrediction.to_dict` returned.
        summary: What `predict_folder` returns; of drawn images also `drawn`, from name to label.
    """
    summary = {"drawn": {}, **summary}
    for stale in (path.parent / PAGES).glob("*.html"):
        stale.unlink()
    if summary["films"] <= PAGE_IMAGES:
        _write(path, list(entries), summary)
        return
    groups: dict[str, _Group] = {}
    for entry in entries:
        title = _group_of(entry)
        if title not in groups:
            groups[title] = _Group(title, len(groups) + 1, path, summary)
        groups[title].add(entry)
    for group in groups.values():
        group.close()
    _write(path, [], summary, groups=sorted(groups.values(), key=lambda group: -group.count))


class _Group:
    """The images of one answer, or that have none for one reason, on pages of their own."""

    def __init__(self, title: str, number: int, index: Path, summary: dict[str, Any]) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self.title, self._stem = title, f"{number:02}-{slug[:40].strip('-')}"
        self._index, self._summary = index, summary
        self._waiting: list[Entry] = []
        self.count = self.pages = 0

    def link(self, page: int) -> str:
        """Return the name of a page, from 1."""
        return f"{self._stem}-{page:05}.html"

    def add(self, entry: Entry) -> None:
        """Add an image; a page is written when the first image of the next one comes."""
        if len(self._waiting) == PAGE_IMAGES:
            self._write(last=False)
        self._waiting.append(entry)
        self.count += 1

    def close(self) -> None:
        """Write the last page."""
        self._write(last=True)

    def _write(self, *, last: bool) -> None:
        self.pages += 1
        before = self.link(self.pages - 1) if self.pages > 1 else None
        links = {
            "index": f"../{self._index.name}",
            "before": before,
            "after": None if last else self.link(self.pages + 1),
        }
        place = self._index.parent / PAGES / self.link(self.pages)
        _write(place, self._waiting, self._summary, title=f"{self.title}, page {self.pages}", links=links)
        self._waiting = []


def _group_of(entry: Entry) -> str:
    if "error" in entry:
        return "unreadable"
    if entry["label"]:
        return str(entry["label"])
    undecided = SHOWN_LABELS["cannot say"] if entry["probabilities"] else "no answer"
    return f"{undecided}: {in_words(entry['reasons'][0])}" if entry["reasons"] else undecided


def _write(
    path: Path,
    entries: list[Entry],
    summary: dict[str, Any],
    *,
    title: str = "",
    links: dict[str, str | None] | None = None,
    groups: list[_Group] | None = None,
) -> None:
    """Write one page: with images, or with the counts of all."""
    from markupsafe import Markup

    classes = dict.fromkeys(name for entry in entries for name in entry.get("mask_areas", {}))
    counts = (f"{count} {SHOWN_LABELS.get(label, label)}" for label, count in summary["answers"].items())
    above = "../" if links else ""
    page = load_template("contact_sheet.html.jinja").render(
        style=Markup(STYLE),
        summary=summary,
        title=title,
        links=links,
        groups=groups or [],
        pages=PAGES,
        reasons={in_words(reason): count for reason, count in summary.get("reasons", {}).items()},
        counts=", ".join(counts),
        left_out=", ".join(f"{count} {suffix}" for suffix, count in summary["left_out"].items()),
        colors={name.replace("_", " "): color for name, color in mask_colors(classes).items()},
        cards=[
            {"name": entry["name"], "error": entry["error"]} if "error" in entry else _card(entry, above)
            for entry in entries
        ],
    )
    with replace_file(path) as temporary:
        temporary.write_text(f"{page}\n", encoding="utf-8", errors="backslashreplace")


def _card(entry: Entry, above: str) -> dict[str, Any]:
    """Return what the contact sheet shows of a prediction."""
    areas = [] if entry["lung_fraction"] is None else [f"lungs {entry['lung_fraction']:.0%} of the image"]
    shares = entry["finding_fractions"].items()
    overlays = [ending for ending in entry.get("files", ["overlay.png"]) if ending.startswith("overlay.")]
    undecided = SHOWN_LABELS["cannot say"] if entry["probabilities"] or entry["reasons"] else ""
    folder = f"{entry['folder']}/" if "folder" in entry else ""  # of a shard
    return {
        "name": entry["name"],
        "picture": quote(f"{above}{folder}films/{entry['name']}.{overlays[0]}") if overlays else None,
        "label": entry["label"],
        "result": entry["label"] or undecided,
        "probabilities": {name: value for name, value in entry["probabilities"].items() if value is not None},
        "sentences": [in_words(word) for word in (*entry["reasons"], *entry["notes"])],
        "areas": "; ".join([*areas, *(_share(entry, name, share) for name, share in shares)]),
    }


def _share(entry: Entry, name: str, share: float) -> str:
    interval = interval_in_words(entry.get("infected_interval")) if name == "infection" else ""
    return f"{name.replace('_', ' ')} {share:.0%} of the lungs{interval}"
