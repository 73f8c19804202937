"""Listening: uvicorn, with time limits on heads and on answers that nobody takes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from covidcxr.serve.app import create_app
from covidcxr.serve.settings import ServeSettings

__all__ = ["serve"]


def serve(settings: ServeSettings) -> None:
    """Serve until interrupted.

    Raises:
        CovidCXRError: If the model cannot be loaded or the store cannot be opened.
        OSError: If the port is taken.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_protocol(settings.limits.head_seconds, settings.limits.idle_seconds),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=int(settings.limits.head_seconds),
        timeout_graceful_shutdown=10,
        lifespan="on",
    )
    _Server(config, settings, app.state.desk.engine).run()


class _Server(uvicorn.Server):
    """Says where it listens, and ends if the model cannot be loaded."""

    def __init__(self, config: uvicorn.Config, settings: ServeSettings, engine: Any) -> None:
        super().__init__(config)
        self._settings, self._engine = settings, engine

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            self._told = asyncio.create_task(self._tell(port))

    async def _tell(self, port: int) -> None:
        await asyncio.to_thread(self._engine.ready.wait)
        if self._engine.failure is not None:
            self.should_exit = True
            return
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        token = f"#token={self._settings.token}" if self._settings.token else ""
        sys.stdout.write(f"http://{host}:{port}/{token}\nFor research only; not for clinical use.\n")
        sys.stdout.flush()

    def run(self, sockets: Any = None) -> None:
        super().run(sockets)
        if self._engine.failure is not None:
            raise self._engine.failure


def _protocol(head_seconds: float, idle_seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol, which by itself waits forever for a head and for a client that takes no answer."""

    class Patient(H11Protocol):
        _timers: dict[str, asyncio.TimerHandle]

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._timers = {}
            self._wait("head", head_seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            answering = not getattr(before, "response_complete", True)  # before is None at first
            if "head" not in self._timers and not answering:
                self._wait("head", head_seconds, self.transport.close)
            super().data_received(data)
            if self.cycle is not before:
                self._stop("head")

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait("answer", idle_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("answer")

        def connection_lost(self, exc: Exception | None) -> None:
            for name in tuple(self._timers):
                self._stop(name)
            super().connection_lost(exc)

        def _wait(self, name: str, seconds: float, give_up: Callable[[], None]) -> None:
            self._timers[name] = self.loop.call_later(seconds, give_up)

        def _stop(self, name: str) -> None:
            if timer := self._timers.pop(name, None):
                timer.cancel()

    return Patient
