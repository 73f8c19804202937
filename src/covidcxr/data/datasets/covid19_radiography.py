"""The COVID-19 Radiography Database (Chowdhury, Rahman 2020): COVID-19, lung opacity, viral pneumonia, normal."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.files import find_images, find_orphans, list_folders
from covidcxr.data.records import Record
from covidcxr.errors import DatasetError
from covidcxr.io.tables import Table
from covidcxr.registry import DATASETS

__all__ = ["Covid19RadiographyDataModule"]

_LABELS = {
    "covid": "COVID",
    "covid19": "COVID",
    "lungopacity": "Lung_Opacity",
    "normal": "Normal",
    "viralpneumonia": "Viral Pneumonia",
}
_CLASSES = tuple(dict.fromkeys(_LABELS.values()))
_SOURCES = {  # part of a URL in the tables -> the collection
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

    classes = _CLASSES
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
        for label in _CLASSES:
            if label not in by_label and (is_recent or label != "Lung_Opacity"):
                self.fault(self.not_found(top / label))
        return {label: by_label[label] for label in _CLASSES if label in by_label}

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
    known = (source for part, source in _SOURCES.items() if part in url.lower())
    return next(known, None) or urlsplit(url.strip()).hostname or "unknown"
