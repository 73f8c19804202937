"""The two places where work is done: processes that decode uploads, and one thread that predicts batches."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr import aliases
from covidcxr.errors import ImageReadError, RequestError
from covidcxr.pipeline.cases import BATCH_IMAGES, BATCH_PIXELS
from covidcxr.serve.settings import Limits
from covidcxr.utils.lazy import old_arguments

if TYPE_CHECKING:
    from covidcxr.pipeline.pipeline import Pipeline
    from covidcxr.pipeline.prediction import Prediction

__getattr__ = partial(aliases.find, __name__)

__all__ = ["DecodedImage", "Decoder", "Engine", "ModelFacts"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model behind the predictions.

    Attributes:
        name: Where it was loaded from.
        sha256: Of configs and weights; another model has another one.
        components: Names of the pipeline's parts.
        classes: Those of the classifier.
        mask_classes: Those of all segmenters.
        exclusive: Whether exactly one class is true.
        temperature: Logits are divided by it; None without a classifier.
        thresholds: By class, the probability from which on it is plausible.
        coverage: How often the plausible classes shall hold the truth; None = nothing is promised.
        coverage_by: Whom that is promised: each "class", each class in each "source", or "all" images together.

    Example:
        ```python
        from covidcxr import Pipeline
        from covidcxr.serve.engine import ModelFacts

        facts = ModelFacts.of("mini", Pipeline.from_pretrained("mini"))
        assert "infection" in facts.mask_classes
        ```
    """

    name: str
    sha256: str
    components: tuple[str, ...]
    classes: tuple[str, ...]
    mask_classes: tuple[str, ...]
    exclusive: bool
    temperature: float | None
    thresholds: dict[str, float]
    coverage: float | None = None
    coverage_by: str | None = None

    @classmethod
    def of(cls, name: str, pipeline: Pipeline) -> ModelFacts:
        """Describe a pipeline.

        Args:
            name: Where it was loaded from.
            pipeline: The pipeline.

        Returns:
            Its facts.
        """
        from covidcxr.pipeline.parts import fingerprint  # brings torch

        classifier = pipeline.classifier
        config = None if classifier is None else classifier.config
        return cls(
            name,
            fingerprint(pipeline),
            tuple(pipeline.models()),
            () if config is None else config.classes,
            pipeline.mask_classes,
            config is not None and config.mode != "multilabel",
            None if config is None else config.temperature,
            {} if config is None else dict(config.thresholds),
            None if config is None else config.coverage,
            None if config is None else config.coverage_by,
        )


Pixels = UInt8[np.ndarray, "height width"]


Mask = Bool[np.ndarray, "height width"]


T = TypeVar("T")


_BATCH_WAIT = 0.004  # seconds that a batch waits for more images


@dataclass(slots=True)
class _Job:
    pixels: int
    work: Callable[[Pipeline], Any] | Pixels
    result: Future[Any]


class Engine:
    """Loads a pipeline and runs it in a thread of its own; what does not fit into its queue is refused.

    Args:
        load: Returns the pipeline's name and the pipeline; called in the thread, so that the server listens meanwhile.
        waiting_images: Jobs that may wait.
        waiting_pixels: Their pixels together.
        watch: Called with the size of each batch and the seconds that it took.

    Example:
        ```python
        import numpy as np

        from covidcxr import Pipeline
        from covidcxr.serve.engine import Engine

        load = lambda: ("mini", Pipeline.from_pretrained("mini"))
        engine = Engine(load, waiting_images=8, waiting_pixels=10_000_000)
        engine.start()
        prediction = engine.predict(np.zeros((64, 64), np.uint8)).result()
        engine.stop()
        assert prediction.label is None
        ```
    """

    @old_arguments(waiting_films="waiting_images")
    def __init__(
        self,
        load: Callable[[], tuple[str, Pipeline]],
        *,
        waiting_images: int,
        waiting_pixels: int,
        watch: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._load = load
        self._most = (waiting_images, waiting_pixels)
        self._watch = watch
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._lock = threading.Lock()
        self._waiting = [0, 0]
        self._put_off: _Job | None = None
        self._thread = threading.Thread(target=self._run, name="covidcxr-engine", daemon=True)
        self.ready = threading.Event()
        self.failure: Exception | None = None
        self._facts: ModelFacts | None = None

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch at hand, and end."""
        self._jobs.put(None)
        self._thread.join(timeout=30)

    @property
    def waiting(self) -> int:
        """Images that wait or are in the models."""
        return self._waiting[0]

    @property
    def facts(self) -> ModelFacts:
        """The model that is running.

        Raises:
            RequestError: While the model is being loaded.
        """
        if self._facts is None:
            raise RequestError(503, "The model is being loaded. Try again in a second.", retry_after=1)
        return self._facts

    def predict(self, image: Pixels) -> Future[Prediction]:
        """Predict for an image, in one batch with others that wait.

        Args:
            image: 8-bit grey.

        Returns:
            The prediction to come.

        Raises:
            RequestError: If too much waits already.
        """
        return self._put(image.size, image)

    def revise(self, image: Pixels, masks: Mapping[str, Mask]) -> Future[Prediction]:
        """Predict for an image from corrected masks.

        Args:
            image: 8-bit grey.
            masks: By mask class, of the image's size.

        Returns:
            The prediction to come.

        Raises:
            RequestError: If too much waits already.
        """
        return self._put(image.size, lambda pipeline: pipeline.revise(image, masks))

    def heat(self, image: Pixels, masks: Mapping[str, Mask], target: str) -> Future[Pixels]:
        """Compute the heat map of a class, from corrected masks if there are any.

        Args:
            image: 8-bit grey.
            masks: Corrected masks by mask class, of the image's size.
            target: The class.

        Returns:
            The heat map to come, 0 to 255 at the image's size.

        Raises:
            RequestError: If too much waits already.
        """

        def work(pipeline: Pipeline) -> Any:
            prediction = pipeline.revise(image, masks) if masks else pipeline(image)
            return np.rint(prediction.explain(target).heat * 255).astype(np.uint8)

        return self._put(image.size, work)

    def _put(self, pixels: int, work: Callable[[Pipeline], T] | Pixels) -> Future[Any]:
        with self._lock:
            images, waiting = self._waiting
            if images and (images + 1 > self._most[0] or waiting + pixels > self._most[1]):
                raise RequestError(
                    503, f"The server is busy: {images} images wait. Try again in a second.", retry_after=1
                )
            self._waiting[:] = images + 1, waiting + pixels
        job = _Job(pixels, work, Future())
        job.result.add_done_callback(lambda _: self._leave(pixels))
        self._jobs.put(job)
        return job.result

    def _leave(self, pixels: int) -> None:
        with self._lock:
            self._waiting[0] -= 1
            self._waiting[1] -= pixels

    def _run(self) -> None:
        try:
            name, pipeline = self._load()
            pipeline(np.zeros((64, 64), np.uint8))  # torch is slower the first time
            self._facts = ModelFacts.of(name, pipeline)
        except Exception as error:  # the server ends with it
            self.failure = error
            self.ready.set()
            while job := self._jobs.get():
                job.result.set_exception(error)
            return
        self.ready.set()
        while batch := self._take():
            started = time.perf_counter()
            images = [job for job in batch if isinstance(job.work, np.ndarray)]
            if images:
                self._predict_batch(pipeline, images)
            for job in batch:
                if not isinstance(job.work, np.ndarray):
                    _finish(job, lambda work=job.work: work(pipeline))  # type: ignore[misc]
            self._watch(len(batch), time.perf_counter() - started)

    def _take(self) -> list[_Job]:
        """Wait for a job, and take what else has come; nothing = the end."""
        first, self._put_off = self._put_off or self._jobs.get(), None
        batch = [first] if first else []
        pixels = first.pixels if first else 0
        until = time.monotonic() + _BATCH_WAIT
        while batch and len(batch) < BATCH_IMAGES:
            try:
                job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # the end comes after this batch
                break
            if pixels + job.pixels > BATCH_PIXELS:
                self._put_off = job
                break
            batch.append(job)
            pixels += job.pixels
        wanted = [job for job in batch if job.result.set_running_or_notify_cancel()]
        return wanted if wanted or not batch else self._take()

    def _predict_batch(self, pipeline: Pipeline, jobs: list[_Job]) -> None:
        try:
            predictions = list(pipeline.predict([job.work for job in jobs if isinstance(job.work, np.ndarray)]))
        except Exception:  # one image must not cost the others their predictions
            for job in jobs:
                _finish(job, lambda image=job.work: pipeline(image))  # type: ignore[misc]
            return
        for job, prediction in zip(jobs, predictions, strict=True):
            job.result.set_result(prediction)


def _finish(job: _Job, work: Callable[[], Any]) -> None:
    try:
        job.result.set_result(work())
    except Exception as error:  # raised in the request that wants the result
        job.result.set_exception(error)


_PIPE_BYTES = 4_000_000
_SECRET = "COVIDCXR_TOKEN"


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An image as it is kept.

    Attributes:
        pixels: 8-bit grey, 0 = black.
        png: The same as PNG, without any metadata.
        thumbnail: The image made small, as PNG.
        sha256: Of its size and pixels.
        notes: What was done to it on the way, a sentence each.
        identifiers: DICOM identifiers by name, if they were asked for.

    Example:
        ```python
        import asyncio
        import io

        from PIL import Image

        from covidcxr.serve import Limits
        from covidcxr.serve.engine import Decoder

        async def decode(content: bytes) -> tuple[int, int]:
            decoder = Decoder(1, Limits())
            image = await decoder.image(content)
            await decoder.stop()
            return image.pixels.shape

        file = io.BytesIO()
        Image.new("L", (30, 20)).save(file, "PNG")
        assert asyncio.run(decode(file.getvalue())) == (20, 30)
        ```
    """

    pixels: UInt8[np.ndarray, "height width"]
    png: bytes
    thumbnail: bytes
    sha256: str
    notes: tuple[str, ...]
    identifiers: dict[str, str]


class Decoder:
    """Decodes images and masks in other processes.

    Args:
        workers: How many; further images wait.
        limits: Time, memory and pixels of one image.
        keep_identifiers: Whether DICOM identifiers are returned.

    Example:
        See `DecodedImage`.
    """

    def __init__(self, workers: int, limits: Limits, *, keep_identifiers: bool = False) -> None:
        self._limits = limits
        self._keep_identifiers = keep_identifiers
        self._idle: asyncio.LifoQueue[Process | None] = asyncio.LifoQueue()
        for _ in range(workers):
            self._idle.put_nowait(None)
        self._running: set[Process] = set()

    async def start(self) -> None:
        """Start all processes, so that the first image need not wait for one."""
        free = [self._idle.get_nowait() for _ in range(self._idle.qsize())]
        for process in free:
            self._idle.put_nowait(process or await self._launch())

    async def stop(self) -> None:
        """End all processes."""
        for process in list(self._running):
            await self._end(process)

    async def image(self, content: bytes) -> DecodedImage:
        """Decode an image.

        Args:
            content: The file.

        Returns:
            The image.

        Raises:
            ImageReadError: If it cannot be read, or not within its time and memory.
        """
        facts, (pixels, png, thumbnail) = await self._order(
            content, 3, {"kind": "image", "keep_identifiers": self._keep_identifiers}
        )
        grey = np.frombuffer(pixels, np.uint8).reshape(facts["height"], facts["width"])
        return DecodedImage(grey, png, thumbnail, facts["sha256"], tuple(facts["notes"]), facts["identifiers"])

    async def mask(self, content: bytes, size: tuple[int, int]) -> tuple[Bool[np.ndarray, "height width"], bytes]:
        """Decode a mask.

        Args:
            content: The file.
            size: Height and width of its image.

        Returns:
            The mask, and the same as PNG.

        Raises:
            ImageReadError: If it is no such mask.
        """
        _, (pixels, png) = await self._order(content, 2, {"kind": "mask", "size": list(size)})
        return np.frombuffer(pixels, np.bool_).reshape(size), png

    async def _order(self, content: bytes, parts: int, order: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        process = await self._idle.get()
        sound = False
        try:
            if process is None or process.returncode is not None:
                process = await self._launch()
            async with asyncio.timeout(self._limits.decode_seconds):
                facts, received = await _request(process, content, order)
            sound = True
        except TimeoutError as error:
            raise ImageReadError(
                f"Decoding the image took more than {self._limits.decode_seconds:.0f} seconds. Save it as PNG."
            ) from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ImageReadError(
                "The image ended the process that decoded it: it is damaged, or needs too much memory. Save it as PNG."
            ) from error
        finally:
            if not sound and process is not None:  # also when the client went away: it is in the middle of an image
                await self._end(process)
            self._idle.put_nowait(process if sound else None)
        if "error" in facts:
            raise ImageReadError(facts["error"])
        assert len(received) == parts
        return facts, received

    async def _launch(self) -> Process:
        settings = {name: value for name, value in os.environ.items() if name != _SECRET}
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each reserves memory
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "covidcxr.serve.worker"),
            *(str(self._limits.decode_bytes), str(self._limits.pixels)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=_PIPE_BYTES,
            env=settings | one_thread,
        )
        self._running.add(process)
        return process

    async def _end(self, process: Process) -> None:
        self._running.discard(process)
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _request(process: Process, content: bytes, order: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Send an order, and read its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"bytes": len(content), **order}).encode() + b"\n")
    process.stdin.write(content)
    await process.stdin.drain()
    line = await process.stdout.readline()
    if not line:
        raise asyncio.IncompleteReadError(line, None)
    facts: dict[str, Any] = json.loads(line)
    return facts, [await process.stdout.readexactly(length) for length in facts.pop("parts")]
