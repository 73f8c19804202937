"""DICOM images: from a file to what a reader sees of it.

Lookup tables are read in every form that DICOM allows (PS3.3 C.11.1, C.11.2, C.7.6.3.1.5 and C.7.9).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from covidcxr.errors import ImageReadError
from covidcxr.io.codestream import caught_stderr, ends_grey, jpeg2000_stream, jpeg_is_cut, read_stream_header

if TYPE_CHECKING:
    import pydicom
    from pydicom import uid


__all__ = ["apply_palette", "dicom_array", "dicom_size", "has_window", "is_dicom", "read_dicom", "to_grey"]

_MANY = 100_000
"""Pixels from which on a table of all values is faster than computing each pixel."""
File: TypeAlias = BufferedReader | BytesIO
Numbers: TypeAlias = Shaped[np.ndarray, "..."]
Grey: TypeAlias = Float[np.ndarray, "height width"]


def is_dicom(head: bytes) -> bool:
    """Return whether a file is DICOM: by its mark, or by its first tag where the preamble was left out.

    Args:
        head: The first bytes of the file, 132 or more.

    Returns:
        True if it is DICOM.
    """
    if head[128:132] == b"DICM":
        return True
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    implicit = len(head) > 8 and int.from_bytes(head[4:8], "little") < 256
    return head[:2] in (b"\x02\0", b"\x08\0") and head[3:4] == b"\0" and (explicit or implicit)


def read_dicom(file: File, name: str, *, stop_before_pixels: bool = False) -> pydicom.Dataset:
    """Read a DICOM file, with or without preamble and file header; nothing is decoded.

    Args:
        file: An open file, read from its start.
        name: Its name, for messages.
        stop_before_pixels: Read the header only.

    Returns:
        The data set.

    Raises:
        ImageReadError: If it is deflated, which pydicom would unpack without a limit.
    """
    # Pillow first: where pydicom's GDCM is loaded before it, GDCM's zlib gets into Pillow's, and PNG writing crashes.
    import PIL.Image  # noqa: F401
    from pydicom.filereader import dcmread, read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file.seek(0)
    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:  # pydicom would unpack it whatever its size
        raise ImageReadError(f"{name} is a deflated DICOM file. Unpack it first: `dcmconv +te IN OUT`.")
    file.seek(0)
    return dcmread(file, force=True, stop_before_pixels=stop_before_pixels)


def dicom_size(dataset: pydicom.Dataset, name: str) -> tuple[int, int]:
    """Return the height and width given in the header.

    Args:
        dataset: A DICOM data set.
        name: Its name, for messages.

    Returns:
        Height and width in pixels.

    Raises:
        ImageReadError: If it has no picture, or several.
    """
    if "Rows" not in dataset or "Columns" not in dataset:
        raise ImageReadError(f"{name} is a DICOM file without a picture (a report or an index?). Give the image's.")
    height, width = int(dataset.Rows), int(dataset.Columns)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageReadError(f"{name} holds {dataset.NumberOfFrames} frames. Export the image as a file of one frame.")
    return height, width


def dicom_array(dataset: pydicom.Dataset, name: str) -> Numbers:
    """Decode an image: padding black, MONOCHROME1 inverted, lookup tables and window applied.

    Args:
        dataset: A data set whose `dicom_size` is known to be bearable.
        name: What to call it in messages.

    Returns:
        Grey float32 in [0, 1], or colours as uint8 or float in [0, 1] with three channels last.

    Raises:
        ImageReadError: If it has no pixels, colours of a rare kind, or values that make no picture.
    """
    pixels, photometric, unused = _stored_pixels(dataset, name)
    if photometric == "PALETTE COLOR":
        return apply_palette(dataset, pixels, name)
    if photometric == "RGB":
        white = 2 ** int(dataset.BitsStored) - 1
        return pixels if white == 255 else cast(Numbers, np.divide(pixels, white, dtype=np.float32))
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or pixels.ndim != 2:
        raise ImageReadError(f"{name} has the colours {photometric!r}. Save it as MONOCHROME2 or RGB.")
    inverted = photometric == "MONOCHROME1"
    if pixels.dtype.kind in "iu" and pixels.itemsize <= 2 and pixels.size >= _MANY:
        return _looked_up(dataset, pixels, unused, inverted, name)
    return _as_seen(dataset, pixels << unused >> unused if unused else pixels, inverted, name)


def _looked_up(dataset: pydicom.Dataset, pixels: Numbers, unused: int, inverted: bool, name: str) -> Grey:
    """Compute the grey of each value of 8 or 16 bits once, and look all pixels up."""
    import cv2

    pixels = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    places = pixels.view(f"u{pixels.itemsize}")
    table = np.zeros(2 ** (8 * pixels.itemsize), np.float32)
    values = np.arange(int(pixels.min()), int(pixels.max()) + 1).astype(pixels.dtype)
    if not has_window(dataset):  # then the grey of a value depends on which others there are
        counts = cv2.calcHist([places], [0], None, [len(table)], [0, len(table)]).ravel()
        values = values[counts[values.view(places.dtype)] > 0]
    table[values.view(places.dtype)] = _as_seen(dataset, values << unused >> unused, inverted, name)
    try:
        return cast(Grey, cv2.LUT(places, table))
    except cv2.error:  # OpenCV 4 looks up 8 bits only
        return cast(Grey, table[places])


def _as_seen(
    dataset: pydicom.Dataset, values: Shaped[np.ndarray, "*shape"], inverted: bool, name: str
) -> Float[np.ndarray, "*shape"]:
    padding = _is_padding(dataset, values)
    with np.errstate(all="ignore"):  # the next check sees it
        grey = to_grey(dataset, values, ~padding, name)
    if not np.isfinite(grey).all():
        raise ImageReadError(f"{name} holds NaN or infinite values, or an impossible window. Export it again.")
    if inverted:
        grey = 1 - grey
    grey[padding] = 0
    return grey


def _stored_pixels(dataset: pydicom.Dataset, name: str) -> tuple[Numbers, str, int]:
    """Decode the stored pixels; return them, their photometric interpretation, and how many high bits do not count."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

    syntax = _transfer_syntax(dataset)
    if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageReadError(f"{name} is a DICOM file without pixels. Give the image's.")
    decoder = get_decoder(syntax)
    code, bits = b"", int(dataset.get("BitsAllocated") or 0)
    if syntax.is_encapsulated and syntax != RLELossless:
        dataset, code, bits = _checked_stream(dataset, name)
    shift = _unused_low_bits(dataset, bits, name)
    # GDCM takes truncated JPEG for whole and hangs on some damaged JPEG 2000; Pillow does not.
    plugin = "pillow" if "pillow" in decoder.available_plugins and syntax != JPEGExtended12Bit else ""
    options: dict[str, Any] = {"bits_stored": int(dataset.BitsAllocated)} if shift else {}
    unused = 0 if shift or syntax.is_encapsulated else _unused_high_bits(dataset)
    if unused:  # a view of the file's bytes: who looks the values up takes these bits off in the table
        options = {"correct_unused_bits": False, "view_only": True}
    listening: AbstractContextManager[list[str]] = caught_stderr() if code and not plugin else nullcontext([])
    with listening as messages:
        pixels, properties = decoder.as_array(dataset, index=0, decoding_plugin=plugin, **options)
    damage = [message for message in messages if message.startswith(("Corrupt", "Premature"))]
    if damage or (syntax == JPEGBaseline8Bit and ends_grey(pixels) and jpeg_is_cut(code)):
        reason = damage[0] if damage else "its data end before its last row"
        raise ImageReadError(f"{name} holds a damaged compressed picture ({reason}). Get the file again.")
    if shift:
        high = int(dataset.HighBit) + 1
        pixels = (pixels << (8 * pixels.itemsize - high)) >> (8 * pixels.itemsize - high + shift)
    return pixels, str(properties["photometric_interpretation"]), unused


def _unused_high_bits(dataset: pydicom.Dataset) -> int:
    """Number of bits above the stored ones, of grey whole numbers of 8 or 16 bits; 0 of others, left to pydicom."""
    allocated, stored = (int(dataset.get(key) or 0) for key in ("BitsAllocated", "BitsStored"))
    grey = str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME")
    return allocated - stored if grey and allocated in (8, 16) and stored > 0 and "PixelData" in dataset else 0


def _transfer_syntax(dataset: pydicom.Dataset) -> uid.UID:
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if syntax:
        return cast("uid.UID", syntax)
    implicit, little_endian = dataset.original_encoding  # no file header: then it cannot be compressed either
    plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return ExplicitVRBigEndian if little_endian is False else plain


def _unused_low_bits(dataset: pydicom.Dataset, bits: int, name: str) -> int:
    """Number of bits below the stored ones, which is 0 where High Bit is Bits Stored - 1, as it nearly always is.

    A compressed picture of just the stored bits was brought down before it was compressed.
    """
    if "PixelData" not in dataset or dataset.get("HighBit") is None or dataset.get("BitsStored") is None:
        return 0
    allocated, stored, high = (int(dataset[key].value) for key in ("BitsAllocated", "BitsStored", "HighBit"))
    if high == stored - 1 or bits == stored or stored > allocated:  # the last is refused by the decoder
        return 0
    if not stored <= high + 1 <= allocated or str(dataset.PhotometricInterpretation).startswith("YBR"):
        raise ImageReadError(
            f"{name} contradicts itself: {stored} bits with the highest at {high} do not fit in {allocated}. If its "
            f"values are meant as they are, set HighBit to {stored - 1} (`dcmodify -m HighBit={stored - 1} FILE`)."
        )
    return high + 1 - stored


def _checked_stream(dataset: pydicom.Dataset, name: str) -> tuple[pydicom.Dataset, bytes, int]:
    """Compare a JPEG, JPEG-LS or JPEG 2000 stream with the DICOM header: on damaged ones GDCM ends the process.

    Returns the data set with the stream alone (no boxes around it), the stream, and the bits of its values.
    """
    from pydicom.encaps import encapsulate, get_frame

    code = get_frame(dataset.PixelData, 0, number_of_frames=1)
    try:
        stream = jpeg2000_stream(code)
        header = read_stream_header(stream)
    except ValueError as error:
        raise ImageReadError(f"{name} holds a damaged compressed picture ({error}). Get the file again.") from error
    claimed = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    if header[:3] != claimed or not 2 <= header.bits <= int(dataset.BitsAllocated):
        raise ImageReadError(
            f"{name} contradicts itself: by its header it is {claimed} (height, width, samples) in "
            f"{dataset.BitsAllocated} bits, by its picture {tuple(header[:3])} in {header.bits}. Get it again."
        )
    if b"\xff\xd9" not in stream[-16:]:  # end of image, perhaps followed by filling
        raise ImageReadError(f"{name} is truncated: its compressed picture has no end. Copy or download it again.")
    if stream is not code:
        dataset = copy(dataset)
        dataset.PixelData = encapsulate([stream])
    return dataset, stream, header.bits


def _is_padding(dataset: pydicom.Dataset, pixels: Numbers) -> Bool[np.ndarray, "*shape"]:
    """Where nothing was exposed: filled with PixelPaddingValue, or with what lies between it and its limit."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(pixels.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit")
    # Signed images often give the value unsigned (63536 for -2000): the cast wraps it round.
    low, high = np.sort(np.array([first, first if last is None else last], np.int64).astype(pixels.dtype))
    inside: Bool[np.ndarray, "*shape"] = (pixels >= low) & (pixels <= high)
    return inside


Greys: TypeAlias = Float[np.ndarray, "*shape"]


def to_grey(dataset: pydicom.Dataset, pixels: Numbers, exists: Bool[np.ndarray, "*shape"], name: str) -> Greys:
    """Apply the modality table or the rescaling, then the first VOI table or window.

    Args:
        dataset: Says how values become grey.
        pixels: Stored values, of any shape.
        exists: False where a pixel is padding. Where there is neither table nor window, the smallest and the largest
            value of the others become 0 and 1.
        name: What to call the image in messages.

    Returns:
        Float32 in [0, 1], dark = 0; not finite where the header asks for the impossible.

    Raises:
        ImageReadError: If a lookup table is damaged.
    """
    slope, intercept = (dataset.get(key) for key in ("RescaleSlope", "RescaleIntercept"))
    signed = bool(dataset.get("PixelRepresentation"))
    if dataset.get("ModalityLUTSequence"):
        values = _Table.of_sequence(dataset, "ModalityLUTSequence", signed, name).entries_of(pixels)
        signed = False
    else:
        slope, intercept = float(slope or 1), float(intercept or 0)
        values = pixels.astype(np.result_type(pixels, np.float32)) * slope + intercept
        bits = int(dataset.get("BitsStored") or 16)
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
        signed = min(slope * end + intercept for end in ends) < 0
    if dataset.get("VOILUTSequence"):
        table = _Table.of_sequence(dataset, "VOILUTSequence", signed, name)
        return (table.entries_of(values) / np.float32(table.white)).astype(np.float32)
    center, width = _window(dataset)
    if width > 0:
        return _windowed(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    low, high = (values[exists].min(), values[exists].max()) if exists.any() else (0, 1)
    return ((values - low) / max(high - low, 1e-12)).astype(np.float32).clip(0, 1)


def has_window(dataset: pydicom.Dataset) -> bool:
    """Tell whether the header says how bright a value is, whatever other values there are.

    Args:
        dataset: The header.

    Returns:
        True where there is a VOI table or a window.
    """
    return bool(dataset.get("VOILUTSequence")) or _window(dataset)[1] > 0


def _window(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Return centre and width of the first window; 0 where there is none."""
    center, width = (float(np.ravel(dataset.get(key) or 0)[0]) for key in ("WindowCenter", "WindowWidth"))
    return center, width


def apply_palette(dataset: pydicom.Dataset, pixels: Numbers, name: str) -> Float[np.ndarray, "height width 3"]:
    """Look up the colours of a palette image.

    Args:
        dataset: Holds the tables, plain or segmented.
        pixels: Stored values [height, width].
        name: What to call the image in messages.

    Returns:
        Red, green and blue, float32 in [0, 1].

    Raises:
        ImageReadError: If a table is missing or damaged.
    """
    tables = [_Table.of_palette(dataset, colour, name) for colour in ("Red", "Green", "Blue")]
    white = max(table.white for table in tables)
    return np.stack([table.entries_of(pixels) / np.float32(white) for table in tables], axis=-1).astype(np.float32)


def _windowed(values: Numbers, center: float, width: float, function: str) -> Greys:
    """DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, scaled to [0, 1]."""
    if function == "SIGMOID":
        return (0.5 + 0.5 * np.tanh(2 * (values - center) / width)).astype(np.float32)  # 1 / (1 + exp(-4 ...))
    if function == "LINEAR":  # its values are whole numbers: half a step to the left, one step less wide
        center, width = center - 0.5, max(width - 1, 1e-6)
    return ((values - center) / width + 0.5).astype(np.float32).clip(0, 1)


class _Table:
    """A lookup table: entries, the value that the first of them stands for, and the largest entry it may hold."""

    def __init__(self, descriptor: Any, entries: Int[np.ndarray, " entries"], signed: bool) -> None:
        first = int(descriptor[1]) & 0xFFFF  # written signed or unsigned, whatever the values are
        self._first = first - 0x10000 if signed and first > 0x7FFF else first
        self._entries = entries
        highest, bits = int(entries.max()), int(descriptor[2])
        # Some makers declare 16 bits for tables of 8, 10, 12 or 14: then what is reached tells what there is.
        too_small = bits == 16 and highest.bit_length() <= 14
        self.white = 2 ** (max(8, highest.bit_length()) if too_small or highest >= 2**bits else bits) - 1

    @classmethod
    def of_sequence(cls, dataset: pydicom.Dataset, keyword: str, signed: bool, name: str) -> _Table:
        """The first table of a modality or VOI LUT sequence."""
        item = dataset[keyword][0]
        try:
            descriptor = [int(value) for value in item.LUTDescriptor]
            return cls(descriptor, _read_entries(item.LUTData, descriptor, _is_big_endian(dataset)), signed)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ImageReadError(
                f"The lookup table of {name} ({keyword}) is damaged: {error}. Take it out (`del dataset.{keyword}` in "
                f"pydicom) to read the image without it, or export it from a viewer as PNG."
            ) from error

    @classmethod
    def of_palette(cls, dataset: pydicom.Dataset, colour: str, name: str) -> _Table:
        """The table of a colour."""
        keyword = f"{colour}PaletteColorLookupTable"
        big_endian = _is_big_endian(dataset)
        try:
            descriptor = [int(value) for value in dataset[f"{keyword}Descriptor"].value]
            if f"{keyword}Data" in dataset:
                entries = _read_entries(dataset[f"{keyword}Data"].value, descriptor, big_endian)
            else:
                entries = _expand(dataset[f"Segmented{keyword}Data"].value, descriptor, big_endian)
            return cls(descriptor, entries, bool(dataset.get("PixelRepresentation")))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ImageReadError(
                f"The palette of {name} ({keyword}) is missing or damaged: {error}. Export the image from a viewer as "
                f"PNG."
            ) from error

    def entries_of(self, values: Numbers) -> Numbers:
        """Look values up; those below the first mapped one get the first entry, those above the last one the last."""
        whole = values if values.dtype.kind in "iu" else np.rint(values)
        places = np.clip(whole.astype(np.int64) - self._first, 0, len(self._entries) - 1)
        return cast(Numbers, self._entries[places])


def _is_big_endian(dataset: pydicom.Dataset) -> bool:
    from pydicom.uid import ExplicitVRBigEndian

    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    return syntax == ExplicitVRBigEndian if syntax else dataset.original_encoding[1] is False


def _read_entries(data: Any, descriptor: list[int], big_endian: bool) -> Int[np.ndarray, " entries"]:
    """Unpack as many entries as the descriptor announces (0 = 65536): numbers, words, or two in a word."""
    count = (descriptor[0] & 0xFFFF) or 0x10000
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], ">u2" if big_endian else "<u2").astype("<u2")
        tail = data[len(words) * 2 :]  # of a table with an odd number of bytes
    else:
        words = (np.ravel(data).astype(np.int64) & 0xFFFF).astype("<u2")
        tail = b""
    if len(words) >= count:
        return words[:count].astype(np.int64)
    packed = np.frombuffer(words.tobytes() + tail, np.uint8)  # the low byte comes first
    if not 0 <= len(packed) - count <= 1:
        raise ValueError(f"{len(packed):,} bytes where {count:,} entries are announced")
    return packed[:count].astype(np.int64)


def _expand(data: bytes, descriptor: list[int], big_endian: bool) -> Int[np.ndarray, " entries"]:
    """Unpack a segmented palette: runs of entries, straight lines, and repeated segments (PS3.3 C.7.9.2)."""
    wide = descriptor[2] > 8
    kind = (">u2" if big_endian else "<u2") if wide else "u1"
    codes = np.frombuffer(data[: len(data) // np.dtype(kind).itemsize * np.dtype(kind).itemsize], kind).tolist()
    count = (descriptor[0] & 0xFFFF) or 0x10000
    entries: list[int] = []

    def append(at: int, segments: int | None) -> None:
        while at + 2 < len(codes) and len(entries) < count and segments != 0:
            kind, length = codes[at : at + 2]
            if kind == 0:
                entries.extend(codes[at + 2 : at + 2 + length])
                at += 2 + length
            elif kind == 1 and entries and length:
                entries.extend(np.rint(np.linspace(entries[-1], codes[at + 2], length + 1)[1:]).astype(int).tolist())
                at += 3
            elif kind == 2 and segments is None:  # none refers to a further one
                size = 2 if wide else 4
                offset = sum(code << ((16 if wide else 8) * place) for place, code in enumerate(codes[at + 2 :][:size]))
                append(offset // (2 if wide else 1), length)
                at += 2 + size
            else:
                raise ValueError(f"a segment of the unknown kind {kind}")
            segments = None if segments is None else segments - 1

    append(0, None)
    if len(entries) != count:
        raise ValueError(f"its segments make {len(entries):,} entries where {count:,} are announced")
    return np.array(entries, np.int64)
