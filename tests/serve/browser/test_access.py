"""How the page may be used: by keys alone, in any light and width, many images at once, with a token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from reading_page import ReadingPage, wait
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from covidcxr.io.image import write_image
from covidcxr.phantom import draw_dataset

TOKEN = "a-token-that-is-long-enough"


def findings(page: ReadingPage) -> list[str]:
    """What axe finds wrong, of whatever weight."""
    page.script((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.driver.execute_async_script("axe.run().then((found) => arguments[0](found.violations))")
    return [f"{each['id']} ({each['impact']}): {[node['target'] for node in each['nodes']]}" for each in found]


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("size", [(1440, 900), (1024, 768), (390, 844)])
def test_axe_finds_nothing(
    page: ReadingPage, phantoms: list[Path], broken: Path, size: tuple[int, int], scheme: str
) -> None:
    page.open(size=size, scheme=scheme)
    page.opened()
    assert findings(page) == []
    page.upload(*phantoms, broken)
    page.settled()
    wait(page.loaded, "an image")
    page.press("e")
    assert findings(page) == []
    assert page.script("return document.documentElement.scrollWidth") <= size[0]
    page.press("?")
    assert page.one("#keys").is_displayed()
    assert findings(page) == []


def test_everything_is_reached_by_keys(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(*phantoms[:2])
    page.settled()
    wait(page.loaded, "an image")
    page.script("document.activeElement.blur()")
    wanted = page.script("""
      return [...document.querySelectorAll("button, a[href], input, select, textarea, canvas")]
        .filter((each) => each.checkVisibility() && !each.disabled && (each.type !== "radio" || each.checked))
        .map((each) => each.outerHTML)
    """)
    reached, unseen = [], []
    for _ in range(2 * len(wanted)):
        page.press(Keys.TAB)
        html, outline = page.script("""
          const focused = document.activeElement;
          return [focused.outerHTML, getComputedStyle(focused).outlineStyle];
        """)
        reached.append(html)
        unseen += [html] if outline == "none" and not html.startswith("<body") else []
    assert [each for each in wanted if each not in reached] == []
    assert unseen == []


def test_a_mask_is_corrected_without_a_mouse(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "an image")
    before = page.probabilities()
    page.press("e")
    page.script("document.getElementById('canvas').focus()")
    page.slide("#size", 90)
    page.press(*[Keys.ARROW_LEFT] * 3, *[Keys.ARROW_UP] * 3, *[Keys.SPACE, Keys.ARROW_DOWN] * 7)
    page.press("a")
    wait(lambda: page.text("#moved") and page.probabilities() != before, "another answer")


def test_keys_rest_while_somebody_types_or_turned_them_off(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "an image")
    page.one("#comment").send_keys("i o e ?")
    assert page.one("#comment").get_property("value") == "i o e ?"
    assert page.one("#invert").get_attribute("aria-pressed") == "false"
    page.script("document.activeElement.blur()")
    page.press("i")
    assert page.one("#invert").get_attribute("aria-pressed") == "true"
    page.press("?")
    page.click("#keys-on")
    page.press(Keys.ESCAPE)
    page.press("i")
    assert page.one("#invert").get_attribute("aria-pressed") == "true"


def test_films_are_dropped_on_the_page_many_at_once(page: ReadingPage, tmp_path: Path) -> None:
    images = []
    for number, phantom in enumerate(draw_dataset(24, size=(160, 160))):
        images.append(tmp_path / f"{number:02d}.png")
        write_image(images[-1], phantom.image)
    page.script("""
      const input = document.createElement("input");
      Object.assign(input, { type: "file", multiple: true, id: "dropped" });
      document.body.append(input);
    """)
    page.one("#dropped").send_keys("\n".join(map(str, images)))
    page.script("""
      const data = new DataTransfer();
      for (const file of document.getElementById("dropped").files) data.items.add(file);
      document.getElementById("dropped").remove();
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    """)
    wait(lambda: len(page.names()) == len(images), "all images")
    page.settled()
    assert sorted(page.names()) == [image.name for image in images]
    assert page.complaints() == []


def test_a_busy_server_is_asked_again(
    driver: object, start_server: Callable[..., str], phantoms: list[Path], tmp_path: Path
) -> None:
    page = ReadingPage(driver, start_server(uploads=1))  # type: ignore[arg-type]
    page.open()
    page.opened()
    films = [shutil.copy(phantoms[number % 3], tmp_path / f"{number}.png") for number in range(9)]
    page.upload(*films)
    page.settled()
    assert sorted(page.names()) == [film.name for film in films]
    assert any("503" in line["message"] for line in page.driver.get_log("browser"))


def test_a_film_that_is_too_large_is_not_sent(
    driver: object, start_server: Callable[..., str], phantoms: list[Path]
) -> None:
    page = ReadingPage(driver, start_server(file_bytes=5000))  # type: ignore[arg-type]
    page.open()
    page.opened()
    page.upload(phantoms[0])
    page.settled()
    assert "0.005 MB" in page.text("#uploads .bad")
    assert page.driver.get_log("browser") == []
    assert page.names() == []


def test_nothing_is_asked_of_the_network(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "an image")
    asked = page.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(asked) > 20
    assert [name for name in asked if not name.startswith((f"{page.url}/", f"blob:{page.url}/"))] == []
    inline = (
        "const it = document.createElement('script'); it.textContent = 'document.title = 1'; document.body.append(it)"
    )
    page.script(inline)
    assert page.driver.title != "1"
    assert any("Content Security Policy" in line for line in page.complaints())


def test_a_token_comes_in_the_address_and_does_not_stay_there(
    driver: object, start_server: Callable[..., str], phantoms: list[Path], downloads: Path
) -> None:
    page = ReadingPage(driver, start_server(token=TOKEN))  # type: ignore[arg-type]
    page.open()
    wait(lambda: page.one("#ask-token").is_displayed(), "the question for the token")
    page.one("#token").send_keys("a-token-that-is-wrong", Keys.ENTER)
    wait(lambda: page.one("#ask-token").is_displayed(), "the question to come again")
    assert "mini" not in page.text("#model")
    page.one("#token").send_keys(TOKEN, Keys.ENTER)
    page.opened()
    page.script("sessionStorage.clear()")

    page.open(f"#token={TOKEN}")
    page.opened()
    assert TOKEN not in page.driver.current_url
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "an image, its picture and its masks")
    film = page.films()[0]
    page.click("#report-json")
    report = wait(lambda: next(downloads.glob(f"*{film['id']}*.json"), None), "the report")
    assert json.loads(report.read_text(encoding="utf-8"))
    page.driver.refresh()
    wait(page.loaded, "the image after a reload")
    assert page.complaints() == []


def test_the_guide_tells_all_keys(page: ReadingPage) -> None:
    page.press("?")
    keys = [[key.text for key in term.find_elements(By.TAG_NAME, "kbd")] for term in page.all("#key-list dt")]
    words = [each.text for each in page.all("#key-list dd")]
    told = [f"| {' '.join(f'`{key}`' for key in each)} | {what} |" for each, what in zip(keys, words, strict=True)]
    guide = (Path(__file__).parents[3] / "docs" / "guide" / "serve.md").read_text(encoding="utf-8")
    assert guide.split("| Keys | |\n|---|---|\n")[1].split("\n\n")[0].splitlines() == told
