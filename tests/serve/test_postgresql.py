"""A store and a study in PostgreSQL, and what becomes of them when it goes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from postgresql import PostgreSQL, postgresql
from serving import film_png, pixels_of, png_of, running, small_pipeline, upload

from covidcxr import Pipeline
from covidcxr.cli import main
from covidcxr.errors import ConfigError
from covidcxr.serve import Store

pytestmark = pytest.mark.slow

VERDICT = {"label": "normal", "comment": "", "consent": True}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


def test_a_store_keeps_images_masks_and_verdicts(server: PostgreSQL, pipeline: Pipeline, tmp_path: Path) -> None:
    url = server.url
    with running(url, pipeline) as client:
        film = upload(client, film_png(1), "ä.png")
        place = f"/api/films/{film['id']}"
        client.put(f"{place}/prior", json={"probabilities": {"covid19": 0.6, "pneumonia": 0.3, "normal": 0.1}})
        mask = pixels_of(client.get(f"{place}/masks/lung.png").content)
        mask[:40] = 0
        client.put(f"{place}/masks/lung", content=png_of(mask)).raise_for_status()
        client.put(f"{place}/verdict", json=VERDICT).raise_for_status()
        film = client.get(place).json()
    with running(url, pipeline) as client:
        assert client.get(place).json() == film
        np.testing.assert_array_equal(pixels_of(client.get(f"{place}/masks/lung.png").content), mask)
    assert main(["feedback", url, "--out", str(tmp_path / "out")]) == 0
    exported = json.loads((tmp_path / "out" / "feedback.json").read_text())["films"]
    assert [entry["sha256"] for entry in exported] == [film["sha256"]]
    with running(url, pipeline) as client:
        client.delete(place).raise_for_status()
        assert client.get(place).status_code == 404


def test_away_is_503_and_back_goes_on(server: PostgreSQL, pipeline: Pipeline) -> None:
    with running(server.url, pipeline) as client:
        place = f"/api/films/{upload(client, film_png(1))['id']}"
        server.stop()
        for response in (
            client.get("/api/films"),
            client.get(place),
            client.put(f"{place}/verdict", json=VERDICT),
            client.post("/api/films", files={"file": ("b.png", film_png(2))}),
        ):
            assert response.status_code == 503
            assert response.json() == {
                "error": "The store does not answer, so nothing was saved. Try again in a moment."
            }
        server.start()
        client.put(f"{place}/verdict", json=VERDICT).raise_for_status()  # the same server process
        assert client.get(place).json()["verdict"]["label"] == "normal"
        assert len(client.get("/api/films").json()["films"]) == 1, "what was refused was not saved"


def test_one_that_is_away_at_the_start_is_one_error(server: PostgreSQL) -> None:
    server.stop()
    with pytest.raises(ConfigError, match=r"The store cannot be opened: .*refused") as error:
        Store(server.url)
    assert "\n" not in str(error.value)
    server.start()
