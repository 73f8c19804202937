"""One pass over the films of a data set: each is opened once, and everything that the probes want is taken from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from covidcxr.data.collection import Collection
from covidcxr.data.dataset import box_slices
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.evaluation.shortcuts import features
from covidcxr.evaluation.shortcuts.features import Header, read_header
from covidcxr.models import SegmentationModel
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.transforms.geometry import LUNGS_OF_REGION, dilate
from covidcxr.utils.threads import Progress, map_threads

__all__ = ["Films", "Segmenter", "Steps", "look_at_films", "no_steps", "reads_itself"]

Segmenter: TypeAlias = str | os.PathLike[str] | SegmentationModel | None
Steps: TypeAlias = Callable[[str], AbstractContextManager[Progress]]
"""From the name of a step to a progress bar for it, as `covidcxr.datasets.console.show_progress`."""

DILATION = 0.08
"""By how much lungs are widened before they are taken out, as a fraction of the longer side: with half of it, opacities
at the rim of drawn films' lungs could still be told."""

_THREADS = 4
_LONGEST = 512  # features need no more, and the segmenter sees less
_BATCH = 16


@dataclass
class Films:
    """What was read of the films, by their place among the records.

    Attributes:
        headers: Headers of files.
        sizes: Height and width.
        pixels: From probe to the features of a film.
        failed: From image id to why a film could not be read.
        without_lungs: Number of films on which no lungs were found, so that none could be taken out.
    """

    headers: dict[int, Header] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    pixels: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    without_lungs: int = 0


@dataclass(frozen=True)
class _Opened:
    """A film after reading: what was taken from it at its own size, and a smaller copy."""

    size: tuple[int, int]
    found: dict[str, list[float]]
    small: Float[np.ndarray, "height width"]


def reads_itself(data: Collection) -> bool:
    """Whether the data set has a reader of its own: then its films need be no files, and have no header."""
    return data.prepared is None and type(data).read_film is not Collection.read_film


def look_at_films(
    data: Collection,
    records: Sequence[Record],
    chosen: Sequence[int],
    *,
    pixels: Sequence[int],
    segmenter: Segmenter,
    steps: Steps,
) -> Films:
    """Read headers and pixels; a film that cannot be read costs one entry.

    Args:
        data: Opens the films.
        records: All films of the data set.
        chosen: Places of those whose files are there.
        pixels: Places of those to be opened.
        segmenter: Draws the lungs to be taken out; None = they are not.
        steps: Shows progress.
    """
    films = Films()
    if not reads_itself(data):
        with steps("file headers") as progress:
            read = map_threads(lambda n: _header(records[n]), chosen, threads=_THREADS, progress=progress)
            for number, header in zip(chosen, read, strict=True):
                if isinstance(header, Header):
                    films.headers[number] = header
                    films.sizes[number] = header.size
                else:
                    films.failed[records[number].image_id] = str(header)
    if pixels:
        _look_at_pixels(
            films, data, records, [n for n in pixels if records[n].image_id not in films.failed], segmenter, steps
        )
    return films


def _look_at_pixels(
    films: Films, data: Collection, records: Sequence[Record], chosen: Sequence[int], segmenter: Segmenter, steps: Steps
) -> None:
    pipeline = None if segmenter is None else _pipeline(segmenter)
    waiting: list[tuple[int, Float[np.ndarray, "height width"]]] = []
    with steps("films") as progress:
        read = map_threads(lambda n: _open(data, records[n]), chosen, threads=_THREADS, progress=progress)
        for number, opened in zip(chosen, read, strict=True):
            if not isinstance(opened, _Opened):
                films.failed[records[number].image_id] = str(opened)
                continue
            films.sizes[number] = opened.size
            for name, values in opened.found.items():
                films.pixels.setdefault(name, {})[number] = values
            if pipeline is not None:
                waiting.append((number, opened.small))
            if len(waiting) == _BATCH:
                _without_lungs(films, waiting, pipeline)
        _without_lungs(films, waiting, pipeline)


def _header(record: Record) -> Header | CovidCXRError:
    try:
        return read_header(record.image_path)
    except CovidCXRError as error:
        return error


def _open(data: Collection, record: Record) -> _Opened | CovidCXRError:
    try:
        whole = data.read_film(record)
        film = whole[box_slices(record, (whole.shape[0], whole.shape[1]))]
    except CovidCXRError as error:
        return error
    scale = min(1.0, _LONGEST / max(film.shape))
    size = max(1, round(film.shape[1] * scale)), max(1, round(film.shape[0] * scale))
    small = film if scale == 1 else np.asarray(cv2.resize(film, size, interpolation=cv2.INTER_AREA))
    found = {
        "border": features.border_features(film),
        "corners": features.corner_features(film),
        "grey": features.grey_features(small),
        "thumbnail": features.thumbnail(small),
    }
    return _Opened((whole.shape[0], whole.shape[1]), found, small)


def _pipeline(segmenter: str | os.PathLike[str] | SegmentationModel) -> Pipeline:
    if isinstance(segmenter, SegmentationModel):
        return Pipeline(lung_segmenter=segmenter)
    pipeline = Pipeline.from_pretrained(segmenter)
    if pipeline.lung_segmenter is None:
        raise ConfigError(f"{segmenter} draws no lungs: name a pipeline with a lung segmenter, or use segmenter=None.")
    return Pipeline(lung_segmenter=pipeline.lung_segmenter, postprocess=pipeline.postprocess)


def _without_lungs(
    films: Films, waiting: list[tuple[int, Float[np.ndarray, "height width"]]], pipeline: Pipeline | None
) -> None:
    """Take the features of the films without their lungs; empties `waiting`."""
    if pipeline is None or not waiting:
        return
    table = films.pixels.setdefault("background", {})
    answers = pipeline.predict([film for _, film in waiting], batch_size=_BATCH)
    for (number, film), answer in zip(waiting, answers, strict=True):
        assert isinstance(answer, Prediction)
        lungs = next((answer.masks[name] for name in LUNGS_OF_REGION["background"] if name in answer.masks), None)
        if lungs is None or "lungs-not-found" in answer.reasons:
            films.without_lungs += 1
        else:
            table[number] = features.background_features(film, _widened(lungs))
    waiting.clear()


def _widened(lungs: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return each lung's convex hull, widened: dense opacity, which segmenters leave out, is taken out with it."""
    whole = np.zeros(lungs.shape, np.uint8)
    for outline in cv2.findContours(lungs.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        cv2.fillConvexPoly(whole, cv2.convexHull(outline), 1)
    return dilate(torch.from_numpy(whole)[None, None].float(), DILATION)[0, 0].numpy() > 0.5


def no_steps(name: str) -> AbstractContextManager[Progress]:
    """Show no progress."""
    return nullcontext(lambda done, total: None)
