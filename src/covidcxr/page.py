"""A report as data: sections of paragraphs, tables and pictures, written as one HTML page or as Markdown.

The page is self-contained: styles and pictures are inside it, it runs no script, and its own security policy forbids
every request. Text is escaped when it is written. The numbers belong in a JSON file beside the page, not in it alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

from covidcxr.io.folders import replace_file

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = [
    "Block",
    "Gallery",
    "Page",
    "Picture",
    "Section",
    "Table",
    "Words",
    "load_template",
    "sections_of",
    "side_by_side",
    "style_hash",
    "to_html",
    "write_html",
    "write_markdown",
]

RESEARCH_ONLY = "For research only, not for clinical use."

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #1c2128; --dim: #59636e; --line: #d5dae1;
        --bar: #3b6fd4; --doubt: #9a5b00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1e2329; --ink: #e8eaed; --dim: #9aa4b0; --line: #343b44; --bar: #7ba4f4;
          --doubt: #f0b35a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.4rem; } p { margin: .25rem 0; } .dim { color: var(--dim); }
.notice { border-left: 4px solid var(--doubt); padding: .4rem .8rem; margin: 1rem 0; background: var(--card); }
"""
"""The style that all pages of this library share."""

_REPORT_STYLE = """
body { max-width: 72rem; margin: 0 auto; }
h2 { margin: 0 0 .4rem; font-size: 1.15rem; }
nav a { display: inline-block; margin-right: 1rem; color: var(--bar); }
.verdict { font-size: 1.1rem; font-weight: 600; margin: .75rem 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.facts div, section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; }
.facts div { padding: .6rem .8rem; }
.facts b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
section { margin: 1rem 0; overflow-x: auto; }
.lead { margin-bottom: .8rem; max-width: 60rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding-bottom: .3rem; }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; white-space: nowrap; }
figure { margin: .8rem 0; } figure img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
figcaption { font-size: .85rem; color: var(--dim); overflow-wrap: anywhere; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
.gallery figure { margin: 0; } .gallery img { width: 100%; background: #000; }
@media print { body { padding: 0; background: none; } nav { display: none; } section, figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Words:
    """A paragraph.

    Attributes:
        text: Plain text.
        warning: Whether it is highlighted as a warning.

    Example:
        ```python
        from covidcxr.page import Words

        assert not Words("Scores have 95 % intervals.").warning
        ```
    """

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table of plain text.

    Attributes:
        columns: The column heads.
        rows: The rows, each with as many cells as there are columns.
        caption: What the table shows.

    Example:
        ```python
        from covidcxr.page import Table

        table = Table(("score", "value"), [("AUROC", "0.91")])
        assert len(table.columns) == len(table.rows[0])
        ```
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        png: The bytes of a PNG file.
        alt: Description for readers who cannot see it.
        caption: Text below it.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.page import Picture

        picture = Picture(Path("image.png").read_bytes(), "A chest radiograph")
        assert picture.caption == ""
        ```
    """

    png: bytes = field(repr=False)
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side.

    Attributes:
        pictures: The pictures, in reading order.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.page import Gallery, Picture

        picture = Picture(Path("image.png").read_bytes(), "A chest radiograph")
        assert len(Gallery([picture, picture]).pictures) == 2
        ```
    """

    pictures: Sequence[Picture]


Block: TypeAlias = Words | Table | Picture | Gallery
"""What a section contains."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading.
        lead: Its message, in a sentence or two.
        blocks: Its content, in order.

    Example:
        ```python
        from covidcxr.page import Section, Words

        assert Section("Method", blocks=[Words("Five folds.")]).lead == ""
        ```
    """

    title: str
    lead: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Its heading.
        verdict: The conclusion in one sentence, shown first.
        facts: The few figures of the first screen, as pairs of name and value.
        sections: Its parts, in order.
        notice: The warning on the first screen.

    Example:
        ```python
        from covidcxr.page import Page, Section, to_html

        page = Page("Audit of <mine>", sections=[Section("Method")])
        assert "<h1>Audit of &lt;mine&gt;</h1>" in to_html(page)
        ```
    """

    title: str
    verdict: str = ""
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    notice: str = RESEARCH_ONLY


@singledispatch
def sections_of(result: Any) -> list[Section]:
    """Return the sections of a report that show a result.

    Results are plain data and do not import what renders them: the module that renders a class registers its function
    with `sections_of.register`. Other results may have a method `sections()`, as the parts of an evaluation do.

    Args:
        result: The result of an audit, an evaluation or a stress test.

    Returns:
        Its sections, in reading order.

    Raises:
        AttributeError: If nothing is registered for its class, and it has no method `sections`.

    Example:
        ```python
        from covidcxr.page import Section, sections_of

        class Count:
            images = 3

        @sections_of.register(Count)
        def count_sections(result: Count) -> list[Section]:
            return [Section("Size", f"{result.images} images")]

        assert sections_of(Count())[0].lead == "3 images"
        ```
    """
    return list(result.sections())


def write_html(page: Page, path: Path) -> Path:
    """Write a page as one HTML file that needs no network; the file appears whole or not at all.

    Args:
        page: The page.
        path: The file.

    Returns:
        The path that was given.
    """
    with replace_file(path) as draft:
        draft.write_text(to_html(page), encoding="utf-8", errors="backslashreplace")
    return path


def to_html(page: Page) -> str:
    """Return the HTML that `write_html` writes, for a server.

    Args:
        page: The page.

    Returns:
        A whole HTML document.
    """
    from markupsafe import Markup

    return f"{load_template('page.html.jinja').render(page=page, style=Markup(STYLE + _REPORT_STYLE))}\n"


@cache
def load_template(name: str) -> Template:
    """Return a template of this library, which escapes all that is put into it.

    Args:
        name: A file of `covidcxr/templates`.

    Returns:
        The template.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("covidcxr"), autoescape=True, trim_blocks=True, undefined=StrictUndefined
    )
    environment.filters["anchor"] = lambda title: re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode()
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template(name)


def style_hash() -> str:
    """Return the hash of the style of every page: a server's security policy allows that style and no other.

    Returns:
        A source expression of a Content-Security-Policy: "sha256-" and the digest in base64.
    """
    digest = hashlib.sha256(f"{STYLE}{_REPORT_STYLE}".encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def write_markdown(page: Page, path: Path, head: str = "") -> Path:
    """Write paragraphs and tables of a page as Markdown, without pictures; the file appears whole or not at all.

    Args:
        page: The page.
        path: The file.
        head: Stands before it.

    Returns:
        The path that was given.
    """
    with replace_file(path) as draft:
        draft.write_text(head + "\n".join(_markdown(page)), encoding="utf-8", errors="backslashreplace")
    return path


def _markdown(page: Page) -> Iterator[str]:
    yield f"# {page.title}\n"
    if page.notice:
        yield f"**{page.notice}**\n"
    if page.verdict:
        yield f"{page.verdict}\n"
    if page.facts:
        yield from _markdown_table(Table(("What", "Value"), page.facts))
    for section in page.sections:
        yield f"## {section.title}\n"
        if section.lead:
            yield f"{section.lead}\n"
        for block in section.blocks:
            if isinstance(block, Words):
                yield f"{f'**{block.text}**' if block.warning else block.text}\n"
            elif isinstance(block, Table):
                yield from _markdown_table(block)


def _markdown_table(table: Table) -> Iterator[str]:
    if table.caption:
        yield f"{table.caption}:\n"
    for row in (table.columns, ["---"] * len(table.columns), *table.rows):
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def side_by_side(pictures: Sequence[UInt8[np.ndarray, "height width 3"]], height: int = 320) -> bytes:
    """Return pictures in a row, as a PNG.

    Args:
        pictures: In colour, of any sizes.
        height: Of the row, in pixels.

    Returns:
        The bytes of the file.
    """
    from PIL import Image

    shrunk = [
        Image.fromarray(picture).resize((max(1, round(picture.shape[1] * height / picture.shape[0])), height))
        for picture in pictures
    ]
    sheet = Image.new("RGB", (sum(picture.width for picture in shrunk), height))
    left = 0
    for picture in shrunk:
        sheet.paste(picture, (left, 0))
        left += picture.width
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
