"""The radiologist's page in a real browser, as its reader handles it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver") or shutil.which("chromium.chromedriver")
PATIENCE = 60.0  # seconds: a busy machine may be slow, a wrong page is wrong for ever


@contextmanager
def open_browser(downloads: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that saves files in a folder and keeps its console."""
    options = Options()
    options.binary_location = CHROMIUM or ""
    flags = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "force-device-scale-factor=1")
    for flag in (*flags, "disable-background-networking", "lang=en-GB"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def wait(check: Callable[[], T], what: str) -> T:
    """Ask again and again until the answer is true; then return it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if found := check():
                return found
        except StaleElementReferenceException:
            pass  # the page has just drawn it anew
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE:.0f} seconds in vain for {what}")


class ReadingPage:
    """What a reader sees and does.

    Args:
        driver: The browser.
        url: The server's address.
    """

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, fragment: str = "", *, size: tuple[int, int] = (1440, 900), scheme: str = "dark") -> None:
        """Open the page in a window of a size, for a system that is dark or light."""
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get("about:blank")  # or another fragment alone would load nothing
        self.driver.get(f"{self.url}/{fragment}")

    def opened(self) -> None:
        """Wait until the worklist is there."""
        wait(lambda: "mini" in self.text("#model"), "the model's name")

    def one(self, selector: str) -> WebElement:
        """The element of a selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """All elements of a selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What is written there."""
        return str(self.one(selector).text)

    def click(self, selector: str) -> None:
        """Press it."""
        self.one(selector).click()

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def script(self, script: str, *given: Any) -> Any:
        """Run a script; `return` what is wanted."""
        return self.driver.execute_script(script, *given)

    def upload(self, *films: Path) -> None:
        """Choose files; does not wait."""
        self.one("#files").send_keys("\n".join(map(str, films)))

    def settled(self) -> None:
        """Wait until nothing is on its way any more."""
        wait(lambda: not self.all("#uploads progress"), "the uploads")
        wait(
            lambda: self.script("return document.getElementById('rows').childElementCount") == len(self.films()),
            "the rows",
        )

    def films(self) -> list[dict[str, Any]]:
        """What the server keeps, newest first."""
        return list(self.fetch("/api/films")["films"])

    def fetch(self, path: str) -> Any:
        """GET JSON as the page would."""
        return json.loads(self.fetch_bytes(path))

    def fetch_bytes(self, path: str) -> bytes:
        """GET bytes as the page would."""
        script = """
          const [path, done] = arguments;
          const token = sessionStorage.getItem("covidcxr-token");
          fetch(path, { headers: token ? { Authorization: `Bearer ${token}` } : {} })
            .then((answer) => answer.blob())
            .then((blob) => {
              const reader = new FileReader();
              reader.onload = () => done(reader.result.split(",")[1]);
              reader.readAsDataURL(blob);
            });
        """
        return base64.b64decode(self.driver.execute_async_script(script, path) or "")

    def picture(self, film: dict[str, Any], what: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """An image's `image`, `masks/NAME` or `heat/CLASS` as the server has it, grey."""
        png = self.fetch_bytes(f"/api/films/{film['id']}/{what}.png")
        return np.asarray(Image.open(io.BytesIO(png)).convert("L"))

    def names(self) -> list[str]:
        """The images of the worklist from top to bottom."""
        return list(self.script("return [...document.querySelectorAll('.open')].map((open) => open.textContent)"))

    def row(self, name: str) -> WebElement:
        """An image's row."""
        return next(row for row in self.all("#rows tr") if row.find_element(By.CSS_SELECTOR, ".open").text == name)

    def choose(self, name: str) -> dict[str, Any]:
        """Look at an image; returns what the server says of it."""
        self.row(name).find_element(By.CSS_SELECTOR, ".open").click()
        wait(lambda: self.text("#film-name") == name and self.loaded(), name)
        return next(film for film in self.films() if film["name"] == name)

    def loaded(self) -> bool:
        """Whether the image and its masks are on the stage."""
        return not self.one("#wait").is_displayed() and bool(self.all("#toggles button"))

    def probabilities(self) -> dict[str, str]:
        """By class, as written."""
        pairs = [
            (row.get_attribute("data-class"), row.find_element(By.CSS_SELECTOR, ".value").text)
            for row in self.all(".chance")
        ]
        return {str(name): value for name, value in pairs}

    def stage(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """What is drawn on the stage: RGB, [height, width, 3]."""
        frame = """
          const done = arguments[0];
          const drawn = () => done(document.getElementById("canvas").toDataURL());
          requestAnimationFrame(() => requestAnimationFrame(drawn));
        """
        png = base64.b64decode(self.driver.execute_async_script(frame).split(",")[1])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def slide(self, slider: str, value: float) -> None:
        """Move a slider to a value."""
        moved = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.script(moved, self.one(slider), value)

    def drag(self, start: tuple[int, int], *steps: tuple[int, int]) -> None:
        """Drag on the stage, from a place relative to its middle on by steps."""
        chain = ActionChains(self.driver, duration=20)
        chain.move_to_element_with_offset(self.one("#canvas"), *start).click_and_hold()
        for step in steps:
            chain.move_by_offset(*step)
        chain.release().perform()

    def complaints(self) -> list[str]:
        """What the console complains of since it was asked last; refused calls are answers, not complaints."""
        lines = self.driver.get_log("browser")
        return [
            line["message"]
            for line in lines
            if line["level"] in ("SEVERE", "WARNING") and "/api/" not in line["message"]
        ]
