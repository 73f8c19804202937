"""Scores of an image's quality, and from where on a score is a fault.

Every image gets a score a criterion, and a flag where it is out of range. What is out of range is found from the data
set itself, as sets differ, but within fixed bounds: `CRITERIA` states them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float

from covidcxr.data.curation.near_duplicates import inner_part

__all__ = [
    "CRITERIA",
    "Criterion",
    "clipped_share",
    "find_limits",
    "flag_scores",
    "measure_quality",
    "reduced",
]

Image: TypeAlias = Float[np.ndarray, "height width"]

_SIDE = 512  # pixels of the longest side: enough for all scores but the noise, which shrinking would average away
_DEVIATIONS = 3.5  # robust standard deviations from the median (Iglewicz and Hoaglin 1993)
_FLAT = 2 / 255


@dataclass(frozen=True)
class Criterion:
    """When a score makes a flag.

    The limit is 3.5 robust standard deviations (of the median absolute deviation) from the median of the data set, but
    never milder than `guard` nor stricter than `always`.

    Attributes:
        flag: Name of the flag.
        score: Name of the score, as `measure_quality` returns it.
        high: Whether high scores are flagged, else low ones.
        guard: The score that is never flagged, however rare it is; an image beyond it is, if the set's others differ.
        always: The score from which every image is flagged, even where all images of a set are so.
        of_median: `guard` is a multiple of the median of the set.
        ratio: Median and deviation are those of logarithms, as of scores that are ratios.

    Example:
        ```python
        from covidcxr.data.curation.image_scores import CRITERIA

        dark = CRITERIA[0]
        assert (dark.flag, dark.score, dark.high) == ("dark", "brightness", False)
        assert dark.limit([0.5] * 9) == dark.guard
        ```
    """

    flag: str
    score: str
    high: bool
    guard: float
    always: float
    of_median: bool = False
    ratio: bool = False

    def limit(self, scores: Sequence[float]) -> float:
        """Return the limit for the scores of a data set.

        Args:
            scores: A number an image; NaN = not measured.

        Returns:
            The limit; scores beyond it are flagged.
        """
        known = np.asarray(scores, float)
        known = known[np.isfinite(known)]
        if not len(known):
            return self.always
        known = np.log(np.maximum(known, 1e-6)) if self.ratio else known
        median = float(np.median(known))
        spread = _DEVIATIONS * 1.4826 * float(np.median(np.abs(known - median)))
        rare = median + spread if self.high else median - spread
        rare, median = (math.exp(rare), math.exp(median)) if self.ratio else (rare, median)
        guard = self.guard * median if self.of_median else self.guard
        return min(max(rare, guard), self.always) if self.high else max(min(rare, guard), self.always)

    def exceeds(self, score: float, limit: float) -> bool:
        """Tell whether a score makes a flag.

        Args:
            score: The score; NaN = not measured.
            limit: From `limit`.

        Returns:
            False for a score that was not measured.
        """
        return score > limit if self.high else score < limit


CRITERIA = (
    Criterion("dark", "brightness", high=False, guard=0.3, always=0.08),
    Criterion("bright", "brightness", high=True, guard=0.7, always=0.92),
    Criterion("low contrast", "contrast", high=False, guard=0.45, always=0.1),
    Criterion("blurred", "sharpness", high=False, guard=0.2, always=0.06, ratio=True),
    Criterion("noisy", "noise", high=True, guard=0.02, always=0.08, ratio=True),
    Criterion("small", "side", high=False, guard=0.5, always=128, of_median=True, ratio=True),
    Criterion("large", "side", high=True, guard=2.0, always=math.inf, of_median=True, ratio=True),
    Criterion("odd aspect ratio", "aspect", high=True, guard=1.45, always=2.5),
    Criterion("large border", "border", high=True, guard=0.25, always=0.5),
    Criterion("clipped field", "lungs_at_border", high=True, guard=0.03, always=0.1),
)
"""All criteria."""


def measure_quality(image: Image) -> dict[str, float]:
    """Measure the quality of an image.

    Args:
        image: In [0, 1].

    Returns:
        `brightness` (mean grey without the border, in [0, 1]), `contrast` (95th minus 5th percentile there),
        `sharpness` (strength of details of 1 pixel over those of 4 to 8, at a longest side of at most 512),
        `noise` (standard deviation in [0, 1] by the second differences of neighbours, Immerkaer 1996, their median in
        place of the mean), `side` (geometric mean of height and width, in pixels), `aspect` (longer over shorter
        side), and `border` (share of pixels of one grey that hang together with the edge: frames, collimation).

    Example:
        ```python
        import numpy as np

        from covidcxr.data.curation.image_scores import measure_quality

        assert measure_quality(np.zeros((64, 128)))["aspect"] == 2
        ```
    """
    height, width = image.shape
    small = reduced(image)
    border, inside = _border(small)
    unframed = small[inner_part((small * 255).round().astype(np.uint8))]
    greys = small[inside] if inside.any() else small.ravel()
    low, high = np.percentile(greys, (5, 95))
    return {
        "brightness": float(greys.mean()),
        "contrast": float(high - low),
        "sharpness": _sharpness(unframed),
        "noise": _noise(np.ascontiguousarray(image, np.float32)),
        "side": math.sqrt(height * width),
        "aspect": max(height, width) / min(height, width),
        "border": border,
    }


def reduced(image: Image) -> Image:
    """Shrink an image to a longest side of at most 512 pixels.

    Args:
        image: In [0, 1].

    Returns:
        The image itself where it is as small already.
    """
    whole = np.ascontiguousarray(image, np.float32)
    scale = _SIDE / max(image.shape)
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return whole if scale >= 1 else np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA))


def _border(image: Image) -> tuple[float, Bool[np.ndarray, "height width"]]:
    """Return the share of the pixels that belong to a border of one grey, and where the other pixels are."""
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    grey = float(np.median(edge)) if np.ptp(edge) < _FLAT else _most_frequent(edge)
    flat = (np.abs(image - grey) <= _FLAT).astype(np.uint8)
    _, parts = cv2.connectedComponents(flat, connectivity=4)
    touching = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    outside = np.isin(parts, touching[touching > 0])
    return float(outside.mean()), ~outside


def _most_frequent(greys: Float[np.ndarray, " pixels"]) -> float:
    return float(np.bincount((greys * 255).round().astype(int), minlength=256).argmax() / 255)


def _sharpness(image: Image) -> float:
    blurred, four, eight = (np.asarray(cv2.GaussianBlur(image, (0, 0), sigma)) for sigma in (1.0, 4.0, 8.0))
    fine, coarse = float(np.abs(image - blurred).mean()), float(np.abs(four - eight).mean())
    return fine / coarse if coarse > 1e-4 else math.nan


def _noise(image: Image) -> float:
    if min(image.shape) < 3:
        return math.nan
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = np.abs(cv2.filter2D(image, cv2.CV_32F, kernel))[1:-1, 1:-1]
    return float(np.median(response)) / 0.6745 / 6


def clipped_share(lungs: Bool[np.ndarray, "height width"]) -> float:
    """Return how far the lungs reach the edge of the image.

    Args:
        lungs: Where they are.

    Returns:
        The largest share of a side, in [0, 1], along which the outermost pixels are lung; NaN without lungs.
    """
    if not lungs.any():
        return math.nan
    return float(max(side.mean() for side in (lungs[0], lungs[-1], lungs[:, 0], lungs[:, -1])))


def find_limits(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Find the limits of all criteria for a data set.

    Args:
        scores: The scores of each image.

    Returns:
        From flag to limit.
    """
    return {own.flag: own.limit([image.get(own.score, math.nan) for image in scores]) for own in CRITERIA}


def flag_scores(scores: Mapping[str, float], limits: Mapping[str, float]) -> tuple[str, ...]:
    """Return the flags that scores make.

    Args:
        scores: The scores of an image.
        limits: From `find_limits`.

    Returns:
        The flags, in the order of `CRITERIA`.
    """
    return tuple(own.flag for own in CRITERIA if own.exceeds(scores.get(own.score, math.nan), limits[own.flag]))
