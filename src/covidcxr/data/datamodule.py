"""The base of all data sets: from records to data loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from covidcxr.config import PreprocessConfig
from covidcxr.data.collection import Collection, DrawnFor, Views
from covidcxr.data.dataset import CXRDataset
from covidcxr.data.records import Record, count_by
from covidcxr.data.sampler import (
    Balance,
    EpochSampler,
    ResumableLoader,
    class_weights,
    positive_weights,
    sampling_weights,
)
from covidcxr.errors import ConfigError, DatasetError, did_you_mean
from covidcxr.transforms.augment import Augment
from covidcxr.types import GEOMETRY, Fit, Region, SplitName

__all__ = ["CXRDataModule"]


class CXRDataModule(Collection, LightningDataModule):
    """Base of all data sets. A data set names its classes and writes `read_records`; the rest is here.

    Args:
        root: Folder of the data set, or of a compact copy that `covidcxr datasets prepare` wrote of it.
        image_size: Height and width of the samples. This and the next three are said in the model; with a Trainer the
            data module takes them from there. None = so, and without a model 256 x 256, "letterbox", "full" and 0. A
            value that is set here must agree with the model's.
        fit: How images come to that size: "letterbox" keeps the aspect ratio, "stretch" does not.
        region: "full", "box" = the rectangle around the lungs, "lungs", or "background" = the image with the lungs
            removed; all but the first need lung masks.
        lung_dilation: By how much the lungs are widened before the region is cut, a fraction of the longer side.
        mask_classes: Names of the masks wanted, in the order of the sample's planes.
        drop_unmasked: Leave out images of which none of `mask_classes` is known: a segmenter learns nothing from them.
        drawn_masks: Folder of lung masks for images that have none, as `covidcxr datasets masks` (or
            `covidcxr predict --root ROOT`) draws them: `IMAGE_ID.lung_field.png` and `IMAGE_ID.lung.png`.
        drawn_masks_for: "all" images, or "train" = training images only, so that a segmenter that learns from drawn
            masks is validated and tested on hand-drawn ones.
        min_lung_area: Leave out images whose drawn lungs cover less of the image than this, and count them in
            `left_out`; `covidcxr datasets masks` measures them.
        batch_size: Images a batch.
        num_workers: Processes that read images. 0 by default: images of ordinary size are read in milliseconds, and
            results are the same for any number. Raise it when the training device waits for data.
        augment: Preset, transforms or `Augment` for the training images; None = none.
        cache: "memory" keeps the resized images in memory, once for each worker.
        fractions: Training and validation share of the patients; the rest tests.
        fold: With `folds`: which fold tests, from 0.
        folds: Number of folds of a cross-validation; in place of `fractions`.
        hold_out_source: Source, or sources, whose patients are the test split.
        balance: Draw training images so that classes, sources, or the sources within each class come equally often;
            only "source" where classes are not exclusive.
        label_map: New names for labels; several may get one name, and the images of a label mapped to null are left
            out.
        drop_unlabelled: Leave out images without a label.
        views: "frontal" leaves out images that are known to be no frontal radiographs, and counts them in `left_out`;
            "all" keeps them.
        official_split: Use the split of the data set's authors where there is one; else split anew by patient.
        split_seed: Seeds the split; kept apart from `seed`, so that runs to be compared test on the same patients.
        seed: Seeds order and augmentation.

    Raises:
        ConfigError: If a setting is out of range or contradicts another.
    """

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        image_size: tuple[int, int] | None = None,
        fit: Fit | None = None,
        region: Region | None = None,
        lung_dilation: float | None = None,
        mask_classes: Sequence[str] = (),
        drop_unmasked: bool = False,
        drawn_masks: str | PathLike[str] | None = None,
        drawn_masks_for: DrawnFor = "all",
        min_lung_area: float = 0.0,
        batch_size: int = 16,
        num_workers: int = 0,
        augment: str | Sequence[Any] | Augment | None = "default",
        cache: Literal["memory"] | None = None,
        fractions: tuple[float, float] = (0.7, 0.15),
        fold: int | None = None,
        folds: int | None = None,
        hold_out_source: str | Sequence[str] | None = None,
        balance: Balance = "none",
        label_map: Mapping[str, str | None] | None = None,
        drop_unlabelled: bool = False,
        views: Views = "frontal",
        official_split: bool = True,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        LightningDataModule.__init__(self)
        Collection.__init__(
            self,
            root,
            views=views,
            official_split=official_split,
            label_map=label_map,
            drop_unlabelled=drop_unlabelled,
            drawn_masks=drawn_masks,
            drawn_masks_for=drawn_masks_for,
            min_lung_area=min_lung_area,
            fractions=fractions,
            fold=fold,
            folds=folds,
            hold_out_source=hold_out_source,
            split_seed=split_seed,
        )
        if balance not in get_args(Balance):
            raise ConfigError(f"balance must be one of {', '.join(get_args(Balance))}, not {balance!r}.")
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(f"batch_size ({batch_size}) must be from 1 up, num_workers ({num_workers}) from 0 up.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = Augment(augment) if isinstance(augment, str | Sequence) else augment
        self.balance = balance
        self.seed = seed
        geometry = {"image_size": image_size, "fit": fit, "region": region, "lung_dilation": lung_dilation}
        self._geometry_set: dict[str, Any] = {name: value for name, value in geometry.items() if value is not None}
        self.geometry = PreprocessConfig(**self._geometry_set)
        if self._geometry_set:
            self._check_copy()
        self.mask_classes = tuple(mask_classes)
        if drop_unmasked and not self.mask_classes:
            raise ConfigError("drop_unmasked needs mask_classes: it leaves out images of which none of these is known.")
        self.drop_unmasked = drop_unmasked
        self.cache: Literal["memory"] | None = cache
        self._datasets: dict[SplitName, CXRDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read and check the records, open no image. Lightning calls this before each stage; the first call counts.

        Raises:
            DatasetError: If the data set is not there, lacks files or masks, or has labels that are no classes.
            ConfigError: If `balance` or `label_map` need exclusive classes and these are not.
        """
        task = self.trainer.lightning_module if self.trainer else None
        if isinstance(preprocess := getattr(task, "preprocess", None), PreprocessConfig):
            self.use_geometry(preprocess)
        if not self._datasets:
            self._check_copy()
            self._check_masks()
            self._check_balance()
            self._datasets = {split: self._dataset(split) for split in get_args(SplitName)}

    def use_geometry(self, preprocess: PreprocessConfig) -> None:
        """Take size, fit, region and dilation from a model, as far as the constructor was not told them.

        Args:
            preprocess: The model's.
        """
        model = {name: getattr(preprocess, name) for name in GEOMETRY}
        geometry = PreprocessConfig(**{**model, **self._geometry_set})
        if geometry != self.geometry:
            self.geometry = geometry
            self._datasets = {}  # what they keep in memory has another size

    @property
    def train_dataset(self) -> CXRDataset:
        """The training images, augmented."""
        self.setup()
        return self._datasets["train"]

    @property
    def val_dataset(self) -> CXRDataset:
        """The validation images."""
        self.setup()
        return self._datasets["val"]

    @property
    def test_dataset(self) -> CXRDataset:
        """The test images."""
        self.setup()
        return self._datasets["test"]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training images, shuffled anew in every epoch; goes on exactly where a checkpoint was taken.

        Raises:
            DatasetError: If there is no training image.
        """
        images = self.train_dataset
        if len(images) == 0:
            raise DatasetError(f"No image of {type(self).__name__} is for training: fractions={self.fractions}.")
        sampler = EpochSampler(
            images,
            seed=self.seed,
            weights=sampling_weights(images.records, self.balance),
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        # A last batch of one image would stop batch normalisation.
        lone = len(sampler) > self.batch_size and len(sampler) % self.batch_size == 1
        return self._loader(images, ResumableLoader, sampler=sampler, drop_last=lone)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation images, in order."""
        return self._loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test images, in order."""
        return self._loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return all images, in order."""
        return self._loader(self._dataset("all"))

    def class_weights(self) -> Float[Tensor, " classes"]:
        """Return weights against imbalance, for a loss.

        Exclusive classes get one inverse to their frequency in training (`class_weights` of a loss); findings get how
        many images without them there are for each image with them (`pos_weight` of "bce").

        Raises:
            DatasetError: If a class has no training image, or a finding none with or none without it.
        """
        weigh = positive_weights if self.multilabel else class_weights
        return weigh(self.train_dataset.labels, self.classes)

    def _check_copy(self) -> None:
        if self.prepared is not None:
            self.prepared.check_geometry(self.geometry.image_size, self.geometry.fit)

    def _check_balance(self) -> None:
        if self.multilabel and self.balance in ("class", "class+source"):
            raise ConfigError(
                f'balance="{self.balance}" draws exclusive classes equally often, but images of {type(self).__name__} '
                f'may show several at once. Weigh the loss in place of it (class_weights() gives pos_weight of "bce"), '
                f'or take balance="source".'
            )

    def _check_masks(self) -> None:
        known = count_by(self.records, "mask")
        for name in self.mask_classes:
            if name not in known:
                raise DatasetError(
                    f"No image of {type(self).__name__} has a mask {name!r}. {did_you_mean(name, known)}"
                )

    def _is_wanted(self, record: Record) -> bool:
        known = {*record.mask_paths, *record.empty_masks}
        return not self.drop_unmasked or not known.isdisjoint(self.mask_classes)

    def _dataset(self, split: SplitName | Literal["all"]) -> CXRDataset:
        return CXRDataset(
            (record for record in self.records if split in ("all", record.split) and self._is_wanted(record)),
            classes=self.classes,
            multilabel=self.multilabel,
            mask_classes=self.mask_classes,
            image_size=self.geometry.image_size,
            fit=self.geometry.fit,
            region=self.geometry.region,
            lung_dilation=self.geometry.lung_dilation,
            augment=self.augment if split == "train" else None,
            cache=self.cache,
            read=self.load_image,
            seed=self.seed,
        )

    def _loader(self, images: CXRDataset, kind: type[DataLoader[Any]] = DataLoader, **settings: Any) -> DataLoader[Any]:
        return kind(
            images,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,  # keeps their caches
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # else each epoch draws from the global one
            **settings,
        )
