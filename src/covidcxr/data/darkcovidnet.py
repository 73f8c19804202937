"""The set of DarkCovidNet (Ozturk 2020): COVID-19, other pneumonia, no finding."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.files import find_images, list_folders
from covidcxr.data.records import Record
from covidcxr.data.rows import Table
from covidcxr.data.table import CSVDataModule
from covidcxr.registry import DATASETS

__all__ = ["DarkCovidNetDataModule"]

_LABELS = {"covid19": "covid19", "pneumonia": "pneumonia", "nofindings": "normal"}
# Films of one patient: "...-day3", "...-PA", "...fig1a"; what is left after the cut names the series.
_SERIES = re.compile(r"[-_. ](day-?\d+|[a-d]|pa|ap|l)$|(?<=\d)[a-d]$", re.IGNORECASE)


@DATASETS.register("darkcovidnet")
class DarkCovidNetDataModule(CXRDataModule):
    """125 COVID-19 films of the ieee8023 collection, 500 pneumonia and 500 no-finding films of NIH ChestX-ray8.

    The published copy tells the patients of the NIH films (the first 8 digits of the name) but not those of the
    COVID-19 films: put the `metadata.csv` of the ieee8023 collection (covid-chestxray-dataset) into `root`, and they
    are read from there; else films are grouped by their names, which finds only some of the series.

    A `darkcovidnet_subset.csv` beside a `manifest.csv` is read in place of the published folders.
    """

    classes = ("covid19", "pneumonia", "normal")
    homepage: ClassVar[str] = "https://github.com/muhammedtalo/COVID-19"
    layout: ClassVar[str] = "the folders Covid-19, No_findings and Pneumonia (or X-Ray Image DataSet, which holds them)"
    citation: ClassVar[str] = (
        "Ozturk T. et al. Automated detection of COVID-19 cases using deep neural networks with X-ray images. "
        "Comput Biol Med 2020, 10.1016/j.compbiomed.2020.103792"
    )
    license: ClassVar[str] = (
        "NIH films: no restriction on use; COVID-19 films: each its own, see the ieee8023 collection"
    )

    def read_records(self) -> Iterator[Record]:
        """Return a record a film, from the published folders or from the tables."""
        if (self.root / "darkcovidnet_subset.csv").is_file():
            yield from self._read_tables()
            return
        patients = self._read_patients()
        for folder, label in self._class_folders():
            for film in find_images(folder):
                if re.match(r"\d{8}_\d{3}", film.name):
                    yield Record(film, label, f"nih-{film.name[:8]}", "nih")
                else:
                    series = _SERIES.sub("", film.stem)
                    yield Record(film, label, f"ieee8023-{patients.get(film.stem, series)}", "ieee8023")

    def _read_tables(self) -> Iterator[Record]:
        masks = {"lung": "lung_mask", "infection": "infection_mask"}
        subset = Table(self.root / "darkcovidnet_subset.csv")
        column = subset.require("path")
        wanted = {self.root / row[column] for _, row in subset}
        manifest = CSVDataModule(self.root, mask_columns=masks, augment=None)
        return (record for record in manifest.read_records() if record.image_path in wanted)

    def _class_folders(self) -> Iterator[tuple[Path, str]]:
        """Find the class folders, however they are spelt, here or one level below."""
        for top in (self.root, *list_folders(self.root)):
            found = {re.sub(r"[^a-z0-9]", "", folder.name.lower()): folder for folder in list_folders(top)}
            if found.keys() >= _LABELS.keys():
                return ((found[name], label) for name, label in _LABELS.items())
        raise self.not_found(self.root / "No_findings")

    def _read_patients(self) -> dict[str, str]:
        """Read from file name without ending to patient from the ieee8023 collection's own table."""
        path = self.root / "metadata.csv"
        if path.is_file():
            return {Path(row["filename"]).stem: row["patientid"] for _, row in Table(path)}
        warnings.warn(
            f"The patients of the COVID-19 films in {self.root} are guessed from file names, which misses many: films "
            f"of one patient may train and test. Put the metadata.csv of the ieee8023 collection there.",
            stacklevel=2,
        )
        return {}
