"""COVIDx (COVID-Net; Wang 2020, Pavlova 2022): COVID-19 or not, from nine collections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import ClassVar, Unpack

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.records import Record, bimcv_view
from covidcxr.errors import DatasetError
from covidcxr.io.tables import read_lines
from covidcxr.registry import DATASETS
from covidcxr.types import SplitName

__all__ = ["CovidxCXR3DataModule"]

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
