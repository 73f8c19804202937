"""A model of three findings on the page: each has a button, a colour and an outline, and can be corrected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from reading_page import ReadingPage, wait
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from serving import finding_pipeline, running

FINDINGS = ("infection", "effusion", "lung_nodule")


@pytest.fixture
def page(driver: object, tmp_path: Path) -> Iterator[ReadingPage]:
    """The page of a server that runs such a model."""
    with running(tmp_path, finding_pipeline(FINDINGS)) as client:
        page = ReadingPage(driver, str(client.base_url).rstrip("/"))  # type: ignore[arg-type]
        page.open()
        page.opened()
        yield page
        page.driver.get("about:blank")


def test_every_mask_class_is_shown_and_corrected(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    (image,) = page.films()
    buttons = page.all("#toggles button")
    assert [button.get_attribute("data-mask") for button in buttons] == image["masks"]
    assert set(FINDINGS) < set(image["masks"])
    colors = [b.find_element(By.TAG_NAME, "i").value_of_css_property("background-color") for b in buttons]
    assert len(set(colors)) == len(colors)
    lines = page.text("#fractions")
    for words in ("Lung field, of the image", "Infection, of the lungs", "Effusion, of the lungs", "Lung nodule, of"):
        assert words in lines

    page.press("b")
    page.slide("#size", 60)
    for number, name in enumerate(FINDINGS):
        Select(page.one("#mask")).select_by_value(name)
        drawn = page.picture(image, f"masks/{name}")
        before = page.stage()
        page.drag((-150, 80 * number - 80), (60, 0))
        assert (page.stage() != before).any()
        page.press("a")
        wait(lambda name=name: name in page.films()[0]["corrected"], f"the corrected {name}")
        wait(lambda: page.all("#toggles button") and page.text("#moved") != "Running \N{HORIZONTAL ELLIPSIS}", "masks")
        mask = page.picture(image, f"masks/{name}")
        assert not (mask < drawn).any(), "a brush only adds"
        assert mask.any()
    assert set(page.films()[0]["corrected"]) == set(FINDINGS)
    key = str(image["masks"].index("effusion") + 1)
    shown = page.stage()
    page.press(key)
    assert (page.stage() != shown).any()
    assert page.complaints() == []
