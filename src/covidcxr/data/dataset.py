"""One data set class for all data sets: a record becomes an image, a label and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from covidcxr.config import PreprocessConfig
from covidcxr.data.cache import FittedImage, ImageCache, StoredImages
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError, did_you_mean
from covidcxr.io.image import read_mask, read_pixels
from covidcxr.io.pixels import unit_scale
from covidcxr.transforms.augment import Augment
from covidcxr.transforms.geometry import apply_region
from covidcxr.transforms.pyramid import ImagePyramid, Pixels, fit_mask, letterbox_box
from covidcxr.types import LUNGS_OF_REGION, Fit, Region, Sample

__all__ = ["CXRDataset", "FittedImage", "box_slices", "check_mask_size"]
__all__ += ["finding_table", "fit_record", "label_numbers", "open_image", "open_pixels"]

_TOLERANCE = 0.05  # by which the aspect ratios of an image and its mask may differ: small masks are rounded


def fit_record(
    record: Record,
    image: Pixels,
    size: tuple[int, int],
    fit: Fit,
    mask_classes: Collection[str | None] = (),
) -> FittedImage:
    """Cut an image to its box and bring it to a size, with its masks.

    Args:
        record: What is known of it.
        image: The image as it was opened, 8 bits or in [0, 1].
        size: Height and width of the frame.
        fit: "letterbox" or "stretch".
        mask_classes: The masks wanted; those that the image does not have are left out.

    Returns:
        Image and masks in the frame.

    Raises:
        ImageReadError: If a mask cannot be read.
        DatasetError: If box or mask do not suit the image.
    """
    whole = (image.shape[0], image.shape[1])
    cut = image if record.box is None else image[box_slices(record, whole)]
    fitted = ImagePyramid(np.ascontiguousarray(cut)).fit(size, fit)
    box = letterbox_box(cut.shape[0], cut.shape[1], size) if fit == "letterbox" else (0, 0, *size)
    masks = {name: _fit_mask(record, name, whole, size, box) for name in record.mask_paths if name in mask_classes}
    masks |= {name: np.zeros(size, np.uint8) for name in record.empty_masks if name in mask_classes}
    np.rint(np.multiply(fitted, 255, out=fitted), out=fitted)
    return FittedImage(fitted.astype(np.uint8), masks, box)


def box_slices(record: Record, whole: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of an image's box; those of the whole image where it has none.

    Args:
        record: The image.
        whole: Its height and width.

    Returns:
        The slices, of whole pixels.

    Raises:
        DatasetError: If the box reaches beyond the image.
    """
    top, left, bottom, right = record.box or (0, 0, *whole)
    if bottom > whole[0] or right > whole[1]:
        raise DatasetError(
            f"The box {record.box} of {record.image_path} reaches beyond the image, which is {whole[0]} x {whole[1]} "
            f"pixels (boxes are top, left, bottom, right)."
        )
    return slice(top, bottom), slice(left, right)


def check_mask_size(record: Record, name: str, size: tuple[int, int], whole: tuple[int, int]) -> None:
    """Refuse a mask that cannot be of this image. It may be larger or smaller, but not where the image has a box.

    Args:
        record: The image.
        name: The mask class.
        size: Height and width of the mask.
        whole: Height and width of the image.

    Raises:
        DatasetError: If their aspect ratios differ, or the image has a box and their sizes differ.
    """
    alike = abs(size[0] * whole[1] / (size[1] * whole[0]) - 1) <= _TOLERANCE
    if alike and (record.box is None or size == whole):
        return
    reason = "boxes need masks of the image's own size" if alike else "they do not show the same part"
    raise DatasetError(
        f"The mask {record.mask_paths[name]} is {size[0]} x {size[1]} pixels, its image {record.image_path} "
        f"{whole[0]} x {whole[1]}: {reason}. Check that they belong together."
    )


def _fit_mask(
    record: Record, name: str, whole: tuple[int, int], size: tuple[int, int], box: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "height width"]:
    """Read a mask, which may have another size than its image, and lay it over the image's place in the frame."""
    mask = read_mask(record.mask_paths[name])
    check_mask_size(record, name, (mask.shape[0], mask.shape[1]), whole)
    if record.box is not None:
        mask = mask[box_slices(record, whole)]
    top, left, height, width = box
    frame = np.zeros(size, np.uint8)
    frame[top : top + height, left : left + width] = fit_mask(mask, (height, width), "stretch")
    return frame


def label_numbers(records: Sequence[Record], classes: Sequence[str]) -> Int[Tensor, " images"]:
    """Number the labels by their place in `classes`.

    Args:
        records: The images.
        classes: Names of the classes.

    Returns:
        A number an image; -1 = not labelled.

    Raises:
        DatasetError: If a label is no class.
    """
    places = {name: place for place, name in enumerate(classes)}
    counts = Counter(record.label for record in records if record.label is not None)
    unknown = [f"{label!r} ({count})" for label, count in sorted(counts.items()) if label not in places]
    if unknown:
        raise DatasetError(
            f"Images have labels that are no classes: {', '.join(unknown)}. The classes are {tuple(classes)}. "
            f"Add them to the classes, rename them by label_map, or leave the images out (label_map: LABEL: null)."
        )
    numbers = [-1 if record.label is None else places[record.label] for record in records]
    return torch.tensor(numbers, dtype=torch.int64)


def finding_table(records: Sequence[Record], classes: Sequence[str]) -> Float[Tensor, "images classes"]:
    """Write findings as numbers.

    Args:
        records: The images.
        classes: Names of the classes, in the order of the columns.

    Returns:
        1 = shown, 0 = not shown, NaN = not known.

    Raises:
        DatasetError: If a finding is no class, or an image has a label in place of findings.
    """
    places = {name: place for place, name in enumerate(classes)}
    table = np.full((len(records), len(places)), np.nan, np.float32)
    for row, record in enumerate(records):
        if record.label is not None:
            raise DatasetError(
                f"{record.image_id} has the label {record.label!r}, but other images have findings, which may come "
                f"together. Say it as a finding: findings={{{record.label!r}: True}}."
            )
        for name, shown in record.findings.items():
            if name not in places:
                raise DatasetError(
                    f"{record.image_id} has the finding {name!r}, which is no class. {did_you_mean(name, places)}"
                )
            table[row, places[name]] = shown
    return torch.from_numpy(table)


def open_image(record: Record, bits: int | None = None) -> Float[np.ndarray, "height width"]:
    """Open the file of an image.

    Args:
        record: The image.
        bits: Bits of its numbers where their type does not tell; see `read_image`.

    Returns:
        Grey, in [0, 1].
    """
    return unit_scale(open_pixels(record, bits))


def open_pixels(record: Record, bits: int | None = None, enough: tuple[int, int] | None = None) -> Pixels:
    """Open the file of an image as `open_image` does, but leave 8 bits as they are.

    Args:
        record: The image.
        bits: As of `open_image`.
        enough: Height and width that the image will be brought to; see `read_pixels`. Not used where it has a box,
            which is told in pixels of the whole image.

    Returns:
        Grey, 8 bits or in [0, 1].
    """
    return read_pixels(record.image_path, bits=bits, enough=None if record.box else enough)


class CXRDataset(Dataset[Sample]):
    """Images as samples.

    Reads an image, cuts its box, brings it to `image_size`, augments image and masks together, and cuts the region.

    Args:
        records: The images.
        classes: Names of the classes; a sample's label is the place of its class in here, -1 = not labelled.
        multilabel: Whether classes are not exclusive: then a sample's label says for each class whether the image shows
            it, 1 or 0, NaN = not known. By default when a record has findings; parts of one data set say it alike.
        mask_classes: Names of the masks wanted, in the order of the planes.
        image_size: Height and width of the samples.
        fit: How images come to that size: "letterbox" or "stretch".
        region: "full", "box" = the rectangle around the lungs, "lungs", or "background" = the image with the lungs
            removed.
        lung_dilation: By how much the lungs are widened before the region is cut, a fraction of the longer side.
        augment: Name of a preset, albumentations transforms, or an `Augment`; None = none.
        cache: "memory" keeps every image once it was read, as uint8 at `image_size` and before augmentation, in one
            piece of memory that worker processes share; see `covidcxr.data.cache.ImageCache`. Or the same images as
            they are stored with a compact copy; then no file of an image is opened.
        copies: How many of the last records are copies of others: then they alone are augmented, alike in all epochs.
        read: Opens the image of a record, grey, 8 bits or in [0, 1]; by default from its `image_path`.
        seed: Seeds augmentation, together with the epoch and the index of the image.

    Raises:
        ConfigError: If a setting is out of range.
        DatasetError: If a label or finding is not among `classes`, or an image lacks the lung mask that the region
            needs.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.data import CXRDataset, Record

        images = CXRDataset([Record(Path("image.png"), "normal")], classes=("covid19", "normal"), image_size=(64, 64))
        sample = images[0]
        assert sample["image"].shape == (1, 64, 64) and sample["label"] == 1
        ```
    """

    def __init__(
        self,
        records: Iterable[Record],
        *,
        classes: Sequence[str],
        multilabel: bool | None = None,
        mask_classes: Sequence[str] = (),
        image_size: tuple[int, int] = (256, 256),
        fit: Fit = "letterbox",
        region: Region = "full",
        lung_dilation: float = 0.0,
        augment: str | Sequence[Any] | Augment | None = None,
        cache: Literal["memory"] | StoredImages | None = None,
        copies: int = 0,
        read: Callable[[Record], Pixels] | None = None,
        seed: int = 0,
    ) -> None:
        self.records = tuple(records)
        self.classes, self.mask_classes = tuple(classes), tuple(mask_classes)
        self.geometry = PreprocessConfig(image_size=image_size, fit=fit, region=region, lung_dilation=lung_dilation)
        self.augment = augment if augment is None or isinstance(augment, Augment) else Augment(augment)
        if cache not in (None, "memory") and not isinstance(cache, StoredImages):
            raise ConfigError(f'cache must be "memory" or null, not {cache!r}.')
        if not 0 <= copies <= len(self.records):
            raise ConfigError(f"copies must be from 0 to {len(self.records)}, the number of images, not {copies}.")
        self.copies, self.seed = copies, seed
        self._open = read or partial(open_pixels, enough=self.geometry.image_size)
        self.multilabel = any(record.findings for record in self.records) if multilabel is None else multilabel
        self.labels = (finding_table if self.multilabel else label_numbers)(self.records, self.classes)
        self._check_lungs()
        self._cache = None if cache is None else self._make_cache(cache)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int | tuple[int, int]) -> Sample:
        """Return one image, augmented as in the given epoch.

        Args:
            index: Place in `records`, or (epoch, place) as `EpochSampler` gives it.

        Raises:
            ImageReadError: If the image or a mask cannot be read.
            DatasetError: If box or mask do not suit the image.
        """
        epoch, index = index if isinstance(index, tuple) else (0, index)
        record = self.records[index]
        image, masks = self._augmented(self._image(index), epoch, index)
        sample = Sample(
            image=torch.from_numpy(unit_scale(image))[None],
            label=self.labels[index].clone(),
            image_id=record.image_id,
            source=record.source,
            patient_id=record.patient,
        )
        if self.mask_classes:
            unknown = torch.full(self.geometry.image_size, torch.nan)
            sample["mask"] = torch.stack([masks.get(name, unknown) for name in self.mask_classes])
        lungs = self._lung_class(record)
        if lungs is not None:
            sample["lung_mask"] = masks[lungs][None]
            # After augmentation, so that noise and brightness leave black what is cut.
            sample["image"] = apply_region(
                sample["image"][None], sample["lung_mask"][None], self.geometry.region, self.geometry.lung_dilation
            )[0]
        return sample

    def _make_cache(self, kind: Literal["memory"] | StoredImages) -> ImageCache:
        lungs = {name for name in map(self._lung_class, self.records) if name}
        masks = sorted({*self.mask_classes, *lungs})
        return (
            ImageCache(len(self.records), self.geometry.image_size, masks)
            if kind == "memory"
            else kind.with_masks(masks)
        )

    def pixels(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """Return an image at the network's size, without padding, before augmentation and region.

        Args:
            index: Place in `records`.

        Returns:
            Its grey values.
        """
        image = self._image(index)
        return image.without_padding(image.image)

    def _image(self, index: int) -> FittedImage:
        kept = self._cache[index] if self._cache else None
        if kept is None:
            kept = self._read(self.records[index])
            if self._cache:
                self._cache[index] = kept
        return kept

    def _read(self, record: Record) -> FittedImage:
        wanted = {*self.mask_classes, self._lung_class(record)}
        return fit_record(record, self._open(record), self.geometry.image_size, self.geometry.fit, wanted)

    def _augmented(
        self, fitted: FittedImage, epoch: int, index: int
    ) -> tuple[UInt8[np.ndarray, "h w"], dict[str, Tensor]]:
        image, names = fitted.image, list(fitted.masks)
        planes = np.stack(list(fitted.masks.values())) if names else None
        if self.copies:
            epoch = 0
        if self.augment is not None and (not self.copies or index >= len(self.records) - self.copies):
            mixed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]
            image, planes = self.augment(image, planes, seed=int(mixed))
        return image, {} if planes is None else dict(zip(names, torch.from_numpy(planes).float(), strict=True))

    def _lung_class(self, record: Record) -> str | None:
        return next((name for name in LUNGS_OF_REGION[self.geometry.region] if name in record.mask_paths), None)

    def _check_lungs(self) -> None:
        region = self.geometry.region
        lacking = 0 if region == "full" else sum(self._lung_class(record) is None for record in self.records)
        if lacking:
            raise DatasetError(
                f'region="{region}" needs a lung mask (lung_field or lung) of every image; {lacking} of '
                f"{len(self.records)} have none. Make masks with a lung segmenter (covidcxr predict), leave these "
                f'images out, or use region="full".'
            )
