"""The ieee8023/covid-chestxray-dataset (Cohen 2020), and sets made of it: DarkCovidNet and COVID-XRay-5K."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import ClassVar, Literal, Unpack, get_args

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import SeriesPatients, parse_age, read_manifest
from covidcxr.data.files import find_images, list_folders, some_of, table_path
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.tables import Table
from covidcxr.registry import DATASETS
from covidcxr.types import SplitName

__all__ = ["CovidXray5kDataModule", "DarkCovidNetDataModule", "Ieee8023DataModule"]

_COLUMNS = ("patientid", "sex", "age", "finding", "view", "modality", "folder", "filename", "url")
_PNEUMONIA = re.compile(  # what snapshots of 2020 write; later ones write the path, "Pneumonia/Viral/SARS"
    "pneumonia|sars|mers|influenza|varicella|bacteri|streptoc|klebsiella|legionella|mycoplasma|chlamydophila|"
    r"pneumocystis|lipoid|e\.? ?coli",
    re.IGNORECASE,
)
_HANNOVER = "github.com/ml-workgroup/covid-19-image-repository"


@DATASETS.register("ieee8023_covid_chestxray")
class Ieee8023DataModule(CXRDataModule):
    """Images of articles and of public collections, gathered in 2020: COVID-19, other pneumonia, few normal ones.

    Args:
        root: A clone of the repository, of any day.
        machine_masks: Use `annotations/lungVAE-masks` as "lung_field". A network drew them, no human: to train a
            segmenter on them is to copy that network.
        missing: "refuse" = images that are listed but not there are an error; "skip" = they are left out and counted,
            for a table and a folder that are of different days.
        base: Further settings of `CXRDataModule`.

    Raises:
        ConfigError: If a setting is wrong.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import Ieee8023DataModule

        data = Ieee8023DataModule("covid-chestxray-dataset", missing="skip")
        print(data.counts())
        ```
    """

    classes = ("COVID-19", "Pneumonia", "No Finding", "other")
    homepage: ClassVar[str] = "https://github.com/ieee8023/covid-chestxray-dataset"
    layout: ClassVar[str] = "metadata.csv and the folder images (with machine_masks also annotations/lungVAE-masks)"
    citation: ClassVar[str] = (
        "Cohen J.P., Morrison P., Dao L., Roth K., Duong T.Q., Ghassemi M. COVID-19 Image Data Collection: Prospective "
        "Predictions Are the Future. MELBA 2020, arXiv:2006.11988"
    )
    license: ClassVar[str] = "each image its own (column license); blank = unknown, 239 of 758 rows of July 2020"
    caveats: ClassVar[tuple[str, ...]] = (
        "Images are figures of articles and web pages: letters, arrows, cropping, 150 to more than 4,000 pixels.",
        "100 of 758 rows of July 2020 are still to be labelled (todo), 1 is Unknown: they count as not labelled.",
        "39 radiographs of July 2020 have no view: they count as unknown view and are left out by default.",
        "84 rows of July 2020 are CT: 63 slices, and 21 volumes that are not in the repository and never read.",
        "104 images of July 2020 are copies of the Hannover repository (hannover): do not test one on the other.",
        "Images that are listed and images that are there differ from day to day: keep table and folder of one clone.",
        "The lung masks in annotations were drawn by a network (lungVAE), not by a human.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "July 2020, 758 rows": {
            "all/COVID-19": 512,
            "all/Pneumonia": 103,
            "all/No Finding": 17,
            "all/other": 4,
            "all/unknown": 101,
        }
    }

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        machine_masks: bool = False,
        missing: Literal["refuse", "skip"] = "refuse",
        **base: Unpack[DataSettings],
    ) -> None:
        super().__init__(root, **base)
        if missing not in ("refuse", "skip"):
            raise ConfigError(f'missing must be "refuse" or "skip", not {missing!r}.')
        self.machine_masks = machine_masks
        self.missing = missing
        self.settings = {"machine_masks": machine_masks, "missing": missing}

    def read_records(self) -> Iterator[Record]:
        """Return a record a row of metadata.csv that is no volume."""
        path = self.root / "metadata.csv"
        if not path.is_file():
            self.fault(self.not_found(path))
            return
        table = Table(path, fault=self.fault)
        for name in _COLUMNS:
            table.require(name)
        there = self._names_in("images") if self.missing == "skip" else None
        masks = self._names_in("annotations/lungVAE-masks") if self.machine_masks else frozenset()
        for line, row in table:
            if row["folder"] == "volumes":
                self.left_out["CT volume"] += 1
            elif not row["filename"]:
                self.fault(DatasetError(f"Line {line} of {path} names no image."))
            elif there is not None and row["filename"] not in there:
                self.left_out["listed, not there"] += 1
            else:
                yield self._record(row, masks)

    def _record(self, row: Mapping[str, str], masks: frozenset[str]) -> Record:
        mask = f"{Path(row['filename']).stem}_mask.png"
        view = row["view"] or "unknown"
        return Record(
            image_path=self.root / row["folder"] / row["filename"],
            label=_label(row["finding"]),
            patient_id=f"ieee8023-{row['patientid']}" if row["patientid"] else None,
            source="hannover" if _HANNOVER in row["url"] else "ieee8023",
            mask_paths={"lung_field": self.root / "annotations/lungVAE-masks" / mask} if mask in masks else {},
            view=f"CT {view}" if row["modality"] == "CT" else view,
            sex=row["sex"] or None,
            age=parse_age(row["age"]),
        )

    def _names_in(self, folder: str) -> frozenset[str]:
        path = self.root / folder
        if path.is_dir():
            return frozenset(image.name for image in find_images(path))
        self.fault(self.not_found(path))
        return frozenset()


def _label(finding: str) -> str | None:
    """Name the class of a finding; None where the collection has not decided, which is not the same as negative."""
    if finding.lower() in ("", "todo", "unknown"):
        return None
    if "COVID-19" in finding:
        return "COVID-19"
    if finding == "No Finding":
        return finding
    return "Pneumonia" if _PNEUMONIA.search(finding) else "other"


_DARKCOVIDNET_LABELS = {"covid19": "covid19", "pneumonia": "pneumonia", "nofindings": "normal"}


@DATASETS.register("darkcovidnet")
class DarkCovidNetDataModule(CXRDataModule):
    """125 COVID-19 images of the ieee8023 collection, 500 pneumonia and 500 no-finding images of NIH ChestX-ray8.

    The published copy tells the patients of the NIH images (the first 8 digits of the name) but not those of the
    COVID-19 images: put the `metadata.csv` of the ieee8023 collection (covid-chestxray-dataset) into `root`, and they
    are read from there; else images are grouped by their names, which finds only some of the series.

    A `darkcovidnet_subset.csv` beside a `manifest.csv` is read in place of the published folders.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import DarkCovidNetDataModule

        data = DarkCovidNetDataModule("COVID-19")
        print(data.counts())
        ```
    """

    classes = ("covid19", "pneumonia", "normal")
    homepage: ClassVar[str] = "https://github.com/muhammedtalo/COVID-19"
    layout: ClassVar[str] = "the folders Covid-19, No_findings and Pneumonia (or X-Ray Image DataSet, which holds them)"
    citation: ClassVar[str] = (
        "Ozturk T. et al. Automated detection of COVID-19 cases using deep neural networks with X-ray images. "
        "Comput Biol Med 2020, 10.1016/j.compbiomed.2020.103792"
    )
    license: ClassVar[str] = (
        "NIH images: no restriction on use; COVID-19 images: each its own, see the ieee8023 collection"
    )
    caveats: ClassVar[tuple[str, ...]] = (
        "Source is label: COVID-19 images are of ieee8023, all others of NIH; what tells the sources apart, the file "
        "header too, tells COVID-19 apart.",
        "The NIH images are of some 680 patients, 21 of whom are in both classes: split by patient, not by image.",
        "NIH labels were mined from reports by text analysis and are noisy; COVID-19 images are figures of articles.",
        "COVID-19 images are often AP or supine, normal ones PA; age and sex differ too.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "2020": {"all/covid19": 125, "all/pneumonia": 500, "all/normal": 500}
    }

    def read_records(self) -> Iterator[Record]:
        """Return a record an image, from the published folders or from the tables."""
        if (self.root / "darkcovidnet_subset.csv").is_file():
            yield from self._read_tables()
            return
        patients = SeriesPatients(self.root, self.fault)
        for folder, label in self._class_folders():
            images = find_images(folder)
            if not images:
                self.fault(DatasetError(f"The class folder {folder} holds no image. Unpack the download again."))
            for image in images:
                if re.match(r"\d{8}_\d{3}", image.name):
                    yield Record(image, label, f"nih-{image.name[:8]}", "nih")
                else:
                    yield Record(image, label, patients.of(image), "ieee8023")

    def _read_tables(self) -> list[Record]:
        path = self.root / "darkcovidnet_subset.csv"
        subset = Table(path, fault=self.fault)
        column = subset.require("path")
        wanted = {table_path(self.root, row[column]) for _, row in subset}
        images = [
            image
            for image in read_manifest(self.root, ("ieee8023", "nih"), {}, self.fault)
            if image.image_path in wanted
        ]
        if lacking := sorted(map(str, wanted.difference(image.image_path for image in images))):
            message = f"{path} names {len(lacking)} images that manifest.csv does not list: {some_of(lacking)}."
            self.fault(DatasetError(f"{message} Put the manifest of the same collection beside it."))
        return images

    def _class_folders(self) -> Iterator[tuple[Path, str]]:
        """Find the class folders, however they are spelt, here or one level below."""
        for top in (self.root, *list_folders(self.root)):
            by_name = {re.sub(r"[^a-z0-9]", "", folder.name.lower()): folder for folder in list_folders(top)}
            if by_name.keys() >= _DARKCOVIDNET_LABELS.keys():
                return ((by_name[name], label) for name, label in _DARKCOVIDNET_LABELS.items())
        raise self.not_found(self.root / "No_findings")


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
