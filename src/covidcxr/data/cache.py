"""Images in memory at the network's size, once for all processes of a machine that read them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from covidcxr.errors import ConfigError

__all__ = ["FittedImage", "ImageCache"]


class FittedImage(NamedTuple):
    """An image at the network's size, before augmentation.

    Attributes:
        image: Its grey values.
        masks: Those that were asked for and are known, 0 or 1, by mask class.
        box: Where the image lies in the frame: top, left, height, width; around it is padding.

    Example:
        ```python
        from pathlib import Path

        import numpy as np

        from covidcxr.data import Record
        from covidcxr.data.dataset import fit_record

        fitted = fit_record(Record(Path("a.png")), np.zeros((40, 20), np.float32), (64, 64), "letterbox")
        assert fitted.box == (0, 16, 64, 32)
        assert fitted.without_padding(fitted.image).shape == (64, 32)
        ```
    """

    image: UInt8[np.ndarray, "height width"]
    masks: dict[str, UInt8[np.ndarray, "height width"]]
    box: tuple[int, int, int, int]

    def without_padding(self, plane: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "h w"]:
        """Cut the padding off.

        Args:
            plane: The image or a mask, of the frame's size.

        Returns:
            What lies in `box`.
        """
        top, left, height, width = self.box
        return plane[top : top + height, left : left + width]


class ImageCache:
    """Images and masks as they come to the size of a network, in one piece of memory.

    Worker processes that are forked share it: an image that one of them has read, all have. Processes that are started
    afresh (spawn, forkserver: macOS, Windows, Python 3.14) get an empty one each. A page of memory is taken from the
    machine when something is first written to it.

    Args:
        count: Number of images.
        size: Their height and width.
        masks: The mask classes that an image may have.

    Raises:
        ConfigError: If the machine has not that much memory.

    Example:
        ```python
        import numpy as np

        from covidcxr.data.cache import FittedImage, ImageCache

        kept = ImageCache(10, (8, 8), masks=("lung",))
        assert kept[3] is None
        kept[3] = FittedImage(np.full((8, 8), 7, np.uint8), {}, (0, 0, 8, 8))
        assert kept[3].image.max() == 7 and not kept[3].masks
        ```
    """

    _UNKNOWN = 2  # in a mask's plane: the image has no such mask

    def __init__(self, count: int, size: tuple[int, int], masks: Sequence[str] = ()) -> None:
        self._settings = (count, size, tuple(masks))
        shape = (count, 1 + len(masks), *size)
        try:
            self._planes = np.frombuffer(mmap.mmap(-1, max(1, math.prod(shape))), np.uint8, math.prod(shape))
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"There is no memory for {count:,} images of {size[0]} x {size[1]} pixels "
                f"({math.prod(shape) / 1e9:.1f} GB). Leave cache away, and read a compact copy of the images "
                f"(covidcxr datasets prepare)."
            ) from error
        self._planes = self._planes.reshape(shape)
        self._boxes = np.frombuffer(mmap.mmap(-1, max(1, count) * 16), np.int32, count * 4).reshape(count, 4)

    def __getitem__(self, index: int) -> FittedImage | None:
        """Return a copy of an image; None = it was not kept yet."""
        top, left, height, width = self._boxes[index].tolist()
        if not height:
            return None
        image, *masks = self._planes[index].copy()
        known = {name: mask for name, mask in zip(self._settings[2], masks, strict=True) if mask[0, 0] != self._UNKNOWN}
        return FittedImage(image, known, (top, left, height, width))

    def __setitem__(self, index: int, fitted: FittedImage) -> None:
        """Keep an image. Two processes may do so at once: what they write is the same."""
        self._planes[index, 0] = fitted.image
        for place, name in enumerate(self._settings[2], 1):
            self._planes[index, place] = fitted.masks.get(name, self._UNKNOWN)
        self._boxes[index, :2], self._boxes[index, 3] = fitted.box[:2], fitted.box[3]
        self._boxes[index, 2] = fitted.box[2]  # last: from now on the image counts as kept

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the images behind on the way to a process that is started afresh."""
        return ImageCache, self._settings
