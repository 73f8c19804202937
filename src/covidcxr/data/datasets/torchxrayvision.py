"""Any data set of TorchXRayVision, with its labels as findings; its picture range ends here."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from jaxtyping import Float

from covidcxr import aliases
from covidcxr.config import check_keys
from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.datasets.csv import parse_age
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError, ImageReadError, UnknownNameError, did_you_mean
from covidcxr.registry import DATASETS

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "XRayVisionDataModule",
    "Part",
]

_FILES = {  # columns that name an image, and how its file is called after it, as far as that is known
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


def _find_parts(dataset: Any) -> Iterator[Any]:
    """Find the data sets of files below any that merge, filter or cut them down."""
    inner = getattr(dataset, "datasets", None) or [
        getattr(dataset, name) for name in ("dataset", "d1", "d2") if hasattr(dataset, name)
    ]
    if not inner:
        yield dataset
    for part in inner:
        yield from _find_parts(part)


def _find_part(dataset: Any, index: int) -> tuple[Any, int]:
    """Find the data set of files that an image comes from."""
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
    """A data set of files: tells what its table says of an image.

    Args:
        dataset: A data set of TorchXRayVision that holds no other.

    Example:
        ```python
        from types import SimpleNamespace

        import pandas as pd

        from covidcxr.data.datasets.torchxrayvision import Part

        table = pd.DataFrame({"filename": ["a.png"], "patientid": [7], "view": ["PA"]})
        part = Part(SimpleNamespace(imgpath="images", csv=table))
        assert part.record(0, {"Edema": True}).patient_id == "SimpleNamespace-7"
        ```
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
        """Return the record of an image.

        Args:
            index: Its place in the data set.
            findings: What is known of the classes.

        Returns:
            What its table says of it.
        """
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


_WHITE = 1024  # TorchXRayVision's white; its black is -1024


_WRAPPERS = {"Dataset", "MergeDataset", "FilterDataset", "SubsetDataset", "CovariateDataset"}


@DATASETS.register("torchxrayvision")
class XRayVisionDataModule(CXRDataModule):
    """Any data set of TorchXRayVision: NIH, CheXpert, MIMIC, PadChest, RSNA, VinDr, ... and several of them merged.

    Its pathologies are the classes, which are not exclusive; what it labels NaN is not known. Pictures come to
    [0, 1]. Where it does not tell patients, every image counts as a patient of its own.

    Args:
        root: Folder to which paths in `dataset_args` are relative.
        dataset: Name of one of its classes, say "NIH_Dataset"; or, from Python, a data set, also a merged, filtered,
            relabelled or cut-down one, without `data_aug`.
        dataset_args: Arguments of that class, all that end in "path" relative to `root`. Mind its own defaults: most
            keep PA images only, and one image a patient (`{views: ["*"], unique_patients: false}` keeps all).
        base: Further settings of `CXRDataModule`.

    Raises:
        UnknownNameError: If it has no such data set.
        ConfigError: If an argument is wrong, or the data set changes its images at random.
        DatasetError: If its files are not there, or its labels are grades.

    Example:
        ```python
        # not run: needs the images of NIH ChestX-ray14
        from covidcxr.data import XRayVisionDataModule

        paths = {"imgpath": "images", "csvpath": "Data_Entry_2017_v2020.csv.gz"}
        data = XRayVisionDataModule("nih", dataset="NIH_Dataset", dataset_args=paths)
        ```
    """

    homepage: ClassVar[str] = "https://github.com/mlmed/torchxrayvision"
    layout: ClassVar[str] = "what the chosen class of torchxrayvision.datasets reads: the paths in dataset_args"
    citation: ClassVar[str] = (
        "Cohen J.P., Viviano J.D., Bertin P. et al. TorchXRayVision: A library of chest X-ray datasets and models. "
        "MIDL 2022, arXiv:2111.00595; and the data set's own"
    )
    license: ClassVar[str] = "each data set its own"
    caveats: ClassVar[tuple[str, ...]] = (
        "Labels of most of these data sets were mined from reports by text analysis and are noisy.",
        "unique_patients=True takes the first known value of each column: labels of CheXpert and MIMIC then mix those "
        "of several images of a patient.",
        "RSNA, SIIM and NIH_Google hold images of NIH patients: merged with NIH, they share patients by other names.",
    )

    def __init__(
        self,
        root: str | PathLike[str] = ".",
        *,
        dataset: Any,
        dataset_args: Mapping[str, Any] | None = None,
        **base: Unpack[DataSettings],
    ) -> None:
        super().__init__(root, **base)
        by_name = isinstance(dataset, str)
        self.settings = {
            "dataset": dataset if by_name else type(dataset).__name__,
            "dataset_args": None if dataset_args is None else dict(dataset_args),
        }
        self._places: dict[str, int] = {}
        if self.prepared is not None:
            return
        if not self.root.is_dir():
            raise self.not_found(self.root)
        if dataset_args and not by_name:
            raise ConfigError("dataset_args are for a dataset that is given by its name.")
        self.dataset = _build(dataset, dataset_args or {}, self.root) if by_name else dataset
        if not (hasattr(self.dataset, "pathologies") and hasattr(self.dataset, "labels")):
            raise ConfigError(f"dataset must be a data set of TorchXRayVision or the name of one, not {dataset!r}.")
        for part in _find_parts(self.dataset):
            if getattr(part, "data_aug", None) is not None:
                raise ConfigError(
                    f"The {type(part).__name__} has data_aug, which would change validation and test images at random. "
                    f"Build it without, and augment by augment=."
                )
        self.classes = tuple(name for name in map(str, self.dataset.pathologies) if name)

    def read_records(self) -> Iterator[Record]:
        """Return a record an image; an image that is listed again (a row for each box, say) counts as left out."""
        self._places.clear()
        parts: dict[int, Part] = {}
        for place, findings in enumerate(self._findings()):
            dataset, index = _find_part(self.dataset, place)
            if id(dataset) not in parts:
                parts[id(dataset)] = Part(dataset)
            record = parts[id(dataset)].record(index, findings)
            if record.image_id in self._places:
                self.left_out["listed again"] += 1
                continue
            self._places[record.image_id] = place
            yield record
        if silent := sorted({part.source for part in parts.values() if not part.tells_patients}):
            warnings.warn(
                f"{', '.join(silent)} tells no patients: each image counts as a patient of its own, so images of one "
                f"patient may train and test.",
                stacklevel=2,
            )

    def load_image(self, record: Record) -> Float[np.ndarray, "height width"]:
        """Open an image through TorchXRayVision.

        Args:
            record: The image.

        Returns:
            Its grey values, in [0, 1].

        Raises:
            ImageReadError: If it cannot be read, or is not in [-1024, 1024] there.
        """
        with _random_states_kept():
            try:
                picture = np.asarray(self.dataset[self._places[record.image_id]]["img"], dtype=np.float32)
            except Exception as error:  # its readers, and the user's own transforms, raise whatever they like
                raise ImageReadError(f"TorchXRayVision cannot read {record.image_id}: {error!r}.") from error
        return _to_unit(picture, record.image_id)

    def find_missing(self, records: object) -> list[str]:
        """Look for no file: the data set alone knows its files (some lie in an archive).

        Args:
            records: The images.

        Returns:
            Nothing.
        """
        return []

    def _findings(self) -> Iterator[dict[str, bool]]:
        """Return what is known of each image; images of which the same is known share it."""
        names = list(map(str, self.dataset.pathologies))
        labels = np.asarray(self.dataset.labels, dtype=np.float32)
        if labels.shape != (len(self.dataset), len(names)):
            raise DatasetError(f"The data set has labels of shape {labels.shape} for {len(names)} pathologies.")
        graded = ~(np.isnan(labels) | (labels == 0) | (labels == 1)).all(0)
        if graded.any():
            raise DatasetError(f"{names[graded.argmax()]!r} is a grade, not a finding: labels must be 1, 0 or NaN.")
        seen: dict[bytes, dict[str, bool]] = {}
        for row in labels:
            if row.tobytes() not in seen:
                known = zip(names, row.tolist(), strict=True)
                seen[row.tobytes()] = {name: value == 1 for name, value in known if name and value == value}
            yield seen[row.tobytes()]


def _build(name: str, arguments: Mapping[str, Any], root: Path) -> Any:
    with warnings.catch_warnings():  # its import silences all warnings for good
        warnings.simplefilter("ignore")
        from torchxrayvision import datasets
    known = {
        key: kind
        for key, kind in vars(datasets).items()
        if isinstance(kind, type) and issubclass(kind, datasets.Dataset)
    }
    offered = [key for key in known if key not in _WRAPPERS and key == known[key].__name__]
    if name not in offered:
        raise UnknownNameError(f"TorchXRayVision has no data set {name!r}. {did_you_mean(name, offered)}")
    parameters = inspect.signature(known[name]).parameters
    check_keys(arguments, set(parameters), "dataset_args")
    if lacking := [key for key, value in parameters.items() if value.default is value.empty and key not in arguments]:
        raise ConfigError(f"The data set {name!r} needs dataset_args: {', '.join(lacking)}.")
    is_path = {key for key in arguments if key.endswith("path") and arguments[key] != datasets.USE_INCLUDED_FILE}
    given = {key: str(root / value) if key in is_path else value for key, value in arguments.items()}
    with _random_states_kept():
        try:
            return known[name](**given)
        except Exception as error:  # it raises Exception itself, or what pandas raises
            raise DatasetError(f"The data set {name!r} cannot be read: {error}. Check dataset_args {given}.") from error


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore the global random states, which TorchXRayVision seeds and draws from."""
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(cards)):
        try:
            yield
        finally:
            np.random.set_state(numpys)  # noqa: NPY002
            random.setstate(pythons)


def _to_unit(picture: np.ndarray, name: str) -> Float[np.ndarray, "height width"]:
    if picture.ndim != 3 or picture.shape[0] != 1 or not picture.size:
        raise ImageReadError(f"{name} is of shape {picture.shape}, not [1, height, width]. Leave transform out.")
    low, high = float(picture.min()), float(picture.max())
    # An image within 0 ... 255 is none of theirs: it would be a narrow band of light grey.
    if not (low >= -_WHITE - 1 and high <= _WHITE + 1) or (low >= 0 and high <= 255):
        raise ImageReadError(
            f"{name} lies in [{low:g}, {high:g}], but TorchXRayVision's images lie in [-1024, 1024]. "
            f"Scale by torchxrayvision.utils.normalize."
        )
    unit: Float[np.ndarray, "height width"] = ((picture[0] + _WHITE) / (2 * _WHITE)).clip(0, 1)
    return unit
