"""The work of a run: images become files and lines, in this process or in several."""

from __future__ import annotations

import base64
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.io.folders import fails_everywhere, path_inside
from covidcxr.io.hub import read_remote
from covidcxr.io.masks import encode_mask
from covidcxr.pipeline.image_list import ListedImage
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import FailedPrediction, OverlayFormat, Prediction
from covidcxr.types import Backend, ImageLike
from covidcxr.utils.plain import json_text
from covidcxr.utils.threads import count_cores

__all__ = ["Job", "answer_here", "answer_in_processes"]

Named: TypeAlias = deque[tuple[str, Prediction | FailedPrediction]]
Append: TypeAlias = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Job:
    """How images become files and lines; travels to other processes.

    Attributes:
        folder: Where the files go.
        batch_size: Batch size.
        num_workers: Threads that read images.
        device: Where the models run.
        bits: Bits of numbers whose type does not tell.
        overlay: Format of the overlays; None = none.
        masks: Keep the masks.
        parquet: Put masks into the lines, for Parquet, and write no JSON files.
        backend: What runs the models.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.pipeline.jobs import Job

        assert Job(Path("out")).batch_size == 16
        ```
    """

    folder: Path
    batch_size: int = 16
    num_workers: int = 2
    device: str = "cpu"
    bits: int | None = None
    overlay: OverlayFormat | None = "jpg"
    masks: bool = True
    parquet: bool = False
    backend: Backend = "torch"

    def predict(self, pipeline: Pipeline, images: Iterable[ListedImage]) -> Iterator[Named]:
        """Predict for images, a batch at a time.

        Args:
            pipeline: Predicts.
            images: Paths or URLs, with names.

        Yields:
            Names and predictions of a batch.
        """
        taken: deque[ListedImage] = deque()
        contents = self._contents(images, taken)
        reading: dict[str, Any] = {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "bits": self.bits,
        }
        for batch in pipeline.predict_batches(contents, **reading):
            named: Named = deque()
            for prediction in batch:
                path, name = taken.popleft()
                named.append((name, replace(prediction, image_id=path) if isinstance(path, str) else prediction))
            batch.clear()
            yield named

    def write(self, predictions: Named) -> list[str]:
        """Write the files of a batch, and empty it.

        Args:
            predictions: Names and predictions.

        Returns:
            A line of JSON an image, with its line break.

        Raises:
            OSError: If the disk is full or broken.
        """
        lines = []
        while predictions:  # each goes when it is written
            lines.append(json_text(self._save(*predictions.popleft())) + "\n")
        return lines

    def endings(self, masks: Iterable[str]) -> list[str]:
        """Return how the files of an image end.

        Args:
            masks: Its mask classes.

        Returns:
            What follows the image's name and a dot.
        """
        overlay = [f"overlay.{self.overlay}"] if self.overlay else []
        return overlay if self.parquet else [*(f"{name}.png" for name in masks if self.masks), *overlay, "json"]

    def _contents(self, images: Iterable[ListedImage], taken: deque[ListedImage]) -> Iterator[ImageLike]:
        """Give what is to be read; files of URLs are fetched by threads, a batch ahead."""
        waiting: deque[tuple[ListedImage, Future[_Content] | None]] = deque()
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            source = iter(images)
            while True:
                for image in islice(source, 1 + self.batch_size - len(waiting)):
                    waiting.append((image, pool.submit(_Content, image[0]) if isinstance(image[0], str) else None))
                if not waiting:
                    return
                image, content = waiting.popleft()
                taken.append(image)
                yield image[0] if content is None else content.result()  # type: ignore[misc]  # it can be read

    def _save(self, name: str, prediction: Prediction | FailedPrediction) -> dict[str, Any]:
        """Write the files of an image, and return its line."""
        if isinstance(prediction, FailedPrediction):
            return {"name": name, **prediction.to_dict()}
        try:
            place = path_inside(self.folder / "films", name)
            if not self.parquet:
                prediction.save(place.parent, place.name, overlay=self.overlay, masks=self.masks, sync=False)
            elif self.overlay:
                prediction.save_overlay(place.parent, place.name, self.overlay, sync=False)
            endings = self.endings(prediction.masks)
            sizes = {ending: Path(f"{place}.{ending}").stat().st_size for ending in endings}
        except (ConfigError, OSError) as error:  # a name too long for this disk must not cost the other images
            if fails_everywhere(error):
                raise
            words = f"The prediction cannot be written: {error}"
            return {"name": name, "error": words, "kind": type(error).__name__}
        entry = {"name": name, **prediction.to_dict(), "files": sizes}
        if self.parquet and self.masks:
            pictures = {mask: encode_mask(pixels) for mask, pixels in prediction.masks.items()}
            entry["masks"] = {mask: base64.b64encode(picture).decode() for mask, picture in pictures.items()}
        return entry


class _Content:
    """The file of a URL, open: reading it gives its content, or the error that fetching it raised."""

    def __init__(self, url: str) -> None:
        self._content = b""
        self._error: ImageReadError | None = None
        try:
            self._content = read_remote(url)
        except ImageReadError as error:
            self._error = error

    def read(self) -> bytes:
        if self._error is not None:
            raise self._error
        return self._content


def answer_here(pipeline: Pipeline, job: Job, images: Iterable[ListedImage], append: Append) -> Iterator[int]:
    """Answer images in this process; a batch is written while the next one is computed, and no more than one waits.

    Args:
        pipeline: Predicts.
        job: How.
        images: What.
        append: Brings lines to the disk.

    Yields:
        How many images a batch had, when its lines are on the disk.
    """

    def write(named: Named) -> int:
        append(lines := job.write(named))
        return len(lines)

    with ThreadPoolExecutor(1) as writer:
        writing: Future[int] | None = None
        for named in job.predict(pipeline, images):
            if writing is not None:
                yield writing.result()
            writing = writer.submit(write, named)
            del named
        if writing is not None:
            yield writing.result()


def answer_in_processes(
    model: str | os.PathLike[str], job: Job, images: Iterable[ListedImage], append: Append, processes: int
) -> Iterator[int]:
    """Answer images in several processes, which write files; this one writes all lines, in the order of the images.

    At most twice as many batches as processes are on their way: so much can be lost by a kill.

    Args:
        model: Where each process loads the pipeline from.
        job: How.
        images: What.
        append: Brings lines to the disk.
        processes: Number of processes.

    Yields:
        How many images a batch had, when its lines are on the disk.

    Raises:
        ConfigError: If a process died.
    """
    source, waiting = iter(images), deque[Future[list[str]]]()
    context = multiprocessing.get_context("spawn")  # threads and forks do not go together
    pool = ProcessPoolExecutor(processes, context, _begin, (model, job, processes))
    try:
        while batch := list(islice(source, job.batch_size)):
            waiting.append(pool.submit(_work, batch))
            if len(waiting) == 2 * processes:
                yield _append(waiting.popleft(), append)
        while waiting:
            yield _append(waiting.popleft(), append)
    except BrokenProcessPool as error:
        raise ConfigError(
            "A process of this run died; perhaps the memory was not enough. Run the same command again, with fewer "
            "--processes: it goes on where it stopped."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _append(answered: Future[list[str]], append: Append) -> int:
    lines = answered.result()
    append(lines)
    return len(lines)


_mine: tuple[Pipeline, Job] | None = None
"""What a process of a pool works with."""


def _begin(model: str | os.PathLike[str], job: Job, processes: int) -> None:
    """Prepare a process of the pool."""
    global _mine
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is told, and ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threads = max(1, count_cores() // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is imported
    cv2.setNumThreads(threads)
    _mine = Pipeline.from_pretrained(model, backend=job.backend).to(job.device), job


def _end_with_parent() -> None:
    """A pool's processes do not notice that the first one was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(images: list[ListedImage]) -> list[str]:
    """Answer a batch, in a process of the pool."""
    assert _mine is not None
    pipeline, job = _mine
    return [line for named in job.predict(pipeline, images) for line in job.write(named)]
