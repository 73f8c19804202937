"""The ward's images: `FINDING/PATIENT-NUMBER.png`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from covidcxr import CXRDataModule, Record


class WardDataModule(CXRDataModule):
    """Images of one ward, by finding.

    Args:
        root: Folder with a folder a finding.
        ward: What the ward calls itself.
        **settings: The settings of `CXRDataModule`.
    """

    classes = ("clear", "opaque")

    def __init__(self, root: str, *, ward: str = "ward", **settings: Any) -> None:
        super().__init__(root, **settings)
        self.ward = ward

    def read_records(self) -> Iterable[Record]:
        """Return a record an image."""
        for path in sorted(self.root.glob("*/*.png")):
            yield Record(path, label=path.parent.name, patient_id=path.stem.partition("-")[0], source=self.ward)
