"""The outlines of masks on the image that they belong to."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr.transforms.geometry import LUNG_CLASSES

__all__ = ["MASK_COLORS", "draw_overlay", "mask_color"]

Color: TypeAlias = tuple[int, int, int]

MASK_COLORS: dict[str, Color] = {
    "lung": (120, 120, 255),
    "lung_field": (0, 200, 255),
    "infection": (255, 90, 60),
}
"""Outline colour (RGB) of the mask classes that covidcxr's own models draw; `mask_color` has one for every class."""


def mask_color(mask_class: str) -> Color:
    """Return the outline colour of a mask class.

    Args:
        mask_class: Any name; one without an entry in `MASK_COLORS` always gets the same bright colour.

    Returns:
        Red, green and blue in 0 to 255.
    """
    if mask_class in MASK_COLORS:
        return MASK_COLORS[mask_class]
    hue = hashlib.sha256(mask_class.encode()).digest()[0] / 256
    red, green, blue = colorsys.hsv_to_rgb(0.1 + 0.3 * hue, 0.85, 1.0)  # yellow to green: no other class is there
    return round(255 * red), round(255 * green), round(255 * blue)


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

    picture = np.repeat(image[..., None], 3, axis=2)
    thickness = max(1, round(max(image.shape) / 300))
    for mask_class, mask in masks.items():
        color = mask_color(mask_class)
        if mask_class not in LUNG_CLASSES:
            picture[mask] = (0.7 * picture[mask] + 0.3 * np.array(color, dtype=np.uint8)).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, color, thickness, cv2.LINE_AA)
    return picture
