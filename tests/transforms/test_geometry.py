"""The geometry that fit and predict share, against PIL and SciPy and by its own laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor

from covidcxr.errors import ConfigError
from covidcxr.transforms.geometry import (
    apply_region,
    dilate,
    letterbox_box,
    normalize,
    resize_image,
    resize_mask,
    restore_map,
)
from covidcxr.types import Fit

SIDES = st.integers(1, 300)
FITS: tuple[Fit, Fit] = ("letterbox", "stretch")
quick = settings(max_examples=60, deadline=None)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def smooth(height: int, width: int) -> Tensor:
    """An image that changes so slowly that resizing it back and forth changes little."""
    rows, columns = torch.linspace(0, 2, height), torch.linspace(0, 3, width)
    return (0.5 + 0.4 * torch.sin(rows)[:, None] * torch.cos(columns))[None, None]


def resized_by_pil(image: Tensor, height: int, width: int) -> Tensor:
    return torch.from_numpy(np.array(Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BILINEAR)))


# --- letterbox -----------------------------------------------------------------------------------------------------


@quick
@given(SIDES, SIDES, st.integers(8, 300), st.integers(8, 300))
@example(1, 5000, 256, 256)
def test_letterbox_keeps_the_aspect_ratio_and_centres(height: int, width: int, frame_h: int, frame_w: int) -> None:
    top, left, new_height, new_width = letterbox_box(height, width, (frame_h, frame_w))
    assert 1 <= new_height <= frame_h
    assert 1 <= new_width <= frame_w
    assert frame_h == new_height or frame_w == new_width  # as large as it can be
    scale = min(frame_h / height, frame_w / width)
    for new, old in ((new_height, height), (new_width, width)):
        assert abs(new - old * scale) <= 0.5 or new == 1
    for start, new, frame in ((top, new_height, frame_h), (left, new_width, frame_w)):
        assert 0 <= (frame - new - start) - start <= 1  # the larger half of the padding comes last


def test_letterbox_by_hand() -> None:
    assert letterbox_box(200, 100, (64, 64)) == (0, 16, 64, 32)
    assert letterbox_box(30, 60, (64, 96)) == (8, 0, 48, 96)
    assert letterbox_box(64, 96, (64, 96)) == (0, 0, 64, 96)


# --- fit and unfit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("height", "width"), [(50, 50), (20, 90), (300, 200), (64, 96), (65, 95)])
def test_fit_image_against_pil(height: int, width: int, fit: Fit) -> None:
    image = noise(height, width)
    top, left, new_height, new_width = letterbox_box(height, width, (64, 96)) if fit == "letterbox" else (0, 0, 64, 96)
    expected = torch.zeros(64, 96)
    expected[top : top + new_height, left : left + new_width] = resized_by_pil(image, new_height, new_width)
    torch.testing.assert_close(resize_image(image[None, None], (64, 96), fit)[0, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fit", FITS)
def test_images_of_the_right_size_come_back_untouched(fit: Fit) -> None:
    image = noise(2, 1, 40, 30)
    assert resize_image(image, (40, 30), fit) is image
    assert resize_mask(image, (40, 30), fit) is image
    assert torch.equal(restore_map(image, (40, 30), fit), image)


def test_shrinking_averages_instead_of_picking() -> None:
    checkers = (torch.arange(512)[:, None] + torch.arange(512)).remainder(2).float()[None, None]
    assert set(checkers[..., ::8, ::8].flatten().tolist()) == {0.0}  # what picking every eighth pixel would see
    torch.testing.assert_close(resize_image(checkers, (64, 64)), torch.full((1, 1, 64, 64), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(restore_map(checkers, (64, 64)), torch.full((1, 1, 64, 64), 0.5), atol=0.01, rtol=0)


@quick
@given(SIDES, SIDES, st.sampled_from(FITS))
def test_sizes_and_ranges(height: int, width: int, fit: Fit) -> None:
    image = noise(1, 2, height, width)
    fitted = resize_image(image, (48, 32), fit)
    assert fitted.shape == (1, 2, 48, 32)
    assert -1e-6 <= fitted.min() <= fitted.max() <= image.max() + 1e-6
    back = restore_map(fitted, (height, width), fit)
    assert back.shape == image.shape
    assert -1e-6 <= back.min() <= back.max() <= image.max() + 1e-6


@quick
@given(st.integers(40, 200), st.integers(40, 200), st.sampled_from(FITS))
def test_unfit_undoes_fit(height: int, width: int, fit: Fit) -> None:
    image = smooth(height, width)
    back = restore_map(resize_image(image, (128, 160), fit), (height, width), fit)
    torch.testing.assert_close(back, image, atol=0.03, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(100, 37), (37, 100), (400, 300)])
def test_unfit_puts_things_back_where_they_were(height: int, width: int) -> None:
    mask = torch.zeros(1, 1, height, width)
    mask[..., height // 4 : height // 2, width // 5 : width // 2] = 1
    back = restore_map(resize_image(mask, (128, 128)), (height, width))
    for axis in (2, 3):
        weights = torch.arange(mask.shape[axis]).view([-1 if a == axis else 1 for a in range(4)])
        centre, expected = ((part * weights).sum() / part.sum() for part in (back, mask))
        assert abs(centre - expected) < 0.2


@quick
@given(SIDES, SIDES)
def test_padding_is_black_and_left_out_again(height: int, width: int) -> None:
    white = torch.ones(1, 1, height, width)
    top, left, new_height, new_width = letterbox_box(height, width, (48, 48))
    fitted = resize_image(white, (48, 48))
    assert int((fitted == 0).sum()) == 48 * 48 - new_height * new_width
    assert fitted[..., top : top + new_height, left : left + new_width].min() > 0.999
    assert restore_map(fitted, (height, width)).min() > 0.999


# --- masks ---------------------------------------------------------------------------------------------------------


@quick
@given(SIDES, SIDES, st.sampled_from(FITS), st.integers(0, 9))
def test_masks_stay_masks(height: int, width: int, fit: Fit, seed: int) -> None:
    mask = noise(2, 3, height, width, seed=seed).round()
    mask[0, 1] = torch.nan
    fitted = resize_mask(mask, (40, 56), fit)
    assert fitted.shape == (2, 3, 40, 56)
    assert fitted.dtype == mask.dtype
    assert torch.equal(fitted.isnan().all((2, 3)), mask.isnan().all((2, 3)))  # unknown planes, whole ones only
    assert torch.equal(fitted.isnan().any((2, 3)), mask.isnan().all((2, 3)))
    assert set(fitted[~fitted.isnan()].tolist()) <= {0.0, 1.0}


def test_a_pixel_is_set_where_half_of_it_was() -> None:
    for start, first in ((28, 7), (30, 7), (31, 8), (32, 8)):  # new column 7 covers the old ones 28 to 31
        right = torch.zeros(1, 1, 64, 64)
        right[..., start:] = 1
        assert torch.equal(resize_mask(right, (16, 16))[0, 0, 5], (torch.arange(16) >= first).float())


def test_unknown_planes_are_unknown_to_their_last_pixel() -> None:
    mask = torch.zeros(1, 3, 10, 40)
    mask[0, 1] = torch.nan
    mask[0, 2, 0, 0] = torch.nan
    fitted = resize_mask(mask, (32, 32))  # padding included
    assert torch.equal(fitted[0, 0], torch.zeros(32, 32))
    assert fitted[0, 1:].isnan().all()


# --- regions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "radius"), [(0.0, 0), (0.004, 0), (0.02, 2), (0.1, 10), (0.5, 50)])
def test_dilation_against_scipy(fraction: float, radius: int) -> None:
    mask = (noise(1, 1, 60, 100) > 0.998).float()
    assert 0 < mask.sum() < 30
    brush = np.ones((2 * radius + 1, 2 * radius + 1), dtype=bool)
    expected = ndimage.binary_dilation(mask[0, 0].numpy().astype(bool), brush)
    assert np.array_equal(dilate(mask, fraction)[0, 0].numpy(), expected.astype(np.float32))


def test_dilation_of_nothing_and_everything() -> None:
    for mask in (torch.zeros(1, 1, 20, 30), torch.ones(1, 1, 20, 30)):
        assert torch.equal(dilate(mask, 0.2), mask)


@pytest.mark.parametrize("dilation", [0.0, 0.1])
def test_lungs_and_background_add_up_to_the_image(dilation: float) -> None:
    image, lungs = noise(2, 3, 40, 50), (noise(2, 1, 40, 50, seed=1) > 0.9).float()
    inside, outside = (apply_region(image, lungs, region, dilation) for region in ("lungs", "background"))
    assert torch.equal(inside + outside, image)
    assert torch.equal(inside * outside, torch.zeros_like(image))
    assert torch.equal(inside > 0, (dilate(lungs, dilation) > 0) & (image > 0))
    assert apply_region(image, lungs, "full", dilation) is image
    assert apply_region(image, None, "full") is image


def test_the_box_is_the_rectangle_around_the_lungs() -> None:
    image, lungs = torch.rand(2, 1, 20, 30), torch.zeros(2, 1, 20, 30)
    lungs[0, 0, 5, 8] = lungs[0, 0, 9, 4] = 1
    boxed = apply_region(image, lungs, "box")
    assert torch.equal(boxed[0, 0, 5:10, 4:9], image[0, 0, 5:10, 4:9])
    assert boxed[0].count_nonzero() == 25
    assert boxed[1].eq(0).all()
    assert torch.equal(apply_region(boxed, lungs, "box"), boxed)


@pytest.mark.parametrize("region", ["box", "lungs", "background"])
def test_a_region_needs_lungs(region: str) -> None:
    image = noise(2, 1, 8, 8)
    unknown = torch.stack([torch.ones(1, 8, 8), torch.full((1, 8, 8), torch.nan)])
    for lungs in (None, unknown):
        with pytest.raises(ConfigError, match=f'region="{region}" needs the lung mask of every image'):
            apply_region(image, lungs, region)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [255.0, 0.5, -1.0])
@pytest.mark.parametrize("region", ["box", "lungs", "background"])
def test_a_lung_mask_holds_0_and_1(region: str, factor: float) -> None:
    lungs = torch.zeros(1, 1, 8, 8)
    lungs[..., 2:5, 2:5] = factor
    with pytest.raises(ConfigError, match=r"lung mask.*0 and 1"):
        apply_region(noise(1, 1, 8, 8), lungs, region)  # type: ignore[arg-type]


# --- numbers -------------------------------------------------------------------------------------------------------


def test_normalize_repeats_grey_where_there_are_three_of_each() -> None:
    image, mean, std = noise(2, 1, 4, 5), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 4.0])
    normal = normalize(image, mean, std)
    assert normal.shape == (2, 3, 4, 5)
    for channel in range(3):
        torch.testing.assert_close(normal[:, channel], (image[:, 0] - mean[channel]) / std[channel])
    assert torch.equal(normalize(image, mean[:1], std[:1]), image - mean[0])


def test_gradients_flow_through_the_geometry() -> None:
    image = noise(1, 1, 30, 20).requires_grad_()
    restore_map(resize_image(image, (48, 48)), (30, 20)).sum().backward()
    assert image.grad is not None
    assert image.grad.min() > 0


def test_maps_elsewhere_than_in_memory_are_enlarged_where_they_lie() -> None:
    assert restore_map(torch.empty(1, 2, 8, 8, device="meta"), (20, 30)).shape == (1, 2, 20, 30)
    values = torch.rand(1, 1, 8, 8, requires_grad=True)
    enlarged = restore_map(values, (20, 20))
    assert enlarged.requires_grad
    torch.testing.assert_close(restore_map(values.detach(), (20, 20)), enlarged.detach())
