"""What the server says when its store is away, when a client wants what it has not, and when an image is refused."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import answer_of, film_png, png_of, raw, running, small_pipeline, upload
from sqlalchemy import create_engine

from covidcxr import Pipeline
from covidcxr.cli.main import main
from covidcxr.serve import Limits, ServeSettings, create_app
from covidcxr.serve.worker import decode_image

NO_IMAGE = "x" * 22


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


@pytest.fixture(scope="module")
def client(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    limits = Limits(pixels=500_000)
    with running(tmp_path_factory.mktemp("store"), pipeline, limits=limits) as client:
        yield client


# The store is away


def test_a_store_that_is_away_is_503_with_one_line_in_the_log(
    pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(ServeSettings(store=tmp_path / "store", workers=1), pipeline)
    store, there = app.state.service.store, app.state.service.store.engine
    verdict = {"label": None, "comment": "", "consent": False}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/api/health", {}),
        ("GET", "/metrics", {}),
        ("GET", "/api/films", {}),
        ("GET", f"/api/films/{NO_IMAGE}", {}),
        ("GET", f"/api/films/{NO_IMAGE}/image.png", {}),
        ("GET", f"/api/films/{NO_IMAGE}/masks/lung.png", {}),
        ("GET", f"/api/films/{NO_IMAGE}/report.pdf", {}),
        ("PUT", f"/api/films/{NO_IMAGE}/verdict", {"json": verdict}),
        ("PUT", f"/api/films/{NO_IMAGE}/prior", {"json": {"probabilities": None}}),
        ("DELETE", f"/api/films/{NO_IMAGE}", {}),
        ("POST", "/api/films", {"files": {"file": ("a.png", film_png(1))}}),
    ]
    with TestClient(app, base_url="http://localhost") as client:
        app.state.service.engine.ready.wait()
        store.engine = create_engine(f"sqlite:///{tmp_path}/away/store.sqlite")
        for method, path, more in calls:
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                response = client.request(method, path, **more)
            assert response.status_code == 503, path
            assert response.json() == {
                "error": "The store does not answer, so nothing was saved. Try again in a moment."
            }
            assert int(response.headers["Retry-After"]) > 0
            (record,) = caplog.records
            assert "unable to open database file" in record.message
            assert "\n" not in record.message
            assert record.exc_info is None
        store.engine = there
        assert client.post("/api/films", files={"file": ("a.png", film_png(1))}).status_code == 201


# A websocket is wanted


def test_a_wish_for_a_websocket_is_one_line_in_the_log(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    host = f"{client.base_url.host}:{client.base_url.port}"
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA\r\n"
    for path, status in (("/", b"200"), ("/api/films", b"200"), ("/ws", b"404")):
        caplog.clear()
        with raw(client) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n".encode())
            connection.shutdown(socket.SHUT_WR)
            assert answer_of(connection).split()[1] == status
        (record,) = caplog.records
        assert "websocket" in record.message
        assert "\n" not in record.message


# Images that are refused: in words for a reader, who knows no Python and sees no bytes


def tiff_of_two() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (50, 50)).save(buffer, "TIFF", save_all=True, append_images=[Image.new("L", (50, 50))])
    return buffer.getvalue()


REFUSED = {
    "too large": (
        lambda: png_of(np.zeros((1000, 501))),
        "a.png holds more than 0.5 megapixels, the most that this server takes. Send a smaller copy, or ask who runs "
        "the server to raise the limit (--max-megapixels).",
    ),
    "text": (
        lambda: b"To whom it may concern",
        "a.png has an unsupported file format. Save it as PNG, JPEG, TIFF, BMP, WebP or DICOM.",
    ),
    "PDF": (lambda: b"%PDF-1.7", "a.png is no image but a PDF"),
    "empty": (lambda: b"", "a.png is empty"),
    "damaged": (lambda: film_png()[:2000], "a.png cannot be decoded: it is damaged, incomplete or of a rare kind"),
    "several pictures": (tiff_of_two, "a.png holds several pictures. Save the image alone."),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_are_written_for_readers(kind: str, client: httpx.Client) -> None:
    make, words = REFUSED[kind]
    for path, field in (("/api/films", "file"), ("/api/predict", "files")):
        response = client.post(path, files={field: ("a.png", make())})
        error = response.json()["error"]
        assert error.startswith(words)
        assert not {"b'", "MAX_PIXELS", "`", "Traceback"} & {
            word for word in ("b'", "MAX_PIXELS", "`") if word in error
        }


def test_an_image_of_exactly_the_limit_is_taken(client: httpx.Client) -> None:
    assert upload(client, png_of(np.zeros((1000, 500))))["height"] == 1000


def test_the_limit_is_a_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[ServeSettings] = []
    monkeypatch.setattr("covidcxr.serve.server.serve", seen.append)
    assert main(["serve"]) == 0
    assert main(["serve", "--max-megapixels", "100"]) == 0
    assert main(["serve", "--max-megapixels", "0.5"]) == 0
    limits = [settings.limits for settings in seen]
    assert [limit.pixels for limit in limits] == [40_000_000, 100_000_000, 500_000]
    assert limits[0] == Limits()
    assert limits[1].file_bytes > 200_000_000, "16-bit pixels fit"
    assert limits[1].decode_bytes > limits[0].decode_bytes
    assert limits[2] == replace(Limits(), pixels=500_000)
    for wrong in ("0", "-1", "nan", "1e9"):
        assert main(["serve", "--max-megapixels", wrong]) == 2
        assert "max-megapixels" in capsys.readouterr().err


def test_pixels_are_kept_as_they_are() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    _, (kept, png, _) = decode_image(png_of(pixels))
    assert kept == pixels.tobytes()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)


# The names that 0.1.0 gave to limits


def test_limits_have_their_old_names_too() -> None:
    old = {"films": 3, "batch_films": 4, "waiting_films": 5}
    limits = Limits(**old)  # type: ignore[arg-type]
    assert (limits.images, limits.batch_images, limits.waiting_images) == (3, 4, 5)
    assert {name: getattr(limits, name) for name in old} == old
    with pytest.raises(AttributeError, match="no attribute 'filmz'"):
        _ = limits.filmz
