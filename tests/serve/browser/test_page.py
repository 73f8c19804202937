"""From images to a report, as a reader goes, in a real browser: every figure on the page is the pipeline's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reading_page import ReadingPage, wait
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from covidcxr import Pipeline
from covidcxr.pipeline.prediction import in_words
from covidcxr.serve.schema import display_name


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("mini")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def test_films_and_a_broken_one_go_in_and_answers_come_out(
    page: ReadingPage, phantoms: list[Path], broken: Path, pipeline: Pipeline
) -> None:
    assert page.one("#empty").is_displayed()
    page.upload(*phantoms, broken)
    page.settled()
    assert sorted(page.names()) == sorted(path.name for path in phantoms)
    assert page.text("#uploads .name") == "broken.png"
    assert "unsupported file format. Save it as PNG" in page.text("#uploads .bad")
    page.click("#uploads button")
    assert not page.one("#uploads").is_displayed()

    for path in phantoms:
        film, truth = page.choose(path.name), pipeline(path)
        assert page.probabilities() == {name: percent(chance) for name, chance in truth.probabilities.items()}
        answer = display_name(truth.label or "cannot say")
        assert page.text("#answer").lower() == answer.lower()
        assert [item.text for item in page.all("#reasons li")] == [in_words(reason) for reason in truth.reasons]
        assert page.text("#fractions dd") == percent(truth.lung_fraction or 0)
        assert page.row(path.name).find_element(By.CSS_SELECTOR, ".answer").text.lower() == answer.lower()
        np.testing.assert_array_equal(page.picture(film, "image"), truth.film)
        thumbnail = page.row(path.name).find_element(By.TAG_NAME, "img")
        wait(lambda thumbnail=thumbnail: int(thumbnail.get_property("naturalWidth")) > 0, "the thumbnail")
    assert page.driver.title == f"{phantoms[2].name} · covidcxr"  # its name is text: it set no title of its own
    assert page.one(".notice").is_displayed()
    assert page.complaints() == []


def test_the_worklist_sorts(page: ReadingPage, phantoms: list[Path]) -> None:
    for path in phantoms:
        page.upload(path)
        page.settled()
    order = [path.name for path in phantoms]
    assert page.names() == order[::-1]
    page.click("#head-name button")
    wait(lambda: page.names() == sorted(order), "names from A to Z")
    assert page.one("#head-name").get_attribute("aria-sort") == "ascending"
    page.click("#head-name button")
    wait(lambda: page.names() == sorted(order, reverse=True), "names from Z to A")
    chances = {
        film["name"]: film["probabilities"].get(film["label"]) or max(film["probabilities"].values())
        for film in page.films()
    }
    page.click("#head-probability button")
    wait(lambda: page.names() == sorted(order, key=lambda name: -chances[name]), "the surest image first")
    assert page.one("#head-name").get_attribute("aria-sort") == "none"
    page.choose(page.names()[0])
    page.press("j", "j", "k")
    wait(lambda: page.text("#film-name") == page.names()[1], "the second image")


def test_a_corrected_mask_changes_the_answer(page: ReadingPage, phantoms: list[Path], pipeline: Pipeline) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    over_the_right_lung = [(-230, -240), *[(0, 60)] * 8, (70, 0), *[(0, -60)] * 8]
    film, drawn, before = page.films()[0], page.stage(), page.probabilities()
    mask_before = page.picture(film, "masks/lung_field")
    page.press("e")
    page.slide("#size", 90)
    page.drag(*over_the_right_lung)
    assert page.one("#ask").is_enabled()
    page.press("b", "b")  # the brush in, and out of the hand: its ring is gone
    assert (page.stage() != drawn).any()
    page.click("#undo")
    np.testing.assert_array_equal(page.stage(), drawn)
    assert not page.one("#ask").is_enabled()

    page.press("e")
    page.drag(*over_the_right_lung)
    page.press("a")
    wait(lambda: page.films()[0]["corrected"] == ["lung_field"], "another answer")
    wait(lambda: "\N{RIGHTWARDS ARROW}" in page.text("#moved"), "what has moved")
    film, mask = page.films()[0], page.picture(film, "masks/lung_field")
    assert set(np.unique(mask)) == {0, 255}
    assert (mask < mask_before).sum() > 1000
    assert not (mask > mask_before).any()
    truth = pipeline.revise(page.picture(film, "image"), {"lung_field": mask > 0})
    assert page.probabilities() == {name: percent(chance) for name, chance in truth.probabilities.items()} != before
    assert film["revised"]

    page.driver.refresh()
    wait(page.loaded, "the image after a reload")
    assert page.probabilities() == {name: percent(chance) for name, chance in truth.probabilities.items()}
    page.click("#redraw")
    wait(lambda: page.probabilities() == before, "the first answer")
    np.testing.assert_array_equal(page.picture(page.films()[0], "masks/lung_field"), mask_before)
    assert page.complaints() == []


def test_a_pre_test_probability_is_weighed_by_bayes_rule(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    field = page.one("[data-class=covid19] input[type=number]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("4")
    wait(lambda: page.films()[0]["prior"], "the prior to be kept")
    film = wait(lambda: next((f for f in page.films() if round(f["prior"]["covid19"], 6) == 0.04), None), "4 percent")
    prior = {name: 0.04 if name == "covid19" else 0.96 / 2 for name in film["classes"]}
    assert film["prior"] == pytest.approx(prior)
    odds = {name: film["probabilities"][name] * prior[name] for name in film["classes"]}  # trained on equal shares
    shares = {name: percent(value / sum(odds.values())) for name, value in odds.items()}

    def shown() -> dict[str, str]:
        rows = page.all("#prior [data-class]")
        return {str(row.get_attribute("data-class")): row.find_element(By.CSS_SELECTOR, ".value").text for row in rows}

    wait(lambda: shown() == shares, "the post-test probabilities")
    assert page.one("#formula math").is_displayed()
    assert len(page.all("#worked li")) == len(film["classes"])
    page.driver.refresh()
    wait(page.loaded, "the image after a reload")
    assert shown() == shares
    page.click("#no-prior")
    wait(lambda: page.films()[0]["prior"] is None and set(shown().values()) == {"\N{EN DASH}"}, "no prior")


def test_a_verdict_is_kept_and_found_again(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(*phantoms[:2])
    page.settled()
    page.choose(phantoms[0].name)
    assert page.one("#labels input[value='']").is_selected()
    assert page.all("#labels label")[-1].text == "Not given"
    comment = "left base <img src=x onerror=document.title=1> <b>seen</b>"
    page.click("#labels input[value=pneumonia]")
    page.one("#comment").send_keys(comment)
    page.click("#consent")
    assert page.text("#saved") == "Not saved yet"
    page.choose(phantoms[1].name)  # what was typed waits
    assert page.one("#comment").get_property("value") == ""
    page.choose(phantoms[0].name)
    page.click("#verdict button")
    wait(lambda: page.text("#saved").startswith("Saved "), "the verdict to be saved")

    page.driver.refresh()
    wait(page.loaded, "the image after a reload")
    assert page.text("#film-name") == phantoms[0].name
    assert page.one("#comment").get_property("value") == comment
    assert page.one("#labels input[value=pneumonia]").is_selected()
    assert page.one("#consent").is_selected()
    assert "Verdict: pneumonia" in page.row(phantoms[0].name).text
    verdict = next(film["verdict"] for film in page.films() if film["name"] == phantoms[0].name)
    assert (verdict["label"], verdict["comment"], verdict["consent"]) == ("pneumonia", comment, True)
    assert page.driver.title.startswith(phantoms[0].name)
    other = next(film["id"] for film in page.films() if film["name"] == phantoms[1].name)
    page.script("location.hash = `#film=${arguments[0]}`", other)
    wait(lambda: page.text("#film-name") == phantoms[1].name, "the image that the address names")
    assert page.complaints() == []


def test_the_report_is_downloaded(page: ReadingPage, phantoms: list[Path], downloads: Path) -> None:
    page.upload(phantoms[0])
    page.settled()
    wait(page.loaded, "the image")
    film = page.films()[0]
    page.click("#report-json")
    page.click("#report-pdf")
    found = {
        kind: wait(lambda kind=kind: next(downloads.glob(f"*{film['id']}*.{kind}"), None), kind)
        for kind in ("json", "pdf")
    }
    report = json.loads(found["json"].read_text(encoding="utf-8"))
    assert json.dumps(film["probabilities"]["covid19"]) in json.dumps(report)
    assert found["pdf"].read_bytes().startswith(b"%PDF-")
    page.click("#report-html")
    wait(lambda: len(page.driver.window_handles) == 2, "the printable page")
    first, second = page.driver.window_handles
    page.driver.switch_to.window(second)
    try:
        wait(lambda: phantoms[0].name in page.text("body"), "the report")
        assert "research only" in page.text("body").lower()
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)
    assert page.complaints() == []


def test_a_film_is_removed(page: ReadingPage, phantoms: list[Path]) -> None:
    page.upload(*phantoms[:2])
    page.settled()
    page.choose(phantoms[0].name)
    page.click("#remove")
    page.driver.switch_to.alert.dismiss()
    assert len(page.films()) == 2
    page.click("#remove")
    page.driver.switch_to.alert.accept()
    wait(lambda: page.text("#film-name") == phantoms[1].name, "the image that is left")
    assert [film["name"] for film in page.films()] == page.names() == [phantoms[1].name]


@pytest.mark.real
def test_real_films(page: ReadingPage, real_data: Path, broken: Path, pipeline: Pipeline) -> None:
    every = sorted(path for path in (real_data / "images").rglob("*") if path.suffix in (".png", ".jpg", ".jpeg"))
    films = every[:: len(every) // 3][:3]
    page.upload(*films, broken)
    page.settled()
    assert sorted(page.names()) == sorted(film.name for film in films)
    assert len(page.all("#uploads .bad")) == 1
    for film in films:
        page.choose(film.name)
        assert page.probabilities() == {name: percent(chance) for name, chance in pipeline(film).probabilities.items()}
