"""Which requests are let in, and what a browser is told to forbid itself."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covidcxr import aliases
from covidcxr.serve.errors import RequestError
from covidcxr.serve.settings import Limits, ServeSettings

__getattr__ = partial(aliases.find, __name__)

__all__ = ["PAGE_POLICY", "SecurityMiddleware", "error_response", "BodyLimits"]

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
            right = hmac.compare_digest(given.strip().encode(), self._token.encode())
            if scheme.lower() != "bearer" or not right:
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
