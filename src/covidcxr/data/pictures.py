"""Pictures of a data set: a contact sheet, and bars of its classes, sources and ages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from covidcxr import aliases
from covidcxr.data.curation.quality import QualityReport
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.dataset import CXRDataset
from covidcxr.data.records import Record, count_by
from covidcxr.data.summary import count_ages, labels_shown
from covidcxr.errors import CovidCXRError
from covidcxr.io.folders import replace_file
from covidcxr.transforms.overlay import draw_overlay, mask_colors
from covidcxr.utils.threads import Progress

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "Row",
    "choose_images",
    "draw_contact_sheet",
    "quality_rows",
    "DIM",
    "INK",
    "LINE",
    "Color",
    "font",
    "save_picture",
    "draw_charts",
]

Color = tuple[int, int, int]


INK: Color = (28, 33, 40)


DIM: Color = (89, 99, 110)


LINE: Color = (213, 218, 225)


@cache
def font(size: int) -> Any:
    """Return the font that comes with Pillow.

    Args:
        size: Its height in pixels.

    Returns:
        The font.
    """
    return ImageFont.load_default(size)


def _text_width(draw: ImageDraw.ImageDraw, text: str, size: int) -> int:
    """Measure a text."""
    return int(np.ceil(draw.textlength(text, font(size))))


def _shortened(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """Cut the middle out of a text that is too wide: the ends of file names tell most."""
    keep = len(text)
    cut = text
    while keep > 2 and _text_width(draw, cut, size) > width:
        keep -= 1
        cut = f"{text[: (keep + 1) // 2].rstrip()}...{text[len(text) - keep // 2 :].lstrip()}"
    return cut


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a PNG that appears complete or not at all.

    Args:
        picture: What is written.
        path: The file.

    Returns:
        The same path.
    """
    with replace_file(path) as draft:
        picture.save(draft, format="PNG", optimize=True)
    return path


_MARGIN, _GAP, _CAPTION, _HEADING, _TITLE = 32, 12, 60, 52, 66


_FAULT: Color = (179, 38, 30)


@dataclass(frozen=True)
class Row:
    """A row of the sheet: images of one class and one source, what is left of the class, or what else they share.

    Attributes:
        label: Their class, or "unknown"; or what they share.
        source: Their source, or how many sources are gathered here.
        count: Number of images that the chosen ones stand for.
        patients: Number of patients on those.
        images: The chosen ones.

    Example:
        ```python
        from covidcxr.data import CSVDataModule
        from covidcxr.data.pictures import Row, choose_images

        data = CSVDataModule("phantoms")
        rows = choose_images(data.records, data.classes, columns=2)
        assert all(isinstance(row, Row) and len(row.images) <= 2 for row in rows)
        ```
    """

    label: str
    source: str
    count: int
    patients: int
    images: tuple[Record, ...]


def choose_images(
    records: Sequence[Record], classes: Sequence[str], *, columns: int = 6, sources: int = 4, seed: int = 0
) -> list[Row]:
    """Choose images for a contact sheet: of each class and source a few, of as many patients as there are.

    Args:
        records: The images.
        classes: Order of the rows; other labels follow.
        columns: Images a row.
        sources: Rows a class; the sources with fewest images share the last.
        seed: Seeds the choice.

    Returns:
        The rows, by class and then by number of images.
    """
    rng = np.random.default_rng(seed)
    labels: dict[str, list[Record]] = {name: [] for name in classes}
    for record in records:
        for label in labels_shown(record):
            labels.setdefault(label, []).append(record)
    rows = []
    for label, images in labels.items():
        names = list(count_by(images, "source"))
        shown = names if len(names) <= sources else names[: sources - 1]
        groups = [(name, [image for image in images if image.source == name]) for name in shown]
        if len(shown) < len(names):
            groups.append((f"{len(names) - len(shown)} more sources", [f for f in images if f.source not in shown]))
        for source, group in groups:
            patients = len({image.patient for image in group})
            rows.append(Row(label, source, len(group), patients, _one_a_patient(group, columns, rng)))
    return rows


def quality_rows(report: QualityReport, *, columns: int = 6) -> list[Row]:
    """Return a row a flag for a contact sheet, with the worst images of it.

    Args:
        report: From `covidcxr.data.curation.quality.check_quality`.
        columns: Images a row.

    Returns:
        The rows; images that cannot be read are left out.
    """
    rows = []
    for flag, count in report.counts.items():
        own = [image.record for image in report.images if flag in image.flags]
        worst = tuple(image.record for image in report.worst(flag, columns))
        if flag != "not readable":
            limit = report.limit_in_words(flag)
            rows.append(Row(flag, limit, count, len({record.patient for record in own}), worst))
    return rows


def _one_a_patient(images: Sequence[Record], most: int, rng: np.random.Generator) -> tuple[Record, ...]:
    """Draw images; a patient comes again only when all are there."""
    drawn = [images[place] for place in rng.permutation(len(images))]
    first: dict[str, Record] = {}
    again = [image for image in drawn if first.setdefault(image.patient, image) is not image]
    return tuple([*first.values(), *again][:most])


def draw_contact_sheet(
    data: CXRDataModule,
    *,
    title: str,
    columns: int = 6,
    tile: int = 224,
    seed: int = 0,
    rows: Sequence[Row] | None = None,
    progress: Progress | None = None,
) -> Image.Image:
    """Draw a few images of each class and source, letterboxed to equal tiles, with the outlines of their masks.

    An image that cannot be read is a tile that says so. The picture shows images of the data set: its terms hold for
    it.

    Args:
        data: The data set.
        title: Its name, for the heading.
        columns: Images a row.
        tile: Height and width of an image in pixels.
        seed: Seeds the choice of images.
        rows: Shown in place of a few images of each class and source.
        progress: Called with how many images of how many are drawn.

    Returns:
        The sheet, in colour.
    """
    if rows is None:
        rows = choose_images(data.records, data.classes, columns=columns, seed=seed)
    images = CXRDataset(
        (replace(record, label=None, findings={}) for row in rows for record in row.images),
        classes=(),
        mask_classes=tuple(count_by(data.records, "mask")),
        image_size=(tile, tile),
        read=data.load_image,
    )
    width = 2 * _MARGIN + columns * (tile + _GAP) - _GAP
    height = _TITLE + len(rows) * (_HEADING + tile + _CAPTION) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    _draw_title(draw, f"{title}: {_number(len(data.records), 'image')}", images.mask_classes, width)
    index, top = 0, _MARGIN + _TITLE
    for row in rows:
        _draw_heading(draw, row, top, width)
        for place, record in enumerate(row.images):
            corner = (_MARGIN + place * (tile + _GAP), top + _HEADING)
            _draw_image(sheet, images, index, corner)
            _draw_caption(draw, record, (corner[0], corner[1] + tile + 6), tile)
            index += 1
            if progress is not None:
                progress(index, len(images))
        top += _HEADING + tile + _CAPTION
    return sheet


def _draw_title(draw: ImageDraw.ImageDraw, title: str, masks: Iterable[str], width: int) -> None:
    """Write the heading of the sheet, with the key to the outlines on the right."""
    x = width - _MARGIN
    for name, color in sorted(mask_colors(masks).items(), reverse=True):
        words = name.replace("_", " ")
        x -= _text_width(draw, words, 18)
        draw.text((x, _MARGIN + 8), words, INK, font(18))
        draw.rectangle((x - 24, _MARGIN + 10, x - 10, _MARGIN + 24), color)
        x -= 48
    draw.text((_MARGIN, _MARGIN), _shortened(draw, title, 30, x - _MARGIN), INK, font(30))


def _draw_heading(draw: ImageDraw.ImageDraw, row: Row, top: int, width: int) -> None:
    """Write what the images of a row are, over a thin line."""
    draw.line((_MARGIN, top, width - _MARGIN, top), LINE)
    draw.text((_MARGIN, top + 12), row.label, INK, font(22))
    counts = f"{_number(row.count, 'image')} of {_number(row.patients, 'patient')}"
    x = _MARGIN + _text_width(draw, row.label, 22) + 16
    draw.text((x, top + 15), _shortened(draw, f"{row.source}   {counts}", 18, width - _MARGIN - x), DIM, font(18))


def _draw_image(sheet: Image.Image, images: CXRDataset, index: int, corner: tuple[int, int]) -> None:
    try:
        sheet.paste(Image.fromarray(_with_outlines(images, index)), corner)
    except CovidCXRError:
        tile = images.geometry.image_size[0]
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((*corner, corner[0] + tile - 1, corner[1] + tile - 1), outline=LINE)
        draw.text((corner[0] + tile / 2, corner[1] + tile / 2), "cannot be read", _FAULT, font(18), anchor="mm")


def _with_outlines(images: CXRDataset, index: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image with its masks as a prediction would show them."""
    sample = images[index]
    image = (sample["image"][0] * 255).round().byte().numpy()
    planes = sample["mask"].numpy() if images.mask_classes else ()
    masks = {name: plane > 0 for name, plane in zip(images.mask_classes, planes, strict=True)}
    known = {name: mask for name, mask in masks.items() if name in images.records[index].mask_paths}
    return draw_overlay(image, known)


def _draw_caption(draw: ImageDraw.ImageDraw, record: Record, corner: tuple[int, int], width: int) -> None:
    age = None if record.age is None else f"{record.age:g}"
    facts = ", ".join(fact for fact in (record.view, record.sex, age) if fact)
    name = record.image_id.rpartition("/")[2]
    lines = [(facts, INK), (name, DIM)] if facts else [(name, DIM)]
    for number, (text, color) in enumerate(lines):
        draw.text((corner[0], corner[1] + 17 * number), _shortened(draw, text, 14, width), color, font(14))


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


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
    _draw_chart_title(draw, f"{title}: images of each class, by source", classes, _MARGIN)
    _draw_rows(draw, classes, _MARGIN + _TITLE + _LEGEND)
    if bands:
        unknown = count_ages(records).get("unknown", 0)
        silent = f" ({unknown:,} images do not tell)" if unknown else ""
        _draw_chart_title(draw, f"Age in years{', by class' if exclusive else ''}{silent}", by_age, height)
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


def _draw_chart_title(draw: ImageDraw.ImageDraw, title: str, series: Series, top: int) -> None:
    """Write a title, and below it which colour is what."""
    draw.text((_MARGIN, top), _shortened(draw, title, 22, _WIDTH - 2 * _MARGIN), INK, font(22))
    colors = _colors(series)
    fits = sum(_text_width(draw, name, 16) + 46 for name in colors) <= _WIDTH - 2 * _MARGIN
    width = _WIDTH if fits else (_WIDTH - 2 * _MARGIN) // len(colors) - 46
    x = _MARGIN
    for name, color in colors.items():
        words = _shortened(draw, name, 16, width)
        draw.rectangle((x, top + _TITLE - 2, x + 12, top + _TITLE + 10), color)
        draw.text((x + 20, top + _TITLE + 4), words, DIM, font(16), anchor="lm")
        x += 46 + _text_width(draw, words, 16)


def _draw_rows(draw: ImageDraw.ImageDraw, series: Series, top: int) -> None:
    """Draw lying bars, each with its name before and its sum behind."""
    colors = _colors(series)
    longest = max((sum(parts.values()) for parts in series.values()), default=0) or 1
    scale = (_WIDTH - 2 * _MARGIN - _NAMES - _COUNTS) / longest
    for row, (name, parts) in enumerate(series.items()):
        middle, done = top + row * _BAR + _BAR // 2, 0
        draw.text((_MARGIN, middle), _shortened(draw, name, 18, _NAMES - 16), INK, font(18), anchor="lm")
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
