"""What hostile clients, pages and files try, and what comes of it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import TOKEN, answer_of, dicom_of, film_png, pixels_of, png_of, raw, running, small_pipeline, upload

from covidcxr import Pipeline
from covidcxr.errors import ImageReadError
from covidcxr.serve import Limits
from covidcxr.serve.engine import Decoder

NO_FILM = "x" * 22
PRIVATE = [
    ("GET", "/api/health"),
    ("GET", "/metrics"),
    ("GET", "/api/films"),
    ("POST", "/api/films"),
    ("POST", "/api/predict"),
    ("GET", f"/api/films/{NO_FILM}"),
    ("DELETE", f"/api/films/{NO_FILM}"),
    ("GET", f"/api/films/{NO_FILM}/image.png"),
    ("GET", f"/api/films/{NO_FILM}/masks/lung.png"),
    ("PUT", f"/api/films/{NO_FILM}/masks/lung"),
    ("DELETE", f"/api/films/{NO_FILM}/masks/lung"),
    ("GET", f"/api/films/{NO_FILM}/heat/normal.png"),
    ("PUT", f"/api/films/{NO_FILM}/prior"),
    ("PUT", f"/api/films/{NO_FILM}/verdict"),
    ("GET", f"/api/films/{NO_FILM}/report.html"),
    ("GET", f"/api/films/{NO_FILM}/report.pdf"),
    ("GET", f"/api/films/{NO_FILM}/report.json"),
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outer") / "store"


@pytest.fixture(scope="module")
def client(pipeline: Pipeline, store: Path) -> Iterator[httpx.Client]:
    with running(store, pipeline) as client:
        yield client


def still_answers(client: httpx.Client) -> bool:
    return bool(upload(client, film_png(0))["probabilities"])


# Paths and names

EVIL_NAMES = [
    "../../../../tmp/evil.png",
    "..\\..\\evil.png",
    "/etc/passwd",
    "film.png\0.exe",
    "C:\\films\\a.png",
    "~/.ssh/id_rsa",
    "a" * 4000 + ".png",
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "\u202egnp.exe",
    "....png",
    " ",
]


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_clients_name_is_text_and_never_a_path(name: str, client: httpx.Client, store: Path) -> None:
    before = sorted(path.name for path in store.parent.rglob("*"))
    content = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    content += film_png(1) + b"\r\n--b--\r\n"
    response = client.post("/api/films", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert response.status_code == 201
    film = response.json()
    assert not set("/\\\0\n\u202e") & set(film["name"])
    assert len(film["name"]) <= 200
    page = client.get(f"/api/films/{film['id']}/report.html").text
    assert "<script" not in page
    assert "<img src=x" not in page
    assert sorted(path.name for path in store.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/....//app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/index.html%00.js",
        "/static/",
        "/api/films/../../etc/passwd",
        "/api/films/..%2f..%2fstore.sqlite/image.png",
        f"/api/films/{NO_FILM}/..%2f..%2fstore.sqlite.png",
        f"/api/films/{NO_FILM}/masks/..%2f..%2fimage.png",
        "/store.sqlite",
    ],
)
def test_no_path_leads_out(path: str, client: httpx.Client) -> None:
    with raw(client) as connection:
        host = f"{client.base_url.host}:{client.base_url.port}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = answer_of(connection).partition(b"\r\n\r\n")
    assert b" 404 " in head.splitlines()[0]
    assert list(json.loads(body)) == ["error"]


def test_html_in_a_comment_is_text_everywhere(client: httpx.Client) -> None:
    film = upload(client, film_png(1))
    place = f"/api/films/{film['id']}"
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(1)> & <b>"
    said = client.put(f"{place}/verdict", json={"label": "normal", "comment": evil, "consent": False}).json()
    assert said["verdict"]["comment"] == evil
    page = client.get(f"{place}/report.html")
    assert "<script" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "script-src" not in page.headers["content-security-policy"]  # default-src 'none' forbids all of them
    assert client.get(f"{place}/report.pdf").content.startswith(b"%PDF")
    assert client.get(place).headers["content-type"] == "application/json"


# Other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "none"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [case for case in PRIVATE if case[0] != "GET"])
def test_other_sites_change_nothing(method: str, path: str, headers: dict[str, str], client: httpx.Client) -> None:
    response = client.request(method, path, headers=headers)
    assert response.status_code == 403
    assert "another site" in response.json()["error"]


def test_other_sites_read_nothing(client: httpx.Client) -> None:
    film = upload(client, film_png(1))
    path = f"/api/films/{film['id']}/image.png"
    assert client.get(path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get(path, headers={"Origin": "https://evil.example"}).status_code == 403
    response = client.get(path)
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert client.options(path, headers={"Origin": "https://evil.example"}).status_code in (403, 405)


def test_the_page_itself_may_ask(client: httpx.Client) -> None:
    origin = str(client.base_url).rstrip("/")
    headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/films", files={"file": film_png(1)}, headers=headers).status_code == 201


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "[::1"])
def test_names_that_somebody_pointed_at_us(host: str, client: httpx.Client) -> None:
    response = client.get("/api/films", headers={"Host": host})
    assert response.status_code == 421


# Tokens


def test_without_the_right_token_nothing_is_told(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline, token=TOKEN) as client:
        upload(client, film_png(1))
        bare = httpx.Client(base_url=client.base_url)
        wrong: list[dict[str, Any]] = [
            {},
            {"Authorization": "Bearer " + TOKEN[:-1]},
            {"Authorization": "Bearer " + TOKEN + "x"},
            {"Authorization": "Basic " + TOKEN},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer"},
            {"Authorization": b"Bearer \xff\xfe"},
            {"Cookie": f"token={TOKEN}"},
        ]
        for method, path in PRIVATE:
            for headers in wrong:
                response = bare.request(method, path, headers=headers)
                assert response.status_code == 401, (method, path, headers)
                assert response.headers["www-authenticate"] == "Bearer"
            assert bare.request(method, f"{path}?token={TOKEN}").status_code == 401
            assert client.request(method, path).status_code != 401
        for path in ("/", "/docs", "/openapi.json", "/static/app.js"):
            assert bare.get(path).status_code == 200
        assert TOKEN not in bare.get("/").text
        bare.close()


def test_every_route_that_tells_of_films_is_in_the_list(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    told = {(method.upper(), path) for path, calls in paths.items() for method in calls}
    assert len(told) == len(PRIVATE)


# Bombs


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("film.png", bytes(50_000_000))
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, *, text: bytes = b"") -> bytes:
    """A PNG with a true header, and data that unpack to nothing or to very much."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    more = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text, 9)) if text else b""
    data = zlib.compress(bytes(min((width + 1) * height, 100_000_000)), 9)
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff_of_many() -> bytes:
    buffer = io.BytesIO()
    pages = [Image.new("L", (50, 50))] * 500
    pages[0].save(buffer, format="TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def deflated_dicom() -> bytes:
    content = dicom_of(np.zeros((8, 8)))
    syntax = b"1.2.840.10008.1.2.1\0"
    assert syntax in content
    return content.replace(syntax, b"1.2.840.10008.1.2.1.99\0\0"[: len(syntax)], 1)


BOMBS: dict[str, Any] = {
    "zip": zip_bomb,
    "gzip": lambda: b"\x1f\x8b" + zlib.compress(bytes(10_000_000)),
    "claims 4 gigapixels": lambda: png_claiming(65_000, 65_000),
    "claims the most that PNG can": lambda: png_claiming(2**31 - 1, 2**31 - 1),
    "50 true megapixels": lambda: png_claiming(10_000, 5_000),
    "one row, very long": lambda: png_claiming(2_000_000_000, 1),
    "no width": lambda: png_claiming(0, 100),
    "a TIFF of 500 pages": tiff_of_many,
    "a DICOM of 4 gigapixels": lambda: dicom_of(np.zeros((8, 8)), Rows=65_000, Columns=65_000),
    "a DICOM of a million frames": lambda: dicom_of(np.zeros((8, 8)), NumberOfFrames="1000000"),
    "a DICOM that is deflated": deflated_dicom,
    "an SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "XML with entities": lambda: b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>',
    "a pickle": lambda: b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "PostScript": lambda: b"%!PS\n(/etc/passwd) (r) file",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_and_the_server_lives(kind: str, client: httpx.Client) -> None:
    started = time.monotonic()
    response = client.post("/api/films", files={"file": ("film.png", BOMBS[kind]())})
    assert response.status_code == 422, response.text
    assert list(response.json()) == ["error"]
    assert time.monotonic() - started < 30
    assert still_answers(client)


def test_a_bomb_of_text_beside_a_film(client: httpx.Client) -> None:
    content = png_claiming(100, 100, text=bytes(200_000_000))
    assert len(content) < 300_000
    response = client.post("/api/films", files={"file": content})
    assert response.status_code == 422
    assert "too large" in response.json()["error"]
    assert still_answers(client)


def test_a_film_that_takes_too_much_memory_takes_its_worker_only(pipeline: Pipeline, tmp_path: Path) -> None:
    limits = Limits(decode_bytes=400_000_000, pixels=200_000_000)
    with running(tmp_path, pipeline, limits=limits) as client:
        response = client.post("/api/films", files={"file": png_claiming(12_000, 8_000)})
        assert response.status_code == 422
        assert "memory" in response.json()["error"]
        assert still_answers(client)


def test_a_film_that_takes_too_long_or_ends_its_worker() -> None:
    async def scenario() -> None:
        content = png_of(np.zeros((4000, 4000)))
        quick = Decoder(1, Limits(decode_seconds=0.05))
        with pytest.raises(ImageReadError, match="took more than"):
            await quick.image(content)
        await quick.stop()
        decoder = Decoder(1, Limits())
        await decoder.start()
        (process,) = decoder._running
        asking = asyncio.create_task(decoder.image(content))
        await asyncio.sleep(0.05)
        process.kill()
        with pytest.raises(ImageReadError, match="ended the process"):
            await asking
        assert (await decoder.image(film_png(0))).pixels.shape == (320, 300)
        cancelled = asyncio.create_task(decoder.image(content))
        await asyncio.sleep(0.05)
        cancelled.cancel()  # a client that went away in the middle: its answer must not become the next one's
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert (await decoder.image(film_png(0))).pixels.shape == (320, 300)
        await decoder.stop()

    asyncio.run(scenario())


def test_a_worker_writes_no_file_and_knows_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setenv("COVIDCXR_TOKEN", TOKEN)
        decoder = Decoder(1, Limits())
        await decoder.image(film_png(0))
        (process,) = decoder._running
        assert TOKEN.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes()
        limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
        (size,) = [line.split() for line in limits if line.startswith("Max file size")]
        assert size[3] == "0"
        await decoder.stop()

    if not os.path.isdir("/proc/self"):  # noqa: PTH112 - it is what it is
        pytest.skip("needs Linux' /proc")
    asyncio.run(scenario())


# Files that are two things

HTML = b"<html><script>alert(document.domain)</script></html>"


def jpeg_with_comment() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(film_png(1))).save(buffer, format="JPEG", comment=HTML)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        film_png(1) + HTML,
        film_png(1) + zip_bomb()[:10_000],
        jpeg_with_comment(),
        HTML[:128].ljust(128, b" ") + dicom_of(pixels_of(film_png(1)))[128:],
        b"MZ".ljust(128, b"\0") + dicom_of(pixels_of(film_png(1)))[128:],
    ],
    ids=["PNG and HTML", "PNG and ZIP", "JPEG and HTML", "DICOM and HTML", "DICOM and EXE"],
)
def test_of_a_file_that_is_two_things_only_the_pixels_stay(content: bytes, client: httpx.Client) -> None:
    film = upload(client, content)
    place = f"/api/films/{film['id']}"
    for path in ("image.png", "thumbnail.png", "masks/lung.png"):
        response = client.get(f"{place}/{path}")
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert b"<script" not in response.content
        assert b"PK\x03\x04" not in response.content
        kinds = []
        data = response.content[8:]
        while data:
            length = int.from_bytes(data[:4], "big")
            kinds.append(data[4:8])
            data = data[12 + length :]
        assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}, "no metadata, and nothing behind the end"


# Bodies


def head_of(client: httpx.Client, path: str, *lines: str) -> bytes:
    host = f"{client.base_url.host}:{client.base_url.port}"
    return "\r\n".join((f"POST {path} HTTP/1.1", f"Host: {host}", *lines, "", "")).encode()


FORM = "Content-Type: multipart/form-data; boundary=b"


@pytest.mark.parametrize("path", ["/api/films", "/api/predict"])
def test_a_body_of_two_gigabytes_is_refused_by_its_head(path: str, client: httpx.Client) -> None:
    with raw(client) as connection:
        started = time.monotonic()
        connection.sendall(head_of(client, path, FORM, "Content-Length: 2000000000") + b"--b\r\n")
        answer = answer_of(connection)
    assert b" 413 " in answer.splitlines()[0]
    assert b"larger than" in answer
    assert time.monotonic() - started < 10
    assert still_answers(client)


def test_a_body_without_end_is_cut_off(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline, limits=Limits(file_bytes=1_000_000)) as client, raw(client) as connection:
        connection.sendall(head_of(client, "/api/films", FORM, "Transfer-Encoding: chunked"))
        start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        piece, sent = b"x" * 100_000, 0
        connection.sendall(b"%x\r\n%s\r\n" % (len(start), start))
        try:
            while sent < 200_000_000:
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
        except (ConnectionError, TimeoutError):
            pass
        assert sent < 100_000_000
        assert still_answers(client)


def test_too_large_a_body_gets_an_answer_that_can_be_read(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline, limits=Limits(file_bytes=1_000_000)) as client:
        response = client.post("/api/films", files={"file": bytes(3_000_000)})
        assert response.status_code == 413
        response = client.put(f"/api/films/{NO_FILM}/verdict", json={"label": None, "comment": "x" * 200_000})
        assert response.status_code == 413
        files = [("files", bytes(10)) for _ in range(Limits().batch_films + 1)]
        assert client.post("/api/predict", files=files).status_code == 413
        assert client.post("/api/predict", files=[("files", bytes(1_000_001))]).status_code == 413


@pytest.mark.parametrize("trickle", [False, True], ids=["stops", "trickles"])
def test_slow_bodies_are_cut_off(trickle: bool, pipeline: Pipeline, tmp_path: Path) -> None:
    limits = Limits(idle_seconds=0.5)
    with running(tmp_path, pipeline, limits=limits) as client, raw(client) as connection:
        started = time.monotonic()
        connection.sendall(head_of(client, "/api/films", FORM, "Content-Length: 1000000"))
        connection.sendall(b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n')
        connection.settimeout(0.1)
        answer = b""
        while b"\r\n\r\n" not in answer and time.monotonic() - started < 15:
            try:
                if trickle:
                    connection.sendall(b"x")
                answer += connection.recv(65536)
            except TimeoutError:
                continue
        assert b" 408 " in answer.splitlines()[0]
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_slow_heads_are_cut_off(start: bytes, pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline, limits=Limits(head_seconds=0.5)) as client, raw(client) as connection:
        started = time.monotonic()
        connection.sendall(start)
        try:
            while time.monotonic() - started < 15:
                connection.settimeout(0.1)
                try:
                    if connection.recv(100) == b"":
                        break
                except TimeoutError:
                    if start:
                        connection.sendall(b"x")
        except ConnectionError:
            pass
        assert time.monotonic() - started < 5


def test_who_takes_no_answer_is_cut_off(pipeline: Pipeline, tmp_path: Path) -> None:
    with running(tmp_path, pipeline, limits=Limits(idle_seconds=0.5)) as client:
        noise = np.random.default_rng(0).integers(0, 255, (3000, 3000))
        film = upload(client, png_of(noise))
        with raw(client) as connection:
            host = f"{client.base_url.host}:{client.base_url.port}"
            request = f"GET /api/films/{film['id']}/image.png HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            connection.sendall(request)
            time.sleep(2)
            got = answer_of(connection)
        assert len(got) < 9_000_000


# Forms


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"", 415),
        ("multipart/form-data; boundary=b", b"", 422),
        ("multipart/form-data; boundary=b", b"--b\r\n", 422),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 422),
        ("multipart/form-data; boundary=b", b"no boundary at all", 422),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--',
            422,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nx\r\n--b--',
            422,
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X-A: b\r\n" * 1000 + b"\r\nx\r\n--b--", 422),
        ("multipart/form-data; boundary=b", b"--b\r\nX-A: " + b"b" * 90_000 + b"\r\n\r\nx\r\n--b--", 422),
        ("multipart/form-data; boundary=" + "b" * 2000, b"--b\r\n", 422),
    ],
)
def test_forms_that_are_none(kind: str, body: bytes, status: int, client: httpx.Client) -> None:
    response = client.post("/api/films", content=body, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]


def test_two_films_where_one_is_wanted(client: httpx.Client) -> None:
    response = client.post("/api/films", files=[("file", film_png(0)), ("file", film_png(1))])
    assert response.status_code == 413


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 50_000, b'{"label": NaN}', b"\xff\xfe", b'{"label": ' + b"9" * 5000 + b"}"]
)
def test_json_that_is_none(body: bytes, client: httpx.Client) -> None:
    film = upload(client, film_png(0))
    response = client.put(
        f"/api/films/{film['id']}/verdict", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code in (400, 422)
    assert list(response.json()) == ["error"]


# Headers


@pytest.mark.parametrize(
    "path", ["/", "/static/app.js", "/docs", "/openapi.json", "/api/films", "/nowhere", "/metrics"]
)
def test_headers_are_strict_everywhere(path: str, client: httpx.Client) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers
    if path.startswith("/api"):
        assert headers["cache-control"] == "no-store"


def test_errors_tell_nothing_of_the_machine(client: httpx.Client, store: Path) -> None:
    texts = [
        client.get("/api/nowhere").text,
        client.post("/api/films", files={"file": b"\x89PNG\r\n\x1a\n???"}).text,
        client.get("/api/films/short").text,
        client.put(f"/api/films/{NO_FILM}/verdict", content=b"{").text,
    ]
    for text in texts:
        assert str(store) not in text
        assert "Traceback" not in text
        assert "site-packages" not in text
