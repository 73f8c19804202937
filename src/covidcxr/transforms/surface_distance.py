"""How far apart the outlines of two masks are."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError

__all__ = ["TOLERANCE", "hd95", "nsd"]

TOLERANCE = 0.01
"""Of the longer side of an image: 3.5 mm where that is 35 cm."""


def hd95(
    mask: Bool[np.ndarray, "height width"],
    target: Bool[np.ndarray, "height width"],
    spacing: tuple[float, float] = (1.0, 1.0),
) -> float:
    """Return the 95 % Hausdorff distance: how far all but the worst twentieth of the outlines are apart.

    The outline of a mask is its pixels that have one of four neighbours outside it, or beyond the image. Of each
    outline, the 95th percentile of the distances to the nearest pixel of the other counts; of these two, the larger
    (Huttenlocher 1993; as Metrics Reloaded, Maier-Hein 2024, defines it). MedPy's `hd95` pools both directions instead,
    which forgives a part too many in one of the masks.

    Args:
        mask: The predicted mask.
        target: The reference mask.
        spacing: Distance between rows and between columns, in mm for instance; default pixels.

    Returns:
        In the unit of `spacing`, from 0 up. Both empty is 0. One empty is the diagonal of the image, the largest
        distance that there is: so a missed mask counts in a mean over images, which infinity would decide alone.

    Raises:
        ConfigError: If shapes differ, an array is not bool, or the spacing is not above 0.
    """
    _check(mask, target, spacing)
    if not mask.any() or not target.any():
        height, width = mask.shape
        empty = not mask.any() and not target.any()
        return 0.0 if empty else math.hypot((height - 1) * spacing[0], (width - 1) * spacing[1])
    first, second = (_outline(plane) * np.array(spacing) for plane in (mask, target))
    return max(float(np.percentile(_distances(*ends), 95)) for ends in ((first, second), (second, first)))


def nsd(
    mask: Bool[np.ndarray, "height width"],
    target: Bool[np.ndarray, "height width"],
    tolerance: float | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> float:
    """Return the normalised surface distance: the share of both outlines that lies within a tolerance of the other.

    Outlines are those of `hd95`, and both are taken together (Nikolov 2021; Metrics Reloaded, Maier-Hein 2024).

    Args:
        mask: The predicted mask.
        target: The reference mask.
        tolerance: In the unit of `spacing`; None = 1 % of the longer side of the image.
        spacing: Distance between rows and between columns, in mm for instance; default pixels.

    Returns:
        In [0, 1]; 1 if both are empty, 0 if one is.

    Raises:
        ConfigError: If shapes differ, an array is not bool, or spacing or tolerance are not above 0.
    """
    _check(mask, target, spacing)
    if tolerance is None:
        tolerance = TOLERANCE * max(side * step for side, step in zip(mask.shape, spacing, strict=True))
    if not tolerance > 0:
        raise ConfigError(f"The tolerance must be above 0, not {tolerance}.")
    if not mask.any() or not target.any():
        return float(not mask.any() and not target.any())
    first, second = (_outline(plane) * np.array(spacing) for plane in (mask, target))
    return float((np.concatenate([_distances(first, second), _distances(second, first)]) <= tolerance).mean())


def _check(mask: np.ndarray, target: np.ndarray, spacing: tuple[float, float]) -> None:
    if mask.shape != target.shape or mask.ndim != 2 or mask.dtype != bool or target.dtype != bool:
        raise ConfigError(
            f"Masks to compare must be bool [height, width] and of one shape, not {mask.dtype} {mask.shape} and "
            f"{target.dtype} {target.shape}."
        )
    if not min(spacing) > 0:
        raise ConfigError(f"The spacing of rows and columns must be above 0, not {spacing}.")


def _outline(mask: np.ndarray) -> Float[np.ndarray, "points 2"]:
    inside = np.pad(mask, 1)
    deep = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return np.argwhere(mask & ~deep).astype(float)


def _distances(
    points: Float[np.ndarray, "points 2"], others: Float[np.ndarray, "others 2"]
) -> Float[np.ndarray, " points"]:
    from scipy.spatial import cKDTree

    distances: np.ndarray = cKDTree(others).query(points)[0]
    return distances
