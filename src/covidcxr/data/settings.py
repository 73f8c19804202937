"""The keyword arguments of data modules, typed: a type checker finds a misspelt one in a subclass's `**base`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

from covidcxr.data.sampler import Balance
from covidcxr.transforms.augment import Augment
from covidcxr.types import Fit, Region, SplitName

__all__ = ["CollectionSettings", "DataSettings", "DrawnFor", "Views"]

Views = Literal["frontal", "all"]
"""Which images are kept: frontal radiographs (and those whose view the data set does not tell), or all."""

DrawnFor = Literal["all", "train"]
"""Which images get predicted masks."""


class CollectionSettings(TypedDict, total=False):
    """The keyword arguments of `Collection`: a part of `DataSettings`.

    Example:
        ```python
        from covidcxr.data.settings import CollectionSettings

        settings: CollectionSettings = {"folds": 5, "fold": 0}
        ```
    """

    views: Views
    official_split: bool
    label_map: Mapping[str, str | None] | None
    drop_unlabelled: bool
    drop_unknown_patients: bool
    drawn_masks: str | PathLike[str] | None
    drawn_masks_for: DrawnFor
    min_lung_area: float
    fractions: tuple[float, float]
    fold: int | None
    folds: int | None
    hold_out_source: str | Sequence[str] | None
    split_seed: int
    bits: int | None


class DataSettings(CollectionSettings, total=False):
    """The keyword arguments of `CXRDataModule`, so that a type checker finds a misspelt one in a subclass's `**base`.

    Example:
        ```python
        from typing import Unpack

        from covidcxr.data import CXRDataModule
        from covidcxr.data.settings import DataSettings

        class OurHospital(CXRDataModule):
            def __init__(self, root: str, *, ward: str = "all", **base: Unpack[DataSettings]) -> None:
                super().__init__(root, **base)
                self.settings = {"ward": ward}
        ```
    """

    image_size: tuple[int, int] | None
    fit: Fit | None
    region: Region | None
    lung_dilation: float | None
    mask_classes: Sequence[str]
    drop_unmasked: bool
    batch_size: int
    num_workers: int | None
    augment: str | Sequence[Any] | Augment | None
    augmented_copies: Mapping[str, int] | None
    cache: Literal["memory"] | None
    balance: Balance
    predict_split: SplitName | Literal["all"]
    seed: int
