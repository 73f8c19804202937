"""Images on their way into a pipeline: how they are read and batched, and what is known of each so far."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from io import IOBase
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Bool

from covidcxr.errors import ConfigError, ImageReadError, did_you_mean
from covidcxr.io.image import file_content, image_size, read_pixels
from covidcxr.pipeline.prediction import FailedPrediction, Prediction, as_image, depth_reason
from covidcxr.pipeline.severity import InfectionInterval
from covidcxr.transforms.pyramid import UPRIGHT, ImagePyramid, Orientation, Pixels
from covidcxr.types import LUNG_CLASSES, ImageLike

if TYPE_CHECKING:
    from covidcxr.models import Classifier
    from covidcxr.pipeline.onnx import OnnxModel


__all__ = [
    "BATCH_IMAGES",
    "BATCH_PIXELS",
    "Case",
    "Masks",
    "check_counts",
    "check_masks",
    "coarse",
    "count_pixels",
    "hold_content",
    "merge_masks",
    "one_by_one",
    "read_case",
    "split_batches",
    "try_to_read",
]

BATCH_IMAGES = 16
"""Images of a batch where nobody says another number."""

BATCH_PIXELS = 32_000_000
"""Pixels of a batch, at most: at work a pixel takes some 10 bytes. A larger image makes a batch of its own."""

T = TypeVar("T")


def split_batches(items: Iterable[T], size: int, pixels: Callable[[T], int]) -> Iterator[list[T]]:
    """Split images into batches of at most `size` images and `BATCH_PIXELS` pixels.

    Where a batch ends depends on itself alone, so that images which begin with a batch are split as before.

    Args:
        items: The images, or what names them; taken a batch at a time, and one more where pixels end a batch.
        size: Images of a batch, from 1 up.
        pixels: Returns the number of pixels of an item.

    Yields:
        The items of a batch, at least one.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        count = pixels(item)
        if batch and total + count > BATCH_PIXELS:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += count
        if len(batch) == size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def check_counts(batch_size: object, num_workers: object) -> tuple[int, int]:
    """Raise an error for a batch size or a number of threads that is out of range.

    Args:
        batch_size: Images a batch, from 1 up; NumPy's whole numbers are such too.
        num_workers: Threads that read images, from 0 up.

    Returns:
        Both.

    Raises:
        ConfigError: If one is no whole number, or too small.
    """
    counts: tuple[tuple[Any, int], ...] = (batch_size, 1), (num_workers, 0)
    for count, least in counts:
        if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < least:
            raise ConfigError(
                f"batch_size must be 1 or more and num_workers 0 or more, not {batch_size} and {num_workers}."
            )
    return int(batch_size), int(num_workers)  # type: ignore[call-overload]


def count_pixels(image: object) -> int:
    """Return how many pixels an image has, from a file's header alone.

    Args:
        image: Whatever `read_image` reads.

    Returns:
        Height times width; 0 for what cannot be read, as reading it will say.
    """
    if isinstance(image, bytearray):
        image = bytes(image)
    elif isinstance(image, IOBase) and image.seekable():
        file, place = image, image.tell()
        image = file.read()
        file.seek(place)
    if isinstance(image, str | os.PathLike | bytes):
        try:
            return math.prod(image_size(image))
        except ImageReadError:
            return 0
    size = getattr(image, "shape", None) or getattr(image, "size", None)  # of arrays and tensors, of PIL images
    if not isinstance(size, tuple):
        size = getattr(image, "Rows", 0), getattr(image, "Columns", 0)  # of DICOM data sets
    return math.prod(size)


Masks: TypeAlias = dict[str, Bool[np.ndarray, "height width"]]


@dataclass(slots=True)
class Case:
    """One image on its way through the models.

    Attributes:
        image_id: The image's path or number, as given.
        image: Grey, as it was read.
        upright: The same upright, whatever the view check corrected, for networks of any size.
        orientation: How the image lies.
        masks: What is known of its masks, by mask class; upright.
        reasons: Why there is no label.
        probabilities: By class name, in [0, 1].
        label: The one plausible class.

    Example:
        ```python
        from covidcxr.pipeline.cases import read_case

        case = read_case("image.png")
        assert case.image.ndim == 2 and not case.reasons
        ```
    """

    image_id: str
    image: Pixels
    upright: ImagePyramid = field(init=False)
    orientation: Orientation = UPRIGHT
    masks: Masks = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    probabilities: dict[str, float] = field(default_factory=dict)
    label: str | None = None

    def __post_init__(self) -> None:
        self.upright = ImagePyramid(self.image)

    def turn_upright(self, orientation: Orientation) -> None:
        """Correct how the image lies.

        Args:
            orientation: How it lies.
        """
        self.orientation = orientation
        if orientation != UPRIGHT:
            self.upright = ImagePyramid(orientation.correct(self.image))

    def to_prediction(
        self, classifier: Classifier | OnnxModel | None, interval: InfectionInterval | None
    ) -> Prediction:
        """Return the result, with masks that lie as the image was given.

        Args:
            classifier: The model behind the label.
            interval: Of the infected fraction; None = there is none.

        Returns:
            The prediction.
        """
        prediction = Prediction(
            self.image_id,
            None if self.reasons else self.label,
            self.probabilities,
            self.reasons + depth_reason(self.image) if self.reasons else (),
            self.orientation.lay_masks(self.masks),
            as_image(self.image),
            classifier,
            self.orientation,
        )
        fraction = prediction.infected_fraction
        if interval is None or fraction is None:
            return prediction
        return replace(prediction, infected_interval=interval.of(fraction))


def _image_id(image: ImageLike, number: int) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"film-{number}"


def read_case(image: ImageLike, number: int = 0, bits: int | None = None) -> Case:
    """Read an image.

    Args:
        image: Whatever `read_image` reads.
        number: Its number among the images, for the id of one without a path.
        bits: Bits of its numbers where their type does not tell; see `read_image`.

    Returns:
        The image, of which nothing is known yet.

    Raises:
        ImageReadError: If it cannot be read.
    """
    return Case(_image_id(image, number), read_pixels(image, bits=bits))


def hold_content(image: ImageLike) -> ImageLike:
    """Read an open file or upload into memory, once, since some can be read once only.

    Args:
        image: Whatever `read_image` reads.

    Returns:
        Its content; anything else as it is, also what cannot be read, as `try_to_read` will say.
    """
    try:
        held: ImageLike = file_content(image)
    except ImageReadError:
        return image
    return held


def try_to_read(numbered: tuple[int, ImageLike], bits: int | None = None) -> Case | FailedPrediction:
    """Read a numbered image.

    Args:
        numbered: The number and the image.
        bits: Bits of its numbers where their type does not tell; see `read_image`.

    Returns:
        The image, or why it cannot be read.
    """
    number, image = numbered
    try:
        return read_case(image, number, bits)
    except ImageReadError as error:
        return FailedPrediction(_image_id(image, number), error)


def one_by_one(
    batches: Iterator[list[Prediction | FailedPrediction]], *, stop: bool
) -> Iterator[Prediction | FailedPrediction]:
    """Yield the results of batches and let each go, so that no batch is held while the next one is read.

    Args:
        batches: The results, a batch at a time; emptied.
        stop: Whether an image that cannot be read raises its error.

    Yields:
        The results.

    Raises:
        ImageReadError: If an image cannot be read, and `stop` is true.
    """
    for batch in batches:
        results = deque(batch)
        batch.clear()
        while results:
            if stop and isinstance(results[0], FailedPrediction):
                raise results[0].error
            yield results.popleft()


def check_masks(
    masks: Mapping[str, Bool[np.ndarray, "height width"]], known: Sequence[str], size: tuple[int, ...]
) -> None:
    """Raise an error for masks that somebody corrected, and that do not fit.

    Args:
        masks: By mask class.
        known: The mask classes of the pipeline.
        size: Height and width of the image.

    Raises:
        ConfigError: If the pipeline predicts no such mask, or one is of another size or holds no area.
    """
    for name, mask in masks.items():
        if name not in known:
            raise ConfigError(f"This pipeline draws no mask {name!r}. {did_you_mean(name, known)}")
        if mask.dtype != bool or mask.shape != size or not (mask.any() or name not in LUNG_CLASSES):
            raise ConfigError(
                f"The mask {name!r} must be true and false, of the image's size {size} and not empty; "
                f"it is {mask.dtype} {mask.shape}."
            )


def merge_masks(predicted: Masks, known: Masks) -> Masks:
    """Add new masks to known ones; a new "infection" is cut to the known lungs.

    Args:
        predicted: New masks, by mask class.
        known: Those that are there, which stay as they are.

    Returns:
        Both.
    """
    merged = predicted | known
    lungs = [known[name] for name in LUNG_CLASSES if name in known]
    if lungs and "infection" in predicted and "infection" not in known:
        merged["infection"] = predicted["infection"] & reduce(np.logical_or, lungs)
    return merged


def coarse(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Return every n-th pixel: the shape of lungs is judged by fractions, and some 200 pixels show it as well.

    Args:
        mask: At the image's size.

    Returns:
        The mask at 200 to 400 pixels.
    """
    step = max(1, max(mask.shape) // 200)
    return mask[::step, ::step]
