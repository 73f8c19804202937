"""The one thread that runs the models: it takes what waits, of all requests together, and predicts it as one batch."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr.errors import RequestError
from covidcxr.pipeline.cases import BATCH_IMAGES, BATCH_PIXELS
from covidcxr.utils.lazy import old_arguments

if TYPE_CHECKING:
    from covidcxr.pipeline.pipeline import Pipeline
    from covidcxr.pipeline.prediction import Prediction

__all__ = ["Engine", "ModelFacts"]


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
