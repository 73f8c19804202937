"""COVID-CT (Yang, He, Zhao 2020, UCSD): CT slices cut from articles."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, get_args

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.files import find_images
from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.io.tables import Table, read_lines
from covidcxr.registry import DATASETS
from covidcxr.types import SplitName

__all__ = ["CovidCTDataModule"]

# "2020.02.10.20021584-p6-52%0" is figure 52, part 0, on page 6; "PIIS0140673620301549_0%1" tells no page.
_FIGURE = re.compile(r"-p\d+.*$|([_%]\d+)+$")


@DATASETS.register("covid_ct_ucsd")
class CovidCTDataModule(CXRDataModule):
    """349 COVID-19 slices from articles, 397 others from MedPix and the web; official split.

    The patient of a COVID-19 slice is its article, which may show several; that of the others stands in
    `NonCOVID-CT-MetaInfo.csv`.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import CovidCTDataModule

        data = CovidCTDataModule("COVID-CT")
        print(data.counts())
        ```
    """

    classes = ("NonCOVID", "COVID")
    modality: ClassVar[Literal["X-ray", "CT"]] = "CT"
    homepage: ClassVar[str] = "https://github.com/UCSD-AI4H/COVID-CT"
    layout: ClassVar[str] = (
        "Data-split with the lists of names, NonCOVID-CT-MetaInfo.csv, and Images-processed with the unpacked folders "
        "CT_COVID and CT_NonCOVID (or these two directly)"
    )
    citation: ClassVar[str] = (
        "Yang X., He X., Zhao J., Zhang Y., Zhang S., Xie P. COVID-CT-Dataset: A CT Scan Dataset about COVID-19. "
        "arXiv:2003.13865, 2020"
    )
    license: ClassVar[str] = "not stated for the images (figures of preprints and articles); research use"
    caveats: ClassVar[tuple[str, ...]] = (
        "Source is label: COVID-19 slices are figures of articles, the others of MedPix and the web.",
        "The official split leaks: of 58 articles one is in train and test, one in train and val, one in val and test.",
        "Slices are figures, grey or colour, of any size, sometimes with drawn marks.",
        "NonCOVID is not healthy: it holds other diseases.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "2020": {
            "train/NonCOVID": 234,
            "train/COVID": 191,
            "val/NonCOVID": 58,
            "val/COVID": 60,
            "test/NonCOVID": 105,
            "test/COVID": 98,
        }
    }

    def read_records(self) -> Iterator[Record]:
        """Return a record a name in the six lists."""
        lists = next(filter(Path.is_dir, (self.root / "Data-split", self.root / "datasplit")), self.root / "Data-split")
        patients = self._read_patients()
        for label in ("NonCOVID", "COVID"):
            folder = self._image_folder(f"CT_{label}")
            there = frozenset(image.name for image in find_images(folder)) if folder else frozenset()
            for split in get_args(SplitName):
                path = lists / label / f"{split}CT_{label}.txt"
                if not path.is_file():
                    self.fault(self.not_found(path))
                    continue
                for _, line in read_lines(path, fault=self.fault):
                    if folder:
                        yield _record(folder, line.strip(), label, split, there, patients)

    def _image_folder(self, name: str) -> Path | None:
        tops = (self.root / "Images-processed", self.root)
        for top in tops:
            if (top / name).is_dir():
                return top / name
        for top in tops:
            if (archive := top / f"{name}.zip").is_file():
                message = f"{archive} is still packed. Unpack it there, so that {top / name} holds its images"
                how = "covidcxr datasets prepare covid_ct_ucsd --archive"
                self.fault(DatasetError(f"{message}, or let `{how}` do it."))
                return None
        self.fault(self.not_found(tops[0] / name))
        return None

    def _read_patients(self) -> dict[str, str]:
        """Read from file name to patient of the slices without COVID-19."""
        path = self.root / "NonCOVID-CT-MetaInfo.csv"
        if path.is_file():
            table = Table(path, fault=self.fault)
            name, patient = table.require("image name"), table.require("patient id")
            return {row[name]: row[patient] for _, row in table}
        warnings.warn(
            f"There is no {path}: each MedPix slice counts as a patient of its own, so slices of one patient may train "
            f"and test.",
            stacklevel=2,
        )
        return {}


def _record(
    folder: Path, name: str, label: str, split: SplitName, there: frozenset[str], patients: Mapping[str, str]
) -> Record:
    # A percent sign is a part of the name, never a code; copies of the data set wrote _ in its place.
    spelling = name.replace("%", "_")
    path = folder / (spelling if name not in there and spelling in there else name)
    stem = Path(name).stem
    if label == "COVID":
        return Record(path, label, _FIGURE.sub("", stem), "articles", split)
    # Without the table: "5%0.jpg" and "5%1.jpg" are two slices of crawled_patient_5; numbered PNGs are of MedPix.
    crawled = f"crawled_patient_{stem.split('%')[0]}" if name.endswith(".jpg") else None
    source = "web" if name.endswith(".jpg") else "medpix"
    return Record(path, label, patients.get(name, crawled), source, split)
