"""Mask clean-up as named steps, and the check whether a mask can be that of two lungs.

    clean = PostProcess(["fill_holes", {"name": "largest_components", "count": 2}])
    mask = clean(mask)

A config holds the steps as plain data; another package adds its own with
`@POSTPROCESS_STEPS.register("name")` on a function from a mask and keyword parameters to a mask. Areas and
lengths are fractions of the image, so that a chain means the same at every size. Parts are connected over
corners (8 neighbours), holes are not: the pair for which "enclosed" is well defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from covidcxr.config import EnsembleConfig, ModelConfig
from covidcxr.config.checks import check_whole
from covidcxr.errors import ConfigError
from covidcxr.registry import POSTPROCESS_STEPS
from covidcxr.transforms.pyramid import restore_mask
from covidcxr.transforms.step_chain import StepChain, StepConfig
from covidcxr.types import LUNG_CLASSES
from covidcxr.utils.plain import is_number

__all__ = [
    "Maps",
    "choose_class",
    "cut_masks",
    "not_finite",
    "thresholds_of",
    "PostProcess",
    "DEFAULT_LUNG_STEPS",
    "REASONS",
    "lung_reasons",
    "explain_reason",
    "lung_sides",
    "fill_holes",
    "largest_components",
    "remove_small_objects",
    "remove_small_holes",
    "open_mask",
    "close_mask",
    "split_fused",
]

Mask: TypeAlias = Bool[np.ndarray, "height width"]
Maps: TypeAlias = Float[np.ndarray, "batch classes new_height new_width"]
"""Probabilities of masks, at a network's size."""


def not_finite(part: str) -> str:
    """Return the reason to abstain for an image of which a model computes NaN or infinity.

    Args:
        part: Name of the model's part in a pipeline, "lung_segmenter", ...

    Returns:
        The id of the reason.
    """
    return f"{part.replace('_', '-')}-not-finite"


def choose_class(
    config: ModelConfig | EnsembleConfig, probabilities: dict[str, float]
) -> tuple[str | None, tuple[str, ...]]:
    """Choose the one plausible class, or abstain with a reason.

    With thresholds in the config, a class is plausible from its threshold up (a conformal set, if the thresholds come
    from `covidcxr.evaluation.conformal_thresholds`); without any, the most probable of exclusive classes is, and of
    findings that may come together those from 0.5 up are. Where a probability is not finite, there is no class.

    Args:
        config: Mode and thresholds of the classifier.
        probabilities: By class name, calibrated.

    Returns:
        The class and no reasons, or None and the reasons.
    """
    if not all(map(math.isfinite, probabilities.values())):
        return None, (not_finite("classifier"),)
    if config.mode != "multilabel" and not config.thresholds:
        return max(probabilities, key=lambda name: probabilities[name]), ()
    plausible = [name for name, value in probabilities.items() if value >= config.thresholds.get(name, 0.5)]
    if len(plausible) == 1:
        return plausible[0], ()
    return None, ("several-answers-plausible" if plausible else "no-answer-plausible",)


def thresholds_of(config: ModelConfig) -> tuple[float, ...]:
    """Return, by class, the probability from which a pixel belongs to it (0.5 where the config says none).

    Args:
        config: Of a segmenter.

    Returns:
        In [0, 1], in the order of the classes.
    """
    return tuple(config.thresholds.get(name, 0.5) for name in config.classes)


def cut_masks(
    config: ModelConfig, maps: Maps, sizes: Sequence[tuple[int, ...]], clean: Callable[[Mask], Mask] | None = None
) -> list[dict[str, Mask]]:
    """Return masks at the images' own sizes: the pixels whose probability reaches the threshold of their class.

    Args:
        config: Classes, thresholds and fit of the segmenter.
        maps: Probabilities at the network's size; changed in place where masks are cleaned.
        sizes: Height and width of each image.
        clean: Clean-up of lung masks, at the network's size.

    Returns:
        The masks of each image, by class.
    """
    thresholds = thresholds_of(config)
    masks = []
    for size, values in zip(sizes, maps, strict=True):
        for name, plane, threshold in zip(config.classes, values, thresholds, strict=True):
            if clean is not None and name in LUNG_CLASSES:
                raw = plane >= threshold
                kept = clean(raw)
                plane[raw & ~kept] = 0.0
                plane[kept & ~raw] = 1.0
        planes = zip(config.classes, values, thresholds, strict=True)
        masks.append(
            {
                name: restore_mask(plane, threshold, (size[0], size[1]), config.preprocess.fit)
                for name, plane, threshold in planes
            }
        )
    return masks


DEFAULT_LUNG_STEPS: tuple[StepConfig, ...] = (
    # Not every hole: lungs that touch above and below the heart enclose it.
    {"name": "fill_holes", "max_area": 0.02},
    {"name": "largest_components", "count": 2},
)
"""Two lungs without holes. Holes first, so that one hole cannot make a lung the smaller part."""

_LARGEST_RADIUS = 0.1  # the time that a disc takes grows with its area
NOT_FOUND_AREA = 0.02  # of the image; the smallest real lungs seen cover 0.09

REASONS: dict[str, str] = {
    "lungs-not-found": (
        "No lungs were found. Check that this is a frontal chest radiograph and neither inverted nor cut off."
    ),
    "lung-area-below-15-percent": (
        "The lungs cover less than 15 % of the image. Crop the image to the chest, or check for lungs that are "
        "hidden by an opacity."
    ),
    "only-one-lung-found": (
        "Only one lung was found. Check whether the other is hidden (white-out, effusion, removed lung) or cut off."
    ),
    "lungs-not-side-by-side": (
        "The two lungs do not lie side by side. Check whether the image is rotated by 90 degrees or shows a side view."
    ),
}
"""What `lung_reasons` may return, in words for the person who reads the image."""


class PostProcess(StepChain):
    """A chain of clean-up steps: call it with a mask.

    Args:
        steps: In order: names, or tables with the key "name" and the step's parameters.

    Raises:
        UnknownNameError: If there is no such step.
        ConfigError: If a step has no such parameter, or its value is out of range.

    Example:
        ```python
        import numpy as np
        from covidcxr.transforms.postprocess import PostProcess

        mask = np.ones((20, 20), bool)
        mask[5, 5] = False
        assert PostProcess(["fill_holes"])(mask).all()
        ```
    """

    registry = POSTPROCESS_STEPS

    def __init__(self, steps: Sequence[StepConfig] = DEFAULT_LUNG_STEPS) -> None:
        super().__init__(steps)

    def __call__(self, mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
        """Return the cleaned mask; the one given stays as it is."""
        return np.asarray(self._run(mask))

    @staticmethod
    def _example() -> Bool[np.ndarray, "height width"]:
        """Return an empty mask to try a step's parameters on."""
        return np.zeros((8, 8), bool)


def lung_reasons(mask: Bool[np.ndarray, "height width"], *, min_area: float = 0.15) -> tuple[str, ...]:
    """Return why a lung mask cannot be trusted.

    Args:
        mask: Lungs, cleaned.
        min_area: Least area of both lungs as a fraction of the image's (0.15: Loan 2022), in [0, 1].

    Returns:
        Ids, in a fixed order; `explain_reason` gives sentences. "lungs-not-found" stands alone. Empty = plausible.

    Raises:
        ConfigError: If `min_area` is out of range.
    """
    _check_fraction("min_area", min_area)
    area = float(mask.mean())
    if area < min(NOT_FOUND_AREA, min_area) or not mask.any():
        return ("lungs-not-found",)
    reasons = []
    if area < min_area:
        reasons.append(f"lung-area-below-{round(100 * min_area, 4):g}-percent")
    centres = [centre for _, centre in _lungs(mask)]
    if len(centres) < 2:
        reasons.append("only-one-lung-found")
    elif abs(centres[0][1] - centres[1][1]) > abs(centres[0][0] - centres[1][0]):
        reasons.append("lungs-not-side-by-side")
    return tuple(reasons)


def explain_reason(reason: str) -> str:
    """Return the sentence for a reason.

    Args:
        reason: An id that `lung_reasons` returned, with whatever `min_area`.

    Returns:
        The sentence; other ids come back as they are.
    """
    percent = reason.removeprefix("lung-area-below-").removesuffix("-percent")
    if percent != reason:
        return REASONS["lung-area-below-15-percent"].replace("15 %", f"{percent} %")
    return REASONS.get(reason, reason)


def lung_sides(
    mask: Bool[np.ndarray, "height width"],
) -> tuple[Bool[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """Part a mask into two lungs.

    Args:
        mask: Lungs, cleaned.

    Returns:
        The lung on the image's left (the patient's right) and the one on the image's right; empty = not found.
    """
    lungs = sorted(_lungs(mask), key=lambda lung: lung[1][0])
    nothing = np.zeros_like(mask)
    if len(lungs) == 2:
        return lungs[0][0], lungs[1][0]
    if lungs and lungs[0][1][0] < mask.shape[1] / 2:
        return lungs[0][0], nothing
    return nothing, lungs[0][0] if lungs else nothing


@POSTPROCESS_STEPS.register("fill_holes")
def fill_holes(
    mask: Bool[np.ndarray, "height width"], *, max_area: float | None = None
) -> Bool[np.ndarray, "height width"]:
    """Fill what the mask encloses.

    Args:
        mask: What to clean.
        max_area: Largest hole to fill, as a fraction of the image's area; None = all.

    Returns:
        The mask.

    Raises:
        ConfigError: If `max_area` is out of range.
    """
    if max_area is not None:
        _check_fraction("max_area", max_area)
    frame = np.pad(~mask, 1, constant_values=True)  # all background at the border is one part
    parts, areas = _parts(frame, connectivity=4)
    filled = areas <= (1.0 if max_area is None else max_area) * mask.size
    filled[parts[0, 0]] = False
    filled[0] = False  # the mask itself
    return np.asarray(mask | filled[parts][1:-1, 1:-1])


@POSTPROCESS_STEPS.register("largest_components")
def largest_components(
    mask: Bool[np.ndarray, "height width"], *, count: int = 2, min_share: float = 0.05
) -> Bool[np.ndarray, "height width"]:
    """Keep the largest connected parts.

    Args:
        mask: What to clean.
        count: How many to keep at most, from 1 up.
        min_share: What is smaller than this fraction of the largest part is removed too: it is no lung.

    Returns:
        The mask.

    Raises:
        ConfigError: If a parameter is out of range.
    """
    _check_fraction("min_share", min_share)
    count = check_whole(count, "count", 1)
    parts, areas = _parts(mask)
    kept = np.zeros(len(areas), bool)  # a table: many times faster than np.isin
    kept[_largest(areas, count, min_share)] = True
    return np.asarray(kept[parts])


@POSTPROCESS_STEPS.register("remove_small_objects")
def remove_small_objects(
    mask: Bool[np.ndarray, "height width"], *, min_area: float = 0.002
) -> Bool[np.ndarray, "height width"]:
    """Remove small connected parts.

    Args:
        mask: What to clean.
        min_area: Smallest part to keep, as a fraction of the image's area.

    Returns:
        The mask.

    Raises:
        ConfigError: If `min_area` is out of range.
    """
    _check_fraction("min_area", min_area)
    parts, areas = _parts(mask)
    return np.asarray(mask & (areas >= min_area * mask.size)[parts])


@POSTPROCESS_STEPS.register("remove_small_holes")
def remove_small_holes(
    mask: Bool[np.ndarray, "height width"], *, max_area: float = 0.002
) -> Bool[np.ndarray, "height width"]:
    """Fill small holes.

    Args:
        mask: What to clean.
        max_area: Largest hole to fill, as a fraction of the image's area.

    Returns:
        The mask.

    Raises:
        ConfigError: If `max_area` is out of range.
    """
    return fill_holes(mask, max_area=max_area)


@POSTPROCESS_STEPS.register("open")
def open_mask(mask: Bool[np.ndarray, "height width"], *, radius: float = 0.01) -> Bool[np.ndarray, "height width"]:
    """Remove what a disc does not fit into: spurs and thin bridges.

    Args:
        mask: What to clean.
        radius: Of the disc, as a fraction of the image's longer side, in [0, 0.1].

    Returns:
        The mask.

    Raises:
        ConfigError: If `radius` is out of range.
    """
    return _morph(mask, radius, cv2.MORPH_OPEN)


@POSTPROCESS_STEPS.register("close")
def close_mask(mask: Bool[np.ndarray, "height width"], *, radius: float = 0.01) -> Bool[np.ndarray, "height width"]:
    """Fill gaps that a disc does not fit into.

    Args:
        mask: What to clean.
        radius: Of the disc, as a fraction of the image's longer side, in [0, 0.1].

    Returns:
        The mask.

    Raises:
        ConfigError: If `radius` is out of range.
    """
    return _morph(mask, radius, cv2.MORPH_CLOSE)


@POSTPROCESS_STEPS.register("split_fused")
def split_fused(mask: Bool[np.ndarray, "height width"], *, max_width: float = 0.6) -> Bool[np.ndarray, "height width"]:
    """Cut two lungs apart that touch, where what joins them is thinnest.

    The mask is worn down from its edge until two bodies are left that lie side by side and are of like size; every
    pixel then goes to the body nearer to it, and a line one pixel wide between them is removed. Where there are
    two lungs already, or no such bodies, the mask comes back as it is.

    Args:
        mask: What to clean.
        max_width: Widest bridge to cut, as a fraction of the mask's greatest width, in [0, 1].

    Returns:
        The mask.

    Raises:
        ConfigError: If `max_width` is out of range.
    """
    _check_fraction("max_width", max_width)
    parts, areas = _parts(mask)
    largest = _largest(areas, 2, 0.05)
    if len(largest) != 1:
        return mask
    body = parts == largest[0]
    depth = cv2.distanceTransform(np.pad(body, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    for share in np.linspace(0, max_width, 13)[1:]:
        cores = _two_cores(depth > share * depth.max())
        if cores is not None:
            return np.asarray(mask & ~_border_between(cores, body))
    return mask


def _two_cores(worn: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "2 height width"] | None:
    parts, areas = _parts(worn)
    largest = _largest(areas, 2, 0.25)
    if len(largest) != 2:
        return None
    cores = np.stack([parts == part for part in largest])
    across, down = np.abs(_centre(cores[0]) - _centre(cores[1]))
    return cores if across > down else None


def _border_between(
    cores: Bool[np.ndarray, "2 height width"], body: Bool[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """Pixels of the body that are nearer to the first core and touch one that is nearer to the second."""
    first, second = (cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5) for core in cores)
    theirs = cv2.dilate((body & (second < first)).astype(np.uint8), np.ones((3, 3), np.uint8))
    return np.asarray(body & (first <= second) & (theirs > 0))


def _lungs(mask: Bool[np.ndarray, "height width"]) -> list[tuple[Bool[np.ndarray, "height width"], Any]]:
    """The two lungs, or what there is of them, with their centres (x, y); lungs that touch count as two."""
    parts, areas = _parts(split_fused(mask))
    lungs = [parts == part for part in _largest(areas, 2, 0.05)]
    return [(lung, _centre(lung)) for lung in lungs]


def _largest(areas: Int[np.ndarray, " parts"], count: int, min_share: float) -> list[int]:
    """Numbers of the largest parts, largest first; among equals the one nearer to the image's top comes first."""
    order = np.argsort(-areas, kind="stable")[:count]
    return [int(part) for part in order if areas[part] > 0 and areas[part] >= min_share * areas.max()]


def _parts(
    mask: Bool[np.ndarray, "height width"], connectivity: int = 8
) -> tuple[Int[np.ndarray, "height width"], Int[np.ndarray, " parts"]]:
    """Number of each pixel's connected part, and each part's area; part 0, the rest, has area 0."""
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)
    areas = np.bincount(parts.ravel(), minlength=count)  # OpenCV's own statistics take three times as long
    areas[0] = 0
    return parts, areas


def _centre(part: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, 2]:
    """Centre (x, y) of a part that is not empty."""
    sums = cv2.moments(part.astype(np.uint8), binaryImage=True)
    return np.array([sums["m10"], sums["m01"]]) / sums["m00"]


def _morph(mask: Bool[np.ndarray, "height width"], radius: float, operation: int) -> Bool[np.ndarray, "height width"]:
    _check_fraction("radius", radius, most=_LARGEST_RADIUS)
    side = 2 * round(radius * max(mask.shape)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), operation, disc) > 0)


def _check_fraction(name: str, value: object, most: float = 1) -> None:
    if not is_number(value) or not 0 <= value <= most:
        raise ConfigError(f"{name} must be a number in [0, {most}], not {value!r}.")
