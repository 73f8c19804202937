"""The COVID-19 Image Repository of Hannover Medical School (Winther 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import parse_age, read_manifest
from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.io.tables import Table
from covidcxr.registry import DATASETS

__all__ = ["HannoverDataModule"]

_LABEL = "COVID-19"
_COLUMNS = ("patient_id", "image_id", "sex", "age", "admission_offset", "projection")
_BEFORE = 7  # days before admission, from which up the authors no longer count an image as positive


@DATASETS.register("hannover")
class HannoverDataModule(CXRDataModule):
    """243 images of 71 COVID-19 patients of one German hospital, with patients and projections.

    The table tells no diagnosis, because every patient had COVID-19, but how many days before admission an image was
    taken (`admission_offset`, below zero = after it). By the authors' own rule it counts as positive if that is less
    than 7 days, as unknown up to 14, and as negative beyond. Images of 7 days and more have no label here: they are not
    COVID-19, and nobody says that they are normal.

    A `manifest.csv` with images of source "hannover" is read in place of the published files.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import HannoverDataModule

        data = HannoverDataModule("covid-19-image-repository")
        print(data.counts())
        ```
    """

    classes = (_LABEL,)
    homepage: ClassVar[str] = "https://github.com/ml-workgroup/covid-19-image-repository"
    layout: ClassVar[str] = "data.csv and the folder png with its images"
    citation: ClassVar[str] = (
        "Winther H.B., Laser H., Gerbel S. et al. COVID-19 Image Repository. Hannover Medical School 2020, "
        "10.6084/m9.figshare.12275009"
    )
    license: ClassVar[str] = "CC BY 3.0"
    caveats: ClassVar[tuple[str, ...]] = (
        "There is one class only: join it with another data set to classify, and then the source tells the class.",
        "COVID-19 is the patient's diagnosis: not every image shows it.",
        "Four of the 71 patients have 79 of the 243 images, taken over up to two months.",
        "Most images are in the ieee8023 collection and in COVID-CXNet too: do not train on one and test on another.",
        "The PNG files are reduced to 8 bits and look alike, of low contrast: the source is easy to recognise.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {"July 2020": {"all/COVID-19": 240, "all/unknown": 3}}

    def read_records(self) -> Iterator[Record]:
        """Return a record an image, from the published table or from the manifest."""
        listed = read_manifest(self.root, ("hannover",), {"covid19": _LABEL}, self.fault)
        yield from listed or self._read_published()

    def _read_published(self) -> Iterator[Record]:
        path = self.root / "data.csv"
        if not path.is_file():
            return self.fault(self.not_found(path))
        table = Table(path, fault=self.fault)
        for column in _COLUMNS:
            table.require(column)
        for line, row in table:
            try:
                before = float(row["admission_offset"] or 0)
            except ValueError:
                offset = row["admission_offset"]
                self.fault(DatasetError(f"Line {line} of {path}: admission_offset must be days, not {offset!r}."))
                continue
            yield Record(
                self.root / "png" / f"{row['image_id']}.png",
                label=_LABEL if before < _BEFORE else None,
                patient_id=f"hannover-{row['patient_id']}",
                source="hannover",
                view=row["projection"].upper() or "unknown",
                sex=row["sex"].upper() or None,
                age=parse_age(row["age"]),
            )
