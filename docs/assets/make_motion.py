"""Film the page and the demo: `python docs/assets/make_motion.py`. Phantoms only, never a real image."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from make_page import PORT, write_images
from PIL import Image
from reading_page import ReadingPage, open_browser, wait

HERE = Path(__file__).parent
WIDTH = 960


class Film:
    """Pictures of a browser's window, each with the time for which it is shown."""

    def __init__(self, driver: object) -> None:
        self.driver = driver
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def shoot(self, milliseconds: int) -> None:
        """Take a picture of what is on the screen."""
        shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")  # type: ignore[attr-defined]
        self.frames.append(shot.resize((WIDTH, round(shot.height * WIDTH / shot.width)), Image.Resampling.LANCZOS))
        self.times.append(milliseconds)

    def save(self, name: str) -> None:
        """Write an animated WebP."""
        first, *others = self.frames
        first.save(HERE / name, save_all=True, append_images=others, duration=self.times, loop=0, quality=60, method=6)


def film_page(page: ReadingPage, images: list[Path]) -> None:
    """Open images one by one, look at the outlines, correct a mask and see the prediction change."""
    film = Film(page.driver)
    page.open()
    page.opened()
    film.shoot(1200)
    for image in images[:4]:
        page.upload(image)
        page.settled()
        film.shoot(700)
    page.choose(images[1].name)
    page.stage()
    film.shoot(1600)
    page.press("e")
    page.slide("#size", 56)
    for start, steps in (((-120, -60), ((4, 20), (6, 30), (4, 30))), ((150, 40), ((4, 20), (8, 30)))):
        page.drag(start, *steps)
        film.shoot(700)
    page.press("a")
    wait(lambda: "\N{RIGHTWARDS ARROW}" in page.text("#moved"), "another answer")
    film.shoot(2500)
    film.save("page-motion.webp")


def film_demo(page: ReadingPage, folder: Path) -> None:
    """Scroll through the page that `covidcxr demo` writes."""
    subprocess.run([sys.executable, "-m", "covidcxr", "demo", "--no-open", "--out", str(folder)], check=True)
    film = Film(page.driver)
    page.driver.get((folder / "index.html").as_uri())
    time.sleep(1)
    for place, milliseconds in ((0, 1500), (300, 900), (600, 900), (900, 1500)):
        page.script(f"window.scrollTo(0, {place})")
        time.sleep(0.5)
        film.shoot(milliseconds)
    film.save("demo-motion.webp")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        desk = Path(folder)
        command = [sys.executable, "-m", "covidcxr", "serve", "--port", str(PORT), "--store", str(desk / "store")]
        server = subprocess.Popen(command)
        try:
            time.sleep(5)  # the page itself waits for the model
            with open_browser(desk) as driver:
                page = ReadingPage(driver, f"http://127.0.0.1:{PORT}")
                film_page(page, write_images(desk))
                film_demo(page, desk / "demo")
        finally:
            server.terminate()
            server.wait()
