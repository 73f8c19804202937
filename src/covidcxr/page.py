"""A report as data: sections of words, tables and pictures, written as one HTML page or as Markdown.

The page needs nothing but itself: styles and pictures lie inside it, it runs no script, and its own security policy
forbids every request. The numbers belong into a JSON file beside it, not into the page alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TypeAlias

from covidcxr.io.atomic import replace_file

__all__ = [
    "Block",
    "Gallery",
    "Page",
    "Picture",
    "Section",
    "Table",
    "Words",
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
"""The look of every page of this library."""

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
        warning: Whether it stands out.
    """

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, all plain text.

    Attributes:
        columns: The heads.
        rows: As many cells each.
        caption: What it shows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        png: The file's bytes.
        alt: What it shows, for those who do not see it.
        caption: Stands below it.
    """

    png: bytes = field(repr=False)
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side."""

    pictures: Sequence[Picture]


Block: TypeAlias = Words | Table | Picture | Gallery
"""What a section is made of."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its head.
        lead: What it says, in a sentence or two.
        blocks: What it shows.
    """

    title: str
    lead: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Its head.
        verdict: What it comes to, in a sentence; the first thing to be read.
        facts: The few figures that belong on the first screen, from what to how much.
        sections: Its parts, in order.
        notice: The warning on the first screen.
    """

    title: str
    verdict: str = ""
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    notice: str = RESEARCH_ONLY


def write_html(page: Page, path: Path) -> Path:
    """Write one HTML file that needs no network to be read; it appears whole or not at all."""
    with replace_file(path) as draft:
        draft.write_text(to_html(page), encoding="utf-8", errors="backslashreplace")
    return path


def to_html(page: Page) -> str:
    """Return what `write_html` writes, for a server."""
    return "\n".join(_html(page)) + "\n"


def style_hash() -> str:
    """Return the hash of the style of every page, by which a server's security policy allows it and nothing else."""
    digest = hashlib.sha256(f"{STYLE}{_REPORT_STYLE}".encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def write_markdown(page: Page, path: Path) -> Path:
    """Write the words and tables as Markdown, without pictures; the file appears whole or not at all."""
    with replace_file(path) as draft:
        draft.write_text("\n".join(_markdown(page)), encoding="utf-8", errors="backslashreplace")
    return path


def _html(page: Page) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width">'
    yield (
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    )
    yield '<link rel="icon" href="data:,">'
    yield f"<title>{escape(page.title)}</title><style>{STYLE}{_REPORT_STYLE}</style></head><body>"
    yield f"<h1>{escape(page.title)}</h1>"
    yield f'<p class="verdict">{escape(page.verdict)}</p>' if page.verdict else ""
    yield f'<p class="notice">{escape(page.notice)}</p>' if page.notice else ""
    if page.facts:
        cells = "".join(
            f'<div><span class="dim">{escape(name)}</span><b>{escape(value)}</b></div>' for name, value in page.facts
        )
        yield f'<div class="facts">{cells}</div>'
    if len(page.sections) > 2:
        links = "".join(f'<a href="#{_anchor(section.title)}">{escape(section.title)}</a>' for section in page.sections)
        yield f"<nav>{links}</nav>"
    yield "<main>"
    for section in page.sections:
        yield f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>'
        yield f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
        yield from map(_block, section.blocks)
        yield "</section>"
    yield "</main></body></html>"


def _block(block: Block) -> str:
    if isinstance(block, Words):
        return f"<p{' class=notice' if block.warning else ''}>{escape(block.text)}</p>"
    if isinstance(block, Table):
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in block.columns)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in block.rows)
        caption = f"<caption>{escape(block.caption)}</caption>" if block.caption else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    if isinstance(block, Gallery):
        return f'<div class="gallery">{"".join(map(_block, block.pictures))}</div>'
    caption = f"<figcaption>{escape(block.caption)}</figcaption>" if block.caption else ""
    data = base64.b64encode(block.png).decode()
    return f'<figure><img alt="{escape(block.alt, quote=True)}" src="data:image/png;base64,{data}">{caption}</figure>'


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


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
