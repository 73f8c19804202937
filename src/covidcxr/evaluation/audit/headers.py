"""What the header of a film's file says: format, mode, bytes, and what else stands before the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from covidcxr.dicom import is_dicom, read_dicom
from covidcxr.errors import ImageReadError
from covidcxr.io import image_size

__all__ = ["Header", "read_header"]


@dataclass(frozen=True)
class Header:
    """A film's file without its pixels.

    Attributes:
        size: Height and width of the film.
        file_bytes: Size of the file.
        format: "PNG", "JPEG", "DICOM", ...
        mode: "L", "RGB", "I;16", ...; of DICOM photometric interpretation and bits.
        entries: What else it holds: names of entries such as "dpi" or "icc_profile"; of DICOM the device and the
            transfer syntax.
        quantization: Sum of a JPEG's quantisation tables: how strongly it was compressed; 0 = no JPEG.
    """

    size: tuple[int, int]
    file_bytes: int
    format: str
    mode: str
    entries: str
    quantization: float


def read_header(path: Path) -> Header:
    """Read a film's header; no pixel is decoded.

    Raises:
        ImageReadError: If it cannot be read.
    """
    size = image_size(path)
    try:
        with path.open("rb") as file:
            if is_dicom(file.read(256)):
                data = read_dicom(file, str(path), stop_before_pixels=True)
                mode = f"{data.get('PhotometricInterpretation', '')}/{data.get('BitsStored', '')}"
                syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", "")
                device = [str(data.get(name, "")) for name in ("Manufacturer", "ManufacturerModelName")]
                return Header(size, path.stat().st_size, "DICOM", mode, " ".join([*device, str(syntax)]), 0.0)
        from PIL import Image

        with Image.open(path) as picture:
            tables = getattr(picture, "quantization", None) or {}
            return Header(
                size,
                path.stat().st_size,
                str(picture.format),
                picture.mode,
                " ".join(sorted(map(str, picture.info))),
                float(sum(sum(table) for table in tables.values())),
            )
    except (OSError, ValueError, SyntaxError, AttributeError) as error:
        raise ImageReadError(f"The header of '{path}' cannot be read: {error}. Get the file again.") from error
