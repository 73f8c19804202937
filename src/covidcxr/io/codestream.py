"""Compressed pictures looked at before and after they are decoded: JPEG, JPEG-LS and JPEG 2000 streams.

Decoders take much for whole that is not: libjpeg fills a picture that was cut with grey, GDCM prints a line and returns
what it has, and on some damaged headers it ends the process.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from threading import Lock
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from jaxtyping import Shaped

__all__ = [
    "StreamHeader",
    "caught_stderr",
    "ends_grey",
    "jpeg2000_stream",
    "jpeg_is_cut",
    "quiet_decoders",
    "read_stream_header",
]

Numbers: TypeAlias = Shaped[np.ndarray, "..."]

_JPEG2000_START = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"jP  "  # kind of the first box of a JP2 file
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)  # baseline, extended, progressive, lossless, JPEG-LS
_JPEG_TABLES = (0xC4, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0))  # tables, intervals, comments, application data
_START_OF_SCAN = 0xDA
_JPEG_END = b"\xff\xd9"
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # after a scan: no stuffed byte, no restart
_DECODERS_SAY = re.compile(
    rb"Corrupt JPEG data|Premature end|Bogus|Inconsistent|Invalid|Unsupported|Unexpected marker|Unknown Adobe"
    rb"|Not a JPEG|Warning: (thumbnail|unknown JFIF)|Huffman|Quantization|Missing Huffman|Didn't expect|Empty JPEG"
    rb"|JPEG datastream|Sampling factors|DCT coeff|spatial difference|Too many color|Application transferred"
    rb"|(tempfile\.tif|MissingRequired|\w*(TIFF|JPEG|Fax|Decode|Encode|Predictor)\w*): "  # libtiff
)
_stderr_lock = Lock()
_DECODER_WARNINGS = ("ignore", None, Warning, re.compile(r"(PIL|pydicom)\b"), 0)  # as `warnings.filters` holds them
_quiet_lock = Lock()
_quiet_blocks = 0  # of all threads
_quiet_lists: list[Any] = []  # where the filter was put in


class StreamHeader(NamedTuple):
    """What a compressed picture says of itself.

    Attributes:
        height: Pixels.
        width: Pixels.
        samples: Values a pixel.
        bits: Bits a value.

    Example:
        ```python
        from io import BytesIO

        from PIL import Image

        from covidcxr.io.codestream import read_stream_header

        file = BytesIO()
        Image.new("L", (40, 30)).save(file, "JPEG")
        assert read_stream_header(file.getvalue()) == (30, 40, 1, 8)
        ```
    """

    height: int
    width: int
    samples: int
    bits: int


def read_stream_header(code: bytes) -> StreamHeader:
    """Read the header of a JPEG, JPEG-LS or JPEG 2000 stream, every segment of it: GDCM must meet no nonsense there.

    Args:
        code: The stream, without boxes around it.

    Returns:
        Its size and depth.

    Raises:
        ValueError: If the header is damaged.
    """
    try:
        return _jpeg2000_header(code) if code.startswith(_JPEG2000_START) else _jpeg_header(code)
    except IndexError as error:
        raise ValueError("its header is cut short") from error


def jpeg2000_stream(code: bytes) -> bytes:
    """Take the stream out of the boxes of a JP2 file, which some put into DICOM whole.

    Args:
        code: A JPEG 2000 stream with or without boxes, or anything else.

    Returns:
        The stream alone; anything else as it is.

    Raises:
        ValueError: If the boxes hold no stream.
    """
    if code[4:8] != _JP2_SIGNATURE:
        return code
    at = 0
    while at + 8 <= len(code):
        length, start = int.from_bytes(code[at : at + 4], "big"), at + 8
        if length == 1:  # the true length follows, in 64 bits
            length, start = int.from_bytes(code[at + 8 : at + 16], "big"), at + 16
        end = at + length if length else len(code)  # 0 = to the end
        if code[at + 4 : at + 8] == b"jp2c":
            return code[start:end]
        at = max(end, start)
    raise ValueError("its boxes hold no picture")


def _jpeg2000_header(code: bytes) -> StreamHeader:
    right, bottom, left, top = (int.from_bytes(code[at : at + 4], "big") for at in (8, 12, 16, 20))
    return StreamHeader(bottom - top, right - left, int.from_bytes(code[40:42], "big"), (code[42] & 127) + 1)


def _jpeg_header(code: bytes) -> StreamHeader:
    frame = None
    at = 2
    while (marker := code[at + 1]) != _START_OF_SCAN:
        length = int.from_bytes(code[at + 2 : at + 4], "big")
        if code[at] != 0xFF or length < 2 or not (marker in _JPEG_TABLES or marker in _JPEG_FRAMES):
            raise ValueError(f"unexpected byte {marker:#x}")
        if marker in _JPEG_FRAMES:
            if frame:
                raise ValueError("two frame headers")
            height, width = (int.from_bytes(code[at + skip : at + skip + 2], "big") for skip in (5, 7))
            frame = StreamHeader(height, width, code[at + 9], code[at + 4])
        at += 2 + length
    if code[at] != 0xFF or not frame:
        raise ValueError("no frame header")
    return frame


def ends_grey(corner: Numbers) -> bool:
    """Return whether the last pixel of a picture is mid grey, as libjpeg leaves what it has no data for.

    Args:
        corner: The picture or its lower right corner, 8-bit, [height, width] or [height, width, channels].

    Returns:
        True where the JPEG may have been cut, which `jpeg_is_cut` tells.
    """
    return bool(np.abs(corner[-1, -1].astype(int) - 128).max() <= 1)


def jpeg_is_cut(code: bytes) -> bool:
    """Return whether a JPEG ends before its picture does, though an end mark may stand there.

    Where data run out, libjpeg leaves mid grey, or of a progressive picture a coarse one. So the picture is decoded
    twice, with different data in the place of what may be missing: of a whole picture nothing is, and nothing changes.

    Args:
        code: A JPEG file or stream of 8 bits that can be decoded.

    Returns:
        True if it was cut.
    """
    scans, is_progressive = _scans(code)
    if is_progressive and not _covers_all(scans):
        return True
    start = code[: scans[-1].end] if scans else code
    filler = np.random.default_rng(0).integers(0, 255, 4096, np.uint8).tobytes()  # no 0xFF, which would be a marker
    return not np.array_equal(_decode_jpeg(start + _JPEG_END), _decode_jpeg(start + filler + _JPEG_END))


class _Scan(NamedTuple):
    """A scan: its components, which coefficients it brings, down to which bit, and where its data end."""

    components: tuple[int, ...]
    first: int
    last: int
    lowest_bit: int
    end: int


def _scans(code: bytes) -> tuple[list[_Scan], bool]:
    """Walk through a JPEG that could be decoded: its scans, and whether it is progressive."""
    scans: list[_Scan] = []
    is_progressive, at = False, 2
    while at + 4 <= len(code) and (marker := code[at + 1]) != 0xD9:
        if marker == 0xFF or code[at] != 0xFF:  # filling, or what libjpeg skips
            at += 1
            continue
        start, at = at + 4, at + 2 + int.from_bytes(code[at + 2 : at + 4], "big")
        is_progressive |= marker == 0xC2
        if marker == _START_OF_SCAN:
            count = code[start]
            first, last, bits = code[start + 1 + 2 * count : start + 4 + 2 * count]
            following = _NEXT_MARKER.search(code, at)
            at = following.start() if following else len(code)
            scans.append(_Scan(tuple(code[start + 1 : start + 1 + 2 * count : 2]), first, last, bits & 15, at))
    return scans, is_progressive


def _covers_all(scans: list[_Scan]) -> bool:
    """Whether the scans bring every coefficient of every component to its last bit."""
    known = {component: [False] * 64 for scan in scans for component in scan.components}
    for scan in scans:
        for component in scan.components:
            if scan.lowest_bit == 0:
                known[component][scan.first : scan.last + 1] = [True] * (scan.last + 1 - scan.first)
    return all(map(all, known.values()))


def _decode_jpeg(code: bytes) -> Numbers:
    from PIL.JpegImagePlugin import JpegImageFile

    return np.asarray(JpegImageFile(BytesIO(code)))


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep Pillow and pydicom from warning of what a file is told for anyway; other warnings are left alone.

    Not by `warnings.catch_warnings`: its filters are those of all threads, and of two that overlap one stays for good.
    """
    global _quiet_blocks
    with _quiet_lock:
        _quiet_blocks += 1
        if _quiet_blocks == 1:
            _quiet_lists.append(_filters())
            _filters().insert(0, _DECODER_WARNINGS)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_blocks -= 1
            if _quiet_blocks == 0:
                for filters in (_quiet_lists.pop(), _filters()):  # somebody may have exchanged the list meanwhile
                    if _DECODER_WARNINGS in filters:
                        filters.remove(_DECODER_WARNINGS)


def _filters() -> list[Any]:
    return cast(list[Any], warnings.filters)


@contextmanager
def caught_stderr() -> Iterator[list[str]]:
    """Catch what libjpeg (within GDCM) and libtiff print to the standard error file: it is their only word for damage.

    The file belongs to the whole process: what else is printed there meanwhile is printed when the block ends.

    Yields:
        A list that holds their lines ("Corrupt JPEG data: ...") when the block has ended.
    """
    messages: list[str] = []
    with _stderr_lock:
        reader, writer = os.pipe()  # no file: the server's decoding processes may write none
        if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
            os.set_blocking(writer, False)  # what a full pipe does not take is lost
            os.set_blocking(reader, False)  # a process that was started meanwhile may keep it open
        try:
            kept = os.dup(2)
        except OSError:  # a service may have none
            kept = None
        os.dup2(writer, 2)
        os.close(writer)
        try:
            yield messages
        finally:
            if kept is None:
                os.close(2)
            else:
                os.dup2(kept, 2)
                os.close(kept)
            lines = _read_pipe(reader).splitlines(keepends=True)
            messages += [line.decode(errors="replace").strip() for line in lines if _DECODERS_SAY.match(line)]
            if kept is not None and (others := [line for line in lines if not _DECODERS_SAY.match(line)]):
                os.write(2, b"".join(others))


def _read_pipe(reader: int) -> bytes:
    pieces = []
    with suppress(BlockingIOError):
        while piece := os.read(reader, 65536):
            pieces.append(piece)
    os.close(reader)
    return b"".join(pieces)
