"""The documentation in a browser: every page, light and dark, wide and narrow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from reading_page import CHROMIUM, DRIVER, open_browser

ROOT = Path(__file__).resolve().parents[1]

# Colours are drawn one above the other on a canvas of one pixel, as the browser mixes them: what lies behind the text,
# and then the text. WCAG 2.2 wants a contrast of 4.5, and of 3 for large letters.
FAULTS = """
const [scheme] = arguments
document.body.dataset.mdColorScheme = scheme
const faults = []
const over = document.documentElement.scrollWidth - document.documentElement.clientWidth
if (over > 0) {
  const edge = document.documentElement.clientWidth
  const sticks = (element) => element.getBoundingClientRect().right > edge + 1
  const first = [...document.querySelectorAll("article *")].find(sticks)
  faults.push(`${over} pixels too wide: ${first?.outerHTML.slice(0, 80)}`)
}
for (const image of document.images) if (!image.naturalWidth) faults.push(`no image: ${image.src}`)

const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true })
const luminance = () =>
  [...pixel.getImageData(0, 0, 1, 1).data.slice(0, 3)]
    .map((level) => (level / 255 <= 0.04045 ? level / 255 / 12.92 : ((level / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, level, channel) => sum + level * [0.2126, 0.7152, 0.0722][channel], 0)
const paint = (colour, opacity = 1) => {
  pixel.globalAlpha = opacity
  pixel.fillStyle = colour
  pixel.fillRect(0, 0, 1, 1)
  return luminance()
}
const seen = new Map()
for (const element of document.querySelectorAll("body *")) {
  const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
  const shown = element.checkVisibility({ visibilityProperty: true }) && !element.closest("svg, script, style")
  if (!hasText || !shown) continue
  const style = getComputedStyle(element)
  const layers = []
  let opacity = 1
  for (let place = element; place; place = place.parentElement) {
    const { backgroundColor, opacity: own } = getComputedStyle(place)
    layers.unshift(backgroundColor)
    opacity *= own
  }
  const size = parseFloat(style.fontSize)
  const key = [style.color, opacity, size, style.fontWeight, ...layers].join()
  if (opacity < 0.1 || seen.has(key)) continue
  paint("white")
  let behind
  for (const colour of layers) behind = paint(colour)
  const letters = paint(style.color, opacity)
  const contrast = (Math.max(behind, letters) + 0.05) / (Math.min(behind, letters) + 0.05)
  seen.set(key, contrast)
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700)
  if (contrast < (large ? 3 : 4.5)) faults.push(`contrast ${contrast.toFixed(2)}: ${element.outerHTML.slice(0, 80)}`)
}
return [faults, seen.size]
"""
SETTLE = """
for (const details of document.querySelectorAll("details")) details.open = true
for (const image of document.images) image.loading = "eager"
const still = Object.assign(document.createElement("style"), { textContent: "* { transition: none !important }" })
document.head.append(still)
Promise.all([...document.images].map((image) => image.decode().catch(() => 0))).then(() => arguments[0]())
"""


class Handler(SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the documentation is built by the extra docs")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return site


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="apt-get install chromium chromium-driver")
def test_every_page_can_be_read_in_any_light_and_width(site: Path, address: str, tmp_path: Path) -> None:
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert len(pages) > 80
    faults = []
    with open_browser(tmp_path) as driver:
        for page in pages:
            driver.get(f"{address}/{page}")
            driver.execute_async_script(SETTLE)
            for width in (1400, 400):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                for scheme in ("default", "slate"):  # the theme's names of light and dark
                    found, texts = driver.execute_script(FAULTS, scheme)
                    assert texts > 2, page
                    faults += [f"{page}, {width}, {scheme}: {fault}" for fault in found]
            faults += [f"{page}: {entry['message']}" for entry in driver.get_log("browser")]
    assert faults == []
