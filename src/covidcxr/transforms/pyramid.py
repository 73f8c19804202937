"""Images of 8 bits on their way to the size of networks, and masks on their way back: once, and fast.

The data set and the pipeline both read images by `ImagePyramid`, so that a network sees in use what it saw in training.
"""

from __future__ import annotations

import math
from typing import TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8

from covidcxr.transforms.geometry import letterbox_box, restore_map
from covidcxr.types import Fit

__all__ = ["ImagePyramid", "Pixels", "fit_mask", "restore_mask"]

Pixels: TypeAlias = UInt8[np.ndarray, "_ _"] | Float[np.ndarray, "_ _"]
"""A grey image: 8 bits, or floats in [0, 1] where the file has more."""

_MANY_PIXELS = 8_000_000
"""Masks of larger images are enlarged in 8 bits instead of 16, where memory costs more than the numbers do."""


class ImagePyramid:
    """An image and its halves, by which it comes to the size of networks: it is shrunk once for all of them.

    Each half holds the means of 2 x 2 pixels. An image that is at least eight times as large as a network wants it is
    halved until it is four to eight times as large; the rest is the antialiased resizing of `resize_image`.

    Args:
        image: Grey, 8 bits or in [0, 1].

    Example:
        ```python
        import numpy as np

        from covidcxr.transforms.pyramid import ImagePyramid

        pyramid = ImagePyramid(np.full((400, 200), 51, np.uint8))
        assert pyramid.fit((32, 32)).shape == (32, 32) and pyramid.fit((32, 32))[16, 16] == np.float32(0.2)
        ```
    """

    def __init__(self, image: Pixels) -> None:
        self.image = image
        self._halves = [image]

    def fit(self, size: tuple[int, int], fit: Fit = "letterbox") -> Float[np.ndarray, "new_height new_width"]:
        """Bring the image to a network's size.

        Args:
            size: Height and width wanted.
            fit: As of `resize_image`.

        Returns:
            A new image in [0, 1].
        """
        height, width = self.image.shape
        top, left, *inner = letterbox_box(height, width, size) if fit == "letterbox" else (0, 0, *size)
        frame = np.zeros(size, np.float32)
        small = self._resized(inner[0], inner[1])
        white = 255 if self.image.dtype == np.uint8 else 1
        np.divide(small, white, out=frame[top : top + inner[0], left : left + inner[1]], dtype=np.float32)
        return frame

    def _resized(self, height: int, width: int) -> Shaped[np.ndarray, "_ _"]:
        from PIL import Image

        if self.image.shape == (height, width):
            return self.image
        level = 0
        while min(self.image.shape[0] / height, self.image.shape[1] / width) >= 8 << level:
            level += 1
            if level == len(self._halves):
                self._halves.append(_halve(self._halves[-1]))
        whole = (0.0, 0.0, self.image.shape[1] / (1 << level), self.image.shape[0] / (1 << level))
        half = self._halves[level]
        # Pillow reads 8 bits where they lie, and turns them into floats in one pass; floats it would copy twice.
        picture = Image.fromarray(half if half.dtype == np.uint8 else half.astype(np.float32, copy=False)).convert("F")
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=whole))


def _halve(image: Pixels) -> Pixels:
    """Take the means of 2 x 2 pixels; of an odd side the last pixel counts twice."""
    import cv2

    height, width = image.shape
    if height % 2 or width % 2:
        image = cast(Pixels, cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
    size = (image.shape[1] // 2, image.shape[0] // 2)
    return cast(Pixels, cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def fit_mask(
    mask: Bool[np.ndarray, "_ _"], size: tuple[int, int], fit: Fit = "letterbox"
) -> Bool[np.ndarray, "new_height new_width"]:
    """Bring a mask to a network's size, as `resize_mask` does: set is what was set at least by half.

    Args:
        mask: True inside.
        size: Height and width wanted.
        fit: As for the image.

    Returns:
        The mask.
    """
    return ImagePyramid(np.negative(mask.view(np.uint8))).fit(size, fit) >= 0.5  # 1 becomes 255


def restore_mask(
    values: Float[np.ndarray, "height width"], threshold: float, size: tuple[int, int], fit: Fit = "letterbox"
) -> Bool[np.ndarray, "new_height new_width"]:
    """Cut a map at the network's size, and bring it back to the image's own: `restore_map` in whole numbers.

    Args:
        values: Probabilities at the network's size; NaN is in no mask.
        threshold: From which a pixel belongs to the mask, in [0, 1].
        size: Height and width of the image.
        fit: As for the image.

    Returns:
        The mask.
    """
    import cv2

    if fit == "letterbox":
        top, left, height, width = letterbox_box(size[0], size[1], (values.shape[0], values.shape[1]))
        values = values[top : top + height, left : left + width]
    if values.shape == tuple(size):
        return values >= threshold
    if size[0] < values.shape[0] or size[1] < values.shape[1]:
        return np.asarray(restore_map(torch.from_numpy(values)[None, None], size, "stretch")[0, 0].numpy() >= threshold)
    white, kind = (65535, np.uint16) if math.prod(size) <= _MANY_PIXELS else (255, np.uint8)
    first = min(int(white * threshold) + 1, white)  # the first grey inside; shifted, so that rounding moves no pixel
    shifted = np.nan_to_num(values) * np.float32(white) + np.float32(first - white * threshold)
    large = cv2.resize(shifted.clip(0, white).astype(kind), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.greater_equal(large, kind(first), out=large.view(np.bool_) if kind is np.uint8 else None))
