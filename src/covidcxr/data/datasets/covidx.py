"""The COVIDx benchmarks: radiographs (COVID-Net; Wang 2020, Pavlova 2022) and CT slices (Gunraj 2021)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import ClassVar, Literal, Unpack, get_args

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import parse_age
from covidcxr.data.records import Record, bimcv_view
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.tables import Table, read_lines
from covidcxr.registry import DATASETS
from covidcxr.types import SplitName

__all__ = ["CovidxCT2DataModule", "CovidxCXR3DataModule"]

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


_OLD = re.compile("[1-5]?")  # three classes, and at first no source
_BINARY = ("COVIDx9B (repository)", "CXR-3 (Kaggle)")
_RELEASES = {"7A": ("COVIDx7A",), "7B": ("COVIDx7B",), "9B": _BINARY, "CXR-3A": ("CXR-3A",), "CXR-3B": _BINARY}
_HANNOVER = re.compile(r"[0-9a-f]{8}\.")
# "A123456-01-02-1901-NA-CHEST_AP_PORT-12345-1.000000-AP-12345-1-1.jpg": the study and the projection
_STONY_BROOK = re.compile(r"A\d+-.*-NA-(?P<study>\w+)-\d+-[\d.]+-(?P<projection>[A-Z]+)-\d+-\d+-\d+\.")


@DATASETS.register("covidx_cxr3")
class CovidxCXR3DataModule(CXRDataModule):
    """30,882 images of the version 9B; CXR-3 is the same without 496 that are no frontal chest radiographs.

    The official test images are kept; validation is cut from training by patient, unless the copy brings its own: the
    page at Kaggle has since been updated to CXR-4, which has a folder val and a `val.txt`.

    Args:
        root: The download from Kaggle, or the images with the label files of the repository.
        version: Names the label files: "9B" = `train_COVIDx9B.txt`, "CXR-3A" = `train_COVIDx_CXR-3A.txt`, ... in `root`
            or its folder labels; else the `train.txt` of Kaggle. Those that end in A, and 5 and before, have the
            classes normal, pneumonia and COVID-19. Say "CXR-4" if that is what you have.
        drop_mislabelled: Leave out the images of the Hannover COVID-19 repository that are labelled as not COVID-19.
        base: Further settings of `CXRDataModule`.

    Raises:
        ConfigError: If a setting is wrong.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import CovidxCXR3DataModule

        data = CovidxCXR3DataModule("covidx", version="9B")
        print(data.counts())
        ```
    """

    classes: tuple[str, ...] = ("negative", "positive")
    homepage: ClassVar[str] = "https://www.kaggle.com/datasets/andyczhao/covidx-cxr2"
    layout: ClassVar[str] = (
        "the folders train and test (of CXR-4 also val) with all images of each, and train.txt and test.txt (or the "
        "label files of https://github.com/lindawangg/COVID-Net, in root or in a folder labels)"
    )
    citation: ClassVar[str] = (
        "Wang L., Lin Z.Q., Wong A. COVID-Net. Sci Rep 2020, 10.1038/s41598-020-76550-z; Pavlova M. et al. COVIDx "
        "CXR-3. arXiv:2206.03671"
    )
    license: ClassVar[str] = (
        "label files: AGPL-3.0; images: the terms of their sources (RICORD CC BY-NC 4.0, Stony Brook of TCIA, RSNA...)"
    )
    caveats: ClassVar[tuple[str, ...]] = (
        "In the test set all 200 positives are of RICORD and all 200 negatives of RSNA: the source alone is the label.",
        "The repository's 9B has 496 images that CXR-3 lacks: 487 abdominal and 9 lateral ones, left out by default.",
        "84 negatives of cohen are images of the Hannover COVID-19 repository: drop_mislabelled=True leaves them out.",
        "Negatives are not healthy: they mix no finding with pneumonia that is not COVID-19.",
        "86 % of the positives in training are of one hospital (stonybrook), nearly all portable AP images.",
        "Ten training patients, of cohen and actmed, have images of both labels.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "COVIDx7A": {
            "train/normal": 7966,
            "train/pneumonia": 5475,
            "train/COVID-19": 1670,
            "test/normal": 100,
            "test/pneumonia": 100,
            "test/COVID-19": 100,
        },
        "COVIDx7B": {"train/negative": 13794, "train/positive": 1670, "test/negative": 100, "test/positive": 100},
        "COVIDx9B (repository)": {
            "train/negative": 13992,
            "train/positive": 16490,
            "test/negative": 200,
            "test/positive": 200,
        },
        "CXR-3A": {
            "train/normal": 8085,
            "train/pneumonia": 5555,
            "train/COVID-19": 15994,
            "test/normal": 100,
            "test/pneumonia": 100,
            "test/COVID-19": 200,
        },
        "CXR-3 (Kaggle)": {
            "train/negative": 13992,
            "train/positive": 15994,
            "test/negative": 200,
            "test/positive": 200,
        },
    }

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        version: str = "9B",
        drop_mislabelled: bool = False,
        **base: Unpack[DataSettings],
    ) -> None:
        self._is_old = _OLD.fullmatch(version) is not None
        if self._is_old or version.endswith("A"):
            self.classes = ("normal", "pneumonia", "COVID-19")
        self._labels = self.classes  # before any label_map
        super().__init__(root, **base)
        self.version = version
        self.drop_mislabelled = drop_mislabelled
        self.settings = {"version": version, "drop_mislabelled": drop_mislabelled}

    def known_releases(self) -> Mapping[str, Mapping[str, int]]:
        """Return the counts of the version that is read; of most older ones they are not known."""
        return {name: self.releases[name] for name in _RELEASES.get(self.version, ())}

    def read_records(self) -> Iterator[Record]:
        """Return a record a line of the label files."""
        for split, path in self._label_files().items():
            for number, line in read_lines(path, fault=self.fault):
                try:
                    record = self._record(split, line)
                except ValueError:
                    message = f"Line {number} of {path} is not PATIENT FILE LABEL SOURCE: {line!r}. The labels are"
                    self.fault(DatasetError(f"{message} {', '.join(self._labels)}. The file may be cut short."))
                    continue
                if self.drop_mislabelled and _is_mislabelled(record):
                    self.left_out["Hannover COVID-19 image, labelled otherwise"] += 1
                    self.listed[f"{split}/{record.label}"] += 1  # for the counts of the release
                else:
                    yield record

    def _label_files(self) -> dict[SplitName, Path]:
        files: dict[SplitName, Path] = {}
        splits: tuple[SplitName, ...] = ("train", "test")
        for split in splits:
            if path := self._label_file(split):
                files[split] = path
        if train := files.get("train"):
            own = train.with_name(train.name.replace("train", "val", 1))  # of the same version
            if own.is_file():
                files["val"] = own
        return files

    def _label_file(self, split: SplitName) -> Path | None:
        named = [f"{split}_COVIDx{self.version}.txt", f"{split}_COVIDx_{self.version}.txt"]
        names = [*named, *(f"labels/{name}" for name in named), f"{split}.txt"]
        paths = (self.root / f"{name}{packed}" for name in names for packed in ("", ".gz"))
        if path := next(filter(Path.is_file, paths), None):
            return path
        self.fault(self.not_found(self.root / named[0]))
        return None

    def _record(self, split: SplitName, line: str) -> Record:
        """Read a line from the right: patient ids may hold blanks.

        Raises:
            ValueError: If a field is missing or the label is none.
        """
        fields = line.split()
        if self._is_old and fields[-1] in self._labels:
            fields.append("unknown")
        *patient, name, label, source = fields
        if not patient or label not in self._labels:
            raise ValueError(line)
        source = "rsna" if source == "rnsa" else source
        return Record(
            image_path=self.root / split / name,
            label=label,
            patient_id=f"{source}-{' '.join(patient)}",
            source=source,
            split=split,
            view=_view(name),
        )


def _view(name: str) -> str | None:
    if stony_brook := _STONY_BROOK.match(name):
        # "ABD_SERIES_...", "ABDOMEN_SUPINE_KUB", "FLAT_PLATE_OF_ABDOMEN_PORTABLE"; a chest study may hold laterals.
        abdomen = re.search("(^|_)ABD", stony_brook["study"])
        return "abdomen" if abdomen else stony_brook["projection"]
    return bimcv_view(name)


def _is_mislabelled(record: Record) -> bool:
    is_hannover = record.source == "cohen" and _HANNOVER.match(record.image_path.name)
    return bool(is_hannover) and record.label not in ("positive", "COVID-19")
