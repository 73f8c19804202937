"""A server and a browser for the tests of the page; they are skipped, with the reason, where there is no browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import pytest
from reading_page import CHROMIUM, DRIVER, ReadingPage, open_browser

from covidcxr.io.image import write_image
from covidcxr.phantom import draw_phantom

SERVER_STARTS = 120.0  # seconds; it takes 5, but this machine may be busy


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server is there; one that wants its token is."""
    try:
        build_opener(ProxyHandler({})).open(f"{url}/api/health", timeout=5)
    except HTTPError as error:
        return error.code == 401
    except (URLError, OSError):
        return False
    return True


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Start `covidcxr serve`, or the same with limits of one's own; returns its address."""
    with ExitStack() as stack:

        def start(*, token: str | None = None, **limits: float) -> str:
            folder, port = tmp_path_factory.mktemp("server"), free_port()
            command = [
                "-m",
                "covidcxr",
                "serve",
                "--model",
                "mini",
                "--port",
                str(port),
                "--store",
                str(folder / "store"),
            ]
            if limits:
                settings = f"ServeSettings(port={port}, store={str(folder / 'store')!r}, limits=Limits(**{limits}))"
                command = ["-c", f"from covidcxr.serve import Limits, ServeSettings, serve; serve({settings})"]
            environment = {**os.environ, **({"COVIDCXR_TOKEN": token} if token else {})}
            log = stack.enter_context((folder / "log").open("w"))
            process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            stack.callback(process.wait, timeout=30)
            stack.callback(process.terminate)
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + SERVER_STARTS
            while not answers(url):
                said = (folder / "log").read_text()
                assert process.poll() is None, f"the server ended: {said}"
                assert time.monotonic() < end, f"the server is not there after {SERVER_STARTS:.0f} seconds: {said}"
                time.sleep(0.1)
            return url

        yield start


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the browser saves files."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def driver(downloads: Path) -> Iterator[object]:
    """The browser, one for all tests."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    with open_browser(downloads) as driver:
        yield driver


@pytest.fixture(scope="session")
def server(start_server: Callable[..., str]) -> str:
    """The address of a server without a token."""
    return start_server()


@pytest.fixture
def page(driver: object, server: str) -> ReadingPage:
    """The page, with an empty worklist, as for a reader who is here for the first time."""
    page = ReadingPage(driver, server)  # type: ignore[arg-type]
    page.open()
    page.opened()
    page.script("sessionStorage.clear(); localStorage.clear()")
    page.script(
        "return Promise.all(arguments[0].map((id) => fetch(`/api/films/${id}`, { method: 'DELETE' })))",
        [f["id"] for f in page.films()],
    )
    page.open()
    page.opened()
    page.complaints()
    return page


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three images, one a label; the name of the third wants to be a part of the page."""
    folder = tmp_path_factory.mktemp("films")
    named = {"covid19": "first.png", "pneumonia": "second.png", "normal": "<img src=x onerror=document.title=1>.png"}
    for seed, (label, name) in zip((13, 14, 3), named.items(), strict=True):
        write_image(folder / name, draw_phantom(seed, label=label, size=(384, 352), severity=1.0).image)  # type: ignore[arg-type]
    return [folder / name for name in named.values()]


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says it is an image."""
    path = tmp_path_factory.mktemp("broken") / "broken.png"
    path.write_bytes(b"no image at all")
    return path
