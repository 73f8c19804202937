"""What the probes read of each image: its file header, its pixels, and its pixels without the lungs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32

from covidcxr.data.collection import Collection, has_own_reader
from covidcxr.data.curation.image_scores import clipped_share, measure_quality
from covidcxr.data.dataset import box_slices, check_mask_size
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.evaluation.shortcuts.features import (
    FeatureTable,
    Header,
    background_features,
    border_features,
    corner_features,
    grey_features,
    mark_features,
    mark_tiles,
    one_hot,
    read_header,
    shape_features,
    texture_features,
    texture_tiles,
    thumbnail,
)
from covidcxr.io.image import read_mask
from covidcxr.models import SegmentationModel
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.transforms.pyramid import fit_mask
from covidcxr.types import LUNGS_OF_REGION
from covidcxr.utils.threads import Progress, Steps, map_threads, no_steps, single_threaded

__all__ = [
    "ImageFeatures",
    "Segmenter",
    "Steps",
    "drawn_lungs",
    "make_feature_tables",
    "no_steps",
    "read_images",
]

Segmenter: TypeAlias = str | os.PathLike[str] | SegmentationModel | None

DILATION = 0.08
"""By how much lungs are widened before they are removed, as a fraction of the longer side: with half of it, probes
could still recognise opacities at the rim of the lungs of drawn images."""

DILATION_AT_EDGES = 0.02
"""That for letters at the edges, where opacities hardly are: widened by 0.08, lungs cover 9 of 10 in the top strip."""

_WITHOUT_LUNGS = ("marks", "texture", "background")
_PIXELS = ("border", "corners", *_WITHOUT_LUNGS, "grey", "thumbnail")
_THREADS, _BATCH = 4, 4
_LONGEST = 512  # features need no more, and the segmenter sees less


@dataclass
class ImageFeatures:
    """What was read of the images, by their place among the records.

    Attributes:
        headers: Headers of files.
        sizes: Height and width in pixels.
        pixels: From probe to the features of each image.
        quality: Scores of each image's quality; see `covidcxr.data.curation.image_scores`.
        failed: From image id to why an image could not be read.
        without_lungs: Number of images on which no lungs were found, so that none could be removed.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts.images import ImageFeatures

        assert ImageFeatures(sizes={0: (64, 64)}).failed == {}
        ```
    """

    headers: dict[int, Header] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    pixels: dict[str, dict[int, Float[np.ndarray, " values"]]] = field(default_factory=dict)
    quality: dict[int, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    without_lungs: int = 0
    _rows: dict[str, Float32[np.ndarray, "images values"]] = field(default_factory=dict, repr=False)

    def _put(self, name: str, number: int, values: Sequence[float], most: int) -> None:
        """Keep a probe's features of an image in a row of one array: many small arrays would scatter the memory."""
        table = self.pixels.setdefault(name, {})
        if name not in self._rows:
            self._rows[name] = np.empty((most, len(values)), np.float32)  # as the probes take them
        table[number] = self._rows[name][len(table)]
        table[number][:] = values

    def add(self, other: ImageFeatures, first: int) -> None:
        """Add what was read of further images.

        Args:
            other: What was read of them.
            first: The place of the first of them among all.
        """
        self.sizes |= {first + number: size for number, size in other.sizes.items()}
        self.quality |= {first + number: scores for number, scores in other.quality.items()}
        for name, table in other.pixels.items():
            self.pixels.setdefault(name, {}).update({first + number: values for number, values in table.items()})


@dataclass(frozen=True)
class _OpenedImage:
    """An image after reading: its features at its own size, what is measured in tiles, and a smaller copy."""

    size: tuple[int, int]
    features: dict[str, list[float]]
    quality: dict[str, float]
    texture: Float[np.ndarray, "rows columns values"]
    marks: Float[np.ndarray, "rows columns 4"]
    small: Float[np.ndarray, "height width"]
    lungs: Bool[np.ndarray, "height width"] | None = None


def drawn_lungs(records: Iterable[Record]) -> str | None:
    """Return the mask class that draws the lungs of all of the images.

    Args:
        records: The images.

    Returns:
        The class; None where one image has none: lungs drawn by different hands would tell the images apart.
    """
    records = list(records)
    return next(
        (
            name
            for name in LUNGS_OF_REGION["background"]
            if all(name in record.mask_paths and record.box is None for record in records)
        ),
        None,
    )


def read_images(
    data: Collection,
    records: Sequence[Record],
    present: Sequence[int],
    pixels: Sequence[int],
    segmenter: Segmenter,
    lungs: str | None,
    steps: Steps,
) -> ImageFeatures:
    """Read headers and pixels; images that cannot be read are listed in `failed`.

    Args:
        data: Opens the images.
        records: All images of the data set.
        present: Places of those that are on the disk.
        pixels: Places of those to be opened.
        segmenter: Predicts the lungs to be removed; None = they are not removed.
        lungs: The mask class that takes the place of the segmenter's lungs, from `drawn_lungs`; None = there is none.
        steps: Shows progress.

    Returns:
        What was read.

    Raises:
        ConfigError: If the segmenter predicts no lungs.
        PretrainedError: If the segmenter cannot be loaded.
    """
    images = ImageFeatures()
    if not has_own_reader(data):
        with steps("file headers") as progress:
            headers = map_threads(lambda n: _header(records[n]), present, threads=_THREADS, progress=progress)
            for number, header in zip(present, headers, strict=True):
                if isinstance(header, Header):
                    images.headers[number], images.sizes[number] = header, header.size
                else:
                    images.failed[records[number].image_id] = str(header)
    readable = [number for number in pixels if records[number].image_id not in images.failed]
    if readable:
        with steps("images") as progress, single_threaded():  # the images keep all cores busy
            _read_pixels(images, data, records, readable, segmenter, lungs, progress)
    return images


def _read_pixels(
    images: ImageFeatures,
    data: Collection,
    records: Sequence[Record],
    numbers: Sequence[int],
    segmenter: Segmenter,
    lungs: str | None,
    progress: Progress,
) -> None:
    lungs = None if segmenter is None else lungs
    pipeline = None if segmenter is None or lungs is not None else _lung_pipeline(segmenter)
    batch: list[tuple[int, _OpenedImage]] = []
    opened_images = map_threads(lambda n: _open(data, records[n], lungs), numbers, threads=_THREADS, progress=progress)
    for number, opened in zip(numbers, opened_images, strict=True):
        if not isinstance(opened, _OpenedImage):
            images.failed[records[number].image_id] = str(opened)
            continue
        images.sizes[number], images.quality[number] = opened.size, opened.quality
        for name, values in opened.features.items():
            images._put(name, number, values, len(numbers))
        if lungs is not None:
            _read_background(images, number, opened, opened.lungs, len(numbers))
        elif pipeline is not None:
            batch.append((number, opened))
        if pipeline is not None and len(batch) == _BATCH:
            _segment(images, batch, pipeline, len(numbers))
            batch = []
    if pipeline is not None and batch:
        _segment(images, batch, pipeline, len(numbers))


def _header(record: Record) -> Header | CovidCXRError:
    try:
        return read_header(record.image_path)
    except CovidCXRError as error:
        return error


def _open(data: Collection, record: Record, lungs: str | None) -> _OpenedImage | CovidCXRError:
    try:
        whole = data.load_image(record)
        image = whole[box_slices(record, (whole.shape[0], whole.shape[1]))]
    except CovidCXRError as error:
        return error
    opened = _describe(image, (whole.shape[0], whole.shape[1]))
    if lungs is None:
        return opened
    try:
        mask = read_mask(record.mask_paths[lungs])
        check_mask_size(record, lungs, (mask.shape[0], mask.shape[1]), opened.size)
    except CovidCXRError:  # `covidcxr datasets check` tells; here its lungs are not known
        return opened
    return replace(opened, lungs=fit_mask(mask, (opened.small.shape[0], opened.small.shape[1]), "stretch"))


def _describe(image: Float[np.ndarray, "height width"], size: tuple[int, int]) -> _OpenedImage:
    """Return what is measured without knowing where the lungs are; `size` is that of the whole picture."""
    scale = min(1.0, _LONGEST / max(image.shape))
    reduced = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = image if scale == 1 else np.asarray(cv2.resize(image, reduced, interpolation=cv2.INTER_AREA))
    features = {
        "border": border_features(image),
        "corners": corner_features(image),
        "grey": grey_features(small),
        "thumbnail": thumbnail(small),
    }
    return _OpenedImage(size, features, measure_quality(image), texture_tiles(image), mark_tiles(small), small)


def _lung_pipeline(segmenter: str | os.PathLike[str] | SegmentationModel) -> Pipeline:
    if isinstance(segmenter, SegmentationModel):
        return Pipeline(lung_segmenter=segmenter)
    pipeline = Pipeline.from_pretrained(segmenter)
    if pipeline.lung_segmenter is None:
        raise ConfigError(f"{segmenter} has no lung segmenter: name a pipeline that has one, or use segmenter=None.")
    return Pipeline(lung_segmenter=pipeline.lung_segmenter, postprocess=pipeline.postprocess)


def _segment(images: ImageFeatures, batch: Sequence[tuple[int, _OpenedImage]], pipeline: Pipeline, most: int) -> None:
    """Predict the lungs of a batch of images, and add the features of these without them."""
    predictions = pipeline.predict([opened.small for _, opened in batch], batch_size=_BATCH)
    for (number, opened), prediction in zip(batch, predictions, strict=True):
        assert isinstance(prediction, Prediction)
        masks = prediction.masks
        lungs = next((masks[name] for name in LUNGS_OF_REGION["background"] if name in masks), None)
        _read_background(images, number, opened, None if "lungs-not-found" in prediction.reasons else lungs, most)


def _read_background(
    images: ImageFeatures,
    number: int,
    opened: _OpenedImage,
    lungs: Bool[np.ndarray, "height width"] | None,
    most: int,
) -> None:
    """Add the features of an image without its lungs."""
    if lungs is None or not lungs.any():
        images.without_lungs += 1
        return
    images.quality[number]["lungs_at_border"] = clipped_share(lungs)
    for name, values in zip(_WITHOUT_LUNGS, _without_lungs(opened, lungs), strict=True):
        images._put(name, number, values, most)


def _without_lungs(opened: _OpenedImage, lungs: Bool[np.ndarray, "height width"]) -> tuple[list[float], ...]:
    """Return the features of each of `_WITHOUT_LUNGS`."""
    narrow, widened = _widen(lungs, DILATION_AT_EDGES, DILATION)
    return (
        mark_features(opened.marks, narrow, widened),
        texture_features(opened.texture, widened),
        background_features(opened.small, widened),
    )


def _widen(lungs: Bool[np.ndarray, "height width"], *dilations: float) -> list[Bool[np.ndarray, "height width"]]:
    """Return each lung's convex hull, widened: it removes dense opacity too, which segmenters leave out."""
    whole = np.zeros(lungs.shape, np.uint8)
    for outline in cv2.findContours(lungs.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        cv2.fillConvexPoly(whole, cv2.convexHull(outline), 1)
    sides = [2 * round(dilation * max(lungs.shape)) + 1 for dilation in dilations]
    return [np.asarray(cv2.dilate(whole, np.ones((side, side), np.uint8))) > 0 for side in sides]


def make_feature_tables(
    data: Collection, records: Sequence[Record], images: ImageFeatures, *, pixels: bool, segmenter: bool
) -> tuple[dict[str, FeatureTable], dict[str, str]]:
    """Return the features of each probe, and why the other probes have none.

    Args:
        data: The data set.
        records: Its images.
        images: What was read of them.
        pixels: Whether images were to be opened.
        segmenter: Whether lungs were to be removed.

    Returns:
        The tables by probe, and the reasons by probe.
    """
    count = len(records)
    tables = {**_column_tables(records), **_header_table(data, count, images)}
    tables["shape"] = FeatureTable.from_rows(count, {n: shape_features(size) for n, size in images.sizes.items()})
    tables |= {name: FeatureTable.from_rows(count, images.pixels.get(name, {})) for name in _PIXELS}

    def reason(name: str) -> str:
        if name in _PIXELS and not pixels:
            return "images were not to be opened"
        if name in _WITHOUT_LUNGS and not segmenter:
            return "no segmenter was given"
        if name == "header" and data.prepared is not None:
            return "a compact copy"
        if name == "header" and has_own_reader(data):
            return "the images are not in their own files"
        if name in (*_PIXELS, "header", "shape") and not images.sizes:
            return "no image is on the disk"
        return (
            "fewer than two of them are stated" if name == "facts" else "it is not stated, or the same for all images"
        )

    kept = {name: table for name, table in tables.items() if table.varies}
    return kept, {name: reason(name) for name in dict.fromkeys([*tables, "facts", "header"]) if name not in kept}


def _column_tables(records: Sequence[Record]) -> dict[str, FeatureTable]:
    everywhere = np.ones(len(records), bool)
    columns = {name: one_hot([getattr(record, name) for record in records]) for name in ("source", "view", "sex")}
    columns["age"] = np.array([[np.nan if record.age is None else record.age] for record in records], float)
    if any(record.age_group for record in records):
        columns["age"] = np.hstack([columns["age"], one_hot([record.age_group for record in records])])
    tables = {name: FeatureTable(values, everywhere) for name, values in columns.items()}
    facts = [tables[name].values for name in ("view", "sex", "age") if tables[name].varies]
    if len(facts) > 1:
        tables["facts"] = FeatureTable(np.concatenate(facts, axis=1), everywhere)
    return tables


def _header_table(data: Collection, count: int, images: ImageFeatures) -> dict[str, FeatureTable]:
    if data.prepared is not None or not images.headers:
        return {}
    headers = list(images.headers.values())
    words = [one_hot([getattr(header, name) for header in headers]) for name in ("format", "mode", "entries")]
    numbers = np.array([[header.file_bytes, header.quantization] for header in headers], float)
    rows = zip(images.headers, np.concatenate([numbers, *words], axis=1), strict=True)
    return {"header": FeatureTable.from_rows(count, dict(rows))}
