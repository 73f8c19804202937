"""What readers said on the radiologist's page, as a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Unpack

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.registry import DATASETS

__all__ = ["FORMAT_VERSION", "INDEX", "FeedbackDataModule"]

INDEX = "feedback.json"
"""The file by which an export is known."""

FORMAT_VERSION = 1


@DATASETS.register("feedback")
class FeedbackDataModule(CXRDataModule):
    """Images with a reader's verdict and corrected masks, as `covidcxr feedback` exports them from a server's store.

    Classes are those that the readers could choose from. Where DICOM identifiers were not kept nobody knows whose a
    image is: then the same image twice counts as one patient, and two images of one patient may train and test.

    Args:
        root: Folder of the export. Lungs that the model predicted lie in its folder `drawn`: set `drawn_masks` to it
            where the model sees a region.
        base: Further settings of `CXRDataModule`.

    Raises:
        DatasetError: If it is no export, damaged, or of a newer covidcxr.

    Example:
        ```python
        # not run: needs an export of a reading server
        from covidcxr.data import FeedbackDataModule

        data = FeedbackDataModule("feedback")
        print(data.counts())
        ```
    """

    layout: ClassVar[str] = "feedback.json and the images that it names, as `covidcxr feedback STORE --out ROOT` writes"
    license: ClassVar[str] = "that of the images; for those who may see them"

    def __init__(self, root: str | PathLike[str], **base: Unpack[DataSettings]) -> None:
        super().__init__(root, **base)
        if self.prepared is None:
            self._index = self._read_index(self.root / INDEX)
            self.set_classes(self._index["classes"])

    def read_records(self) -> Iterator[Record]:
        """Return a record an image."""
        for image in self._index["films"]:
            yield Record(
                self.root / image["film"],
                label=image["label"],
                patient_id=image["patient"] or image["sha256"],
                source="feedback",
                mask_paths={name: self.root / place for name, place in image["masks"].items()},
            )

    def _read_index(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            if (self.root / "store.sqlite").is_file():
                raise DatasetError(
                    f"{self.root} is a server's store. Export what may train: covidcxr feedback {self.root} --out DIR"
                )
            raise self.not_found(path)
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["format_version"] > FORMAT_VERSION:
                raise DatasetError(f"{path} was written by a newer covidcxr. Update: pip install -U covidcxr")
            known = {"film": str, "sha256": str, "label": str | None, "patient": str | None, "masks": dict}
            sound = all(isinstance(image[key], kind) for image in index["films"] for key, kind in known.items())
            if not sound or not all(isinstance(name, str) for name in index["classes"]):
                raise TypeError("a value is of the wrong kind")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{path} is damaged ({error!r}). Export the feedback again.") from error
        return dict(index)
