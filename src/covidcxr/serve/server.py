"""Listening: uvicorn, with time limits on heads and on answers that nobody takes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from covidcxr import __version__
from covidcxr.errors import ConfigError, CovidCXRError, RequestError
from covidcxr.serve.engine import Decoder, Engine
from covidcxr.serve.routes import Metered, Metrics, image_routes, page_routes, report_routes
from covidcxr.serve.security import BodyLimits, SecurityMiddleware, error_response
from covidcxr.serve.service import PredictionService
from covidcxr.serve.settings import Limits, ServeSettings
from covidcxr.serve.store import Store

if TYPE_CHECKING:
    from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.utils.console import show_status

__all__ = ["Server", "serve", "create_app"]

_log = logging.getLogger(__name__)


def create_app(settings: ServeSettings | None = None, pipeline: Pipeline | None = None) -> FastAPI:
    """Build the application (ASGI); its model is loaded when it starts.

    Args:
        settings: By default those of a server for this machine alone.
        pipeline: Runs in place of the one that `settings.model` names.

    Returns:
        The application; any ASGI server runs it.

    Raises:
        ConfigError: If the store cannot be opened.
        OSError: If its folder cannot be made.
    """
    settings = settings or ServeSettings()
    limits, metrics = settings.limits, Metrics()
    engine = Engine(
        _loader(settings, pipeline),
        waiting_images=limits.waiting_images,
        waiting_pixels=limits.waiting_pixels,
        watch=metrics.watch_batch,
    )
    store = Store(settings.store, most_images=limits.images, most_bytes=limits.store_bytes)
    decoder = Decoder(settings.workers, limits, keep_identifiers=settings.keep_identifiers)
    metrics.watch(engine, store)

    app = FastAPI(
        title="covidcxr",
        version=__version__,
        description="Images in, predictions out. For research only, not for clinical use.",
        docs_url=None,  # its pages load scripts from elsewhere; ours is in `pages`
        redoc_url=None,
        lifespan=_lifespan(engine, decoder, store),
    )
    app.state.service = PredictionService(engine, decoder, store, limits)
    app.include_router(image_routes(app.state.service, metrics))
    app.include_router(report_routes(app.state.service))
    app.include_router(page_routes(app, app.state.service, metrics))
    _add_error_handlers(app)
    app.add_middleware(SecurityMiddleware, settings=settings)  # the last one added sees a request first
    app.add_middleware(BodyLimits, limits=limits)
    app.add_middleware(Metered, metrics=metrics)
    return app


def _lifespan(engine: Engine, decoder: Decoder, store: Store) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        await decoder.start()
        yield
        await decoder.stop()
        engine.stop()
        store.close()

    return lifespan


def _loader(settings: ServeSettings, pipeline: Pipeline | None) -> Callable[[], tuple[str, Pipeline]]:
    def load() -> tuple[str, Pipeline]:
        from covidcxr.pipeline.folder import load_pipeline

        return settings.model, load_pipeline(pipeline or settings.model, settings.device, settings.backend)

    return load


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is JSON with one key, `error`."""

    @app.exception_handler(CovidCXRError)
    async def own_error(request: Request, error: CovidCXRError) -> JSONResponse:
        return error_response(error if isinstance(error, RequestError) else RequestError(422, str(error)))

    async def store_away(request: Request, error: Exception) -> JSONResponse:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        _log.error("The database of the store does not answer: %s", reason[:300])
        return error_response(
            RequestError(503, "The store does not answer, so nothing was saved. Try again in a moment.", retry_after=5)
        )

    for kind in (OperationalError, InterfaceError, PoolTimeoutError):
        app.add_exception_handler(kind, store_away)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, RequestError):  # FastAPI reads JSON bodies itself, and wraps what that raises
            return error_response(error.__cause__)
        return JSONResponse({"error": f"{error.detail}."}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [_fault(fault) for fault in error.errors()[:3]]
        status = 404 if any("film_id" in fault["loc"] for fault in error.errors()) else 422
        return JSONResponse({"error": "There is no such image." if status == 404 else "; ".join(faults)}, status)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "The server failed; its log says why."}, 500)


def _fault(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"][1:]) or "the body"
    return f"{where}: {fault['msg']}"


_BACKLOG = 256
"""Connections that the system holds until they are taken."""


def serve(settings: ServeSettings) -> None:
    """Serve until interrupted; the address is printed when the model is loaded.

    Args:
        settings: Where to listen, and what for.

    Raises:
        CovidCXRError: If it cannot listen, the model cannot be loaded, or the store cannot be opened.
        OSError: If the store's folder cannot be made.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # else any damaged form writes into the log
    Server(settings).run()


class Server(uvicorn.Server):
    """The application behind uvicorn; ends if the model cannot be loaded.

    Args:
        settings: Where to listen, and what for.
        pipeline: Runs in place of the one that the settings name.

    Raises:
        ConfigError: If the store cannot be opened.
        OSError: If its folder cannot be made.

    Example:
        ```python
        import threading
        import time

        from covidcxr.serve import ServeSettings
        from covidcxr.serve.server import Server

        server = Server(ServeSettings(port=0, store="store"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.1)
        assert server.address.startswith("http://127.0.0.1:")
        server.should_exit = True
        thread.join()
        ```
    """

    def __init__(self, settings: ServeSettings, pipeline: Pipeline | None = None) -> None:
        app = create_app(settings, pipeline)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=_protocol(settings.limits),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.limits.connections,
            timeout_keep_alive=int(settings.limits.head_seconds) or 1,
            timeout_graceful_shutdown=10,
            lifespan="on",
        )
        super().__init__(config)
        self._settings, self._service = settings, app.state.service

    @property
    def address(self) -> str:
        """Where it listens, with the port that it got."""
        port = self.servers[0].sockets[0].getsockname()[1]
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        return f"http://{host}:{port}/"

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen; the model may still be on its way.

        Args:
            sockets: Where to listen.
        """
        await super().startup(sockets)
        if self.started:
            self._announcement = asyncio.create_task(self._announce())

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop.

        Args:
            sockets: Where to listen; by default as the settings say.

        Raises:
            ConfigError: If it cannot listen where it should.
            CovidCXRError: If the model cannot be loaded.
        """
        super().run(sockets or [_listen(self._settings.host, self._settings.port)])
        if self._service.engine.failure is not None:
            raise self._service.engine.failure

    async def _announce(self) -> None:
        """Print the address once it answers. The part behind # reaches the page alone: browsers do not send it."""
        with show_status(f"loading {self._settings.model}"):
            await asyncio.to_thread(self._service.engine.ready.wait)
        if self._service.engine.failure is not None:
            self.should_exit = True
        if self.should_exit:
            return
        token = f"#token={self._settings.token}" if self._settings.token else ""
        sys.stdout.write(f"{self.address}{token}\nFor research only; not for clinical use.\n")
        sys.stdout.flush()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)  # gaierror has its own
        raise ConfigError(f"Cannot listen on {host}, port {port}: {reason}. Take another: --port 0.") from error


def _protocol(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's protocol, which by itself waits forever for a head and for a client that takes no answer."""

    class Timed(H11Protocol):
        _timers: dict[str, asyncio.TimerHandle]

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._timers = {}
            self._wait("head", limits.head_seconds, transport.close)

        def _unsupported_upgrade_warning(self) -> None:
            self.logger.warning("A request for a websocket was answered as plain HTTP: this server has none.")

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if "head" not in self._timers and getattr(before, "response_complete", True):
                self._wait("head", limits.head_seconds, self.transport.close)
            super().data_received(data)
            if self.cycle is not before:
                self._stop("head")

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait("answer", limits.idle_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("answer")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop("head")
            self._stop("answer")
            super().connection_lost(exc)

        def _wait(self, name: str, seconds: float, give_up: Callable[[], None]) -> None:
            self._timers[name] = self.loop.call_later(seconds, give_up)

        def _stop(self, name: str) -> None:
            if timer := self._timers.pop(name, None):
                timer.cancel()

    return Timed
