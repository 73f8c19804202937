"""Prepares a compact copy so slowly that it can be killed: `python prepare_slowly.py ROOT OUT`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from covidcxr.data.collection import Collection
from covidcxr.data.curation import prepare
from covidcxr.data.records import Record
from covidcxr.io.tables import Table


class Images(Collection):
    """The images and lung masks of `fakes.write_table_fake`, without the weight of a data module."""

    classes = ("covid19", "pneumonia", "normal", "other")

    def read_records(self) -> Iterator[Record]:
        for _, row in Table(self.root / "manifest.csv"):
            masks = {"lung": self.root / row["lung_mask"]} if row["lung_mask"] else {}
            yield Record(self.root / row["path"], row["label"], row["patient_id"], row["source"], mask_paths=masks)


def main() -> None:
    write_image = prepare.write_image

    def slowly(*given: Any) -> None:
        time.sleep(0.02)
        write_image(*given)

    def say(done: int, total: int) -> None:
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()

    prepare.write_image = slowly
    prepare.prepare_dataset(Images(sys.argv[1]), sys.argv[2], image_size=(24, 24), progress=say)


if __name__ == "__main__":
    main()
