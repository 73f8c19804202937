"""Masks of two levels in any clothes: the set level is found, or the file is refused with a cure that works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from images import encode, make_dicom, tiff_of, to_bytes
from PIL import Image

from covidcxr.errors import ImageReadError
from covidcxr.io.image import read_mask, write_mask

HEIGHT, WIDTH = 48, 64
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
GREY8 = (ROWS * 3 + COLUMNS).astype(np.uint8)
MASK = (ROWS - 20) ** 2 + (COLUMNS - 30) ** 2 < 200
SET = MASK.astype(np.uint8)
MAPPED = np.where(MASK, 215, 30).astype(np.uint8)
BLACK, WHITE, RED, DARK_RED, GREY = (0, 0, 0), (255, 255, 255), (255, 0, 0), (128, 0, 0), (76, 76, 76)


def palette(*colours: tuple[int, int, int], indices: np.ndarray = SET) -> Image.Image:
    image = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    image.putpalette([value for colour in colours for value in colour])
    return image


def colours(unset: tuple[int, ...], set_: tuple[int, ...], mask: np.ndarray = MASK) -> np.ndarray:
    return np.where(mask[..., None], set_, unset).astype(np.uint8)


def shuffled() -> Image.Image:
    """Black and white by two of 256 greys in any order, index 0 being neither."""
    order = np.random.default_rng(0).permutation(256)
    return palette(*((int(grey),) * 3 for grey in order), indices=np.argsort(order)[SET * 255].astype(np.uint8))


MASKS = {
    "0/255": encode(SET * 255, "PNG"),
    "0/1": encode(SET, "PNG"),
    "254/255": encode(SET + np.uint8(254), "PNG"),
    "none of two levels is 0": encode(MAPPED, "PNG"),
    "1/2, class numbers": encode(SET + np.uint8(1), "PNG"),
    "one bit": encode(MASK, "PNG"),
    "16 bit": encode(SET.astype(np.uint16) * 65535, "PNG"),
    "16 bit, 0/1": encode(SET.astype(np.uint16), "PNG"),
    "16 bit, 0/4095": encode(SET.astype(np.uint16) * 4095, "PNG"),
    "16 bit, big endian": encode((SET.astype(np.uint16) * 65535).astype(">u2"), "TIFF"),
    "int32": encode(SET.astype(np.int32), "TIFF"),
    "int32, 0/255": encode(SET.astype(np.int32) * 255, "TIFF"),
    "int32, 0/65535": encode(SET.astype(np.int32) * 65535, "TIFF"),
    "int32, -1/0": encode(SET.astype(np.int32) - 1, "TIFF"),
    "float, 0..1": encode(SET.astype(np.float32), "TIFF"),
    "float, 0..255": encode(SET.astype(np.float32) * 255, "TIFF"),
    "float, 0..65535": encode(SET.astype(np.float32) * 65535, "TIFF"),
    "white is zero": tiff_of(np.where(MASK, 0, 65535).astype(np.uint16), 16, 0),
    "one bit, white is zero": encode(MASK, "TIFF", tiffinfo={262: 0}),
    "one bit, fax": encode(MASK, "TIFF", compression="group4"),
    "palette": encode(shuffled(), "PNG"),
    "palette black/white": encode(palette(BLACK, WHITE), "PNG"),
    "palette black/red": encode(palette(BLACK, DARK_RED), "PNG"),
    "palette white/red": encode(palette(WHITE, RED), "PNG"),
    "palette grey/red": encode(palette(GREY, RED), "PNG"),
    "palette white/red, of one bit": encode(palette(WHITE, RED), "PNG", bits=1),
    "palette with unused colours": encode(palette(WHITE, BLACK, (9, 9, 9), RED, indices=SET * 3), "PNG"),
    "palette of two colours": encode(palette((68, 1, 84), (253, 231, 37)), "PNG"),
    "palette white/red as tiff": encode(palette(WHITE, RED), "TIFF"),
    "palette white/red as bmp": encode(palette(WHITE, RED), "BMP"),
    "palette, 0 transparent": encode(palette(WHITE, RED), "PNG", transparency=0),
    "palette, black ink on a transparent 0": encode(palette(WHITE, BLACK), "PNG", transparency=0),
    "rgb": encode(colours(BLACK, WHITE), "PNG"),
    "rgb white/red": encode(colours(WHITE, RED), "PNG"),
    "rgb white/blue": encode(colours(WHITE, (0, 0, 255)), "PNG"),
    "rgb black/blue": encode(colours(BLACK, (0, 0, 255)), "PNG"),
    "rgb of equal brightness": encode(colours(GREY, RED), "PNG"),
    "rgb white/red as jpeg": encode(colours(WHITE, RED), "JPEG", quality=90, subsampling=0),
    "rgb, most of it set": encode(colours(WHITE, RED, ~(ROWS < 9)), "PNG"),
    "rgba on black": encode(colours((0, 0, 0, 255), (255, 255, 255, 255)), "PNG"),
    "rgba, red where it is opaque": encode(colours((255, 0, 0, 0), (255, 0, 0, 255)), "PNG"),
    "rgba, black where it is opaque": encode(colours((0, 0, 0, 0), (0, 0, 0, 255)), "PNG"),
    "rgba, half transparent": encode(colours((0, 0, 0, 0), (0, 255, 0, 128)), "PNG"),
    "rgba, black around, white in it": encode(colours((0, 0, 0, 255), (255, 255, 255, 200)), "PNG"),
    "grey with alpha": encode(np.where(MASK[..., None], (255, 255), (255, 0)).astype(np.uint8), "PNG"),
    "grey, 0 transparent": encode(SET * 255, "PNG", transparency=0),
    "viridis": encode(colours((68, 1, 84), (253, 231, 37)), "PNG"),
    "jpeg": encode(SET * 255, "JPEG", quality=85),
    "colour map, as jpeg": encode(MAPPED, "JPEG", quality=95),
    "webp": encode(colours(BLACK, WHITE), "WEBP", lossless=True),
    "bmp": encode(SET * 255, "BMP"),
    "dicom": to_bytes(make_dicom(SET)),
    "dicom of one bit in 16": to_bytes(make_dicom(SET.astype(np.uint16) * 7, bits=12)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(MASKS[kind])
    mask = read_mask(path, size=(HEIGHT, WIDTH))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, ~(ROWS < 9) if kind == "rgb, most of it set" else MASK)


NOTHING = np.zeros((4, 5), np.uint8)
ONE_LEVEL = {
    "0": (encode(NOTHING, "PNG"), False),
    "1": (encode(NOTHING + np.uint8(1), "PNG"), True),
    "255": (encode(NOTHING + np.uint8(255), "PNG"), True),
    "16 bit, 0": (encode(NOTHING.astype(np.uint16), "PNG"), False),
    "16 bit, 1": (encode(NOTHING.astype(np.uint16) + np.uint16(1), "PNG"), True),
    "16 bit, 65535": (encode(NOTHING.astype(np.uint16) + np.uint16(65535), "PNG"), True),
    "int32, 255": (encode(NOTHING.astype(np.int32) + 255, "TIFF"), True),
    "float, 0": (encode(NOTHING.astype(np.float32), "TIFF"), False),
    "rgb, black": (encode(np.zeros((4, 5, 3), np.uint8), "PNG"), False),
    "palette black/red": (encode(palette(BLACK, RED, indices=NOTHING), "PNG"), False),
    "palette white/red": (encode(palette(WHITE, RED, indices=NOTHING), "PNG"), False),
    "all transparent": (encode(np.full((4, 5, 4), (255, 0, 0, 0), np.uint8), "PNG"), False),
}


@pytest.mark.parametrize("kind", ONE_LEVEL)
def test_masks_of_one_level(kind: str, tmp_path: Path) -> None:
    content, expected = ONE_LEVEL[kind]
    (tmp_path / "mask.png").write_bytes(content)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), np.full((4, 5), expected))


REFUSED = {
    "an image": (encode(GREY8, "PNG"), "no mask"),
    "grey everywhere": (encode(NOTHING + np.uint8(30), "PNG"), "grey 0.118 everywhere"),
    "classes 0, 1, 2": (encode(SET + (ROWS < 20), "PNG"), "several classes"),
    "few of a third class": (
        encode(np.where((ROWS < 2) & (COLUMNS < 3), 1, MASK * 2).astype(np.uint8), "PNG"),
        "several classes",
    ),
    "classes as int32": (encode((SET + (ROWS < 20)).astype(np.int32), "TIFF"), "several classes"),
    "classes as floats": (encode((SET + (ROWS < 20)).astype(np.float32), "TIFF"), "several classes"),
    "probabilities": (encode((GREY8 / 255).astype(np.float32), "TIFF"), "no mask"),
    "not a number": (encode(np.where(MASK, np.nan, 0).astype(np.float32), "TIFF"), "NaN"),
    "three colours": (
        encode(palette(WHITE, RED, (0, 0, 255), indices=SET + (ROWS < 20).astype(np.uint8)), "PNG"),
        "no mask",
    ),
    "two colours of one brightness": (encode(colours((255, 0, 0), (0, 130, 0)), "PNG"), "one brightness"),
    "palette white/black": (encode(palette(WHITE, BLACK), "PNG"), "palette.*which is set"),
    "palette red/white": (encode(palette(RED, WHITE), "PNG"), "palette.*which is set"),
    "rgb, white everywhere": (encode(np.full((4, 5, 3), 255, np.uint8), "PNG"), "one colour everywhere"),
    "rgb, red everywhere": (encode(np.full((4, 5, 3), RED, np.uint8), "PNG"), "one colour everywhere"),
    "transparent over an image": (encode(np.dstack([GREY8] * 3 + [GREY8 * 0]), "PNG"), "transparent everywhere"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_mask_is_refused(kind: str, tmp_path: Path) -> None:
    content, words = REFUSED[kind]
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(ImageReadError, match=words) as caught:
        read_mask(tmp_path / "odd.png")
    assert "odd.png" in str(caught.value)


def test_the_cure_of_a_refused_mask_works(tmp_path: Path) -> None:
    (tmp_path / "odd.png").write_bytes(encode(palette(WHITE, BLACK), "PNG"))
    with pytest.raises(ImageReadError, match="Save masks as 8-bit grey: 0 = not set, 255 = set"):
        read_mask(tmp_path / "odd.png")
    with Image.open(tmp_path / "odd.png") as picture:
        Image.fromarray((np.asarray(picture) == 1).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), MASK)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", MASK)
    with pytest.raises(ImageReadError, match=r"mask\.png.* is 48 x 64 .* its image 64 x 48"):
        read_mask(tmp_path / "mask.png", size=(64, 48))
