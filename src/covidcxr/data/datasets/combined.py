"""Several data sets as one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack, get_args

import numpy as np
from jaxtyping import Float

from covidcxr.data.collection import DataSettings
from covidcxr.data.curation.duplicates import Linked
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.files import some_of
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, DatasetError, did_you_mean
from covidcxr.registry import DATASETS
from covidcxr.utils.plain import user_path

if TYPE_CHECKING:
    from covidcxr.data.curation.duplicates import DuplicateGroup

__all__ = ["CombinedDataModule", "Duplicates"]

Duplicates: TypeAlias = Literal["refuse", "group", "drop", "ignore"]
"""What is done about one image that is there several times."""

_OURS = {
    "image_size",
    "fit",
    "region",
    "lung_dilation",
    "mask_classes",
    "batch_size",
    "num_workers",
    "augment",
    "cache",
}
_OURS |= {"fractions", "fold", "folds", "hold_out_source", "balance", "split_seed", "seed"}
"""Settings that the combination has for all its members."""


@DATASETS.register("combined")
class CombinedDataModule(CXRDataModule):
    """Several data sets as one, their labels aligned, their sources kept (multi-dataset training).

    A member is a data module, or in YAML its name and arguments:

        datasets:
          quex: {name: covid_qu_ex, root: quex, label_map: {COVID-19: covid19, Non-COVID: pneumonia, Normal: normal}}
          covidx: {name: covidx_cxr3, root: covidx, label_map: {positive: covid19, negative: null}}

    Image and patient ids get the member's name in front. Collections copy from each other, so one image may be in
    several, even in two splits: copies are looked for when the records are read. That opens every image once (later
    runs use what was kept in `fingerprints`); with "ignore" none is opened.

    Args:
        root: Folder to which the members' roots are relative.
        datasets: The members by name. Size, augmentation, splits and the like are the combination's own.
        classes: Names and order of the classes; null = those of the members, in order, each once.
        duplicates: "refuse" = error if one image is in two splits; "group" = copies count as one patient, so they share
            a split, and where official splits keep them apart the copy outside the test split is left out; "drop" =
            only the first copy is kept; "ignore" = copies are not looked for.
        near_duplicates: Also look for copies that were cropped, resized, written anew, ...; else only for equal
            pictures.
        fingerprints: Folder where what was read of the images is kept, for the next time; null = `root`.
        base: Further settings of `CXRDataModule`.

    Raises:
        ConfigError: If a setting is wrong, or a member's is one that the combination has.
        UnknownNameError: If there is no such data set.
        DatasetError: If a member's labels are no classes, or one image is in two splits.

    Example:
        ```python
        from covidcxr.data import CombinedDataModule

        members = {
            "a": {"name": "csv", "root": "phantoms", "where": {"source": "phantom-a"}},
            "b": {"name": "csv", "root": "phantoms", "where": {"source": "phantom-b"}},
        }
        data = CombinedDataModule(datasets=members, near_duplicates=False)
        assert {record.image_id.split("/")[0] for record in data.records} == {"a", "b"}
        ```
    """

    layout = "the members' folders, or nothing where members have absolute roots"

    def __init__(
        self,
        root: str | PathLike[str] = ".",
        *,
        datasets: Mapping[str, CXRDataModule | Mapping[str, Any]],
        classes: Sequence[str] | None = None,
        duplicates: Duplicates = "refuse",
        near_duplicates: bool = True,
        fingerprints: str | PathLike[str] | None = None,
        **base: Unpack[DataSettings],
    ) -> None:
        if "views" in base:
            raise ConfigError("views is a setting of each member, whose images may be of another kind.")
        base["views"] = "all"
        super().__init__(root, **base)
        if duplicates not in get_args(Duplicates):
            raise ConfigError(f"duplicates must be one of {', '.join(get_args(Duplicates))}, not {duplicates!r}.")
        if not datasets:
            raise ConfigError("datasets must name at least one data set.")
        self.duplicates = duplicates
        self.near_duplicates = near_duplicates
        self.fingerprints = self.root if fingerprints is None else user_path(fingerprints)
        members = datasets if self.prepared is None else {}  # a compact copy is of the whole
        self.datasets = {name: self._member(name, dataset) for name, dataset in members.items()}
        self.settings = {
            "datasets": {
                name: dict(part) if isinstance(part, Mapping) else {"name": type(part).__name__, **part.copy_settings()}
                for name, part in datasets.items()
            },
            "classes": classes,
            "duplicates": duplicates,
            "near_duplicates": near_duplicates,
        }
        named = list(dict.fromkeys(label for part in self.datasets.values() for label in part.classes))
        for name, part in self.datasets.items():
            for label in part.classes:
                if classes is not None and label not in classes:
                    raise DatasetError(
                        f"The label {label!r} of {name} is no class. {did_you_mean(label, classes)} Rename it, or "
                        f"leave its images out, by the label_map of {name}."
                    )
        if self.prepared is None:
            self.set_classes(named if classes is None else classes)

    def read_records(self) -> Iterator[Record]:
        """Return the members' records, member by member."""
        for name, dataset in self.datasets.items():
            if self._faults is None:
                yield from self._renamed(name, dataset.unsplit_records())
            else:
                with dataset.collected_faults() as faults:
                    yield from self._renamed(name, dataset.unsplit_records())
                self._faults.extend(f"{name}: {fault}" for fault in faults)
            self.left_out.update({f"{name}: {reason}": count for reason, count in dataset.left_out.items()})

    def load_image(self, record: Record) -> Float[np.ndarray, "height width"]:
        """Open an image as its member does.

        Args:
            record: The image.

        Returns:
            Its grey values, in [0, 1].

        Raises:
            ImageReadError: If it cannot be read.
        """
        name, _, image_id = record.image_id.partition("/")
        return self.datasets[name].load_image(replace(record, image_id=image_id))

    def find_missing(self, records: Iterable[Record]) -> list[str]:
        """Look for no file: the members have looked for theirs.

        Args:
            records: The images.

        Returns:
            Nothing.
        """
        return []

    def unsplit_records(self) -> list[Record]:
        """Read the members' images; copies of one image are grouped or dropped, as `duplicates` says."""
        records = super().unsplit_records()
        if self.duplicates in ("refuse", "ignore"):
            return records
        copies = self._find_copies(records)
        surplus = self._drop(copies) if self.duplicates == "drop" else self._drop_leaking(records, copies)
        records = _link_patients(records, copies)  # also of copies that go: one person must not train and test
        return [record for record in records if record.image_id not in surplus]

    def check_splits(self, records: list[Record]) -> None:
        """Look for patients, and unless copies are dealt with otherwise for images, that are in two splits.

        Args:
            records: The images, each with its split.

        Raises:
            DatasetError: If one image is, and `duplicates` is "refuse".
        """
        super().check_splits(records)
        if self.duplicates != "refuse":
            return
        splits = {record.image_id: record.split for record in records}
        leaking = [group for group in self._find_copies(records) if len({splits[name] for name in group.image_ids}) > 1]
        if leaking:
            pairs = [" = ".join(group.image_ids) for group in leaking]
            raise DatasetError(
                f"{len(leaking)} images are there several times, in different splits: {some_of(pairs, 3)}. "
                f'duplicates="group" keeps copies in one split, "drop" keeps the first, "ignore" lets them be.'
            )

    def _find_copies(self, records: list[Record]) -> list[DuplicateGroup]:
        from covidcxr.data.curation.duplicates import find_duplicates

        copies = find_duplicates(
            records, near=self.near_duplicates, read=self.load_image, cache=self.fingerprints / ".covidcxr-fingerprints"
        )
        return list(copies)

    def _drop(self, copies: list[DuplicateGroup]) -> set[str]:
        """Return all copies but the first of each image."""
        surplus = {name for group in copies for name in group.image_ids[1:]}
        self.left_out["copy of another image"] += len(surplus)
        return surplus

    def _drop_leaking(self, records: list[Record], copies: list[DuplicateGroup]) -> set[str]:
        """Return the copies that official splits keep apart from the one nearest to testing."""
        if self.folds is not None or self.hold_out_source is not None:
            return set()  # official splits are set aside
        splits = {record.image_id: record.split for record in records}
        surplus: set[str] = set()
        for group in copies:
            fixed = {splits[name] for name in group.image_ids} - {None}
            kept = next((split for split in ("test", "val", "train") if split in fixed), None)
            surplus |= {name for name in group.image_ids if splits[name] not in (kept, None)}
        if surplus:
            self.left_out["copy of an image in another official split"] += len(surplus)
            warnings.warn(
                f"{len(surplus)} images are left out of training or validation, because official splits have a copy of "
                f"them in another part.",
                stacklevel=2,
            )
        return surplus

    def _member(self, name: str, dataset: CXRDataModule | Mapping[str, Any]) -> CXRDataModule:
        if "/" in name or not name:
            raise ConfigError(f"A member's name stands before a slash in image ids, so it may not be {name!r}.")
        if isinstance(dataset, CXRDataModule):
            return dataset
        arguments = dict(dataset)
        kind = arguments.pop("name", None)
        if not isinstance(kind, str) or "root" not in arguments:
            raise ConfigError(f"The member {name} must say its data set and its folder: {{name: ..., root: ..., ...}}.")
        for key in sorted(_OURS & arguments.keys()):
            raise ConfigError(f"{key!r} of the member {name} is a setting of the whole: give it to the combination.")
        root = self.root / user_path(arguments.pop("root"))
        try:
            member: CXRDataModule = DATASETS.get(kind)(root, augment=None, **arguments)
        except TypeError as error:
            raise ConfigError(f"The member {name} ({kind}) refuses its settings: {error}.") from error
        return member

    def _renamed(self, name: str, records: list[Record]) -> Iterator[Record]:
        for record in records:
            patient = None if record.patient_id is None else f"{name}/{record.patient_id}"
            source = name if record.source == "unknown" else record.source
            yield replace(record, image_id=f"{name}/{record.image_id}", patient_id=patient, source=source)


def _link_patients(records: list[Record], copies: list[DuplicateGroup]) -> list[Record]:
    """Make one patient of all patients who share an image."""
    patients = {record.image_id: record.patient for record in records}
    linked: Linked[str] = Linked()
    for group in copies:
        for name in group.image_ids[1:]:
            linked.link(patients[group.image_ids[0]], patients[name])
    return [
        replace(record, patient_id=patient) if (patient := linked.leader(record.patient)) != record.patient else record
        for record in records
    ]
