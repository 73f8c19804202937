"""covidcxr.io: every kind of file and object in, the same grey numbers out; anything else one clear error."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import compress, encode, make_dicom, tiff_of, to_bytes
from jaxtyping import TypeCheckError
from PIL import Image, ImageFile, ImageOps
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.processing import apply_voi, apply_windowing

import covidcxr
from covidcxr.errors import ImageReadError
from covidcxr.io.image import image_size, read_image, read_mask, read_pixels, write_image, write_mask
from covidcxr.phantom import draw_phantom
from covidcxr.transforms.pyramid import ImagePyramid

HEIGHT, WIDTH = 48, 64
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
GREY8 = (ROWS * 3 + COLUMNS).astype(np.uint8)  # smooth, and no two corners alike
GREY16 = (ROWS * 1200 + COLUMNS * 100).astype(np.uint16)
GREY12 = (GREY16 // 16).astype(np.uint16)
COLOUR = np.stack([GREY8, GREY8[::-1], GREY8[:, ::-1]], axis=-1)
ALPHA = (ROWS * 5).astype(np.uint8)
LUMA = np.asarray(Image.fromarray(COLOUR).convert("L")) / 255
MASK = (ROWS - 20) ** 2 + (COLUMNS - 30) ** 2 < 200


@pytest.fixture(autouse=True)
def _quiet_decoders(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="pydicom")


def palette(array: np.ndarray) -> Image.Image:
    """The same grey through a shuffled palette."""
    order = np.random.default_rng(0).permutation(256)
    image = Image.frombytes("P", array.shape[::-1], np.argsort(order)[array].astype(np.uint8).tobytes())
    image.putpalette(np.repeat(order, 3).astype(np.uint8).tobytes())
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


LOSSLESS = {
    "jpeg-lossless": "JPEGLosslessProcess14_1",
    "jpeg-ls": "JPEGLSLossless",
    "jpeg2000": "JPEG2000Lossless",
    "rle": "RLELossless",
}


# Pictures: content, expected grey, tolerance

FEW = Image.frombytes("P", (WIDTH, HEIGHT), (GREY8 // 16).tobytes())
FEW.putpalette(np.repeat(np.arange(16) * 17, 3).astype(np.uint8).tobytes())
G8, G16 = GREY8 / 255, GREY16 / 65535
PICTURES = {
    "png": (encode(GREY8, "PNG"), G8, 1e-7),
    "png 16 bit": (encode(GREY16, "PNG"), G16, 1e-7),
    "png 1 bit": (encode(MASK, "PNG"), MASK, 0),
    "png palette of 4 bits": (encode(FEW, "PNG", bits=4), GREY8 // 16 / 15, 1e-7),
    "png palette": (encode(palette(GREY8), "PNG"), G8, 1e-7),
    "png palette, one colour transparent": (
        encode(Image.fromarray(GREY8).convert("P"), "PNG", transparency=77),
        np.where(GREY8 == 77, 0, G8),
        1e-7,
    ),
    "png grey, one level transparent": (encode(GREY8, "PNG", transparency=77), np.where(GREY8 == 77, 0, G8), 1e-7),
    "png 16 bit, one level transparent": (
        encode(GREY16, "PNG", transparency=int(GREY16[9, 9])),
        np.where(GREY16[9, 9] == GREY16, 0, G16),
        1e-7,
    ),
    "png grey with alpha": (encode(np.stack([GREY8, ALPHA], -1), "PNG"), G8 * ALPHA / 255, 1e-6),
    "png rgb": (encode(COLOUR, "PNG"), LUMA, 1e-7),
    "png rgb of grey": (encode(np.stack([GREY8] * 3, -1), "PNG"), G8, 1e-7),
    "png rgba": (encode(np.dstack([COLOUR, ALPHA]), "PNG"), LUMA * ALPHA / 255, 1e-6),
    "jpeg": (encode(GREY8, "JPEG", quality=100), G8, 2 / 255),
    "jpeg progressive": (encode(GREY8, "JPEG", quality=100, progressive=True), G8, 2 / 255),
    "jpeg rgb": (encode(COLOUR, "JPEG", quality=100, subsampling=0), LUMA, 3 / 255),
    "jpeg cmyk": (encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=100), LUMA, 4 / 255),
    "tiff": (encode(GREY8, "TIFF"), G8, 1e-7),
    "tiff 16 bit": (encode(GREY16, "TIFF"), G16, 1e-7),
    "tiff 16 bit, big endian": (encode(GREY16.astype(">u2"), "TIFF"), G16, 1e-7),
    "tiff 16 bit, lzw": (encode(GREY16, "TIFF", compression="tiff_lzw"), G16, 1e-7),
    "tiff float": (encode(G8.astype(np.float32), "TIFF"), G8, 1e-7),
    "tiff rgb, deflate": (encode(COLOUR, "TIFF", compression="tiff_adobe_deflate"), LUMA, 1e-7),
    "tiff 1 bit, fax": (encode(MASK, "TIFF", compression="group4"), MASK, 0),
    "tiff white is zero": (encode(GREY8, "TIFF", tiffinfo={262: 0}), G8, 1e-7),
    "bmp": (encode(GREY8, "BMP"), G8, 1e-7),
    "bmp rgb": (encode(COLOUR, "BMP"), LUMA, 1e-7),
    "webp lossless": (encode(np.stack([GREY8] * 3, -1), "WEBP", lossless=True), G8, 1e-7),
    "webp rgba": (encode(np.dstack([COLOUR, ALPHA]), "WEBP", lossless=True, exact=True), LUMA * ALPHA / 255, 1e-6),
    "webp lossy": (encode(np.stack([GREY8] * 3, -1), "WEBP", quality=95), G8, 8 / 255),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_picture_format_gives_its_grey(kind: str, tmp_path: Path) -> None:
    content, expected, tolerance = PICTURES[kind]
    path = tmp_path / "named.jpg"  # whatever it is
    path.write_bytes(content)
    picture = read_image(path)
    assert picture.shape == image_size(path) == image_size(content) == (HEIGHT, WIDTH)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, expected, rtol=0, atol=tolerance)
    for same in (str(path), content, Image.open(BytesIO(content))):
        np.testing.assert_array_equal(read_image(same), picture)


def test_deep_tiff_that_pillow_leaves_unscaled() -> None:
    np.testing.assert_allclose(read_image(tiff_of(GREY12, 12, 1)), GREY12 / 4095, atol=1e-7)
    np.testing.assert_allclose(read_image(tiff_of(65535 - GREY16, 16, 0)), G16, atol=1e-7)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": turned(orientation)}
    content = encode(GREY8, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("L"))
    picture = read_image(content)
    np.testing.assert_allclose(picture, expected / 255, atol=1e-7)
    assert image_size(content) == picture.shape == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    corners = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 2, 7: 3, 8: 1}  # which corner of the stored picture comes first
    stored = np.asarray(Image.fromarray(GREY8))[[0, 0, -1, -1], [0, -1, 0, -1]] / 255
    assert abs(picture[0, 0] - stored[corners[orientation]]) < 6 / 255


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("size", "enough", "decoded"),
    [
        ((1200, 960), (160, 160), (600, 480)),
        ((1200, 960), (40, 40), (150, 120)),
        ((1200, 960), (201, 100), (1200, 960)),  # a half would be less than three times as large
        ((1202, 961), (64, 64), (1202, 961)),  # a half would not be of whole pixels
    ],
)
def test_a_large_jpeg_may_be_decoded_at_a_part_of_its_size(
    size: tuple[int, int], enough: tuple[int, int], decoded: tuple[int, int], orientation: int
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, size)
    grey = np.rint(255 * np.clip(draw_phantom(1, size=size).image + noise, 0, 1)).astype(np.uint8)
    grey[100:200, 100:500] = 255
    content = encode(Image.fromarray(grey), "JPEG", quality=90, exif=turned(orientation))
    if orientation == 6:
        enough, decoded = enough[::-1], decoded[::-1]
    part = read_pixels(content, enough=enough)
    assert part.shape == decoded
    difference = ImagePyramid(part).fit(enough) - ImagePyramid(read_pixels(content)).fit(enough)
    assert np.abs(255 * difference).max() < 2.5
    with pytest.raises(ImageReadError, match="truncated"):
        read_pixels(content[: len(content) // 2], enough=enough)


def test_orientation_of_a_pil_image_is_applied_once_and_the_image_left_alone() -> None:
    image = Image.open(BytesIO(encode(GREY8, "PNG", exif=turned(6))))
    picture = read_image(image)
    assert picture.shape == (WIDTH, HEIGHT)
    assert image.size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(read_image(ImageOps.exif_transpose(image)), picture)


# Arrays and tensors


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_arrays_and_tensors(kind) -> None:
    for pixels, expected in [(GREY8, G8), (GREY16, G16), (MASK, MASK), (G8, G8), (G8.astype(np.float16), G8)]:
        for shaped in (pixels, pixels[..., None], pixels[None]):
            picture = read_image(kind(np.ascontiguousarray(shaped)))
            assert picture.shape == (HEIGHT, WIDTH)
            assert picture.dtype == np.float32
            np.testing.assert_allclose(picture, expected, atol=1e-3 if pixels.dtype == np.float16 else 1e-7)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_colour_arrays(kind) -> None:
    rgba = np.dstack([COLOUR, ALPHA])
    planes = np.ascontiguousarray(np.moveaxis(COLOUR, -1, 0))
    for array, expected in [(COLOUR, LUMA), (planes, LUMA), (rgba, LUMA * ALPHA / 255)]:
        np.testing.assert_allclose(read_image(kind(array)), expected, atol=1e-6)
        unit = (array / 255).astype(np.float32)
        np.testing.assert_allclose(read_image(kind(unit)), expected, atol=1 / 255)  # not rounded to 8 bits
    white = np.ones((5, 5, 3), np.float32)
    assert read_image(kind(white)).max() == 1


def test_more_tensors() -> None:
    assert read_image(torch.full((4, 6), 0.5, dtype=torch.bfloat16)).tolist() == [[0.5] * 6] * 4
    picture = torch.rand(1, 4, 6, requires_grad=True)
    np.testing.assert_array_equal(read_image(picture), picture.detach()[0].numpy())
    assert read_image(np.asfortranarray(GREY16.astype(">u2"))).max() == np.float32(G16.max())


def test_ambiguous_axes_are_read_channels_last() -> None:
    array = np.zeros((3, 7, 3), np.float32)
    array[..., 0] = 1
    np.testing.assert_allclose(read_image(array), np.full((3, 7), 0.299), atol=1e-6)


def test_the_input_is_neither_changed_nor_shared() -> None:
    array = G8.astype(np.float32)
    picture = read_image(array)
    picture[:] = 0.5
    np.testing.assert_array_equal(array, G8.astype(np.float32))


def test_rounding_beyond_the_range_is_forgiven() -> None:
    picture = read_image(np.array([[-1e-7, 1 + 5e-7]]))
    assert picture.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (GREY8.astype(np.float32), ["from 0 to 204", "Divide by 255"]),
        (GREY16.astype(np.float32), ["0 to 62700", "65535"]),
        (np.linspace(-1024, 1024, 12).reshape(3, 4), ["-1024 to 1024", "TorchXRayVision", "(image + 1024) / 2048"]),
        (np.linspace(-1, 1, 12).reshape(3, 4), ["(image + 1) / 2"]),
        (np.linspace(-2.1, 2.6, 12).reshape(3, 4), ["-2.1 to 2.6", "mean"]),
        (np.array([[0.5, np.nan]]), ["NaN"]),
        (np.array([[0.5, np.inf]]), ["infinite"]),
        (GREY8.astype(np.int64), ["int64", "uint8"]),
        (np.array([["a"]]), ["white is unknown"]),
        (np.array([[None]]), ["object"]),
        (np.zeros((0, 5)), ["[0, 5]"]),
        (np.zeros(()), ["[]"]),
        (np.zeros(7), ["[7]"]),
        (np.zeros((5, 6, 2)), ["[5, 6, 2]"]),
        (np.zeros((1, 1, 5, 6)), ["batch"]),
        (torch.zeros(2, 3, 5, 6), ["torch Tensor", "batch"]),
        (torch.zeros(4, 5, dtype=torch.int32), ["int32"]),
        (Image.new("L", (0, 3)), ["PIL", "no pixels"]),
        (Image.new("I", (2, 3), 70000), ["int32"]),
        (Image.new("F", (2, 3), 7), ["from 7 to 7"]),
        ([[0, 1]], ["list", "NumPy array"]),
        (None, ["NoneType"]),
        (3, ["int"]),
    ],
)
def test_what_is_no_image_is_refused_with_the_cure(array: object, words: list[str]) -> None:
    with pytest.raises(ImageReadError) as caught:
        read_image(array)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).startswith("The given ")


# DICOM


def test_dicom_without_a_window_spans_its_own_range() -> None:
    picture = read_image(to_bytes(make_dicom(GREY12 + 100, bits=12)))
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, GREY12 / GREY12.max(), atol=1e-6)


@pytest.mark.parametrize("pixels", [GREY8, GREY12, GREY16, (GREY12 - 2000.0).astype(np.int16)])
def test_monochrome1_is_inverted(pixels: np.ndarray) -> None:
    plain = read_image(make_dicom(pixels))
    inverted = read_image(make_dicom(pixels, photometric="MONOCHROME1"))
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)
    assert plain[0, 0] == 0


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2, "RescaleIntercept": -1024}])
def test_dicom_window(function: str | None, rescale: dict[str, int]) -> None:
    dataset = make_dicom(GREY12, bits=12, WindowCenter=[1500, 1], WindowWidth=[2000, 1], **rescale)
    if function:
        dataset.VOILUTFunction = function
    slope, intercept = rescale.get("RescaleSlope", 1), rescale.get("RescaleIntercept", 0)
    expected = apply_windowing(GREY12 * float(slope) + intercept, dataset)  # in the range of the rescaled 12 bits
    np.testing.assert_allclose(read_image(dataset), (expected - intercept) / (4095 * slope), atol=2e-4)


def test_dicom_rescale_alone_keeps_the_picture() -> None:
    plain = read_image(make_dicom(GREY12, bits=12))
    np.testing.assert_allclose(
        read_image(make_dicom(GREY12, bits=12, RescaleSlope="0.25", RescaleIntercept="-7")), plain, atol=1e-6
    )
    np.testing.assert_allclose(
        read_image(make_dicom(GREY12, bits=12, RescaleSlope="-1", RescaleIntercept="4095")), 1 - plain, atol=1e-6
    )


def lut(table: np.ndarray, first: int, bits: int) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "US", table.tolist())
    return [item]


@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 1, "RescaleIntercept": 0}])
def test_dicom_lookup_tables(rescale: dict[str, int]) -> None:
    curve = (np.linspace(0, 1, 4096) ** 2 * 4095).astype(np.uint16)
    dataset = make_dicom(GREY12, bits=12, VOILUTSequence=lut(curve, 0, 12), **rescale)
    np.testing.assert_allclose(read_image(dataset), apply_voi(GREY12, dataset) / 4095, atol=1e-6)
    dataset = make_dicom(GREY12, bits=12, VOILUTSequence=lut(curve, 0, 16), **rescale)  # a common fault: 16 declared
    np.testing.assert_allclose(read_image(dataset), curve[GREY12] / 4095, atol=1e-6)
    dataset = make_dicom(GREY12, bits=12, ModalityLUTSequence=lut(curve, 0, 16), WindowCenter=2048, WindowWidth=4096)
    dataset.VOILUTFunction = "LINEAR_EXACT"
    np.testing.assert_allclose(read_image(dataset), curve[GREY12] / 4096, atol=1e-6)


def test_dicom_padding_is_black_and_does_not_count() -> None:
    signed = (GREY12 - 1000.0).astype(np.int16)
    signed[:5] = -2000
    inside = (signed[5:] - signed[5:].min()) / np.ptp(signed[5:])
    dataset = make_dicom(signed, PixelPaddingValue=-2000)
    picture = read_image(dataset)
    assert (picture[:5] == 0).all()
    np.testing.assert_allclose(picture[5:], inside, atol=1e-6)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    picture = read_image(dataset)
    assert (picture[:5] == 0).all()
    np.testing.assert_allclose(picture[5:], 1 - inside, atol=1e-6)
    del dataset.PixelPaddingValue
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)  # written unsigned, as many do
    np.testing.assert_array_equal(read_image(dataset), picture)
    signed[3] = -1900
    dataset = make_dicom(signed, photometric="MONOCHROME1", PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900)
    np.testing.assert_array_equal(read_image(dataset), picture)
    assert (read_image(make_dicom(np.full((4, 4), 9, np.uint8), PixelPaddingValue=9)) == 0).all()


@pytest.mark.parametrize("tag", [{"WindowCenter": 100, "WindowWidth": 0}, {"WindowCenter": None, "WindowWidth": None}])
def test_an_empty_window_is_no_window(tag: dict[str, int | None]) -> None:
    np.testing.assert_array_equal(read_image(make_dicom(GREY12, **tag)), read_image(make_dicom(GREY12)))


def test_dicom_colour() -> None:
    np.testing.assert_allclose(read_image(make_dicom(COLOUR, photometric="RGB")), LUMA, atol=1e-7)
    deep = COLOUR.astype(np.uint16) * 16
    np.testing.assert_allclose(read_image(make_dicom(deep, bits=12, photometric="RGB")), LUMA * 4080 / 4095, atol=0.003)
    ycbcr = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    np.testing.assert_allclose(read_image(make_dicom(ycbcr, photometric="YBR_FULL")), LUMA, atol=0.012)
    dataset = make_dicom(GREY8, photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", np.arange(256, dtype=np.uint8)[::-1].tobytes())
    np.testing.assert_allclose(read_image(dataset), 1 - G8, atol=1e-6)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("pixels", [GREY8, GREY12, GREY16], ids=["8 bit", "12 bit", "16 bit"])
def test_compressed_dicom_equals_the_plain_one(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    bits = 12 if pixels is GREY12 else None
    dataset = make_dicom(pixels, bits=bits, photometric="MONOCHROME1", WindowCenter=150, WindowWidth=250)
    packed = compress(dataset, LOSSLESS[kind], tmp_path)
    assert dcmread(BytesIO(packed)).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_image(packed), read_image(dataset))
    assert image_size(packed) == (HEIGHT, WIDTH)
    frame_start = packed.rfind(b"\xff\xd8") if kind.startswith("jpeg-") else len(packed) // 2
    with pytest.raises(ImageReadError):
        read_image(packed[: (frame_start + len(packed)) // 2])


def test_jpeg_baseline_dicom() -> None:
    dataset = make_dicom(GREY8)
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset.add_new("PixelData", "OB", encapsulate([encode(GREY8, "JPEG", quality=100)]))
    picture = read_image(to_bytes(dataset))
    np.testing.assert_allclose(picture, GREY8 / GREY8.max(), atol=0.012)


def test_dicom_without_preamble() -> None:
    dataset = make_dicom(GREY12, bits=12)
    whole = to_bytes(dataset)
    expected = read_image(dataset)
    np.testing.assert_array_equal(read_image(whole[132:]), expected)  # file header, no preamble
    del dataset.file_meta
    np.testing.assert_array_equal(read_image(dataset), expected)
    for implicit in (True, False):
        bare = BytesIO()
        dataset.save_as(bare, implicit_vr=implicit, little_endian=True)  # neither
        assert bare.getvalue().startswith(b"\x08\0\x16\0")
        np.testing.assert_array_equal(read_image(bare.getvalue()), expected)
        np.testing.assert_array_equal(read_image(dcmread(bare, force=True)), expected)
        assert image_size(bare.getvalue()) == (HEIGHT, WIDTH)


def test_a_text_that_starts_like_a_tag_is_not_taken_for_dicom() -> None:
    with pytest.raises(ImageReadError, match="unsupported file format"):
        read_image(b"\x08\x00 and then some text")


def dicom_faults() -> dict[str, tuple[Dataset, str]]:
    lost = make_dicom(GREY8)
    del lost.PixelData
    report = make_dicom(GREY8)
    del report.Rows
    short = make_dicom(GREY8)
    short.PixelData = short.PixelData[:100]
    odd = make_dicom(GREY8, photometric="HSV")
    unknown = make_dicom(GREY8)
    unknown.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    unknown.add_new("PixelData", "OB", encapsulate([b"an image of another kind"]))
    contradiction = make_dicom(GREY8)
    contradiction.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    contradiction.add_new("PixelData", "OB", encapsulate([encode(GREY8[:40], "JPEG")]))
    cut = make_dicom(GREY8)
    cut.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    cut.add_new("PixelData", "OB", encapsulate([encode(GREY8, "JPEG")[:-30]]))
    nonsense = make_dicom(GREY8)
    nonsense.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
    nonsense.add_new("PixelData", "OB", encapsulate([b"\xff\xd8nothing of the kind"]))
    floats = make_dicom(GREY8)
    del floats.PixelData
    floats.BitsAllocated, floats.FloatPixelData = 32, np.full((HEIGHT, WIDTH), np.nan, np.float32).tobytes()
    return {
        "no pixels": (lost, "without pixels"),
        "no picture": (report, "without a picture"),
        "frames": (make_dicom(GREY8, NumberOfFrames=2), "2 frames"),
        "too short": (short, "cannot be decoded"),
        "too large": (make_dicom(GREY8, Rows=60000, Columns=60000), "60000 x 60000"),
        "no colours we know": (odd, "HSV"),
        "video": (unknown, "uncompressed"),
        "contradiction": (contradiction, "contradicts itself"),
        "truncated": (cut, "truncated"),
        "nonsense": (nonsense, "damaged"),
        "not a number": (floats, "NaN"),
    }


@pytest.mark.parametrize("fault", dicom_faults())
def test_dicom_faults(fault: str, tmp_path: Path) -> None:
    dataset, words = dicom_faults()[fault]
    path = tmp_path / "film.dcm"
    path.write_bytes(to_bytes(dataset))
    for image in (dataset, path):
        with pytest.raises(ImageReadError, match=words):
            read_image(image)


def test_deflated_dicom_is_refused_before_it_is_unpacked() -> None:
    dataset = make_dicom(np.zeros((2000, 2000), np.uint8))
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    content = to_bytes(dataset)
    assert len(content) < 20_000  # four million pixels
    with pytest.raises(ImageReadError, match="deflated"):
        read_image(content)


# Refusals


OTHER8 = Image.fromarray(255 - GREY8)
REFUSED = {
    "empty": (b"", "empty"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "HTML"),
    "web page with a byte order mark": (b"\xef\xbb\xbf  \n<html></html>", "HTML"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "gif": (encode(GREY8, "GIF"), "GIF"),
    "pdf": (encode(GREY8, "PDF"), "PDF"),
    "eps": (encode(GREY8, "EPS"), "PostScript"),
    "zip": (b"PK\x03\x04....", "ZIP"),
    "gzip": (b"\x1f\x8b....", "gzip"),
    "table": (b"finding,patient\ncovid19,1\n", "unsupported file format"),
    "portable grey map": (encode(GREY8, "PPM"), "unsupported file format"),
    "sound": (b"RIFF\x24\0\0\0WAVEfmt ", "cannot be decoded"),
    "four bytes of jpeg": (b"\xff\xd8\xff\xe0", "cannot be decoded"),
    "text that starts like a bitmap": (b"BMI of the patient: 22", "cannot be decoded"),
    "half a png": (encode(GREY16, "PNG")[:100], "truncated"),
    "most of a jpeg": (encode(GREY8, "JPEG")[:-20], "truncated"),
    "two pages": (encode(GREY8, "TIFF", save_all=True, append_images=[OTHER8]), "several pictures"),
    "moving png": (encode(GREY8, "PNG", save_all=True, append_images=[OTHER8]), "several pictures"),
    "moving webp": (encode(GREY8, "WEBP", save_all=True, append_images=[OTHER8]), "several pictures"),
    "tiff of floats to 204": (encode(GREY8.astype(np.float32), "TIFF"), "Divide by 255"),
    "tiff of whole numbers": (encode(GREY8.astype(np.int32), "TIFF"), "white is unknown"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_are_no_image(kind: str, tmp_path: Path) -> None:
    content, words = REFUSED[kind]
    path = tmp_path / "film.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ImageReadError, match="The given file content"):
        read_image(content)


def test_paths_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageReadError, match=r"There is no file '.*gone\.png'"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageReadError, match="folder"):
        read_image(str(tmp_path))
    for odd in ("", "a\0b", "x" * 5000):
        with pytest.raises(ImageReadError):
            read_image(odd)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageReadError, match="no file"):  # and not an endless wait for somebody to write
        read_image(tmp_path / "pipe.png")
    (tmp_path / "secret.png").write_bytes(encode(GREY8, "PNG"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(ImageReadError, match=r"secret\.png' cannot be opened: Permission denied"):
            read(tmp_path / "secret.png")


def with_png_size(width: int, height: int) -> bytes:
    import zlib

    content = bytearray(encode(GREY8, "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def with_jpeg_size(width: int, height: int) -> bytes:
    content = bytearray(encode(GREY8, "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(content)


def with_bmp_size(width: int, height: int) -> bytes:
    content = bytearray(encode(GREY8, "BMP"))
    content[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize("maker", [with_png_size, with_jpeg_size, with_bmp_size])
@pytest.mark.parametrize("side", [9_700, 10_001, 60_000])  # Pillow warns from 9,460 and refuses from 13,378
def test_bombs_are_refused_before_they_are_decoded(maker, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.size))
    content = maker(side, side)
    if side == 9_700:
        assert image_size(content) == (side, side)  # below the limit: no warning, no error
        return
    for read in (read_image, image_size):
        with pytest.raises(ImageReadError, match=f"{side} x {side}.*MAX_PIXELS"):
            read(content)
    assert not decoded


def test_webp_bomb() -> None:
    content = bytearray(encode(np.dstack([COLOUR, ALPHA]), "WEBP"))
    assert content[12:16] == b"VP8X"
    content[24:30] = (16382).to_bytes(3, "little") * 2
    with pytest.raises(ImageReadError):
        read_image(bytes(content))


def test_the_limit_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(GREY8, "PNG")
    monkeypatch.setattr("covidcxr.io.image.MAX_PIXELS", HEIGHT * WIDTH - 1)
    for image in (content, to_bytes(make_dicom(GREY8))):
        with pytest.raises(ImageReadError, match="MAX_PIXELS"):
            read_image(image)
    monkeypatch.setattr("covidcxr.io.image.MAX_PIXELS", HEIGHT * WIDTH)
    assert read_image(content).shape == (HEIGHT, WIDTH)


NOISE = np.random.default_rng(0).integers(0, 255, (90, 75, 3), np.uint8)
JPEGS = {
    "grey": (NOISE[..., 0], {}),
    "grey with restarts": (NOISE[..., 0], {"restart_marker_rows": 1}),
    "colour": (NOISE, {}),
    "colour at full resolution": (NOISE, {"subsampling": 0}),
    "cmyk": (Image.fromarray(NOISE).convert("CMYK"), {}),
    "progressive": (NOISE[..., 0], {"progressive": True}),
    "progressive colour": (NOISE, {"progressive": True}),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_was_cut_and_closed_is_refused(kind: str, tmp_path: Path) -> None:
    pixels, options = JPEGS[kind]
    content = encode(pixels, "JPEG", quality=80, **options)
    assert read_image(content + b"something after the end").shape == (90, 75)
    for share in (0.3, 0.5, 0.7, 0.9):
        (tmp_path / "cut.jpg").write_bytes(content[: int(len(content) * share)] + b"\xff\xd9")
        with pytest.raises(ImageReadError, match=r"cut\.jpg' is truncated.*Copy or download it again"):
            read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_whole_jpeg_that_ends_in_mid_grey_is_read(progressive: bool) -> None:
    half = NOISE[..., 0] // 2 + 64
    half[40:] = 128
    for pixels in (half, half[:41], np.full((9, 9), 128, np.uint8), np.stack([half] * 3, -1)):
        picture = read_image(encode(pixels, "JPEG", quality=95, progressive=progressive))
        assert abs(picture[-1, -1] - 128 / 255) < 0.02


# Damage: whatever the bytes, an image or an ImageReadError


def check_image_or_error(content: bytes) -> bool:
    try:
        picture = read_image(content)
    except ImageReadError:
        return False
    assert picture.dtype == np.float32
    assert picture.ndim == 2
    assert picture.size > 0
    assert np.isfinite(picture).all()
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert image_size(content) == picture.shape
    return True


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sound")
    dataset = make_dicom(GREY12, bits=12, WindowCenter=2000, WindowWidth=3000, PixelPaddingValue=0)
    pictures = {kind: compress(dataset, syntax, folder) for kind, syntax in LOSSLESS.items()}
    pictures |= {f"{kind} turned": encode(GREY8, kind, exif=turned(6)) for kind in ("JPEG", "PNG", "WEBP")}
    return pictures | {"dicom": to_bytes(dataset)} | {kind: content for kind, (content, _, _) in PICTURES.items()}


def test_a_truncated_file_never_gives_another_picture(sound_files: dict[str, bytes]) -> None:
    random = np.random.default_rng(0)
    refused = 0
    for kind, content in sound_files.items():
        whole = read_image(content)
        for cut in random.integers(1, len(content), 12):
            try:
                picture = read_image(content[:cut])  # all pixels may be there, and only the end mark missing
            except ImageReadError:
                refused += 1
            else:
                np.testing.assert_array_equal(picture, whole, err_msg=kind)
    assert refused > 10 * len(sound_files)


def test_flipped_bytes(sound_files: dict[str, bytes]) -> None:
    random = np.random.default_rng(1)
    outcomes = []
    for content, trial in itertools.product(sound_files.values(), range(40)):
        damaged = bytearray(content)
        reach = len(damaged) if trial % 2 else min(len(damaged), 800)  # headers are where decoders go astray
        for at in random.integers(0, reach, 1 + trial % 4):
            damaged[at] = random.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.append(check_image_or_error(bytes(damaged)))
    assert 0.1 < np.mean(outcomes) < 0.9  # both happen


STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"RIFF\0\0\0\0WEBPVP8 "]
STARTS += [bytes(128) + b"DICM", b"\x08\0\x05\0CS", b"\x02\0\0\0UL\x04\0", encode(GREY8, "PNG")[:33]]


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300))
def test_any_bytes_at_all(start: bytes, rest: bytes) -> None:
    check_image_or_error(start + rest)


@pytest.mark.parametrize("at", range(4, 35))
def test_damaged_lossless_headers_do_not_end_the_process(at: int, tmp_path: Path) -> None:
    """Without the check of the stream, GDCM aborts or crashes on several of these."""
    content = compress(make_dicom(GREY12, bits=12), LOSSLESS["jpeg-lossless"], tmp_path)
    dataset = dcmread(BytesIO(content))
    frame = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    for value in (0x27, 0x7C, 0xB1, 0xFF):
        damaged = bytearray(frame)
        damaged[at] = value
        dataset.PixelData = encapsulate([bytes(damaged)])
        check_image_or_error(to_bytes(dataset))


# Writing


def test_write_mask_and_image(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", MASK)
    with Image.open(tmp_path / "mask.png") as image:
        assert (image.format, image.mode) == ("PNG", "1")
        np.testing.assert_array_equal(np.asarray(image), MASK)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), MASK)
    write_image(tmp_path / "film.png", G16)
    np.testing.assert_allclose(read_image(tmp_path / "film.png"), G16, atol=0.5001 / 255)
    write_image(tmp_path / "film.png", GREY8)
    np.testing.assert_array_equal(read_image(tmp_path / "film.png"), read_image(GREY8))
    assert {path.name for path in tmp_path.iterdir()} == {"film.png", "mask.png"}
    for wrong in (MASK.astype(np.uint8), MASK[None], G8):
        with pytest.raises((ImageReadError, TypeCheckError), match=r"bool array|'mask'"):
            write_mask(tmp_path / "mask.png", wrong)
    write_mask(tmp_path / "made" / "mask.png", MASK)
    np.testing.assert_array_equal(read_mask(tmp_path / "made" / "mask.png"), MASK)
    with pytest.raises(OSError, match=r"film\.png"):
        write_mask(tmp_path / "film.png" / "mask.png", MASK)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mask(tmp_path / "mask.png", MASK)
    before = (tmp_path / "mask.png").read_bytes()

    def fail_half_way(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        write_mask(tmp_path / "mask.png", ~MASK)
    assert (tmp_path / "mask.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


# Good manners


def test_importing_loads_no_decoder_and_no_torch() -> None:
    code = (
        "import sys, covidcxr.io; print([name for name in ('PIL', 'pydicom', 'torch', 'gdcm') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_dicom_first_and_png_after_it_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "film.dcm").write_bytes(compress(make_dicom(GREY12, bits=12), LOSSLESS["jpeg-lossless"], tmp_path))
    code = """if True:
        from covidcxr.io import read_image, write_image
        image = read_image("film.dcm")
        for _ in range(20):
            write_image("film.png", image)
            assert abs(read_image("film.png") - image).max() < 0.002
    """
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_reading_changes_no_global_state(sound_files: dict[str, bytes]) -> None:
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    failures = []

    def read_all() -> None:
        try:
            for content in sound_files.values():
                read_image(content)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(warnings.filters) == filters
    assert (limit, False) == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_public_names() -> None:
    assert covidcxr.read_image is read_image
    assert covidcxr.read_mask is read_mask


# Real images


@pytest.mark.real
def test_all_originals(real_data: Path) -> None:
    paths = sorted((real_data / "originals").iterdir())
    assert len(paths) == 13
    for path in paths:
        picture = read_image(path)
        assert picture.shape == image_size(path)
        assert min(picture.shape) >= 350
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert picture.std() > 0.1, path.name
        if path.suffix != ".dcm":
            with Image.open(path) as image:
                expected = np.asarray(image.convert("RGBA").convert("RGB").convert("L")) / 255
            np.testing.assert_allclose(picture, expected, atol=1e-6, err_msg=path.name)  # all of them are opaque


@pytest.mark.real
def test_the_monochrome1_twin_is_the_negative(real_data: Path) -> None:
    twin = read_image(real_data / "originals" / "Fake_MONOHR1.dcm")
    (path,) = set((real_data / "originals").glob("*.dcm")) - {real_data / "originals" / "Fake_MONOHR1.dcm"}
    np.testing.assert_allclose(twin, 1 - read_image(path), atol=1e-6)
    dataset = dcmread(path)
    np.testing.assert_array_equal(read_image(dataset), read_image(path))


@pytest.mark.real
def test_real_masks_fit_their_images(real_data: Path) -> None:
    checked = 0
    for source in sorted((real_data / "lung_masks").iterdir()):
        for path in sorted(source.iterdir())[:5]:
            (picture,) = (real_data / "images" / source.name).glob(f"{path.stem}.*")
            mask = read_mask(path, size=image_size(picture))
            assert 0.02 < mask.mean() < 0.8
            checked += 1
    assert checked >= 15


class Upload:
    """What web frameworks hand over: a file within, and a method `read` that must be awaited."""

    def __init__(self, content: bytes) -> None:
        self.file = BytesIO(content)

    async def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


class Stream:
    """What can be read once."""

    def __init__(self, content: bytes) -> None:
        self._file = BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


@pytest.mark.parametrize("hold", [bytearray, memoryview, BytesIO, Upload, Stream], ids=lambda hold: hold.__name__)
def test_what_holds_the_content_of_a_file_is_read(hold: type) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (content := BytesIO()).name = "x.png"
    Image.fromarray(grey).save(content, "PNG")
    np.testing.assert_allclose(read_image(hold(content.getvalue())), grey / 255, atol=1e-6)


def test_an_open_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    with (tmp_path / "a.png").open("rb") as file:
        file.read(3)
        assert read_image(file).shape == (8, 8)
    with (tmp_path / "a.png").open() as file, pytest.raises(ImageReadError, match=r"open\(path, 'rb'\)"):
        read_image(file)  # type: ignore[arg-type]
    with pytest.raises(ImageReadError, match="cannot be decoded: I/O operation on closed file"):
        read_image(file)  # type: ignore[arg-type]
