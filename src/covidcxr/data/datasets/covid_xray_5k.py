"""COVID-XRay-5K (DeepCovid, Minaee 2020): COVID-19 of the ieee8023 collection against CheXpert."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, get_args

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import SeriesPatients
from covidcxr.data.files import find_images
from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.registry import DATASETS
from covidcxr.types import SplitName

__all__ = ["CovidXray5kDataModule"]

_PUBLISHED = 84
"""COVID-19 images for training, as published; 420 with their augmented copies."""


@DATASETS.register("covid_xray_5k")
class CovidXray5kDataModule(CXRDataModule):
    """184 COVID-19 images that a radiologist chose, 5,000 images of CheXpert with and without findings.

    The authors give training and test images; validation is cut from training, unless there is a folder val. Put the
    `metadata.csv` of the ieee8023 collection into `root`, and the patients of the COVID-19 images are read from it;
    else images are grouped by their names, which finds only some of the series.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import CovidXray5kDataModule

        data = CovidXray5kDataModule("covid-xray-5k")
        print(data.counts())
        ```
    """

    classes = ("non", "covid")  # the authors' own reader orders them by name: covid is 0 there
    homepage: ClassVar[str] = "https://github.com/shervinmin/DeepCovid"
    layout: ClassVar[str] = (
        "the folders train and test (or val), with the folders covid and non in each; or data or data_upload_v3, which "
        "holds them"
    )
    citation: ClassVar[str] = (
        "Minaee S., Kafieh R., Sonka M., Yazdani S., Soufi G.J. Deep-COVID: Predicting COVID-19 from chest X-ray "
        "images using deep transfer learning. Med Image Anal 2020, 10.1016/j.media.2020.101794"
    )
    license: ClassVar[str] = (
        "none of its own; CheXpert's research agreement forbids to pass images on; ieee8023: each image its own"
    )
    caveats: ClassVar[tuple[str, ...]] = (
        "Source is label: all COVID-19 images are of ieee8023, all others of CheXpert.",
        "non means not COVID-19, not healthy: it holds other findings.",
        "The 84 training images of COVID-19 may lie there together with 336 augmented copies: 420.",
        "There is no list of patients: those of ieee8023 images need its metadata.csv, or are guessed from file names.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "v3 with augmented copies": {"train/covid": 420, "train/non": 2000, "test/covid": 100, "test/non": 3000},
        "v3": {"train/covid": 84, "train/non": 2000, "test/covid": 100, "test/non": 3000},
    }

    def read_records(self) -> Iterator[Record]:
        """Return a record an image, split by split."""
        top, splits = self._find_splits()
        if "train" not in splits:
            self.fault(self.not_found(top / "train"))
        if not {"val", "test"}.intersection(splits):
            self.fault(self.not_found(top / "test"))
        patients = SeriesPatients(self.root, self.fault)
        for split in splits:
            for label in ("non", "covid"):
                images = self._images(top / split / label)
                if split == "train" and label == "covid":
                    _warn_of_copies(top, len(images))
                for image in images:
                    yield self._record(image, label, split, patients)

    def _find_splits(self) -> tuple[Path, list[SplitName]]:
        for top in (self.root, self.root / "data", self.root / "data_upload_v3"):
            splits = [split for split in get_args(SplitName) if (top / split).is_dir()]
            if splits:
                return top, splits
        return self.root, []

    def _images(self, folder: Path) -> list[Path]:
        """List the images of a class, also those in folders by finding below it."""
        if not folder.is_dir():
            self.fault(self.not_found(folder))
            return []
        images = find_images(folder, below=True)
        if not images:
            self.fault(DatasetError(f"The class folder {folder} holds no image. Unpack the download again."))
        return images

    def _record(self, image: Path, label: str, split: SplitName, patients: SeriesPatients) -> Record:
        if label == "covid":
            return Record(image, label, patients.of(image), "ieee8023", split)
        # "Edema-patient00051-study1-view1_frontal.jpg", or the path that it has in CheXpert
        path = image.relative_to(self.root).as_posix()
        patient, view = re.search(r"patient\d+", path), re.search("frontal|lateral", image.name)
        return Record(
            image,
            label,
            f"chexpert-{patient[0]}" if patient else None,
            "chexpert",
            split,
            view=view[0] if view else None,
        )


def _warn_of_copies(top: Path, count: int) -> None:
    if count > _PUBLISHED:
        warnings.warn(
            f"{top / 'train' / 'covid'} holds {count} images, {count - _PUBLISHED} more than the {_PUBLISHED} that "
            f"were published without augmentation: the others may be copies of them. Validation images that are cut "
            f"from training may then have copies in training. Remove the copies, or do not trust validation.",
            stacklevel=2,
        )
