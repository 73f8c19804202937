"""Images of several data sets that one table lists: `manifest.csv`, a row an image, beside images and masks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from covidcxr.data.datasets.csv import parse_age
from covidcxr.data.files import table_path
from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.io.tables import Fault, Table

__all__ = ["read_manifest", "SeriesPatients"]

_NEEDED = ("path", "source", "label", "patient_id", "view", "sex", "age", "lung_mask", "infection_mask")


_LUNGS = {"montgomery": "lung_field", "shenzhen": "lung_field"}  # all others: V7's, with the part behind the heart


def read_manifest(
    root: Path, sources: Collection[str], labels: Mapping[str, str], fault: Callable[[DatasetError], None]
) -> list[Record]:
    """Read the images of some sources from the `manifest.csv` of a collection.

    Args:
        root: Folder of the collection.
        sources: What `source` must be.
        labels: From the table's labels to the data set's own; others stay as they are.
        fault: Called with the error of a damaged row.

    Returns:
        The images, in the table's order; none where there is no such table, or one of other data sets.
    """
    path = root / "manifest.csv"
    if not path.is_file():
        return []
    table = Table(path, fault=fault)
    if not set(_NEEDED) <= set(table.columns):
        return []
    return [_record(root, row, labels) for _, row in table if row["source"] in sources]


def _record(root: Path, row: Mapping[str, str], labels: Mapping[str, str]) -> Record:
    masks = {_LUNGS.get(row["source"], "lung"): row["lung_mask"], "infection": row["infection_mask"]}
    return Record(
        table_path(root, row["path"]),
        label=labels.get(row["label"], row["label"]),
        patient_id=row["patient_id"],
        source=row["source"],
        mask_paths={name: table_path(root, mask) for name, mask in masks.items() if mask},
        view=row["view"] or None,
        sex=row["sex"] or None,
        age=parse_age(row["age"]),
    )


# Images of one patient: "...-day3", "...-PA", "...fig1a"; what is left after the cut names the series.
_SERIES = re.compile(r"[-_. ](day-?\d+|[a-d]|pa|ap|l)$|(?<=\d)[a-d]$", re.IGNORECASE)


class SeriesPatients:
    r"""Tells the patients of images that were taken from the ieee8023 collection under their own names.

    Args:
        root: Folder that may hold the collection's `metadata.csv`, which knows them. Without it images are grouped by
            their names, which finds only some of the series; a warning says so.
        fault: Called with the error of a damaged row of that table.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.data.datasets.manifest import SeriesPatients

        Path("metadata.csv").write_text("filename,patientid\n12-day3.jpg,7\n")
        patients = SeriesPatients(Path("."), fault=print)
        assert patients.of(Path("12-day3.png")) == "ieee8023-7"
        assert patients.of(Path("13-day1.png")) == patients.of(Path("13-day4.png")) == "ieee8023-13"
        ```
    """

    def __init__(self, root: Path, fault: Fault) -> None:
        self._known: dict[str, str] = {}
        table = root / "metadata.csv"
        if table.is_file():
            rows = Table(table, fault=fault)
            name, patient = rows.require("filename"), rows.require("patientid")
            self._known = {Path(row[name]).stem: row[patient] for _, row in rows}
            return
        warnings.warn(
            f"The patients of the COVID-19 images in {root} are guessed from file names, which misses many: images of "
            f"one patient may train and test. Put the metadata.csv of the ieee8023 collection there.",
            stacklevel=2,
        )

    def of(self, image: Path) -> str:
        """Return the patient of an image.

        Args:
            image: The file.

        Returns:
            "ieee8023-" and the patient's id, or what names the series.
        """
        return f"ieee8023-{self._known.get(image.stem) or _SERIES.sub('', image.stem)}"
