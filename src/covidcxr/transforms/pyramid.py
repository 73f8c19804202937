"""Images of 8 bits on their way to the size of networks, and masks on their way back: once, fast, and without torch.

Also how a picture lies, upright or turned: what a pipeline needs without torch, too.

The data set and the pipeline both read images by `ImagePyramid`, so that a network sees in use what it saw in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from covidcxr.config import PreprocessConfig
from covidcxr.errors import ConfigError
from covidcxr.types import LUNGS_OF_REGION, Fit, Region

__all__ = [
    "ImagePyramid",
    "Pixels",
    "ResizedImages",
    "fit_images",
    "fit_mask",
    "letterbox_box",
    "lungs_of",
    "restore_mask",
    "CHILD",
    "NOT_A_FRONTAL_IMAGE",
    "ORIENTATIONS",
    "UPRIGHT",
    "Orientation",
]

Pixels: TypeAlias = UInt8[np.ndarray, "_ _"] | Float[np.ndarray, "_ _"]
"""A grey image: 8 bits, or floats in [0, 1] where the file has more."""

ResizedImages: TypeAlias = dict[tuple[tuple[int, int], Fit], Float[np.ndarray, "batch 1 height width"]]
"""The same images by the size and fit to which they were brought: models that want one size share them."""

_MANY_PIXELS = 8_000_000
"""Masks of larger images are enlarged in 8 bits instead of 16, where memory costs more than the numbers do."""


class ImagePyramid:
    """An image and its halves, by which it comes to the size of networks: it is shrunk once for all of them.

    Each half holds the means of 2 x 2 pixels. An image that is at least eight times as large as a network wants it is
    halved until it is four to eight times as large; the rest is the antialiased resizing of `resize_image`.

    Args:
        image: Grey, 8 bits or in [0, 1].

    Example:
        ```python
        import numpy as np

        from covidcxr.transforms.pyramid import ImagePyramid

        pyramid = ImagePyramid(np.full((400, 200), 51, np.uint8))
        assert pyramid.fit((32, 32)).shape == (32, 32) and pyramid.fit((32, 32))[16, 16] == np.float32(0.2)
        ```
    """

    def __init__(self, image: Pixels) -> None:
        self.image = image
        self._halves = [image]

    def fit(self, size: tuple[int, int], fit: Fit = "letterbox") -> Float[np.ndarray, "new_height new_width"]:
        """Bring the image to a network's size.

        Args:
            size: Height and width wanted.
            fit: As of `resize_image`.

        Returns:
            A new image in [0, 1].
        """
        rows, columns = self.image.shape
        top, left, height, width = letterbox_box(rows, columns, size) if fit == "letterbox" else (0, 0, *size)
        frame = np.zeros(size, np.float32)
        small = self._resized(height, width)
        white = 255 if self.image.dtype == np.uint8 else 1
        np.divide(small, white, out=frame[top : top + height, left : left + width], dtype=np.float32)
        return frame

    def _resized(self, height: int, width: int) -> Shaped[np.ndarray, "_ _"]:
        from PIL import Image

        if self.image.shape == (height, width):
            return self.image
        level = 0
        while min(self.image.shape[0] / height, self.image.shape[1] / width) >= 8 << level:
            level += 1
            if level == len(self._halves):
                self._halves.append(_halve(self._halves[-1]))
        whole = (0.0, 0.0, self.image.shape[1] / (1 << level), self.image.shape[0] / (1 << level))
        half = self._halves[level]
        # Pillow reads 8 bits where they lie, and turns them into floats in one pass; floats it would copy twice.
        picture = Image.fromarray(half if half.dtype == np.uint8 else half.astype(np.float32, copy=False))
        picture = picture if picture.mode == "F" else picture.convert("F")
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=whole))


def _halve(image: Pixels) -> Pixels:
    """Take the means of 2 x 2 pixels; of an odd side the last pixel counts twice."""
    import cv2

    height, width = image.shape
    if height % 2 or width % 2:
        image = cast(Pixels, cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
    size = (image.shape[1] // 2, image.shape[0] // 2)
    return cast(Pixels, cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def letterbox_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return where an image lies inside a letterboxed one.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        size: Height and width of the frame, in pixels.

    Returns:
        Top, left, height and width of the image inside the frame, in pixels; centred, aspect ratio kept.
    """
    scale = min(size[0] / height, size[1] / width)
    new_height = min(size[0], max(1, round(height * scale)))
    new_width = min(size[1], max(1, round(width * scale)))
    return (size[0] - new_height) // 2, (size[1] - new_width) // 2, new_height, new_width


def fit_mask(
    mask: Bool[np.ndarray, "_ _"], size: tuple[int, int], fit: Fit = "letterbox"
) -> Bool[np.ndarray, "new_height new_width"]:
    """Bring a mask to a network's size, as `resize_mask` does: set is what was set at least by half.

    Args:
        mask: True inside.
        size: Height and width wanted.
        fit: As for the image.

    Returns:
        The mask.
    """
    return ImagePyramid(np.negative(mask.view(np.uint8))).fit(size, fit) >= 0.5  # 1 becomes 255


def restore_mask(
    values: Float[np.ndarray, "height width"], threshold: float, size: tuple[int, int], fit: Fit = "letterbox"
) -> Bool[np.ndarray, "new_height new_width"]:
    """Cut a map at the network's size, and bring it back to the image's own: `restore_map` in whole numbers.

    Args:
        values: Probabilities at the network's size; NaN is in no mask.
        threshold: From which a pixel belongs to the mask, in [0, 1].
        size: Height and width of the image.
        fit: As for the image.

    Returns:
        The mask.
    """
    import cv2
    from PIL import Image

    if fit == "letterbox":
        top, left, height, width = letterbox_box(size[0], size[1], (values.shape[0], values.shape[1]))
        values = values[top : top + height, left : left + width]
    if values.shape == tuple(size):
        return values >= threshold
    if size[0] < values.shape[0] or size[1] < values.shape[1]:
        picture = Image.fromarray(np.ascontiguousarray(values, np.float32))  # NaN spreads, into no mask either
        return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)) >= threshold
    white, kind = (65535, np.uint16) if math.prod(size) <= _MANY_PIXELS else (255, np.uint8)
    first = min(int(white * threshold) + 1, white)  # the first grey inside; shifted, so that rounding moves no pixel
    shifted = np.nan_to_num(values) * np.float32(white) + np.float32(first - white * threshold)
    large = cv2.resize(shifted.clip(0, white).astype(kind), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.greater_equal(large, kind(first), out=large.view(np.bool_) if kind is np.uint8 else None))


def fit_images(
    settings: PreprocessConfig,
    images: Sequence[Pixels | ImagePyramid],
    masks: Sequence[Mapping[str, Bool[np.ndarray, "_ _"]]],
    resized: ResizedImages | None = None,
) -> tuple[Float[np.ndarray, "batch 1 height width"], Float[np.ndarray, "batch 1 height width"] | None]:
    """Bring images, and the lungs where a model needs them, to the model's size.

    Args:
        settings: The model's size, fit and region.
        images: Grey images [height, width], 8 bits or in [0, 1]. Models of several sizes share the halves of a pyramid.
        masks: Of each image, by mask class, at the image's size; may be empty where the region is "full".
        resized: These very images as earlier calls resized them; what is new is added.

    Returns:
        Images [batch, 1, *image_size] in [0, 1] and lungs, 0 or 1, of the same shape, or None.

    Raises:
        ConfigError: If the lungs of an image are needed and missing.
    """
    size, fit = settings.image_size, settings.fit
    resized = {} if resized is None else resized
    if (size, fit) not in resized:
        pyramids = (image if isinstance(image, ImagePyramid) else ImagePyramid(image) for image in images)
        resized[size, fit] = _as_batch([pyramid.fit(size, fit) for pyramid in pyramids])
    if settings.region == "full":
        return resized[size, fit], None
    return resized[size, fit], _as_batch([fit_mask(lungs_of(known, settings.region), size, fit) for known in masks])


def _as_batch(planes: Sequence[Shaped[np.ndarray, "_ _"]]) -> Float[np.ndarray, "batch 1 height width"]:
    return np.stack(planes)[:, None].astype(np.float32, copy=False)


def lungs_of(masks: Mapping[str, Bool[np.ndarray, "height width"]], region: Region) -> Bool[np.ndarray, "height width"]:
    """Return the lungs that a region means: the fields to look at, all of the lungs to take away.

    Args:
        masks: By mask class.
        region: How a model cuts the image; any but "full".

    Returns:
        The mask of the best class that is there.

    Raises:
        ConfigError: If there is no mask of lungs.
    """
    for name in LUNGS_OF_REGION[region]:
        if name in masks:
            return masks[name]
    raise ConfigError(
        f'region="{region}" needs the lung mask of every image ({" or ".join(LUNGS_OF_REGION[region])}): give it, or '
        f"let a Pipeline with a lung segmenter find it."
    )


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a picture lies. Mirroring is none of it: a mirrored chest looks like another chest.

    Attributes:
        turns: Quarter turns clockwise away from upright, 0 to 3.
        inverted: Whether bone is dark.

    Example:
        ```python
        import numpy as np
        from covidcxr.transforms.pyramid import ORIENTATIONS

        turned = ORIENTATIONS["turned-90"]
        image = np.random.default_rng(0).random((30, 20))
        assert turned.lay(image).shape == (20, 30)
        assert (turned.correct(turned.lay(image)) == image).all()
        ```
    """

    turns: int = 0
    inverted: bool = False

    @property
    def name(self) -> str:
        """The class of a view check: "frontal", "inverted", "turned-90", "inverted-turned-90" (degrees clockwise)."""
        words = ["inverted"] * self.inverted + [f"turned-{90 * self.turns}"] * bool(self.turns)
        return "-".join(words) or "frontal"

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong, each by itself: "inverted", "turned-90"; empty = upright."""
        return ("inverted",) * self.inverted + (f"turned-{90 * self.turns}",) * bool(self.turns)

    def lay(self, image: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Turn and invert an upright image so that it lies like this.

        Args:
            image: Grey, 8 bits or in [0, 1].

        Returns:
            The image as it lies.
        """
        return np.ascontiguousarray(self.turn(_invert(image) if self.inverted else image))

    def correct(self, image: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Make an image that lies like this upright again.

        Args:
            image: Grey, 8 bits or in [0, 1].

        Returns:
            The upright image.
        """
        return np.ascontiguousarray(self.turn_back(_invert(image) if self.inverted else image))

    def turn(self, plane: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Turn a mask or map of the upright image so that it fits the image as it lies.

        Args:
            plane: Any values; they stay as they are.

        Returns:
            The turned plane, a view.
        """
        return np.rot90(plane, -self.turns)

    def turn_back(self, plane: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Turn a plane that lies like this upright, its values left as they are.

        Args:
            plane: Any values.

        Returns:
            The turned plane, a view.
        """
        return np.rot90(plane, self.turns)

    def lay_masks(self, masks: dict[str, Bool[np.ndarray, "_ _"]]) -> dict[str, Bool[np.ndarray, "_ _"]]:
        """Turn masks of the upright image so that they fit the image as it lies.

        Args:
            masks: By mask class.

        Returns:
            The turned masks.
        """
        return {name: np.ascontiguousarray(self.turn(mask)) for name, mask in masks.items()}

    def correct_masks(self, masks: dict[str, Bool[np.ndarray, "_ _"]]) -> dict[str, Bool[np.ndarray, "_ _"]]:
        """Turn masks of the image as it lies so that they fit the upright image.

        Args:
            masks: By mask class.

        Returns:
            The turned masks.
        """
        return {name: np.ascontiguousarray(self.turn_back(mask)) for name, mask in masks.items()}


def _invert(image: Shaped[np.ndarray, "_ _"]) -> Shaped[np.ndarray, "_ _"]:
    return np.asarray((255 if image.dtype == np.uint8 else 1) - image)


UPRIGHT = Orientation()
"""The right way round."""

ORIENTATIONS: dict[str, Orientation] = {
    orientation.name: orientation
    for orientation in (Orientation(turns, inverted) for inverted in (False, True) for turns in range(4))
}
"""All eight by their names, "frontal" first."""

NOT_A_FRONTAL_IMAGE = "not-a-frontal-film"
"""The class of a view check for all else: photographs, CT slices, lateral images, other body parts, text, noise."""

CHILD = "child"
"""The class of a view check for frontal images of children, where the other models have learnt from adults only."""
