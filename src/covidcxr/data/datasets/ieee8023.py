"""The COVID-19 image data collection of Cohen et al. (ieee8023/covid-chestxray-dataset)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import ClassVar, Literal, Unpack

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import parse_age
from covidcxr.data.files import find_images
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.tables import Table
from covidcxr.registry import DATASETS

__all__ = ["Ieee8023DataModule"]

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
