"""What is drawn on the stage, pixel by pixel: overlays, window, zoom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from reading_page import ReadingPage, wait
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from covidcxr.transforms.overlay import MASK_COLORS


def test_overlays_are_toggled_by_keys(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    full = page.stage()
    for button in page.all("#toggles button"):
        color = button.find_element(By.TAG_NAME, "i").value_of_css_property("background-color")
        red, green, blue = MASK_COLORS[str(button.get_attribute("data-mask"))]
        assert color == f"rgba({red}, {green}, {blue}, 1)"
    page.press("1")
    without = page.stage()
    assert (full != without).any()
    assert page.one("#toggles button").get_attribute("aria-pressed") == "false"
    page.press("1")
    np.testing.assert_array_equal(page.stage(), full)
    page.press("o")
    bare = page.stage()
    assert (bare[..., 0] == bare[..., 1]).all()  # grey: nothing but the image
    assert (bare[..., 1] == bare[..., 2]).all()
    page.press("o", *(str(number) for number, _ in enumerate(page.all("#toggles button"), 1)))
    np.testing.assert_array_equal(page.stage(), bare)  # all masks are hidden, one by one
    film = page.films()[0]
    strongest = max(film["classes"], key=lambda name: page.picture(film, f"heat/{name}").mean())
    Select(page.one("#heat-class")).select_by_value(strongest)
    if page.one("#heat").get_attribute("aria-pressed") == "false":  # it was the one chosen already
        page.press("h")
    wait(lambda: not page.one("#heat").get_attribute("aria-busy"), "the heat map")
    heated = page.stage().astype(int)
    assert (heated[..., 0] - heated[..., 2] > 100).any()  # orange
    page.script("document.activeElement.blur()")
    page.press("h")
    np.testing.assert_array_equal(page.stage(), bare)
    page.press("h")
    np.testing.assert_array_equal(page.stage(), heated)
    page.slide("#opacity", 0)
    np.testing.assert_array_equal(page.stage(), bare)
    assert page.complaints() == []


def test_window_level_zoom_and_pan(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    page.press("o", "z")
    plain, film = page.stage(), page.picture(page.films()[0], "image")
    height, width = film.shape
    top, left = ((side - size) // 2 for side, size in zip(plain.shape, film.shape, strict=False))
    on_film = (slice(top + 4, top + height - 4), slice(left + 4, left + width - 4))
    assert page.text("#zoom") == "100 %"
    inner = film[4:-4, 4:-4]
    page.press("i")
    np.testing.assert_allclose(page.stage()[on_film][..., 0].mean(), 255 - inner.mean(), atol=1)
    page.press("i")
    page.click("#auto")
    narrow = page.stage()[on_film][..., 0]
    low, high = np.percentile(inner, (1, 99))
    np.testing.assert_allclose(narrow.mean(), (np.clip((inner - low) / (high - low), 0, 1) * 255).mean(), atol=3)
    page.press("r")
    np.testing.assert_array_equal(page.stage(), plain)
    page.drag((0, 0), (30, 0))
    np.testing.assert_array_equal(page.stage()[:, 60:], plain[:, 30:-30])
    page.press("0", "+")
    wait(lambda: int(page.text("#zoom").split()[0]) > 100, "the zoom, which is written with the next frame")
