"""COVID-QU-Ex (Tahir 2021): COVID-19, other infections and normal, with lung and infection masks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from os import PathLike
from pathlib import Path
from typing import ClassVar, Literal, Unpack, get_args

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import read_manifest
from covidcxr.data.files import find_images, find_orphans, list_folders
from covidcxr.data.records import Record, bimcv_view
from covidcxr.data.splits import split_name
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.registry import DATASETS
from covidcxr.types import AgeGroup

__all__ = ["CovidQUExDataModule"]

Part = Literal["lung", "infection", "both"]

_CLASSES = ("COVID-19", "Non-COVID", "Normal")
_FOLDERS = {"lung": "Lung Segmentation Data", "infection": "Infection Segmentation Data"}
_SOURCES = ("bimcv", "quex_mixed", "rsna")  # as a manifest.csv names them
_NUMBERS: Mapping[str, Sequence[tuple[range, str]]] = {
    "Non-COVID": ((range(6_000), "rsna"), (range(10_000, 13_000), "kermany")),
    "Normal": (
        (range(3_000), "rsna"),
        (range(9_000, 10_000), "kermany"),
        (range(10_000, 11_000), "rsna"),
        (range(11_000, 13_000), "kermany"),
    ),
}
"""The source of an image by the number in its name; numbers of which no image was looked at stand in no range."""

_AGES: Mapping[str, AgeGroup] = {"rsna": "adult", "kermany": "child"}
_MASKS = {
    "lung": {"lung_field": "lung masks"},
    "infection": {"lung_field": "lung masks", "infection": "infection masks"},
}


@DATASETS.register("covid_qu_ex")
class CovidQUExDataModule(CXRDataModule):
    """33,920 images with lung masks; a smaller part with infection masks, too.

    The infection masks of Non-COVID and Normal are all zero. They say that the image shows no COVID-19, not that its
    lungs are clear: in Non-COVID images nobody drew the other infection that they show.

    What is known of the origin of an image:

    - BIMCV's own names, in the lung part, tell patient, source and view.
    - The numbers of Non-COVID and Normal images tell source and age group: adults of RSNA (Non-COVID below 6,000;
      Normal below 3,000 and from 10,000 to 10,999) and children of Kermany (Non-COVID from 10,000; Normal from 9,000 to
      9,999 and from 11,000). This was looked up on images of the infection part; other numbers stay unknown.
    - A table `manifest.csv` in the folder that holds the parts, with the columns `path`, `source`, `patient_id`,
      `label`, `view`, `sex`, `age`, `lung_mask` and `infection_mask`, tells the source (bimcv, quex_mixed or rsna) and,
      as `patient_id`, which images may be of one patient. No patient of the infection part is known without it;
      `drop_unknown_patients` leaves out what it does not list.

    Args:
        root: Folder of the two parts, or the folder that holds it.
        part: "lung" = the large part; "infection" = the part with infection masks; "both" = the images of both by file
            name, each with all its masks. An image that is in both takes its split from the lung part.
        base: Further settings of `CXRDataModule`.

    Raises:
        ConfigError: If a setting is wrong.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import CovidQUExDataModule

        data = CovidQUExDataModule("quex", part="infection", mask_classes=("lung_field", "infection"))
        print(data.counts())
        ```
    """

    classes = _CLASSES
    homepage: ClassVar[str] = "https://www.kaggle.com/datasets/anasmohammedtahir/covidqu"
    layout: ClassVar[str] = (
        "the folders Lung Segmentation Data and Infection Segmentation Data (for one part, its folder is enough), each "
        "with Train, Val and Test in it, or in a folder of its own name"
    )
    citation: ClassVar[str] = (
        "Tahir A.M. et al. COVID-19 infection localization and severity grading from chest X-ray images. Comput Biol "
        "Med 2021, 139, 105002; data: 10.34740/kaggle/dsv/3122958"
    )
    license: ClassVar[str] = (
        "CC BY-SA 4.0, as far as is known; the sources (BIMCV, RSNA, NIH, Kermany, ieee8023, ...) have their own terms"
    )
    caveats: ClassVar[tuple[str, ...]] = (
        "Only 8,078 COVID-19 images of the lung part (BIMCV, 3,186 patients) tell their patient.",
        "324 COVID-19 images of the lung part are lateral by their names and left out by default.",
        "404 BIMCV images have no view in their names; they are kept.",
        "The infection masks of Non-COVID and Normal are all zero: a mask file does not mean an infection.",
        "An image may be in both parts with different splits: do not train on one part and test on the other.",
        "Source is label: no source has COVID-19 and other images; Non-COVID and Normal are of RSNA and of Kermany.",
        "Non-COVID and Normal images of Kermany are of children, 769 of 2,853 in the infection part. Normal (2) to "
        "Normal (21) look like children too, though their numbers lie among the adults of RSNA.",
        "The official split of the infection part leaks: of 3,077 groups that a manifest.csv tells, 165 are in several "
        "parts.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "2021, infection part": {
            "train/COVID-19": 1864,
            "train/Non-COVID": 932,
            "train/Normal": 932,
            "val/COVID-19": 466,
            "val/Non-COVID": 233,
            "val/Normal": 233,
            "test/COVID-19": 583,
            "test/Non-COVID": 292,
            "test/Normal": 291,
        },
        "2021, lung part": {
            "train/COVID-19": 7658,
            "train/Non-COVID": 7208,
            "train/Normal": 6849,
            "val/COVID-19": 1903,
            "val/Non-COVID": 1802,
            "val/Normal": 1712,
            "test/COVID-19": 2395,
            "test/Non-COVID": 2253,
            "test/Normal": 2140,
        },
    }

    def __init__(self, root: str | PathLike[str], *, part: Part = "lung", **base: Unpack[DataSettings]) -> None:
        super().__init__(root, **base)
        if part not in get_args(Part):
            raise ConfigError(f"part must be one of {', '.join(get_args(Part))}, not {part!r}.")
        self.part = part
        self.settings = {"part": part}

    def known_releases(self) -> Mapping[str, Mapping[str, int]]:
        """Return the counts of the part that is read; how many images both share is not published."""
        release = f"2021, {self.part} part"
        return {release: self.releases[release]} if release in self.releases else {}

    def read_records(self) -> Iterator[Record]:
        """Return a record an image, split by split."""
        return self._read_both() if self.part == "both" else self._read_part(self.part)

    def _read_part(self, part: str) -> Iterator[Record]:
        top = self._find_part(_FOLDERS[part])
        if top is None:
            return self.fault(self.not_found(self.root / _FOLDERS[part]))
        listed = {record.image_path: record for record in self._read_manifest(top)}
        for split, label in product(("Train", "Val", "Test"), _CLASSES):
            image_folder = top / split / label / "images"
            if not image_folder.is_dir():
                self.fault(self.not_found(image_folder))
                continue
            images = find_images(image_folder)
            if not images:
                self.fault(DatasetError(f"{image_folder} holds no image. Unpack the download again."))
            masks = {name: image_folder.with_name(folder) for name, folder in _MASKS[part].items()}
            for folder in masks.values() if images else ():
                for message in find_orphans(images, folder):
                    self.remark(message)
            for image in images:
                known = listed.get(image) or _read_name(image, label)
                yield replace(
                    known,
                    label=label,
                    split=split_name(split),
                    mask_paths={name: folder / image.name for name, folder in masks.items()},
                    age_group=_AGES.get(known.source),
                )

    def _read_manifest(self, top: Path) -> list[Record]:
        """Return what a table of origins tells: one beside the folder of a part, or further up, not above the root."""
        folders = [folder for folder in top.parents if folder == self.root or self.root in folder.parents]
        return next(filter(None, (read_manifest(folder, _SOURCES, {}, self.fault) for folder in folders)), [])

    def _read_both(self) -> Iterator[Record]:
        infection = {record.image_path.name: record for record in self._read_part("infection")}
        shared = differing = 0
        for record in self._read_part("lung"):
            twin = infection.pop(record.image_path.name, None)
            shared += twin is not None
            differing += twin is not None and twin.split != record.split
            yield replace(record, mask_paths={**twin.mask_paths, **record.mask_paths}) if twin else record
        yield from infection.values()
        if differing and self.official_split:
            warnings.warn(
                f"{differing} of the {shared} images that are in both parts of {self.root} lie in different splits "
                f"there. They take the split of the lung part.",
                stacklevel=2,
            )

    def _find_part(self, name: str) -> Path | None:
        tops = (self.root, *list_folders(self.root))
        # The download repeats the folder's name; many people remove the second level.
        candidates = (path for top in tops for path in (top / name / name, top / name))
        return next(filter(Path.is_dir, candidates), None)


def _read_name(image: Path, label: str) -> Record:
    """Return what the name of an image tells of its origin."""
    if bimcv := re.match(r"sub-(S\d+)_", image.name):
        return Record(image, patient_id=f"bimcv-{bimcv[1]}", source="bimcv", view=bimcv_view(image.name))
    number = re.search(r"\((\d+)\)", image.name)
    sources = (source for numbers, source in _NUMBERS.get(label, ()) if number and int(number[1]) in numbers)
    return Record(image, source=next(sources, "unknown"))
