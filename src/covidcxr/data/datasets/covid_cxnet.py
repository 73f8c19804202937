"""The images of COVID-CXNet (Haghanifar 2020): COVID-19, gathered from articles and the web."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import parse_age, read_manifest
from covidcxr.data.files import find_images
from covidcxr.data.records import Record
from covidcxr.io.tables import Table
from covidcxr.registry import DATASETS

__all__ = ["CovidCXNetDataModule"]

_LABEL = "COVID-19"
_COLUMNS = ("filename", "patient_id", "sex", "age", "view")
_NUMBER = re.compile(r"\d+")


@DATASETS.register("covid_cxnet")
class CovidCXNetDataModule(CXRDataModule):
    """About 900 COVID-19 images from articles, societies' pages and other collections, one class only.

    Images bear numbers ("374.PNG", "280-.jpg", "446p.jpg"). `metadata.csv` tells patient, view, sex and age of those
    from 260 up that are not Hannover's. The endings of its file names are not those of the files, so images are found
    in it by their numbers.

    A `manifest.csv` with images of source "cxnet" is read in place of the published files.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import CovidCXNetDataModule

        data = CovidCXNetDataModule("COVID-CXNet")
        print(data.counts())
        ```
    """

    classes = (_LABEL,)
    homepage: ClassVar[str] = "https://github.com/armiro/COVID-CXNet"
    layout: ClassVar[str] = "the folder chest_xray_images/covid19 (or covid19, or its images directly) and metadata.csv"
    citation: ClassVar[str] = (
        "Haghanifar A., Molahasani Majdabadi M., Choi Y., Deivalakshmi S., Ko S. COVID-CXNet: Detecting COVID-19 in "
        "Frontal Chest X-ray Images using Deep Learning. arXiv:2006.13807; images: 10.6084/m9.figshare.12580328"
    )
    license: ClassVar[str] = "CC BY 4.0 as the repository states; images come from many places with owners of their own"
    caveats: ClassVar[tuple[str, ...]] = (
        "There is one class only: join it with another data set to classify, and then the source tells the class.",
        "About half of the images do not tell their patient: images of one patient may train and test.",
        "Many images are in the ieee8023 collection too, and 510 to 673 and 686 to 706 are Hannover's: do not train on "
        "one and test on another.",
        'A "-" behind the number means that the image shows nothing abnormal, a "p" that the patient is a child.',
        "Images are figures of articles and web pages, with letters, arrows, crops and traces of earlier compression.",
    )

    def read_records(self) -> Iterator[Record]:
        """Return a record an image of the folder, or a row of the manifest."""
        listed = read_manifest(self.root, ("cxnet",), {"covid19": _LABEL}, self.fault)
        yield from listed or self._read_published()

    def _read_published(self) -> Iterator[Record]:
        rows = self._read_table()
        images = self._images()
        numbers = [int(match[0]) if (match := _NUMBER.match(image.name)) else -1 for image in images]
        unknown = sum(number not in rows for number in numbers)
        if unknown:
            warnings.warn(
                f"{self.root / 'metadata.csv'} does not tell the patients of {unknown} of {len(images)} images: each "
                f"counts as a patient of its own, so images of one patient may train and test.",
                stacklevel=2,
            )
        for image, number in zip(images, numbers, strict=True):
            row = rows.get(number, {})
            patient = row.get("patient_id")
            yield Record(
                image,
                _LABEL,
                f"cxnet-{patient}" if patient else None,
                "cxnet",
                view=row.get("view") or None,  # all are frontal, by the authors' word
                sex=row.get("sex") or None,
                age=parse_age(row.get("age", "")),
            )

    def _images(self) -> list[Path]:
        folders = (self.root / "chest_xray_images" / "covid19", self.root / "covid19", self.root)
        images = next((images for folder in folders if folder.is_dir() and (images := find_images(folder))), [])
        if not images:
            self.fault(self.not_found(folders[0] / "*"))
        return images

    def _read_table(self) -> dict[int, dict[str, str]]:
        """Read from the number of an image to its row."""
        path = self.root / "metadata.csv"
        if not path.is_file():
            self.fault(self.not_found(path))
            return {}
        table = Table(path, fault=self.fault)
        for column in _COLUMNS:
            table.require(column)
        return {int(match[0]): row for _, row in table if (match := _NUMBER.match(row["filename"]))}
