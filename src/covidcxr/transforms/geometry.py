"""Geometry of images and masks that training and prediction share: resizing, cutting a region, distances of outlines.

There is one copy of each: the data set, the models and the pipeline all call these functions, so what a network sees in
training is what it sees in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from covidcxr import aliases
from covidcxr.errors import ConfigError
from covidcxr.transforms.pyramid import letterbox_box
from covidcxr.types import LUNG_CLASSES, LUNGS_OF_REGION, Fit, Region

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "LUNGS_OF_REGION",
    "LUNG_CLASSES",
    "TOLERANCE",
    "apply_region",
    "dilate",
    "hd95",
    "interpolation",
    "letterbox_box",
    "normalize",
    "nsd",
    "resize_image",
    "resize_mask",
    "restore_map",
    "restore_traced",
]


def resize_image(
    image: Float[Tensor, "batch channels height width"], size: tuple[int, int], fit: Fit = "letterbox"
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Bring images to a network's size.

    Args:
        image: Images in [0, 1].
        size: Height and width wanted.
        fit: "letterbox" keeps the aspect ratio and pads with 0 (black); "stretch" squeezes.

    Returns:
        Images of `size`, in [0, 1]. Images that have the size already come back as they are.
    """
    if torch.compiler.is_compiling():
        return _resize_any(image, size, fit)
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    if fit == "stretch":
        return _resize(image, size)
    top, left, new_height, new_width = letterbox_box(height, width, size)
    padding = (left, size[1] - left - new_width, top, size[0] - top - new_height)
    return F.pad(_resize(image, (new_height, new_width)), padding)


def resize_mask(
    mask: Float[Tensor, "batch classes height width"], size: tuple[int, int], fit: Fit = "letterbox"
) -> Float[Tensor, "batch classes new_height new_width"]:
    """Bring masks to a network's size: a new pixel is set where at least half of what it covers was set.

    Args:
        mask: 0 or 1; NaN = unknown (a whole plane).
        size: Height and width wanted.
        fit: As for the images.

    Returns:
        Masks of `size`: 0, 1 or NaN.
    """
    if torch.compiler.is_compiling():  # a traced model is given masks that are known
        return (resize_image(mask, size, fit) >= 0.5).to(mask.dtype)
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    unknown = mask.sum((2, 3), keepdim=True).isnan()
    fitted = (resize_image(mask.nan_to_num() if unknown.any() else mask, size, fit) >= 0.5).to(mask.dtype)
    return fitted.masked_fill(unknown, torch.nan)


def restore_map(
    values: Float[Tensor, "batch classes height width"], size: tuple[int, int], fit: Fit = "letterbox"
) -> Float[Tensor, "batch classes new_height new_width"]:
    """Bring maps (probabilities, heat) at the network's size back to the images' own size.

    The inverse of `resize_image`: padding is cut off, then the rest is resized bilinearly.

    Args:
        values: Maps at the network's size.
        size: Height and width of the images.
        fit: As for the images.

    Returns:
        Maps of `size`.
    """
    import cv2

    if fit == "letterbox":
        frame = (values.shape[-2], values.shape[-1])
        top, left, height, width = letterbox_box(size[0], size[1], frame)
        values = values[..., top : top + height, left : left + width]
    if (
        values.device.type != "cpu"
        or values.requires_grad
        or values.dtype != torch.float32
        or size[0] < values.shape[-2]
        or size[1] < values.shape[-1]
    ):
        return _resize(values, size)
    # OpenCV enlarges many times faster than torch does on a CPU, to the same values.
    planes = values.detach().flatten(0, 1).contiguous().numpy()
    large = np.empty((len(planes), *size), np.float32)
    for plane, target in zip(planes, large, strict=True):
        cv2.resize(plane, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(large).view(*values.shape[:2], *size)


def dilate(mask: Float[Tensor, "batch 1 height width"], fraction: float) -> Float[Tensor, "batch 1 height width"]:
    """Widen masks by a square brush.

    Args:
        mask: 0 or 1.
        fraction: By how much on each side, as a fraction of the longer side of the mask.

    Returns:
        The masks, 0 or 1.
    """
    radius = round(fraction * max(mask.shape[-2:]))
    if radius == 0:
        return mask
    rows = F.max_pool2d(mask, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(rows, (1, 2 * radius + 1), stride=1, padding=(0, radius))


def apply_region(
    image: Float[Tensor, "batch channels height width"],
    lung_mask: Float[Tensor, "batch 1 height width"] | None,
    region: Region,
    dilation: float = 0.0,
) -> Float[Tensor, "batch channels height width"]:
    """Blacken what a model shall not see.

    Args:
        image: Images in [0, 1].
        lung_mask: Lungs, 0 or 1; may be None for "full".
        region: "full", "box" (the upright rectangle around the lungs), "lungs" or "background" (the image with the
            lungs removed).
        dilation: By how much the lungs are widened first, as a fraction of the longer side.

    Returns:
        Images in [0, 1].

    Raises:
        ConfigError: If a region needs a lung mask and there is none, it is unknown (NaN) for an image, or it holds
            anything but 0 and 1.
    """
    if region == "full":
        return image
    traced = torch.compiler.is_compiling()  # values are not known then, so they cannot be checked
    if lung_mask is None or (not traced and bool(lung_mask.isnan().any())):
        raise ConfigError(
            f'region="{region}" needs the lung mask of every image. Give lung_mask=..., let a Pipeline with a lung '
            f'segmenter find it, or use region="full".'
        )
    if not traced and bool(((lung_mask != 0) & (lung_mask != 1)).any()):
        raise ConfigError("A lung mask must hold 0 and 1 only: divide one of 0 and 255, or threshold probabilities.")
    lungs = dilate(lung_mask, dilation)
    if region == "box":
        lungs = _fill_box(lungs)
    return image * (1 - lungs if region == "background" else lungs)


def _fill_box(mask: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Fill the upright rectangle around each mask."""
    spans = []
    for dim in (3, 2):
        lit = mask.amax(dim, keepdim=True)
        along = 5 - dim
        before, after = lit.cumsum(along) > 0, lit.flip(along).cumsum(along).flip(along) > 0
        spans.append(before & after)
    return (spans[0] & spans[1]).to(mask.dtype)


def normalize(
    image: Float[Tensor, "batch 1 height width"], mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]
) -> Float[Tensor, "batch channels height width"]:
    """Subtract the mean and divide by the standard deviation.

    Args:
        image: Grey images in [0, 1].
        mean: One a channel.
        std: One a channel, above 0.

    Returns:
        Normalised images; grey is repeated where there are three channels.
    """
    return (image - mean[:, None, None]) / std[:, None, None]


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    # Without antialiasing, shrinking a 3,000-pixel image to 256 samples every twelfth pixel and drops the rest.
    shrinks = size[0] < image.shape[-2] or size[1] < image.shape[-1]
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


def _resize_any(image: Tensor, size: tuple[int, int], fit: Fit) -> Tensor:
    """Resize like `resize_image`, by operations that can be traced once for images of every size."""
    sides, places = _places(image, image.shape[-2:], size, fit)
    return _stretch(image, size, [(torch.zeros_like(side), side) for side in sides], places)


def restore_traced(
    values: Float[Tensor, "batch classes height width"], like: Float[Tensor, "batch 1 rows columns"], fit: Fit
) -> Float[Tensor, "batch classes rows columns"]:
    """Bring maps back to the size of images like `restore_map`, where a model is traced for images of every size.

    Args:
        values: Maps at the network's size.
        like: The images.
        fit: As for the images.

    Returns:
        Maps of the images' size.
    """
    sides, places = _places(values, like.shape[-2:], values.shape[-2:], fit)
    return _stretch(values, like.shape[-2:], places, [(torch.zeros_like(side), side) for side in sides])


def _stretch(
    values: Tensor, size: Sequence[Any], parts: Sequence[tuple[Tensor, Tensor]], places: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Stretch a part of maps over a place in maps of another size; each says first pixel and pixels by axis."""
    rows, columns = (
        interpolation(length, frame, *part, *place).to(values.dtype)
        for length, frame, part, place in zip(values.shape[-2:], size, parts, places, strict=True)
    )
    return rows @ (values @ columns.mT)  # columns first, as torch does


def _places(
    like: Tensor, sides: Sequence[Any], frame: Sequence[Any], fit: Fit
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Return height and width of images, and for each axis where they lie in a frame: first pixel and pixels."""
    lengths = [torch.scalar_tensor(side, dtype=torch.float64, device=like.device) for side in sides]
    extents = [torch.scalar_tensor(side, dtype=torch.float64, device=like.device) for side in frame]
    if fit == "stretch":
        return lengths, [(torch.zeros_like(extent), extent) for extent in extents]
    scale = torch.minimum(extents[0] / lengths[0], extents[1] / lengths[1])
    inner = [
        torch.minimum((side * scale).round().clamp_min(1), extent)
        for side, extent in zip(lengths, extents, strict=True)
    ]
    return lengths, [(((outer - part) / 2).floor(), part) for outer, part in zip(extents, inner, strict=True)]


def interpolation(
    length: Any, frame: Any, first: Tensor, count: Tensor, start: Tensor, extent: Tensor
) -> Float[Tensor, "... frame length"]:
    """Return the weights that stretch a part of a line of pixels over a part of a new line.

    Multiplied with an image, columns first, they do what `torch.nn.functional.interpolate` does ("bilinear",
    `align_corners=False`, `antialias=True`), by operations whose shapes depend on no value: so a model can be traced
    for images of every size. They are computed and summed in single precision as torch does it, so that the last bits
    agree, too: where preprocessing rounds greys, they show.

    Args:
        length: Pixels of the line: a whole number, or a symbol while a model is traced.
        frame: Pixels of the new line, likewise.
        first: First pixel of the part, [...].
        count: Pixels of the part, [...], above 0.
        start: First pixel in the new line, [...].
        extent: Pixels in the new line, [...], above 0; the others are 0.

    Returns:
        Weights in [0, 1]; rows of the part sum to 1.
    """
    first, count, start, extent = (value.float()[..., None, None] for value in (first, count, start, extent))
    old = torch.arange(length, dtype=torch.float32, device=first.device)
    new = torch.arange(frame, dtype=torch.float32, device=first.device)[:, None]
    scale = count / extent
    centre = scale * (new - start + 0.5)
    weights = (1 - ((old - first - centre + 0.5) * (1 / scale.clamp_min(1))).abs()).clamp_min(0)
    inside = (old >= first) & (old < first + count) & (new >= start) & (new < start + extent)
    weights = weights * inside
    total = weights.cumsum(-1)[..., -1:]  # one after the other
    return weights / total.clamp_min(1e-12)


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
