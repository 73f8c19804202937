"""Preprocessing of images as named steps, inside the model.

    preprocess = Preprocess(["normalize", {"name": "median", "size": 3}])
    image = preprocess(image)

A model's config holds the steps as plain data (`PreprocessConfig.steps`). Another package adds its own with
`@PREPROCESS_STEPS.register("name")` on a function from images [batch, 1, height, width] in [0, 1] and keyword
parameters to images of the same shape and range. The steps work at the network's size, on the region that the model
sees; lengths are pixels there. Nothing is random, and there is no convolution, which graphics cards compute in fewer
digits: an image becomes the same in training and in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from covidcxr.errors import ConfigError
from covidcxr.registry import PREPROCESS_STEPS
from covidcxr.transforms.step_chain import StepChain, StepConfig
from covidcxr.utils.plain import is_number

__all__ = [
    "Preprocess",
    "moves_pixels",
    "equalize_image",
    "normalize_image",
    "sharpen_image",
    "filter_median",
    "binarize_image",
    "crop_image",
]

Step = TypeVar("Step", bound=Callable[..., Any])
Kept = Literal["image", "mask"]

_GREYS = 256
_LEAST_SPAN = 1 / 255  # one grey of 8 bits: what differs by less is noise


class Preprocess(StepChain):
    """A chain of preprocessing steps: call it with images.

    Args:
        steps: In order: names, or tables with the key "name" and the step's parameters.

    Raises:
        UnknownNameError: If there is no such step.
        ConfigError: If a step has no such parameter, or its value is out of range.

    Example:
        ```python
        import torch
        from covidcxr.transforms.preprocess import Preprocess

        preprocess = Preprocess(["normalize", {"name": "median", "size": 3}])
        assert preprocess(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16)
        ```
    """

    registry = PREPROCESS_STEPS

    def __init__(self, steps: Sequence[StepConfig] = ()) -> None:
        super().__init__(steps)

    def __call__(self, image: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch 1 height width"]:
        """Return the images as the steps make them; those given stay as they are."""
        return cast(Tensor, self._run(image))

    @property
    def moving(self) -> tuple[str, ...]:
        """Names of the steps after which a mask of the image no longer lies where the image shows it."""
        return tuple(name for name, function, _ in self._steps if getattr(function, "moves_pixels", False))

    @staticmethod
    def _example() -> Float[Tensor, "batch 1 height width"]:
        return torch.zeros(1, 1, 8, 8, device="cpu")  # even where models are built without memory


def moves_pixels(step: Step) -> Step:
    """Mark a step that moves pixels, as a crop does; a model that predicts masks refuses it.

    Args:
        step: The function.

    Returns:
        The same function.
    """
    step.__dict__["moves_pixels"] = True
    return step


@PREPROCESS_STEPS.register("normalize")
def normalize_image(
    image: Float[Tensor, "batch 1 height width"], *, low: float = 1.0, high: float = 99.0
) -> Float[Tensor, "batch 1 height width"]:
    """Stretch each image's greys so that its percentiles `low` and `high` become 0 and 1; what lies beyond is cut off.

    Black that letterboxing added counts. An image whose percentiles are not a grey level of 8 bits apart comes back
    unchanged.

    Args:
        image: Images in [0, 1].
        low: In percent, in [0, 100].
        high: In percent, in [0, 100], above `low`.

    Returns:
        Images in [0, 1].

    Raises:
        ConfigError: If a parameter is out of range.
    """
    _check_number("low", low, 0, 100)
    _check_number("high", high, 0, 100)
    if low >= high:
        raise ConfigError(f"low must be below high, not {low!r} and {high!r}.")
    greys = image.flatten(1).sort(dim=1).values
    darkest, brightest = (_percentile(greys, percent) for percent in (low, high))
    span = brightest - darkest
    stretched = ((image - darkest) / span.clamp_min(_LEAST_SPAN)).clamp(0, 1)
    return stretched.where(span >= _LEAST_SPAN, image)


@PREPROCESS_STEPS.register("equalize")
def equalize_image(
    image: Float[Tensor, "batch 1 height width"], *, skip_black: bool = False
) -> Float[Tensor, "batch 1 height width"]:
    """Replace each pixel by its rank among the image's 256 greys: the histogram becomes flat (Hummel 1977).

    Whatever a scanner did to brightness, contrast or gamma alike everywhere is undone. The darkest grey becomes 0, the
    brightest 1; an image of one grey comes back as it is.

    Args:
        image: Images in [0, 1].
        skip_black: Leave out pixels that are exactly 0 and keep them so: padding, and what a region removed.

    Returns:
        Images in [0, 1].

    Raises:
        ConfigError: If `skip_black` is neither true nor false.
    """
    if not isinstance(skip_black, bool):
        raise ConfigError(f"skip_black must be true or false, not {skip_black!r}.")
    flat = image.flatten(1)
    greys = (flat * (_GREYS - 1)).round().long()
    counted = (flat > 0).long() if skip_black else torch.ones_like(greys)
    # Whole numbers, which every device sums to the same.
    ranks = (
        torch.zeros(flat.shape[0], _GREYS, dtype=torch.long, device=image.device)
        .scatter_add_(1, greys, counted)
        .cumsum(1)
    )
    darkest = ranks.where(ranks > 0, ranks[:, -1:]).amin(1, keepdim=True)
    span = ranks[:, -1:] - darkest
    equal = ((ranks - darkest).clamp_min(0) / span.clamp_min(1)).to(image.dtype).gather(1, greys)
    return equal.where((span > 0) & (counted > 0), flat).view_as(image)


@PREPROCESS_STEPS.register("sharpen")
def sharpen_image(
    image: Float[Tensor, "batch 1 height width"], *, amount: float = 1.0, radius: float = 1.0
) -> Float[Tensor, "batch 1 height width"]:
    """Sharpen by an unsharp mask: add `amount` times the difference from the blurred image, and cut off beyond [0, 1].

    Args:
        image: Images in [0, 1].
        amount: How much is added, in [0, 10].
        radius: Standard deviation of the Gaussian blur, in pixels, in [0.01, 50].

    Returns:
        Images in [0, 1].

    Raises:
        ConfigError: If a parameter is out of range.
    """
    _check_number("amount", amount, 0, 10)
    _check_number("radius", radius, 0.01, 50)
    return (image + amount * (image - _blur(_blur(image, radius, 2), radius, 3))).clamp(0, 1)


@PREPROCESS_STEPS.register("median")
def filter_median(
    image: Float[Tensor, "batch 1 height width"], *, size: int = 3
) -> Float[Tensor, "batch 1 height width"]:
    """Replace each pixel by the median of the square around it; beyond the border the outermost pixels repeat.

    Args:
        image: Images in [0, 1].
        size: Side of the square in pixels, odd, from 1 to 15.

    Returns:
        Images in [0, 1].

    Raises:
        ConfigError: If `size` is out of range or even.
    """
    _check_number("size", size, 1, 15)
    if size % 2 != 1:
        raise ConfigError(f"size must be an odd whole number, not {size!r}.")
    size = int(size)
    height, width = image.shape[-2:]
    wide = F.pad(image, (size // 2,) * 4, mode="replicate")
    return _median([wide[..., y : y + height, x : x + width] for y in range(size) for x in range(size)])


@PREPROCESS_STEPS.register("binarize")
def binarize_image(
    image: Float[Tensor, "batch 1 height width"],
    *,
    threshold: float | None = None,
    keep: Kept | Literal["film"] = "image",
) -> Float[Tensor, "batch 1 height width"]:
    """Turn what is darker than a threshold black.

    Args:
        image: Images in [0, 1].
        threshold: In [0, 1]; None = each image's own, the best cut of its histogram in two (Otsu 1979). An image of one
            grey has none and turns black.
        keep: "image" ("film" in 0.1.0) leaves what is brighter as it is: the greys inside the lungs and of an opacity
            are what a classifier is to see, and a network pretrained on pictures expects. "mask" turns it white.

    Returns:
        Images in [0, 1].

    Raises:
        ConfigError: If a parameter is out of range.
    """
    if keep not in (*get_args(Kept), "film"):  # its name in saved models of 0.1.0
        raise ConfigError(f"keep must be one of {', '.join(get_args(Kept))}, not {keep!r}.")
    bright = _bright(image, threshold)
    return bright.to(image.dtype) if keep == "mask" else image * bright


@PREPROCESS_STEPS.register("crop")
@moves_pixels
def crop_image(
    image: Float[Tensor, "batch 1 height width"],
    *,
    threshold: float | None = None,
    largest: bool = True,
    margin: float = 0.02,
) -> Float[Tensor, "batch 1 height width"]:
    """Cut each image to the box around what is bright, and stretch that to the whole frame.

    Args:
        image: Images in [0, 1]; one with nothing bright stays whole.
        threshold: From which grey a pixel is bright, in [0, 1]; None = each image's own (Otsu 1979).
        largest: Take the largest connected part only: letters and the table beside the patient do not count.
        margin: By how much the box is widened on each side, as a fraction of the frame's side, in [0, 0.5].

    Returns:
        Images in [0, 1].

    Raises:
        ConfigError: If a parameter is out of range.
    """
    _check_number("margin", margin, 0, 0.5)
    if not isinstance(largest, bool):
        raise ConfigError(f"largest must be true or false, not {largest!r}.")
    bright = _bright(image, threshold)
    if torch.compiler.is_compiling() and not largest:
        return _crop_any(image, bright, margin)
    boxes = [_box(plane[0], margin) for plane in (_largest_part(bright) if largest else bright)]
    pieces = [plane[None, :, rows, columns] for plane, (rows, columns) in zip(image, boxes, strict=True)]
    size = tuple(image.shape[-2:])
    return torch.cat([F.interpolate(piece, size=size, mode="bilinear", align_corners=False) for piece in pieces])


def _percentile(greys: Float[Tensor, "batch pixels"], percent: float) -> Float[Tensor, "batch 1 1 1"]:
    """Interpolate between sorted greys, as numpy does; torch.quantile refuses batches of 16 million pixels."""
    place = percent / 100 * (greys.shape[1] - 1)
    below, above = greys[:, math.floor(place)], greys[:, math.ceil(place)]
    return (below + (above - below) * (place % 1))[:, None, None, None]


def _blur(image: Tensor, radius: float, dim: int) -> Tensor:
    """Blur along one axis; with the outermost pixels repeated beyond the border."""
    reach = math.ceil(4 * radius)
    weights = [math.exp(-((place / radius) ** 2) / 2) for place in range(-reach, reach + 1)]
    weights = [weight / sum(weights) for weight in weights]
    wide = F.pad(image, (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0), mode="replicate")
    shifted = (wide.narrow(dim, place, image.shape[dim]) for place in range(len(weights)))
    return cast(Tensor, sum(part * weight for part, weight in zip(shifted, weights, strict=True)))


def _median(values: Sequence[Tensor]) -> Tensor:
    """Return the median of an odd number of equal-sized tensors, pixel by pixel.

    Forgetful selection: of a few more than half of the values neither the least nor the greatest is the median, so both
    are dropped and the next value is taken in. For a 3x3 square that is 25 times faster than sorting.
    """
    kept, later = list(values[: len(values) // 2 + 2]), list(values[len(values) // 2 + 2 :])
    while len(kept) > 2:
        for place in range(1, len(kept)):
            kept[0], kept[place] = torch.minimum(kept[0], kept[place]), torch.maximum(kept[0], kept[place])
        for place in range(1, len(kept) - 1):
            kept[place], kept[-1] = torch.minimum(kept[place], kept[-1]), torch.maximum(kept[place], kept[-1])
        kept = [*kept[1:-1], *later[:1]]
        later = later[1:]
    return kept[0].clone()


def _bright(image: Tensor, threshold: float | None) -> Bool[Tensor, "batch 1 height width"]:
    """Say which pixels lie at or above a threshold; None = Otsu's, in a histogram of what greys the image has."""
    if threshold is not None:
        _check_number("threshold", threshold, 0, 1)
        return image >= threshold
    darkest, brightest = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    span = (brightest - darkest).clamp_min(torch.finfo(image.dtype).tiny)
    bins = ((image - darkest) / span * _GREYS).long().clamp(max=_GREYS - 1)
    return bins > _otsu(bins.flatten(1))[:, None, None, None]


def _otsu(bins: Tensor) -> Tensor:
    """Return for each image the bin up to which its pixels are dark: dark and bright differ most there (Otsu 1979)."""
    # Whole numbers as far as they go: sums of them are the same in any order, so every device gets the same bin.
    greys = torch.arange(_GREYS, device=bins.device)
    counts = torch.zeros(bins.shape[0], _GREYS, dtype=torch.long, device=bins.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins))
    dark, total = counts.cumsum(1), bins.shape[1]
    sums = (counts * greys).cumsum(1)
    difference = (sums[:, -1:] * dark - sums * total).float()
    return (difference**2 / (dark * (total - dark)).clamp_min(1).float()).argmax(1)


def _largest_part(bright: Bool[Tensor, "batch 1 height width"]) -> Bool[Tensor, "batch 1 height width"]:
    """Keep of each image's bright pixels the largest connected part (over corners, too)."""
    lit = bright.flatten(1)
    parts = torch.arange(lit.shape[1], device=bright.device).expand_as(lit)  # at first each pixel is a part
    while not torch.equal(parts, joined := _join(parts, bright)):
        parts = joined
    areas = torch.zeros_like(parts).scatter_add_(1, parts, lit.long())
    return bright & (parts == areas.argmax(1, keepdim=True)).view_as(bright)


def _join(
    parts: Int[Tensor, "batch pixels"], bright: Bool[Tensor, "batch 1 height width"]
) -> Int[Tensor, "batch pixels"]:
    """Join each part to the one of the greatest number beside it, as Shiloach and Vishkin 1982: a few rounds join all.

    A part's number is that of one of its pixels, which is how it is found; a dark pixel stays a part of its own.
    """
    seen = parts.view_as(bright).where(bright, -1).float()
    beside = F.max_pool2d(seen, 3, stride=1, padding=1).long().where(bright, -1).flatten(1)
    joined = parts.scatter_reduce(1, parts, beside, "amax")
    while not torch.equal(joined, further := joined.gather(1, joined)):
        joined = further
    return joined


def _box(bright: Bool[Tensor, "height width"], margin: float) -> tuple[slice, slice]:
    """Return rows and columns of the box around what is bright, widened; all of them where nothing is."""
    spans = []
    for dim, side in enumerate(bright.shape):
        places = bright.any(1 - dim).nonzero()[:, 0].tolist() or [0, side - 1]
        extra = round(margin * side)
        spans.append(slice(max(0, places[0] - extra), places[-1] + 1 + extra))
    return spans[0], spans[1]


def _crop_any(image: Tensor, bright: Tensor, margin: float) -> Tensor:
    """Crop like `crop_image`, to the last bit, by operations whose shapes depend on no pixel: so they can be traced."""
    cropped = image
    for dim in (3, 2):  # columns first, as torch does
        side = image.shape[dim]
        lit = bright.to(torch.int64).amax((1, 5 - dim))
        empty = lit.amax(1) == 0
        extra = round(margin * side)
        first = (lit.argmax(1) - extra).clamp_min(0).masked_fill(empty, 0)
        last = (side - 1 - lit.flip(1).argmax(1) + extra).clamp_max(side - 1).masked_fill(empty, side - 1)
        cropped = _stretch_part(cropped, dim, first[:, None], (last - first + 1)[:, None])
    return cropped


def _stretch_part(image: Tensor, dim: int, first: Int[Tensor, "batch 1"], count: Int[Tensor, "batch 1"]) -> Tensor:
    """Stretch a part of each image's rows (2) or columns (3) over the whole side.

    The arithmetic is that of `F.interpolate` on a CPU that multiplies and adds at once: in single precision, and the
    product that something is added to is not rounded before. `equalize` rounds greys afterwards, so another last bit
    would show.
    """
    side = image.shape[dim]
    centres = torch.arange(side, dtype=torch.float64, device=image.device) + 0.5
    place = ((count.to(image.dtype) / side).double() * centres - 0.5).to(image.dtype).clamp_min(0)
    before = torch.minimum(place.floor(), (count - 1).to(image.dtype))
    weight = (place - before).clamp(0, 1)
    shape = (-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side)

    def take(offsets: Tensor) -> Tensor:
        return image.gather(dim, (first + offsets).view(shape).expand(image.shape))

    near, far = take(before.long()), take(torch.minimum(before.long() + 1, count - 1))
    rounded = far * weight.view(shape)
    return (near.double() * (1 - weight).view(shape).double() + rounded.double()).to(image.dtype)


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if not is_number(value) or not least <= value <= most:
        raise ConfigError(f"{name} must be a number in [{least}, {most}], not {value!r}.")
