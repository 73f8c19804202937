"""Augmentation presets: image and masks move together, reproducibly.

A preset is a function that returns a list of albumentations transforms; register your own:

    @AUGMENTATIONS.register("mine")
    def mine() -> list[Any]:
        import albumentations as A

        return [A.Rotate(limit=20, p=1.0)]

Flips are left to presets that say so: the heart is left, and a mirrored chest is either rare (situs inversus) or an
error of handling that a model should notice. Our presets darken and flatten more than they brighten and sharpen,
because chest radiographs are bright: with equal limits, `strong` drove more than a fifth of the pixels into white in
9 % of the images. Gamma brightens without that.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from covidcxr.errors import ConfigError
from covidcxr.registry import AUGMENTATIONS

__all__ = ["Augment"]

Image: TypeAlias = UInt8[np.ndarray, "height width"] | Float32[np.ndarray, "height width"]
Masks: TypeAlias = UInt8[np.ndarray, "classes height width"] | Bool[np.ndarray, "classes height width"]


class Augment:
    """Changes an image at random, and its masks with it.

    Args:
        transforms: Name of a preset, or albumentations transforms.

    Raises:
        UnknownNameError: If there is no preset of that name.
        ConfigError: If the preset cannot be built, say because of an argument that a transform does not know.

    Example:
        ```python
        import numpy as np
        from covidcxr.transforms.augment import Augment

        augment = Augment("light")
        image, _ = augment(np.full((32, 32), 100, np.uint8), seed=0)
        assert (image == augment(np.full((32, 32), 100, np.uint8), seed=0)[0]).all()
        ```
    """

    def __init__(self, transforms: str | Sequence[Any]) -> None:
        alb = _albumentations()
        steps = _build(transforms) if isinstance(transforms, str) else list(transforms)
        try:
            # strict: a key that albumentations would pass through unchanged is an error.
            self._compose = alb.Compose(steps, strict=True, seed=0)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"augment must be a preset's name or albumentations transforms: {error}") from error

    def __call__(self, image: Image, masks: Masks | None = None, *, seed: int) -> tuple[Image, Masks | None]:
        """Change one image.

        Args:
            image: Grey, [H, W]; uint8, or float32 in [0, 1] (which comes back in steps of 1 / 255).
            masks: [C, H, W], or None.
            seed: The same seed makes the same change, in any process.

        Returns:
            Image and masks, of the kinds that were given.

        Raises:
            ConfigError: If a float image leaves [0, 1]: brightness and contrast would clip it to a constant.
        """
        if image.dtype != np.uint8:
            grey, moved = self(_to_uint8(image), masks, seed=seed)
            return grey.astype(np.float32) / np.float32(255), moved
        # Seeded at each call, else every worker process makes the same changes in every epoch. Not by set_random_seed:
        # that gives each transform a generator of its own with one seed, and all of them would draw the same numbers.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if masks is None or len(masks) == 0:
            return self._compose(image=image)["image"], masks
        result = self._compose(image=image, masks=masks.astype(np.uint8))  # OpenCV knows no bool
        return result["image"], np.asarray(result["masks"]).astype(masks.dtype)


def _to_uint8(image: Float32[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    # There is one way for both: transforms treat float images otherwise (CLAHE by up to 55 grey levels).
    if not (image.min() >= 0 and image.max() <= 1):
        raise ConfigError(
            f"A float image must lie in [0, 1] to be augmented, not in [{image.min():g}, {image.max():g}]. "
            f"Divide by its largest possible value, or give uint8."
        )
    grey: np.ndarray[Any, np.dtype[np.uint8]] = np.rint(image * 255).astype(np.uint8)
    return grey


def _build(name: str) -> list[Any]:
    preset = AUGMENTATIONS.get(name)
    try:
        with warnings.catch_warnings():
            # albumentations only warns of an argument that it does not know, and goes on with its default.
            warnings.filterwarnings("error", message=r"Argument\(s\)", category=UserWarning)
            return list(preset())
    except (TypeError, ValueError, UserWarning) as error:
        raise ConfigError(f"The augmentation preset {name!r} cannot be built: {error}") from error


def _albumentations() -> Any:
    # albumentations looks for a newer release when it is imported, and warns when that fails.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


@AUGMENTATIONS.register("none")
def none() -> list[Any]:
    """Leave the image alone."""
    return []


@AUGMENTATIONS.register("light")
def light() -> list[Any]:
    """Turn, shift and brighten as little as two exposures of one patient differ."""
    alb = _albumentations()
    return [
        alb.Affine(rotate=(-5, 5), scale=(0.95, 1.05), translate_percent=(-0.03, 0.03), p=0.8),
        alb.RandomBrightnessContrast(brightness_limit=(-0.1, 0.05), contrast_limit=(-0.1, 0.05), p=0.5),
    ]


@AUGMENTATIONS.register("default")
def default() -> list[Any]:
    """Vary position, exposure and grain as between hospitals; anatomy stays as it is."""
    alb = _albumentations()
    return [
        alb.Affine(rotate=(-10, 10), scale=(0.9, 1.1), translate_percent=(-0.05, 0.05), p=0.9),
        alb.RandomBrightnessContrast(brightness_limit=(-0.15, 0.06), contrast_limit=(-0.2, 0.1), p=0.7),
        alb.RandomGamma(gamma_limit=(75, 130), p=0.4),
        alb.GaussNoise(std_range=(0.005, 0.02), p=0.2),
    ]


@AUGMENTATIONS.register("strong")
def strong() -> list[Any]:
    """Vary all that `default` does, further, and bend, blur, equalise and cover parts; never invert."""
    alb = _albumentations()
    return [
        alb.Affine(rotate=(-15, 15), scale=(0.8, 1.2), shear=(-5, 5), translate_percent=(-0.08, 0.08), p=0.9),
        # The approximate field costs half of the exact one and looks the same.
        alb.ElasticTransform(alpha=40, sigma=7, approximate=True, same_dxdy=True, p=0.3),
        alb.RandomBrightnessContrast(brightness_limit=(-0.25, 0.08), contrast_limit=(-0.3, 0.12), p=0.8),
        alb.RandomGamma(gamma_limit=(70, 140), p=0.5),
        alb.CLAHE(clip_limit=(1, 3), p=0.2),
        alb.GaussianBlur(blur_limit=(3, 5), p=0.2),
        alb.GaussNoise(std_range=(0.01, 0.04), p=0.3),
        alb.CoarseDropout(num_holes_range=(1, 4), hole_height_range=(0.05, 0.15), hole_width_range=(0.05, 0.15), p=0.3),
    ]


@AUGMENTATIONS.register("loan2022")
def loan2022() -> list[Any]:
    """Augment as Loan 2022 (lung segmentation on COVID-QU-Ex): flip, elastic, rotation, brightness and contrast."""
    alb = _albumentations()
    return [
        alb.HorizontalFlip(p=0.5),
        alb.ElasticTransform(alpha=50, sigma=7, p=0.3),
        alb.Rotate(limit=15, p=0.5),
        alb.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
    ]


@AUGMENTATIONS.register("covidcnn2021")
def covidcnn2021() -> list[Any]:
    """Augment as the small CNN of 2021: Keras' generator with its ranges.

    Rotation 5 degrees, shear 0.2 (Keras reads it as degrees: next to nothing), zoom 0.3 for each axis by itself,
    horizontal flip, brightness times 0.2 to 1.0, borders filled with the nearest pixel.
    """
    import cv2

    alb = _albumentations()
    return [
        alb.Affine(
            rotate=(-5, 5),
            shear={"x": (-0.2, 0.2), "y": (0.0, 0.0)},
            scale={"x": (0.7, 1.3), "y": (0.7, 1.3)},
            keep_ratio=False,
            border_mode=cv2.BORDER_REPLICATE,
            p=1.0,
        ),
        alb.HorizontalFlip(p=0.5),
        alb.MultiplicativeNoise(multiplier=(0.2, 1.0), per_channel=False, elementwise=False, p=1.0),
    ]


@AUGMENTATIONS.register("strong_flip")
def strong_flip() -> list[Any]:
    """Vary all that `strong` does, and mirror half of the images: for lung masks, which look alike on both sides."""
    alb = _albumentations()
    return [alb.HorizontalFlip(p=0.5), *strong()]


@AUGMENTATIONS.register("default_flip")
def default_flip() -> list[Any]:
    """Vary all that `default` does, and mirror half of the images: for what must not hang on a side."""
    alb = _albumentations()
    return [alb.HorizontalFlip(p=0.5), *default()]
