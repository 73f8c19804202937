"""The outlines of masks on the image that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr.types import LUNG_CLASSES

__all__ = ["MASK_COLORS", "draw_overlay", "mask_color", "mask_colors"]

Color: TypeAlias = tuple[int, int, int]

MASK_COLORS: dict[str, Color] = {"lung": (120, 120, 255), "lung_field": (0, 200, 255), "infection": (255, 90, 60)}
"""Outline colour (RGB) of the mask classes that covidcxr's own models draw; `mask_color` has one for every class."""

_BRIGHT: tuple[Color, ...] = (
    (255, 220, 0),
    (80, 220, 80),
    (255, 120, 220),
    (160, 255, 200),
    (255, 170, 60),
    (190, 255, 60),
    (210, 180, 140),
    (255, 255, 255),
)
_OTHERS = (*_BRIGHT, *((red * 2 // 3, green * 2 // 3, blue * 2 // 3) for red, green, blue in _BRIGHT))
"""Colours of all other classes, easy to tell apart on grey."""


def mask_color(mask_class: str) -> Color:
    """Return the outline colour of a mask class.

    Args:
        mask_class: Any name; one without an entry in `MASK_COLORS` always gets the same colour.

    Returns:
        Red, green and blue in 0 to 255.
    """
    if mask_class in MASK_COLORS:
        return MASK_COLORS[mask_class]
    return _BRIGHT[hashlib.sha256(mask_class.encode()).digest()[0] % len(_BRIGHT)]


def mask_colors(mask_classes: Iterable[str]) -> dict[str, Color]:
    """Return the outline colours of mask classes that are shown together: no two share one.

    Args:
        mask_classes: Any names; their order does not matter.

    Returns:
        By class, in the order given; `mask_color`, or where another class has that already, one that is free. Beyond
        16 classes that are not in `MASK_COLORS` colours repeat.
    """
    names = list(dict.fromkeys(mask_classes))
    colors: dict[str, Color] = {}
    for name in sorted(names):
        free = [color for color in _OTHERS if color not in colors.values()]
        color = mask_color(name)
        colors[name] = free[0] if color in colors.values() and free else color
    return {name: colors[name] for name in names}


def draw_overlay(
    image: UInt8[np.ndarray, "height width"], masks: Mapping[str, Bool[np.ndarray, "height width"]]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw an image with the outlines of its masks; findings, that is all but lungs, are tinted as well.

    Args:
        image: 8-bit grey.
        masks: By mask class, of the image's size.

    Returns:
        The picture, RGB.
    """
    import cv2

    picture = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2RGB)
    thickness = max(1, round(max(image.shape) / 300))
    colors = mask_colors(masks)
    for mask_class, mask in masks.items():
        color = colors[mask_class]
        plane = np.ascontiguousarray(mask).view(np.uint8)
        if mask_class not in LUNG_CLASSES:
            left, top, width, height = cv2.boundingRect(plane)
            box = (slice(top, top + height), slice(left, left + width))
            if width:
                tinted = cv2.addWeighted(picture[box], 0.7, np.full_like(picture[box], color), 0.3, 0)
                picture[box] = cv2.copyTo(tinted, plane[box], picture[box].copy())
        outlines, _ = cv2.findContours(plane, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, outlines, -1, color, thickness, cv2.LINE_AA)
    return picture
