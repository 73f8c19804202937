"""The REST interface: films, what is known of them, and what readers say."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from covidcxr.errors import CovidCXRError
from covidcxr.serve.errors import RefusalError
from covidcxr.serve.metrics import Metrics
from covidcxr.serve.multipart import Parts, read_parts
from covidcxr.serve.schema import Film, Films, Prior, Verdict, film_of
from covidcxr.serve.service import Desk
from covidcxr.serve.settings import Limits

__all__ = ["film_routes"]

FilmId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{22}$", description="as the server made it")]
Name = Annotated[str, Path(max_length=80)]

_AHEAD = 16
"""Films of a large batch in work at once."""

_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}


def _form(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Describe a form for the OpenAPI page; it is read by `read_parts`, which FastAPI does not know."""
    form = {"type": "object", "required": [field], "properties": {field: schema}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


_PNG_BODY = {"requestBody": {"required": True, "content": {"image/png": {"schema": _FILE}}}}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


def film_routes(desk: Desk, metrics: Metrics) -> APIRouter:
    """Return the routes below /api that have to do with films."""
    routes = APIRouter(prefix="/api")
    _add_uploads(routes, desk, metrics)
    _add_batches(routes, desk)
    _add_films(routes, desk)
    _add_pictures(routes, desk)
    _add_feedback(routes, desk, metrics)
    return routes


def _add_uploads(routes: APIRouter, desk: Desk, metrics: Metrics) -> None:
    @routes.post("/films", status_code=201, response_model=Film, openapi_extra=_form("file", _FILE))
    async def upload_film(request: Request) -> dict[str, Any]:
        """Answer for one film (PNG, JPEG, TIFF, BMP, WebP or DICOM), and keep it."""
        with desk.admit():
            parts = await _read(request, desk.limits, "file", 1)
            try:
                (name, place), *_ = parts
                row = await desk.add(name, await asyncio.to_thread(parts.read, place))
            except CovidCXRError:
                metrics.films.labels("refused").inc()
                raise
            finally:
                parts.close()
        metrics.films.labels("answered" if row["answer"]["label"] else "cannot say").inc()
        return film_of(row)


def _add_batches(routes: APIRouter, desk: Desk) -> None:
    limits = desk.limits
    batches = asyncio.Semaphore(limits.batches)

    @routes.post(
        "/predict",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {}}}},
        openapi_extra=_form("files", {"type": "array", "items": _FILE}),
    )
    async def predict_films(request: Request) -> StreamingResponse:
        """Answer for many films, one line of JSON each, in order and as they come; nothing is kept."""
        if batches.locked():
            raise RefusalError(
                503, f"{limits.batches} large batches are being answered. Ask again later.", retry_after=10
            )
        await batches.acquire()
        try:
            parts = await _read(request, limits, "files", limits.batch_films)
        except BaseException:
            batches.release()
            raise
        return _Batch(desk, parts, batches)


async def _read(request: Request, limits: Limits, wanted: str, most: int) -> Parts:
    kind = request.headers.get("content-type", "")
    return await read_parts(kind, request.stream(), wanted=wanted, most=most, file_bytes=limits.file_bytes)


class _Batch(StreamingResponse):
    """Answers for many films as lines of JSON; lets go of their files whatever happens."""

    def __init__(self, desk: Desk, parts: Parts, batches: asyncio.Semaphore) -> None:
        super().__init__(_lines(desk, parts), media_type="application/x-ndjson")
        self._parts, self._batches = parts, batches

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._parts.close()
            self._batches.release()


async def _lines(desk: Desk, parts: Parts) -> AsyncIterator[str]:
    async def answer(name: str, place: int) -> dict[str, Any]:
        try:
            return await desk.predict(name, parts.read(place))
        except CovidCXRError as error:
            return {"name": name, "error": str(error)}

    waiting: deque[asyncio.Task[dict[str, Any]]] = deque()
    try:
        for name, place in parts:
            waiting.append(asyncio.create_task(answer(name, place)))
            if len(waiting) == _AHEAD:
                yield json.dumps(await waiting.popleft()) + "\n"
        while waiting:
            yield json.dumps(await waiting.popleft()) + "\n"
    finally:
        for task in waiting:
            task.cancel()


def _add_films(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/films", response_model=Films)
    async def list_films() -> dict[str, Any]:
        """Return all kept films, newest first."""
        return {"films": [film_of(row) for row in await asyncio.to_thread(desk.store.films)]}

    @routes.get("/films/{film_id}", response_model=Film)
    async def get_film(film_id: FilmId) -> dict[str, Any]:
        """Return a film, with the answer of the model that runs now."""
        return film_of(await desk.film(film_id))

    @routes.delete("/films/{film_id}", status_code=204)
    async def remove_film(film_id: FilmId) -> None:
        """Forget a film and all that was said of it."""
        await asyncio.to_thread(desk.store.remove, film_id)


def _add_pictures(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/films/{film_id}/{picture}.png", response_class=Response, responses=_PNG)
    async def get_picture(film_id: FilmId, picture: Name) -> Response:
        """Return the film ("image") or its thumbnail ("thumbnail")."""
        if picture not in ("image", "thumbnail"):
            raise RefusalError(404, "A film has the pictures image.png and thumbnail.png.")
        return _png(await asyncio.to_thread(desk.store.picture, film_id, picture))

    @routes.get("/films/{film_id}/masks/{mask_class}.png", response_class=Response, responses=_PNG)
    async def get_mask(film_id: FilmId, mask_class: Name) -> Response:
        """Return a mask, 0 and 255 at the film's size: the corrected one, else the drawn one."""
        return _png(await asyncio.to_thread(desk.store.mask, film_id, mask_class))

    @routes.get("/films/{film_id}/heat/{target}.png", response_class=Response, responses=_PNG)
    async def get_heat(film_id: FilmId, target: Name) -> Response:
        """Return what speaks for a class (Grad-CAM), 0 to 255 at the film's size."""
        return _png(await desk.heat(film_id, target))


def _add_feedback(routes: APIRouter, desk: Desk, metrics: Metrics) -> None:
    @routes.put("/films/{film_id}/masks/{mask_class}", response_model=Film, openapi_extra=_PNG_BODY)
    async def correct_mask(film_id: FilmId, mask_class: Name, request: Request) -> dict[str, Any]:
        """Answer anew from a corrected mask: a PNG of 0 and 255, of the film's size."""
        content = bytearray()
        async for piece in request.stream():
            content += piece
        return film_of(await desk.correct(film_id, mask_class, bytes(content)))

    @routes.delete("/films/{film_id}/masks/{mask_class}", response_model=Film)
    async def uncorrect_mask(film_id: FilmId, mask_class: Name) -> dict[str, Any]:
        """Go back to the mask that the model draws."""
        return film_of(await desk.uncorrect(film_id, mask_class))

    @routes.put("/films/{film_id}/prior", response_model=Film)
    async def state_prior(film_id: FilmId, prior: Prior) -> dict[str, Any]:
        """State the pre-test probabilities; the film comes back with the post-test ones."""
        return film_of(await desk.state_prior(film_id, prior.probabilities))

    @routes.put("/films/{film_id}/verdict", response_model=Film)
    async def give_verdict(film_id: FilmId, verdict: Verdict) -> dict[str, Any]:
        """Give a verdict; the answer comes when it is on the disk."""
        row = await desk.judge(film_id, verdict.label, verdict.comment, verdict.consent)
        metrics.verdicts.inc()
        return film_of(row)


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png")
