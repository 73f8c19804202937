"""DICOM images: from a file to numbers, with all that stands between stored values and what a reader sees."""

from __future__ import annotations

from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float, Shaped

from covidcxr.errors import ImageReadError

if TYPE_CHECKING:
    import pydicom

__all__ = ["dicom_array", "dicom_size", "is_dicom", "read_dicom"]

File: TypeAlias = BufferedReader | BytesIO
Grey: TypeAlias = Float[np.ndarray, "height width"]
Numbers: TypeAlias = Shaped[np.ndarray, "..."]


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
    """Decode an image: padding black, MONOCHROME1 inverted, LUTs and window applied.

    Args:
        dataset: A data set whose `dicom_size` is known to be bearable.
        name: What to call it in messages.

    Returns:
        Grey float32 in [0, 1], or colours as uint8 or float in [0, 1] with three channels last.

    Raises:
        ImageReadError: If it has no pixels, colours of a rare kind, or values that make no picture.
    """
    from pydicom.pixels.processing import apply_color_lut

    pixels, photometric = _stored_pixels(dataset, name)
    if photometric == "PALETTE COLOR":
        colors: Numbers = apply_color_lut(pixels, dataset)
        return colors
    if photometric == "RGB":
        white = 2 ** int(dataset.BitsStored) - 1
        return pixels if white == 255 else cast(Numbers, np.divide(pixels, white, dtype=np.float32))
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or pixels.ndim != 2:
        raise ImageReadError(f"{name} has the colours {photometric!r}. Save it as MONOCHROME2 or RGB.")
    padding = _padding(dataset, pixels)
    with np.errstate(all="ignore"):  # the next check sees it
        grey = _grey(dataset, pixels, ~padding)
    if not np.isfinite(grey).all():
        raise ImageReadError(f"{name} holds NaN or infinite values, or an impossible window. Export it again.")
    if photometric == "MONOCHROME1":
        grey = 1 - grey
    grey[padding] = 0
    return grey


def _stored_pixels(dataset: pydicom.Dataset, name: str) -> tuple[Numbers, str]:
    """Decode the stored pixels; return them with their photometric interpretation."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import (
        ExplicitVRBigEndian,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEGExtended12Bit,
        RLELossless,
    )

    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if not syntax:  # no file header: then it cannot be compressed either
        implicit, little_endian = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        syntax = ExplicitVRBigEndian if little_endian is False else syntax
    if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageReadError(f"{name} is a DICOM file without pixels. Give the image's.")
    decoder = get_decoder(syntax)
    if syntax.is_encapsulated and syntax != RLELossless:
        _check_codestream(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset, name)
    # GDCM takes truncated JPEG for whole and hangs on some damaged JPEG 2000; Pillow does not.
    plugin = "pillow" if "pillow" in decoder.available_plugins and syntax != JPEGExtended12Bit else ""
    pixels, properties = decoder.as_array(dataset, index=0, decoding_plugin=plugin)
    return pixels, str(properties["photometric_interpretation"])


def _check_codestream(code: bytes, dataset: pydicom.Dataset, name: str) -> None:
    """Compare a JPEG, JPEG-LS or JPEG 2000 stream with the DICOM header: on damaged ones GDCM ends the process."""
    try:
        height, width, samples, bits = (
            _jpeg2000_header(code) if b"\xff\x4f\xff\x51" in code[:512] else _jpeg_header(code)
        )
    except (IndexError, ValueError) as error:
        raise ImageReadError(f"{name} holds a damaged compressed picture ({error}). Get the file again.") from error
    claimed = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    if (height, width, samples) != claimed or not 2 <= bits <= int(dataset.BitsAllocated):
        raise ImageReadError(
            f"{name} contradicts itself: by its header it is {claimed} (height, width, samples) in "
            f"{dataset.BitsAllocated} bits, by its picture {(height, width, samples)} in {bits}. Get it again."
        )
    if b"\xff\xd9" not in code[-16:]:  # end of image, perhaps followed by filling
        raise ImageReadError(f"{name} is truncated: its compressed picture has no end. Copy or download it again.")


def _jpeg2000_header(code: bytes) -> tuple[int, int, int, int]:
    code = code[code.index(b"\xff\x4f\xff\x51") :]
    right, bottom, left, top = (int.from_bytes(code[at : at + 4], "big") for at in (8, 12, 16, 20))
    return bottom - top, right - left, int.from_bytes(code[40:42], "big"), (code[42] & 127) + 1


def _jpeg_header(code: bytes) -> tuple[int, int, int, int]:
    """Walk all segments up to the scan, so that GDCM meets no nonsense between them."""
    frame = None
    at = 2
    while (marker := code[at + 1]) != 0xDA:  # start of scan
        length = int.from_bytes(code[at + 2 : at + 4], "big")
        if code[at] != 0xFF or length < 2 or not (marker in _JPEG_TABLES or marker in _JPEG_FRAMES):
            raise ValueError(f"unexpected byte {marker:#x}")
        if marker in _JPEG_FRAMES:
            if frame:
                raise ValueError("two frame headers")
            height, width = (int.from_bytes(code[at + skip : at + skip + 2], "big") for skip in (5, 7))
            frame = height, width, code[at + 9], code[at + 4]
        at += 2 + length
    if code[at] != 0xFF or not frame:
        raise ValueError("no frame header")
    return frame


_JPEG_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)  # baseline, extended, progressive, lossless, JPEG-LS
_JPEG_TABLES = (0xC4, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0))  # tables, intervals, comments, application data


def _padding(dataset: pydicom.Dataset, pixels: Numbers) -> Bool[np.ndarray, "height width"]:
    """Where nothing was exposed: filled with PixelPaddingValue, or with what lies between it and its limit."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(pixels.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit")
    # Signed images often give the value unsigned (63536 for -2000): the cast wraps it round.
    low, high = np.sort(np.array([first, first if last is None else last], np.int64).astype(pixels.dtype))
    inside: Bool[np.ndarray, "height width"] = (pixels >= low) & (pixels <= high)
    return inside


def _grey(dataset: pydicom.Dataset, pixels: Numbers, exists: Bool[np.ndarray, "height width"]) -> Grey:
    """Stored values -> modality LUT -> VOI LUT or window, else the range of the pixels that exist -> [0, 1]."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    if dataset.get("ModalityLUTSequence"):
        values = apply_modality_lut(pixels, dataset)
    else:
        slope, intercept = (dataset.get(key) for key in ("RescaleSlope", "RescaleIntercept"))
        values = pixels.astype(np.result_type(pixels, np.float32)) * float(slope or 1) + float(intercept or 0)
    if dataset.get("VOILUTSequence"):
        values = apply_voi(np.rint(values).astype(np.int32), dataset)
        # Some makers declare 16 bits for a table of 12: what the table reaches tells the bits it really has.
        table = np.frombuffer(raw, np.uint16) if isinstance(raw := dataset.VOILUTSequence[0].LUTData, bytes) else raw
        return (values / np.float32(2 ** max(1, int(np.max(table)).bit_length()) - 1)).astype(np.float32)
    center, width = (np.ravel(dataset.get(key) or 0)[0] for key in ("WindowCenter", "WindowWidth"))
    if width > 0:
        return _windowed(values, float(center), float(width), str(dataset.get("VOILUTFunction") or "LINEAR"))
    low, high = (values[exists].min(), values[exists].max()) if exists.any() else (0, 1)
    return ((values - low) / max(high - low, 1e-12)).astype(np.float32).clip(0, 1)


def _windowed(values: Numbers, center: float, width: float, function: str) -> Grey:
    """DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, scaled to [0, 1]."""
    if function == "SIGMOID":
        return (0.5 + 0.5 * np.tanh(2 * (values - center) / width)).astype(np.float32)  # 1 / (1 + exp(-4 ...))
    if function == "LINEAR":  # its values are whole numbers: half a step to the left, one step less wide
        center, width = center - 0.5, max(width - 1, 1e-6)
    return ((values - center) / width + 0.5).astype(np.float32).clip(0, 1)
