"""Label files, read row by row as text: CSV, TSV, Parquet and Excel tables with a header, and bare lines of fields."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from covidcxr.errors import DatasetError, did_you_mean

__all__ = ["Table", "read_lines"]

Fault = Callable[[DatasetError], None]
"""Called with the error of a line: raises it, or notes it, and then reading continues."""


def _raise(error: DatasetError) -> None:
    raise error


def read_lines(path: Path, *, fault: Fault = _raise) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file (also .gz) that are not empty: number, from 1, and text without its end.

    Args:
        path: The file, UTF-8.
        fault: Called with the error when the file is missing or is not text.

    Yields:
        The number of the line, from 1, and its text without the line end.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip("\r\n")
    except FileNotFoundError:
        fault(DatasetError(f"There is no label file {path}. Unpack the download again."))
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        fault(DatasetError(f"The label file {path}, after line {number}, cannot be read: {error}."))


class Table:
    """A table of text: every value is a string, "NA" and "None" are values like others, only "" is no value.

    Args:
        path: CSV with commas, semicolons or tabs (also .gz), Parquet, or the first sheet of an Excel file (.xlsx). The
            first row names the columns; a column without a name is called "", the last of them if there are more.
        fault: Called with the error of a damaged row; the rows after it are still read.

    Raises:
        DatasetError: If the table is not there, is empty, or cannot be read.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.io.tables import Table

        table = Table(Path("phantoms/manifest.csv"))
        line, row = next(iter(table))
        assert line == 2 and row["label"] == "covid19"
        ```
    """

    def __init__(self, path: Path, *, fault: Fault = _raise) -> None:
        self.path = path
        self._fault = fault
        if not path.is_file():
            raise DatasetError(f"There is no table {path}. Check the data set's root and the table's name.")
        self._is_parquet = path.suffix.lower() in (".parquet", ".pq")
        self._lines = self._excel_lines if path.suffix.lower() == ".xlsx" else self._csv_lines
        self.columns = tuple(self._parquet().schema_arrow.names) if self._is_parquet else self._header()
        named = [name for name in self.columns if name]
        if len(set(named)) < len(named):
            raise DatasetError(f"Two columns of {path} have one name: {', '.join(self.columns)}. Rename one.")

    def require(self, column: str) -> str:
        """Return the column's name if the table has it.

        Args:
            column: Name of the column.

        Returns:
            The same name.

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
        return self._parquet_rows() if self._is_parquet else self._text_rows()

    def _header(self) -> tuple[str, ...]:
        for _, header in self._lines():
            return tuple(name.strip() for name in header)
        raise DatasetError(f"The table {self.path} is empty.")

    def _text_rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        lines = self._lines()
        next(lines, None)
        while True:
            try:
                line, values = next(lines)
            except StopIteration:
                return
            except DatasetError as error:  # nothing after it can be read
                return self._fault(error)
            if len(values) != len(self.columns):
                message = (
                    f"Line {line} of {self.path} has {len(values)} fields, the header has {len(self.columns)}. "
                    f"The file may be cut short, or a text with a comma lacks its quotes."
                )
                self._fault(DatasetError(message))
                continue
            yield line, dict(zip(self.columns, map(str.strip, values), strict=True))

    def _csv_lines(self) -> Iterator[tuple[int, list[str]]]:
        line = 0
        try:
            with _open(self.path) as file:
                first = file.readline()
                file.seek(0)
                reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
                for values in reader:
                    line = reader.line_num
                    if values:
                        yield line, values
        except (csv.Error, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            where = f"{self.path}, after line {line}"
            raise DatasetError(f"The table {where}, cannot be read: {error}. Save it as UTF-8 CSV.") from error

    def _excel_lines(self) -> Iterator[tuple[int, list[str]]]:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException

        try:
            book = load_workbook(self.path, read_only=True, data_only=True)
        except (BadZipFile, InvalidFileException, KeyError, OSError, ValueError) as error:
            raise DatasetError(f"The table {self.path} is no Excel file: {error}. Download it again.") from error
        try:
            for line, values in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
                if any(value is not None for value in values):
                    yield line, ["" if value is None else str(value) for value in values]
        finally:
            book.close()

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


def _open(path: Path) -> TextIOWrapper:
    file = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")
    return TextIOWrapper(file, encoding="utf-8-sig", newline="")  # -sig: Excel starts with a byte order mark
