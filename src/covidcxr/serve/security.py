"""Who may ask, from where, and what a browser is told to forbid itself."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covidcxr.serve.errors import RefusalError
from covidcxr.serve.settings import ServeSettings

__all__ = ["PAGE_POLICY", "Doorkeeper", "refusal_response"]

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


class Doorkeeper:
    """Refuses requests for unknown hosts, from other sites and without the token; adds headers to every answer.

    Args:
        app: What is behind the door.
        settings: Of the server.
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
                    headers.setdefault("Cache-Control", "no-store")  # films stay in no cache
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except RefusalError as refusal:
            await refusal_response(refusal)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if _host_name(host) not in self._hosts:
            raise RefusalError(421, "This server does not answer for that host. Start it with --allow-host NAME.")
        if _is_private(path) and not _same_origin(method, host, headers):
            raise RefusalError(403, "This call comes from another site. Open the page of this server itself.")
        if self._token is not None and _is_private(path):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self._token.encode())
            if scheme.lower() != "bearer" or not right:
                raise RefusalError(401, "The token is missing or wrong. Open the address that the server printed.")


def refusal_response(refusal: RefusalError) -> JSONResponse:
    """Return a refusal as an answer."""
    return JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)


def _is_private(path: str) -> bool:
    """Whether it tells of films; the page itself, its files and the list of routes do not."""
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
