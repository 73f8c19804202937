"""The page, its files, the list of routes, health and metrics."""

from __future__ import annotations

import asyncio
import dataclasses
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse

from covidcxr import __version__
from covidcxr.page import Page, Section, Table, style_hash, to_html
from covidcxr.serve.errors import RefusalError
from covidcxr.serve.metrics import Metrics
from covidcxr.serve.post_test import FORMULA, uniform
from covidcxr.serve.service import Desk

__all__ = ["html_page", "page_routes"]

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".txt": "text/plain",
}


def page_routes(app: FastAPI, desk: Desk, metrics: Metrics) -> APIRouter:
    """Return the routes that have to do with the server itself."""
    routes = APIRouter()
    _add_static(routes)

    @routes.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> Response:
        return html_page(_list_routes(app.openapi()))

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def get_metrics() -> Response:
        """Return what is counted, for Prometheus."""
        return Response(await asyncio.to_thread(metrics.text), media_type="text/plain; version=0.0.4")

    @routes.get("/api/health")
    async def health() -> dict[str, Any]:
        """Say what answers and how much is taken; 503 until the model is loaded."""
        facts = desk.engine.facts
        from covidcxr.transforms.overlay import MASK_COLORS  # brings torch, which the engine has loaded by now

        model = dataclasses.asdict(facts) | {"mask_colors": MASK_COLORS}
        if facts.exclusive:
            model |= {"training_prior": uniform(facts.classes), "formula": FORMULA}
        taken = ("file_bytes", "pixels", "films", "batch_films")
        return {
            "status": "ok",
            "version": __version__,
            "model": model,
            "films": await asyncio.to_thread(desk.store.count),
            "limits": {name: getattr(desk.limits, name) for name in taken},
        }

    return routes


def _add_static(routes: APIRouter) -> None:
    known = {entry.name: entry for entry in (files("covidcxr.serve") / "static").iterdir() if entry.is_file()}

    def static(name: str) -> Response:
        entry = known.get(name)  # only names that were found here: nothing is put together from what was asked for
        kind = _TYPES.get(f".{name.rpartition('.')[2]}")
        if entry is None or kind is None:
            raise RefusalError(404, "There is no such file.")
        return Response(entry.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> Response:
        return static("index.html")

    @routes.get("/static/{name}", response_class=Response, include_in_schema=False)
    def file(name: str) -> Response:
        return static(name)


def html_page(page: Page) -> Response:
    """Return a page whose own style is the only thing that it may use."""
    policy = (
        f"default-src 'none'; img-src data:; style-src '{style_hash()}'; form-action 'none'; frame-ancestors 'none'; "
        f"base-uri 'none'"
    )
    return HTMLResponse(to_html(page), headers={"Content-Security-Policy": policy})


def _list_routes(openapi: dict[str, Any]) -> Page:
    rows = [
        (method.upper(), path, call.get("description", ""))
        for path, calls in openapi["paths"].items()
        for method, call in calls.items()
    ]
    table = Table(("Method", "Path", "What it does"), rows)
    return Page(
        f"covidcxr {__version__}: REST interface",
        "The same in the words of OpenAPI, for programs: /openapi.json",
        sections=[Section("Routes", "Errors are JSON with one key, error.", [table])],
    )
