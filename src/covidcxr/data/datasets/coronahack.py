"""CoronaHack (Kaggle 2020): the Kermany set of children, and some images of the ieee8023 collection."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import ClassVar, Literal, Unpack, get_args

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import SeriesPatients
from covidcxr.data.records import Record
from covidcxr.data.splits import split_name
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.tables import Table
from covidcxr.registry import DATASETS

__all__ = ["CoronaHackDataModule"]

Labels = Literal["covid", "binary", "detailed"]

_CLASSES = {
    "covid": ("Normal", "Pneumonia", "COVID-19"),
    "binary": ("Normal", "Pneumonia"),
    "detailed": ("Normal", "virus", "bacteria", "COVID-19", "SARS", "Streptococcus", "ARDS"),
}
_RELEASES = {"covid": "2020", "binary": "2020, labels=binary", "detailed": "2020, labels=detailed"}
_COLUMNS = ("X_ray_image_name", "Label", "Dataset_type", "Label_1_Virus_category", "Label_2_Virus_category")
_FOLDER = "Coronahack-Chest-XRay-Dataset"
# Names are person<n>_virus_<film>, person<n>_bacteria_<film>, IM-<n>-... and NORMAL2-IM-<n>-... Each kind counts its
# children anew, through train and test: within a kind images are numbered in the order of the children, and 979 numbers
# are in virus and bacteria where chance gives 978 (in the two normal kinds 328, chance 329). No kind has a number in
# both splits, and Kermany et al. call their test patients independent. So the kind is part of the patient.
_KERMANY = re.compile(r"person\d+_(virus|bacteria)(?=_)|(NORMAL2-)?IM-\d+(?=-)")


@DATASETS.register("coronahack")
class CoronaHackDataModule(CXRDataModule):
    """5,840 images of children with viral, bacterial or no pneumonia (Kermany), 70 of the ieee8023 collection.

    The test images of the authors are used as such; validation is cut from training. Put the `metadata.csv` of the
    ieee8023 collection into `root`, and the patients of its images are read from it; else they are grouped by name.

    Args:
        root: The unpacked download.
        labels: "covid" = Normal, Pneumonia, COVID-19; "binary" = Normal, Pneumonia; "detailed" = by the cause that the
            table tells. The official test images hold no COVID-19: see `official_split`.
        base: Further settings of `CXRDataModule`.

    Raises:
        ConfigError: If a setting is wrong.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import CoronaHackDataModule

        data = CoronaHackDataModule("coronahack", official_split=False)
        print(data.counts())
        ```
    """

    classes = _CLASSES["covid"]
    homepage: ClassVar[str] = "https://www.kaggle.com/datasets/praveengovi/coronahack-chest-xraydataset"
    layout: ClassVar[str] = (
        "Chest_xray_Corona_Metadata.csv and Coronahack-Chest-XRay-Dataset with the folders train and test in it, or in "
        "a folder of the same name"
    )
    citation: ClassVar[str] = (
        "Govi P. CoronaHack: Chest X-Ray-Dataset. Kaggle 2020; Kermany D.S. et al. Cell 2018, "
        "10.1016/j.cell.2018.02.010; Cohen J.P. et al. arXiv:2006.11988"
    )
    license: ClassVar[str] = "Kermany's images CC BY 4.0; images of the ieee8023 collection each their own"
    caveats: ClassVar[tuple[str, ...]] = (
        "The 624 test images hold no COVID-19: all 58 are for training. official_split=False splits anew by patient.",
        "Children of 1 to 5 years against adults with COVID-19: age alone separates the classes.",
        "Source is label: COVID-19, SARS, Streptococcus and ARDS images are of ieee8023, others but one of Kermany.",
        "SARS (4 images), Streptococcus (5) and ARDS (2) are too few to learn from.",
        "The folders hold some 23 images more than the 5,910 of the table; they are ignored.",
        "Extended copies of the table are about: one has 6,197 rows.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "2020, labels=binary": {
            "train/Normal": 1342,
            "train/Pneumonia": 3944,
            "test/Normal": 234,
            "test/Pneumonia": 390,
        },
        "2020, labels=detailed": {
            "train/Normal": 1342,
            "train/virus": 1345,
            "train/bacteria": 2530,
            "train/COVID-19": 58,
            "train/SARS": 4,
            "train/Streptococcus": 5,
            "train/ARDS": 2,
            "test/Normal": 234,
            "test/virus": 148,
            "test/bacteria": 242,
        },
        "2020": {
            "train/Normal": 1342,
            "train/Pneumonia": 3886,
            "train/COVID-19": 58,
            "test/Normal": 234,
            "test/Pneumonia": 390,
        },
    }

    def __init__(self, root: str | PathLike[str], *, labels: Labels = "covid", **base: Unpack[DataSettings]) -> None:
        if labels not in get_args(Labels):
            raise ConfigError(f"labels must be one of {', '.join(get_args(Labels))}, not {labels!r}.")
        self.classes = _CLASSES[labels]
        super().__init__(root, **base)
        self.labels = labels
        self.settings = {"labels": labels}

    def known_releases(self) -> Mapping[str, Mapping[str, int]]:
        """Return the counts by the labels that are read."""
        return {_RELEASES[self.labels]: self.releases[_RELEASES[self.labels]]}

    def read_records(self) -> Iterator[Record]:
        """Return a record a row of the table."""
        path = self.root / "Chest_xray_Corona_Metadata.csv"
        if not path.is_file():
            return self.fault(self.not_found(path))
        table = Table(path, fault=self.fault)
        for name in _COLUMNS:
            table.require(name)
        top = self._find_images()
        patients = SeriesPatients(self.root, self.fault)
        tested: set[str | None] = set()
        for line, row in table:
            try:
                record = self._record(top, row, patients)
            except DatasetError as error:
                self.fault(DatasetError(f"Line {line} of {path}: {error}"))
                continue
            if record.split == "test":
                tested.add(self.label_map.rename(record).label)
            yield record
        self._warn_of_untested([label for label in self.classes if label not in tested])

    def _find_images(self) -> Path:
        tops = (self.root / _FOLDER / _FOLDER, self.root / _FOLDER, self.root)
        for top in tops:
            if (top / "train").is_dir():
                return top
        self.fault(self.not_found(tops[0] / "train"))
        return tops[0]

    def _record(self, top: Path, row: Mapping[str, str], patients: SeriesPatients) -> Record:
        split = split_name(row["Dataset_type"])
        image = top / split / row["X_ray_image_name"]
        child = _KERMANY.match(image.name)
        return Record(
            image_path=image,
            label=self._label(row),
            patient_id=f"kermany-{child[0]}" if child else patients.of(image),
            source="kermany" if child else "ieee8023",
            split=split,
        )

    def _label(self, row: Mapping[str, str]) -> str:
        if row["Label"] not in ("Normal", "Pnemonia", "Pneumonia"):  # the second is how the table spells it
            raise DatasetError(f"{row['Label']!r} is neither Normal nor Pnemonia.")
        if row["Label"] == "Normal":
            return "Normal"
        cause = row["Label_2_Virus_category"] or row["Label_1_Virus_category"]
        if self.labels == "detailed":
            return "virus" if cause == "Virus" else cause
        return "COVID-19" if cause == "COVID-19" and self.labels == "covid" else "Pneumonia"

    def _warn_of_untested(self, untested: list[str]) -> None:
        if untested and self.official_split and self.folds is None and self.hold_out_source is None:
            warnings.warn(
                f"The official test images of CoronaHack hold no {', '.join(untested)}: a score on them says nothing "
                f"of it. official_split=False splits anew by patient; label_map leaves a class out.",
                stacklevel=2,
            )
