"""The set of DarkCovidNet (Ozturk 2020): COVID-19, other pneumonia, no finding."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import SeriesPatients, read_manifest
from covidcxr.data.files import find_images, list_folders, some_of, table_path
from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.io.tables import Table
from covidcxr.registry import DATASETS

__all__ = ["DarkCovidNetDataModule"]

_LABELS = {"covid19": "covid19", "pneumonia": "pneumonia", "nofindings": "normal"}


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
            if by_name.keys() >= _LABELS.keys():
                return ((by_name[name], label) for name, label in _LABELS.items())
        raise self.not_found(self.root / "No_findings")
