"""Any table of images as a data set."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Unpack

from covidcxr.config import check_keys
from covidcxr.data.collection import DataSettings
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.files import table_path
from covidcxr.data.records import Record, no_collector
from covidcxr.data.splits import split_name
from covidcxr.errors import ConfigError, DatasetError, did_you_mean
from covidcxr.io.tables import Fault, Table, TableSource
from covidcxr.registry import DATASETS
from covidcxr.utils.plain import user_path

__all__ = ["CSVDataModule", "parse_age", "read_manifest", "SeriesPatients"]

_FINDINGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_FINDINGS_UNKNOWN = {"-1", "-1.0", ""}

Filter = Mapping[str, str | Sequence[str]]
"""From column to the value, or values, that it must have; `*` stands for any text."""


def _ignore(error: DatasetError) -> None:
    """Pass over a damaged row."""


@DATASETS.register("csv")
class CSVDataModule(CXRDataModule):
    """Images listed in a table: CSV, TSV or Parquet, one row an image, columns by name.

    Optional columns that are "auto" are used if the table has a column of that very name; null means that the table
    has none. In every column a cell that is empty, or holds "nan", "None", "NA" or the like, means "not known":
    `covidcxr.io.tables.MISSING` lists the words, and `missing` sets others.

    Two mask conventions in one column become two mask classes like this (YAML):

        mask_columns:
          infection: infection_mask
          lung_field: {column: lung_mask, where: {source: [montgomery, shenzhen]}}
          lung: {column: lung_mask, where: {source: ieee8023}}

    Args:
        root: Folder to which paths in the table are relative. Tables from Windows may write them with backslashes.
        table: File name of the table, relative to `root`; or, from Python, a `pandas.DataFrame`.
        path_column: The image's file.
        label_column: Its class; empty = not labelled.
        label_separator: Where classes are not exclusive and `label_column` joins them, what stands between them, say
            "|" in NIH's "Effusion|Mass". An image shows what is named, and nothing else.
        no_finding: With `label_separator`: the word for none of the classes, whatever its case.
        label_columns: In place of `label_column` where classes are not exclusive: one column a class, which holds 1 if
            the image shows it and 0 if not; empty, or -1 as CheXpert writes "uncertain", = not known.
        patient_column: Who is on it. With null every image counts as a patient of its own: then images of one patient
            may train and test.
        source_column: "auto" = "source".
        split_column: Official split; "auto" = "split".
        view_column: "auto" = "view".
        sex_column: "auto" = "sex".
        age_column: "auto" = "age".
        mask_columns: From mask class to the column of its files (null = none), or to
            `{column: ..., where: {COLUMN: [VALUES]}}` for rows of some kind only. With `empty: {COLUMN: [VALUES]}`
            beside it, training images of these rows that have no such mask count as showing nothing of it, say images
            without a finding nothing of an infection; validation and test keep to masks that are known.
        classes: Names and order of the classes, after `label_map`; null = all labels found, sorted, or `label_columns`.
            What is named here or in `label_map` is a class, even "None" or "NA".
        where: Keep only rows that have one of these values, in each of these columns.
        exclude: Leave out rows that have one of these values, in any of these columns.
        test_only: Rows that never train or validate, by the same kind of filter as `exclude`, say of images whose
            licence does not allow it. Their patients test, in a cross-validation in their fold only. The table is then
            split as a whole, before `where` and `exclude`, so that recipes on different images of it agree on who
            tests.
        missing: Words that mean "not known" in any column, whatever their case; null = those of `MISSING`.
        base: Further settings of `CXRDataModule`.

    Raises:
        DatasetError: If the table or a column is missing, the table is damaged, or no row is left.
        ConfigError: If a setting is wrong.

    Example:
        ```python
        import pandas as pd

        from covidcxr.data import CSVDataModule

        table = pd.read_csv("phantoms/manifest.csv")  # or its name: table="manifest.csv"
        data = CSVDataModule("phantoms", table=table, mask_columns={"lung_field": "lung_field"})
        assert len(data.records) == 24 and data.counts("mask")["train"]["lung_field"] > 0
        ```
    """

    layout: ClassVar[str] = "a table and the images that it names"

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        table: TableSource = "manifest.csv",
        path_column: str = "path",
        label_column: str | None = "label",
        label_separator: str | None = None,
        no_finding: str = "No Finding",
        label_columns: Sequence[str] | None = None,
        patient_column: str | None = "patient_id",
        source_column: str | None = "auto",
        split_column: str | None = "auto",
        view_column: str | None = "auto",
        sex_column: str | None = "auto",
        age_column: str | None = "auto",
        mask_columns: Mapping[str, str | Mapping[str, Any] | None] | None = None,
        classes: Sequence[str] | None = None,
        where: Filter | None = None,
        exclude: Filter | None = None,
        test_only: Filter | None = None,
        missing: Sequence[str] | None = None,
        **base: Unpack[DataSettings],
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "root", "base", "__class__")}
        super().__init__(root, **base)
        self.settings = given
        self._source = self.root / user_path(table) if isinstance(table, str | PathLike) else table
        if not isinstance(self._source, Path):
            self.settings["table"] = f"DataFrame {self._open_table().digest}"
        if self.prepared is not None:
            self.classes = self.classes if classes is None else tuple(classes)
            return
        if not self.root.is_dir():
            raise self.not_found(self.root)
        self._table = self._open_table()
        self._columns = self._find_columns()
        if label_separator and not (self._columns["label"] and label_separator.strip()):
            raise ConfigError(f"label_separator is for label_column, and may not be blank; it is {label_separator!r}.")
        self._findings = tuple(self._table.require(name) for name in label_columns or ())
        named = {name: column for name, column in (mask_columns or {}).items() if column is not None}
        self._masks = {name: self._mask_column(name, column) for name, column in named.items()}
        self._where = _Filter(self._table, where)
        self._exclude = _Filter(self._table, exclude)
        self._test_only = _Filter(self._table, test_only)
        self.own_classes = tuple(self._check_rows())
        self.classes = self.label_map.classes(self.own_classes) if classes is None else tuple(classes)

    def _open_table(self, fault: Fault = _ignore) -> Table:
        """Open the table; damaged rows are reported when the records are read."""
        table = Table(self._source, fault=fault, missing=self.settings["missing"])
        if column := self.settings["label_column"]:
            table.keep(column, {*(self.settings["classes"] or ()), *self.label_map.names})
        return table

    def _find_columns(self) -> dict[str, str | None]:
        """Return from what is known of an image to its column; None = the table has none."""
        given = self.settings
        return {
            "path": self._table.require(given["path_column"]),
            "label": None if given["label_columns"] else self._column("label", given["label_column"]),
            "patient": self._column("patient_id", given["patient_column"]),
            **{name: self._column(name, given[f"{name}_column"]) for name in ("source", "split", "view", "sex", "age")},
        }

    def read_records(self) -> Iterator[Record]:
        """Return a record a row, in the table's order."""
        for line, row in self._rows(self._open_table(self.fault)):
            try:
                yield self._record(line, row)
            except DatasetError as error:
                self.fault(error)

    def split_records(self, records: list[Record]) -> list[Record]:
        """Split the images; with `test_only` the whole table, of which the rows that are kept take their splits.

        So recipes that use different images of one table, say those with masks and those with labels, agree on who
        tests. A compact copy holds the kept rows only and cannot be split like this.

        Args:
            records: The images that are kept.

        Returns:
            The images, each with its split; without those of `test_only` where parts are pooled.

        Raises:
            ConfigError: If the settings do not fit each other.
            DatasetError: If the images do not fit the settings.
        """
        if self.prepared is not None and self.settings["test_only"]:
            raise ConfigError("A compact copy does not tell which images test_only means: train from its origin.")
        if not self.settings["test_only"]:
            return [self._without_finding(record) for record in super().split_records(records)]
        listed: list[Record] = []
        barred: set[str] = set()
        for record, row in self._listed():
            listed.append(record if self.official_split else replace(record, split=None))
            if self._test_only.any_matches(row):
                barred.add(record.patient)
        splits = {record.image_id: record.split for record in super().split_records(listed)}
        pooled = self.folds is not None or self.hold_out_source is not None
        kept: list[Record] = []
        for record in records:
            split = splits[record.image_id]
            if record.patient in barred and split != "test":
                if pooled:
                    continue  # it would test in each of the parts that are pooled
                split = "test"
            kept.append(self._without_finding(replace(record, split=split)))
        return kept

    def _without_finding(self, record: Record) -> Record:
        """Forget, of images that do not train, which masks are taken to be empty."""
        return replace(record, empty_masks=()) if record.empty_masks and record.split != "train" else record

    def _listed(self) -> Iterator[tuple[Record, dict[str, str]]]:
        """Read every row that can be read; what is wrong with the others was reported when the records were read."""
        with no_collector():
            for line, row in self._open_table():
                try:
                    yield self._named(self._record(line, row)), row
                except DatasetError:
                    continue

    def _rows(self, table: Table) -> Iterator[tuple[int, dict[str, str]]]:
        for line, row in table:
            if self._where.all_match(row) and not self._exclude.any_matches(row):
                yield line, row

    def _record(self, line: int, row: dict[str, str]) -> Record:
        value = {name: row[column] if column else "" for name, column in self._columns.items()}
        try:
            if not value["path"]:
                raise DatasetError("it names no image.")
            return Record(
                image_path=table_path(self.root, value["path"]),
                label=None if self.settings["label_separator"] else value["label"] or None,
                patient_id=value["patient"] or None,
                source=value["source"] or "unknown",
                split=split_name(value["split"]) if value["split"] else None,
                mask_paths={
                    name: table_path(self.root, row[column])
                    for name, (column, rows, _) in self._masks.items()
                    if row[column] and rows.all_match(row)
                },
                empty_masks=tuple(
                    name
                    for name, (column, _, empty) in self._masks.items()
                    if empty is not None and empty.all_match(row) and not row[column]
                ),
                view=value["view"] or None,
                sex=value["sex"] or None,
                age=parse_age(value["age"]),
                findings=self._read_findings(value["label"], row),
            )
        except DatasetError as error:
            raise DatasetError(f"{self._table.at(line)}: {error}") from error

    def _read_findings(self, label: str, row: Mapping[str, str]) -> dict[str, bool]:
        """Return what is known of classes that are not exclusive.

        Raises:
            DatasetError: If a cell is no finding, or a label contradicts itself.
        """
        if not self.settings["label_separator"]:
            cells = {name: _read_finding(name, row[name]) for name in self._findings}
            return {name: shown for name, shown in cells.items() if shown is not None}
        named, none = self._split_label(label)
        if named and none:
            raise DatasetError(f"the label {label!r} names a class and {self.settings['no_finding']!r}.")
        return {name: name in named for name in self.classes} if named or none else {}

    def _split_label(self, label: str) -> tuple[set[str], bool]:
        """Return the classes that a label joins, and whether it says that there is none."""
        names = {name.strip() for name in label.split(self.settings["label_separator"])} - {""}
        named = {name for name in names if name.lower() != self.settings["no_finding"].lower()}
        return named, named != names

    def _column(self, name: str, column: str | None) -> str | None:
        if column == "auto":
            return name if name in self._table.columns else None
        return None if column is None else self._table.require(column)

    def _mask_column(self, name: str, column: str | Mapping[str, Any]) -> tuple[str, _Filter, _Filter | None]:
        if isinstance(column, str):
            column = {"column": column}
        check_keys(column, {"column", "where", "empty"}, f"mask_columns.{name}")
        if "column" not in column:
            raise ConfigError(f"mask_columns.{name} must say its column: {{column: NAME, where: ...}}.")
        empty = _Filter(self._table, column["empty"]) if column.get("empty") else None
        return self._table.require(column["column"]), _Filter(self._table, column.get("where")), empty

    def _mask_filters(self) -> Iterator[_Filter]:
        for _, rows, empty in self._masks.values():
            yield from (rows,) if empty is None else (rows, empty)

    def _check_rows(self) -> list[str]:
        """Read the table once: check that every filter finds something; return the labels that are kept."""
        filters = [self._where, self._exclude, self._test_only, *self._mask_filters()]
        for _, row in self._table:
            for rows in filters:
                rows.observe(row)
        for rows in filters:
            rows.check()
        if self._findings:
            return list(self._findings)
        column = self._columns["label"]
        labels = {row[column] for _, row in self._rows(self._table)} - {""} if column else set()
        if self.settings["label_separator"]:
            labels = {name for label in labels for name in self._split_label(label)[0]}
        self._check_labels(labels)
        return sorted(labels)

    def _check_labels(self, labels: set[str]) -> None:
        """Refuse labels that would be taken for something else than what they mean."""
        classes = self.settings["classes"] or ()
        if self.settings["label_separator"]:
            for name in classes:
                if name not in labels:
                    raise DatasetError(
                        f"No label of {self._table.name} names the class {name!r}. {did_you_mean(name, labels)}"
                    )
            return
        joined = sorted(label for label in labels if "|" in label and label not in {*classes, *self.label_map.names})
        if joined:
            raise DatasetError(
                f"{len(joined)} labels of {self._table.name} look like several in one, such as {joined[0]!r}. Set "
                f'label_separator="|"; if they are classes by themselves, name them in classes or label_map.'
            )
        if "+" in labels and "-" not in labels and self.settings["missing"] is None:
            raise DatasetError(
                f'{self._table.name} has the label "+", and a label "-" would count as not known. Name both in classes.'
            )


class _Filter:
    """Rows that have one of the wanted values, by column."""

    def __init__(self, table: Table, wanted: Filter | None) -> None:
        self._table = table
        self._wanted = {
            table.require(column): {table.value(column, str(text)) for text in _listed(values)}
            for column, values in (wanted or {}).items()
        }
        self._seen: dict[str, set[str]] = {column: set() for column in self._wanted}

    def all_match(self, row: dict[str, str]) -> bool:
        return all(_fits(row[column], values) for column, values in self._wanted.items())

    def any_matches(self, row: dict[str, str]) -> bool:
        return any(_fits(row[column], values) for column, values in self._wanted.items())

    def observe(self, row: dict[str, str]) -> None:
        for column, seen in self._seen.items():
            seen.add(row[column])

    def check(self) -> None:
        """Refuse a value that is nowhere: a misspelt one would keep or drop images in silence."""
        for column, values in self._wanted.items():
            for value in sorted(values):
                if any(_fits(seen, {value}) for seen in self._seen[column]):
                    continue
                raise DatasetError(
                    f"No row of {self._table.name} has {value!r} in {column!r}. "
                    f"{did_you_mean(value, self._seen[column])}"
                )


def _listed(values: str | Sequence[str]) -> Sequence[str]:
    return [values] if isinstance(values, str) else values


def _fits(value: str, wanted: Collection[str]) -> bool:
    return value in wanted or any("*" in pattern and fnmatchcase(value, pattern) for pattern in wanted)


def _read_finding(name: str, text: str) -> bool | None:
    if text not in _FINDINGS_UNKNOWN and text.lower() not in _FINDINGS:
        raise DatasetError(f"{text!r} in {name!r} is no finding: 1 = shown, 0 = not shown, empty or -1 = not known.")
    return _FINDINGS.get(text.lower())


def parse_age(text: str) -> float | None:
    """Read an age from what sources write: "63", "50+", "early 40s", "058Y".

    Args:
        text: What is written.

    Returns:
        The age in years; None if there is no number.
    """
    return float(number[0]) if (number := re.search(r"\d+(?:\.\d+)?", text)) else None


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

        from covidcxr.data.datasets.csv import SeriesPatients

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
