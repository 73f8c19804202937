"""The base of all data sets: from records to data loaders."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import cycle, islice
from os import PathLike
from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
from jaxtyping import Float
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from covidcxr.config import PreprocessConfig
from covidcxr.data.collection import Collection, CollectionSettings, DataSettings, has_own_reader
from covidcxr.data.curation.integrity import depth_remark
from covidcxr.data.dataset import CXRDataset, open_pixels
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
from covidcxr.registry import AUGMENTATIONS
from covidcxr.transforms.augment import Augment
from covidcxr.types import GEOMETRY, Fit, Region, SplitName
from covidcxr.utils.plain import html_table
from covidcxr.utils.threads import Progress

__all__ = ["CXRDataModule", "DataSettings", "compute_mean_std"]


class CXRDataModule(Collection, LightningDataModule):
    """Base of all data sets: a subclass names its classes and writes `read_records`; the rest is here.

    Args:
        root: Folder of the data set, or of a compact copy that `covidcxr datasets prepare` wrote.
        image_size: Height and width of the samples in pixels. None = as the model says, for this setting and the next
            three: a Trainer's model hands them on. Without a model they are 256 x 256, "letterbox", "full" and 0. A
            value that is set here must agree with the model's.
        fit: How images are resized: "letterbox" keeps the aspect ratio, "stretch" does not.
        region: "full", "box" = the rectangle around the lungs, "lungs", or "background" = the image with the lungs
            removed; all but the first need lung masks.
        lung_dilation: By how much the lungs are widened before the region is cut, a fraction of the longer side.
        mask_classes: Mask classes of the samples, in the order of their planes.
        drop_unmasked: Leave out images without any of `mask_classes`: a segmenter learns nothing from them.
        batch_size: Images per batch.
        num_workers: Processes that read images; results are the same for any number. None = as suits the machine, and
            is said: none beside a training on the CPU, whose cores they would take; else as many as there are cores
            for each device, up to 8.
        augment: Preset, transforms or `Augment` for the training images; None = none.
        augmented_copies: From class to how many augmented copies of its training images are added, the same in every
            epoch; then nothing else is augmented. None = no copies: every training image is augmented anew each time.
        cache: "memory" keeps the resized images in memory, once for all workers where they are forked (Linux). A
            compact copy at its own size needs none: its file is mapped into memory.
        balance: Draw training images so that classes, sources, or the sources within each class come equally often;
            only "source" where classes are not exclusive.
        predict_split: The images that `Trainer.predict` gets: "train", "val" or "test", or "all" of them.
        seed: Seeds order and augmentation.
        base: Settings of `Collection`: views, labels, splits and predicted masks.

    Raises:
        ConfigError: If a setting is out of range or contradicts another.

    Example:
        ```python
        from covidcxr.data import CXRDataModule, Record

        class OurHospital(CXRDataModule):
            classes = ("covid19", "normal")

            def read_records(self):
                for number, path in enumerate(sorted(self.root.glob("images/*.png"))):
                    yield Record(path, label=self.classes[number % 2], patient_id=str(number))

        data = OurHospital("phantoms", image_size=(64, 64), batch_size=4)
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (4, 1, 64, 64)
        ```
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
        batch_size: int = 16,
        num_workers: int | None = None,
        augment: str | Sequence[Any] | Augment | None = "default",
        augmented_copies: Mapping[str, int] | None = None,
        cache: Literal["memory"] | None = None,
        balance: Balance = "none",
        predict_split: SplitName | Literal["all"] = "test",
        seed: int = 0,
        **base: Unpack[CollectionSettings],
    ) -> None:
        LightningDataModule.__init__(self)
        super().__init__(root, **base)
        if balance not in get_args(Balance):
            raise ConfigError(f"balance must be one of {', '.join(get_args(Balance))}, not {balance!r}.")
        if predict_split not in (*get_args(SplitName), "all"):
            raise ConfigError(f"predict_split must be train, val, test or all, not {predict_split!r}.")
        if batch_size < 1 or (num_workers or 0) < 0:
            raise ConfigError(f"batch_size ({batch_size}) must be from 1 up, num_workers ({num_workers}) from 0 up.")
        if drop_unmasked and not mask_classes:
            raise ConfigError("drop_unmasked needs mask_classes: it leaves out images of which none of these is known.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        if isinstance(augment, str):
            AUGMENTATIONS.get(augment)  # an unknown name is an error here, albumentations is imported where it is used
        elif isinstance(augment, Sequence):
            augment = Augment(augment)
        self._augment = augment
        self.augmented_copies = dict(augmented_copies or {})
        if self.augmented_copies and (augment is None or min(self.augmented_copies.values()) < 0):
            raise ConfigError("augmented_copies needs augment, and numbers from 0 up.")
        self.balance = balance
        self.predict_split: SplitName | Literal["all"] = predict_split
        self.seed = seed
        self.mask_classes = tuple(mask_classes)
        self.drop_unmasked = drop_unmasked
        self.cache: Literal["memory"] | None = cache
        self._datasets: dict[SplitName, CXRDataset] = {}
        geometry = {"image_size": image_size, "fit": fit, "region": region, "lung_dilation": lung_dilation}
        self._geometry_set: dict[str, Any] = {name: value for name, value in geometry.items() if value is not None}
        self.geometry = PreprocessConfig(**self._geometry_set)
        self._copy_is_checked = self._depth_is_checked = False
        if self._geometry_set:
            self._check_copy()

    def setup(self, stage: str | None = None) -> None:
        """Read and check the records, open hardly an image; a second call does nothing unless the geometry changed.

        Args:
            stage: "fit", "validate", "test" or "predict" where Lightning calls it: the geometry is then that of the
                Trainer's model. None = called by hand.

        Raises:
            DatasetError: If the data set is not there, lacks files or masks, or has labels that are no classes.
            ConfigError: If `balance` or `label_map` need exclusive classes and these are not.
        """
        task = self.trainer.lightning_module if self.trainer and stage is not None else None
        if isinstance(preprocess := getattr(task, "preprocess", None), PreprocessConfig):
            self.use_geometry(preprocess)
        if not self._datasets:
            self._check_copy()
            self._check_masks()
            self._check_balance()
            self._datasets = {split: self._dataset(split, trains=split == "train") for split in get_args(SplitName)}
            if not self._depth_is_checked and (remark := depth_remark(self, self.records)):
                warnings.warn(f"{type(self).__name__}: {remark}", stacklevel=2)
            self._depth_is_checked = True

    def __repr__(self) -> str:
        """Name the folder, the classes and, once they are read, the images of each split."""
        counts = count_by(self.records, "split") if "records" in vars(self) else {}
        images = ", ".join(f"{split} {number}" for split, number in counts.items()) or "not read yet"
        return f"{type(self).__name__}({str(self.root)!r}, classes: {', '.join(self.classes)}; images: {images})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Show the images of each class and split, and their patients, in a notebook; reads the list of images."""
        splits = ("train", "val", "test")
        of_split = {split: [record for record in self.records if record.split == split] for split in splits}
        counts = {split: count_by(records, "label") for split, records in of_split.items()}
        names = dict.fromkeys([*self.classes, *(name for count in counts.values() for name in count)])
        rows: list[tuple[object, ...]] = [(name, *(counts[split].get(name, 0) for split in splits)) for name in names]
        rows.append(("all images", *map(len, of_split.values())))
        rows.append(("patients", *(len({record.patient for record in records}) for records in of_split.values())))
        return html_table(f"{type(self).__name__}: {self.root}", rows, ("", *splits))

    def use_geometry(self, preprocess: PreprocessConfig) -> None:
        """Take size, fit, region and dilation from a model, except those that were set in the constructor.

        Args:
            preprocess: The model's preprocessing.

        Example:
            ```python
            from covidcxr import CSVDataModule, PreprocessConfig

            data = CSVDataModule("phantoms", fit="stretch")
            data.use_geometry(PreprocessConfig(image_size=(32, 32)))
            assert data.train_dataset[0]["image"].shape == (1, 32, 32) and data.geometry.fit == "stretch"
            ```
        """
        model = {name: getattr(preprocess, name) for name in GEOMETRY}
        geometry = PreprocessConfig(**{**model, **self._geometry_set})
        if geometry != self.geometry:
            self.geometry = geometry
            self._copy_is_checked = False
            self._datasets = {}  # images that they keep in memory have another size

    @cached_property
    def augment(self) -> Augment | None:
        """What changes the training images at random; None = nothing."""
        return Augment(self._augment) if isinstance(self._augment, str) else self._augment

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

    @property
    def predict_dataset(self) -> CXRDataset:
        """The images of `predict_split`, not augmented.

        Raises:
            DatasetError: If there is none.
        """
        self.setup()
        images = self._dataset(self.predict_split)
        if len(images) == 0:
            raise DatasetError(f"No image of {type(self).__name__} is in predict_split={self.predict_split!r}.")
        return images

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training images, shuffled anew in every epoch; resumes exactly where a checkpoint was taken.

        Raises:
            DatasetError: If there is no training image.
        """
        images = self.train_dataset
        if len(images) == 0:
            raise DatasetError(f"No image of {type(self).__name__} is for training: fractions={self.fractions}.")
        if self.num_workers is None and (workers := self.reading_processes):
            rank_zero_info(f"{workers} processes read the images of a device; num_workers says how many.")
        sampler = EpochSampler(
            images,
            seed=self.seed,
            weights=sampling_weights(images.records, self.balance),
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        # Batch normalisation fails on a last batch of one image.
        lone = len(sampler) > self.batch_size and len(sampler) % self.batch_size == 1
        return self._loader(images, ResumableLoader, sampler=sampler, drop_last=lone)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation images, in order."""
        return self._loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test images, in order."""
        return self._loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the images of `predict_split`, in order and not augmented."""
        return self._loader(self.predict_dataset)

    def class_weights(self) -> Float[Tensor, " classes"]:
        """Return weights against class imbalance, for a loss.

        Exclusive classes are weighted inversely to their frequency in training (`class_weights` of a loss); findings by
        the number of images without them for each image with them (`pos_weight` of "bce").

        Raises:
            DatasetError: If a class has no training image, or a finding none with or none without it.
        """
        return (positive_weights if self.multilabel else class_weights)(self.train_dataset.labels, self.classes)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the Trainer behind on the way to another process, where the Trainer attaches itself again."""
        return {**vars(self), "trainer": None}

    def _check_copy(self) -> None:
        """Check that a compact copy suits the geometry; once, since it warns of images that are enlarged."""
        if self.prepared is not None and not self._copy_is_checked:
            self.prepared.check_geometry(self.geometry.image_size, self.geometry.fit)
        self._copy_is_checked = True

    def _check_balance(self) -> None:
        if self.multilabel and self.balance in ("class", "class+source"):
            raise ConfigError(
                f'balance="{self.balance}" draws exclusive classes equally often, but images of {type(self).__name__} '
                f'may show several at once. Weight the loss instead (class_weights() gives pos_weight of "bce"), '
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

    def _copies(self, records: Sequence[Record]) -> list[Record]:
        """Return the records to add for `augmented_copies`: those of each class, from the first, over and over."""
        copies: list[Record] = []
        for name, count in self.augmented_copies.items():
            originals = [record for record in records if record.label == name]
            if not originals:
                labels = {record.label for record in records if record.label}
                raise DatasetError(
                    f"augmented_copies: no training image is labelled {name!r}. {did_you_mean(name, labels)}"
                )
            copies += islice(cycle(originals), count)
        return copies

    def _dataset(self, split: SplitName | Literal["all"], *, trains: bool = False) -> CXRDataset:
        records = [record for record in self.records if split in ("all", record.split) and self._is_wanted(record)]
        copies = self._copies(records) if trains else []
        records += copies
        stored = self.prepared.stored_images(records, self.geometry) if self.prepared else None
        return CXRDataset(
            records,
            copies=len(copies),
            classes=self.classes,
            multilabel=self.multilabel,
            mask_classes=self.mask_classes,
            image_size=self.geometry.image_size,
            fit=self.geometry.fit,
            region=self.geometry.region,
            lung_dilation=self.geometry.lung_dilation,
            augment=self.augment if trains else None,
            cache=self.cache or stored,
            # Not a method where it can be helped: each worker process would get a copy of self.
            read=self.load_image
            if has_own_reader(self)
            else partial(open_pixels, bits=self.bits, enough=self.geometry.image_size),
            seed=self.seed,
        )

    @property
    def reading_processes(self) -> int:
        """How many processes read images: `num_workers`, or what suits the machine."""
        if self.num_workers is not None:
            return self.num_workers
        if self.trainer is None or isinstance(self.trainer.accelerator, CPUAccelerator):
            return 0
        return min(8, suggested_max_num_workers(self.trainer.num_devices))

    def _loader(self, images: CXRDataset, kind: type[DataLoader[Any]] = DataLoader, **settings: Any) -> DataLoader[Any]:
        workers = self.reading_processes
        return kind(
            images,
            batch_size=self.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,  # keeps their caches where they are not forked
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # else each epoch draws from the global one
            **settings,
        )


def compute_mean_std(
    datamodule: CXRDataModule, *, sample: int | None = None, seed: int = 0, progress: Progress | None = None
) -> tuple[float, float]:
    """Compute the mean and standard deviation of the training images' pixels, one image in memory at a time.

    Images are taken at the data module's size, without augmentation, before a region is cut, and without the black
    frame that letterboxing adds; every pixel counts alike.

    Args:
        datamodule: The data set; the images of its training split are read.
        sample: Read only that many of them, drawn at random; None = all.
        seed: Seeds the draw.
        progress: Called after each image with how many of how many are read.

    Returns:
        Mean and standard deviation, for images in [0, 1].

    Raises:
        ConfigError: If `sample` is not at least 1.
        DatasetError: If there is no training image.
        ImageReadError: If an image cannot be read.
    """
    images = datamodule.train_dataset
    if len(images) == 0:
        raise DatasetError(f"{type(datamodule).__name__} has no training image to compute a mean from.")
    if sample is not None and sample < 1:
        raise ConfigError(f"sample must be a number of images from 1 up (or null = all), not {sample}.")
    order = np.random.default_rng(seed).permutation(len(images))[:sample].tolist()
    histogram = np.zeros(256, np.int64)  # images are uint8 at this point, so the sums are exact in any order
    for done, index in enumerate(sorted(order), 1):
        histogram += np.bincount(images.pixels(index).ravel(), minlength=256)
        if progress is not None:
            progress(done, len(order))
    grey = np.arange(256) / 255
    mean = np.average(grey, weights=histogram)
    variance = np.average((grey - mean) ** 2, weights=histogram)
    return float(mean), float(np.sqrt(variance))
