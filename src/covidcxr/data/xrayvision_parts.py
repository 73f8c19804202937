"""What TorchXRayVision's data sets are made of, and what they tell of a film."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covidcxr.data.records import Record
from covidcxr.data.table import parse_age

__all__ = ["Part", "find_part", "find_parts"]

_FILES = {  # columns that name a film, and how its file is called after it, as far as that is known
    "Image Index": "{}",
    "ImageID": "{}",
    "PngPath": "{}",
    "Path": "{}",
    "filename": "{}",
    "fname": "CXR_png/{}",
    "file_name": "imgs/{}",
    "dicom_id": "{}.jpg",
    "imageid": "{}.png",
    "image_id": "{}.dicom",
    "ImageId": "{}.dcm",
    "patientId": "{}",
    "image_name": "train/{}",
}
_FACTS = ("patientid", "view", "sex", "sex_male", "sex_female", "age_years", "age")


def find_parts(dataset: Any) -> Iterator[Any]:
    """Find the data sets of files below any that merge, filter or cut them down."""
    inner = getattr(dataset, "datasets", None) or [
        getattr(dataset, name) for name in ("dataset", "d1", "d2") if hasattr(dataset, name)
    ]
    if not inner:
        yield dataset
    for part in inner:
        yield from find_parts(part)


def find_part(dataset: Any, index: int) -> tuple[Any, int]:
    """Find the data set of files that a film comes from, and its place in that."""
    while True:
        if hasattr(dataset, "datasets"):  # MergeDataset
            part, start = int(dataset.which_dataset[index]), int(dataset.offset[index])
            dataset, index = dataset.datasets[part], index - start
        elif hasattr(dataset, "idxs"):  # SubsetDataset, FilterDataset
            dataset, index = dataset.dataset, int(dataset.idxs[index])
        elif hasattr(dataset, "imageids"):  # CovariateDataset
            dataset, index = (dataset.d2 if dataset.site[index] else dataset.d1), int(dataset.imageids[index])
        else:
            return dataset, index


class Part:
    """A data set of files: tells what its table says of a film.

    Args:
        dataset: A data set of TorchXRayVision that holds no other.
    """

    def __init__(self, dataset: Any) -> None:
        self.source = type(dataset).__name__
        self._folder = Path(getattr(dataset, "imgpath", None) or ".")
        table: Any = getattr(dataset, "csv", None)
        columns = () if table is None else table.columns
        self._facts = {name: table[name].tolist() for name in _FACTS if name in columns}
        name = next((name for name in _FILES if name in columns), None)
        self._names = None if table is None or name is None else [_FILES[name].format(value) for value in table[name]]

    @property
    def tells_patients(self) -> bool:
        """Whether its table has a column of patients."""
        return "patientid" in self._facts

    def record(self, index: int, findings: Mapping[str, bool]) -> Record:
        """Return the record of the film at a place."""
        name = str(index) if self._names is None else self._names[index]
        said = {fact: _text(values[index]) for fact, values in self._facts.items()}
        sexes = [letter for letter, fact in (("M", "sex_male"), ("F", "sex_female")) if said.get(fact) == "True"]
        patient, age = said.get("patientid"), said.get("age_years") or said.get("age")
        return Record(
            self._folder / name,
            patient_id=f"{self.source}-{patient}" if patient else None,
            source=self.source,
            view=said.get("view"),
            sex=said.get("sex") or next(iter(sexes), None),
            age=parse_age(age or ""),
            findings=findings,
            image_id=f"{self.source}/{name}",
        )


def _text(value: object) -> str | None:
    """Write a value of a table; None where there is none. A column of whole numbers with gaps holds 12.0 for 12."""
    if value is None or value != value:
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip() or None
