"""How many images are held at a time: batches that are bounded by their number and by their pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from io import IOBase
from numbers import Integral
from typing import Any, TypeVar

from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.io.image import image_size

__all__ = ["BATCH_IMAGES", "BATCH_PIXELS", "check_counts", "count_pixels", "split_batches"]

BATCH_IMAGES = 16
"""Images of a batch where nobody says another number."""

BATCH_PIXELS = 32_000_000
"""Pixels of a batch, at most: at work a pixel takes some 10 bytes. A larger image makes a batch of its own."""

T = TypeVar("T")


def split_batches(items: Iterable[T], size: int, pixels: Callable[[T], int]) -> Iterator[list[T]]:
    """Split images into batches of at most `size` images and `BATCH_PIXELS` pixels.

    Where a batch ends depends on itself alone, so that images which begin with a batch are split as before.

    Args:
        items: The images, or what names them; taken a batch at a time, and one more where pixels end a batch.
        size: Images of a batch, from 1 up.
        pixels: Returns the number of pixels of an item.

    Yields:
        The items of a batch, at least one.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        count = pixels(item)
        if batch and total + count > BATCH_PIXELS:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += count
        if len(batch) == size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def check_counts(batch_size: object, num_workers: object) -> tuple[int, int]:
    """Raise an error for a batch size or a number of threads that is out of range.

    Args:
        batch_size: Images a batch, from 1 up; NumPy's whole numbers are such too.
        num_workers: Threads that read images, from 0 up.

    Returns:
        Both.

    Raises:
        ConfigError: If one is no whole number, or too small.
    """
    counts: tuple[tuple[Any, int], ...] = (batch_size, 1), (num_workers, 0)
    for count, least in counts:
        if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < least:
            raise ConfigError(
                f"batch_size must be 1 or more and num_workers 0 or more, not {batch_size} and {num_workers}."
            )
    return int(batch_size), int(num_workers)  # type: ignore[call-overload]


def count_pixels(image: object) -> int:
    """Return how many pixels an image has, from a file's header alone.

    Args:
        image: Whatever `read_image` reads.

    Returns:
        Height times width; 0 for what cannot be read, as reading it will say.
    """
    if isinstance(image, bytearray):
        image = bytes(image)
    elif isinstance(image, IOBase) and image.seekable():
        file, place = image, image.tell()
        image = file.read()
        file.seek(place)
    if isinstance(image, str | os.PathLike | bytes):
        try:
            return math.prod(image_size(image))
        except ImageReadError:
            return 0
    size = getattr(image, "shape", None) or getattr(image, "size", None)  # of arrays and tensors, of PIL images
    if not isinstance(size, tuple):
        size = getattr(image, "Rows", 0), getattr(image, "Columns", 0)  # of DICOM data sets
    return math.prod(size)
