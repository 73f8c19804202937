"""The report of one film: a page to print, PDF, and JSON."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse

from covidcxr import __version__
from covidcxr.errors import ConfigError
from covidcxr.page import Page
from covidcxr.serve.pdf import to_pdf
from covidcxr.serve.post_test import FORMULA, uniform
from covidcxr.serve.report import film_report
from covidcxr.serve.routes import FilmId
from covidcxr.serve.schema import film_of
from covidcxr.serve.service import Desk
from covidcxr.serve.static_routes import html_page

__all__ = ["report_routes"]


def report_routes(desk: Desk) -> APIRouter:
    """Return the routes of reports."""
    routes = APIRouter(prefix="/api")

    async def put_together(film_id: str) -> Page:
        row = await desk.film(film_id)
        film = film_of(row)
        pixels, masks = await desk.pictures(row)
        chances = film["probabilities"]
        target = film["label"] or (max(chances, key=lambda name: chances[name]) if chances else None)
        heat = None
        if target is not None:
            with suppress(ConfigError):  # of a network without places there is no heat map
                heat = (target, await desk.heat_map(row, target) / np.float32(255))
        return await asyncio.to_thread(film_report, film, pixels, masks, heat)

    @routes.get("/films/{film_id}/report.html", response_class=HTMLResponse)
    async def get_page(film_id: FilmId) -> Response:
        """Return a page to print; all that it shows lies inside it."""
        return html_page(await put_together(film_id))

    @routes.get(
        "/films/{film_id}/report.pdf", response_class=Response, responses={200: {"content": {"application/pdf": {}}}}
    )
    async def get_pdf(film_id: FilmId) -> Response:
        """Return the same as PDF."""
        content = await asyncio.to_thread(to_pdf, await put_together(film_id))
        return Response(content, media_type="application/pdf", headers=_named(film_id, "pdf", "inline"))

    @routes.get("/films/{film_id}/report.json")
    async def get_json(film_id: FilmId) -> JSONResponse:
        """Return all that is known of the film."""
        film = film_of(await desk.film(film_id))
        more: dict[str, Any] = {"covidcxr": __version__, "notice": "For research only, not for clinical use."}
        if film["posterior"]:
            more |= {"formula": FORMULA, "training_prior": uniform(film["probabilities"])}
        return JSONResponse({**film, **more}, headers=_named(film_id, "json", "attachment"))

    return routes


def _named(film_id: str, kind: str, how: str) -> dict[str, str]:
    """Name a download by what this server made up, not by what the client called its file."""
    return {"Content-Disposition": f'{how}; filename="film-{film_id}.{kind}"'}
