"""Images at the network's size, in memory or in a file, once for all processes of a machine that read them."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.folders import replace_file

__all__ = ["FittedImage", "ImageCache", "StoredImages", "store_images"]

_UNKNOWN = 2  # first in a mask's plane: the image has no such mask
_PIXELS, _BOXES = "pixels.bin", "boxes.npy"


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

    def __init__(self, count: int, size: tuple[int, int], masks: Sequence[str] = ()) -> None:
        self._settings: tuple[Any, ...] = (count, size, tuple(masks))
        self._places = {name: place for place, name in enumerate(masks, 1)}
        shape = (count, 1 + len(masks), *size)
        try:
            planes = np.frombuffer(mmap.mmap(-1, max(1, math.prod(shape))), np.uint8, math.prod(shape))
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"There is no memory for {count:,} images of {size[0]} x {size[1]} pixels "
                f"({math.prod(shape) / 1e9:.1f} GB). Leave cache away, and read a compact copy of the images "
                f"(covidcxr datasets prepare)."
            ) from error
        self._planes = planes.reshape(shape)
        self._boxes = np.frombuffer(mmap.mmap(-1, max(1, count) * 16), np.int32, count * 4).reshape(count, 4)

    def __getitem__(self, index: int) -> FittedImage | None:
        """Return a copy of an image; None = it was not kept yet."""
        top, left, height, width = self._boxes[index].tolist()
        if not height:
            return None
        planes = self._planes[index]
        known = {name: np.array(planes[at]) for name, at in self._places.items() if planes[at, 0, 0] != _UNKNOWN}
        return FittedImage(np.array(planes[0]), known, (top, left, height, width))

    def __setitem__(self, index: int, fitted: FittedImage) -> None:
        """Keep an image. Two processes may do so at once: what they write is the same."""
        self._planes[index, 0] = fitted.image
        for name, place in self._places.items():
            if name in fitted.masks:
                self._planes[index, place] = fitted.masks[name]
            else:
                self._planes[index, place, 0, 0] = _UNKNOWN
        self._boxes[index, :2], self._boxes[index, 3] = fitted.box[:2], fitted.box[3]
        self._boxes[index, 2] = fitted.box[2]  # last: from now on the image counts as kept

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the images behind on the way to a process that is started afresh."""
        return type(self), self._settings


class StoredImages(ImageCache):
    """The images and masks of a compact copy at its own size, in a file that is mapped into memory.

    Nothing is decoded, and all processes of a machine share what the system keeps of the file, however they are
    started; a machine with little memory reads from the disk again what it could not keep.

    Args:
        folder: Where `store_images` wrote them.
        size: Height and width of the images.
        masks: The mask classes of the file.
        rows: The place in the file of each image of this collection.
        wanted: The mask classes to be read; None = all.

    Raises:
        DatasetError: If the file is not whole.

    Example:
        ```python
        from pathlib import Path

        import numpy as np

        from covidcxr.data.cache import FittedImage, StoredImages, store_images

        with store_images(Path("stored"), masks=("lung",)) as store:
            for grey in range(3):
                store(FittedImage(np.full((8, 8), grey, np.uint8), {}, (0, 0, 8, 8)))
        images = StoredImages(Path("stored"), (8, 8), ("lung",), rows=np.array([2, 0]))
        assert images[0].image.max() == 2 and not images[0].masks
        ```
    """

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int],
        masks: Sequence[str],
        rows: Int[np.ndarray, " images"],
        wanted: Collection[str] | None = None,
    ) -> None:
        self._settings = self._file = (folder, size, tuple(masks), rows)
        self._settings += (wanted,)
        self._rows = rows
        self._places = {name: at for at, name in enumerate(masks, 1) if wanted is None or name in wanted}
        try:
            self._boxes = np.load(folder / _BOXES, allow_pickle=False)
            shape = (len(self._boxes), 1 + len(masks), *size)
            if (folder / _PIXELS).stat().st_size != math.prod(shape) or rows.max(initial=0) >= shape[0]:
                raise ValueError("its size is not what the copy tells")
            self._planes = np.memmap(folder / _PIXELS, np.uint8, "r", shape=shape)
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{folder / _PIXELS} cannot be used: {error}. Copy it again from its origin, or remove it: the images "
                f"of the compact copy are then read from their own files."
            ) from error

    def __getitem__(self, index: int) -> FittedImage | None:
        """Return a copy of an image, with the masks that are wanted and known."""
        return super().__getitem__(int(self._rows[index]))

    def with_masks(self, wanted: Collection[str]) -> StoredImages:
        """Return the same images with other masks.

        Args:
            wanted: The mask classes to be read.

        Returns:
            The images.
        """
        return StoredImages(*self._file, wanted)

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Tell whether a folder holds stored images.

        Args:
            folder: The folder.

        Returns:
            False also where they were removed, which costs nothing but time.
        """
        return (folder / _PIXELS).is_file() and (folder / _BOXES).is_file()

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove stored images, if there are any.

        Args:
            folder: The folder.
        """
        for name in (_BOXES, _PIXELS):
            (folder / name).unlink(missing_ok=True)


@contextmanager
def store_images(folder: Path, masks: Sequence[str]) -> Iterator[Callable[[FittedImage], None]]:
    """Write images of one size for `StoredImages`, one after the other; the files appear complete or not at all.

    Args:
        folder: Where to.
        masks: The mask classes that an image may have. One that it has not takes next to no room on the disk.

    Yields:
        A function that takes the next image.
    """
    boxes: list[tuple[int, int, int, int]] = []
    with replace_file(folder / _BOXES) as box_draft:
        with replace_file(folder / _PIXELS) as draft, draft.open("wb") as file:  # mapped, a full disk ends the process

            def store(fitted: FittedImage) -> None:
                boxes.append(fitted.box)
                file.write(fitted.image.tobytes())
                for name in masks:
                    if name in fitted.masks:
                        file.write(fitted.masks[name].tobytes())
                    else:
                        file.write(bytes([_UNKNOWN]))
                        file.seek(fitted.image.size - 1, os.SEEK_CUR)

            yield store
            file.truncate()
        with box_draft.open("wb") as file:
            np.save(file, np.array(boxes, np.int32).reshape(-1, 4))
