"""Photograph the radiologist's page: `python docs/assets/make_page.py`. Phantoms only, never a real image."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from covidcxr.io.image import write_image
from covidcxr.phantom import draw_phantom

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from reading_page import ReadingPage, open_browser, wait  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

PORT = 8765
LABELS = ("normal", "covid19", "pneumonia")


def write_images(folder: Path) -> list[Path]:
    """Write images of drawn persons, and a file that is none."""
    images = []
    for seed in range(14):
        label = LABELS[seed % 3]
        images.append(folder / f"phantom-{seed:02d}.png")
        image = draw_phantom(seed, label=label, view=("PA", "AP")[seed % 2], size=(640, 640), severity=1.0)
        write_image(images[-1], image.image)
    images.append(folder / "letter.pdf.png")
    images[-1].write_bytes(b"%PDF-1.7 no image at all")
    return images


def photograph(page: ReadingPage, name: str) -> None:
    """Save what is on the screen."""
    page.stage()  # drawn by now
    shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    shot.save(Path(__file__).parent / name, quality=82, method=6)


def read_images(page: ReadingPage, images: list[Path]) -> None:
    """Read a few images, and take pictures on the way."""
    page.open()
    page.opened()
    for image in images:  # one by one: the worklist keeps their order
        page.upload(image)
        page.settled()
    page.choose("phantom-12.png")
    page.click("#labels input[value=normal]")
    page.click("#verdict button")
    wait(lambda: page.text("#saved").startswith("Saved"), "the verdict")
    page.choose("phantom-13.png")
    page.slide("[data-class=covid19] input", 10)
    wait(lambda: page.all("#worked li"), "the post-test probability")
    page.script("document.getElementById('panel').scrollTop = 0")
    photograph(page, "page-dark.webp")

    page.script("document.getElementById('panel').scrollTop = 1e4")
    Select(page.one("#heat-class")).select_by_value("covid19")
    wait(lambda: not page.one("#heat").get_attribute("aria-busy"), "the heat map")
    photograph(page, "page-heat.webp")
    page.click("#heat")

    page.open(f"#film={page.films()[0]['id']}", scheme="light")
    wait(page.loaded, "the image")
    page.press("e")
    page.slide("#size", 56)
    page.drag((-120, -60), (4, 20), (6, 30), (4, 30), (2, 30), (0, 30), (-6, 30))
    page.press("a")
    wait(lambda: "\N{RIGHTWARDS ARROW}" in page.text("#moved"), "another answer")
    wait(lambda: page.one("#redraw").is_displayed(), "the mask that was sent")
    page.drag((150, 40), (4, 20), (8, 30))
    photograph(page, "page-light.webp")
    page.click("#discard")
    wait(lambda: not page.one("#discard").is_enabled(), "the mask as it was")

    page.open(f"#film={page.films()[0]['id']}", size=(390, 844))
    wait(page.loaded, "the image")
    photograph(page, "page-narrow.webp")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        desk = Path(folder)
        command = [sys.executable, "-m", "covidcxr", "serve", "--port", str(PORT), "--store", str(desk / "store")]
        server = subprocess.Popen(command)
        try:
            time.sleep(5)  # the page itself waits for the model
            with open_browser(desk) as driver:
                read_images(ReadingPage(driver, f"http://127.0.0.1:{PORT}"), write_images(desk))
        finally:
            server.terminate()
            server.wait()
