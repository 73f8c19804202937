"""What a run has answered, on the disk: lines of JSON or Parquet, and the contact sheet that a person looks at.

Results are read image by image, never held as a whole.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covidcxr.errors import ConfigError
from covidcxr.io.folders import replace_file
from covidcxr.io.tables import write_parquet
from covidcxr.page import STYLE, load_template
from covidcxr.pipeline.image_list import ANSWERED, FAILED, ImageList
from covidcxr.pipeline.prediction import in_words
from covidcxr.pipeline.severity import interval_in_words
from covidcxr.transforms.overlay import mask_colors
from covidcxr.transforms.postprocess import not_finite
from covidcxr.utils.plain import json_text

__all__ = ["LINES", "PAGES", "PARTS", "SHOWN_LABELS", "ParquetResults", "Results", "summarize", "write_sheet"]

LINES = "predictions.jsonl"
PARTS = "predictions"
"""The folder of Parquet files."""
_PART_IMAGES = 1024
_FAILED = "failed.parquet"
_SHOWN_FAILURES = 1000

Entry = dict[str, Any]
IsWhole = Callable[[Entry], bool]


class Results:
    """The lines of a run in `predictions.jsonl`, one an image; they are appended a batch at a time.

    Args:
        folder: The folder of the run.
        images: Its images, in which is noted what is known of their results.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.pipeline.image_list import ImageList
        from covidcxr.pipeline.results import Results

        images = ImageList()
        images.add_paths(["image.png"])
        results = Results(Path(), images)
        results.append(['{"name": "image.png", "label": "normal"}' + chr(10)])
        assert [entry["label"] for entry in results] == ["normal"]
        ```
    """

    def __init__(self, folder: Path, images: ImageList) -> None:
        self._images = images
        self.path = folder / LINES

    @property
    def place(self) -> Path:
        """Where a reader finds the results."""
        return self.path

    def load(self, is_whole: IsWhole) -> None:
        """Note what an earlier process of this run has answered, and write the lines anew without all else.

        Args:
            is_whole: Whether an image was answered, and its files are there.
        """
        self._images.forget()
        if not self._index(is_whole):
            self._rewrite()

    def append(self, lines: Sequence[str]) -> None:
        """Add lines, which are on the disk when this returns.

        Args:
            lines: JSON, each with its line break.
        """
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Bring the results into the order of the images."""
        self._images.forget()
        if not self._index(lambda entry: True):
            self._rewrite()

    def __iter__(self) -> Iterator[Entry]:
        """Read the entries, one an image."""
        for _, entry in _read_lines(self.path):
            if entry is not None:
                yield entry

    def full(self) -> Iterator[Entry]:
        """Read the entries with all that a line holds, which are the masks too where they are no files."""
        return iter(self)

    def _index(self, is_whole: IsWhole) -> bool:
        """Note where the line of each image stands; return whether all lines are wanted and in order."""
        start, last, in_order = 0, -1, self.path.is_file()
        for line, entry in _read_lines(self.path):
            state = FAILED if entry is None or not is_whole(entry) else ANSWERED
            known = None if entry is None else self._images.note(entry["name"], state, start, len(line))
            number, before = known or (-1, 0)
            in_order = in_order and state == ANSWERED and number > last and not before
            start, last = start + len(line), number
        return in_order

    def _rewrite(self) -> None:
        with replace_file(self.path) as draft, draft.open("wb") as target:
            if self.path.is_file():
                with self.path.open("rb") as source:
                    for start, length in self._images.lines():
                        source.seek(start)
                        target.write(source.read(length))


class ParquetResults(Results):
    """The results of a run in Parquet files of some 1,000 images, with their masks as PNG.

    Lines wait in `predictions.jsonl` until there are enough of them. Images that cannot be read stay there, to be tried
    again, and are written as `failed.parquet` in the end.

    Args:
        folder: The folder of the run.
        images: Its images.
        classes: The labels of the classifier.
        mask_classes: The classes of all masks.

    Raises:
        ConfigError: If pyarrow is not installed.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.pipeline.image_list import ImageList
        from covidcxr.pipeline.results import ParquetResults

        results = ParquetResults(Path(), ImageList(), ["covid19", "normal"], ["lung_field"])
        assert "probability_covid19" in results.schema.names and "mask_lung_field" in results.schema.names
        ```
    """

    def __init__(self, folder: Path, images: ImageList, classes: Sequence[str], mask_classes: Sequence[str]) -> None:
        super().__init__(folder, images)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError('Parquet needs pyarrow: pip install "covidcxr[parquet]"') from error
        self._parts = folder / PARTS
        text, number, area = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
        columns = {"name": text, "image_id": text, "label": text}
        columns |= {f"probability_{name}": number for name in classes}
        columns |= {"reasons": pyarrow.list_(text), "notes": pyarrow.list_(text)}
        columns |= dict.fromkeys(("lung_fraction", "infected_fraction"), number)
        columns |= dict.fromkeys(("infected_fraction_low", "infected_fraction_high"), number)
        columns |= dict.fromkeys(("height", "width"), area)
        columns |= {f"fraction_{name}": number for name in mask_classes}
        columns |= {f"area_{name}": area for name in mask_classes}
        columns |= {f"mask_{name}": pyarrow.binary() for name in mask_classes}
        columns |= dict.fromkeys(("overlay", "folder", "error", "kind"), text)
        self.schema = pyarrow.schema(list(columns.items()))
        self._classes, self._mask_classes = tuple(classes), tuple(mask_classes)
        self._waiting = 0

    @property
    def place(self) -> Path:
        """Where a reader finds the results."""
        return self._parts

    def load(self, is_whole: IsWhole) -> None:
        """Note what an earlier process of this run has answered, and write the lines anew without all else.

        Args:
            is_whole: Whether an image was answered; the files of images that are in Parquet are not looked at.
        """
        super().load(is_whole)
        self._waiting = sum(1 for _ in _read_lines(self.path))

    def append(self, lines: Sequence[str]) -> None:
        """Add lines, which are on the disk when this returns; and write those that wait as a file, if they are enough.

        Args:
            lines: JSON, each with its line break.
        """
        super().append(lines)
        self._waiting += len(lines)
        if self._waiting >= _PART_IMAGES:
            self._rotate()

    def finish(self) -> None:
        """Write what waits, and the images that failed."""
        self._rotate()
        failed = self._parts / _FAILED
        failed.unlink(missing_ok=True)
        if any(True for _ in super().__iter__()):
            self._write(failed, map(to_row, super().__iter__()))

    def __iter__(self) -> Iterator[Entry]:
        """Read the entries, one an image; those of images that failed come last."""
        return self._read([name for name in self.schema.names if not name.startswith("mask_")])

    def full(self) -> Iterator[Entry]:
        """Read the entries with their masks."""
        return self._read(self.schema.names)

    def _read(self, columns: list[str]) -> Iterator[Entry]:
        import pyarrow.parquet

        for part in self._files():
            for batch in pyarrow.parquet.ParquetFile(part).iter_batches(_PART_IMAGES // 4, columns=columns):
                yield from map(to_entry, batch.to_pylist())
        yield from super().__iter__()

    def _files(self) -> list[Path]:
        return sorted(self._parts.glob("part-*.parquet"))

    def _index(self, is_whole: IsWhole) -> bool:
        import pyarrow.parquet

        in_order = super()._index(is_whole)
        for part in self._files():
            for batch in pyarrow.parquet.ParquetFile(part).iter_batches(columns=["name"]):
                for name in batch.column(0).to_pylist():
                    known = self._images.note(name, ANSWERED)  # its line, if it has one, is dropped
                    in_order = in_order and (known is None or not known[1])
        return in_order

    def _rotate(self) -> None:
        """Write the lines that wait as a file; those of images that failed stay.

        A process that is killed between the two steps leaves lines whose images are in the file: `load` drops them.
        """
        rows = list[Entry]()
        with replace_file(self.path) as draft:
            with draft.open("w", encoding="utf-8") as kept:
                for entry in super().__iter__():
                    if "error" in entry:
                        kept.write(json_text(entry) + "\n")
                    else:
                        rows.append(to_row(entry))
            if rows:
                number = max((int(part.stem.rpartition("-")[2]) for part in self._files()), default=-1) + 1
                self._write(self._parts / f"part-{number:06}.parquet", rows)
        self._waiting = 0

    def _write(self, path: Path, rows: Iterable[Entry]) -> None:
        write_parquet(path, rows, self.schema, _PART_IMAGES)


def to_row(entry: Entry) -> Entry:
    """Return an entry as a flat row of Parquet.

    Args:
        entry: What stands in a line.

    Returns:
        From column to value.
    """
    row = {key: value for key, value in entry.items() if not isinstance(value, dict)}
    for key, column in _COLUMNS.items():
        row |= {f"{column}_{name}": value for name, value in entry.get(key, {}).items()}
    row |= {f"mask_{name}": base64.b64decode(text) for name, text in entry.get("masks", {}).items()}
    low, high = entry.get("infected_interval") or (None, None)
    return row | {"infected_fraction_low": low, "infected_fraction_high": high, "overlay": _overlay(entry)}


def _overlay(entry: Entry) -> str | None:
    """Return the path of an entry's overlay in its folder."""
    endings = (ending for ending in entry.get("files", {}) if ending.startswith("overlay."))
    return next((f"films/{entry['name']}.{ending}" for ending in endings), None)


_SCORES = "probabilities"
_COLUMNS = {_SCORES: "probability", "finding_fractions": "fraction", "mask_areas": "area"}


def to_entry(row: Mapping[str, Any]) -> Entry:
    """Return a row of Parquet as the entry of a line.

    Args:
        row: From column to value; masks may lack.

    Returns:
        The entry.
    """
    keys = ("name", "image_id", "label", "reasons", "notes", "lung_fraction", "infected_fraction", "height", "width")
    entry = {key: row[key] for key in keys}
    failed = not_finite("classifier") in row["reasons"]  # each probability is null then, and there is one of each
    for key, column in _COLUMNS.items():
        start = f"{column}_"
        values = {name.removeprefix(start): value for name, value in row.items() if name.startswith(start)}
        entry[key] = {name: value for name, value in values.items() if value is not None or (failed and key == _SCORES)}
    low = row["infected_fraction_low"]
    entry["infected_interval"] = None if low is None else (low, row["infected_fraction_high"])
    entry["files"] = {"overlay" + Path(row["overlay"]).suffix: None} if row["overlay"] else {}
    masks = {name.removeprefix("mask_"): mask for name, mask in row.items() if name.startswith("mask_") and mask}
    if masks:
        entry["masks"] = {name: base64.b64encode(mask).decode() for name, mask in masks.items()}
    return entry if row["folder"] is None else entry | {"folder": row["folder"]}


def _read_lines(path: Path) -> Iterator[tuple[bytes, Entry | None]]:
    """Read lines, each with its entry; None where it is damaged, or half, since its process was killed."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                entry: Any = json.loads(line) if line.endswith(b"\n") else None
                yield line, entry if isinstance(entry, dict) and isinstance(entry.get("name"), str) else None
            except ValueError:
                yield line, None


def summarize(results: Results, left_out: Counter[str], folder: Path) -> dict[str, Any]:
    """Count what a run has answered.

    Args:
        results: Its results.
        left_out: How many files of which suffix were no images.
        folder: Its folder.

    Returns:
        Counts of images, predictions, reasons and failures, the first 1,000 failures, and the paths written.
    """
    counts: dict[str, Counter[str]] = {"answers": Counter(), "reasons": Counter(), "notes": Counter()}
    total = failed = 0
    failures = list[Entry]()
    for entry in results:
        total += 1
        if "error" in entry:
            failed += 1
            if failed <= _SHOWN_FAILURES:
                failures.append({"name": entry["name"], "error": entry["error"]})
            continue
        counts["answers"][entry["label"] or ("cannot say" if entry["probabilities"] else "no answer")] += 1
        counts["reasons"].update(entry["reasons"])
        counts["notes"].update(entry["notes"])
    return {
        "films": total,
        "failed": failed,
        **{name: dict(counter.most_common()) for name, counter in counts.items()},
        "failures": failures,
        "left_out": dict(left_out),
        "page": str((folder / "index.html").resolve()),
        "predictions": str(results.place.resolve()),
    }


SHOWN_LABELS = {"cannot say": "indeterminate"}
"""Labels of the summary that people read under another name."""

PAGE_IMAGES = 200
"""Images of a page: a browser shows so many at once."""

PAGES = "pages"
"""The folder of the pages where there are several."""


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
        _write_page(path, list(entries), summary)
        return
    groups: dict[str, _Group] = {}
    for entry in entries:
        title = _group_of(entry)
        if title not in groups:
            groups[title] = _Group(title, len(groups) + 1, path, summary)
        groups[title].add(entry)
    for group in groups.values():
        group.close()
    _write_page(path, [], summary, groups=sorted(groups.values(), key=lambda group: -group.count))


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
        after = None if last else self.link(self.pages + 1)
        links = {"index": f"../{self._index.name}", "before": before, "after": after}
        place = self._index.parent / PAGES / self.link(self.pages)
        _write_page(place, self._waiting, self._summary, title=f"{self.title}, page {self.pages}", links=links)
        self._waiting = []


def _group_of(entry: Entry) -> str:
    if "error" in entry:
        return "unreadable"
    if entry["label"]:
        return str(entry["label"])
    undecided = SHOWN_LABELS["cannot say"] if entry["probabilities"] else "no answer"
    return f"{undecided}: {in_words(entry['reasons'][0])}" if entry["reasons"] else undecided


def _write_page(
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
    interval = {"infection": interval_in_words(entry.get("infected_interval"))}
    for name, share in entry["finding_fractions"].items():
        areas.append(f"{name.replace('_', ' ')} {share:.0%} of the lungs{interval.get(name, '')}")
    overlay = _overlay({"files": ["overlay.png"], **entry})
    undecided = SHOWN_LABELS["cannot say"] if entry["probabilities"] or entry["reasons"] else ""
    folder = f"{entry['folder']}/" if "folder" in entry else ""  # of a shard
    return {
        "name": entry["name"],
        "picture": quote(f"{above}{folder}{overlay}") if overlay else None,
        "label": entry["label"],
        "result": entry["label"] or undecided,
        "probabilities": {name: value for name, value in entry["probabilities"].items() if value is not None},
        "sentences": [in_words(word) for word in (*entry["reasons"], *entry["notes"])],
        "areas": "; ".join(areas),
    }
