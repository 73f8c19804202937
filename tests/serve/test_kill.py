"""A server killed at any moment has lost nothing that it acknowledged, and takes nothing half-written for whole."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from forking import fork_server
from serving import film_png, pixels_of, png_of, upload

from covidcxr.cli.main import main

MOMENTS = 10
SIZE = (160, 150)


@contextmanager
def process(store: Path, port: int) -> Iterator[tuple[BaseProcess, httpx.Client]]:
    """`covidcxr serve` in a process of its own; a fork, so that torch is imported once for all of them."""
    words = ["serve", "--store", str(store), "--port", str(port), "--workers", "1"]
    server = fork_server().Process(target=main, args=(words,), daemon=False)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until = time.monotonic() + 120
            while time.monotonic() < until and server.is_alive():
                try:
                    if client.get("/api/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            assert server.is_alive()
            yield server, client
    finally:
        server.kill()
        server.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Readers:
    """Clients that upload, give verdicts and correct masks until the server dies; they note what was acknowledged."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.uploads: dict[str, np.ndarray[Any, Any]] = {}
        self.verdicts: dict[str, int] = {}
        self.masks: dict[str, int] = {}
        self.turn = 0

    def work(self, *images: str) -> list[threading.Thread]:
        """Begin: one uploads, and one works on each image."""
        jobs = [(self._upload, ""), *((self._judge, image) for image in images)]
        threads = [threading.Thread(target=self._until_death, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        return threads

    def _until_death(self, act: Callable[[httpx.Client, str, int], None], image: str) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while True:
                self.turn += 1
                try:
                    act(client, image, self.turn)
                except httpx.TransportError:
                    return

    def _upload(self, client: httpx.Client, image: str, turn: int) -> None:
        content = film_png(turn, size=SIZE)
        self.uploads[upload(client, content)["id"]] = pixels_of(content)

    def _judge(self, client: httpx.Client, image: str, turn: int) -> None:
        said = {"label": "normal", "comment": str(turn), "consent": True}
        client.put(f"/api/films/{image}/verdict", json=said).raise_for_status()
        self.verdicts[image] = turn
        mask = np.full(SIZE, 255)
        mask[: 1 + turn % 100] = 0
        client.put(f"/api/films/{image}/masks/lung_field", content=png_of(mask)).raise_for_status()
        self.masks[image] = turn


def check(client: httpx.Client, readers: Readers) -> None:
    """All that was acknowledged is there, and all that is there is whole."""
    images = {image["id"]: image for image in client.get("/api/films").json()["films"]}
    assert readers.uploads.keys() <= images.keys()
    for name, image in images.items():
        pixels = pixels_of(client.get(f"/api/films/{name}/image.png").content)
        height, width = pixels.shape
        assert (height, width) == (image["height"], image["width"]) == SIZE
        assert hashlib.sha256(f"{height}x{width}:".encode() + pixels.tobytes()).hexdigest() == image["sha256"]
        assert image["masks"] == list(image["areas"])
        for mask in image["masks"]:
            assert pixels_of(client.get(f"/api/films/{name}/masks/{mask}.png").content).shape == SIZE
        if name in readers.uploads:
            np.testing.assert_array_equal(pixels, readers.uploads[name])
    for name, turn in readers.verdicts.items():  # the last one acknowledged, or the next, which was on its way
        assert int(images[name]["verdict"]["comment"]) >= turn
    for name, turn in readers.masks.items():
        mask = pixels_of(client.get(f"/api/films/{name}/masks/lung_field.png").content)
        empty = int((mask == 0).all(1).sum())
        later = {1 + after % 100 for after in range(turn, readers.turn + 1)}
        assert empty in later
        assert images[name]["corrected"] == ["lung_field"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_acknowledged_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    port, draw = free_port(), random.Random(0)
    readers = Readers(f"http://127.0.0.1:{port}")
    judged: list[str] = []
    for _ in range(MOMENTS):
        with process(tmp_path / "store", port) as (server, client):
            check(client, readers)
            if not judged:
                judged += [upload(client, film_png(seed, size=SIZE))["id"] for seed in (1, 2)]
            before = len(readers.uploads)
            threads = readers.work(*judged)
            while len(readers.uploads) == before:
                time.sleep(0.05)
            time.sleep(draw.uniform(0, 2))
            server.kill()
            for thread in threads:
                thread.join()
    with process(tmp_path / "store", port) as (_, client):
        check(client, readers)
    assert len(readers.uploads) >= MOMENTS
    assert readers.verdicts.keys() == readers.masks.keys() == set(judged)
    assert main(["feedback", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) == 0
