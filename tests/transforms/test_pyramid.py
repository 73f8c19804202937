"""Images on their way to networks in 8 bits, and masks on their way back: the same as `resize_image`, faster."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from covidcxr.phantom import draw_phantom
from covidcxr.transforms.geometry import resize_image, resize_mask, restore_map
from covidcxr.transforms.pyramid import ImagePyramid, fit_mask, restore_mask
from covidcxr.types import Fit

FITS: tuple[Fit, Fit] = ("letterbox", "stretch")


def exact(image: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    unit = image / np.float32(255) if image.dtype == np.uint8 else image
    return resize_image(torch.from_numpy(unit)[None, None], size, fit)[0, 0].numpy()


def drawn(size: tuple[int, int]) -> np.ndarray:
    return np.rint(draw_phantom(3, label="covid19", size=size).image * 255).astype(np.uint8)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(64, 64), (90, 50), (301, 403), (30, 700)])
def test_without_halving_it_is_the_resizing_of_tensors(size: tuple[int, int], fit: Fit) -> None:
    image = np.tile(drawn((320, 320)), (2, 3))[: size[0], : size[1]].copy()
    for given in (image, image / np.float32(255)):
        np.testing.assert_allclose(ImagePyramid(given).fit((64, 96), fit), exact(given, (64, 96), fit), atol=1e-5)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(800, 640), (777, 1201), (1530, 1201)])
def test_halves_move_a_pixel_by_a_few_greys_at_most(size: tuple[int, int], fit: Fit) -> None:
    image = drawn(size)
    difference = 255 * (ImagePyramid(image).fit((64, 48), fit) - exact(image, (64, 48), fit))
    assert np.abs(difference).max() < 4
    assert np.abs(difference).mean() < 0.3


def test_the_halves_are_shared_and_the_size_of_others_changes_nothing() -> None:
    image = drawn((1030, 901))
    pyramid = ImagePyramid(image)
    first = pyramid.fit((32, 32))
    pyramid.fit((100, 100))
    assert np.array_equal(ImagePyramid(image).fit((100, 100)), pyramid.fit((100, 100)))
    assert np.array_equal(first, pyramid.fit((32, 32)))


def test_an_image_of_the_size_comes_back_to_the_bit() -> None:
    image = drawn((96, 64))
    fitted = ImagePyramid(image).fit((96, 64))
    assert np.array_equal(np.rint(fitted * 255).astype(np.uint8), image)
    fitted[:] = 0
    assert image.any()


@pytest.mark.parametrize("fit", FITS)
def test_masks_come_as_by_tensors(fit: Fit) -> None:
    mask = draw_phantom(3, size=(500, 430)).masks["lung"]
    expected = resize_mask(torch.from_numpy(mask).float()[None, None], (64, 64), fit)[0, 0].numpy() > 0.5
    assert (fit_mask(mask, (64, 64), fit) != expected).mean() < 0.001


@pytest.mark.parametrize("threshold", [0.0, 0.03, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(64, 64), (40, 30), (200, 333), (3000, 2801)])
def test_masks_are_restored_as_by_tensors(size: tuple[int, int], fit: Fit, threshold: float) -> None:
    rng = np.random.default_rng(0)
    values = ImagePyramid(rng.random((8, 8), np.float32)).fit((64, 64), "stretch")  # smooth, as networks draw
    values[:3] = 1.0
    # Weights of a mean of ones do not sum to 1 to the last digit.
    expected = restore_map(torch.from_numpy(values)[None, None], size, fit)[0, 0].numpy() >= threshold - 1e-6
    mask = restore_mask(values, threshold, size, fit)
    assert mask.dtype == np.bool_
    assert mask.shape == size
    assert (mask != expected).mean() < (0.005 if np.prod(size) > 8e6 else 0.0005)
