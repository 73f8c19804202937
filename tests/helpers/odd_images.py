"""Broken and odd images of every format that is read, with the greys that they hold or the words that refuse them."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from images import compress, encode, make_dicom, tiff_of, to_bytes
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

HEIGHT, WIDTH = 70, 90
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
NOISE = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH))  # so that each part takes bytes
GREY8 = (ROWS + COLUMNS + NOISE).astype(np.uint8)
GREY16 = GREY8.astype(np.uint16) * 257
GREY12 = GREY8.astype(np.uint16) * 16 + 15
MASK = COLUMNS > ROWS
ALPHA = (ROWS * 3).astype(np.uint8)
COLOUR = np.stack([GREY8, GREY8[::-1], GREY8[:, ::-1]], axis=-1)
LUMA = np.asarray(Image.fromarray(COLOUR).convert("L")) / 255
G8, G12 = GREY8 / 255, GREY12 / 4095
SPAN = (GREY8 - float(GREY8.min())) / np.ptp(GREY8)  # what DICOM shows without a window


class OddImage(NamedTuple):
    """A file.

    Attributes:
        name: Tells what is odd; ends as the file does.
        content: Its bytes.
        grey: What must be read; None = it must be refused; "any" = either, but nothing else.
        tolerance: By how much the greys may differ.
        words: A pattern that the refusal matches.
    """

    name: str
    content: bytes
    grey: np.ndarray | str | None = None
    tolerance: float = 1e-5
    words: str = ""


def all_images() -> list[OddImage]:
    """Every image; names are unique."""
    images = [*_pictures(), *_dicoms(), *_foreign(), *_impossible(), *_broken_dicoms(), *_damaged()]
    assert len({image.name for image in images}) == len(images)
    return images


# What can be read


def png_of(rows: bytes, width: int, height: int, depth: int, color: int, *, interlaced: bool = False) -> bytes:
    """A PNG of rows that each start with their filter; `rows` may be shorter than they should be."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(pixels: np.ndarray) -> bytes:
    """Rows of a PNG without filter."""
    big = pixels.astype(pixels.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big)


def interlaced(pixels: np.ndarray) -> bytes:
    """The seven passes of Adam7."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return b"".join(filtered(pixels[top::down, left::right]) for top, left, down, right in passes)


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return png[:33] + chunk(kind, data) + png[33:]


def palette(greys: np.ndarray, *, few: bool = False) -> Image.Image:
    """A picture of 256 or 16 greys in any order."""
    count = 16 if few else 256
    order = np.random.default_rng(0).permutation(count)
    image = Image.frombytes("P", (WIDTH, HEIGHT), np.argsort(order)[greys].astype(np.uint8).tobytes())
    image.putpalette(np.repeat(order * (17 if few else 1), 3).astype(np.uint8).tobytes())
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


TURNS = {
    2: np.fliplr(G8),
    3: np.rot90(G8, 2),
    4: np.flipud(G8),
    5: G8.T,
    6: np.rot90(G8, -1),
    7: np.rot90(G8, 2).T,
    8: np.rot90(G8),
}


def _pictures() -> Iterator[OddImage]:
    png, jpeg = encode(GREY8, "PNG"), encode(GREY8, "JPEG", quality=100)
    alpha = G8 * ALPHA / 255
    few = GREY8 // 16
    yield OddImage("grey.png", png, G8)
    yield OddImage("grey with a gamma.png", with_chunk(png, b"gAMA", struct.pack(">I", 100000)), G8)
    yield OddImage("grey with a wrong checksum of a comment.png", with_chunk(png, b"tEXt", b"a\0b")[:-1] + b"\x82", G8)
    yield OddImage("grey with significant bits.png", with_chunk(png, b"sBIT", b"\x07"), G8)
    yield OddImage("grey, followed by garbage.png", png + b"garbage" * 99, G8)
    yield OddImage("a png named.jpg", png, G8)
    yield OddImage("a jpeg named.png", jpeg, G8, 0.02)
    yield OddImage("a webp named.dcm", encode(np.stack([GREY8] * 3, -1), "WEBP", lossless=True), G8)
    yield OddImage("a dicom named.png", to_bytes(make_dicom(GREY8)), SPAN)
    yield OddImage("interlaced.png", png_of(interlaced(GREY8), WIDTH, HEIGHT, 8, 0, interlaced=True), G8)
    yield OddImage("interlaced 16 bits.png", png_of(interlaced(GREY16), WIDTH, HEIGHT, 16, 0, interlaced=True), G8)
    yield OddImage("16 bits.png", encode(GREY16, "PNG"), G8)
    yield OddImage("12 bits shifted in 16.png", encode((GREY12 << 4).astype(np.uint16), "PNG"), (GREY12 << 4) / 65535)
    yield OddImage(
        "16 bits of colour.png", png_of(filtered(COLOUR.astype(np.uint16) * 257), WIDTH, HEIGHT, 16, 2), LUMA
    )
    dark = png_of(filtered(COLOUR.astype(np.uint16) * 16), WIDTH, HEIGHT, 16, 2)
    yield OddImage("12 bits of colour in 16.png", dark, words="Save it as 16-bit grey")
    deep_alpha = np.dstack([GREY16, ALPHA.astype(np.uint16) * 257])
    yield OddImage("16 bits with alpha.png", png_of(filtered(deep_alpha), WIDTH, HEIGHT, 16, 4), alpha, 0.003)
    yield OddImage("one bit.png", encode(MASK, "PNG"), MASK)
    for bits in (4, 8):
        yield OddImage(f"palette of {bits} bits.png", encode(palette(few, few=True), "PNG", bits=bits), few / 15)
    yield OddImage("palette.png", encode(palette(GREY8), "PNG"), G8)
    hole = np.where(GREY8 == 77, 0, G8)
    yield OddImage("one grey is transparent.png", encode(GREY8, "PNG", transparency=77), hole)
    yield OddImage(
        "one colour is transparent.png", encode(Image.fromarray(GREY8).convert("P"), "PNG", transparency=77), hole
    )
    yield OddImage("alpha.png", encode(np.dstack([GREY8, ALPHA]), "PNG"), alpha)
    yield OddImage("colour.png", encode(COLOUR, "PNG"), LUMA)
    yield OddImage("colour with alpha.png", encode(np.dstack([COLOUR, ALPHA]), "PNG"), LUMA * ALPHA / 255)
    for kind in ("PNG", "TIFF", "BMP", "JPEG", "WEBP"):
        options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
        for shape in ((1, 1), (1, 9), (9, 1)):
            pixels = np.full(shape, 200, np.uint8)
            name = f"{shape[0]} x {shape[1]}.{kind.lower()}"
            yield OddImage(name, encode(Image.fromarray(pixels).convert("RGB"), kind, **options), pixels / 255, 0.02)
    yield OddImage("progressive.jpg", encode(GREY8, "JPEG", quality=100, progressive=True), G8, 0.02)
    yield OddImage("colour.jpg", encode(COLOUR, "JPEG", quality=100, subsampling=0), LUMA, 0.02)
    yield OddImage("cmyk.jpg", encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=100), LUMA, 0.02)
    yield OddImage("restarts.jpg", encode(GREY8, "JPEG", quality=100, restart_marker_rows=1), G8, 0.02)
    yield OddImage("grey, followed by garbage.jpg", jpeg + b"garbage" * 99, G8, 0.02)
    yield OddImage("followed by a preview.jpg", jpeg + encode(GREY8[:8, :8], "JPEG"), G8, 0.02)
    for orientation, grey in TURNS.items():
        yield OddImage(
            f"turned {orientation}.jpg", encode(GREY8, "JPEG", quality=100, exif=turned(orientation)), grey, 0.02
        )
    yield OddImage("turned.png", encode(GREY8, "PNG", exif=turned(6)), TURNS[6])
    yield OddImage("turned.tif", encode(GREY8, "TIFF", tiffinfo={0x0112: 8}), TURNS[8])
    for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        for pixels, grey, kind in ((GREY8, G8, "grey"), (GREY16, G8, "16 bits"), (COLOUR, LUMA, "colour")):
            yield OddImage(f"{kind}, {packing}.tif", encode(pixels, "TIFF", compression=packing), grey)
    yield OddImage("jpeg.tif", encode(GREY8, "TIFF", compression="jpeg", quality=100), G8, 0.02)
    yield OddImage("fax.tif", encode(MASK, "TIFF", compression="group4"), MASK)
    yield OddImage("big.tif", encode(GREY16, "TIFF", big_tiff=True), G8)
    yield OddImage("big endian.tif", encode(GREY16.astype(">u2"), "TIFF"), G8)
    yield OddImage("floats.tif", encode(G8.astype(np.float32), "TIFF"), G8)
    yield OddImage("12 bits packed.tif", tiff_of(GREY12, 12, 1), G12)
    yield OddImage("white is zero.tif", encode(GREY8, "TIFF", tiffinfo={262: 0}), G8)
    yield OddImage("white is zero, 16 bits.tif", tiff_of(65535 - GREY16, 16, 0), G8)
    yield OddImage("palette.tif", encode(palette(GREY8), "TIFF"), G8)
    narrow = encode(palette(GREY8), "TIFF")
    yield OddImage("palette of 8 bits in 16.tif", _with_narrow_palette(narrow), G8)
    yield OddImage("alpha.tif", encode(np.dstack([COLOUR, ALPHA]), "TIFF"), LUMA * ALPHA / 255)
    yield OddImage("grey.bmp", encode(GREY8, "BMP"), G8)
    yield OddImage("one bit.bmp", encode(MASK, "BMP"), MASK)
    yield OddImage("colour.bmp", encode(COLOUR, "BMP"), LUMA)
    flipped = bytearray(encode(GREY8[::-1].copy(), "BMP"))
    flipped[22:26] = struct.pack("<i", -HEIGHT)
    yield OddImage("from the top.bmp", bytes(flipped), G8)
    yield OddImage("lossless.webp", encode(COLOUR, "WEBP", lossless=True), LUMA)
    yield OddImage("lossy.webp", encode(np.stack([GREY8] * 3, -1), "WEBP", quality=100), G8, 0.06)
    rgba = encode(np.dstack([COLOUR, ALPHA]), "WEBP", lossless=True, exact=True)
    yield OddImage("alpha.webp", rgba, LUMA * ALPHA / 255)


def _with_narrow_palette(tiff: bytes) -> bytes:
    """The same TIFF with its 16-bit colour map divided by 257, as some programs write it."""
    with Image.open(BytesIO(tiff)) as picture:
        colors = np.array(picture.tag_v2[320], "<u2")
    at = tiff.index(colors.tobytes())
    return tiff[:at] + (colors // 256).astype("<u2").tobytes() + tiff[at + colors.nbytes :]


def lut(entries: np.ndarray | bytes, bits: int, count: int = 4096) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [count % 65536, 0, bits])
    item.add_new("LUTData", "OW", entries if isinstance(entries, bytes) else entries.astype("<u2").tobytes())
    return [item]


def compressed(dataset: Dataset, syntax: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return compress(dataset, syntax, Path(folder))


LOSSLESS = ("JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless")


def _dicoms() -> Iterator[OddImage]:
    line = np.arange(4096)
    exact = {"WindowCenter": 2048, "WindowWidth": 4096}
    signed = (GREY12 - 2048.0).astype(np.int16)
    stretched = (GREY12 - float(GREY12.min())) / np.ptp(GREY12)
    forms = {
        "no window": (make_dicom(GREY12, bits=12), stretched),
        "window": (make_dicom(GREY12, bits=12, **exact), G12),
        "several windows": (make_dicom(GREY12, bits=12, WindowCenter=[2048, 9], WindowWidth=[4096, 3]), G12),
        "monochrome1": (make_dicom(GREY12, bits=12, photometric="MONOCHROME1", **exact), 1 - G12),
        "signed": (make_dicom(signed, WindowCenter=0, WindowWidth=4096), G12),
        "rescaled": (make_dicom(GREY12, bits=12, RescaleSlope=2, RescaleIntercept=-9), stretched),
        "8-bit voi table in bytes": (
            make_dicom(GREY12, bits=12, VOILUTSequence=lut((line // 16).astype(np.uint8).tobytes(), 8)),
            G8,
        ),
        "voi table of 65536 entries": (
            make_dicom(GREY16, VOILUTSequence=lut(np.arange(65536), 16, 65536)),
            G8,
        ),
        "12-bit modality table": (make_dicom(GREY12, bits=12, ModalityLUTSequence=lut(line, 12), **exact), G12),
        "high bit 15": (make_dicom((GREY12 << 4).astype(np.uint16), bits=12, HighBit=15, **exact), G12),
        "padding": (make_dicom(np.where(ROWS < 5, 0, GREY12).astype(np.uint16), PixelPaddingValue=0, **exact), None),
        "colour": (make_dicom(COLOUR, photometric="RGB"), LUMA),
        "8 bits": (make_dicom(GREY8, WindowCenter=128, WindowWidth=256), G8),
    }
    for name, (dataset, grey) in forms.items():
        expected = np.where(ROWS < 5, 0, G12) if name == "padding" else grey
        yield OddImage(f"{name}.dcm", to_bytes(dataset), expected, 0.003)
    big = make_dicom(GREY12.astype(">u2"), bits=12, **exact)
    big.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    yield OddImage("big endian.dcm", to_bytes(big), G12, 0.003)
    yield OddImage("without preamble.dcm", to_bytes(make_dicom(GREY12, bits=12, **exact))[132:], G12, 0.003)
    for syntax in LOSSLESS:
        yield OddImage(f"{syntax}.dcm", compressed(make_dicom(GREY12, bits=12, **exact), syntax), G12, 0.003)
    baseline = make_dicom(GREY8, WindowCenter=128, WindowWidth=256)
    baseline.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    baseline.add_new("PixelData", "OB", encapsulate([encode(GREY8, "JPEG", quality=100)]))
    yield OddImage("baseline.dcm", to_bytes(baseline), G8, 0.02)


# What must be refused


def _foreign() -> Iterator[OddImage]:
    files = {
        "empty.png": (b"", "empty"),
        "one byte.png": (b"\x89", "unsupported"),
        "zeros.png": (bytes(4000), "unsupported"),
        "text.jpg": (b"See the attached report.\n" * 40, "unsupported"),
        "table.png": (b"image,label\na.png,normal\n", "unsupported"),
        "a web page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        "xml.png": (b"\xef\xbb\xbf<?xml version='1.0'?><error/>", "HTML or XML"),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "a pdf.png": (b"%PDF-1.7\n" + bytes(200), "PDF"),
        "a gif.png": (encode(GREY8, "GIF"), "GIF"),
        "a zip.png": (b"PK\x03\x04" + bytes(60), "ZIP"),
        "gzip.png": (b"\x1f\x8b" + bytes(60), "gzip"),
        "photoshop.tif": (b"8BPS" + bytes(60), "Photoshop"),
        "postscript.tif": (b"%!PS-Adobe\n", "PostScript"),
        "a grey map.png": (encode(GREY8, "PPM"), "unsupported"),
        "sound.webp": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "cannot be decoded"),
        "a text like a bitmap.bmp": (b"BMI of the patient: 22 and more words to follow here", "cannot be decoded"),
        "a bare jpeg start.jpg": (b"\xff\xd8\xff\xe0", "cannot be decoded"),
        "a bare tiff start.tif": (b"II*\0\x08\0\0\0", "cannot be decoded"),
        "a bare dicom start.dcm": (bytes(128) + b"DICM", "DICOM file without"),
    }
    for name, (content, words) in files.items():
        yield OddImage(name, content, words=words)


def _impossible() -> Iterator[OddImage]:
    other = Image.fromarray(255 - GREY8)
    for side in (10_001, 65_500):
        yield OddImage(f"claims {side}.png", png_of(b"", side, side, 8, 0), words="MAX_PIXELS")
    yield OddImage("bomb.png", png_of(b"\0" * (20_001 * 20_000), 20_000, 20_000, 8, 0), words="MAX_PIXELS")
    jpeg = bytearray(encode(GREY8, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    yield OddImage("claims 65000.jpg", bytes(jpeg), words="MAX_PIXELS")
    bmp = bytearray(encode(GREY8, "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield OddImage("claims 60000.bmp", bytes(bmp), words="MAX_PIXELS")
    tiff = encode(GREY8, "TIFF")
    at = tiff.index(struct.pack("<HHI", 256, 4, 1)) if struct.pack("<HHI", 256, 4, 1) in tiff else -1
    at = at if at >= 0 else tiff.index(struct.pack("<HHI", 256, 3, 1))
    wide = tiff[: at + 2] + struct.pack("<HII", 4, 1, 4_000_000) + tiff[at + 12 :]
    yield OddImage("claims 4000000.tif", wide, words="MAX_PIXELS")
    yield OddImage("claims 60000.dcm", to_bytes(make_dicom(GREY8, Rows=60_000, Columns=60_000)), words="MAX_PIXELS")
    yield OddImage("no width.png", png_of(b"", 0, 5, 8, 0), words="no pixels|cannot be decoded")
    yield OddImage("no rows.dcm", to_bytes(make_dicom(GREY8, Rows=0)), words="no pixels")
    yield OddImage("not a number.tif", encode(np.where(MASK, np.nan, G8).astype(np.float32), "TIFF"), words="NaN")
    yield OddImage("infinite.tif", encode(np.where(MASK, np.inf, G8).astype(np.float32), "TIFF"), words="infinite")
    yield OddImage("floats to 255.tif", encode(GREY8.astype(np.float32), "TIFF"), words="bits=8")
    yield OddImage("negative floats.tif", encode((G8 - 0.5).astype(np.float32), "TIFF"), words=r"not in \[0, 1\]")
    yield OddImage("whole numbers.tif", encode(GREY8.astype(np.int32), "TIFF"), words="white is unknown")
    yield OddImage("pages.tif", encode(GREY8, "TIFF", save_all=True, append_images=[other]), words="several pictures")
    yield OddImage("moving.png", encode(GREY8, "PNG", save_all=True, append_images=[other]), words="several pictures")
    yield OddImage("moving.webp", encode(GREY8, "WEBP", save_all=True, append_images=[other]), words="several pictures")


def _broken_dicoms() -> Iterator[OddImage]:
    def without(name: str) -> Dataset:
        dataset = make_dicom(GREY8)
        del dataset[name]
        return dataset

    def packed(code: bytes, syntax: str, **tags: object) -> Dataset:
        dataset = make_dicom(GREY8, **tags)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.add_new("PixelData", "OB", encapsulate([code]))
        return dataset

    floats = without("PixelData")
    floats.BitsAllocated, floats.FloatPixelData = 32, np.full(GREY8.shape, np.nan, np.float32).tobytes()
    deflated = make_dicom(GREY8)
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    jpeg = encode(GREY8, "JPEG")
    odd_table = {"VOILUTSequence": lut(b"\0" * 40, 12)}
    faults = {
        "no pixels": (without("PixelData"), "without pixels"),
        "no rows at all": (without("Rows"), "without a picture"),
        "no photometric interpretation": (without("PhotometricInterpretation"), "cannot be decoded"),
        "no bits": (without("BitsAllocated"), "cannot be decoded"),
        "two frames": (make_dicom(GREY8, NumberOfFrames=2), "2 frames"),
        "too few pixels": (make_dicom(GREY8, PixelData=GREY8.tobytes()[:900]), "cannot be decoded"),
        "unknown colours": (make_dicom(GREY8, photometric="HSV"), "HSV"),
        "more bits than there are": (make_dicom(GREY8, BitsStored=12), "cannot be decoded"),
        "12 bits allocated": (make_dicom(GREY12, BitsAllocated=12), "cannot be decoded"),
        "high bit too low": (make_dicom(GREY12, bits=12, HighBit=3), "HighBit=11"),
        "high bit too high": (make_dicom(GREY12, bits=12, HighBit=16), "HighBit=11"),
        "voi table too short": (make_dicom(GREY12, bits=12, **odd_table), r"del dataset\.VOILUTSequence"),
        "palette missing": (make_dicom(GREY8, photometric="PALETTE COLOR"), "palette of"),
        "not a number": (floats, "NaN"),
        "deflated": (deflated, "deflated"),
        "video": (packed(b"an image of another kind", uid.MPEG2MPML), "cannot be decoded"),
        "jpeg of another size": (packed(encode(GREY8[:40], "JPEG"), uid.JPEGBaseline8Bit), "contradicts itself"),
        "jpeg without an end": (packed(jpeg[:-40], uid.JPEGBaseline8Bit), "truncated"),
        "jpeg cut and closed": (packed(jpeg[:-300] + b"\xff\xd9", uid.JPEGBaseline8Bit), "damaged"),
        "nonsense for jpeg": (packed(b"\xff\xd8nothing of the kind", uid.JPEGLosslessSV1), "damaged"),
        "boxes without a picture": (packed(b"\0\0\0\x0cjP  \r\n\x87\n", uid.JPEG2000Lossless), "damaged"),
    }
    for name, (dataset, words) in faults.items():
        yield OddImage(f"{name}.dcm", to_bytes(dataset), words=words)


def closed_png(content: bytes, share: float) -> bytes:
    """A PNG that lacks the end of its data, with lengths, checksums and end mark as if it had not."""
    start = content.index(b"IDAT") + 4
    data = content[start : start + int.from_bytes(content[start - 8 : start - 4], "big")]
    return content[: start - 8] + chunk(b"IDAT", data[: int(len(data) * share)]) + chunk(b"IEND", b"")


def closed_webp(content: bytes, share: float) -> bytes:
    """A WebP that lacks the end of its data, with lengths as if it had not."""
    cut = content[: int(len(content) * share) // 2 * 2]
    sized = cut[:16] + struct.pack("<I", len(cut) - 20) + cut[20:]
    return sized[:4] + struct.pack("<I", len(cut) - 8) + sized[8:]


def closed_dicom(content: bytes, share: float) -> bytes:
    """A DICOM file whose picture was cut and closed with an end mark."""
    dataset = dcmread(BytesIO(content))
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.PixelData = dataset.PixelData[: int(len(dataset.PixelData) * share) // 2 * 2]
    else:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = encapsulate([frame[: int(len(frame) * share)] + b"\xff\xd9"])
    return to_bytes(dataset)


def _damaged() -> Iterator[OddImage]:
    """Each kind of file, cut off, cut and closed, and with bytes that were flipped."""
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    whole = {
        "cut.png": encode(GREY8, "PNG"),
        "cut 16 bits.png": encode(GREY16, "PNG"),
        "cut palette.png": encode(palette(GREY8), "PNG"),
        "cut.jpg": encode(GREY8, "JPEG"),
        "cut progressive.jpg": encode(COLOUR, "JPEG", progressive=True),
        "cut raw.tif": encode(GREY8, "TIFF"),
        "cut lzw.tif": encode(GREY16, "TIFF", compression="tiff_lzw"),
        "cut.bmp": encode(GREY8, "BMP"),
        "cut lossless.webp": encode(COLOUR, "WEBP", lossless=True),
        "cut lossy.webp": encode(COLOUR, "WEBP"),
        "cut plain.dcm": to_bytes(make_dicom(GREY12, bits=12, **window)),
        **{f"cut {kind}.dcm": compressed(make_dicom(GREY12, bits=12, **window), kind) for kind in LOSSLESS},
    }
    random = np.random.default_rng(0)
    for name, content in whole.items():
        for share in (0.3, 0.6, 0.9):
            yield OddImage(f"{share:.0%} {name}", content[: int(len(content) * share)])
        close = {"png": closed_png, "webp": closed_webp, "dcm": closed_dicom}.get(name.rpartition(".")[2])
        if name.endswith("jpg"):
            yield OddImage(f"closed {name}", content[: len(content) // 2] + b"\xff\xd9", words="truncated")
        elif close is not None:
            yield OddImage(f"closed {name}", close(content, 0.6))
        for number in range(2):
            flipped = bytearray(content)
            reach = min(len(content), 600) if number else len(content)  # headers are where decoders go astray
            for at in random.integers(0, reach, 3):
                flipped[at] ^= int(random.integers(1, 256))
            yield OddImage(f"flipped {number} {name}", bytes(flipped), "any")
