"""The server as its page and other programs meet it."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import CLASSES, TOKEN, dicom_of, film_png, pixels_of, png_of, running, small_pipeline, upload

from covidcxr import Pipeline
from covidcxr.cli import main
from covidcxr.errors import ConfigError
from covidcxr.models import SegmentationModel
from covidcxr.phantom import draw_phantom
from covidcxr.serve import Limits, ServeSettings, Store, post_test
from covidcxr.serve.schema import check_prior
from covidcxr.serve.service import infected_by_lung


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


@pytest.fixture(scope="module")
def client(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("store"), pipeline) as client:
        yield client


# Images


def test_an_uploaded_film_is_answered_and_kept(client: httpx.Client, pipeline: Pipeline) -> None:
    content = film_png(1)
    film = upload(client, content, "ward 3/näme.png")
    expected = pipeline(content)
    assert film["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert film["label"] == expected.label
    assert [reason["id"] for reason in film["reasons"]] == list(expected.reasons)
    assert (film["width"], film["height"], film["name"]) == (300, 320, "näme.png")
    assert film["lung_fraction"] == pytest.approx(expected.lung_fraction)
    assert re.fullmatch(r"[\w-]{22}", film["id"])
    assert client.get(f"/api/films/{film['id']}").json() == film
    assert film in client.get("/api/films").json()["films"]


def test_pictures_have_the_films_own_size(client: httpx.Client, pipeline: Pipeline) -> None:
    content = film_png(2)
    film, expected = upload(client, content), pipeline(content)
    place = f"/api/films/{film['id']}"
    np.testing.assert_array_equal(pixels_of(client.get(f"{place}/image.png").content), expected.film)
    assert max(pixels_of(client.get(f"{place}/thumbnail.png").content).shape) == 160
    for name in film["masks"]:
        mask = pixels_of(client.get(f"{place}/masks/{name}.png").content)
        np.testing.assert_array_equal(mask, expected.masks[name].astype(np.uint8) * 255)
    heat = pixels_of(client.get(f"{place}/heat/covid19.png").content)
    np.testing.assert_array_equal(heat, np.rint(expected.explain("covid19").heat * 255).astype(np.uint8))
    assert heat.max() == 255


@pytest.mark.parametrize(
    "path",
    ["", "/image.png", "/masks/lung.png", "/heat/covid19.png", "/report.pdf", "/other.png"],
)
def test_unknown_films_and_parts(path: str, client: httpx.Client) -> None:
    response = client.get(f"/api/films/{'x' * 22}{path}")
    assert response.status_code == 404
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("path", ["/masks/heart.png", "/heat/measles.png", "/other.png"])
def test_unknown_parts_of_a_known_film(path: str, client: httpx.Client) -> None:
    film = upload(client, film_png(2))
    assert client.get(f"/api/films/{film['id']}{path}").status_code == 404


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "film.png is empty"),
        (b"\x89PNG\r\n\x1a\n no more", "film.png cannot be decoded"),
        (film_png()[:2000], "film.png cannot be decoded"),
        (b"%PDF-1.7", "no image but a PDF"),
    ],
)
def test_films_that_cannot_be_read(content: bytes, message: str, client: httpx.Client) -> None:
    response = client.post("/api/films", files={"file": ("film.png", content)})
    assert response.status_code == 422
    assert message in response.json()["error"]


def test_a_film_without_lungs_has_reasons_and_no_heat(pipeline: Pipeline, tmp_path: Path) -> None:
    assert pipeline.lung_segmenter is not None
    settings = replace(pipeline.lung_segmenter.config, thresholds=dict.fromkeys(("lung_field", "lung"), 1.0))
    blind = SegmentationModel(settings)  # nothing is ever sure enough for it
    with running(tmp_path, Pipeline(lung_segmenter=blind, classifier=pipeline.classifier)) as client:
        film = upload(client, film_png(0))
        assert film["label"] is None
        assert film["reasons"][0]["id"] == "lungs-not-found"
        assert "lung" in film["reasons"][0]["words"]
        assert film["probabilities"] == {}
        assert client.get(f"/api/films/{film['id']}/heat/covid19.png").status_code == 409
        for kind in ("html", "pdf", "json"):
            assert client.get(f"/api/films/{film['id']}/report.{kind}").status_code == 200


def test_a_film_is_removed_with_all_that_was_said_of_it(client: httpx.Client) -> None:
    film = upload(client, film_png(3))
    place = f"/api/films/{film['id']}"
    client.put(f"{place}/verdict", json={"label": "normal", "comment": "", "consent": True}).raise_for_status()
    assert client.delete(place).status_code == 204
    for path in ("", "/image.png", "/masks/lung.png"):
        assert client.get(f"{place}{path}").status_code == 404
    assert client.delete(place).status_code == 404


def test_what_was_done_to_a_film_is_noted(client: httpx.Client) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels_of(film_png(4))).save(buffer, format="JPEG", exif=exif)
    film = upload(client, buffer.getvalue())
    assert (film["width"], film["height"]) == (320, 300)
    assert film["notes"] == ["Turned upright as the file's orientation says."]
    inverted = dicom_of(255 - pixels_of(film_png(4)), PhotometricInterpretation="MONOCHROME1")
    film = upload(client, inverted)
    assert film["notes"] == ["Inverted: the file is MONOCHROME1."]
    assert film["probabilities"] == pytest.approx(upload(client, film_png(4))["probabilities"], abs=1e-5)


def test_many_films_are_answered_in_order_and_not_kept(client: httpx.Client) -> None:
    before = client.get("/api/health").json()["films"]
    contents = [film_png(seed) for seed in range(18)]
    contents[5] = b"no image"
    files = [("files", (f"{number}.png", content)) for number, content in enumerate(contents)]
    with client.stream("POST", "/api/predict", files=files) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in response.iter_lines()]
    assert [line["name"] for line in lines] == [f"{number}.png" for number in range(18)]
    assert [number for number, line in enumerate(lines) if "error" in line] == [5]
    assert set(lines[0]) >= {"label", "probabilities", "reasons", "sha256", "notes", "model_sha256"}
    assert client.get("/api/health").json()["films"] == before


# Corrections, priors, verdicts


def test_a_corrected_mask_changes_the_answer_and_can_be_taken_back(client: httpx.Client, pipeline: Pipeline) -> None:
    content = film_png(5)
    film = upload(client, content)
    place = f"/api/films/{film['id']}"
    mask = pixels_of(client.get(f"{place}/masks/lung_field.png").content)
    mask[:, : mask.shape[1] // 2] = 0
    revised = client.put(f"{place}/masks/lung_field", content=png_of(mask)).json()
    expected = pipeline.revise(content, {"lung_field": mask > 0})
    assert revised["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert revised["probabilities"] != film["probabilities"]
    assert (revised["revised"], revised["corrected"]) == (True, ["lung_field"])
    np.testing.assert_array_equal(pixels_of(client.get(f"{place}/masks/lung_field.png").content), mask)
    back = client.delete(f"{place}/masks/lung_field").json()
    assert back == film
    assert client.delete(f"{place}/masks/lung_field").status_code == 404


@pytest.mark.parametrize(
    ("name", "mask", "status", "message"),
    [
        ("lung", np.full((10, 10), 255), 422, "10 x 10"),
        ("lung", np.full((320, 300), 128), 422, "holds grey"),
        ("lung", np.zeros((320, 300)), 422, "not empty"),
        ("heart", np.full((320, 300), 255), 404, "draws no such mask"),
    ],
)
def test_masks_that_are_none(name: str, mask: Any, status: int, message: str, client: httpx.Client) -> None:
    film = upload(client, film_png(5))
    response = client.put(f"/api/films/{film['id']}/masks/{name}", content=png_of(mask))
    assert response.status_code == status
    assert message in response.json()["error"]
    assert client.get(f"/api/films/{film['id']}").json() == film


def test_the_post_test_probability_is_bayes_rule(client: httpx.Client) -> None:
    film = upload(client, film_png(6))
    prior = {"covid19": 0.7, "pneumonia": 0.2, "normal": 0.1}
    place = f"/api/films/{film['id']}/prior"
    stated = client.put(place, json={"probabilities": prior}).json()
    weighed = {name: film["probabilities"][name] * prior[name] for name in CLASSES}
    expected = {name: weighed[name] / sum(weighed.values()) for name in CLASSES}
    assert stated["posterior"] == pytest.approx(expected)
    assert stated["prior"] == pytest.approx(prior)
    assert stated["probabilities"] == film["probabilities"]
    assert client.put(place, json={"probabilities": None}).json() == film


@pytest.mark.parametrize(
    "prior",
    [
        {"covid19": 0.7, "pneumonia": 0.2},
        {"covid19": 0.7, "pneumonia": 0.2, "measles": 0.1},
        {"covid19": 0.7, "pneumonia": 0.2, "normal": 0.2},
        {"covid19": 1.2, "pneumonia": -0.2, "normal": 0.0},
        {"covid19": "0.7", "pneumonia": 0.2, "normal": 0.1},
        0.3,
    ],
)
def test_priors_that_are_none(prior: Any, client: httpx.Client) -> None:
    film = upload(client, film_png(6))
    response = client.put(f"/api/films/{film['id']}/prior", json={"probabilities": prior})
    assert response.status_code == 422
    assert list(response.json()) == ["error"]
    assert client.get(f"/api/films/{film['id']}").json()["prior"] is None


def test_bayes_rule_takes_out_the_shares_of_training() -> None:
    assert post_test({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}, {"a": 0.8, "b": 0.2}) == pytest.approx(
        {"a": 0.2, "b": 0.8}
    )
    sick = post_test({"sick": 0.9, "well": 0.1}, {"sick": 0.01, "well": 0.99})
    assert sick == pytest.approx({"sick": 0.009 / 0.108, "well": 0.099 / 0.108})
    assert post_test({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}) is None
    assert check_prior({"b": 0.5, "a": 0.5001}, ("a", "b")) == pytest.approx({"a": 0.5, "b": 0.5}, abs=1e-4)
    with pytest.raises(ConfigError, match="sum to 1, not to nan"):
        check_prior({"a": float("nan"), "b": 0.5}, ("a", "b"))


def test_a_verdict_is_kept_and_can_be_changed(client: httpx.Client) -> None:
    film = upload(client, film_png(7))
    place = f"/api/films/{film['id']}/verdict"
    for said in (
        {"label": "covid19", "comment": "Milchglas, λευκό", "consent": False},
        {"label": "cannot say", "comment": "", "consent": True},
        {"label": None, "comment": "later", "consent": False},
    ):
        verdict = client.put(place, json=said).json()["verdict"]
        assert {name: verdict[name] for name in said} == said
        assert client.get(f"/api/films/{film['id']}").json()["verdict"] == verdict


@pytest.mark.parametrize(
    "said",
    [
        {"label": "measles"},
        {"label": "normal", "comment": "x" * 10_001},
        {"label": "normal", "comment": "a\0b"},
        {"label": "normal", "consent": "yes"},
        {"label": "normal", "who": "me"},
        {"comment": "no label"},
        [],
    ],
)
def test_verdicts_that_are_none(said: Any, client: httpx.Client) -> None:
    film = upload(client, film_png(7))
    response = client.put(f"/api/films/{film['id']}/verdict", json=said)
    assert response.status_code == 422
    assert list(response.json()) == ["error"]
    assert client.get(f"/api/films/{film['id']}").json()["verdict"] is None


def test_half_a_letter_in_a_comment(client: httpx.Client) -> None:
    film = upload(client, film_png(7))
    body = b'{"label": "normal", "comment": "\\ud800"}'
    response = client.put(
        f"/api/films/{film['id']}/verdict", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422


# Reports, health, metrics, documentation


def test_the_report_says_what_is_known(client: httpx.Client) -> None:
    film = upload(client, film_png(8))
    place = f"/api/films/{film['id']}"
    client.put(f"{place}/prior", json={"probabilities": {"covid19": 0.6, "pneumonia": 0.3, "normal": 0.1}})
    said = {"label": "pneumonia", "comment": "Consolidation & effusion", "consent": False}
    film = client.put(f"{place}/verdict", json=said).json()
    page = client.get(f"{place}/report.html")
    for words in (
        "research only",
        "Consolidation &amp; effusion",
        f"{film['posterior']['covid19']:.1%}",
        "Bayes",
        "Grad-CAM",
    ):
        assert words in page.text
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.text.count("data:image/png;base64") == 3
    pdf = client.get(f"{place}/report.pdf")
    assert pdf.headers["content-type"] == "application/pdf"
    assert pdf.content.startswith(b"%PDF-")
    assert pdf.content.rstrip().endswith(b"%%EOF")
    report = client.get(f"{place}/report.json")
    assert report.json()["posterior"] == film["posterior"]
    assert film["id"] in report.headers["content-disposition"]


def test_health_tells_what_answers(client: httpx.Client, pipeline: Pipeline) -> None:
    health = client.get("/api/health").json()
    assert health["status"] == "ok"
    assert health["model"]["classes"] == list(CLASSES)
    assert pipeline.lung_segmenter is not None
    assert health["model"]["mask_classes"] == list(pipeline.lung_segmenter.config.classes)
    assert health["model"]["components"] == list(pipeline.models())
    assert health["model"]["training_prior"] == pytest.approx(dict.fromkeys(CLASSES, 1 / 3))
    assert health["limits"]["pixels"] == Limits().pixels


def test_metrics_are_counted(client: httpx.Client) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    name = 'covidcxr_request_seconds_count{method="GET",route="/api/films/{film_id}",status="404"}'
    before = value(name)
    for letter in "abc":
        client.get(f"/api/films/{letter * 22}")
    assert value(name) == before + 3
    films = value("covidcxr_kept_films")
    upload(client, film_png(9))
    assert value("covidcxr_kept_films") == films + 1
    assert value("covidcxr_model_seconds_total") > 0


def test_routes_are_documented_without_anything_from_elsewhere(client: httpx.Client) -> None:
    openapi = client.get("/openapi.json").json()
    assert "/api/films/{film_id}/masks/{mask_class}" in openapi["paths"]
    assert all(call["description"] for calls in openapi["paths"].values() for call in calls.values())
    page = client.get("/docs")
    assert all(path in page.text for path in openapi["paths"])
    assert not re.search(r"(src|href)=\"?https?:", page.text)


def test_the_page_and_its_files(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="/?static/([^"]+)"', page.text)
    assert names
    for name in names:
        response = client.get(f"/static/{name}")
        assert response.status_code == 200, name
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
        assert response.headers["content-type"].startswith(kind)


# Many at once


def test_films_of_many_clients_share_a_batch(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline, workers=2) as client:
        failed: list[str] = []

        def send(seed: int) -> None:
            response = client.post("/api/films", files={"file": (f"{seed}.png", film_png(seed))})
            if response.status_code != 201:
                failed.append(response.text)

        threads = [threading.Thread(target=send, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        names = {film["name"] for film in client.get("/api/films").json()["films"]}
        assert names == {f"{seed}.png" for seed in range(16)}
        batches = re.search(r"^covidcxr_batch_films_count (\S+)", client.get("/metrics").text, re.MULTILINE)
        assert batches is not None
        assert float(batches[1]) < 16


def test_a_busy_server_says_so(pipeline: Pipeline, tmp_path: Path) -> None:
    limits = Limits(uploads=1, waiting_films=1)
    with running(tmp_path, pipeline, limits=limits) as client:
        content = film_png(0, size=(1500, 1500))
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post("/api/films", files={"file": content})))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} == {201, 503}
        assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)
        upload(client, content)  # and recovers
        files = [("files", (f"{seed}.png", film_png(seed))) for seed in range(6)]  # a large batch waits its turn
        lines = client.post("/api/predict", files=files).text.splitlines()
        assert all("label" in json.loads(line) for line in lines)


# The store


def test_everything_is_there_after_a_restart(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline) as client:
        film = upload(client, film_png(1))
        place = f"/api/films/{film['id']}"
        mask = pixels_of(client.get(f"{place}/masks/lung_field.png").content)
        mask[:100] = 0
        client.put(f"{place}/masks/lung_field", content=png_of(mask))
        client.put(f"{place}/prior", json={"probabilities": {"covid19": 0.6, "pneumonia": 0.3, "normal": 0.1}})
        film = client.put(f"{place}/verdict", json={"label": "normal", "comment": "hm", "consent": True}).json()
    with running(tmp_path, pipeline) as client:
        assert client.get("/api/films").json()["films"] == [film]
        np.testing.assert_array_equal(pixels_of(client.get(f"{place}/masks/lung_field.png").content), mask)


def test_another_model_answers_anew_and_keeps_what_readers_said(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline) as client:
        film = upload(client, film_png(1))
        place = f"/api/films/{film['id']}"
        client.put(f"{place}/verdict", json={"label": "normal", "comment": "hm", "consent": True})
        mask = pixels_of(client.get(f"{place}/masks/lung.png").content)
        mask[:100] = 0
        before = client.put(f"{place}/masks/lung", content=png_of(mask)).json()
    other = small_pipeline(seed=1)
    with running(tmp_path, other) as client:
        after = client.get(place).json()
        assert after["model_sha256"] != before["model_sha256"]
        expected = other.revise(film_png(1), {"lung": mask > 0}).probabilities
        assert after["probabilities"] != before["probabilities"]
        assert after["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert after["verdict"] == before["verdict"]
        assert client.get("/api/films").json()["films"] == [after]
    bare = Pipeline(lung_segmenter=pipeline.lung_segmenter)
    with running(tmp_path, bare) as client:
        film = client.get(place).json()
        assert (film["label"], film["probabilities"], film["classes"]) == (None, {}, [])
        assert film["corrected"] == ["lung"]
        refused = client.put(f"{place}/prior", json={"probabilities": {}})
        assert refused.status_code == 422


def test_the_oldest_films_without_feedback_make_room(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline, limits=Limits(films=3)) as client:
        ids = [upload(client, film_png(seed))["id"] for seed in range(3)]
        client.put(f"/api/films/{ids[0]}/verdict", json={"label": None, "comment": "", "consent": False})
        kept = {upload(client, film_png(3))["id"], ids[0], ids[2]}
        assert {film["id"] for film in client.get("/api/films").json()["films"]} == kept
        for film_id in kept:
            client.put(f"/api/films/{film_id}/verdict", json={"label": "normal", "comment": "", "consent": False})
        response = client.post("/api/films", files={"file": ("a.png", film_png(4))})
        assert response.status_code == 507
        assert {film["id"] for film in client.get("/api/films").json()["films"]} == kept


def test_bytes_are_bounded_too(pipeline: Pipeline, tmp_path: Path) -> None:
    size = len(film_png(0))
    with running(tmp_path, pipeline, limits=Limits(store_bytes=3 * size)) as client:
        for seed in range(5):
            upload(client, film_png(seed))
        assert 1 <= client.get("/api/health").json()["films"] <= 2


@pytest.mark.parametrize("keep", [False, True])
def test_identifiers_are_kept_only_if_asked_for(keep: bool, pipeline: Pipeline, tmp_path: Path) -> None:
    secret = {"PatientName": "Grünwald^Zoë", "PatientID": "PID-4711-X", "AccessionNumber": "ACC-0815-Y"}
    uid = "1.2.826.0.1.3680043.8.498.4711"
    content = dicom_of(pixels_of(film_png(1)), **secret, StudyInstanceUID=uid)
    with running(tmp_path, pipeline, keep_identifiers=keep) as client:
        film = upload(client, content)
        expected = {"PatientID": "PID-4711-X", "StudyInstanceUID": uid} if keep else {}
        assert {name: value for name, value in film["identifiers"].items() if name != "SOPInstanceUID"} == expected
        assert ("PID-4711-X" in client.get(f"/api/films/{film['id']}/report.html").text) == keep
        picture = client.get(f"/api/films/{film['id']}/image.png").content
        assert b"PID-4711-X" not in picture
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Gr\xc3\xbcnwald" not in written
    assert b"ACC-0815-Y" not in written
    assert (b"PID-4711-X" in written) == keep


def test_what_is_deleted_is_gone_from_the_disk(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline) as client:
        film = upload(client, film_png(1))
        place = f"/api/films/{film['id']}"
        client.put(f"{place}/verdict", json={"label": None, "comment": "a very special comment", "consent": False})
        client.delete(place).raise_for_status()
    assert not [path for path in tmp_path.iterdir() if b"a very special comment" in path.read_bytes()]


def test_a_store_of_a_newer_release(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("update settings set value = '99' where name = 'schema'")
    store.close()
    with pytest.raises(ConfigError, match="newer covidcxr"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("foo://x", "no database URL"),
        ("postgresql+psycopg://nobody@localhost:1/none", "cannot be opened: .*refused"),
    ],
)
def test_stores_that_cannot_be_had(where: str, message: str) -> None:
    if where.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="the driver of PostgreSQL is no part of the extra `serve`")
    with pytest.raises(ConfigError, match=message):
        Store(where)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "give a token"),
        ({"host": "films.example.org"}, "give a token"),
        ({"host": "::"}, "give a token"),
        ({"token": "short"}, "at least 16"),
        ({"port": 70000}, "port must be"),
        ({"workers": 0}, "workers 1 or more"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeSettings(**settings)
    with pytest.raises(ConfigError, match="pixels must be above 0"):
        Limits(pixels=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "give a token"),
        (["--model", "minii"], "Did you mean 'mini'"),
        (["--port", "{taken}"], "Address already in use"),
        (["--host", "no-such-host.invalid", "--token", TOKEN], "Cannot listen on no-such-host.invalid"),
        (["--store", "{file}"], "File exists"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        places = {"taken": listener.getsockname()[1], "file": tmp_path / "file"}
        words = ["--store", str(tmp_path / "store"), "--port", "0", *(word.format(**places) for word in words)]
        assert main(["serve", *words]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("covidcxr: ")
    assert message in lines[0]


@pytest.mark.parametrize(
    ("package", "verb"),
    [
        ("fastapi", ["serve"]),
        ("prometheus_client", ["serve"]),
        ("sqlalchemy", ["serve"]),
        ("sqlalchemy", ["feedback", "store", "--out", "out"]),
    ],
)
def test_a_missing_extra_is_one_clear_line(package: str, verb: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from covidcxr.cli import main; sys.exit(main({verb!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert package in line
    assert 'pip install "covidcxr[serve]"' in line


def test_a_token_is_in_no_representation() -> None:
    assert "sixteen" not in repr(ServeSettings(token="a-token-of-sixteen-letters"))


# Answers


def test_the_infected_share_of_each_lung() -> None:
    lungs, infection = np.zeros((2, 40, 60), bool)
    lungs[5:35, 5:25] = lungs[5:35, 35:55] = True
    lungs[0, 0] = True  # a speck is no lung
    infection[5:20, 5:25] = True
    infection[5:8, 35:55] = True
    assert infected_by_lung(lungs, infection) == pytest.approx({"right": 0.5, "left": 0.1})
    nothing = {"right": None, "left": None}
    assert infected_by_lung(None, infection) == nothing
    assert infected_by_lung(lungs, None) == nothing
    lungs[20, 20:40] = True  # one piece
    assert infected_by_lung(lungs, infection) == nothing
    assert infected_by_lung(np.zeros_like(lungs), infection) == nothing


def test_a_phantoms_infection_lies_where_it_was_drawn() -> None:
    phantom = draw_phantom(3, label="pneumonia", size=(300, 300))
    sides = infected_by_lung(phantom.lung_field, phantom.infection)
    columns = np.arange(300) < 150
    right = (phantom.infection & phantom.lung_field & columns).sum() / (phantom.lung_field & columns).sum()
    assert sides["right"] == pytest.approx(right, abs=0.02)
