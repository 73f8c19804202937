"""From the stored values of a DICOM image to grey or colour: modality and VOI lookup tables, windows, palettes.

Tables are read in every form that DICOM allows (PS3.3 C.11.1, C.11.2, C.7.6.3.1.5 and C.7.9): entries of 8 to 16 bits,
as numbers, as words, or packed two in a word; up to 65536 of them; first mapped values below 0; segmented palettes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from covidcxr.errors import ImageReadError

if TYPE_CHECKING:
    import pydicom

__all__ = ["apply_palette", "has_window", "to_grey"]

Grey: TypeAlias = Float[np.ndarray, "*shape"]
Numbers: TypeAlias = Shaped[np.ndarray, "..."]


def to_grey(dataset: pydicom.Dataset, pixels: Numbers, exists: Bool[np.ndarray, "*shape"], name: str) -> Grey:
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


def _windowed(values: Numbers, center: float, width: float, function: str) -> Grey:
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
