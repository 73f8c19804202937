"""`examples/browser`: the page answers in a real browser as the pipeline does, and asks nobody else."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidcxr import Pipeline
from covidcxr.io import write_image
from covidcxr.phantom import draw_other, draw_phantom
from covidcxr.pipeline import in_words
from covidcxr.transforms.postprocess import REASONS
from covidcxr.transforms.pyramid import ORIENTATIONS

PAGE = Path(__file__).parents[2] / "examples" / "browser"
RUNTIME = "onnxruntime-web@1.30.0"


def test_reasons_are_said_in_the_words_of_the_library() -> None:
    words = (PAGE / "words.js").read_text(encoding="utf-8")
    known = {"not-a-frontal-film", "child", "film-inverted", "film-turned", "inverted-corrected"}
    plain = {*REASONS, *known, "several-answers-plausible", "no-answer-plausible"} - {"lung-area-below-15-percent"}
    for reason in plain:
        assert in_words(reason) in words, reason
    for reason, number in (("lung-area-below-15-percent", "15"), ("turned-90-corrected", "90")):
        for half in in_words(reason).split(f" {number} "):
            assert half in words, reason


def test_the_guide_and_the_page_name_one_version_of_the_runtime() -> None:
    assert f"npm pack {RUNTIME}" in (PAGE / "README.md").read_text(encoding="utf-8")
    assert not list(PAGE.rglob("*.wasm")) or "/package/" in (PAGE / ".gitignore").read_text()


@pytest.fixture(scope="module")
def site(exported_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page with its model and its runtime on a plain file server; every path that is asked for is written down."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("package", "model", "*.tgz"))
    shutil.copytree(exported_mini, folder / "model")
    if shutil.which("npm") is None:
        pytest.skip("npm, which fetches onnxruntime-web, is not installed")
    done = subprocess.run(
        ["npm", "pack", RUNTIME], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    if done.returncode:
        pytest.skip(f"onnxruntime-web cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    (packed,) = folder.glob("*.tgz")
    shutil.unpack_archive(packed, folder, filter="data")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    reading_page = pytest.importorskip("reading_page", reason="selenium is not installed")
    if reading_page.CHROMIUM is None or reading_page.DRIVER is None:
        pytest.skip("there is no Chromium with its driver: apt-get install chromium chromium-driver")
    with reading_page.open_browser(tmp_path_factory.mktemp("downloads")) as browser:
        browser.set_script_timeout(60)
        yield browser


PREDICT = """
const [image, done] = arguments;
import("./pipeline.js").then(async ({ loadPipeline }) => {
  const pipeline = (window.kept ??= await loadPipeline("model"));
  const grey = Float32Array.from(atob(image.grey), (letter) => letter.charCodeAt(0) / 255);
  const found = await pipeline.predict({ ...image, grey });
  const masks = {};
  for (const [name, mask] of Object.entries(found.masks)) masks[name] = [mask.width, mask.height, mask.pixels.join("")];
  done({ ...found, masks });
}).catch((error) => done({ error: String(error) }));
"""


@pytest.mark.slow
def test_the_page_answers_as_the_pipeline_does(site: str, driver: Any, tmp_path: Path) -> None:
    import base64

    from reading_page import wait
    from selenium.webdriver.common.by import By

    def text(name: str) -> str:
        return str(driver.find_element(By.ID, name).text)

    driver.get(site)
    wait(lambda: "Ready" in text("status"), "the models")
    images = {
        "upright": draw_phantom(0, label="covid19", size=(320, 300)).image,
        "turned": ORIENTATIONS["turned-90"].lay(draw_phantom(3, size=(320, 256)).image),
        "text": draw_other(0, "text", size=(320, 256)),
    }
    pipeline = Pipeline.from_pretrained("mini")
    for name, image in images.items():
        grey = np.rint(image * 255).astype(np.uint8)
        given = {"width": grey.shape[1], "height": grey.shape[0], "grey": base64.b64encode(grey.tobytes()).decode()}
        found, wanted = driver.execute_async_script(PREDICT, given), pipeline(grey)
        assert "error" not in found, found
        assert found["label"] == wanted.label, name
        assert (tuple(found["reasons"]), tuple(found["notes"])) == (wanted.reasons, wanted.notes)
        assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=2e-3)
        assert found["masks"].keys() == wanted.masks.keys()
        for mask_class, (width, height, pixels) in found["masks"].items():
            own = np.frombuffer(pixels.encode(), np.uint8).reshape(height, width) == ord("1")
            assert np.mean(own != wanted.masks[mask_class]) < 1e-3, mask_class
        assert found.get("findingFractions", {}) == pytest.approx(wanted.finding_fractions, abs=5e-3)
    write_image(tmp_path / "phantom.png", images["upright"])
    driver.find_element(By.ID, "file").send_keys(str(tmp_path / "phantom.png"))
    wait(lambda: "in this browser" in text("status"), "the answer")
    shown = pipeline(tmp_path / "phantom.png")
    assert text("label").lower() == (shown.label or "cannot say").replace("covid19", "covid-19")
    assert len(driver.find_elements(By.CSS_SELECTOR, "#probabilities tbody tr")) == 3
    assert "not for clinical use" in driver.find_element(By.CSS_SELECTOR, ".notice").text
    asked = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked
    assert all(url.startswith(site) for url in asked if not url.startswith("data:"))
    logged = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not logged, json.dumps(logged)
