"""What leaves the server: a report of an image, as a page or PDF, and the images that may train models."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from jaxtyping import Bool, Float, UInt8
from sqlalchemy import select

from covidcxr import __version__, aliases
from covidcxr.data.datasets.folder import FORMAT_VERSION, INDEX
from covidcxr.errors import ConfigError
from covidcxr.io.folders import path_inside
from covidcxr.io.pretrained import write_json
from covidcxr.page import Block, Gallery, Page, Picture, Section, Table, Words
from covidcxr.serve.schema import FORMULA, INDETERMINATE, display_name, uniform
from covidcxr.serve.store import Row, Store, masks
from covidcxr.utils.plain import user_path

__getattr__ = partial(aliases.find, __name__)

__all__ = ["export_feedback", "image_report", "to_pdf"]

_WIDE = 640
"""Longer side of a picture in the report, in pixels."""


def image_report(
    image: Mapping[str, Any],
    pixels: UInt8[np.ndarray, "height width"],
    masks: Mapping[str, Bool[np.ndarray, "height width"]],
    heat: tuple[str, Float[np.ndarray, "height width"]] | None = None,
) -> Page:
    """Put an image's report together.

    Args:
        image: As the REST interface gives it.
        pixels: The image.
        masks: By mask class, at the image's size.
        heat: A class and what speaks for it, in [0, 1] at the image's size; None = not known.

    Returns:
        The page; every word in it that a client wrote is plain text.
    """
    facts = [
        ("Image", image["name"]),
        ("Uploaded", image["uploaded"][:19].replace("T", " ") + " UTC"),
        ("Size", f"{image['width']} x {image['height']}"),
        *image["identifiers"].items(),
    ]
    sections = [
        Section("Image", blocks=[Gallery(list(_pictures(image, pixels, masks, heat)))]),
        _probabilities(image),
        *([_post_test(image)] if image["posterior"] else []),
        _areas(image),
        _reader(image),
        _origin(image),
    ]
    return Page("Chest radiograph, read by a model", _headline(image), facts, sections)


def _headline(image: Mapping[str, Any]) -> str:
    label = image["label"]
    if label is not None:
        return f"Prediction: {_words(image, label)} ({image['probabilities'][label]:.0%})."
    why = " ".join(reason["words"] for reason in image["reasons"])
    return f"Prediction: {_words(image, INDETERMINATE)}. {why}".strip()


def _pictures(
    image: Mapping[str, Any],
    pixels: UInt8[np.ndarray, "height width"],
    masks: Mapping[str, Bool[np.ndarray, "height width"]],
    heat: tuple[str, Float[np.ndarray, "height width"]] | None,
) -> list[Picture]:
    from covidcxr.explain import Explanation
    from covidcxr.transforms.overlay import draw_overlay, mask_colors

    colors = {_words(image, name): color for name, color in mask_colors(masks).items()}
    corrected = ", ".join(_words(image, name) for name in image["corrected"])
    caption = f"Masks; corrected by the reader: {corrected}" if corrected else "Masks"
    pictures = [
        Picture(_png(pixels), "The image", "The image"),
        Picture(
            _png(draw_overlay(pixels, masks), colors),
            f"The image with outlines of {', '.join(colors) or 'no mask'}",
            caption,
        ),
    ]
    if heat is not None:
        target, values = heat
        shown = Explanation(values, target, "gradcam", image["probabilities"][target]).overlay(pixels)
        caption = f"Heat map of {_words(image, target)}: what speaks for it, according to the model (Grad-CAM)"
        pictures.append(Picture(_png(shown), "The image with a heat map", caption))
    return pictures


def _probabilities(image: Mapping[str, Any]) -> Section:
    rows = [
        (
            _words(image, name),
            f"{value:.1%}",
            _threshold(image["thresholds"].get(name)),
            _yes(name in image["plausible"]),
        )
        for name, value in image["probabilities"].items()
    ]
    reasons = [Words(reason["words"], warning=True) for reason in image["reasons"]]
    if not rows:
        return Section("Prediction", "The classifier was not run.", reasons)
    table = Table(("Class", "Probability", "Plausible from", "Plausible"), rows)
    lead = "Probabilities are calibrated for images like those of training, where all classes were equally frequent."
    return Section("Prediction", lead, [table, *reasons])


def _post_test(image: Mapping[str, Any]) -> Section:
    trained = uniform(image["probabilities"])
    rows = [
        (
            _words(image, name),
            f"{value:.1%}",
            f"{image['prior'][name]:.1%}",
            f"{trained[name]:.1%}",
            f"{image['posterior'][name]:.1%}",
        )
        for name, value in image["probabilities"].items()
    ]
    columns = ("Class", "p (model)", "Pre-test (reader)", "Trained", "Post-test")
    return Section("Post-test probability", f"Bayes' rule: {FORMULA}.", [Table(columns, rows)])


def _areas(image: Mapping[str, Any]) -> Section:
    columns = ("Mask", "Of the image", "Of both lungs", "Of the patient's right lung", "Of the patient's left lung")
    rows = [
        (_words(image, name), *("" if share is None else f"{share:.1%}" for share in areas.values()))
        for name, areas in image["areas"].items()
    ]
    lead = "" if rows else "There are no masks."
    if interval := image.get("infected_interval"):
        lead = f"Readers are expected to outline {interval[0]:.0%} to {interval[1]:.0%} of both lungs as infected."
    return Section("Areas", lead, [Table(columns, rows)] if rows else [])


def _reader(image: Mapping[str, Any]) -> Section:
    verdict = image["verdict"]
    if verdict is None:
        return Section("Reader", "No verdict was given.")
    rows = [
        ("Verdict", _words(image, verdict["label"]) if verdict["label"] else "not given"),
        ("Comment", verdict["comment"]),
        ("Saved", verdict["saved"][:19].replace("T", " ") + " UTC"),
        ("May train models", _yes(verdict["consent"])),
    ]
    return Section("Reader", blocks=[Table(("What", "Value"), rows)])


def _origin(image: Mapping[str, Any]) -> Section:
    rows = [
        ("Model", image["model"]),
        ("SHA-256 of the model", image["model_sha256"]),
        ("SHA-256 of the image's pixels", image["sha256"]),
        ("covidcxr", __version__),
    ]
    notes = [Words(note) for note in image["notes"]]
    return Section("Where this comes from", blocks=[Table(("What", "Value"), rows), *notes])


def _png(pixels: np.ndarray[Any, Any], key: Mapping[str, tuple[int, int, int]] | None = None) -> bytes:
    """Return a picture, made small, with a key to its colours below it."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((_WIDE, _WIDE))
    if key:
        font, line = ImageFont.load_default(26), 36
        high = picture.height
        picture = ImageOps.expand(picture, (0, 0, 0, line * len(key)), fill=(0, 0, 0))
        draw = ImageDraw.Draw(picture)
        for row, (words, color) in enumerate(key.items()):
            draw.rectangle((8, high + line * row + 8, 28, high + line * row + 28), fill=color)
            draw.text((38, high + line * row + 3), words, fill=(255, 255, 255), font=font)
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _threshold(value: float | None) -> str:
    return "most probable" if value is None else f"{value:.1%}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _words(image: Mapping[str, Any], name: str) -> str:
    return str(image["names"].get(name) or display_name(name))


_FONT = "DejaVuSans"

_MARGIN = 42.0  # points, 15 mm

_PADDING = 6.0  # of reportlab's frame

_INK, _DIM, _LINE, _DOUBT = "#1c2128", "#59636e", "#d5dae1", "#9a5b00"

_SIDE_BY_SIDE = 3


def to_pdf(page: Page) -> bytes:
    """Return a page as PDF (A4): the same words, tables and pictures.

    Letters are those of DejaVu Sans (Latin, Greek, Cyrillic and more; no Chinese, Japanese or Korean).

    Args:
        page: The page.

    Returns:
        The PDF.
    """
    from reportlab.lib.pagesizes import A4
    from reportlab.platypus import SimpleDocTemplate

    _register_fonts()
    buffer = io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        title=page.title,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN,
        invariant=1,  # no date of its own: the same page gives the same file
    )

    def number(canvas: Any, document: Any) -> None:
        canvas.setFont(_FONT, 7.5)
        canvas.setFillColor(_DIM)
        canvas.drawString(_MARGIN, _MARGIN / 2, page.notice)
        canvas.drawRightString(A4[0] - _MARGIN, _MARGIN / 2, f"{document.page}")

    document.build(list(_flow(page, document.width - 2 * _PADDING)), onFirstPage=number, onLaterPages=number)
    return buffer.getvalue()


def _register_fonts() -> None:
    import matplotlib
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    # The standard fonts of PDF know Latin-1 only: a comment in Russian would be a row of boxes.
    for name in (_FONT, f"{_FONT}-Bold"):
        if name not in pdfmetrics.getRegisteredFontNames():
            pdfmetrics.registerFont(TTFont(name, f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf"))


def _flow(page: Page, width: float) -> Iterator[Any]:
    yield _paragraph(page.title, size=16, bold=True)
    yield _paragraph(page.notice, color=_DOUBT)
    yield _paragraph(page.verdict, size=11, bold=True)
    if page.facts:
        yield _table([(_paragraph(name, color=_DIM), _paragraph(value)) for name, value in page.facts], width)
    for section in page.sections:
        yield _paragraph(section.title, size=12, bold=True, before=12, keep=True)
        if section.lead:
            yield _paragraph(section.lead, color=_DIM, keep=bool(section.blocks))
        for block in section.blocks:
            yield _block(block, width)


def _block(block: Block, width: float) -> Any:
    if isinstance(block, Words):
        return _paragraph(block.text, color=_DOUBT if block.warning else _INK)
    if isinstance(block, Table):
        head = tuple(_paragraph(cell, color=_DIM) for cell in block.columns)
        return _table([head, *(tuple(map(_paragraph, row)) for row in block.rows)], width)
    pictures = block.pictures if isinstance(block, Gallery) else [block]
    return _gallery(pictures, width)


def _gallery(pictures: Any, width: float) -> Any:
    """Lay pictures side by side, three in a row."""
    rows = [pictures[at : at + _SIDE_BY_SIDE] for at in range(0, len(pictures), _SIDE_BY_SIDE)]
    share = width / min(len(pictures), _SIDE_BY_SIDE)
    cells = [[_figure(picture, share - 12) for picture in row] for row in rows]
    return _table(cells, width, lines=False)


def _figure(picture: Picture, width: float) -> Any:
    from reportlab.platypus import Image

    image = Image(io.BytesIO(picture.png))
    scale = min(width / image.imageWidth, 1.4 * width / image.imageHeight)
    image.drawWidth, image.drawHeight = image.imageWidth * scale, image.imageHeight * scale
    return [image, _paragraph(picture.caption, color=_DIM)]


def _table(rows: Any, width: float, *, lines: bool = True) -> Any:
    from reportlab.platypus import Table as Cells

    most = max(map(len, rows))
    filled = [[*row, *[""] * (most - len(row))] for row in rows]
    style: list[tuple[Any, ...]] = [("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0)]
    style += [("TOPPADDING", (0, 0), (-1, -1), 2), ("BOTTOMPADDING", (0, 0), (-1, -1), 3)]
    if lines:
        style.append(("LINEBELOW", (0, 0), (-1, -1), 0.5, _LINE))
    return Cells(filled, colWidths=[width / most] * most, style=style, splitInRow=1)


def _paragraph(
    text: str, *, size: float = 9, color: str = _INK, bold: bool = False, before: float = 0, keep: bool = False
) -> Any:
    """Return plain text; what looks like markup in it is shown, not obeyed. `keep` = on one page with what follows."""
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    style = ParagraphStyle(
        "text",
        fontName=f"{_FONT}-Bold" if bold else _FONT,
        fontSize=size,
        leading=1.35 * size,
        textColor=color,
        spaceBefore=before,
        spaceAfter=3,
        splitLongWords=1,
        keepWithNext=keep,
    )
    return Paragraph("<br/>".join(escape(line) for line in text.splitlines()), style)


def export_feedback(store: Store, out: str | Path) -> dict[str, int]:
    """Write the images that may train models into a folder, which appears whole or not at all.

    It holds `feedback.json`, `films/ID.png`, corrected masks as `masks/ID.CLASS.png`, and those that the model
    predicted as `drawn/films/ID.png.CLASS.png`. File names, comments and DICOM identifiers stay in the store; images of
    one DICOM patient share a number.

    Args:
        store: Where readers' verdicts are.
        out: A folder that is not there yet, or is empty.

    Returns:
        How many images, labels and corrected masks it holds.

    Raises:
        ConfigError: If the folder holds something, or no reader agreed.
        OSError: If it cannot be written.
    """
    target = user_path(out)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(
            f"{target} is there already. Export into a new folder: consent may have been withdrawn since."
        )
    rows = [row for row in reversed(store.rows()) if row["verdict"] is not None and row["verdict"]["consent"]]
    if not rows:
        raise ConfigError("No reader agreed that an image may train models, so there is nothing to export.")
    draft = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        images = [_write_image(store, row, draft, patient) for row, patient in zip(rows, _number(rows), strict=True)]
        classes = list(dict.fromkeys(name for row in rows for name in row["verdict"]["classes"]))
        write_json(draft / INDEX, {"format_version": FORMAT_VERSION, "classes": classes, "films": images})
        if target.is_dir():
            target.rmdir()
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    labels = sum(image["label"] is not None for image in images)
    corrected = sum(len(image["masks"]) for image in images)
    return {"films": len(images), "labels": labels, "corrected_masks": corrected}


def _write_image(store: Store, row: Row, folder: Path, patient: str | None) -> dict[str, Any]:
    verdict, image = row["verdict"], f"films/{row['id']}.png"
    _write(folder / image, store.picture(row["id"], "image"))
    corrected = {}
    for name, is_corrected, png in _masks(store, row["id"]):
        place = f"masks/{row['id']}.{name}.png" if is_corrected else f"drawn/{image}.{name}.png"
        _write(path_inside(folder, place), png)  # the class is a model's word
        if is_corrected:
            corrected[name] = place
    return {
        "film": image,
        "sha256": row["sha256"],
        "patient": patient,
        "label": None if verdict["label"] == INDETERMINATE else verdict["label"],
        "verdict": verdict["label"],
        "saved": verdict["saved"],
        "masks": corrected,
        "model": verdict["model"],
        "model_sha256": verdict["model_sha256"],
        "answer": {name: verdict["answer"][name] for name in ("label", "probabilities")},
    }


def _masks(store: Store, image_id: str) -> Iterator[tuple[str, bool, bytes]]:
    with store.engine.connect() as connection:
        for row in connection.execute(select(masks).where(masks.c.film == image_id).order_by(masks.c.name)):
            yield row.name, row.corrected, bytes(row.image)


def _number(rows: list[Row]) -> Iterator[str | None]:
    """Give each DICOM patient a number; where nobody is known, the pixels' own hash tells the same image again."""
    numbers: dict[str, str] = {}
    for row in rows:
        patient = row["identifiers"].get("PatientID")
        yield None if patient is None else numbers.setdefault(patient, f"patient-{len(numbers) + 1}")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
