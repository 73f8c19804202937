"""Label files, read row by row as text: tables with a header (CSV, TSV, Parquet, Excel, pandas), and bare lines."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from io import TextIOWrapper
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable
from zipfile import BadZipFile

from covidcxr.errors import ConfigError, DatasetError, did_you_mean
from covidcxr.io.folders import replace_file
from covidcxr.utils.plain import user_path

__all__ = ["DataFrame", "MISSING", "Table", "TableSource", "is_missing", "is_null", "read_lines", "write_parquet"]

MISSING = frozenset({"", "nan", "-nan", "none", "null", "<na>", "na", "n/a", "#na", "#n/a", "nat", "-", "--", "?", "."})
"""What tables write, in lower case, where a value is not known: pandas, R, SQL, spreadsheets and people."""


def is_missing(text: str, words: Collection[str] = MISSING) -> bool:
    """Decide whether a cell of a table says that its value is not known: the one place that does.

    Args:
        text: The cell.
        words: What counts as not known, in lower case.

    Returns:
        True if the value is not known.

    Example:
        ```python
        from covidcxr.io.tables import is_missing

        assert is_missing(" NaN ") and is_missing("<NA>") and not is_missing("normal")
        ```
    """
    return text.strip().lower() in words


def is_null(value: object) -> bool:
    """Tell whether a value in memory is None, NaN, NaT or `pandas.NA`.

    Args:
        value: The value; text is none of these.

    Returns:
        True for these, in any of their types.
    """
    return not isinstance(value, str) and str(value) in ("None", "nan", "NaT", "<NA>")


@runtime_checkable
class DataFrame(Protocol):
    """What is read of a `pandas.DataFrame`, which needs no import of pandas.

    Example:
        ```python
        import pandas as pd

        from covidcxr.io.tables import DataFrame, Table

        frame = pd.DataFrame({"label": ["normal", None]})
        assert isinstance(frame, DataFrame)
        assert [row["label"] for _, row in Table(frame)] == ["normal", ""]
        ```
    """

    @property
    def columns(self) -> Any:
        """Names of the columns."""

    def itertuples(self, index: bool = True, name: str | None = "Pandas") -> Iterable[tuple[Any, ...]]:
        """Return the rows.

        Args:
            index: Whether the index stands before the columns.
            name: None = plain tuples.

        Returns:
            A tuple a row.
        """


TableSource: TypeAlias = str | PathLike[str] | DataFrame
"""A table: its file, or a `pandas.DataFrame`."""

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
    """A table of text: every value is a string, "" where it is not known.

    Args:
        source: CSV with commas, semicolons, tabs or vertical bars (UTF-8, or UTF-16 as Excel's "Unicode text"; also
            .gz), Parquet, or the first sheet of an Excel file (.xlsx). The first row names the columns; a column
            without a name is called "", the last of them if there are more. Or a `pandas.DataFrame`, without its
            index.
        fault: Called with the error of a damaged row; the rows after it are still read.
        missing: What counts as not known, whatever its case; None = `MISSING`. An empty cell always does.

    Raises:
        DatasetError: If the table is not there, is empty, or cannot be read.
        ConfigError: If `source` is neither a file nor a DataFrame.

    Example:
        ```python
        from pathlib import Path

        from covidcxr.io.tables import Table

        table = Table(Path("phantoms/manifest.csv"))
        line, row = next(iter(table))
        assert line == 2 and row["label"] == "covid19"
        ```
    """

    def __init__(self, source: TableSource, *, fault: Fault = _raise, missing: Collection[str] | None = None) -> None:
        self._fault = fault
        self._missing = MISSING if missing is None else frozenset({"", *(word.strip().lower() for word in missing)})
        self._kept: dict[str, frozenset[str]] = {}
        self.path: Path | None = None
        if isinstance(source, str | PathLike):
            self._open_file(user_path(source))
        elif isinstance(source, DataFrame):
            self._frame = source
            self._rows = self._frame_rows
            self.columns = tuple(str(name).strip() for name in source.columns)
        else:
            raise ConfigError(f"A table must be a file or a pandas DataFrame, not a {type(source).__name__}.")
        named = [name for name in self.columns if name]
        if len(set(named)) < len(named):
            raise DatasetError(f"Two columns of {self.name} have one name: {', '.join(self.columns)}. Rename one.")

    def _open_file(self, path: Path) -> None:
        self.path = self._file = path
        if not path.is_file():
            raise DatasetError(f"There is no table {path}. Check the data set's root and the table's name.")
        if path.suffix.lower() in (".parquet", ".pq"):
            self._rows = self._parquet_rows
            self.columns = tuple(self._parquet().schema_arrow.names)
            return
        self._rows = self._text_rows
        self._lines = self._excel_lines if path.suffix.lower() == ".xlsx" else self._csv_lines
        self.columns = self._header()

    @property
    def name(self) -> str:
        """The table in words, for messages."""
        return "the DataFrame" if self.path is None else str(self.path)

    def at(self, line: int) -> str:
        """Name a row in words, for messages: "Line 3 of FILE", or "Row 1 of the DataFrame".

        Args:
            line: As the iterator gives it.

        Returns:
            The words.
        """
        return f"{'Row' if self.path is None else 'Line'} {line} of {self.name}"

    @property
    def digest(self) -> str:
        """Hexadecimal digits that stand for the content."""
        rows = repr([self.columns, *(tuple(row.values()) for _, row in self)])
        return blake2b(rows.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()

    def keep(self, column: str, texts: Iterable[str]) -> None:
        """Take texts of a column as they are, even where they would mean "not known": classes that are named so.

        Args:
            column: The column.
            texts: The texts, in their own case.
        """
        self._kept[column] = frozenset(texts)

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
            raise DatasetError(f"{self.name} has no column {column!r}. {did_you_mean(column, self.columns)}")
        return column

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Read the rows from the top: the line in the file (the header is line 1), and from column to value.

        Raises:
            DatasetError: If a row has more or fewer fields than the header, or is no text.
        """
        for line, values in self._rows():
            yield line, {name: self.value(name, text) for name, text in zip(self.columns, values, strict=True)}

    def value(self, column: str, text: str) -> str:
        """Return what a text means in a column: "" where it says "not known", else itself without blanks around it.

        Args:
            column: Name of the column.
            text: The text of a cell.

        Returns:
            The meaning.
        """
        text = text.strip()
        if is_missing(text, self._missing) and text not in self._kept.get(column, ()):
            return ""
        return text

    def _header(self) -> tuple[str, ...]:
        for _, header in self._lines():
            return tuple(name.strip() for name in header)
        raise DatasetError(f"The table {self.name} is empty.")

    def _text_rows(self) -> Iterator[tuple[int, Sequence[str]]]:
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
                    f"{self.at(line)} has {len(values)} fields, the header has {len(self.columns)}. "
                    f"The file may be cut short, or a text with a comma lacks its quotes."
                )
                self._fault(DatasetError(message))
                continue
            yield line, values

    def _csv_lines(self) -> Iterator[tuple[int, list[str]]]:
        line = 0
        try:
            with _open(self._file) as file:
                first = file.readline()
                match = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)  # Excel's own line, before the header
                if not match:
                    file.seek(0)
                header = re.sub(r'"[^"]*"', "", first)
                reader = csv.reader(file, delimiter=match[1] if match else max(",;\t|", key=header.count), strict=True)
                for values in reader:
                    line = reader.line_num + (match is not None)
                    if values:
                        yield line, values
        except (csv.Error, UnicodeError, OSError, EOFError, zlib.error) as error:
            where = f"{self._file}, after line {line}"
            raise DatasetError(f"The table {where}, cannot be read: {error}. Save it as UTF-8 CSV.") from error

    def _excel_lines(self) -> Iterator[tuple[int, list[str]]]:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException

        try:
            book = load_workbook(self._file, read_only=True, data_only=True)
        except (BadZipFile, InvalidFileException, KeyError, OSError, ValueError) as error:
            raise DatasetError(f"The table {self._file} is no Excel file: {error}. Download it again.") from error
        try:
            for line, values in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
                if any(value is not None for value in values):
                    yield line, list(map(_text, values))
        finally:
            book.close()

    def _parquet_rows(self) -> Iterator[tuple[int, Sequence[str]]]:
        line = 1
        for batch in self._parquet().iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                line += 1
                yield line, list(map(_text, row.values()))

    def _frame_rows(self) -> Iterator[tuple[int, Sequence[str]]]:
        for place, row in enumerate(self._frame.itertuples(index=False, name=None)):
            yield place, list(map(_text, row))

    def _parquet(self) -> Any:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DatasetError(f'Reading {self._file} needs pyarrow: pip install "covidcxr[parquet]"') from error
        try:
            return pyarrow.parquet.ParquetFile(self._file)
        except pyarrow.ArrowInvalid as error:
            raise DatasetError(f"The table {self._file} is no Parquet file: {error}") from error


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: Any = None, group: int = 1024) -> None:
    """Write rows as a Parquet file, which appears whole or not at all; a group of rows is held at a time.

    Args:
        path: The file.
        rows: From column to value.
        schema: A `pyarrow.Schema`; None = what the first group holds.
        group: Rows of a group.

    Raises:
        ConfigError: If pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f'Writing {path} needs pyarrow: pip install "covidcxr[parquet]"') from error
    source = iter(rows)
    some = list(islice(source, group))
    schema = pyarrow.Table.from_pylist(some).schema if schema is None else schema
    with replace_file(path) as draft, pyarrow.parquet.ParquetWriter(draft, schema, compression="zstd") as writer:
        while some:
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))
            some = list(islice(source, group))


def _text(value: object) -> str:
    """Write a typed cell: nothing as "", whatever counts as missing, and 12.0, as gaps make of a whole 12, as "12"."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if is_null(value) else str(value)


def _open(path: Path) -> TextIOWrapper:
    file = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")
    mark = file.read(2)
    file.seek(0)
    # Excel starts with a byte order mark: it writes UTF-8 as "CSV UTF-8", and UTF-16 as "Unicode text".
    encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return TextIOWrapper(file, encoding=encoding, newline="")
