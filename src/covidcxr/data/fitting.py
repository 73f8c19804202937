"""Films and masks at the network's size, as samples and compact copies hold them."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8

from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.io import read_mask
from covidcxr.transforms import fit_image, fit_mask, letterbox_box
from covidcxr.types import Fit

__all__ = ["FittedFilm", "box_slices", "check_mask_size", "fit_film"]

_TOLERANCE = 0.05
"""By how much the aspect ratios of a film and its mask may differ: a small mask was rounded to whole pixels."""


class FittedFilm(NamedTuple):
    """A film at the network's size, before augmentation.

    Attributes:
        image: Its grey values.
        masks: Those that were asked for and are known, 0 or 1, by mask class.
        box: Where the film lies in the frame: top, left, height, width; around it is padding.
    """

    image: UInt8[np.ndarray, "height width"]
    masks: dict[str, UInt8[np.ndarray, "height width"]]
    box: tuple[int, int, int, int]

    def without_padding(self, plane: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "h w"]:
        """Cut the image or a mask to the film."""
        top, left, height, width = self.box
        return plane[top : top + height, left : left + width]


def fit_film(
    record: Record,
    image: Float[np.ndarray, "height width"],
    size: tuple[int, int],
    fit: Fit,
    mask_classes: Collection[str | None] = (),
) -> FittedFilm:
    """Cut a film to its box and bring it to a size, with its masks.

    Args:
        record: What is known of it.
        image: The film as it was opened, in [0, 1].
        size: Height and width of the frame.
        fit: "letterbox" or "stretch".
        mask_classes: The masks wanted; those that the film does not have are left out.

    Raises:
        ImageReadError: If a mask cannot be read.
        DatasetError: If box or mask do not suit the film.
    """
    whole = (image.shape[0], image.shape[1])
    cut = image if record.box is None else image[box_slices(record, whole)]
    fitted = fit_image(torch.from_numpy(cut)[None, None], size, fit)
    box = letterbox_box(cut.shape[0], cut.shape[1], size) if fit == "letterbox" else (0, 0, *size)
    masks = {name: _fit_mask(record, name, whole, size, box) for name in record.mask_paths if name in mask_classes}
    masks |= {name: np.zeros(size, np.uint8) for name in record.empty_masks if name in mask_classes}
    return FittedFilm((fitted[0, 0] * 255).round().to(torch.uint8).numpy(), masks, box)


def box_slices(record: Record, whole: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of a film's box; those of the whole film where it has none.

    Args:
        record: The film.
        whole: Its height and width.

    Raises:
        DatasetError: If the box reaches beyond the film.
    """
    top, left, bottom, right = record.box or (0, 0, *whole)
    if bottom > whole[0] or right > whole[1]:
        raise DatasetError(
            f"The box {record.box} of {record.image_path} reaches beyond the film, which is {whole[0]} x {whole[1]} "
            f"pixels (boxes are top, left, bottom, right)."
        )
    return slice(top, bottom), slice(left, right)


def check_mask_size(record: Record, name: str, size: tuple[int, int], whole: tuple[int, int]) -> None:
    """Refuse a mask that cannot be of this film. It may be larger or smaller, but not where the film has a box.

    Args:
        record: The film.
        name: The mask class.
        size: Height and width of the mask.
        whole: Height and width of the film.

    Raises:
        DatasetError: If their aspect ratios differ, or the film has a box and their sizes differ.
    """
    alike = abs(size[0] * whole[1] / (size[1] * whole[0]) - 1) <= _TOLERANCE
    if alike and (record.box is None or size == whole):
        return
    reason = "boxes need masks of the film's own size" if alike else "they do not show the same part"
    raise DatasetError(
        f"The mask {record.mask_paths[name]} is {size[0]} x {size[1]} pixels, its film {record.image_path} "
        f"{whole[0]} x {whole[1]}: {reason}. Check that they belong together."
    )


def _fit_mask(
    record: Record, name: str, whole: tuple[int, int], size: tuple[int, int], box: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "height width"]:
    """Read a mask, which may have another size than its film, and lay it over the film's place in the frame."""
    mask = read_mask(record.mask_paths[name])
    check_mask_size(record, name, (mask.shape[0], mask.shape[1]), whole)
    if record.box is not None:
        mask = mask[box_slices(record, whole)]
    top, left, height, width = box
    frame = np.zeros(size, np.uint8)
    fitted = fit_mask(torch.from_numpy(mask).float()[None, None], (height, width), "stretch")
    frame[top : top + height, left : left + width] = fitted[0, 0].numpy()
    return frame
