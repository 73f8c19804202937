"""How much a body may hold and how long it may take, whatever its head says."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covidcxr.serve.errors import RefusalError
from covidcxr.serve.settings import Limits

__all__ = ["BodyLimits"]

_FORM_BYTES = 100_000
"""What a form adds to its files, and the most that JSON may have."""

_FAREWELL_BYTES = 4_000_000
_FAREWELL_SECONDS = 1.0


class BodyLimits:
    """Counts and times bodies while they are read; who goes on sending after an answer is cut off.

    Args:
        app: What reads them.
        limits: How much is taken.
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
            await body.drain()  # a client that is cut off in the middle of its body never reads the answer
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
            RefusalError: If there is too much of it, or it comes too slowly.
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
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while got < _FAREWELL_BYTES:
                    message = await self._receive()
                    got += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _too_large(self) -> RefusalError:
        return RefusalError(413, f"The request is larger than {self._most / 1e6:.1f} MB. Send less at once.")

    def _too_slow(self) -> RefusalError:
        return RefusalError(408, "The request comes too slowly. Send it again over a better connection.")
