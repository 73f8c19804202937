"""What an image shows beside its lungs, as numbers: columns, header, shape, border, grey values, background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ImageReadError
from covidcxr.io.dicom import is_dicom, read_dicom
from covidcxr.io.image import image_size

__all__ = [
    "FeatureTable",
    "Header",
    "background_features",
    "border_features",
    "corner_features",
    "grey_features",
    "mark_features",
    "mark_tiles",
    "one_hot",
    "read_header",
    "shape_features",
    "texture_features",
    "texture_tiles",
    "thumbnail",
]

THUMBNAIL = 24
"""Side of the thumbnails in pixels: too coarse for a reader, enough for position, brightness and frame."""

_RIM = 3  # tiles of the strips at the edges, where letters are: an eighth of a side
_SPOT = 0.3  # how far a bright spot stands out; bones do so by 0.1
_LEAST_TILES = 8  # from fewer tiles, noise cannot be told

_CATEGORIES = 40  # further values of a column count as one
_CORNER = 8  # side of the thumbnail of a corner
_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class FeatureTable:
    """The features of one probe.

    Attributes:
        values: A row for each image; NaN = not stated.
        known: The images that have features; the rows of the others have no meaning.

    Example:
        ```python
        from covidcxr.evaluation.shortcuts.features import FeatureTable

        table = FeatureTable.from_rows(3, {0: [1.0], 2: [2.0]})
        assert table.known.tolist() == [True, False, True]
        assert table.varies
        ```
    """

    values: Float[np.ndarray, "images columns"]
    known: Bool[np.ndarray, " images"]

    @classmethod
    def from_rows(cls, count: int, rows: Mapping[int, Sequence[float] | Float[np.ndarray, " values"]]) -> FeatureTable:
        """Build a table from the features of some of the images.

        Args:
            count: Number of all images.
            rows: From the place of an image among all to its features.

        Returns:
            The table.
        """
        first = np.asarray(next(iter(rows.values()), [np.nan]))
        values = np.full((count, len(first)), np.nan, np.result_type(first, np.float32))
        known = np.zeros(count, bool)
        for number, row in rows.items():
            values[number], known[number] = row, True
        return cls(values, known)

    @property
    def varies(self) -> bool:
        """Whether any feature differs between images."""
        rows = self.values[self.known]
        return bool(len(rows)) and bool((rows != rows[0]).any() and not np.isnan(rows).all())


def one_hot(values: Sequence[str | None]) -> Float[np.ndarray, "images columns"]:
    """Encode a column of words as 0 and 1.

    Args:
        values: The word of each image; None = not stated, which is a category of its own.

    Returns:
        A column for each category that occurs; rare categories share one.
    """
    words = ["not stated" if value is None else value for value in values]
    kept = sorted(name for name, _ in Counter(words).most_common(_CATEGORIES))
    place = {name: number for number, name in enumerate(kept)}
    table = np.zeros((len(words), len(kept) + 1))
    table[np.arange(len(words)), [place.get(name, len(kept)) for name in words]] = 1
    return table[:, table.any(0)] if len(words) else table


@dataclass(frozen=True)
class Header:
    """An image file without its pixels.

    Attributes:
        size: Height and width of the image in pixels.
        file_bytes: Size of the file in bytes.
        format: "PNG", "JPEG", "DICOM", ...
        mode: "L", "RGB", "I;16", ...; of DICOM photometric interpretation and bits.
        entries: Names of other entries ("dpi", "icc_profile"); of DICOM the device and the transfer syntax.
        quantization: Sum of a JPEG's quantisation tables: how strongly it was compressed; 0 = not a JPEG.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.evaluation.shortcuts.features import read_header

        header = read_header(Path("image.png"))
        assert (header.format, header.mode, header.quantization) == ("PNG", "L", 0)
        ```
    """

    size: tuple[int, int]
    file_bytes: int
    format: str
    mode: str
    entries: str
    quantization: float


def read_header(path: Path) -> Header:
    """Read the header of an image file; no pixel is decoded.

    Args:
        path: The file.

    Returns:
        Its header.

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


def shape_features(size: tuple[int, int]) -> list[float]:
    """Return the features of an image's shape.

    Args:
        size: Height and width in pixels.

    Returns:
        Height, width, width over height, and 1 for a square, else 0.
    """
    height, width = size
    return [float(height), float(width), width / height, float(height == width)]


def grey_features(image: Float[np.ndarray, "height width"]) -> list[float]:
    """Return statistics of an image's grey values.

    Args:
        image: In [0, 1].

    Returns:
        Mean, standard deviation, percentiles, entropy, the shares of black and of white pixels, and sharpness.
    """
    greys = np.sort(image, axis=None)  # sorted once, all shares and percentiles are cheap
    bounds = np.searchsorted(greys, np.linspace(0, 1, 33)[1:-1].astype(greys.dtype))
    shares = np.diff(bounds, prepend=0, append=len(greys)) / len(greys)
    entropy = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    edges = float(np.abs(cv2.Laplacian(image, cv2.CV_32F)).mean())
    extremes = [float((image <= 0.01).mean()), float((image >= 0.99).mean())]
    percentiles = np.interp(np.array(_PERCENTILES) / 100 * (len(greys) - 1), np.arange(len(greys)), greys)
    return [float(image.mean()), float(image.std()), *percentiles, entropy, *extremes, edges]


def border_features(image: Float[np.ndarray, "height width"]) -> list[float]:
    """Return features of the four sides of an image.

    Args:
        image: In [0, 1].

    Returns:
        For top, bottom, left and right: the width of a frame of one grey as a fraction of the side's length, and mean
        and standard deviation of the outermost 2 %.
    """
    features: list[float] = []
    for side in (image, image[::-1], image.T, image.T[::-1]):
        half = side[: max(1, len(side) // 2)]
        plain = half.std(axis=1) < 0.01
        width = len(plain) if plain.all() else int(plain.argmin())
        strip = side[: max(1, len(side) // 50)]
        features += [width / len(side), float(strip.mean()), float(strip.std())]
    return features


def corner_features(image: Float[np.ndarray, "height width"]) -> list[float]:
    """Return features of the four corners of an image, each an eighth of the shorter side wide.

    Args:
        image: In [0, 1].

    Returns:
        For each corner a thumbnail of 8 x 8 pixels, its minimum and its maximum.
    """
    side = max(1, min(image.shape) // 8)
    features: list[float] = []
    for corner in (image[:side, :side], image[:side, -side:], image[-side:, :side], image[-side:, -side:]):
        features += [*_shrink(corner, _CORNER).ravel().tolist(), float(corner.min()), float(corner.max())]
    return features


def thumbnail(image: Float[np.ndarray, "height width"]) -> list[float]:
    """Return an image stretched to a small square: its shape is a probe of its own.

    Args:
        image: In [0, 1].

    Returns:
        The pixels of the square of side `THUMBNAIL`, row by row.
    """
    return list(_shrink(image, THUMBNAIL).ravel().tolist())


def background_features(
    image: Float[np.ndarray, "height width"], lungs: Bool[np.ndarray, "height width"]
) -> list[float]:
    """Return a thumbnail of an image without its lungs, and statistics of the rest.

    The hole is filled from its surroundings, because its outline would show the shape of the lungs.

    Args:
        image: In [0, 1].
        lungs: What is removed, already widened.

    Returns:
        The pixels of the thumbnail, then mean, standard deviation and percentiles of what is outside the lungs.
    """
    kept = (~lungs).astype(np.float32)
    weight = _shrink(kept, THUMBNAIL)
    grey = _shrink(image * kept, THUMBNAIL)
    filled = np.divide(grey, weight, out=np.zeros_like(grey), where=weight > 0.25)
    hole = weight <= 0.25
    for sigma in (1.5, 3.0, 6.0, 12.0):  # from near to far, until no hole is left
        spread = cv2.GaussianBlur((~hole).astype(np.float32), (0, 0), sigma)
        around = cv2.GaussianBlur(np.where(hole, 0, filled).astype(np.float32), (0, 0), sigma)
        reached = hole & (spread > 0.02)
        filled[reached] = around[reached] / spread[reached]
        hole &= ~reached
    outside = image[~lungs] if (~lungs).any() else image.ravel()
    statistics = [float(outside.mean()), float(outside.std()), *np.percentile(outside, _PERCENTILES)]
    return [*filled.ravel().tolist(), *statistics]


def texture_tiles(image: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "rows columns values"]:
    """Measure noise, sharpness and blocks of a picture in 24 x 24 tiles, at its full size.

    Args:
        image: In [0, 1].

    Returns:
        For each tile the mean absolute detail of four frequency bands (about 1, 2, 4 and 8 pixels), the share of
        pixels that equal their neighbour, and the mean steps to the next column and row, by the place of the step in
        blocks of 8 pixels, as JPEG has them.
    """
    image = np.ascontiguousarray(image, np.float32)
    blurred = [image, *(np.asarray(cv2.GaussianBlur(image, (0, 0), sigma)) for sigma in (0.8, 1.6, 3.2, 6.4))]
    maps = [np.abs(fine - coarse) for fine, coarse in pairwise(blurred)]
    across, down = np.abs(np.diff(image, axis=1)), np.abs(np.diff(image, axis=0))
    maps.append((across < 0.5 / 255).astype(np.float32))
    maps += [across[:, place::8] for place in range(8)] + [down[place::8] for place in range(8)]
    empty = np.zeros((THUMBNAIL, THUMBNAIL), np.float32)  # of an image narrower than a block
    return np.stack([_shrink(values, THUMBNAIL) if values.size else empty for values in maps], axis=-1)


def texture_features(
    tiles: Float[np.ndarray, "rows columns values"], lungs: Bool[np.ndarray, "height width"]
) -> list[float]:
    """Return noise, sharpness and blocks of what is outside the lungs, without the rim of the image.

    Args:
        tiles: From `texture_tiles`.
        lungs: What does not count, already widened.

    Returns:
        For each band three percentiles of its strength over the tiles, on a logarithmic scale; the ratios of
        neighbouring bands; the share of equal neighbours; and how far the steps between blocks exceed the others.
    """
    cover = _shrink(lungs.astype(np.float32), THUMBNAIL)
    cover[[0, -1]], cover[:, [0, -1]] = 2, 2  # the rim
    outside = cover <= max(0.02, float(np.sort(cover, axis=None)[_LEAST_TILES]))
    kept = tiles[outside]
    bands = np.log(np.percentile(kept[:, :4], (10, 50, 90), axis=0) + 1e-4)
    features = [*bands.ravel(), *np.diff(bands[1]), kept[:, 4].mean(), np.percentile(kept[:, 4], 90)]
    for steps in (kept[:, 5:13].mean(0), kept[:, 13:].mean(0)):
        others = np.log(np.delete(steps, 7).mean() + 1e-4)
        features += [np.log(steps[7] + 1e-4) - others, np.log(steps.max() + 1e-4) - np.log(steps.mean() + 1e-4)]
    return [float(value) for value in features]


def mark_tiles(image: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "rows columns 4"]:
    """Measure small bright and dark details of an image, in 24 x 24 tiles.

    Args:
        image: In [0, 1].

    Returns:
        For each tile how far its brightest and its darkest detail, up to a sixteenth of the image wide, stand out; how
        many bright spots lie in it, such as letters; and their share of its pixels.
    """
    width = max(3, min(image.shape) // 16)
    kernel = np.ones((width, width), np.uint8)
    image = np.ascontiguousarray(image, np.float32)
    bright, dark = (cv2.morphologyEx(image, kind, kernel) for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT))
    rows, columns = (np.arange(THUMBNAIL) * side // THUMBNAIL for side in image.shape)
    most = [np.maximum.reduceat(np.maximum.reduceat(detail, rows, 0), columns, 1) for detail in (bright, dark)]
    spots = bright > _SPOT
    centres = cv2.connectedComponentsWithStats(spots.astype(np.uint8))[3][1:]
    counts = np.zeros((THUMBNAIL, THUMBNAIL))
    places = (centres[:, ::-1] / image.shape * THUMBNAIL).astype(int)
    np.add.at(counts, (places[:, 0], places[:, 1]), 1)
    return np.stack([*most, counts, _shrink(spots.astype(np.float32), THUMBNAIL)], axis=-1)


def mark_features(
    tiles: Float[np.ndarray, "rows columns 4"],
    lungs: Bool[np.ndarray, "height width"],
    near: Bool[np.ndarray, "height width"] | None = None,
) -> list[float]:
    """Return how far letters, arrows and wires stand out, wherever they are at an edge.

    Args:
        tiles: From `mark_tiles`.
        lungs: What does not count in the strips at the edges, hardly widened: much widened they would cover most of
            these strips, and the letters there.
        near: What does not count elsewhere, widened; None = the same.

    Returns:
        For the strips at top, bottom, left and right, each an eighth of a side wide, and for the rest outside the
        lungs: maximum and mean over the tiles, of bright and of dark details, and the number and size of bright spots.
    """
    strips = _shrink(lungs.astype(np.float32), THUMBNAIL) <= 0.02
    rest = strips if near is None else _shrink(near.astype(np.float32), THUMBNAIL) <= 0.02
    features: list[float] = []
    edges = (np.s_[:_RIM], np.s_[-_RIM:], np.s_[:, :_RIM], np.s_[:, -_RIM:], np.s_[_RIM:-_RIM, _RIM:-_RIM])
    for edge in edges:
        outside = rest if edge is edges[-1] else strips
        kept = tiles[edge][outside[edge]]
        kept = kept if len(kept) else np.zeros((1, tiles.shape[-1]))
        features += [*kept[:, :2].max(0).tolist(), *kept[:, :2].mean(0).tolist(), *kept[:, 2:].sum(0).tolist()]
    return features


def _shrink(image: Float[np.ndarray, "height width"], side: int) -> Float[np.ndarray, "side side"]:
    interpolation = cv2.INTER_AREA if min(image.shape) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image, np.float32), (side, side), interpolation=interpolation))
