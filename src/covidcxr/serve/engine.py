"""The one thread that asks the models: it takes what waits, of all requests together, and answers it as one batch."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr.serve.errors import RefusalError

if TYPE_CHECKING:
    from covidcxr.pipeline.pipeline import Pipeline
    from covidcxr.pipeline.prediction import Prediction

__all__ = ["Engine", "ModelFacts"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What answers.

    Attributes:
        name: Where it was loaded from.
        sha256: Of configs and weights; another model has another one.
        components: Names of the pipeline's parts.
        classes: What the classifier can answer.
        mask_classes: What the segmenters draw.
        exclusive: Whether exactly one class is true.
        temperature: Logits are divided by it; None without a classifier.
        thresholds: By class, from where on it is plausible.
    """

    name: str
    sha256: str
    components: tuple[str, ...]
    classes: tuple[str, ...]
    mask_classes: tuple[str, ...]
    exclusive: bool
    temperature: float | None
    thresholds: dict[str, float]

    @classmethod
    def of(cls, name: str, pipeline: Pipeline) -> ModelFacts:
        """Look at a pipeline."""
        models, classifier = pipeline.models(), pipeline.classifier
        drawn = [name for model in models.values() if model.task == "segmentation" for name in model.config.classes]
        config = None if classifier is None else classifier.config
        return cls(
            name,
            _fingerprint(pipeline),
            tuple(models),
            () if config is None else config.classes,
            tuple(drawn),
            config is not None and config.mode != "multilabel",
            None if config is None else config.temperature,
            {} if config is None else dict(config.thresholds),
        )


def _fingerprint(pipeline: Pipeline) -> str:
    """Return the SHA-256 of all that decides an answer: configs, clean-up and weights."""
    digest = hashlib.sha256(repr((pipeline.postprocess.to_config(), pipeline.min_lung_area)).encode())
    for name, model in pipeline.models().items():
        digest.update(repr((name, model.config)).encode())
        for key, tensor in sorted(model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


Pixels = UInt8[np.ndarray, "height width"]


Mask = Bool[np.ndarray, "height width"]


T = TypeVar("T")


_BATCH_FILMS = 16


_BATCH_PIXELS = 32_000_000


_PATIENCE = 0.004  # seconds that a batch waits for more images


@dataclass(slots=True)
class _Job:
    pixels: int
    work: Callable[[Pipeline], Any] | Pixels
    answer: Future[Any]


class Engine:
    """Loads a pipeline and answers in a thread of its own; what does not fit into its queue is refused.

    Args:
        load: Returns the pipeline's name and the pipeline; called in the thread, so that the server listens meanwhile.
        waiting_films: Jobs that may wait.
        waiting_pixels: Their pixels together.
        watch: Called with the size of each batch and the seconds that it took.
    """

    def __init__(
        self,
        load: Callable[[], tuple[str, Pipeline]],
        *,
        waiting_films: int,
        waiting_pixels: int,
        watch: Callable[[int, float], None] = lambda films, seconds: None,
    ) -> None:
        self._load = load
        self._most = (waiting_films, waiting_pixels)
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
        """Images that wait or are being answered."""
        return self._waiting[0]

    @property
    def facts(self) -> ModelFacts:
        """What answers.

        Raises:
            RefusalError: While the model is being loaded.
        """
        if self._facts is None:
            raise RefusalError(503, "The model is being loaded. Ask again in a second.", retry_after=1)
        return self._facts

    def predict(self, film: Pixels) -> Future[Prediction]:
        """Answer for an image, in one batch with others that wait.

        Raises:
            RefusalError: If too much waits already.
        """
        return self._put(film.size, film)

    def revise(self, film: Pixels, masks: Mapping[str, Mask]) -> Future[Prediction]:
        """Answer for an image from corrected masks.

        Raises:
            RefusalError: If too much waits already.
        """
        return self._put(film.size, lambda pipeline: pipeline.revise(film, masks))

    def heat(self, film: Pixels, masks: Mapping[str, Mask], target: str) -> Future[Pixels]:
        """Draw what speaks for a class, 0 to 255 at the image's size; from corrected masks, if there are any.

        Raises:
            RefusalError: If too much waits already.
        """

        def work(pipeline: Pipeline) -> Any:
            prediction = pipeline.revise(film, masks) if masks else pipeline(film)
            return np.rint(prediction.explain(target).heat * 255).astype(np.uint8)

        return self._put(film.size, work)

    def _put(self, pixels: int, work: Callable[[Pipeline], T] | Pixels) -> Future[Any]:
        with self._lock:
            films, waiting = self._waiting
            if films and (films + 1 > self._most[0] or waiting + pixels > self._most[1]):
                raise RefusalError(
                    503, f"The server is busy: {films} images wait. Ask again in a second.", retry_after=1
                )
            self._waiting[:] = films + 1, waiting + pixels
        job = _Job(pixels, work, Future())
        job.answer.add_done_callback(lambda _: self._leave(pixels))
        self._jobs.put(job)
        return job.answer

    def _leave(self, pixels: int) -> None:
        with self._lock:
            self._waiting[0] -= 1
            self._waiting[1] -= pixels

    def _run(self) -> None:
        try:
            name, pipeline = self._load()
            pipeline(np.zeros((64, 64), np.uint8))  # the first answer of torch is slower than all others
            self._facts = ModelFacts.of(name, pipeline)
        except Exception as error:  # the server ends with it
            self.failure = error
            self.ready.set()
            while job := self._jobs.get():
                job.answer.set_exception(error)
            return
        self.ready.set()
        while batch := self._take():
            started = time.perf_counter()
            films = [job for job in batch if isinstance(job.work, np.ndarray)]
            if films:
                self._answer_films(pipeline, films)
            for job in batch:
                if not isinstance(job.work, np.ndarray):
                    _finish(job, lambda work=job.work: work(pipeline))  # type: ignore[misc]
            self._watch(len(batch), time.perf_counter() - started)

    def _take(self) -> list[_Job]:
        """Wait for a job, and take what else has come; nothing = the end."""
        first, self._put_off = self._put_off or self._jobs.get(), None
        batch = [first] if first else []
        pixels = first.pixels if first else 0
        until = time.monotonic() + _PATIENCE
        while batch and len(batch) < _BATCH_FILMS:
            try:
                job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # the end comes after this batch
                break
            if pixels + job.pixels > _BATCH_PIXELS:
                self._put_off = job
                break
            batch.append(job)
            pixels += job.pixels
        wanted = [job for job in batch if job.answer.set_running_or_notify_cancel()]
        return wanted if wanted or not batch else self._take()

    def _answer_films(self, pipeline: Pipeline, jobs: list[_Job]) -> None:
        try:
            answers = list(pipeline.predict([job.work for job in jobs if isinstance(job.work, np.ndarray)]))
        except Exception:  # one image must not cost the others their answers
            for job in jobs:
                _finish(job, lambda film=job.work: pipeline(film))  # type: ignore[misc]
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)


def _finish(job: _Job, work: Callable[[], Any]) -> None:
    try:
        job.answer.set_result(work())
    except Exception as error:  # told to the one who asked
        job.answer.set_exception(error)
