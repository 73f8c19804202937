"""Uploaded files, read piece by piece from a multipart body onto the disk: memory does not grow with them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from covidcxr.serve.errors import RequestError

__all__ = ["Parts", "read_parts"]

_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    start: int
    length: int


@dataclass
class Parts:
    """Uploaded files in one anonymous file on the disk, which goes when this is closed.

    Attributes:
        found: Their names as the client gave them, for reading only, and where they lie.

    Example:
        ```python
        from covidcxr.serve.multipart import Parts

        parts = Parts()
        assert len(parts) == 0
        parts.close()
        ```
    """

    found: list[_Part] = field(default_factory=list)
    _file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter((part.name, place) for place, part in enumerate(self.found))

    def read(self, place: int) -> bytes:
        """Return the content of one of them.

        Args:
            place: Its number, from 0 up.

        Returns:
            The content.
        """
        part = self.found[place]
        self._file.seek(part.start)
        return self._file.read(part.length)

    def write(self, data: bytes) -> None:
        """Append to the last one.

        Args:
            data: The next piece.
        """
        self._file.seek(0, 2)
        self._file.write(data)

    def close(self) -> None:
        """Let the disk go."""
        self._file.close()


class _Reader:
    """Callbacks of the parser, which knows no state but its own."""

    def __init__(self, parts: Parts, wanted: str, most: int, file_bytes: int) -> None:
        self.parts, self.wanted, self.most, self.file_bytes = parts, wanted, most, file_bytes
        self.ended = False
        self._at = 0
        self._header = b""
        self._value = b""
        self._name: str | None = None
        self._length = 0

    def callbacks(self) -> dict[str, Any]:
        """Return what the parser calls, by its names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._header = self._value = b""
        self._name, self._length = None, 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            if options.get(b"name") == self.wanted.encode() and b"filename" in options:
                name = options[b"filename"].decode("utf-8", "replace")
                # A name is shown, never used: no path, no control characters, no end of it.
                shown = "".join(letter for letter in name.replace("\\", "/").split("/")[-1] if letter.isprintable())
                self._name = shown[:_LONGEST_NAME] or "unnamed"
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        if self._name is None:
            raise RequestError(422, f"The form holds a part that is no file called {self.wanted!r}. Send files only.")
        if len(self.parts) >= self.most:
            raise RequestError(413, f"These are more than {self.most} images at once. Send them in several requests.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._length += end - start
        if self._length > self.file_bytes:
            raise RequestError(
                413, f"{self._name} is larger than {self.file_bytes / 1e6:.0f} MB. Shrink or compress it."
            )
        self.parts.write(data[start:end])

    def _end(self) -> None:
        assert self._name is not None
        self.parts.found.append(_Part(self._name, self._at, self._length))
        self._at += self._length

    def _finish(self) -> None:
        self.ended = True


async def read_parts(
    content_type: str, body: AsyncIterator[bytes], *, wanted: str, most: int, file_bytes: int
) -> Parts:
    """Read all files of a form.

    Args:
        content_type: Of the request.
        body: Its body, piece by piece.
        wanted: Name of the form's field; parts of another name are refused.
        most: Number of files, at most.
        file_bytes: Size of each, at most.

    Returns:
        The files.

    Raises:
        RequestError: If it is no such form, cut short, too large or holds too much.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise RequestError(415, f"Send images as multipart/form-data, in the field {wanted!r}.")
    parts = Parts()
    reader = _Reader(parts, wanted, most, file_bytes)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())  # type: ignore[arg-type]
        async for piece in body:
            if piece:
                parser.write(piece)
        parser.finalize()
        if not reader.ended or not parts:
            raise RequestError(422, f"The form is cut short or holds no file. Send an image in the field {wanted!r}.")
    except (FormParserError, UnicodeDecodeError) as error:
        parts.close()
        raise RequestError(422, f"The form is damaged: {error}. Send it again.") from error
    except BaseException:
        parts.close()
        raise
    return parts
