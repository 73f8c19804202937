"""Data sets of Qatar University: the COVID-19 Radiography Database (Chowdhury 2020) and COVID-QU-Ex (Tahir 2021)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from os import PathLike
from pathlib import Path
from typing import ClassVar, Literal, Unpack, get_args
from urllib.parse import urlsplit

from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import read_manifest
from covidcxr.data.files import find_images, find_orphans, list_folders
from covidcxr.data.records import Record, bimcv_view
from covidcxr.data.splits import split_name
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.tables import Table
from covidcxr.registry import DATASETS
from covidcxr.types import AgeGroup

__all__ = ["Covid19RadiographyDataModule", "CovidQUExDataModule"]

_LABELS = {
    "covid": "COVID",
    "covid19": "COVID",
    "lungopacity": "Lung_Opacity",
    "normal": "Normal",
    "viralpneumonia": "Viral Pneumonia",
}
_RADIOGRAPHY_CLASSES = tuple(dict.fromkeys(_LABELS.values()))
_RADIOGRAPHY_SOURCES = {  # part of a URL in the tables -> the collection
    "bimcv": "bimcv",
    "rsna-pneumonia": "rsna",
    "paultimothymooney": "kermany",
    "sirm.org": "sirm",
    "ml-workgroup": "hannover",
    "armiro": "covid_cxnet",
    "ieee8023": "ieee8023",
    "eurorad": "eurorad",
}


@DATASETS.register("covid19_radiography")
class Covid19RadiographyDataModule(CXRDataModule):
    """21,165 images with lung masks from eight collections; no official split, no patients.

    The source of an image is read from the workbook of its class, if that is there. The releases before 2021 have no
    masks and no Lung_Opacity: `label_map: {Lung_Opacity: null}` takes the class away.

    Example:
        ```python
        # not run: needs the download
        from covidcxr.data import Covid19RadiographyDataModule

        data = Covid19RadiographyDataModule("radiography")
        print(data.counts())
        ```
    """

    classes = _RADIOGRAPHY_CLASSES
    homepage: ClassVar[str] = "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database"
    layout: ClassVar[str] = (
        "the folders COVID, Lung_Opacity, Normal and Viral Pneumonia, each with images and masks, and a workbook a "
        "class, say COVID.metadata.xlsx (or the folder that holds them, COVID-19_Radiography_Dataset)"
    )
    citation: ClassVar[str] = (
        "Chowdhury M.E.H. et al. Can AI help in screening viral and COVID-19 pneumonia? IEEE Access 2020, 8, "
        "132665-132676; Rahman T. et al. Exploring the effect of image enhancement techniques on COVID-19 detection "
        "using chest X-ray images. arXiv:2012.02238"
    )
    license: ClassVar[str] = "data files (c) their original authors; the sources have their own terms"
    caveats: ClassVar[tuple[str, ...]] = (
        "Source is label: Lung_Opacity is RSNA's, Viral Pneumonia Kermany's, Normal of both, COVID of neither.",
        "All 1,345 Viral Pneumonia images and 1,341 of 10,192 Normal images are of children, COVID images of adults.",
        "Patients are not told: images of one patient may train and test.",
        "2,473 of 3,616 COVID images are of BIMCV, 183 of Hannover, 400 of COVID-CXNet: do not test on those.",
    )
    releases: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "first release": {"all/COVID": 219, "all/Normal": 1341, "all/Viral Pneumonia": 1345},
        "first update": {"all/COVID": 1200, "all/Normal": 1341, "all/Viral Pneumonia": 1345},
        "second update, 2021": {
            "all/COVID": 3616,
            "all/Lung_Opacity": 6012,
            "all/Normal": 10192,
            "all/Viral Pneumonia": 1345,
        },
    }

    def read_records(self) -> Iterator[Record]:
        """Return a record an image, class by class."""
        top = self._find_top()
        folders = self._class_folders(top)
        tables = {_label_of(path): path for path in top.glob("*.metadata.xlsx")}
        if unknown := [label for label in folders if label not in tables]:
            warnings.warn(
                f"The sources of the {', '.join(unknown)} images in {self.root} are not known, and with them what a "
                f"model can learn in place of the disease. Put the workbooks of the download there (*.metadata.xlsx).",
                stacklevel=2,
            )
        for label, folder in folders.items():
            sources = self._read_sources(tables[label]) if label in tables else {}
            # Masks lie beside the images under the same names: nothing is looked for further below.
            image_folder = folder / "images" if (folder / "images").is_dir() else folder
            images = find_images(image_folder)
            if not images:
                self.fault(DatasetError(f"{image_folder} holds no image. Unpack the download again."))
            for message in find_orphans(images, folder / "masks") if images else ():
                self.remark(message)
            has_masks = (folder / "masks").is_dir()
            for image in images:
                yield Record(
                    image,
                    label,
                    source=sources.get(_plain(image.stem), "unknown"),
                    mask_paths={"lung_field": folder / "masks" / image.name} if has_masks else {},
                )

    def _find_top(self) -> Path:
        """Find the folder of the class folders: the root, or one or two levels below."""
        outer = list_folders(self.root)
        tops = (self.root, *outer, *(inner for folder in outer for inner in list_folders(folder)))
        return next(
            (top for top in tops if sum(_label_of(folder) is not None for folder in list_folders(top)) > 1), tops[0]
        )

    def _class_folders(self, top: Path) -> dict[str, Path]:
        """List the class folders, and tell of those that are missing."""
        by_label = {_label_of(folder): folder for folder in list_folders(top)}
        is_recent = any((folder / "images").is_dir() for folder in by_label.values())
        for label in _RADIOGRAPHY_CLASSES:
            if label not in by_label and (is_recent or label != "Lung_Opacity"):
                self.fault(self.not_found(top / label))
        return {label: by_label[label] for label in _RADIOGRAPHY_CLASSES if label in by_label}

    def _read_sources(self, path: Path) -> dict[str, str]:
        """Read from image, plainly spelt, to collection: the tables write names in another case than the files."""
        try:
            table = Table(path, fault=self.fault)
            name, url = table.require("FILE NAME"), table.require("URL")
            return {_plain(row[name]): _source(row[url]) for _, row in table}
        except DatasetError as error:
            self.fault(error)
            return {}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _label_of(path: Path) -> str | None:
    return _LABELS.get(_plain(path.name.removesuffix(".metadata.xlsx")))


def _source(url: str) -> str:
    known = (source for part, source in _RADIOGRAPHY_SOURCES.items() if part in url.lower())
    return next(known, None) or urlsplit(url.strip()).hostname or "unknown"


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
