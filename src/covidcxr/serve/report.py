"""The report of one image: what is known of it, as a page that can be printed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from covidcxr import __version__
from covidcxr.page import Block, Gallery, Page, Picture, Section, Table, Words
from covidcxr.serve.schema import FORMULA, uniform

__all__ = ["film_report", "to_pdf"]

_WIDE = 640


"""Longer side of a picture in the report, in pixels."""


def film_report(
    film: Mapping[str, Any],
    pixels: UInt8[np.ndarray, "height width"],
    masks: Mapping[str, Bool[np.ndarray, "height width"]],
    heat: tuple[str, Float[np.ndarray, "height width"]] | None = None,
) -> Page:
    """Put an image's report together.

    Args:
        film: As the REST interface gives it.
        pixels: The image.
        masks: By mask class, at the image's size.
        heat: A class and what speaks for it, in [0, 1] at the image's size; None = not known.

    Returns:
        The page; every word in it that a client wrote is plain text.
    """
    facts = [
        ("Film", film["name"]),
        ("Uploaded", film["uploaded"][:19].replace("T", " ") + " UTC"),
        ("Size", f"{film['width']} x {film['height']}"),
        *((_words(name), value) for name, value in film["identifiers"].items()),
    ]
    sections = [
        Section("Film", blocks=[Gallery(list(_pictures(film, pixels, masks, heat)))]),
        _probabilities(film),
        *([_post_test(film)] if film["posterior"] else []),
        _areas(film),
        _reader(film),
        _origin(film),
    ]
    return Page("Chest radiograph, read by a model", _answer(film), facts, sections)


def _answer(film: Mapping[str, Any]) -> str:
    label = film["label"]
    if label is not None:
        return f"The model answers: {_words(label)} ({film['probabilities'][label]:.0%})."
    why = " ".join(reason["words"] for reason in film["reasons"])
    return f"The model cannot say. {why}".strip()


def _pictures(
    film: Mapping[str, Any],
    pixels: UInt8[np.ndarray, "height width"],
    masks: Mapping[str, Bool[np.ndarray, "height width"]],
    heat: tuple[str, Float[np.ndarray, "height width"]] | None,
) -> list[Picture]:
    from covidcxr.explain import Explanation
    from covidcxr.pipeline.prediction import Prediction

    drawn = Prediction("", None, {}, (), dict(masks), pixels).overlay()
    corrected = f"; corrected by the reader: {_list(film['corrected'])}" if film["corrected"] else ""
    pictures = [
        Picture(_png(pixels), "The image", "The image"),
        Picture(_png(drawn), "The image with outlines of its masks", f"Masks: {_list(film['masks'])}{corrected}"),
    ]
    if heat is not None:
        target, values = heat
        shown = Explanation(values, target, "gradcam", film["probabilities"][target]).overlay(pixels)
        caption = f"What speaks for {_words(target)} in the eyes of the model (Grad-CAM)"
        pictures.append(Picture(_png(shown), "The image with a heat map", caption))
    return pictures


def _probabilities(film: Mapping[str, Any]) -> Section:
    rows = [
        (_words(name), f"{value:.1%}", _threshold(film["thresholds"].get(name)), _yes(name in film["plausible"]))
        for name, value in film["probabilities"].items()
    ]
    reasons = [Words(reason["words"], warning=True) for reason in film["reasons"]]
    if not rows:
        return Section("Answer", "The classifier was not asked.", reasons)
    table = Table(("Class", "Probability", "Plausible from", "Plausible"), rows)
    lead = "Probabilities are calibrated for images like those of training, where all classes were equally frequent."
    return Section("Answer", lead, [table, *reasons])


def _post_test(film: Mapping[str, Any]) -> Section:
    trained = uniform(film["probabilities"])
    rows = [
        (
            _words(name),
            f"{value:.1%}",
            f"{film['prior'][name]:.1%}",
            f"{trained[name]:.1%}",
            f"{film['posterior'][name]:.1%}",
        )
        for name, value in film["probabilities"].items()
    ]
    columns = ("Class", "p (model)", "Pre-test (reader)", "Trained", "Post-test")
    return Section("Post-test probability", f"Bayes' rule: {FORMULA}.", [Table(columns, rows)])


def _areas(film: Mapping[str, Any]) -> Section:
    sides = film["infected_by_lung"]
    shares = (
        ("Lungs, of the image", film["lung_fraction"]),
        ("Infected, of both lungs", film["infected_fraction"]),
        ("Infected, of the patient's right lung", sides["right"]),
        ("Infected, of the patient's left lung", sides["left"]),
    )
    rows = [(what, f"{share:.1%}") for what, share in shares if share is not None]
    return Section("Areas", "" if rows else "No masks were drawn.", [Table(("What", "Share"), rows)] if rows else [])


def _reader(film: Mapping[str, Any]) -> Section:
    verdict = film["verdict"]
    if verdict is None:
        return Section("Reader", "No verdict was given.")
    rows = [
        ("Verdict", _words(verdict["label"] or "none")),
        ("Comment", verdict["comment"]),
        ("Saved", verdict["saved"][:19].replace("T", " ") + " UTC"),
        ("May train models", _yes(verdict["consent"])),
    ]
    return Section("Reader", blocks=[Table(("What", "Said"), rows)])


def _origin(film: Mapping[str, Any]) -> Section:
    rows = [
        ("Model", film["model"]),
        ("SHA-256 of the model", film["model_sha256"]),
        ("SHA-256 of the image's pixels", film["sha256"]),
        ("covidcxr", __version__),
    ]
    notes = [Words(note) for note in film["notes"]]
    return Section("Where this comes from", blocks=[Table(("What", "Which"), rows), *notes])


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((_WIDE, _WIDE))
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _threshold(value: float | None) -> str:
    return "most probable" if value is None else f"{value:.1%}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _list(names: list[str]) -> str:
    return ", ".join(map(_words, names)) or "none"


_FONT = "DejaVuSans"


_MARGIN = 42.0  # points, 15 mm


_PADDING = 6.0  # of reportlab's frame


_INK, _DIM, _LINE, _DOUBT = "#1c2128", "#59636e", "#d5dae1", "#9a5b00"


_SIDE_BY_SIDE = 3


def to_pdf(page: Page) -> bytes:
    """Return a page as PDF (A4): the same words, tables and pictures.

    Letters are those of DejaVu Sans (Latin, Greek, Cyrillic and more; no Chinese, Japanese or Korean).
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
