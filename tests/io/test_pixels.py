"""Numbers whose type does not tell what white is: read by `bits`, and seen where 16 bits hold fewer."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from images import encode, make_dicom, tiff_of
from PIL import Image

from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.io import read_image
from covidcxr.io.pixels import held_bits, held_bits_in_words

GREY = np.tile(np.linspace(0, 1, 40), (30, 1))


def stored(bits: int, dtype: type = np.uint16) -> np.ndarray:
    return np.rint(GREY * (2**bits - 1)).astype(dtype)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "white is zero", "array", "tensor", "picture"])
def test_fewer_bits_in_sixteen_are_seen_and_read(bits: int, kind: str) -> None:
    pixels = stored(bits)
    images = {
        "array": pixels,
        "tensor": torch.from_numpy(pixels),
        "picture": Image.fromarray(pixels),
        "white is zero": tiff_of((2**bits - 1 - pixels).astype(np.uint16), 16, 0),
    }
    image = images[kind] if kind in images else encode(pixels, kind)
    if kind != "white is zero":  # what is dark there is nearly white
        assert held_bits(read_image(image)) == bits
    read = read_image(image, bits=bits)
    np.testing.assert_allclose(read, GREY, atol=0.5 / (2**bits - 1) + 1e-6)
    assert held_bits(read) is None


def test_a_few_dark_images_do_not_change_what_is_seen() -> None:
    assert held_bits(read_image((stored(12) * 0.9).astype(np.uint16))) == 12
    assert held_bits(read_image(np.array([[0, 1023]], np.uint16))) == 10
    assert held_bits(read_image(np.array([[0, 1024]], np.uint16))) == 12


OTHERS = {
    "16 bits": stored(16),
    "12 bits, shifted to the left": stored(12) << 4,
    "dark, 15 bits": stored(15),
    "8 bits": stored(8, np.uint8),
    "8 bits, dark": stored(5, np.uint8),
    "16 bits made of 8, dark": stored(5) * np.uint16(257),
    "floats": (GREY * 0.2).astype(np.float32),
    "black": np.zeros((5, 6), np.uint16),
    "12 bits packed": tiff_of(stored(12), 12, 1),
    "dicom": make_dicom(stored(12), bits=16),
    "colour": np.stack([stored(8, np.uint8) // 9] * 3, -1),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_images_are_not_taken_for_it(kind: str) -> None:
    assert held_bits(read_image(OTHERS[kind])) is None


def test_whole_numbers_and_floats_by_their_bits() -> None:
    for bits, dtype in ((8, np.int32), (16, np.int32), (12, np.int16), (8, np.float32), (16, np.float64)):
        read = read_image(stored(bits, dtype), bits=bits)
        np.testing.assert_allclose(read, GREY, atol=0.5 / (2**bits - 1) + 1e-6)
        assert read.dtype == np.float32
    for kind in (np.int32, np.float32):  # as ImageJ writes
        np.testing.assert_allclose(read_image(encode(stored(8, kind), "TIFF"), bits=8), GREY, atol=0.002)
    np.testing.assert_array_equal(read_image(np.stack([stored(12)] * 3, -1), bits=12).shape, GREY.shape)


@pytest.mark.parametrize("image", [stored(8, np.uint8), GREY, GREY > 0.5, make_dicom(stored(12), bits=12)])
def test_bits_change_nothing_where_the_type_tells(image: object) -> None:
    np.testing.assert_array_equal(read_image(image, bits=12), read_image(image))


@pytest.mark.parametrize(
    ("image", "bits", "words"),
    [
        (stored(16), 12, r"from 0 to 65535, not from 0 to 4095 as bits=12 says\. Read it with bits=16"),
        (stored(12, np.float32), 8, r"not from 0 to 255 .*bits=12"),
        (stored(12, np.int32) - 9, 12, "from -9 to 4086.*Rescale it first"),
    ],
)
def test_bits_that_are_too_few_are_refused(image: np.ndarray, bits: int, words: str) -> None:
    with pytest.raises(ImageReadError, match=words) as caught:
        read_image(image, bits=bits)
    if cure := re.search(r"Read it with bits=(\d+)", str(caught.value)):
        assert read_image(image, bits=int(cure[1])).max() == 1


@pytest.mark.parametrize("bits", [7, 17, -1, True])
def test_numbers_of_bits_that_no_image_has_are_refused(bits: object) -> None:
    with pytest.raises(ConfigError, match="bits must be 8 to 16"):
        read_image(stored(12), bits=bits)


def test_the_sentence_names_every_way() -> None:
    for way in ("read_image(path, bits=12)", "bits: 12", "covidcxr predict --bits 12"):
        assert way in held_bits_in_words(12)
