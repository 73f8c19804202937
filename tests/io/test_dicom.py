"""covidcxr.io.dicom: legal files of uncommon form give the greys that were stored, or one error whose cure works."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from images import compress, encode, make_dicom, to_bytes
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

from covidcxr.errors import ImageReadError
from covidcxr.io import read_image

HEIGHT, WIDTH = 40, 64
GREY = np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))  # what a reader sees
RAMP = np.rint(GREY * 4095).astype(np.uint16)


def lut(entries: object, bits: int, *, count: int | None = None, first: int = 0, vr: str = "OW") -> list[Dataset]:
    item = Dataset()
    size = len(entries) if count is None else count  # type: ignore[arg-type]
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [size, first, bits])
    item.add_new("LUTData", vr, entries)
    return [item]


def words(values: np.ndarray) -> bytes:
    return values.astype("<u2").tobytes()


LINE = np.arange(4096)
TABLES = {
    "8 bits, numbers": lut((LINE // 16).tolist(), 8, vr="US"),
    "8 bits, numbers that hold two entries each": lut(
        np.frombuffer((LINE // 16).astype(np.uint8).tobytes(), "<u2").tolist(), 8, count=4096, vr="US"
    ),
    "8 bits, words": lut(words(LINE // 16), 8, count=4096),
    "8 bits, bytes": lut((LINE // 16).astype(np.uint8).tobytes(), 8, count=4096),
    "16 declared, 8 packed in bytes": lut((LINE // 16).astype(np.uint8).tobytes(), 16, count=4096),
    "16 declared, 12 used": lut(words(LINE), 16, count=4096),
    "10 bits": lut(words(LINE // 4), 10, count=4096),
    "12 bits": lut(words(LINE), 12, count=4096),
    "14 bits": lut(words(LINE * 4), 14, count=4096),
    "16 bits": lut(words(LINE * 16), 16, count=4096),
    "16 bits, numbers": lut((LINE * 16).tolist(), 16, vr="US"),
    "65536 entries, announced as 0": lut(words(np.r_[LINE * 16, np.full(61440, 65535)]), 16, count=0),
    "an odd number of bytes": lut((LINE[:4095] // 16).astype(np.uint8).tobytes() + b"\0", 8, count=4095),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_lookup_tables_of_every_form(kind: str, keyword: str) -> None:
    content = to_bytes(make_dicom(RAMP, bits=12, **{keyword: TABLES[kind]}))
    np.testing.assert_allclose(read_image(content), GREY, rtol=0, atol=0.005)


def test_a_dark_voi_table_stays_dark_and_a_modality_table_comes_before_the_window() -> None:
    dark = lut(words(LINE // 4), 12, count=4096)  # declares 12 bits and uses a quarter of them
    np.testing.assert_allclose(read_image(make_dicom(RAMP, bits=12, VOILUTSequence=dark)), GREY / 4, atol=0.001)
    window = {"WindowCenter": 4096, "WindowWidth": 8192, "VOILUTFunction": "LINEAR_EXACT"}
    double = lut(words(LINE * 2), 16, count=4096)
    dataset = make_dicom(RAMP, bits=12, ModalityLUTSequence=double, **window)
    np.testing.assert_allclose(read_image(dataset), GREY * 8190 / 8192, atol=0.001)


@pytest.mark.parametrize("first", [-1024, 2**16 - 1024], ids=["signed", "the same written unsigned"])
def test_the_first_mapped_value_may_be_negative(first: int) -> None:
    signed = (RAMP - 1024.0).astype(np.int16)
    table = lut(words(LINE), 12, count=4096, first=first)
    np.testing.assert_allclose(read_image(to_bytes(make_dicom(signed, VOILUTSequence=table))), GREY, atol=0.001)
    np.testing.assert_allclose(read_image(to_bytes(make_dicom(signed, ModalityLUTSequence=table))), GREY, atol=0.001)
    rescaled = make_dicom(RAMP, bits=12, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=table)
    np.testing.assert_allclose(read_image(to_bytes(rescaled)), GREY, atol=0.001)


def test_a_first_mapped_value_above_32767_is_no_negative_one() -> None:
    high = RAMP + np.uint16(40000)
    table = lut(words(LINE), 12, count=4096, first=40000)
    np.testing.assert_allclose(read_image(to_bytes(make_dicom(high, VOILUTSequence=table))), GREY, atol=0.001)


def test_values_beyond_a_table_get_its_ends() -> None:
    table = lut(words(LINE[:2001] * 2), 12, count=2001, first=1000)
    expected = np.clip((RAMP - 1000.0) * 2, 0, 4000) / 4095
    np.testing.assert_allclose(
        read_image(to_bytes(make_dicom(RAMP, bits=12, VOILUTSequence=table))), expected, atol=1e-6
    )


def test_tables_of_big_endian_files() -> None:
    dataset = make_dicom(RAMP.astype(">u2"), bits=12, VOILUTSequence=lut((LINE // 16).tolist(), 8, vr="US"))
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    np.testing.assert_allclose(read_image(to_bytes(dataset)), GREY, atol=0.005)
    for data in (
        (LINE * 16).astype(">u2").tobytes(),
        (LINE // 16).astype(np.uint8).view("<u2").astype(">u2").tobytes(),
    ):
        dataset.VOILUTSequence = lut(data, 16 if len(data) == 8192 else 8, count=4096)
        np.testing.assert_allclose(read_image(to_bytes(dataset)), GREY, atol=0.005)


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_damaged_table_is_refused_and_the_cure_works(keyword: str) -> None:
    dataset = make_dicom(RAMP, bits=12, **{keyword: lut(words(LINE[:100]), 12, count=4096)})
    with pytest.raises(ImageReadError, match=rf"200 bytes where 4,096 entries.*`del dataset\.{keyword}`"):
        read_image(to_bytes(dataset))
    delattr(dataset, keyword)
    np.testing.assert_allclose(read_image(to_bytes(dataset)), GREY, atol=0.001)


# High Bit


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(
    ("stored", "high", "signed"),
    [
        *[(12, 15, False), (12, 13, False), (8, 15, False), (10, 15, False), (14, 15, False), (15, 15, False)],
        *[(12, 15, True), (12, 14, True), (10, 15, True), (4, 7, False), (6, 7, True)],
    ],
)
def test_high_bit(stored: int, high: int, signed: bool, window: bool) -> None:
    values = np.rint(GREY * (2**stored - 1)).astype(np.int64)
    expected = values / (2**stored - 1)
    tags = {"WindowCenter": 2 ** (stored - 1), "WindowWidth": 2**stored} if window else {}
    if signed:
        values -= 2 ** (stored - 1)
        tags |= {"WindowCenter": 0} if window else {}
    kind = np.uint8 if high < 8 else np.uint16
    stuffed = ((values << (high + 1 - stored)) & (2 ** (high + 1) - 1)).astype(kind)
    stuffed[::2] |= kind(2 ** (high + 1 - stored) - 1)  # the unused bits may hold anything
    dataset = make_dicom(stuffed, bits=stored, HighBit=high, PixelRepresentation=int(signed), **tags)
    np.testing.assert_allclose(
        read_image(to_bytes(dataset)), expected, rtol=0, atol=1.5 / 2**stored if window else 1e-6
    )


def test_what_lies_above_the_high_bit_is_no_grey() -> None:
    overlaid = RAMP | np.where(np.arange(HEIGHT)[:, None] % 2, 0xF000, 0).astype(np.uint16)  # as old overlays did
    np.testing.assert_allclose(read_image(to_bytes(make_dicom(overlaid, bits=12))), GREY, atol=1e-3)


def test_an_impossible_high_bit_is_refused_and_the_cure_works() -> None:
    dataset = make_dicom(RAMP, bits=12, HighBit=5)
    with pytest.raises(ImageReadError, match=r"contradicts itself: 12 bits with the highest at 5.*HighBit=11"):
        read_image(to_bytes(dataset))
    dataset.HighBit = 11
    np.testing.assert_allclose(read_image(to_bytes(dataset)), GREY, atol=1e-3)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_high_bit_of_compressed_pictures(syntax: str, tmp_path: Path) -> None:
    dataset = dcmread(BytesIO(compress(make_dicom(RAMP << 4, bits=16), syntax, tmp_path)))
    dataset.BitsStored, dataset.HighBit = 12, 15
    np.testing.assert_allclose(read_image(to_bytes(dataset)), GREY, atol=1e-3)


# Palettes


def coloured(
    pixels: np.ndarray, bits: int, data: bytes, *, count: int, first: int = 0, segmented: bool = False
) -> bytes:
    dataset = make_dicom(pixels, photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTable"
        dataset.add_new(f"{keyword}Descriptor", "US" if first >= 0 else "SS", [count, first, bits])
        dataset.add_new(f"{'Segmented' * segmented}{keyword}Data", "OW", data)
    return to_bytes(dataset)


@pytest.mark.parametrize(
    ("bits", "data"),
    [
        (8, (255 - np.arange(256)).astype(np.uint8).tobytes()),
        (16, words((255 - np.arange(256)) * 257)),
        (16, words(255 - np.arange(256))),  # 16 declared, 8 used
        (16, (255 - np.arange(256)).astype(np.uint8).tobytes()),  # 16 declared, bytes
        (8, words(255 - np.arange(256))),
    ],
)
def test_palettes(bits: int, data: bytes) -> None:
    pixels = np.rint(GREY * 255).astype(np.uint8)
    np.testing.assert_allclose(read_image(coloured(pixels, bits, data, count=256)), 1 - pixels / 255, atol=1e-5)


def test_palettes_of_many_entries_and_of_negative_first_values() -> None:
    entries = (LINE // 16).astype(np.uint8).tobytes()  # more entries than its 8 bits could number
    np.testing.assert_allclose(read_image(coloured(RAMP, 8, entries, count=4096)), GREY, atol=0.005)
    signed = (RAMP - 1024.0).astype(np.int16)
    np.testing.assert_allclose(read_image(coloured(signed, 8, entries, count=4096, first=-1024)), GREY, atol=0.005)
    whole = words(np.r_[LINE * 16, np.full(61440, 65535)])
    np.testing.assert_allclose(read_image(coloured(RAMP, 16, whole, count=0)), GREY, atol=0.001)


def test_segmented_palettes() -> None:
    pixels = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    expected = np.r_[np.arange(129), np.full(27, 128), np.arange(100), 99] / 255  # runs, lines and a repeated part
    expected = np.r_[np.arange(128), np.full(28, 128), np.linspace(128, 228, 101)[1:]]
    line = [0, 1, 0, 1, 127, 127]  # one entry of 0, then 127 up to 127
    code = [*line, 1, 1, 128, 1, 27, 128, 1, 100, 228]
    content = coloured(pixels, 8, bytes(code + [0] * (len(code) % 2)), count=256, segmented=True)
    np.testing.assert_allclose(read_image(content), np.tile(expected / 255, (8, 1)), atol=1e-5)
    wide = np.array([0, 1, 0, 1, 255, 65535], "<u2").tobytes()
    expected = np.rint(np.linspace(0, 65535, 256)) / 65535
    content = coloured(pixels, 16, wide, count=256, segmented=True)
    np.testing.assert_allclose(read_image(content), np.tile(expected, (8, 1)), atol=1e-5)
    # the second half repeats the segments that start at byte 0
    again = np.array([0, 2, 0, 257, 1, 126, 32639, 2, 2, 0, 0], "<u2").tobytes()
    half = np.r_[0, 257, np.rint(np.linspace(257, 32639, 127)[1:])]
    content = coloured(pixels, 16, again, count=256, segmented=True)
    np.testing.assert_allclose(read_image(content), np.tile(np.r_[half, half] / 65535, (8, 1)), atol=1e-5)
    with pytest.raises(ImageReadError, match="its segments make 128 entries where 256 are announced"):
        read_image(coloured(pixels, 16, again[:14], count=256, segmented=True))


def test_a_palette_that_is_missing_is_named() -> None:
    with pytest.raises(ImageReadError, match=r"palette of .* is missing or damaged"):
        read_image(to_bytes(make_dicom(np.zeros((4, 5), np.uint8), photometric="PALETTE COLOR")))


# JPEG 2000 in boxes


def box(kind: bytes, content: bytes, *, wide: bool = False, open_end: bool = False) -> bytes:
    if wide:
        return b"\0\0\0\1" + kind + (len(content) + 16).to_bytes(8, "big") + content
    return (0 if open_end else len(content) + 8).to_bytes(4, "big") + kind + content


START = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
PIXELS = np.tile(np.arange(64, dtype=np.uint8) * 4, (40, 1))


def boxed(before: bytes = b"", after: bytes = b"", **form: bool) -> bytes:
    stream = encode(PIXELS, "JPEG2000", irreversible=False, no_jp2=True)
    assert stream.startswith(b"\xff\x4f\xff\x51")
    dataset = make_dicom(PIXELS)
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    dataset.add_new("PixelData", "OB", encapsulate([START + before + box(b"jp2c", stream, **form) + after]))
    return to_bytes(dataset)


@pytest.mark.parametrize(
    "content",
    [
        boxed(),
        boxed(wide=True),
        boxed(open_end=True),
        boxed(before=box(b"xml ", b" " * 5000)),
        boxed(before=box(b"uuid", bytes(3000), wide=True) + box(b"res ", bytes(10)) + box(b"xml ", b"")),
        boxed(before=box(b"uuid", b"\xff\x4f\xff\x51" * 9), after=box(b"xml ", b"x" * 700)),
        boxed(wide=True, after=box(b"uuid", bytes(90), open_end=True)),
    ],
    ids=["plain", "64-bit length", "to the end", "long box before", "several before", "before and after", "all"],
)
def test_jpeg2000_in_boxes_of_any_length(content: bytes) -> None:
    np.testing.assert_allclose(read_image(content), PIXELS / 252, atol=1e-6)


def test_boxes_without_a_picture_are_refused() -> None:
    dataset = make_dicom(PIXELS)
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    for boxes in (START, START + box(b"xml ", b" " * 90), START + b"\0\0\0\3jp2c", START + box(b"jp2c", b"")):
        dataset.add_new("PixelData", "OB", encapsulate([boxes]))
        with pytest.raises(ImageReadError, match="damaged compressed picture"):
            read_image(to_bytes(dataset))


# Compressed pictures that were cut, with an end mark behind them


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_a_cut_picture_with_an_end_mark_is_refused(
    syntax: str, bits: int, share: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 2**bits, (60, 50)).astype(np.uint8 if bits == 8 else np.uint16)
    dataset = dcmread(BytesIO(compress(make_dicom(noise, bits=bits), syntax, tmp_path)))
    assert read_image(to_bytes(dataset)).shape == (60, 50)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: int(len(frame) * share)] + b"\xff\xd9"])
    with pytest.raises(ImageReadError, match=r"damaged|cannot be decoded|truncated"):
        read_image(to_bytes(dataset))
    assert capfd.readouterr().err == ""


def test_what_others_print_while_gdcm_decodes_is_not_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from pydicom.pixels.decoders.base import Decoder

    def print_and_decode(self: Decoder, *args: object, **options: object) -> object:
        os.write(2, b"somebody else\n")
        return as_array(self, *args, **options)

    as_array = Decoder.as_array
    monkeypatch.setattr(Decoder, "as_array", print_and_decode)
    read_image(compress(make_dicom(RAMP, bits=12), "JPEGLosslessProcess14_1", tmp_path))
    assert capfd.readouterr().err == "somebody else\n"


def test_baseline_jpeg_that_was_cut() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 52), np.uint8)
    dataset = make_dicom(pixels)
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    frame = encode(pixels, "JPEG", quality=90)
    dataset.add_new("PixelData", "OB", encapsulate([frame]))
    assert read_image(to_bytes(dataset)).shape == (60, 52)
    dataset.add_new("PixelData", "OB", encapsulate([frame[: len(frame) * 2 // 3] + b"\xff\xd9"]))
    with pytest.raises(ImageReadError, match="damaged compressed picture"):
        read_image(to_bytes(dataset))


# What the decoders can do, against values computed by hand


def test_several_windows_the_first_counts_and_a_table_counts_more() -> None:
    windows = {"WindowCenter": [1000, 3000], "WindowWidth": [501, 11], "VOILUTFunction": "LINEAR"}
    expected = np.clip((RAMP - 999.5) / 500 + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(to_bytes(make_dicom(RAMP, bits=12, **windows))), expected, atol=1e-5)
    dataset = make_dicom(RAMP, bits=12, VOILUTSequence=lut(words(LINE), 12, count=4096), **windows)
    np.testing.assert_allclose(read_image(to_bytes(dataset)), GREY, atol=1e-3)


def test_planar_colours_and_one_bit() -> None:
    colour = np.stack([np.rint(GREY * 255), np.full(GREY.shape, 80), np.full(GREY.shape, 160)], -1).astype(np.uint8)
    luma = np.asarray(Image.fromarray(colour).convert("L")) / 255
    planes = make_dicom(colour, photometric="RGB")
    planes.PlanarConfiguration = 1
    planes.PixelData = np.moveaxis(colour, -1, 0).tobytes()
    np.testing.assert_allclose(read_image(to_bytes(planes)), luma, atol=1e-6)
    mask = GREY > 0.5
    dataset = make_dicom(mask.astype(np.uint8), bits=1)
    dataset.BitsAllocated, dataset.HighBit = 1, 0
    dataset.PixelData = np.packbits(mask, bitorder="little").tobytes()
    np.testing.assert_array_equal(read_image(to_bytes(dataset)), mask)


def test_one_pixel() -> None:
    for shape in ((1, 1), (1, 7), (7, 1)):
        pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
        assert read_image(to_bytes(make_dicom(pixels, bits=12))).shape == shape


WINDOWS: dict[str, dict[str, object]] = {
    "none": {},
    "linear": {"WindowCenter": 900, "WindowWidth": 1500, "RescaleSlope": "0.7", "RescaleIntercept": "-30"},
    "sigmoid": {"WindowCenter": 900, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
    "table": {"VOILUTSequence": lut(words(LINE * 4), 14, count=4096)},
    "modality table": {"ModalityLUTSequence": lut(words(LINE[::-1] * 3), 16, count=4096)},
}


@pytest.mark.parametrize("opencv", ["5", "4"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", WINDOWS)
def test_looking_values_up_is_computing_each_pixel(
    window: str, photometric: str, opencv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, of large images, where one is much faster than the other."""

    def refuse(*_: object) -> None:
        raise cv2.error("no table of 16 bits")

    if opencv == "4":
        monkeypatch.setattr(cv2, "LUT", refuse)
    rng = np.random.default_rng(0)
    for kind, bits in (("u1", 8), ("u1", 6), ("<u2", 16), ("<u2", 12), ("<i2", 12), ("<i2", 16), (">u2", 12)):
        info = np.iinfo(kind)
        for padding in ({}, {"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 30}):
            values = rng.integers(info.min, info.max, (40, 64), endpoint=True).astype(kind)  # in the unused bits, too
            dataset = make_dicom(values, bits=bits, photometric=photometric, **WINDOWS[window], **padding)
            syntax = uid.ExplicitVRBigEndian if kind[0] == ">" else uid.ImplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = syntax
            content = to_bytes(dataset)
            images = []
            for many in (1, 10**9):
                monkeypatch.setattr("covidcxr.io.dicom._MANY", many)
                images.append(read_image(content))
            np.testing.assert_array_equal(*images, err_msg=f"{kind} {bits} {padding}")
            assert bits <= 8 or len(np.unique(images[0])) > 20
