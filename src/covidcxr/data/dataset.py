"""One data set class for all data sets: a record becomes an image, a label and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from covidcxr.augmentations import Augment
from covidcxr.config import PreprocessConfig
from covidcxr.data.fitting import FittedFilm, fit_film
from covidcxr.data.records import Record
from covidcxr.data.targets import finding_table, label_numbers
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io import read_image
from covidcxr.transforms import LUNGS_OF_REGION, apply_region
from covidcxr.types import Fit, Region, Sample

__all__ = ["CXRDataset"]


class CXRDataset(Dataset[Sample]):
    """Films as samples.

    Reads a film, cuts its box, brings it to `image_size`, augments image and masks together, and cuts the region.

    Args:
        records: The films.
        classes: Names of the classes; a sample's label is the place of its class in here, -1 = not labelled.
        multilabel: Whether classes are not exclusive: then a sample's label says for each class whether the film shows
            it, 1 or 0, NaN = not known. By default when a record has findings; parts of one data set say it alike.
        mask_classes: Names of the masks wanted, in the order of the planes.
        image_size: Height and width of the samples.
        fit: How films come to that size: "letterbox" or "stretch".
        region: "full", "box" = the rectangle around the lungs, "lungs", or "background" = the film with the lungs
            removed.
        lung_dilation: By how much the lungs are widened before the region is cut, a fraction of the longer side.
        augment: Name of a preset, albumentations transforms, or an `Augment`; None = none.
        cache: "memory" keeps every film once it was read, as uint8 at `image_size` and before augmentation. Each
            worker process keeps its own, for as long as it lives.
        read: Opens the film of a record, grey in [0, 1]; by default from its `image_path`.
        seed: Seeds augmentation, together with the epoch and the index of the film.

    Raises:
        ConfigError: If a setting is out of range.
        DatasetError: If a label or finding is not among `classes`, or a film lacks the lung mask that the region needs.
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
        cache: Literal["memory"] | None = None,
        read: Callable[[Record], Float[np.ndarray, "height width"]] | None = None,
        seed: int = 0,
    ) -> None:
        self.records = tuple(records)
        self.classes = tuple(classes)
        self.mask_classes = tuple(mask_classes)
        self.geometry = PreprocessConfig(image_size=image_size, fit=fit, region=region, lung_dilation=lung_dilation)
        self.augment = augment if augment is None or isinstance(augment, Augment) else Augment(augment)
        if cache not in (None, "memory"):
            raise ConfigError(f'cache must be "memory" or null, not {cache!r}.')
        self.seed = seed
        self._open = read or _open
        self.multilabel = any(record.findings for record in self.records) if multilabel is None else multilabel
        self.labels = (finding_table if self.multilabel else label_numbers)(self.records, self.classes)
        self._cache: dict[int, FittedFilm] | None = {} if cache else None
        self._check_lungs()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int | tuple[int, int]) -> Sample:
        """Return one film, augmented as in the given epoch.

        Args:
            index: Place in `records`, or (epoch, place) as `EpochSampler` gives it.

        Raises:
            ImageReadError: If the film or a mask cannot be read.
            DatasetError: If box or mask do not suit the film.
        """
        epoch, index = index if isinstance(index, tuple) else (0, index)
        record = self.records[index]
        film = self._film(index)
        image, masks = self._augmented(film, epoch, index)
        sample = Sample(
            image=torch.from_numpy(image).float()[None] / 255,
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
            sample["image"] = self._cut_region(sample["image"], sample["lung_mask"])
        return sample

    def pixels(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """Return a film at the network's size, without padding, before augmentation and region."""
        film = self._film(index)
        return film.without_padding(film.image)

    def _film(self, index: int) -> FittedFilm:
        if self._cache is None:
            return self._read(self.records[index])
        if index not in self._cache:
            self._cache[index] = self._read(self.records[index])
        return self._cache[index]

    def _read(self, record: Record) -> FittedFilm:
        wanted = {*self.mask_classes, self._lung_class(record)}
        return fit_film(record, self._open(record), self.geometry.image_size, self.geometry.fit, wanted)

    def _augmented(
        self, film: FittedFilm, epoch: int, index: int
    ) -> tuple[UInt8[np.ndarray, "h w"], dict[str, Tensor]]:
        image, names = film.image, list(film.masks)
        planes = np.stack(list(film.masks.values())) if names else None
        if self.augment is not None:
            mixed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]
            image, planes = self.augment(image, planes, seed=int(mixed))
        if planes is None:
            return image, {}
        return image, dict(zip(names, torch.from_numpy(planes).float(), strict=True))

    def _cut_region(
        self, image: Float[Tensor, "1 height width"], lungs: Float[Tensor, "1 height width"]
    ) -> Float[Tensor, "1 height width"]:
        return apply_region(image[None], lungs[None], self.geometry.region, self.geometry.lung_dilation)[0]

    def _lung_class(self, record: Record) -> str | None:
        return next((name for name in LUNGS_OF_REGION[self.geometry.region] if name in record.mask_paths), None)

    def _check_lungs(self) -> None:
        region = self.geometry.region
        lacking = 0 if region == "full" else sum(self._lung_class(record) is None for record in self.records)
        if lacking:
            raise DatasetError(
                f'region="{region}" needs a lung mask (lung_field or lung) of every film; {lacking} of '
                f"{len(self.records)} have none. Make masks with a lung segmenter (covidcxr predict), leave these "
                f'films out, or use region="full".'
            )


def _open(record: Record) -> Float[np.ndarray, "height width"]:
    return read_image(record.image_path)
