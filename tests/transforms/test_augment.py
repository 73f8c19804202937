"""Augmentation: image and masks together, reproducible, never out of range."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.registry import AUGMENTATIONS
from covidcxr.transforms.augment import Augment

PRESETS = AUGMENTATIONS.names()
GEOMETRY = ("covidcnn2021", "default", "light", "loan2022", "strong")


def blob(size: tuple[int, int] = (96, 80)) -> np.ndarray:
    """A soft ellipse that no flip maps onto itself, uint8."""
    y, x = np.mgrid[: size[0], : size[1]]
    distance = ((y - 40) / 26) ** 2 + ((x - 32) / 15) ** 2
    return np.clip(255 * (1.5 - distance), 0, 255).astype(np.uint8)


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return 2 * (one & two).sum() / (one.sum() + two.sum())


def test_the_presets_are_registered():
    assert set(PRESETS) >= {"none", "light", "default", "strong", "loan2022", "covidcnn2021"}


@pytest.mark.parametrize("name", PRESETS)
def test_kinds_and_ranges_stay(name):
    augment = Augment(name)
    image, masks = blob(), np.stack([blob() > 128, blob() > 20])
    for seed in range(20):
        for given in (image, image.astype(np.float32) / 255):
            for planes in (masks, masks.astype(np.uint8), None):
                changed, moved = augment(given, planes, seed=seed)
                assert (changed.dtype, changed.shape) == (given.dtype, given.shape)
                assert 0 <= changed.min() <= changed.max() <= (255 if given.dtype == np.uint8 else 1)
                if planes is not None:
                    assert (moved.dtype, moved.shape) == (planes.dtype, planes.shape)
                    assert set(np.unique(moved)) <= {0, 1}


@pytest.mark.parametrize("name", GEOMETRY)
def test_image_and_masks_move_together(name):
    # The mask is the image above a threshold. Photometric steps move the threshold, so the best one is searched for.
    augment = Augment(name)
    image = blob()
    scores, moved_at_all = [], 0
    for seed in range(30):
        changed, moved = augment(image, (image > 127)[None], seed=seed)
        scores.append(max(dice(changed > threshold, moved[0]) for threshold in range(5, 250, 5)))
        moved_at_all += dice(moved[0], image > 127) < 0.95
    assert moved_at_all >= 3
    assert np.median(scores) > 0.95


@pytest.mark.parametrize("name", PRESETS)
def test_the_seed_decides(name):
    one, two = Augment(name), pickle.loads(pickle.dumps(Augment(name)))
    two(blob(), seed=99)  # what came before must not matter
    for seed in range(5):
        np.testing.assert_array_equal(one(blob(), seed=seed)[0], two(blob(), seed=seed)[0])
    if name != "none":
        assert len({one(blob(), seed=seed)[0].tobytes() for seed in range(20)}) > 12


@pytest.mark.parametrize("name", PRESETS)
def test_float_and_uint8_agree(name):
    augment = Augment(name)
    for seed in range(20):
        grey, _ = augment(blob(), seed=seed)
        real, _ = augment(blob().astype(np.float32) / 255, seed=seed)
        assert np.abs(grey - 255 * real).max() < 2


@pytest.mark.parametrize("name", ["light", "default", "strong"])
def test_our_presets_neither_flip_nor_invert(name):
    augment, image = Augment(name), blob()
    for seed in range(40):
        changed = augment(image, seed=seed)[0].astype(float)
        as_is, flipped = (np.corrcoef(changed.ravel(), other.ravel())[0, 1] for other in (image, image[:, ::-1]))
        assert as_is > max(0.4, flipped)


def test_no_image_becomes_a_constant():
    for name in PRESETS:
        augment = Augment(name)
        assert min(augment(blob().astype(np.float32) / 255, seed=seed)[0].std() for seed in range(40)) > 0.02


@pytest.mark.parametrize("image", [blob().astype(np.float32), blob().astype(np.float32) / 255 - 0.1])
def test_float_images_out_of_range_are_refused(image):
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        Augment("default")(image, seed=0)


def test_own_transforms():
    import albumentations as alb

    changed, _ = Augment([alb.HorizontalFlip(p=1)])(blob(), seed=0)
    np.testing.assert_array_equal(changed, blob()[:, ::-1])


def test_transforms_draw_independently_of_each_other():
    import albumentations as alb

    flips, image = Augment([alb.HorizontalFlip(p=0.5), alb.VerticalFlip(p=0.5)]), blob()
    outcomes = {"as it is": image, "sideways": image[:, ::-1], "upside down": image[::-1], "both": image[::-1, ::-1]}
    seen = Counter()
    for seed in range(400):
        changed = flips(image, seed=seed)[0]
        seen.update(name for name, outcome in outcomes.items() if np.array_equal(changed, outcome))
    assert seen.total() == 400
    assert all(60 < seen[name] < 140 for name in outcomes)  # 100 +- 4.6 standard errors


def test_wrong_names_and_arguments():
    import albumentations as alb

    with pytest.raises(UnknownNameError, match="'default'"):
        Augment("defualt")
    AUGMENTATIONS.register("test-misspelt")(lambda: [alb.Rotate(limits=3)])
    with pytest.raises(ConfigError, match="limits"):
        Augment("test-misspelt")
    del AUGMENTATIONS._entries["test-misspelt"]
    with pytest.raises(ConfigError, match="augment must be"):
        Augment([42])


def test_importing_the_room_loads_no_engine():
    code = (
        "import sys, covidcxr.augmentations; print([m for m in ('albumentations', 'cv2', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
