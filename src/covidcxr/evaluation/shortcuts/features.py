"""What a film tells beside its lungs, as numbers: table, file header, frame, corners, grey values, background."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float

from covidcxr.data.records import Record
from covidcxr.errors import ImageReadError
from covidcxr.io.dicom import is_dicom, read_dicom
from covidcxr.io.image import image_size

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
        values: A row a film; NaN = not stated.
        known: The films that have features at all; the others' rows mean nothing.
    """

    values: Float[np.ndarray, "films columns"]
    known: Bool[np.ndarray, " films"]

    @property
    def tells(self) -> bool:
        """Whether anything differs from film to film."""
        rows = self.values[self.known]
        return bool(len(rows)) and bool((rows != rows[0]).any() and not np.isnan(rows).all())


def one_hot(values: Sequence[str | None]) -> Float[np.ndarray, "films columns"]:
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


def grey_features(film: Float[np.ndarray, "height width"]) -> list[float]:
    """Return brightness, contrast, percentiles, spread of grey values, share of black and white, and sharpness."""
    shares = np.histogram(film, bins=32, range=(0, 1))[0] / film.size
    entropy = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    edges = float(np.abs(cv2.Laplacian(film, cv2.CV_32F)).mean())
    extremes = [float((film <= 0.01).mean()), float((film >= 0.99).mean())]
    return [float(film.mean()), float(film.std()), *np.percentile(film, _PERCENTILES), entropy, *extremes, edges]


def border_features(film: Float[np.ndarray, "height width"]) -> list[float]:
    """Return for each side how wide its frame of one grey is, and how grey and how uneven the outermost 2 % are."""
    found: list[float] = []
    for side in (film, film[::-1], film.T, film.T[::-1]):
        half = side[: max(1, len(side) // 2)]
        plain = half.std(axis=1) < 0.01
        width = len(plain) if plain.all() else int(plain.argmin())
        strip = side[: max(1, len(side) // 50)]
        found += [width / len(side), float(strip.mean()), float(strip.std())]
    return found


def corner_features(film: Float[np.ndarray, "height width"]) -> list[float]:
    """Return a small picture of each corner, an eighth of the film's shorter side, and its darkest and brightest."""
    side = max(1, min(film.shape) // 8)
    found: list[float] = []
    for corner in (film[:side, :side], film[:side, -side:], film[-side:, :side], film[-side:, -side:]):
        found += [*_shrunk(corner, _CORNER).ravel().tolist(), float(corner.min()), float(corner.max())]
    return found


def thumbnail(film: Float[np.ndarray, "height width"]) -> list[float]:
    """Return the film, squeezed to a small square: its shape is a probe of its own."""
    return list(_shrunk(film, THUMBNAIL).ravel().tolist())


def background_features(
    film: Float[np.ndarray, "height width"], lungs: Bool[np.ndarray, "height width"]
) -> list[float]:
    """Return a thumbnail of the film without the lungs, the hole filled from around it, and statistics of the rest.

    The hole is filled because its outline would carry what the lungs look like.

    Args:
        film: In [0, 1].
        lungs: What is taken out, widened already.
    """
    kept = (~lungs).astype(np.float32)
    weight = _shrunk(kept, THUMBNAIL)
    grey = _shrunk(film * kept, THUMBNAIL)
    filled = np.divide(grey, weight, out=np.zeros_like(grey), where=weight > 0.25)
    hole = weight <= 0.25
    for sigma in (1.5, 3.0, 6.0, 12.0):  # from near to far, until nothing is open
        spread = cv2.GaussianBlur((~hole).astype(np.float32), (0, 0), sigma)
        around = cv2.GaussianBlur(np.where(hole, 0, filled).astype(np.float32), (0, 0), sigma)
        reached = hole & (spread > 0.02)
        filled[reached] = around[reached] / spread[reached]
        hole &= ~reached
    outside = film[~lungs] if (~lungs).any() else film.ravel()
    statistics = [float(outside.mean()), float(outside.std()), *np.percentile(outside, _PERCENTILES)]
    return [*filled.ravel().tolist(), *statistics]


def _shrunk(film: Float[np.ndarray, "height width"], side: int) -> Float[np.ndarray, "side side"]:
    kind = cv2.INTER_AREA if min(film.shape) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(film, np.float32), (side, side), interpolation=kind))


@dataclass(frozen=True)
class Header:
    """A film's file without its pixels.

    Attributes:
        size: Height and width of the film.
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
    """Read a film's header; no pixel is decoded.

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
