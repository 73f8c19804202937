"""A page of this library as PDF."""

from __future__ import annotations

import io
from collections.abc import Iterator
from html import escape
from typing import Any

from covidcxr.page import Block, Gallery, Page, Picture, Table, Words

__all__ = ["to_pdf"]

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
