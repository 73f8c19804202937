"""What an image tells beside its lungs, as numbers: table, file header, frame, corners, grey values, background."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from covidcxr.data.collection import Collection
from covidcxr.data.dataset import box_slices
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, CovidCXRError, ImageReadError
from covidcxr.io.dicom import is_dicom, read_dicom
from covidcxr.io.image import image_size
from covidcxr.models import SegmentationModel
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.transforms.geometry import LUNGS_OF_REGION, dilate
from covidcxr.utils.threads import Progress, map_threads

__all__ = [
    "Sheet",
    "background_features",
    "border_features",
    "categories",
    "corner_features",
    "grey_features",
    "one_hot",
    "projection_family",
    "shape_features",
    "thumbnail",
    "Header",
    "read_header",
    "Images",
    "Segmenter",
    "Steps",
    "look_at_images",
    "no_steps",
    "reads_itself",
]

THUMBNAIL = 24


"""Side of the thumbnails, in pixels: too coarse for a reader, enough for where, how bright and how framed."""


_CATEGORIES = 40  # the rest of a column's values counts as one


_CORNER = 8  # side of the picture of a corner


_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Sheet:
    """The features of one probe.

    Attributes:
        values: A row an image; NaN = not stated.
        known: The images that have features at all; the others' rows mean nothing.
    """

    values: Float[np.ndarray, "images columns"]
    known: Bool[np.ndarray, " images"]

    @property
    def tells(self) -> bool:
        """Whether anything differs from image to image."""
        rows = self.values[self.known]
        return bool(len(rows)) and bool((rows != rows[0]).any() and not np.isnan(rows).all())


def one_hot(values: Sequence[str | None]) -> Float[np.ndarray, "images columns"]:
    """Write a column of words as 0 and 1; what is not stated is a value of its own."""
    named = ["not stated" if value is None else value for value in values]
    kept = sorted(name for name, _ in Counter(named).most_common(_CATEGORIES))
    place = {name: number for number, name in enumerate(kept)}
    table = np.zeros((len(named), len(kept) + 1))
    table[np.arange(len(named)), [place.get(name, len(kept)) for name in named]] = 1
    return table[:, table.any(0)] if len(named) else table


def categories(values: Sequence[str | None]) -> int:
    """Count the values of a column that are stated."""
    return len({value for value in values if value is not None})


def projection_family(record: Record) -> str | None:
    """Return "AP" for "AP supine", "AP", ...; "PA" likewise; None where the view tells neither."""
    found = re.match(r"\s*(AP|PA)\b", record.view or "", re.IGNORECASE)
    return found[1].upper() if found else None


def shape_features(size: tuple[int, int]) -> list[float]:
    """Return height, width, width over height, and whether it is a square."""
    height, width = size
    return [float(height), float(width), width / height, float(height == width)]


def grey_features(image: Float[np.ndarray, "height width"]) -> list[float]:
    """Return brightness, contrast, percentiles, spread of grey values, share of black and white, and sharpness."""
    shares = np.histogram(image, bins=32, range=(0, 1))[0] / image.size
    entropy = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    edges = float(np.abs(cv2.Laplacian(image, cv2.CV_32F)).mean())
    extremes = [float((image <= 0.01).mean()), float((image >= 0.99).mean())]
    return [float(image.mean()), float(image.std()), *np.percentile(image, _PERCENTILES), entropy, *extremes, edges]


def border_features(image: Float[np.ndarray, "height width"]) -> list[float]:
    """Return for each side how wide its frame of one grey is, and how grey and how uneven the outermost 2 % are."""
    found: list[float] = []
    for side in (image, image[::-1], image.T, image.T[::-1]):
        half = side[: max(1, len(side) // 2)]
        plain = half.std(axis=1) < 0.01
        width = len(plain) if plain.all() else int(plain.argmin())
        strip = side[: max(1, len(side) // 50)]
        found += [width / len(side), float(strip.mean()), float(strip.std())]
    return found


def corner_features(image: Float[np.ndarray, "height width"]) -> list[float]:
    """Return a small picture of each corner, an eighth of the image's shorter side, and its darkest and brightest."""
    side = max(1, min(image.shape) // 8)
    found: list[float] = []
    for corner in (image[:side, :side], image[:side, -side:], image[-side:, :side], image[-side:, -side:]):
        found += [*_shrunk(corner, _CORNER).ravel().tolist(), float(corner.min()), float(corner.max())]
    return found


def thumbnail(image: Float[np.ndarray, "height width"]) -> list[float]:
    """Return the image, squeezed to a small square: its shape is a probe of its own."""
    return list(_shrunk(image, THUMBNAIL).ravel().tolist())


def background_features(
    image: Float[np.ndarray, "height width"], lungs: Bool[np.ndarray, "height width"]
) -> list[float]:
    """Return a thumbnail of the image without the lungs, the hole filled from around it, and statistics of the rest.

    The hole is filled because its outline would carry what the lungs look like.

    Args:
        image: In [0, 1].
        lungs: What is taken out, widened already.
    """
    kept = (~lungs).astype(np.float32)
    weight = _shrunk(kept, THUMBNAIL)
    grey = _shrunk(image * kept, THUMBNAIL)
    filled = np.divide(grey, weight, out=np.zeros_like(grey), where=weight > 0.25)
    hole = weight <= 0.25
    for sigma in (1.5, 3.0, 6.0, 12.0):  # from near to far, until nothing is open
        spread = cv2.GaussianBlur((~hole).astype(np.float32), (0, 0), sigma)
        around = cv2.GaussianBlur(np.where(hole, 0, filled).astype(np.float32), (0, 0), sigma)
        reached = hole & (spread > 0.02)
        filled[reached] = around[reached] / spread[reached]
        hole &= ~reached
    outside = image[~lungs] if (~lungs).any() else image.ravel()
    statistics = [float(outside.mean()), float(outside.std()), *np.percentile(outside, _PERCENTILES)]
    return [*filled.ravel().tolist(), *statistics]


def _shrunk(image: Float[np.ndarray, "height width"], side: int) -> Float[np.ndarray, "side side"]:
    kind = cv2.INTER_AREA if min(image.shape) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image, np.float32), (side, side), interpolation=kind))


@dataclass(frozen=True)
class Header:
    """An image's file without its pixels.

    Attributes:
        size: Height and width of the image.
        file_bytes: Size of the file.
        format: "PNG", "JPEG", "DICOM", ...
        mode: "L", "RGB", "I;16", ...; of DICOM photometric interpretation and bits.
        entries: What else it holds: names of entries such as "dpi" or "icc_profile"; of DICOM the device and the
            transfer syntax.
        quantization: Sum of a JPEG's quantisation tables: how strongly it was compressed; 0 = no JPEG.
    """

    size: tuple[int, int]
    file_bytes: int
    format: str
    mode: str
    entries: str
    quantization: float


def read_header(path: Path) -> Header:
    """Read an image's header; no pixel is decoded.

    Raises:
        ImageReadError: If it cannot be read.
    """
    size = image_size(path)
    try:
        with path.open("rb") as file:
            if is_dicom(file.read(256)):
                data = read_dicom(file, str(path), stop_before_pixels=True)
                mode = f"{data.get('PhotometricInterpretation', '')}/{data.get('BitsStored', '')}"
                syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", "")
                device = [str(data.get(name, "")) for name in ("Manufacturer", "ManufacturerModelName")]
                return Header(size, path.stat().st_size, "DICOM", mode, " ".join([*device, str(syntax)]), 0.0)
        from PIL import Image

        with Image.open(path) as picture:
            tables = getattr(picture, "quantization", None) or {}
            return Header(
                size,
                path.stat().st_size,
                str(picture.format),
                picture.mode,
                " ".join(sorted(map(str, picture.info))),
                float(sum(sum(table) for table in tables.values())),
            )
    except (OSError, ValueError, SyntaxError, AttributeError) as error:
        raise ImageReadError(f"The header of '{path}' cannot be read: {error}. Get the file again.") from error


Segmenter: TypeAlias = str | os.PathLike[str] | SegmentationModel | None


Steps: TypeAlias = Callable[[str], AbstractContextManager[Progress]]


"""From the name of a step to a progress bar for it, as `covidcxr.datasets.console.show_progress`."""


DILATION = 0.08


"""By how much lungs are widened before they are taken out, as a fraction of the longer side: with half of it, opacities
at the rim of drawn images' lungs could still be told."""


_THREADS = 4


_LONGEST = 512  # features need no more, and the segmenter sees less


_BATCH = 16


@dataclass
class Images:
    """What was read of the images, by their place among the records.

    Attributes:
        headers: Headers of files.
        sizes: Height and width.
        pixels: From probe to the features of an image.
        failed: From image id to why an image could not be read.
        without_lungs: Number of images on which no lungs were found, so that none could be taken out.
    """

    headers: dict[int, Header] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    pixels: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    without_lungs: int = 0


@dataclass(frozen=True)
class _Opened:
    """An image after reading: what was taken from it at its own size, and a smaller copy."""

    size: tuple[int, int]
    found: dict[str, list[float]]
    small: Float[np.ndarray, "height width"]


def reads_itself(data: Collection) -> bool:
    """Whether the data set has a reader of its own: then its images need be no files, and have no header."""
    return data.prepared is None and type(data).load_image is not Collection.load_image


def look_at_images(
    data: Collection,
    records: Sequence[Record],
    chosen: Sequence[int],
    *,
    pixels: Sequence[int],
    segmenter: Segmenter,
    steps: Steps,
) -> Images:
    """Read headers and pixels; an image that cannot be read costs one entry.

    Args:
        data: Opens the images.
        records: All images of the data set.
        chosen: Places of those whose files are there.
        pixels: Places of those to be opened.
        segmenter: Draws the lungs to be taken out; None = they are not.
        steps: Shows progress.
    """
    images = Images()
    if not reads_itself(data):
        with steps("file headers") as progress:
            read = map_threads(lambda n: _header(records[n]), chosen, threads=_THREADS, progress=progress)
            for number, header in zip(chosen, read, strict=True):
                if isinstance(header, Header):
                    images.headers[number] = header
                    images.sizes[number] = header.size
                else:
                    images.failed[records[number].image_id] = str(header)
    if pixels:
        _look_at_pixels(
            images, data, records, [n for n in pixels if records[n].image_id not in images.failed], segmenter, steps
        )
    return images


def _look_at_pixels(
    images: Images,
    data: Collection,
    records: Sequence[Record],
    chosen: Sequence[int],
    segmenter: Segmenter,
    steps: Steps,
) -> None:
    pipeline = None if segmenter is None else _pipeline(segmenter)
    waiting: list[tuple[int, Float[np.ndarray, "height width"]]] = []
    with steps("films") as progress:
        read = map_threads(lambda n: _open(data, records[n]), chosen, threads=_THREADS, progress=progress)
        for number, opened in zip(chosen, read, strict=True):
            if not isinstance(opened, _Opened):
                images.failed[records[number].image_id] = str(opened)
                continue
            images.sizes[number] = opened.size
            for name, values in opened.found.items():
                images.pixels.setdefault(name, {})[number] = values
            if pipeline is not None:
                waiting.append((number, opened.small))
            if len(waiting) == _BATCH:
                _without_lungs(images, waiting, pipeline)
        _without_lungs(images, waiting, pipeline)


def _header(record: Record) -> Header | CovidCXRError:
    try:
        return read_header(record.image_path)
    except CovidCXRError as error:
        return error


def _open(data: Collection, record: Record) -> _Opened | CovidCXRError:
    try:
        whole = data.load_image(record)
        image = whole[box_slices(record, (whole.shape[0], whole.shape[1]))]
    except CovidCXRError as error:
        return error
    scale = min(1.0, _LONGEST / max(image.shape))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = image if scale == 1 else np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    found = {
        "border": border_features(image),
        "corners": corner_features(image),
        "grey": grey_features(small),
        "thumbnail": thumbnail(small),
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
    images: Images, waiting: list[tuple[int, Float[np.ndarray, "height width"]]], pipeline: Pipeline | None
) -> None:
    """Take the features of the images without their lungs; empties `waiting`."""
    if pipeline is None or not waiting:
        return
    table = images.pixels.setdefault("background", {})
    answers = pipeline.predict([image for _, image in waiting], batch_size=_BATCH)
    for (number, image), answer in zip(waiting, answers, strict=True):
        assert isinstance(answer, Prediction)
        lungs = next((answer.masks[name] for name in LUNGS_OF_REGION["background"] if name in answer.masks), None)
        if lungs is None or "lungs-not-found" in answer.reasons:
            images.without_lungs += 1
        else:
            table[number] = background_features(image, _widened(lungs))
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
