"""Mask clean-up: each step by itself, the contract of all, and what is (and is not) a lung mask."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import covidcxr.transforms.postprocess as preprocess_module
from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.phantom import draw_phantom
from covidcxr.registry import POSTPROCESS_STEPS
from covidcxr.transforms.postprocess import (
    DEFAULT_LUNG_STEPS,
    REASONS,
    PostProcess,
    close_mask,
    explain_reason,
    fill_holes,
    largest_components,
    lung_reasons,
    lung_sides,
    open_mask,
    remove_small_holes,
    remove_small_objects,
    split_fused,
)


def blank(height: int = 100, width: int = 120) -> np.ndarray:
    return np.zeros((height, width), bool)


def two_lungs() -> np.ndarray:
    """Two ellipses side by side; the one on the image's right is smaller."""
    rows, columns = np.indices((100, 120))
    left = ((columns - 32) / 20) ** 2 + ((rows - 50) / 40) ** 2 <= 1
    right = ((columns - 88) / 17) ** 2 + ((rows - 50) / 38) ** 2 <= 1
    return left | right


def fused_lungs(half_width: int = 3) -> np.ndarray:
    mask = two_lungs()
    mask[40 - half_width : 40 + half_width, 40:85] = True
    return mask


def with_hole(mask: np.ndarray, pixels: int = 15) -> np.ndarray:
    """Cut a hole of 3 x pixels/3 into the larger lung."""
    holed = mask.copy()
    holed[50 : 50 + pixels // 3, 30:33] = False
    assert mask.sum() - holed.sum() == pixels
    return holed


def count_parts(mask: np.ndarray) -> int:
    return int(ndimage.label(mask, np.ones((3, 3)))[1])


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


def random_mask(seed: int, grain: float, share: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((48, 40)), grain)
    return noise > np.quantile(noise, 1 - share)


random_masks = st.builds(
    random_mask, st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 2.0, 4.0]), st.floats(0.05, 0.95)
)

# --- steps


def test_a_hole_of_15_pixels_costs_no_lung() -> None:
    lungs = two_lungs()
    cleaned = PostProcess()(with_hole(lungs, 15))
    assert np.array_equal(cleaned, lungs)
    for pixels in (12, 18):
        assert np.array_equal(largest_components(with_hole(lungs, pixels)), with_hole(lungs, pixels))


def test_default_chain_removes_specks_and_fills_holes() -> None:
    lungs = two_lungs()
    dirty = with_hole(lungs)
    dirty[3:6, 3:6] = True
    dirty[95:98, 60] = True
    assert np.array_equal(PostProcess()(dirty), lungs)


def test_default_chain_leaves_what_lungs_enclose_together() -> None:
    ring = fused_lungs()
    ring[80:86, 32:88] = True
    assert not PostProcess()(ring)[60, 60]
    assert fill_holes(ring)[60, 60]


@given(random_masks)
@settings(max_examples=60, deadline=None)
def test_default_chain_is_idempotent(mask: np.ndarray) -> None:
    once = PostProcess()(mask)
    assert np.array_equal(PostProcess()(once), once)


@given(random_masks, st.booleans())
@settings(max_examples=60, deadline=None)
def test_fill_holes_agrees_with_scipy(mask: np.ndarray, upside_down: bool) -> None:
    mask = mask[::-1] if upside_down else mask  # a view with negative strides, too
    assert np.array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_fill_holes_up_to_an_area() -> None:
    mask = np.ones((100, 100), bool)
    mask[20:30, 20:30] = mask[50:70, 50:70] = mask[0:5, 0:5] = False
    filled = fill_holes(mask, max_area=0.01)
    assert filled[25, 25]
    assert not filled[60, 60]
    assert not filled[2, 2], "what touches the border is no hole"
    assert np.array_equal(filled, remove_small_holes(mask, max_area=0.01))
    assert not remove_small_holes(mask)[25, 25]


@given(random_masks, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_largest_components_agree_with_scipy(mask: np.ndarray, count: int) -> None:
    kept = largest_components(mask, count=count, min_share=0.0)
    parts, number = ndimage.label(mask, np.ones((3, 3)))
    areas = np.sort(np.bincount(parts.ravel())[1:])[::-1]
    assert count_parts(kept) == min(count, number)
    assert kept.sum() == areas[:count].sum()
    assert not (kept & ~mask).any()


def test_what_is_much_smaller_than_the_larger_lung_is_no_lung() -> None:
    mask = two_lungs()
    mask[:, 60:] = False
    mask[10:17, 100:110] = True
    assert mask[10:17, 100:110].sum() < 0.05 * mask[:, :60].sum()
    assert not largest_components(mask)[:, 60:].any()
    assert largest_components(mask, min_share=0.01)[:, 60:].any()


def test_small_objects_go() -> None:
    mask = two_lungs()
    mask[2:5, 2:5] = True
    assert remove_small_objects(mask, min_area=9 / mask.size)[3, 3]
    assert np.array_equal(remove_small_objects(mask, min_area=10 / mask.size), two_lungs())


def test_open_cuts_bridges_and_close_fills_clefts() -> None:
    assert count_parts(fused_lungs()) == 1
    assert count_parts(open_mask(fused_lungs(), radius=0.04)) == 2
    cleft = two_lungs()
    cleft[50:53, :34] = False
    closed = close_mask(cleft, radius=0.03)
    assert closed[51, 20:34].all()
    assert np.array_equal(open_mask(cleft, radius=0.0), cleft)


@pytest.mark.parametrize("half_width", [1, 3, 6])
def test_fused_lungs_are_cut_at_the_bridge(half_width: int) -> None:
    fused = fused_lungs(half_width)
    cut = split_fused(fused)
    left, right = lung_sides(fused)
    assert count_parts(fused) == 1
    assert count_parts(cut) == 2
    assert 0 < (fused & ~cut).sum() <= 4 * half_width + 4
    assert not (fused & ~cut)[two_lungs()].any(), "only the bridge is cut"
    assert (left & two_lungs()).sum() / two_lungs()[:, :60].sum() > 0.98
    assert (right & two_lungs()).sum() / two_lungs()[:, 60:].sum() > 0.98


def test_split_leaves_what_is_not_two_lungs() -> None:
    rows, columns = np.indices((100, 120))
    disc = (columns - 60) ** 2 + (rows - 50) ** 2 < 900
    stacked = fused_lungs().T
    one_lung_with_spur = two_lungs()
    one_lung_with_spur[:, 60:] = False
    one_lung_with_spur[48:52, 40:70] = True
    for mask in (disc, stacked, one_lung_with_spur, two_lungs(), blank(), ~blank()):
        assert np.array_equal(split_fused(mask), mask)


def test_steps_mean_the_same_at_every_size() -> None:
    dirty = with_hole(two_lungs())
    dirty[3:6, 3:6] = True
    large = np.kron(dirty, np.ones((4, 4), bool))
    for name in POSTPROCESS_STEPS:
        step = POSTPROCESS_STEPS.get(name)
        assert dice(step(large), np.kron(step(dirty), np.ones((4, 4), bool))) > 0.98, name


# --- the contract of every registered step


@pytest.mark.parametrize("name", list(POSTPROCESS_STEPS))
def test_every_step_keeps_the_contract(name: str) -> None:
    step = POSTPROCESS_STEPS.get(name)
    masks = [two_lungs(), fused_lungs(), with_hole(two_lungs()), random_mask(1, 1.0, 0.5), two_lungs()[:, ::-1]]
    for mask in (*masks, blank(1, 1), ~blank(1, 1), blank(3, 300), two_lungs().T):
        before = mask.copy()
        cleaned = step(mask)
        assert cleaned.shape == mask.shape
        assert cleaned.dtype == bool
        assert np.array_equal(mask, before), "the mask given stays as it is"
    assert not step(blank()).any()
    assert step(~blank()).all()


def test_all_steps_of_the_catalogue_are_registered() -> None:
    steps = {"fill_holes", "largest_components", "remove_small_objects", "remove_small_holes", "open", "close"}
    assert steps | {"split_fused"} <= set(POSTPROCESS_STEPS)
    assert all(hasattr(preprocess_module, name) for name in preprocess_module.__all__)


# --- the chain


def test_chain_runs_in_order() -> None:
    mask = blank()
    mask[10:90, 10:30] = mask[10:90, 40:60] = mask[10:90, 70:90] = True
    mask[20:25, 15:20] = False
    once = PostProcess([{"name": "largest_components", "count": 1}, "fill_holes"])(mask)
    assert np.array_equal(once, PostProcess([{"name": "largest_components", "count": 1}])(mask))
    assert PostProcess(["fill_holes", {"name": "largest_components", "count": 1}])(mask)[22, 17]
    assert np.array_equal(PostProcess([])(mask), mask)


def test_config_survives_json() -> None:
    config = ["fill_holes", {"name": "largest_components", "count": 3}, {"name": "open", "radius": 0.02}]
    chain = PostProcess(config)
    again = PostProcess.from_config(json.loads(json.dumps(chain.to_config())))
    assert again.to_config() == config
    assert again == chain
    assert hash(again) == hash(chain)
    assert again != PostProcess()
    assert str(config) in repr(chain)
    assert PostProcess().to_config() == list(DEFAULT_LUNG_STEPS)


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        (["fil_holes"], UnknownNameError, "fil_holes.*fill_holes"),
        ([{"name": "largest_components", "cuont": 2}], ConfigError, "cuont.*largest_components.*'count'"),
        ([{"name": "largest_components", "count": 0}], ConfigError, "largest_components.*count"),
        ([{"name": "largest_components", "count": True}], ConfigError, "count"),
        ([{"name": "largest_components", "min_share": 2}], ConfigError, "min_share"),
        ([{"name": "fill_holes", "max_area": "big"}], ConfigError, "fill_holes.*max_area"),
        ([{"name": "remove_small_objects", "min_area": -1}], ConfigError, "min_area"),
        ([{"name": "open", "radius": float("nan")}], ConfigError, "radius"),
        ([{"name": "split_fused", "max_width": 1.2}], ConfigError, "max_width"),
        (["fill_holes", {"count": 2}], ConfigError, "step 2.*name"),
        ([3], ConfigError, "step 1"),
        ("fill_holes", ConfigError, "list"),
        ({"name": "fill_holes"}, ConfigError, "list"),
    ],
)
def test_wrong_chains_say_what_is_wrong(steps: object, error: type[ConfigError], words: str) -> None:
    with pytest.raises(error, match=words):
        PostProcess(steps)  # type: ignore[arg-type]


@pytest.fixture
def third_party_step() -> Iterator[str]:
    @POSTPROCESS_STEPS.register("keep_below")
    def keep_below(mask: np.ndarray, *, row: int) -> np.ndarray:
        return np.asarray(mask & (np.arange(len(mask)) >= row)[:, None])

    yield "keep_below"
    del POSTPROCESS_STEPS._entries["keep_below"]


def test_other_packages_add_steps(third_party_step: str) -> None:
    chain = PostProcess([{"name": third_party_step, "row": 50}])
    assert np.array_equal(chain(two_lungs())[50:], two_lungs()[50:])
    assert not chain(two_lungs())[:50].any()
    with pytest.raises(ConfigError, match="row"):
        PostProcess([third_party_step])


# --- plausibility


def test_plausible_lungs_have_no_reason_against_them() -> None:
    assert lung_reasons(two_lungs()) == ()
    assert lung_reasons(fused_lungs()) == (), "lungs that touch are two lungs"


def test_nothing_found() -> None:
    speck = blank()
    speck[50:55, 50:55] = True
    assert lung_reasons(blank()) == lung_reasons(speck) == ("lungs-not-found",)
    assert lung_reasons(blank(), min_area=0.0) == ("lungs-not-found",)


def test_small_lungs() -> None:
    framed = np.pad(two_lungs(), 70)
    assert 0.02 < framed.mean() < 0.15
    assert lung_reasons(framed) == ("lung-area-below-15-percent",)
    assert lung_reasons(framed, min_area=0.05) == ()
    assert lung_reasons(two_lungs(), min_area=0.5) == ("lung-area-below-50-percent",)
    assert lung_reasons(two_lungs(), min_area=0.425) == ("lung-area-below-42.5-percent",)


def test_one_lung() -> None:
    mask = two_lungs()
    mask[:, 60:] = False
    assert lung_reasons(mask) == ("only-one-lung-found",)
    mask[2:6, 100:104] = True
    assert lung_reasons(mask) == ("only-one-lung-found",), "a speck is no lung"


def test_rotated_image() -> None:
    assert lung_reasons(two_lungs().T) == ("lungs-not-side-by-side",)
    small = np.pad(two_lungs().T, 60)
    assert lung_reasons(small) == ("lung-area-below-15-percent", "lungs-not-side-by-side")


def test_every_reason_has_its_words() -> None:
    for mask in (blank(), np.pad(two_lungs().T, 60), two_lungs() & (np.arange(120) < 60)):
        for reason in lung_reasons(mask):
            assert explain_reason(reason) == REASONS[reason]
    assert "less than 42.5 %" in explain_reason("lung-area-below-42.5-percent")
    assert explain_reason("not-a-frontal-film") == "not-a-frontal-film"
    with pytest.raises(ConfigError, match="min_area"):
        lung_reasons(blank(), min_area=15)


def test_sides_are_those_of_the_image() -> None:
    left, right = lung_sides(two_lungs())
    assert left[50, 32]
    assert right[50, 88]
    assert not (left & right).any()
    assert np.array_equal(left | right, two_lungs())
    alone = two_lungs() & (np.arange(120) > 60)
    left, right = lung_sides(alone)
    assert not left.any()
    assert np.array_equal(right, alone)
    assert np.array_equal(lung_sides(alone[:, ::-1])[0], alone[:, ::-1])
    assert not np.any(lung_sides(blank()))


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_phantoms_pass(view: str) -> None:
    phantom = draw_phantom(3, view=view, size=(128, 128))  # type: ignore[arg-type]
    for mask in (phantom.lung_field, phantom.lung):
        assert lung_reasons(PostProcess()(mask)) == ()
        assert lung_reasons(np.rot90(mask)) == ("lungs-not-side-by-side",)


# --- real masks


def read_real_masks(folder: Path) -> list[np.ndarray]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        paths = [folder / row["lung_mask"] for row in csv.DictReader(file) if row["lung_mask"]]
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127 for path in paths]


@pytest.mark.real
def test_real_masks_are_hardly_ever_refused(real_data: Path) -> None:
    masks = read_real_masks(real_data)
    cleaned = [PostProcess()(mask) for mask in masks]
    reasons = [lung_reasons(mask) for mask in cleaned]
    assert len(masks) > 400
    assert sum(why not in ((), ("lung-area-below-15-percent",)) for why in reasons) <= 0.01 * len(masks)
    assert sum("lung-area-below-15-percent" in why for why in reasons) <= 0.03 * len(masks)
    assert all(dice(one, mask) > 0.999 for one, mask in zip(cleaned, masks, strict=True))


@pytest.mark.real
def test_clean_up_only_helps_real_masks(real_data: Path) -> None:
    rng = np.random.default_rng(0)
    gains = []
    for truth in read_real_masks(real_data)[::9]:
        dirty = truth.copy()
        for size, value in [(4, False)] * 6 + [(10, False)] * 2 + [(6, True)] * 8:
            row, column = (int(rng.integers(0, side - size)) for side in truth.shape)
            dirty[row : row + size, column : column + size] = value
        gains.append(dice(PostProcess()(dirty), truth) - dice(dirty, truth))
    assert min(gains) >= 0
    assert np.mean(gains) > 0.002
