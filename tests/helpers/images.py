"""Images as files in memory: pictures of every format, and DICOM."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset


def encode(array: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def tiff_of(pixels: np.ndarray, bits: int, photometric: int) -> bytes:
    """A TIFF that Pillow cannot write: 12 bits packed, or 16 with white as zero."""
    data = pixels.astype("<u2").tobytes()
    if bits == 12:
        digits = "".join(f"{value:03x}" for value in pixels.ravel())
        data = bytes.fromhex(digits)
    tags = {256: pixels.shape[1], 257: pixels.shape[0], 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: pixels.shape[0], 279: len(data)}
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0" + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in sorted(tags.items())
    )
    start = (8 + len(data)).to_bytes(4, "little")
    return b"II*\0" + start + data + len(tags).to_bytes(2, "little") + entries + bytes(4)


def make_dicom(pixels: np.ndarray, *, bits: int | None = None, photometric: str = "MONOCHROME2", **tags: object):
    """A digital X-ray in memory, uncompressed."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1
    if pixels.ndim == 3:
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.add_new("PixelData", "OB" if pixels.itemsize == 1 else "OW", pixels.tobytes())
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def compress(dataset: Dataset, syntax: str, folder: Path) -> bytes:
    """The same image as GDCM compresses it."""
    import gdcm  # after Pillow: loaded before it, it breaks Pillow's zlib

    (folder / "plain.dcm").write_bytes(to_bytes(dataset))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(folder / "packed.dcm"))
    assert writer.Write()
    return (folder / "packed.dcm").read_bytes()
