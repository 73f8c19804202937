"""What the server counts, for Prometheus."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covidcxr.serve.engine import Engine
from covidcxr.serve.store import Store

__all__ = ["Metered", "Metrics"]

_BATCHES = (1, 2, 4, 8, 16)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server; no image, name or label is among them.

    Example:
        ```python
        from covidcxr.serve.metrics import Metrics

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

        from covidcxr.serve.metrics import Metered, Metrics

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
