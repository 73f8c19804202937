"""Text in pictures: one font, few sizes, and names that are cut where they would not fit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from covidcxr.files import replace_file

__all__ = ["DIM", "INK", "LINE", "Color", "font", "save_picture", "shortened", "text_width"]

Color = tuple[int, int, int]
INK: Color = (28, 33, 40)
DIM: Color = (89, 99, 110)
LINE: Color = (213, 218, 225)


@cache
def font(size: int) -> Any:
    """Return the font that comes with Pillow, at a size in pixels."""
    return ImageFont.load_default(size)


def text_width(draw: ImageDraw.ImageDraw, text: str, size: int) -> int:
    """Return how wide a text is in pixels."""
    return int(np.ceil(draw.textlength(text, font(size))))


def shortened(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """Cut the middle out of a text that is wider than `width`: the ends of file names tell most."""
    keep = len(text)
    cut = text
    while keep > 2 and text_width(draw, cut, size) > width:
        keep -= 1
        cut = f"{text[: (keep + 1) // 2].rstrip()}...{text[len(text) - keep // 2 :].lstrip()}"
    return cut


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a PNG that appears complete or not at all."""
    with replace_file(path) as draft:
        picture.save(draft, format="PNG", optimize=True)
    return path
