"""What an image shows beside its lungs, as numbers: columns, shape, border, corners, grey values, background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

__all__ = [
    "FeatureTable",
    "background_features",
    "border_features",
    "corner_features",
    "grey_features",
    "one_hot",
    "shape_features",
    "thumbnail",
]

THUMBNAIL = 24
"""Side of the thumbnails in pixels: too coarse for a reader, enough for position, brightness and frame."""

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
    def from_rows(cls, count: int, rows: Mapping[int, Sequence[float]]) -> FeatureTable:
        """Build a table from the features of some of the images.

        Args:
            count: Number of all images.
            rows: From the place of an image among all to its features.

        Returns:
            The table.
        """
        width = len(next(iter(rows.values()))) if rows else 1
        values = np.full((count, width), np.nan)
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
    shares = np.histogram(image, bins=32, range=(0, 1))[0] / image.size
    entropy = -float((shares[shares > 0] * np.log(shares[shares > 0])).sum())
    edges = float(np.abs(cv2.Laplacian(image, cv2.CV_32F)).mean())
    extremes = [float((image <= 0.01).mean()), float((image >= 0.99).mean())]
    return [float(image.mean()), float(image.std()), *np.percentile(image, _PERCENTILES), entropy, *extremes, edges]


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


def _shrink(image: Float[np.ndarray, "height width"], side: int) -> Float[np.ndarray, "side side"]:
    interpolation = cv2.INTER_AREA if min(image.shape) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image, np.float32), (side, side), interpolation=interpolation))
