"""Bars: the images of each class by source, and the ages of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from covidcxr.data.records import Record, count_by
from covidcxr.data.summary.contact_sheet import DIM, INK, LINE, Color, font, shortened, text_width
from covidcxr.data.summary.summary import count_ages, labels_shown

__all__ = ["draw_charts"]

Series = Mapping[str, Mapping[str, int]]
"""From the name of a bar to the counts of its parts."""

_COLORS: tuple[Color, ...] = (  # Okabe and Ito 2008: told apart by colour-blind readers too; grey = the rest
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0)),
    (165, 172, 181),
)
_WIDTH, _MARGIN, _TITLE, _LEGEND, _BAR = 960, 32, 44, 34, 30
_NAMES, _COUNTS, _HEIGHT = 190, 70, 220


def draw_charts(records: Sequence[Record], *, title: str) -> Image.Image:
    """Draw the images of each class as bars, parted by source, and below them the ages, parted by class.

    Args:
        records: The images.
        title: Name of the data set, for the heading.

    Returns:
        The picture, in colour.
    """
    by_label: dict[str, list[Record]] = {}
    for record in records:
        for label in labels_shown(record):
            by_label.setdefault(label, []).append(record)
    by_label = dict(sorted(by_label.items(), key=lambda item: -len(item[1])))
    classes = _few({name: count_by(images, "source") for name, images in by_label.items()})
    exclusive = sum(map(len, by_label.values())) == len(records)
    ages = {name: count_ages(images) for name, images in (by_label if exclusive else {"films": records}).items()}
    bands = [band for band in count_ages(records) if band != "unknown"]
    by_age = _few({band: {name: counts.get(band, 0) for name, counts in ages.items()} for band in bands})
    height = 2 * _MARGIN + _TITLE + _LEGEND + _BAR * len(classes)
    picture = Image.new("RGB", (_WIDTH, height + (_TITLE + _LEGEND + _HEIGHT + 60 if bands else 0)), "white")
    draw = ImageDraw.Draw(picture)
    _draw_heading(draw, f"{title}: images of each class, by source", classes, _MARGIN)
    _draw_rows(draw, classes, _MARGIN + _TITLE + _LEGEND)
    if bands:
        unknown = count_ages(records).get("unknown", 0)
        silent = f" ({unknown:,} images do not tell)" if unknown else ""
        _draw_heading(draw, f"Age in years{', by class' if exclusive else ''}{silent}", by_age, height)
        _draw_columns(draw, by_age, height + _TITLE + _LEGEND)
    return picture


def _few(series: Series) -> dict[str, dict[str, int]]:
    """Keep as many kinds of parts as there are colours, the most frequent ones; the others become one."""
    totals: dict[str, int] = {}
    for parts in series.values():
        for name, count in parts.items():
            totals[name] = totals.get(name, 0) + count
    kinds = sorted(totals, key=lambda name: -totals[name])
    kept = kinds if len(kinds) < len(_COLORS) else kinds[: len(_COLORS) - 1]
    few = {bar: {name: parts.get(name, 0) for name in kept} for bar, parts in series.items()}
    if len(kept) < len(kinds):
        for bar, parts in series.items():
            few[bar][f"{len(kinds) - len(kept)} more"] = sum(n for name, n in parts.items() if name not in kept)
    return few


def _colors(series: Series) -> dict[str, Color]:
    names = dict.fromkeys(name for parts in series.values() for name in parts)
    return dict(zip(names, _COLORS, strict=False))


def _draw_heading(draw: ImageDraw.ImageDraw, title: str, series: Series, top: int) -> None:
    """Write a title, and below it which colour is what."""
    draw.text((_MARGIN, top), shortened(draw, title, 22, _WIDTH - 2 * _MARGIN), INK, font(22))
    colors = _colors(series)
    fits = sum(text_width(draw, name, 16) + 46 for name in colors) <= _WIDTH - 2 * _MARGIN
    room = _WIDTH if fits else (_WIDTH - 2 * _MARGIN) // len(colors) - 46
    x = _MARGIN
    for name, color in colors.items():
        words = shortened(draw, name, 16, room)
        draw.rectangle((x, top + _TITLE - 2, x + 12, top + _TITLE + 10), color)
        draw.text((x + 20, top + _TITLE + 4), words, DIM, font(16), anchor="lm")
        x += 46 + text_width(draw, words, 16)


def _draw_rows(draw: ImageDraw.ImageDraw, series: Series, top: int) -> None:
    """Draw lying bars, each with its name before and its sum behind."""
    colors = _colors(series)
    longest = max((sum(parts.values()) for parts in series.values()), default=0) or 1
    scale = (_WIDTH - 2 * _MARGIN - _NAMES - _COUNTS) / longest
    for row, (name, parts) in enumerate(series.items()):
        middle, done = top + row * _BAR + _BAR // 2, 0
        draw.text((_MARGIN, middle), shortened(draw, name, 18, _NAMES - 16), INK, font(18), anchor="lm")
        left = _MARGIN + _NAMES
        for part, count in parts.items():
            if count:
                ends = left + round(done * scale), left + round((done + count) * scale)
                draw.rectangle((ends[0], middle - 9, max(ends[0], ends[1] - 1), middle + 9), colors[part])
                done += count
        draw.text((left + round(done * scale) + 10, middle), f"{done:,}", DIM, font(16), anchor="lm")


def _draw_columns(draw: ImageDraw.ImageDraw, series: Series, top: int) -> None:
    """Draw standing bars over one line, each with its sum above and its name below."""
    colors = _colors(series)
    highest = max((sum(parts.values()) for parts in series.values()), default=0) or 1
    scale, step = (_HEIGHT - 24) / highest, (_WIDTH - 2 * _MARGIN) / len(series)
    floor = top + _HEIGHT
    for place, (name, parts) in enumerate(series.items()):
        middle, done = round(_MARGIN + (place + 0.5) * step), 0
        half = min(28, round(step * 0.36))
        for part, count in parts.items():
            if count:
                ends = floor - round(done * scale), floor - round((done + count) * scale)
                draw.rectangle((middle - half, min(ends[0], ends[1] + 1), middle + half, ends[0]), colors[part])
                done += count
        draw.text((middle, floor - round(done * scale) - 12), f"{done:,}", DIM, font(16), anchor="mm")
        draw.text((middle, floor + 18), name, INK, font(16), anchor="mm")
    draw.line((_MARGIN, floor + 1, _WIDTH - _MARGIN, floor + 1), LINE)
