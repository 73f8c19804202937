"""The features of each probe as a sheet, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from covidcxr.data.collection import Collection
from covidcxr.data.records import Record
from covidcxr.evaluation.audit.features import Sheet, one_hot, shape_features
from covidcxr.evaluation.audit.films import Films, reads_itself
from covidcxr.evaluation.audit.headers import Header

__all__ = ["make_sheets"]

_PIXELS = ("border", "corners", "background", "grey", "thumbnail")


def make_sheets(
    data: Collection, records: Sequence[Record], films: Films, *, pixels: bool, segmenter: bool
) -> tuple[dict[str, Sheet], dict[str, str]]:
    """Return the features by probe, and from the other probes to why there are none.

    Args:
        data: The data set.
        records: Its films.
        films: What was read of them.
        pixels: Whether films were to be opened.
        segmenter: Whether lungs were to be taken out.
    """
    sheets = {**_columns(records), **_headers(data, len(records), films)}
    sheets["shape"] = _sheet(len(records), {n: shape_features(size) for n, size in films.sizes.items()})
    for name in _PIXELS:
        sheets[name] = _sheet(len(records), films.pixels.get(name, {}))
    kept = {name: sheet for name, sheet in sheets.items() if sheet.tells}
    skipped: dict[str, str] = {}
    for name in (*sheets, "facts", "header"):
        if name in kept or name in skipped:
            continue
        if name in _PIXELS and not pixels:
            skipped[name] = "films were not to be opened"
        elif name == "background" and not segmenter:
            skipped[name] = "no segmenter was given"
        elif name == "header" and (data.prepared is not None or reads_itself(data)):
            skipped[name] = "the films are not in their own files" if data.prepared is None else "a compact copy"
        elif name in (*_PIXELS, "header", "shape") and not films.sizes:
            skipped[name] = "no film is on the disk"
        elif name == "facts":
            skipped[name] = "fewer than two of them are stated"
        else:
            skipped[name] = "it is not stated, or the same for all films"
    return kept, skipped


def _columns(records: Sequence[Record]) -> dict[str, Sheet]:
    everywhere = np.ones(len(records), bool)
    columns = {name: one_hot([getattr(record, name) for record in records]) for name in ("source", "view", "sex")}
    columns["age"] = np.array([[np.nan if record.age is None else record.age] for record in records], float)
    sheets = {name: Sheet(values, everywhere) for name, values in columns.items()}
    facts = [sheets[name] for name in ("view", "sex", "age") if sheets[name].tells]
    if len(facts) > 1:
        sheets["facts"] = Sheet(np.concatenate([sheet.values for sheet in facts], axis=1), everywhere)
    return sheets


def _headers(data: Collection, count: int, films: Films) -> dict[str, Sheet]:
    if data.prepared is not None or not films.headers:
        return {}
    places = list(films.headers)
    found: list[Header] = list(films.headers.values())
    words = [one_hot([getattr(one, name) for one in found]) for name in ("format", "mode", "entries")]
    numbers = np.array([[one.file_bytes, one.quantization] for one in found], float)
    rows = np.concatenate([numbers, *words], axis=1)
    return {"header": _sheet(count, dict(zip(places, rows.tolist(), strict=True)))}


def _sheet(count: int, rows: Mapping[int, Sequence[float]]) -> Sheet:
    """Lay the rows of some films out among all films."""
    width = len(next(iter(rows.values()))) if rows else 1
    values = np.full((count, width), np.nan)
    known = np.zeros(count, bool)
    for number, row in rows.items():
        values[number], known[number] = row, True
    return Sheet(values, known)
