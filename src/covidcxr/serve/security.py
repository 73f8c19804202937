"""Which requests are let in, and what a browser is told to forbid itself."""

from __future__ import annotations

import asyncio
import hmac
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any
from urllib.parse import urlsplit

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covidcxr import aliases
from covidcxr.errors import RequestError
from covidcxr.serve.settings import Limits, ServeSettings

__getattr__ = partial(aliases.find, __name__)

__all__ = ["PAGE_POLICY", "SecurityMiddleware", "error_response", "BodyLimits", "Parts", "read_parts"]

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
"""What the page may load: its own files, and nothing that anybody wrote into it."""

_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


_READING = frozenset({"GET", "HEAD"})


class SecurityMiddleware:
    """Refuses requests for unknown hosts, from other sites and without the token; adds headers to every response.

    Args:
        app: The application.
        settings: Of the server.

    Example:
        ```python
        from fastapi import FastAPI

        from covidcxr.serve import ServeSettings
        from covidcxr.serve.security import SecurityMiddleware

        app = SecurityMiddleware(FastAPI(), ServeSettings())
        ```
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._hosts = settings.known_hosts
        self._token = settings.token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at a request, and pass it on or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if _is_private(scope["path"]):
                    headers.setdefault("Cache-Control", "no-store")  # images stay in no cache
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except RequestError as error:
            await error_response(error)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if _host_name(host) not in self._hosts:
            raise RequestError(421, "This server is not known by that host name. Start it with --allow-host NAME.")
        if _is_private(path) and not _same_origin(method, host, headers):
            raise RequestError(403, "This call comes from another site. Open the page of this server itself.")
        if self._token is not None and _is_private(path):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
                raise RequestError(401, "The token is missing or wrong. Open the address that the server printed.")


def error_response(error: RequestError) -> JSONResponse:
    """Return an error as a response.

    Args:
        error: The error.

    Returns:
        JSON with one key, `error`.
    """
    return JSONResponse({"error": str(error)}, error.status, error.headers)


def _is_private(path: str) -> bool:
    """Whether it tells of images; the page itself, its files and the list of routes do not."""
    return path.startswith("/api") or path == "/metrics"


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # an IPv6 address without its end
        return ""


def _same_origin(method: str, host: str, headers: Headers) -> bool:
    """Whether a request does not come from another site; clients that are no browsers send neither header."""
    fetched_from = headers.get("sec-fetch-site")
    allowed: Iterable[str] = ("same-origin", "none")
    if fetched_from is not None and fetched_from not in allowed:
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    if method in _READING and fetched_from is not None:
        return True
    # Without the scheme: a proxy in front of this server may speak HTTPS.
    return origin != "null" and urlsplit(origin).netloc.lower() == host.lower()


_FORM_BYTES = 100_000
"""What a form adds to its files, and the most that JSON may have."""

_DRAIN_BYTES = 4_000_000


_DRAIN_SECONDS = 1.0


class BodyLimits:
    """Counts and times bodies while they are read; a client that goes on sending after the response is cut off.

    Args:
        app: The application.
        limits: How much is taken.

    Example:
        ```python
        from fastapi import FastAPI

        from covidcxr.serve import Limits
        from covidcxr.serve.security import BodyLimits

        app = BodyLimits(FastAPI(), Limits())
        ```
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its body under watch."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._most(scope["method"], scope["path"]), Headers(scope=scope), self._limits)

        async def send_and_close(message: Message) -> None:
            if not body.ended and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            if body.ended or message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            await send({**message, "more_body": True})
            await body.drain()  # a client that is cut off in the middle of its body never reads the response
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, body.receive, send_and_close)

    def _most(self, method: str, path: str) -> int:
        if method == "POST" and path == "/api/predict":
            return self._limits.batch_bytes
        if (method == "POST" and path == "/api/films") or (method == "PUT" and "/masks/" in path):
            return self._limits.file_bytes + _FORM_BYTES
        return _FORM_BYTES


class _Body:
    def __init__(self, receive: Receive, most: int, headers: Headers, limits: Limits) -> None:
        self._receive, self._most, self._limits = receive, most, limits
        stated = headers.get("content-length", "")
        self._stated = int(stated) if stated.isdecimal() else 0
        self._got = 0
        self._started = time.monotonic()
        self.ended = not self._stated and "transfer-encoding" not in headers

    async def receive(self) -> Message:
        """Wait for the next piece.

        Raises:
            RequestError: If there is too much of it, or it comes too slowly.
        """
        if self.ended:
            return await self._receive()  # no piece any more: that the client went away
        if self._stated > self._most:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                message = await self._receive()
        except TimeoutError as error:
            raise self._too_slow() from error
        self._got += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self._got > self._most:
            raise self._too_large()
        late = time.monotonic() - self._started - self._limits.idle_seconds
        if not self.ended and late > 0 and self._got < late * self._limits.slow_bytes:
            raise self._too_slow()
        return message

    async def drain(self) -> None:
        """Take what is already on its way, for a moment."""
        got = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while got < _DRAIN_BYTES:
                    message = await self._receive()
                    got += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _too_large(self) -> RequestError:
        return RequestError(413, f"The request is larger than {self._most / 1e6:.1f} MB. Send less at once.")

    def _too_slow(self) -> RequestError:
        return RequestError(408, "The request comes too slowly. Send it again over a better connection.")


_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    start: int
    length: int


@dataclass
class Parts:
    """Uploaded files in one anonymous file on the disk, which goes when this is closed.

    Attributes:
        found: Their names as the client gave them, for reading only, and where they lie.

    Example:
        ```python
        from covidcxr.serve.security import Parts

        parts = Parts()
        assert len(parts) == 0
        parts.close()
        ```
    """

    parts: list[_Part] = field(default_factory=list)
    _file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter((part.name, place) for place, part in enumerate(self.parts))

    def read(self, place: int) -> bytes:
        """Return the content of one of them.

        Args:
            place: Its number, from 0 up.

        Returns:
            The content.
        """
        part = self.parts[place]
        self._file.seek(part.start)
        return self._file.read(part.length)

    def write(self, data: bytes) -> None:
        """Append to the last one.

        Args:
            data: The next piece.
        """
        self._file.seek(0, 2)
        self._file.write(data)

    def close(self) -> None:
        """Let the disk go."""
        self._file.close()


class _Reader:
    """Callbacks of the parser, which knows no state but its own."""

    def __init__(self, parts: Parts, wanted: str, most: int, file_bytes: int) -> None:
        self.parts, self.wanted, self.most, self.file_bytes = parts, wanted, most, file_bytes
        self.ended = False
        self._at = 0
        self._header = b""
        self._value = b""
        self._name: str | None = None
        self._length = 0

    def callbacks(self) -> dict[str, Any]:
        """Return what the parser calls, by its names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._header = self._value = b""
        self._name, self._length = None, 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            if options.get(b"name") == self.wanted.encode() and b"filename" in options:
                name = options[b"filename"].decode("utf-8", "replace")
                # A name is shown, never used: no path, no control characters, no end of it.
                shown = "".join(letter for letter in name.replace("\\", "/").split("/")[-1] if letter.isprintable())
                self._name = shown[:_LONGEST_NAME] or "unnamed"
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        if self._name is None:
            raise RequestError(422, f"The form holds a part that is no file called {self.wanted!r}. Send files only.")
        if len(self.parts) >= self.most:
            raise RequestError(413, f"These are more than {self.most} images at once. Send them in several requests.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._length += end - start
        if self._length > self.file_bytes:
            raise RequestError(
                413, f"{self._name} is larger than {self.file_bytes / 1e6:.0f} MB. Shrink or compress it."
            )
        self.parts.write(data[start:end])

    def _end(self) -> None:
        assert self._name is not None
        self.parts.parts.append(_Part(self._name, self._at, self._length))
        self._at += self._length

    def _finish(self) -> None:
        self.ended = True


async def read_parts(
    content_type: str, body: AsyncIterator[bytes], *, wanted: str, most: int, file_bytes: int
) -> Parts:
    """Read all files of a form.

    Args:
        content_type: Of the request.
        body: Its body, piece by piece.
        wanted: Name of the form's field; parts of another name are refused.
        most: Number of files, at most.
        file_bytes: Size of each, at most.

    Returns:
        The files.

    Raises:
        RequestError: If it is no such form, cut short, too large or holds too much.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise RequestError(415, f"Send images as multipart/form-data, in the field {wanted!r}.")
    parts = Parts()
    reader = _Reader(parts, wanted, most, file_bytes)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())  # type: ignore[arg-type]
        async for piece in body:
            if piece:
                parser.write(piece)
        parser.finalize()
        if not reader.ended or not parts:
            raise RequestError(422, f"The form is cut short or holds no file. Send an image in the field {wanted!r}.")
    except (FormParserError, UnicodeDecodeError) as error:
        parts.close()
        raise RequestError(422, f"The form is damaged: {error}. Send it again.") from error
    except BaseException:
        parts.close()
        raise
    return parts
