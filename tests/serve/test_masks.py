"""A model of three mask classes: REST, report and page show each of them, and each can be corrected."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from serving import film_png, finding_pipeline, pixels_of, png_of, running, upload

from covidcxr import Pipeline
from covidcxr.serve.schema import display_name, display_names
from covidcxr.serve.service import mask_areas
from covidcxr.transforms.overlay import MASK_COLORS, mask_color, mask_colors

CLASSES = ("infection", "effusion", "lung_nodule")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return finding_pipeline(CLASSES)


@pytest.fixture(scope="module")
def client(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("store"), pipeline) as client:
        yield client


def test_every_mask_class_is_served_with_its_areas(client: httpx.Client, pipeline: Pipeline) -> None:
    content = film_png(1)
    image, expected = upload(client, content), pipeline(content)
    assert image["masks"] == list(pipeline.mask_classes) == list(image["areas"])
    assert set(CLASSES) < set(image["masks"])
    for name, areas in image["areas"].items():
        mask = pixels_of(client.get(f"/api/films/{image['id']}/masks/{name}.png").content)
        np.testing.assert_array_equal(mask > 0, expected.masks[name])
        assert areas["image"] == pytest.approx(expected.masks[name].mean())
        assert areas["lungs"] == pytest.approx(expected.finding_fractions.get(name))
    assert image["areas"]["infection"]["lungs"] == image["infected_fraction"]
    assert image["names"]["lung_nodule"] == "lung nodule"
    model = client.get("/api/health").json()["model"]
    assert model["mask_classes"] == image["masks"]
    colors = [tuple(model["mask_colors"][name]) for name in image["masks"]]
    assert len(set(colors)) == len(colors)


def test_every_mask_class_is_in_the_report(client: httpx.Client) -> None:
    image = upload(client, film_png(2))
    place = f"/api/films/{image['id']}"
    page = client.get(f"{place}/report.html").text
    for name in CLASSES:
        areas = image["areas"][name]
        assert f"<td>{image['names'][name]}</td>" in page
        assert f"<td>{areas['image']:.1%}</td>" in page
    assert set(client.get(f"{place}/report.json").json()["areas"]) == set(image["masks"])
    assert client.get(f"{place}/report.pdf").content.startswith(b"%PDF-")


@pytest.mark.parametrize("name", CLASSES)
def test_every_mask_class_can_be_corrected(name: str, client: httpx.Client) -> None:
    image = upload(client, film_png(3))
    place = f"/api/films/{image['id']}/masks/{name}"
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    mask[100:140, 60:90] = 255
    revised = client.put(place, content=png_of(mask)).json()
    assert revised["corrected"] == [name]
    assert revised["areas"][name]["image"] == pytest.approx((mask > 0).mean())
    np.testing.assert_array_equal(pixels_of(client.get(f"{place}.png").content), mask)
    assert client.delete(place).json() == image


def test_findings_are_measured_within_each_lung() -> None:
    lungs, effusion, nodule = np.zeros((3, 40, 60), bool)
    lungs[5:35, 5:25] = lungs[5:35, 35:55] = True
    effusion[30:40, 35:55] = True  # half of it below the lung
    nodule[5:8, 5:25] = True
    areas = mask_areas({"lung_field": lungs, "effusion": effusion, "nodule": nodule})
    assert areas["lung_field"] == {"image": 0.5, "lungs": None, "right": None, "left": None}
    assert areas["effusion"] == pytest.approx({"image": 200 / 2400, "lungs": 1 / 12, "right": 0, "left": 1 / 6})
    assert areas["nodule"] == pytest.approx({"image": 60 / 2400, "lungs": 0.05, "right": 0.1, "left": 0})
    alone = mask_areas({"effusion": effusion})
    assert alone == {"effusion": {"image": pytest.approx(200 / 2400), "lungs": None, "right": None, "left": None}}


def test_masks_that_are_shown_together_differ_in_colour() -> None:
    names = ["lung", "lung_field", "infection", *(f"finding-{number}" for number in range(16))]
    colors = mask_colors(names)
    assert list(colors) == names
    assert len(set(colors.values())) == len(names)
    assert mask_colors(reversed(names)) == colors
    assert {name: colors[name] for name in MASK_COLORS} == MASK_COLORS
    assert mask_colors(["effusion"]) == {"effusion": mask_color("effusion")}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("covid19", "COVID-19"),
        ("covid_19", "COVID-19"),
        ("non_covid", "non COVID-19"),
        ("lung_field", "lung field"),
        ("sars", "SARS"),
        ("No Finding", "No Finding"),
        ("cannot say", "indeterminate"),
    ],
)
def test_classes_are_shown_as_a_reader_writes_them(name: str, shown: str) -> None:
    assert display_name(name) == shown


def test_two_classes_never_read_alike() -> None:
    assert display_names(["covid", "covid19", "normal"]) == {"covid": "covid", "covid19": "covid19", "normal": "normal"}
