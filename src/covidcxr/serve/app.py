"""The application: its parts put together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from covidcxr import __version__
from covidcxr.errors import CovidCXRError
from covidcxr.serve.decoder import Decoder
from covidcxr.serve.engine import Engine
from covidcxr.serve.errors import RefusalError
from covidcxr.serve.limits import BodyLimits
from covidcxr.serve.metrics import Metered, Metrics
from covidcxr.serve.report_routes import report_routes
from covidcxr.serve.routes import film_routes
from covidcxr.serve.security import Doorkeeper, refusal_response
from covidcxr.serve.service import Desk
from covidcxr.serve.settings import ServeSettings
from covidcxr.serve.static_routes import page_routes
from covidcxr.serve.store import Store

if TYPE_CHECKING:
    from covidcxr.pipeline.pipeline import Pipeline

__all__ = ["create_app"]

_log = logging.getLogger(__name__)


def create_app(settings: ServeSettings | None = None, pipeline: Pipeline | None = None) -> FastAPI:
    """Build the application (ASGI); its model is loaded when it starts.

    Args:
        settings: By default those of a server for this machine alone.
        pipeline: Answers in place of the one that `settings.model` names.

    Raises:
        ConfigError: If the store cannot be opened.
        OSError: If its folder cannot be made.
    """
    settings = settings or ServeSettings()
    limits, metrics = settings.limits, Metrics()
    engine = Engine(
        _loader(settings, pipeline),
        waiting_films=limits.waiting_films,
        waiting_pixels=limits.waiting_pixels,
        watch=metrics.watch_batch,
    )
    store = Store(settings.store, most_films=limits.films, most_bytes=limits.store_bytes)
    decoder = Decoder(settings.workers, limits, keep_identifiers=settings.keep_identifiers)
    metrics.watch(engine, store)

    app = FastAPI(
        title="covidcxr",
        version=__version__,
        description="Films in, answers out. For research only, not for clinical use.",
        docs_url=None,  # its pages load scripts from elsewhere; ours is in `pages`
        redoc_url=None,
        lifespan=_lifespan(engine, decoder, store),
    )
    app.state.desk = Desk(engine, decoder, store, limits)
    app.include_router(film_routes(app.state.desk, metrics))
    app.include_router(report_routes(app.state.desk))
    app.include_router(page_routes(app, app.state.desk, metrics))
    _add_error_handlers(app)
    app.add_middleware(Doorkeeper, settings=settings)  # the last one added sees a request first
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

        return settings.model, load_pipeline(settings.model if pipeline is None else pipeline, settings.device)

    return load


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is JSON with one sentence."""

    @app.exception_handler(CovidCXRError)
    async def refuse(request: Request, error: CovidCXRError) -> JSONResponse:
        return refusal_response(error if isinstance(error, RefusalError) else RefusalError(422, str(error)))

    @app.exception_handler(HTTPException)
    async def say(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, RefusalError):  # FastAPI reads JSON bodies itself, and wraps what that raises
            return refusal_response(error.__cause__)
        return JSONResponse({"error": f"{error.detail}."}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [_fault(found) for found in error.errors()[:3]]
        status = 404 if any("film_id" in found["loc"] for found in error.errors()) else 422
        return JSONResponse({"error": "There is no such film." if status == 404 else "; ".join(faults)}, status)

    @app.exception_handler(Exception)
    async def apologise(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "The server failed to answer; its log says why."}, 500)


def _fault(found: Any) -> str:
    where = ".".join(str(part) for part in found["loc"][1:]) or "the body"
    return f"{where}: {found['msg']}"
