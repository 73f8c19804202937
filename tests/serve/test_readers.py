"""Several readers at one server: each hears of what the others change, and no verdict replaces another unseen."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import film_png, running, small_pipeline, upload

from covidcxr import Pipeline
from covidcxr.cli.main import main
from covidcxr.serve import Limits


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


@pytest.fixture
def client(pipeline: Pipeline, tmp_path: Path) -> Iterator[httpx.Client]:
    with running(tmp_path / "store", pipeline, limits=Limits(images=3)) as client:
        yield client


def news(client: httpx.Client, since: str | None) -> tuple[list[str], list[str], bool, str]:
    answer = client.get("/api/films", params={} if since is None else {"since": since}).json()
    return [image["id"] for image in answer["films"]], answer["removed"], answer["complete"], answer["revision"]


def give(client: httpx.Client, image: str, label: str | None, **more: Any) -> httpx.Response:
    said = {"label": label, "comment": "", "consent": True, **more}
    return client.put(f"/api/films/{image}/verdict", json=said)


def test_what_others_change_is_listed_by_revision(client: httpx.Client) -> None:
    ids, removed, complete, start = news(client, None)
    assert (ids, removed, complete) == ([], [], True)
    first, second, third = (upload(client, film_png(seed))["id"] for seed in range(3))
    ids, removed, complete, all_three = news(client, start)
    assert (ids, removed, complete) == ([third, second, first], [], False)
    assert news(client, all_three) == ([], [], False, all_three)
    give(client, second, "normal")
    ids, removed, complete, judged = news(client, all_three)
    assert (ids, removed, complete) == ([second], [], False)
    client.put(f"/api/films/{third}/prior", json={"probabilities": None})
    client.delete(f"/api/films/{third}")
    assert news(client, judged)[:3] == ([], [third], False)
    upload(client, film_png(3))
    fourth = upload(client, film_png(4))["id"]  # the first one makes room
    ids, removed, _, _ = news(client, judged)
    assert fourth in ids
    assert set(removed) == {first, third}


@pytest.mark.parametrize("since", ["", "nonsense", "00000000.0", "00000000.999", "{}.99999999", "{}.-1"])
def test_an_unknown_revision_gets_everything(since: str, client: httpx.Client) -> None:
    image = upload(client, film_png(1))["id"]
    started = news(client, None)[3].partition(".")[0]
    ids, removed, complete, _ = news(client, since.format(started))
    assert (ids, removed, complete) == ([image], [], True)


def test_a_verdict_replaces_none_that_its_reader_has_not_seen(client: httpx.Client) -> None:
    image = upload(client, film_png(1))["id"]
    mine = give(client, image, "normal", replaces=None).json()["verdict"]
    refused = give(client, image, "covid19", replaces=None)
    assert refused.status_code == 409
    assert "Another reader" in refused.json()["error"]
    assert client.get(f"/api/films/{image}").json()["verdict"] == mine
    theirs = give(client, image, "covid19", replaces=mine["saved"]).json()["verdict"]
    assert theirs["label"] == "covid19"
    assert give(client, image, "normal", replaces=mine["saved"]).status_code == 409
    assert give(client, image, "pneumonia").json()["verdict"]["label"] == "pneumonia", "as in 0.1.0"


def test_a_model_of_0_1_0_with_a_path_as_a_class_writes_nothing_outside(
    client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = upload(client, film_png(1))["id"]
    give(client, image, "normal")
    store = tmp_path / "store" / "store.sqlite"
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("update masks set name = '/../../../../escaped' where name = 'lung_field'")
    before = {path.name for path in tmp_path.rglob("*")}
    assert main(["feedback", str(tmp_path / "store"), "--out", str(tmp_path / "a" / "b" / "out")]) == 2
    assert "cannot name a file" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} - before <= {"a", "b"}
    assert json.loads(client.get("/api/films").text)["films"]
