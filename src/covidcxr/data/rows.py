"""Tables with a header, read row by row as text: CSV, TSV, Parquet."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from covidcxr.errors import DatasetError, did_you_mean

__all__ = ["Table"]


class Table:
    """A table of text: every value is a string, "NA" and "None" are values like others, only "" is no value.

    Args:
        path: CSV with commas, semicolons or tabs (also .gz), or Parquet. The first row names the columns.

    Raises:
        DatasetError: If the table is not there, is empty, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DatasetError(f"There is no table {path}. Check the data set's root and the table's name.")
        self._is_parquet = path.suffix.lower() in (".parquet", ".pq")
        self.columns = tuple(self._parquet().schema_arrow.names) if self._is_parquet else self._csv_header()
        if len(set(self.columns)) < len(self.columns):
            raise DatasetError(f"Two columns of {path} have one name: {', '.join(self.columns)}. Rename one.")

    def require(self, column: str) -> str:
        """Return the column's name if the table has it.

        Raises:
            DatasetError: If it has not; names the nearest column.
        """
        if column not in self.columns:
            raise DatasetError(f"The table {self.path} has no column {column!r}. {did_you_mean(column, self.columns)}")
        return column

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Read the rows from the top: the line in the file (the header is line 1), and from column to value.

        Raises:
            DatasetError: If a row has more or fewer fields than the header, or is no text.
        """
        return self._parquet_rows() if self._is_parquet else self._csv_rows()

    def _csv_header(self) -> tuple[str, ...]:
        for _, header in self._csv_lines():
            return tuple(name.strip() for name in header)
        raise DatasetError(f"The table {self.path} is empty.")

    def _csv_rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        lines = self._csv_lines()
        next(lines, None)
        for line, values in lines:
            if len(values) != len(self.columns):
                raise DatasetError(
                    f"Line {line} of {self.path} has {len(values)} fields, the header has {len(self.columns)}. "
                    f"The file may be cut short, or a text with a comma lacks its quotes."
                )
            yield line, dict(zip(self.columns, map(str.strip, values), strict=True))

    def _csv_lines(self) -> Iterator[tuple[int, list[str]]]:
        line = 0
        try:
            with self._open() as file:
                first = file.readline()
                file.seek(0)
                reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
                for values in reader:
                    line = reader.line_num
                    if values:
                        yield line, values
        except (csv.Error, UnicodeDecodeError, OSError) as error:
            where = f"{self.path}, after line {line}"
            raise DatasetError(f"The table {where}, cannot be read: {error}. Save it as UTF-8 CSV.") from error

    def _open(self) -> TextIOWrapper:
        file = gzip.GzipFile(self.path) if self.path.suffix.lower() == ".gz" else self.path.open("rb")
        return TextIOWrapper(file, encoding="utf-8-sig", newline="")  # -sig: Excel starts with a byte order mark

    def _parquet_rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        line = 1
        for batch in self._parquet().iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                line += 1
                yield line, {name: "" if value is None else str(value).strip() for name, value in row.items()}

    def _parquet(self) -> Any:
        try:
            import pyarrow  # type: ignore[import-untyped]
            import pyarrow.parquet  # type: ignore[import-untyped]
        except ImportError as error:
            raise DatasetError(f"Reading {self.path} needs pyarrow: pip install pyarrow") from error
        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except pyarrow.ArrowInvalid as error:
            raise DatasetError(f"The table {self.path} is no Parquet file: {error}") from error
