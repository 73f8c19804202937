"""Pages are self-contained, and whatever comes from data is escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from covidcxr.page import (
    Gallery,
    Page,
    Picture,
    Section,
    Table,
    Words,
    sections_of,
    style_hash,
    to_html,
    write_html,
    write_markdown,
)

HOSTILE = "<script>\"&' |{{ 7 * 7 }}</script>"


class Reader(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hostile_page() -> Page:
    picture = Picture(b"\x89PNG", HOSTILE, HOSTILE)
    blocks = [
        Words(HOSTILE),
        Words(HOSTILE, warning=True),
        Table((HOSTILE, "b"), [(HOSTILE, "2")], HOSTILE),
        picture,
        Gallery([picture]),
    ]
    sections = [Section(HOSTILE, HOSTILE, blocks), Section("second"), Section("third")]
    return Page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], sections, HOSTILE)


def test_text_is_escaped_and_stays_as_it_is() -> None:
    reader = Reader(to_html(hostile_page()))
    assert "script" not in reader.tags
    # Two titles, verdict, notice, both parts of a fact, link, heading, lead, two paragraphs, three of the table, two
    # captions.
    assert reader.text.count(HOSTILE) == 16
    assert reader.attributes.count(("alt", HOSTILE)) == 2


def test_a_page_requests_nothing() -> None:
    text = to_html(hostile_page())
    addresses = [value for name, value in Reader(text).attributes if name in ("src", "href")]
    assert all(str(address).startswith(("data:", "#")) for address in addresses)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text


def test_the_hash_allows_the_style_of_every_page() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", to_html(Page("a")), re.S)
    assert style_hash() == f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"


@pytest.mark.parametrize("write", [write_html, write_markdown])
def test_names_that_are_no_text_are_written(write, tmp_path: Path) -> None:
    path = write(
        Page("image\udcff.png", sections=[Section("a", blocks=[Table(("a|b",), [("c\nd",)])])]), tmp_path / "page"
    )
    text = path.read_text(encoding="utf-8")
    assert "image\\udcff.png" in text
    if write is write_markdown:
        assert "| a\\|b |" in text
        assert "| c d |" in text


def test_results_of_others_are_shown_by_their_own_method() -> None:
    class Count:
        def sections(self) -> tuple[Section, ...]:
            return (Section("Size"),)

    assert sections_of(Count()) == [Section("Size")]
    with pytest.raises(AttributeError, match="sections"):
        sections_of(3)
