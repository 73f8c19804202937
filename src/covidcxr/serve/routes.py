"""What the server answers to which request, and what it counts for Prometheus."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covidcxr import __version__, aliases
from covidcxr.errors import ConfigError, CovidCXRError, RequestError
from covidcxr.page import Page, Section, Table, style_hash, to_html
from covidcxr.serve.engine import Engine
from covidcxr.serve.report import image_report, to_pdf
from covidcxr.serve.schema import FORMULA, Image, Images, Prior, Verdict, display_names, to_json, uniform
from covidcxr.serve.security import Parts, read_parts
from covidcxr.serve.service import PredictionService
from covidcxr.serve.settings import Limits
from covidcxr.serve.store import Store
from covidcxr.utils.plain import json_text

__getattr__ = partial(aliases.find, __name__)

__all__ = ["Metered", "Metrics", "image_routes", "page_routes", "report_routes"]

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".txt": "text/plain",
}


def page_routes(app: FastAPI, service: PredictionService, metrics: Metrics) -> APIRouter:
    """Return the routes that have to do with the server itself.

    Args:
        app: The application, whose routes are listed.
        service: What does the work.
        metrics: What is counted.

    Returns:
        The routes.
    """
    routes = APIRouter()
    _add_static(routes)

    @routes.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> Response:
        return _html_page(_list_routes(app.openapi()))

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def get_metrics() -> Response:
        """Return what is counted, for Prometheus."""
        return Response(await asyncio.to_thread(metrics.text), media_type="text/plain; version=0.0.4")

    @routes.get("/api/health")
    async def health() -> dict[str, Any]:
        """Describe the model and the limits; 503 until the model is loaded."""
        facts = service.engine.facts
        from covidcxr.transforms.overlay import mask_colors  # brings torch, which the engine has loaded by now

        model = dataclasses.asdict(facts) | {"mask_colors": mask_colors(facts.mask_classes)}
        model["names"] = display_names((*facts.classes, *facts.mask_classes))
        if facts.exclusive:
            model |= {"training_prior": uniform(facts.classes), "formula": FORMULA}
        limits = service.limits
        return {
            "status": "ok",
            "version": __version__,
            "model": model,
            "films": await asyncio.to_thread(service.store.count),
            "limits": {
                "file_bytes": limits.file_bytes,
                "pixels": limits.pixels,
                "films": limits.images,
                "batch_films": limits.batch_images,
            },
        }

    return routes


def _add_static(routes: APIRouter) -> None:
    known = {entry.name: entry for entry in (files("covidcxr.serve") / "static").iterdir() if entry.is_file()}

    def static(name: str) -> Response:
        entry = known.get(name)  # only names that were found here: nothing is put together from what was asked for
        kind = _TYPES.get(f".{name.rpartition('.')[2]}")
        if entry is None or kind is None:
            raise RequestError(404, "There is no such file.")
        return Response(entry.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> Response:
        return static("index.html")

    @routes.get("/static/{name}", response_class=Response, include_in_schema=False)
    def file(name: str) -> Response:
        return static(name)


def _html_page(page: Page) -> Response:
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


ImageId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{22}$", description="as the server made it")]
Name = Annotated[str, Path(max_length=200)]

_AHEAD = 16
"""Images of a large batch in work at once."""

_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}


def _form(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Describe a form for the OpenAPI page; it is read by `read_parts`, which FastAPI does not know."""
    form = {"type": "object", "required": [field], "properties": {field: schema}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


_PNG_BODY = {"requestBody": {"required": True, "content": {"image/png": {"schema": _FILE}}}}

_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


def image_routes(service: PredictionService, metrics: Metrics) -> APIRouter:
    """Return the routes below /api that have to do with images.

    Args:
        service: What does the work.
        metrics: What is counted.

    Returns:
        The routes.
    """
    routes = APIRouter(prefix="/api")
    _add_uploads(routes, service, metrics)
    _add_batches(routes, service)
    _add_images(routes, service)
    _add_pictures(routes, service)
    _add_feedback(routes, service, metrics)
    return routes


def _add_uploads(routes: APIRouter, service: PredictionService, metrics: Metrics) -> None:
    @routes.post("/films", status_code=201, response_model=Image, openapi_extra=_form("file", _FILE))
    async def upload_image(request: Request) -> dict[str, Any]:
        """Predict for one image (PNG, JPEG, TIFF, BMP, WebP or DICOM), and keep it."""
        with service.upload():
            parts = await _read(request, service.limits, "file", 1)
            try:
                (name, place), *_ = parts
                row = await service.add(name, await asyncio.to_thread(parts.read, place))
            except CovidCXRError:
                metrics.images.labels("refused").inc()
                raise
            finally:
                parts.close()
        metrics.images.labels("answered" if row["answer"]["label"] else "cannot say").inc()
        return to_json(row)


def _add_batches(routes: APIRouter, service: PredictionService) -> None:
    limits = service.limits
    batches = asyncio.Semaphore(limits.batches)

    @routes.post(
        "/predict",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {}}}},
        openapi_extra=_form("files", {"type": "array", "items": _FILE}),
    )
    async def predict_images(request: Request) -> StreamingResponse:
        """Predict for many images, one line of JSON each, in order and as they come; nothing is kept."""
        if batches.locked():
            raise RequestError(
                503, f"{limits.batches} large batches are being predicted. Try again later.", retry_after=10
            )
        await batches.acquire()
        try:
            parts = await _read(request, limits, "files", limits.batch_images)
        except BaseException:
            batches.release()
            raise
        return _Batch(service, parts, batches)


async def _read(request: Request, limits: Limits, wanted: str, most: int) -> Parts:
    kind = request.headers.get("content-type", "")
    return await read_parts(kind, request.stream(), wanted=wanted, most=most, file_bytes=limits.file_bytes)


class _Batch(StreamingResponse):
    """Predictions for many images as lines of JSON; lets go of their files whatever happens."""

    def __init__(self, service: PredictionService, parts: Parts, batches: asyncio.Semaphore) -> None:
        super().__init__(_lines(service, parts), media_type="application/x-ndjson")
        self._parts, self._batches = parts, batches

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._parts.close()
            self._batches.release()


async def _lines(service: PredictionService, parts: Parts) -> AsyncIterator[str]:
    async def answer(name: str, place: int) -> dict[str, Any]:
        try:
            return await service.predict(name, parts.read(place))
        except CovidCXRError as error:
            return {"name": name, "error": str(error)}

    waiting: deque[asyncio.Task[dict[str, Any]]] = deque()
    try:
        for name, place in parts:
            waiting.append(asyncio.create_task(answer(name, place)))
            if len(waiting) == _AHEAD:
                yield json_text(await waiting.popleft()) + "\n"
        while waiting:
            yield json_text(await waiting.popleft()) + "\n"
    finally:
        for task in waiting:
            task.cancel()


def _add_images(routes: APIRouter, service: PredictionService) -> None:
    @routes.get("/films", response_model=Images)
    async def list_images(since: str | None = None) -> dict[str, Any]:
        """Return all kept images, newest first, or with `since` those that changed, came or went since a revision."""
        return await service.list_images(since)

    @routes.get("/films/{film_id}", response_model=Image)
    async def get_image(film_id: ImageId) -> dict[str, Any]:
        """Return an image, with the answer of the model that runs now."""
        return to_json(await service.image(film_id))

    @routes.delete("/films/{film_id}", status_code=204)
    async def remove_image(film_id: ImageId) -> None:
        """Delete an image with its masks and verdicts."""
        await asyncio.to_thread(service.store.remove, film_id)


def _add_pictures(routes: APIRouter, service: PredictionService) -> None:
    @routes.get("/films/{film_id}/{picture}.png", response_class=Response, responses=_PNG)
    async def get_picture(film_id: ImageId, picture: Name) -> Response:
        """Return the image ("image") or its thumbnail ("thumbnail")."""
        if picture not in ("image", "thumbnail"):
            raise RequestError(404, "An image has the pictures image.png and thumbnail.png.")
        return _png(await asyncio.to_thread(service.store.picture, film_id, picture))

    @routes.get("/films/{film_id}/masks/{mask_class}.png", response_class=Response, responses=_PNG)
    async def get_mask(film_id: ImageId, mask_class: Name) -> Response:
        """Return a mask, 0 and 255 at the image's size: the corrected one, else the predicted one."""
        return _png(await asyncio.to_thread(service.store.mask, film_id, mask_class))

    @routes.get("/films/{film_id}/heat/{target}.png", response_class=Response, responses=_PNG)
    async def get_heat(film_id: ImageId, target: Name) -> Response:
        """Return what speaks for a class (Grad-CAM), 0 to 255 at the image's size."""
        return _png(await service.heat(film_id, target))


def _add_feedback(routes: APIRouter, service: PredictionService, metrics: Metrics) -> None:
    @routes.put("/films/{film_id}/masks/{mask_class}", response_model=Image, openapi_extra=_PNG_BODY)
    async def correct_mask(film_id: ImageId, mask_class: Name, request: Request) -> dict[str, Any]:
        """Predict anew from a corrected mask: a PNG of 0 and 255, of the image's size."""
        content = bytearray()
        async for piece in request.stream():
            content += piece
        return to_json(await service.correct(film_id, mask_class, bytes(content)))

    @routes.delete("/films/{film_id}/masks/{mask_class}", response_model=Image)
    async def uncorrect_mask(film_id: ImageId, mask_class: Name) -> dict[str, Any]:
        """Go back to the mask that the model predicts."""
        return to_json(await service.uncorrect(film_id, mask_class))

    @routes.put("/films/{film_id}/prior", response_model=Image)
    async def set_prior(film_id: ImageId, prior: Prior) -> dict[str, Any]:
        """Set the pre-test probabilities; the image comes back with the post-test ones."""
        return to_json(await service.set_prior(film_id, prior.probabilities))

    @routes.put("/films/{film_id}/verdict", response_model=Image)
    async def give_verdict(film_id: ImageId, verdict: Verdict) -> dict[str, Any]:
        """Give a verdict; the response comes when it is on the disk."""
        row = await service.judge(film_id, verdict)
        metrics.verdicts.inc()
        return to_json(row)


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png")


def report_routes(service: PredictionService) -> APIRouter:
    """Return the routes of reports.

    Args:
        service: What does the work.

    Returns:
        The routes.
    """
    routes = APIRouter(prefix="/api")

    async def make_report(film_id: str) -> Page:
        row = await service.image(film_id)
        image = to_json(row)
        pixels, masks = await service.pictures(row)
        probabilities = image["probabilities"]
        target = image["label"] or max(probabilities, key=lambda name: probabilities[name], default=None)
        heat = None
        if target is not None:
            with suppress(ConfigError):  # of a network without places there is no heat map
                heat = (target, await service.heat_map(row, target) / np.float32(255))
        return await asyncio.to_thread(image_report, image, pixels, masks, heat)

    @routes.get("/films/{film_id}/report.html", response_class=HTMLResponse)
    async def get_page(film_id: ImageId) -> Response:
        """Return a page to print; all that it shows lies inside it."""
        return _html_page(await make_report(film_id))

    @routes.get(
        "/films/{film_id}/report.pdf", response_class=Response, responses={200: {"content": {"application/pdf": {}}}}
    )
    async def get_pdf(film_id: ImageId) -> Response:
        """Return the same as PDF."""
        content = await asyncio.to_thread(to_pdf, await make_report(film_id))
        return Response(content, media_type="application/pdf", headers=_named(film_id, "pdf", "inline"))

    @routes.get("/films/{film_id}/report.json")
    async def get_json(film_id: ImageId) -> Response:
        """Return all that is known of the image."""
        image = to_json(await service.image(film_id))
        more: dict[str, Any] = {"covidcxr": __version__, "notice": "For research only, not for clinical use."}
        if image["posterior"]:
            more |= {"formula": FORMULA, "training_prior": uniform(image["probabilities"])}
        content = json_text({**image, **more})
        return Response(content, media_type="application/json", headers=_named(film_id, "json", "attachment"))

    return routes


def _named(film_id: str, kind: str, how: str) -> dict[str, str]:
    """Name a download by what this server made up, not by what the client called its file."""
    return {"Content-Disposition": f'{how}; filename="film-{film_id}.{kind}"'}


_BATCHES = (1, 2, 4, 8, 16)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server; no image, name or label is among them.

    Example:
        ```python
        from covidcxr.serve.routes import Metrics

        metrics = Metrics()
        metrics.watch_batch(4, 0.5)
        assert b"covidcxr_model_seconds_total 0.5" in metrics.text()
        ```
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "covidcxr_request_seconds",
            "Time from a request's head to the end of its answer",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.images = Counter("covidcxr_films", "Uploaded images", ("outcome",), registry=self.registry)
        self.verdicts = Counter("covidcxr_verdicts", "Saved verdicts", registry=self.registry)
        self.batches = Histogram(
            "covidcxr_batch_films", "Images predicted as one batch", registry=self.registry, buckets=_BATCHES
        )
        self.model_seconds = Counter(
            "covidcxr_model_seconds", "Time in which the models worked", registry=self.registry
        )

    def watch_batch(self, images: int, seconds: float) -> None:
        """Count a batch.

        Args:
            images: Its size.
            seconds: Time that the models took.
        """
        self.batches.observe(images)
        self.model_seconds.inc(seconds)

    def watch(self, engine: Engine, store: Store) -> None:
        """Read how much waits and how much is kept whenever the counters are read.

        Args:
            engine: Where images wait.
            store: Where they are kept.
        """
        waiting = Gauge("covidcxr_waiting_films", "Images that wait for the model", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)
        kept = Gauge("covidcxr_kept_films", "Images in the store", registry=self.registry)
        kept.set_function(store.count)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)


class Metered:
    """Measures how long requests take.

    Args:
        app: The application.
        metrics: Where it is counted.

    Example:
        ```python
        from fastapi import FastAPI

        from covidcxr.serve.routes import Metered, Metrics

        app = Metered(FastAPI(), Metrics())
        ```
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), "none"

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            # The route's pattern, never the path: a client could make up any number of those.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PUT", "DELETE") else "other"
            self._metrics.requests.labels(method, route, status).observe(time.perf_counter() - started)
