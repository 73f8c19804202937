"""Are two images one picture? By local features and the fine structure beneath them.

A hash of 64 bits does not tell on radiographs: all chests look alike when they are small. So an image is described by
SIFT features (Lowe 2004, as RootSIFT: Arandjelovic 2012). Images that share rare features are candidates; a candidate
is a copy if one affine map lays many features of one image upon those of the other, and the fine structure then agrees
in most places. Mirroring and inversion only permute what SIFT describes, so they are found by permuting it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

__all__ = [
    "MIN_INLIERS",
    "MIN_LIKENESS",
    "NO_SKETCH",
    "Prepared",
    "RawFeatures",
    "Sketch",
    "compare",
    "find_candidates",
    "find_features",
    "inner_part",
    "likeness",
    "sketch",
]

Grey = UInt8[np.ndarray, "height width"]
Features: TypeAlias = tuple[Float32[np.ndarray, "features 2"], Float32[np.ndarray, "features 128"]]
RawFeatures: TypeAlias = tuple[Float32[np.ndarray, "features 2"], UInt8[np.ndarray, "features 128"]]
"""Places and descriptions as SIFT returns them: a quarter of the memory of the rooted ones."""

MIN_INLIERS, MIN_LIKENESS = 20, 0.75
"""From where on two images are one picture. Measured on 1,486 images without copies: of their 1,440 pairs of one
patient the most alike reached 0.70, the next 0.63; of 300 pairs of different patients none more than 0.15. Of 120
copies each that were re-encoded, resized, cropped, brightened, equalised, inverted, mirrored, turned or marked, all
reached 0.80; of those to which all of this was done at once, 66 % reached 0.75."""

MIN_BODY_INLIERS, MIN_BODY = 12, 0.5
"""From where on the small pictures of two images that are no copies show one body, at two times. Of 1,028 pairs of one
patient 23 are candidates and 13 reach it; of 1.1 million of different patients two do, one person each by eye."""

_LARGE = 384  # longest side in pixels for the comparison
_MIN_COARSE, _MIN_FINE = 6, 10  # features that must lie alike: on the small pictures already; on the large ones
_COARSE, _COARSE_MARGIN = 2, 0.05  # noise, blur and strong JPEG spare details twice as large
_COARSEST, _MIN_COARSEST = 4, 0.945  # and those four times as large nearly wholly: images of another day do not
_RESEMBLES = {0.5: 0.55, 1.0: 0.72}
"""By scale: from which agreement of the small pictures on the large ones are compared; either will do. Of 30 copies of
each kind of damage the least reached 0.72 at scale 0.5 (cropped, turned and marked at once) or 0.77 at scale 1 (JPEG
10); of 80 pairs of drawn chests, which resemble each other more than real ones, 8 % pass."""
_SMALL = 160  # longest side of the small picture in pixels
_MOST_FEATURES = 200  # of a small picture
_TABLES, _BITS, _COMMON = 4, 20, 0.02  # words a feature, bits a word, share of images beyond which a word tells nothing
_NEIGHBOURS, _MIN_SHARED = 12, 5  # candidates an image; features that must lie alike on both
_PLACES = np.arange(128).reshape(4, 4, 8)
_INVERTED = _PLACES[::-1, ::-1].ravel()
_MIRRORED = _PLACES[::-1][:, :, (-np.arange(8)) % 8].ravel()
_VIEWS = np.stack([_PLACES.ravel(), _MIRRORED, _MIRRORED[_INVERTED], _INVERTED])
"""How the 128 numbers of a feature change places when the image is as it is, mirrored, both, inverted."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is kept of an image to find candidates.

    Attributes:
        points: Where its features lie, x and y, in pixels of the small image.
        words: The features as words, a column a table; mirrored and inverted images have the same.

    Example:
        ```python
        import numpy as np

        from covidcxr.data.curation.near_duplicates import sketch
        from covidcxr.phantom import draw_phantom

        image = (draw_phantom(1, size=(256, 256)).image * 255).astype(np.uint8)
        drawn = sketch(image)
        assert len(drawn.points) == len(drawn.words) > 50
        ```
    """

    points: Float32[np.ndarray, "features 2"]
    words: Int[np.ndarray, "features tables"]


NO_SKETCH = Sketch(np.zeros((0, 2), np.float32), np.zeros((0, _TABLES), np.int32))
"""Of an image that is only compared exactly."""


def find_features(image: Grey) -> RawFeatures:
    """Find a few hundred features of the small picture of an image, without its flat border.

    Args:
        image: Grey values.

    Returns:
        Their places, in pixels of the small picture, and their descriptions.
    """
    return _features(_shrunk(image[inner_part(image)], _SMALL), _MOST_FEATURES)


def sketch(image: Grey, features: RawFeatures | None = None) -> Sketch:
    """Describe an image by the features of its small picture.

    Args:
        image: Grey values.
        features: From `find_features`; None = they are found.

    Returns:
        The description.
    """
    points, values = features or find_features(image)
    return Sketch(points, _words(_rooted(values)))


def find_candidates(sketches: Sequence[Sketch]) -> Iterator[tuple[int, int]]:
    """Find the pairs of images that share rare features, in the same places.

    Args:
        sketches: That of each image.

    Returns:
        Numbers of two images, the lower first, each pair once, in order.
    """
    holds, rarity = _shared_words([drawn.words for drawn in sketches])
    by_word = holds.T.tocsr()
    holds.data = rarity[holds.indices]
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(sketches), 128):  # all at once would be the square of the images
        shared = holds[start : start + 128] @ by_word
        for row in range(shared.shape[0]):
            image, begin, end = start + row, shared.indptr[row], shared.indptr[row + 1]
            others, scores = shared.indices[begin:end], shared.data[begin:end]
            if len(scores) > _NEIGHBOURS + 1:  # few need to be sorted
                high = scores >= np.partition(scores, -1 - _NEIGHBOURS)[-1 - _NEIGHBOURS]
                others, scores = others[high], scores[high]
            best = others[np.lexsort((others, -scores))][: _NEIGHBOURS + 1].tolist()
            pairs.update((min(image, other), max(image, other)) for other in best if other != image)
    del holds, by_word
    keys = [_sorted_words(drawn.words) for drawn in sketches]
    return (
        (first, second)
        for first, second in sorted(pairs)
        if _lie_alike(sketches[first].points, sketches[second].points, keys[first], keys[second])
    )


def _shared_words(words: Sequence[Int[np.ndarray, "features tables"]]) -> tuple[Any, Float32[np.ndarray, " words"]]:
    """Return which image has which of the words that a few images share, as a sparse matrix of 1, and their rarity."""
    import scipy.sparse as sparse

    own = [np.unique(image) for image in words]
    ends = np.cumsum([0, *map(len, own)], dtype=np.int32)
    every = np.concatenate(own) if own else np.zeros(0, np.int32)
    del own
    images = np.bincount(every, minlength=_TABLES << _BITS).astype(np.int32)
    useful = (images > 1) & (images <= max(2, _COMMON * len(words)))
    # Among a few images, a word that all have still tells.
    rarity = np.log(max(len(words), 1000) / images[useful]).astype(np.float32)
    kept = useful[every]
    ends = np.concatenate([[0], np.cumsum(kept, dtype=np.int32)])[ends]
    images[useful] = np.arange(len(rarity))  # from word to column
    columns = images[every[kept]]
    del every, images, useful, kept
    shape = len(words), len(rarity)
    return sparse.csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape), rarity


class Prepared:
    """An image with what comparisons need of it, each computed once: an image is compared with several.

    Args:
        image: Grey values.
        features: Those of its small picture, from `find_features`; None = they are found.

    Attributes:
        grey: The image with a longest side of 384 pixels.
        small: The image without its flat border, with a longest side of 160 pixels.
        from_small: The map from places of the small image to those of the grey one, [3, 3].

    Example:
        ```python
        import numpy as np

        from covidcxr.data.curation.near_duplicates import Prepared, compare
        from covidcxr.phantom import draw_phantom

        images = [(draw_phantom(n, size=(256, 256)).image * 255).astype(np.uint8) for n in (1, 2)]
        first, second = map(Prepared, images)
        assert compare(first, first)[1] > 0.99 and compare(first, second)[1] < 0.5
        ```
    """

    def __init__(self, image: Grey, features: RawFeatures | None = None) -> None:
        self.grey = _shrunk(image, _LARGE)
        rows, columns = inner_part(image)
        part = image[rows, columns]
        self.small = _shrunk(part, _SMALL)
        self._coarse = features
        scale = np.divide(self.grey.shape, image.shape)[::-1]
        step = np.divide(part.shape, self.small.shape)[::-1] * scale
        first = (
            np.array([columns.start or 0, rows.start or 0]) * scale + step / 2 - 0.5
        )  # the middle of the first pixel
        self.from_small = np.array([[step[0], 0, first[0]], [0, step[1], first[1]], [0, 0, 1]])

    @cached_property
    def features(self) -> Features:
        """Places and descriptions of its features."""
        points, values = _features(self.grey, 500)
        return points, _rooted(values)

    @cached_property
    def coarse_features(self) -> Features:
        """Those of the small picture."""
        points, values = self._coarse or _features(self.small, _MOST_FEATURES)
        return points, _rooted(values)


def compare(image: Prepared, other: Prepared) -> tuple[int, float, bool]:
    """Compare two images, on small pictures first.

    Args:
        image: The one.
        other: The other, of any size.

    Returns:
        How many features one affine map lays upon each other; the median over places of the correlation of the fine
        structure, in [-1, 1]; whether the small pictures show one body. 0 and 0.0 where they agree too little.
    """
    warp, on_small, inverted = _lay_upon(image.coarse_features, other.coarse_features, tolerance=4, tries=300)
    if warp is None or on_small < _MIN_COARSE:
        return 0, 0.0, False
    resembles = _agreements(image.small, other.small, warp, inverted, _RESEMBLES)
    same_body = on_small >= MIN_BODY_INLIERS and resembles[0] >= MIN_BODY
    if all(agreement < least for agreement, least in zip(resembles, _RESEMBLES.values(), strict=True)):
        return 0, 0.0, same_body
    if on_small >= MIN_INLIERS:  # their map may be good enough for the large pictures, whose features take long
        enlarged = image.from_small @ np.vstack([warp, [0, 0, 1]]) @ np.linalg.inv(other.from_small)
        (alike,) = _agreements(image.grey, other.grey, enlarged[:2], inverted, (1,))
        if alike >= MIN_LIKENESS:
            return on_small, alike, same_body
    inliers, alike = _compare(image, other)
    inliers = max(inliers, on_small) if inliers >= _MIN_FINE else inliers  # blur leaves few features but these
    return inliers, alike, same_body


def likeness(image: Grey, other: Grey) -> tuple[int, float]:
    """Compare two images in full.

    Args:
        image: Grey values of the one.
        other: Grey values of the other, of any size.

    Returns:
        The first two numbers of `compare`.
    """
    return _compare(Prepared(image), Prepared(other))


def _compare(image: Prepared, other: Prepared) -> tuple[int, float]:
    warp, inside, inverted = _lay_upon(image.features, other.features, tolerance=3, tries=2000)
    if warp is None:
        return 0, 0.0
    fine, coarse, coarsest = _agreements(image.grey, other.grey, warp, inverted, (1, _COARSE, _COARSEST))
    return inside, max(fine, coarse - _COARSE_MARGIN) if coarsest >= _MIN_COARSEST else fine


def _agreements(image: Grey, other: Grey, warp: np.ndarray, inverted: bool, scales: Iterable[float]) -> list[float]:
    """Lay the other image upon the one, and return for each scale how far the fine structure agrees."""
    import cv2

    size = image.shape[::-1]
    laid = cv2.warpAffine(other.astype(np.float32), warp, size)
    covered = cv2.warpAffine(np.ones(other.shape, np.float32), warp, size)
    covered = (cv2.erode(covered, np.ones((9, 9))) > 0.99).astype(np.float32)
    laid = 255 - laid if inverted else laid
    details = (_fine((image.astype(np.float32), laid), covered, scale) for scale in scales)
    return [_agreement(here, there, covered) for here, there in details]


def _lay_upon(here: Features, there: Features, *, tolerance: float, tries: int) -> tuple[np.ndarray | None, int, bool]:
    """Fit the map that lays features of one image upon those of another, mirrored or inverted if that fits more.

    Returns the map or None, how many features it fits, and whether the other image is inverted.
    """
    (points, features), (other_points, other_features) = here, there
    matches = [_match(features, other_features[:, view]) for view in _VIEWS]
    view = max(range(len(matches)), key=lambda number: len(matches[number][0]))
    near, far = matches[view]
    if len(near) < 6:
        return None, 0, False
    return *_affine(other_points[far], points[near], tolerance, tries), view >= 2


def _match(features: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the features that are each other's nearest, and clearly nearer than the second nearest."""
    if min(len(features), len(others)) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    alike = features @ others.T
    rows = np.arange(len(alike))
    nearest = alike.argmax(1)
    mutual = alike.argmax(0)[nearest] == rows
    first = alike[rows, nearest]
    alike[rows, nearest] = -1
    clear = np.sqrt(np.maximum(2 - 2 * first, 0)) < 0.85 * np.sqrt(np.maximum(2 - 2 * alike.max(1), 0))
    kept = np.flatnonzero(mutual & clear)
    return kept, nearest[kept]


def _fine(images: Sequence[np.ndarray], covered: np.ndarray, scale: float) -> list[np.ndarray]:
    """Keep details of a few pixels, times a scale, and give them the same strength everywhere."""
    import cv2

    height, width = covered.shape

    def blur(values: np.ndarray, sigma: float) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma * scale))

    def spread(values: np.ndarray) -> np.ndarray:  # a wide blur needs few pixels
        few = cv2.resize(values, (-(-width // 4), -(-height // 4)), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(blur(few, 2.5), (width, height), interpolation=cv2.INTER_LINEAR))

    weight = spread(covered) + 1e-6
    details = []
    for image in images:
        detail = blur(image, 1) - blur(image, 4)
        kept = detail * covered
        mean = spread(kept) / weight
        variance = spread(detail * kept) / weight - mean * mean
        details.append((detail - mean) / np.sqrt(np.maximum(variance, 0) + 1))
    return details


def _agreement(image: np.ndarray, other: np.ndarray, covered: np.ndarray, parts: int = 6) -> float:
    """Return the median correlation over the parts of the image that both show and that are not flat."""
    rows, columns = (np.arange(parts) * side // parts for side in image.shape)

    def total(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.add.reduceat(np.add.reduceat(values, rows, 0), columns, 1), float)

    seen = total(covered)
    enough = seen > 0.6 * total(np.ones_like(covered))
    count = np.maximum(seen, 1)
    here, there = image * covered, other * covered
    means = total(here) / count, total(there) / count
    spreads = total(here * image) / count - means[0] ** 2, total(there * other) / count - means[1] ** 2
    kept = enough & (spreads[0] > 0.3**2) & (spreads[1] > 0.3**2)
    if kept.sum() <= 3:
        return 0.0
    common = total(here * other) / count - means[0] * means[1]
    return float(np.median(common[kept] / np.sqrt(spreads[0][kept] * spreads[1][kept])))


def _sorted_words(words: Int[np.ndarray, "features tables"]) -> Int[np.ndarray, " words"]:
    """Return all words of an image in order, each followed by the number of its feature."""
    return np.sort((words * _MOST_FEATURES + np.arange(len(words), dtype=np.int32)[:, None]).ravel())  # 30 bits


def _lie_alike(points: np.ndarray, other_points: np.ndarray, words: np.ndarray, other_words: np.ndarray) -> bool:
    """Whether features with the same word lie alike on both images; words are from `_sorted_words`."""
    own, others = words // _MOST_FEATURES, other_words // _MOST_FEATURES
    first, last = (np.searchsorted(own, others, side=side) for side in ("left", "right"))
    count = last - first
    there = np.repeat(other_words % _MOST_FEATURES, count)
    nth = np.arange(len(there)) - np.repeat(np.cumsum(count) - count, count)
    here = words[np.repeat(first, count) + nth] % _MOST_FEATURES
    pairs = np.unique(here * _MOST_FEATURES + there)  # two features may share words of several tables
    if len(pairs) < _MIN_SHARED:
        return False
    here, there = np.divmod(pairs, _MOST_FEATURES)
    warp, inside = _affine(other_points[there], points[here], 4, 300)
    return warp is not None and inside >= _MIN_SHARED


def inner_part(image: Grey, flat: int = 12) -> tuple[slice, slice]:
    """Find what is within rows and columns at the edges that have one grey: letterboxing, frames.

    Args:
        image: Grey values.
        flat: By how much greys of a row or column may differ, of 255.

    Returns:
        Its rows and columns; the whole image where less than 16 pixels would be left.
    """
    top, bottom, left, right = 0, image.shape[0], 0, image.shape[1]
    for _ in range(2):
        before = top, bottom, left, right
        first, last = _varied(image[top:bottom, left:right], flat)
        top, bottom = top + first, top + last
        first, last = _varied(image[top:bottom, left:right].T, flat)
        left, right = left + first, left + last
        if (top, bottom, left, right) == before:
            break
    enough = min(bottom - top, right - left) >= 16
    return (slice(top, bottom), slice(left, right)) if enough else (slice(None), slice(None))


def _varied(rows: UInt8[np.ndarray, "rows columns"], flat: int) -> tuple[int, int]:
    """Return the first row that is not of one grey, and the end after the last; all rows where each is."""
    some = np.sort(rows[:, :: max(1, rows.shape[1] // 64)], axis=1)  # so many pixels tell
    tail = round(0.02 * (some.shape[1] - 1))
    varied = np.flatnonzero(some[:, -1 - tail].astype(int) - some[:, tail] > flat)
    return (int(varied[0]), int(varied[-1]) + 1) if len(varied) else (0, len(rows))


def _features(image: Grey, count: int) -> RawFeatures:
    import cv2

    even = cv2.createCLAHE(2.0, (8, 8)).apply(image)
    # OpenCV's types do not know SIFT, which it has since 4.4.
    finder: Any = cv2.SIFT_create(nfeatures=count, contrastThreshold=0.005, edgeThreshold=20)  # type: ignore[attr-defined]
    points, values = finder.detectAndCompute(even, None)
    if values is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8)
    return np.array([point.pt for point in points], np.float32)[:count], values[:count].astype(np.uint8)


def _rooted(values: UInt8[np.ndarray, "features 128"]) -> Float32[np.ndarray, "features 128"]:
    """Make RootSIFT's descriptions of SIFT's, which are whole numbers up to 255."""
    return np.asarray(np.sqrt(values / np.maximum(values.sum(1, dtype=int, keepdims=True), 1)), np.float32)


def _words(features: Float32[np.ndarray, "features 128"]) -> Int[np.ndarray, "features tables"]:
    """Turn features into words by the signs of projections that chance drew (Charikar 2002), once and for all."""
    across = np.tile(np.array([-3, -1, 1, 3], np.float32)[None, :, None], (4, 1, 8)).ravel()
    along = np.tile(np.array([-3, -1, 1, 3], np.float32)[:, None, None], (1, 4, 8)).ravel()
    # Which of the four views it is seen in is told by its own two slopes: all four come to one.
    view = 2 * (features @ across < 0) + (features @ along < 0)
    canonical = np.take_along_axis(features, _VIEWS[view], axis=1)
    signs = canonical @ _projections() > 0
    powers = 1 << np.arange(_BITS)
    return np.asarray(signs.reshape(-1, _TABLES, _BITS) @ powers + (np.arange(_TABLES) << _BITS), np.int32)


def _projections() -> Float[np.ndarray, "128 bits"]:
    count = _TABLES * _BITS
    # From a hash: random generators may change their numbers between releases, and words are kept on disk.
    drawn = np.frombuffer(hashlib.shake_128(b"covidcxr").digest(128 * count // 8), np.uint8)
    signs = np.unpackbits(drawn).reshape(16, 8, count).astype(np.float32) * 2 - 1
    return np.asarray((signs - signs.mean(0)).reshape(128, count))


def _shrunk(image: Grey, side: int) -> Grey:
    import cv2

    scale = side / max(image.shape)
    size = (max(8, round(image.shape[1] * scale)), max(8, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))


def _affine(source: np.ndarray, target: np.ndarray, tolerance: float, tries: int) -> tuple[np.ndarray | None, int]:
    """Fit a map that neither bends, shrinks nor stretches beyond what a copy may be; with the number that it fits."""
    import cv2

    warp, fits = cv2.estimateAffine2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=tolerance, maxIters=tries
    )
    if warp is None or not np.isfinite(warp).all():  # type: ignore[redundant-expr]  # OpenCV's types know no failure
        return None, 0
    large, small = np.linalg.svd(warp[:, :2], compute_uv=False)
    return (None, 0) if large > 3 or small < 1 / 3 or large > 2 * small else (warp, int(fits.sum()))
