"""COVIDx CT (Gunraj 2021): CT slices of many collections with the box of the body."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import ClassVar, Literal, Unpack, get_args

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import parse_age
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.tables import Table, read_lines
from covidcxr.registry import DATASETS
from covidcxr.types import SplitName

__all__ = ["CovidxCT2DataModule"]

Version = Literal["1", "2A", "2B", "3A", "3B"]

_LABELS = {"0": "Normal", "1": "Pneumonia", "2": "COVID-19"}
# Where a slice came from, and what of its name is the patient, after the scripts by which the authors made the names.
# A number after A-<patient> tells the scan: the challenge and TCIA may hold two scans of one patient.
_ORIGINS = tuple(
    (source, re.compile(pattern))
    for source, pattern in (
        ("cncb", r"((?:NCP|CP|Normal)_\d+)_"),
        ("covid-ctset", r"[a-z0-9]+_(patient\d+)_SR_"),
        ("covid-19-20", r"(volume-covid19-A-\d+)(?:_\d+)?_ct-"),
        ("tcia", r"(volume-covid19-A-\d+)(?:_\d+)?-"),
        ("coronacases", r"(coronacases_\d+)-"),
        ("radiopaedia", r"(radiopaedia_\d+_\d+|radiopaedia-\d+)[_-]"),
        ("lidc-idri", r"(LIDC-IDRI-\d+)-"),
        ("ictcf", r"(HUST-Patient\d+)-"),
        ("mosmed", r"(study_\d+)-"),
        ("stoic", r"(STOIC-[^-]+)-"),
        ("covid-ct-md", r"(COVIDCTMD-[^-]+)-"),
        ("stony-brook", r"(A\d{6})-"),
    )
)


@DATASETS.register("covidx_ct2")
class CovidxCT2DataModule(CXRDataModule):
    """194,922 slices of 3,745 patients (CT-2A): normal, pneumonia, COVID-19; official split; each cut to the body.

    Args:
        root: The unpacked download.
        version: "1", "2A", "2B", "3A" or "3B": names the label files and the folder of images. The B variants add
            training slices whose diagnosis could not be verified.
        base: Further settings of `CXRDataModule`.

    Raises:
        ConfigError: If there is no such version.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import CovidxCT2DataModule

        data = CovidxCT2DataModule("covidx-ct", version="2A")
        print(data.counts())
        ```
    """

    classes = ("Normal", "Pneumonia", "COVID-19")
    modality: ClassVar[Literal["X-ray", "CT"]] = "CT"
    homepage: ClassVar[str] = "https://www.kaggle.com/datasets/hgunraj/covidxct"
    layout: ClassVar[str] = (
        "the folder 2A_images (by version; or images), {train,val,test}_COVIDx_CT-2A.txt, and metadata.csv for sex and "
        "age"
    )
    citation: ClassVar[str] = (
        "Gunraj H., Sabri A., Koff D., Wong A. COVID-Net CT-2: Enhanced Deep Neural Networks for Detection of COVID-19 "
        "from Chest CT Images Through Bigger, More Diverse Learning. Front Med 2022, 10.3389/fmed.2021.729287"
    )
    license: ClassVar[str] = "lists: AGPL-3.0; slices: each collection its own, from CC BY to CC BY-NC-ND"
    caveats: ClassVar[tuple[str, ...]] = (
        "Slices of a patient are nearly alike: count patients (2A: 2,837 + 482 + 426), not slices.",
        "Source is nearly label: whole collections hold one class only.",
        "Not all slices are 512 x 512: boxes of 126 slices of val and 164 of test (2A) reach beyond, up to 1024 x 944.",
        "Only val and test were labelled by radiologists throughout; others, or a network, chose part of training.",
        "The B variants are not on Kaggle: the authors' notebook makes them. Their val and test are those of A.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        version: {
            f"{split}/{label}": count
            for split, counts in splits.items()
            for label, count in zip(_LABELS.values(), counts, strict=True)
        }
        for version, splits in {
            "1": {"train": (27201, 22061, 12520), "val": (9107, 7400, 4529), "test": (9450, 7395, 4346)},
            "2A": {"train": (35996, 25496, 82286), "val": (11842, 7400, 6244), "test": (12245, 7395, 6018)},
            "2B": {"train": (35996, 25496, 88467), "val": (11842, 7400, 6244), "test": (12245, 7395, 6018)},
            "3A": {"train": (35996, 26970, 294552), "val": (17570, 8008, 8147), "test": (17922, 7965, 7894)},
            "3B": {"train": (35996, 26970, 300733), "val": (17570, 8008, 8147), "test": (17922, 7965, 7894)},
        }.items()
    }

    release: ClassVar[str] = "2A"

    def __init__(self, root: str | PathLike[str], *, version: Version = "2A", **base: Unpack[DataSettings]) -> None:
        super().__init__(root, **base)
        if version not in get_args(Version):
            raise ConfigError(f"version must be one of {', '.join(get_args(Version))}, not {version!r}.")
        self.version = version
        self.settings = {"version": version}

    def known_releases(self) -> Mapping[str, Mapping[str, int]]:
        """Return the counts of the version that is read."""
        return {self.version: self.releases[self.version]}

    def read_records(self) -> Iterator[Record]:
        """Return a record a line of the three label files."""
        folder = self.root / f"{self.version}_images"
        folder = folder if folder.is_dir() or not (self.root / "images").is_dir() else self.root / "images"
        people = self._read_people()
        for split in get_args(SplitName):
            path = self._label_file(split)
            if not path.is_file():
                self.fault(self.not_found(path))
                continue
            for number, line in read_lines(path, fault=self.fault):
                try:
                    yield _record(folder, split, line, people)
                except (ValueError, KeyError):  # also an empty box
                    message = f"Line {number} of {path} is not NAME CLASS XMIN YMIN XMAX YMAX: {line!r}."
                    self.fault(DatasetError(f"{message} The file may be cut short; download it again."))

    def _read_people(self) -> dict[str, dict[str, str]]:
        """Read from patient to row of the table that tells sex and age of some."""
        path = self.root / "metadata.csv"
        if not path.is_file():
            return {}
        table = Table(path, fault=self.fault)
        patient = table.require("patient id")
        return {row[patient]: row for _, row in table}

    def _label_file(self, split: SplitName) -> Path:
        name = f"{split}_COVIDx_CT-{self.version}.txt"
        # The first release had no number yet.
        names = [name, f"{name}.gz"] + ([f"{split}_COVIDx-CT.txt"] if self.version == "1" else [])
        return next((path for path in map(self.root.joinpath, names) if path.is_file()), self.root / name)


def _record(folder: Path, split: SplitName, line: str, people: Mapping[str, Mapping[str, str]]) -> Record:
    name, label, *box = line.split()
    left, top, right, bottom = map(int, box)
    source, patient = _origin(name)
    person = people.get(patient, {})
    return Record(
        image_path=folder / name,
        label=_LABELS[label],
        patient_id=patient,
        source=source,
        split=split,
        view="Axial",
        sex=person.get("sex") or None,
        age=parse_age(person.get("age", "")),
        box=(top, left, bottom, right),
    )


def _origin(name: str) -> tuple[str, str]:
    """Tell source and patient from the name of a slice; of an unknown kind of name, its scan stands for the patient."""
    for source, pattern in _ORIGINS:
        if match := pattern.match(name):
            return source, match[1]
    return "unknown", re.sub(r"[-_][^-_]*$", "", name)
