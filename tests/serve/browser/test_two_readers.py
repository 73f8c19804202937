"""Two browsers at one server: what is done in one shows in the other, and no verdict replaces another unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from reading_page import ReadingPage, wait


@pytest.fixture
def other(server: str) -> Iterator[httpx.Client]:
    """The other reader."""
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


def give(other: httpx.Client, image: str, label: str | None, **said: object) -> httpx.Response:
    return other.put(f"/api/films/{image}/verdict", json={"label": label, "comment": "", "consent": False, **said})


def test_images_come_and_go_without_a_reload(page: ReadingPage, phantoms: list[Path], other: httpx.Client) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    response = other.post("/api/films", files={"file": ("elsewhere.png", phantoms[1].read_bytes())})
    wait(lambda: page.names() == ["elsewhere.png", phantoms[0].name], "the image of the other reader")
    give(other, response.json()["id"], "pneumonia")
    wait(lambda: "Verdict: pneumonia" in page.row("elsewhere.png").text, "the verdict of the other reader")
    assert page.text("#film-name") == phantoms[0].name
    for image in page.films():
        other.delete(f"/api/films/{image['id']}").raise_for_status()
    wait(lambda: page.names() == [], "an empty worklist")
    wait(lambda: "was removed in another browser" in page.text("#trouble-words"), "a message")
    assert page.one("#empty").is_displayed()
    assert page.complaints() == []


def test_a_verdict_of_another_reader_is_shown(page: ReadingPage, phantoms: list[Path], other: httpx.Client) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    give(other, page.films()[0]["id"], "covid19", comment="ground glass")
    wait(lambda: "Another reader has saved" in page.text("#other"), "a message")
    assert "COVID-19, \N{LEFT DOUBLE QUOTATION MARK}ground glass\N{RIGHT DOUBLE QUOTATION MARK}" in page.text("#other")
    assert page.one("#labels input[value=covid19]").is_selected()
    assert not page.one("#conflict").is_displayed()


@pytest.mark.parametrize("keep", ["mine", "theirs"])
def test_two_verdicts_at_once_are_a_conflict(
    keep: str, page: ReadingPage, phantoms: list[Path], other: httpx.Client
) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    (image,) = page.films()
    page.click("#labels input[value=pneumonia]")
    give(other, image["id"], "normal")
    page.click("#verdict button[type=submit]")  # before or after the page has heard of the other one
    wait(lambda: "Another reader has saved: Normal" in page.text("#conflict"), "the conflict")
    assert page.films()[0]["verdict"]["label"] == "normal"
    page.click(f"#{keep}")
    wait(lambda: page.text("#saved").startswith("Saved"), "the end of the conflict")
    assert not page.one("#conflict").is_displayed()
    kept = "pneumonia" if keep == "mine" else "normal"
    assert page.films()[0]["verdict"]["label"] == kept
    assert page.one(f"#labels input[value={kept}]").is_selected()
    assert page.complaints() == []


def test_what_takes_long_shows_that_it_works(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    seen = """
      window.seen = new Set();
      new MutationObserver((changes) => {
        for (const { target } of changes) if (target.getAttribute("aria-busy") === "true") window.seen.add(target.id);
      }).observe(document.body, { attributes: true, attributeFilter: ["aria-busy"], subtree: true });
    """
    page.script(seen)
    page.click("#heat")
    wait(lambda: not page.one("#heat").get_attribute("aria-busy"), "the heat map")
    assert not page.one("#heat-wait").is_displayed()
    page.click("#report-pdf")
    wait(lambda: "report-pdf" in page.script("return [...window.seen]"), "a busy link")
    wait(lambda: not page.one("#report-pdf").get_attribute("aria-busy"), "the report")
    assert {"heat", "report-pdf"} <= set(page.script("return [...window.seen]"))


def test_the_verdict_stands_above_the_formula(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    assert page.one("#verdict").rect["y"] < page.one("#formula").rect["y"]
    assert page.one("#verdict button").rect["y"] < 900, "the verdict is seen without scrolling"
