"""What a classifier's prediction rests on: heat maps as data and as pictures, and how faithful they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from covidcxr import aliases
from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.explain.methods import METHODS, Attribution, find_method, smooth
from covidcxr.io.folders import path_inside, replace_file
from covidcxr.io.image import read_image
from covidcxr.io.pretrained import write_json
from covidcxr.models import ClassificationModel, Classifier, EnsembleModel
from covidcxr.models.base import evaluation_mode
from covidcxr.models.network import resize_images
from covidcxr.transforms.geometry import apply_region, resize_image, restore_map
from covidcxr.transforms.preprocess import Preprocess
from covidcxr.types import LUNGS_OF_REGION, ImageLike

__getattr__ = partial(aliases.find, __name__)

__all__ = ["CURVES", "METHODS", "Explanation", "Faithfulness", "Lungs", "explain", "explain_many", "faithfulness"]


_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])


_RAMP = np.array([(120, 0, 120), (170, 10, 110), (225, 55, 40), (250, 150, 10), (255, 240, 90)], float)
"""From violet over red to yellow: its lightness grows all the way, so it reads in grey and with any colour vision."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """A heat map of what speaks for a class on an image, according to a classifier. For research, not clinical use.

    Attributes:
        heat: Evidence for the class at the image's own size, float32 in [0, 1]: the strongest place is 1. 0 where
            nothing speaks for the class and where the model does not look.
        target: The class.
        method: How it was computed; a name of `covidcxr.explain.METHODS`.
        probability: The classifier's calibrated probability of the class on this image, in [0, 1].

    Example:
        ```python
        from covidcxr import Pipeline

        explanation = Pipeline.from_pretrained("mini")("image.png").explain("covid19")
        assert explanation.heat.max() in (0, 1)
        assert explanation.overlay("image.png").shape == (*explanation.heat.shape, 3)
        ```
    """

    heat: Float[np.ndarray, "height width"] = field(repr=False)
    target: str
    method: str
    probability: float

    @property
    def empty(self) -> bool:
        """Whether the method found nothing that speaks for the class: the map is 0 everywhere."""
        return not bool(self.heat.any())

    @property
    def note(self) -> str:
        """A warning about this map, in a sentence; mostly empty."""
        return (
            f"Nothing on this image speaks for {self.target} by {self.method}: the map is empty." if self.empty else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON; of the map its size and the place of its peak (row, column)."""
        peak = None if self.empty else [int(place) for place in np.unravel_index(self.heat.argmax(), self.heat.shape)]
        return {
            "target": self.target,
            "method": self.method,
            "probability": self.probability,
            "empty": self.empty,
            "height": self.heat.shape[0],
            "width": self.heat.shape[1],
            "peak": peak,
        }

    def overlay(self, image: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
        """Draw the map over its image, RGB: the stronger the evidence, the brighter and the less transparent.

        Args:
            image: The image that was explained, as `read_image` takes it.

        Returns:
            The picture, 0 to 255.

        Raises:
            ConfigError: If the image has another size than the map.
            ImageReadError: If it cannot be read.
        """
        grey = read_image(image)
        if grey.shape != self.heat.shape:
            raise ConfigError(f"The map is {self.heat.shape}, but the image {grey.shape}: draw it over its own image.")
        color = np.stack([np.interp(self.heat, _STOPS, _RAMP[:, part]) for part in range(3)], axis=2)
        weight = (0.75 * np.clip(self.heat * 1.5, 0, 1))[..., None]
        picture: UInt8[np.ndarray, "height width 3"] = np.rint(
            (1 - weight) * 255 * grey[..., None] + weight * color
        ).astype(np.uint8)
        return picture

    def save(self, folder: str | os.PathLike[str], name: str, image: ImageLike | None = None) -> Path:
        """Write `NAME.heat.png` (16-bit grey, white = 1: `read_image` gives the map back) and `NAME.heat.json`.

        Args:
            folder: Made if need be.
            name: Stem of the files.
            image: With it, the picture `NAME.heat-overlay.png` is written as well.

        Returns:
            The path of the JSON file.

        Raises:
            ConfigError: If a file would lie outside the folder.
            OSError: If a file cannot be written.
        """
        from PIL import Image

        with replace_file(path_inside(folder, f"{name}.heat.png")) as draft:
            Image.fromarray(np.rint(self.heat * 65535).astype(np.uint16)).save(draft, format="PNG")
        if image is not None:
            with replace_file(path_inside(folder, f"{name}.heat-overlay.png")) as draft:
                Image.fromarray(self.overlay(image)).save(draft, format="PNG")
        place = path_inside(folder, f"{name}.heat.json")
        write_json(place, self.to_dict())
        return place


Image: TypeAlias = Float[np.ndarray, "_ _"]  # images of one call may have many sizes
Mask: TypeAlias = Bool[np.ndarray, "_ _"]
Lungs: TypeAlias = Mask | Mapping[str, Mask]
"""The lungs of an image at its own size: one mask, or those that there are by mask class, of which each model takes the
one that its region means."""


def explain(
    model: Classifier,
    image: ImageLike,
    lung_mask: Lungs | None = None,
    *,
    target: str | None = None,
    method: str = "gradcam",
) -> Explanation:
    """Show which parts of an image speak for a class, according to a classifier.

    The map is of the log odds of the class. That of an ensemble is the mean of its members' maps, each scaled to 1,
    weighted as their votes are. The model is left as it was.

    Args:
        model: A classification model or an ensemble; it runs on its own device and in evaluation mode.
        image: The image: whatever `read_image` reads.
        lung_mask: Its lungs; needed where the model `needs_lungs`.
        target: The class; None = the most probable one.
        method: "gradcam", "hirescam", "integrated_gradients" or "occlusion"; the last two need the extra `explain`.

    Returns:
        The explanation.

    Raises:
        ConfigError: If the lungs are missing or of another size, the network has no layer with places ("gradcam"), or
            captum is not installed.
        UnknownNameError: If there is no such class or method.
        ImageReadError: If the image cannot be read.
    """
    return explain_many(model, [image], None if lung_mask is None else [lung_mask], target=target, method=method)[0]


def explain_many(
    model: Classifier,
    images: Sequence[ImageLike],
    lung_masks: Sequence[Lungs] | None = None,
    *,
    target: str | Sequence[str | None] | None = None,
    method: str = "gradcam",
    batch_size: int = 8,
) -> list[Explanation]:
    """Explain images of any sizes, several at a time; see `explain`.

    Args:
        model: The classifier.
        images: The images.
        lung_masks: The lungs of each.
        target: One class for all, or one an image; None = the most probable one.
        method: As of `explain`.
        batch_size: Batch size.

    Returns:
        One explanation an image, in their order.

    Raises:
        ConfigError: As `explain` does, or if there is not one mask or target an image.
        UnknownNameError: If there is no such class or method.
        ImageReadError: If an image cannot be read.
    """
    find_method(method)
    targets = [target] * len(images) if target is None or isinstance(target, str) else list(target)
    lungs: list[Lungs] = [{} for _ in images] if lung_masks is None else list(lung_masks)
    if not len(images) == len(lungs) == len(targets):
        raise ConfigError(f"Give one lung mask and one target an image: {len(images)}, {len(lungs)}, {len(targets)}.")
    for name in targets:
        if name is not None and name not in model.config.classes:
            raise UnknownNameError(f"The model knows no class {name!r}. {did_you_mean(name, model.config.classes)}")
    explanations: list[Explanation] = []
    with torch.inference_mode(mode=False):  # what is made in a caller's inference mode has no gradients
        if any(parameter.is_inference() for parameter in model.parameters()):
            model = deepcopy(model)  # it was loaded there
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            pixels = [read_image(image) for image in images[part]]
            masks = [_by_class(mask, image) for mask, image in zip(lungs[part], pixels, strict=True)]
            explanations += _explain(model, pixels, masks, targets[part], method)
    return explanations


def _explain(
    model: Classifier,
    images: Sequence[Image],
    masks: Sequence[Mapping[str, Mask]],
    targets: Sequence[str | None],
    method: str,
) -> Iterator[Explanation]:
    classes = model.config.classes
    batches = [resize_images(member, images, masks) for member in model.members]
    members = [member.predict(*batch) for member, batch in zip(model.members, batches, strict=True)]
    probabilities = model.combine(members).cpu()
    indices = torch.tensor(
        [
            int(row.argmax()) if name is None else classes.index(name)
            for row, name in zip(probabilities, targets, strict=True)
        ]
    )
    weights = list(model.config.members.values()) if isinstance(model, EnsembleModel) else [1.0]
    heats = [np.zeros(image.shape, np.float32) for image in images]
    for member, weight, (batch, lungs) in zip(model.members, weights, batches, strict=True):
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        for heat, own in zip(heats, _heat_of(member, batch, lungs, indices, sizes, method), strict=True):
            heat += np.float32(weight) * _scaled(own)
    for heat, index, row in zip(heats, indices.tolist(), probabilities.tolist(), strict=True):
        yield Explanation(_scaled(heat), classes[index], method, row[index])


def _heat_of(
    model: ClassificationModel,
    image: Tensor,
    lungs: Tensor | None,
    targets: Int[Tensor, " batch"],
    sizes: Sequence[tuple[int, int]],
    method: str,
) -> Iterator[Image]:
    """Yield one network's map of each image, from 0 up, at the image's own size."""
    settings = model.config.preprocess
    seen = _seen_by(model, lungs, sizes).to(image.device)
    with evaluation_mode(model), torch.enable_grad():
        inputs = model.preprocess(image, lungs).detach()
        attribution = Attribution(model, inputs, _without_image(model, inputs, seen), targets.to(image.device))
        heat = find_method(method)(attribution).clamp_min(0)[:, None]
        heat = _move_back(model, image, lungs, heat) * seen
    for own, place, size in zip(heat.cpu(), seen.cpu(), sizes, strict=True):
        both = restore_map(torch.stack((own, place), 1), size, settings.fit)[0]
        yield np.where(both[1] >= 0.5, both[0], 0.0).astype(np.float32)  # nothing bleeds over the edge


def _seen_by(
    model: ClassificationModel, lungs: Tensor | None, sizes: Sequence[tuple[int, int]]
) -> Float[Tensor, "batch 1 height width"]:
    """Compute what a model sees of images: its region of the image, without padding."""
    settings = model.config.preprocess
    white = torch.cat([resize_image(torch.ones(1, 1, *size), settings.image_size, settings.fit) for size in sizes])
    white = (white >= 0.5).float()
    return apply_region(white.to(model.mean.device), lungs, settings.region, settings.lung_dilation)


def _without_image(model: ClassificationModel, inputs: Tensor, seen: Tensor) -> Tensor:
    """Replace what a network sees of the image by its mean; where it sees none, nothing changes."""
    if Preprocess(model.config.preprocess.steps).moving:
        seen = torch.ones_like(seen)  # the image fills the frame
    mean = (inputs * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.where(seen > 0, mean, inputs)


def _move_back(model: ClassificationModel, image: Tensor, lungs: Tensor | None, heat: Tensor) -> Tensor:
    """Bring maps back to where the image was before steps that move pixels: each pixel gets the mean of where it went.

    The step's own gradient says where it went.
    """
    settings = model.config.preprocess
    image = apply_region(image, lungs, settings.region, settings.lung_dilation)
    passed: list[tuple[Tensor, Tensor]] = []  # before and after each step that moves pixels
    for step in settings.steps:
        change = Preprocess([step])
        given = image.detach().requires_grad_(bool(change.moving))
        image = change(given)
        if change.moving:
            passed.append((given, image))
    for given, made in reversed(passed):
        (sums,) = torch.autograd.grad(made, given, heat.to(made), retain_graph=True)
        (counts,) = torch.autograd.grad(made, given, torch.ones_like(made))
        heat = torch.where(counts > 1e-6, sums / counts.clamp_min(1e-6), 0.0)
    return heat


def _by_class(lungs: Lungs, image: Image) -> Mapping[str, Mask]:
    masks = lungs if isinstance(lungs, Mapping) else dict.fromkeys(LUNGS_OF_REGION["lungs"], np.asarray(lungs))
    for mask in masks.values():
        if mask.shape != image.shape or mask.dtype != np.bool_:
            raise ConfigError(
                f"A lung mask is bool and has its image's size {image.shape}, not {mask.dtype} {mask.shape}."
            )
    return masks


def _scaled(heat: Image) -> Image:
    """Bring the strongest place to 1."""
    most = float(heat.max())
    return heat / np.float32(most) if most > 0 else heat


CURVES = ("deletion", "insertion", "random_deletion", "random_insertion")
"""The curves of `Faithfulness`."""

_BLUR = 0.06
"""Standard deviation of the blur, as a fraction of the longer side: opacities go, the shape of the chest stays."""

_CELLS = 7
"""A random map is noise of so many cells a side, smoothed: as coarse as a class activation map."""

_BATCH = 32
"""Images that the classifier sees at a time."""

Curves = Float[np.ndarray, "images steps"]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Probability of a class while pixels are removed or shown in the order of a map, by image (Petsiuk 2018, RISE).

    Attributes:
        fractions: The share of what the model sees that was removed or shown, from 0 to 1.
        deletion: The probability while the strongest places turn to the image's mean grey first: it should fall fast.
        insertion: While they return first to the blurred image: it should rise fast.
        random_deletion: The same with a smooth random map.
        random_insertion: The same with a smooth random map.

    Example:
        ```python
        import torch
        from covidcxr import ClassificationModel
        from covidcxr.explain import faithfulness

        model = ClassificationModel.from_pretrained("mini")
        image, lungs = torch.rand(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
        curves = faithfulness(model, image, image[:, 0], "covid19", lungs, steps=2)
        assert 0 <= curves.area("deletion")[0] <= 1
        ```
    """

    fractions: Float[np.ndarray, " steps"] = field(repr=False)
    deletion: Curves = field(repr=False)
    insertion: Curves = field(repr=False)
    random_deletion: Curves = field(repr=False)
    random_insertion: Curves = field(repr=False)

    def area(self, curve: str) -> Float[np.ndarray, " images"]:
        """Compute the area under a curve for each image; that of a good map is low for deletion, high for insertion.

        Args:
            curve: A name of `CURVES`.

        Returns:
            Areas in [0, 1].
        """
        return np.asarray(np.trapezoid(getattr(self, curve), self.fractions, axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the areas of every image, and the mean curves."""
        return {
            "fractions": self.fractions.tolist(),
            "areas": {name: self.area(name).tolist() for name in CURVES},
            "curves": {name: getattr(self, name).mean(0).tolist() for name in CURVES},
        }


def faithfulness(
    model: Classifier,
    image: Float[Tensor, "batch 1 height width"],
    heat: Float[Tensor, "batch height width"],
    target: str | Sequence[str],
    lung_mask: Float[Tensor, "batch 1 height width"] | None = None,
    *,
    steps: int = 20,
    seed: int = 0,
) -> Faithfulness:
    """Measure deletion and insertion curves of heat maps, beside those of random maps.

    Only places that the model sees are removed and shown: else a map of nothing but the lungs' outline would look
    faithful to a model that sees only lungs.

    Args:
        model: The classifier.
        image: Grey images in [0, 1].
        heat: A map of each, from 0 up.
        target: The class that the maps are of: one for all, or one an image.
        lung_mask: Lungs, 0 or 1; needed where the model `needs_lungs`.
        steps: In how many equal steps.
        seed: Of the random maps, and of the order of places that are equally hot.

    Returns:
        The curves of all images.

    Raises:
        ConfigError: If shapes differ, `steps` is below 1, or the lungs are missing.
        UnknownNameError: If there is no such class.
    """
    if heat.shape != image[:, 0].shape or steps < 1:
        shapes = f"{tuple(heat.shape)}, {tuple(image.shape)}"
        raise ConfigError(f"Give one map for an image, of its size, and 1 step or more: {shapes}, {steps}.")
    columns = _columns(model, target, len(image))
    device = next(iter(model.members)).mean.device
    image, heat = image.to(device), heat.to(device)
    lungs = None if lung_mask is None else lung_mask.to(device)
    seen = _seen(model, image, lungs)
    mean = (image * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp_min(1)
    bare, blurred = mean.expand_as(image), smooth(image[:, 0], _BLUR)[:, None]
    noise = torch.Generator().manual_seed(seed)
    random = torch.rand(len(image), 1, _CELLS, _CELLS, generator=noise).to(device)
    random = F.interpolate(random, tuple(image.shape[-2:]), mode="bilinear", align_corners=False)[:, 0]
    curves = {}
    for prefix, values in (("", heat), ("random_", random)):
        rank = _rank(values, seen[:, 0], noise)
        for name, there, away in (("deletion", bare, image), ("insertion", image, blurred)):
            # At the last step all that is seen has a rank below.
            shown = [torch.where(rank < step / steps, there, away) for step in range(steps + 1)]
            curves[prefix + name] = _probabilities(model, shown, lungs, columns)
    return Faithfulness(np.linspace(0, 1, steps + 1), *(curves[name] for name in CURVES))


def _probabilities(model: Classifier, shown: list[Tensor], lungs: Tensor | None, columns: Sequence[int]) -> Curves:
    """Predict for the images of all steps, several steps at a time."""
    images, rows = len(columns), []
    together = max(1, _BATCH // images)
    for start in range(0, len(shown), together):
        part = shown[start : start + together]
        rows.append(model.predict(torch.cat(part), None if lungs is None else lungs.repeat(len(part), 1, 1, 1)))
    probabilities = torch.cat(rows).cpu().numpy().reshape(len(shown), images, -1)
    return probabilities[:, np.arange(images), columns].T.astype(float)


def _columns(model: Classifier, target: str | Sequence[str], images: int) -> list[int]:
    names = [target] * images if isinstance(target, str) else list(target)
    if len(names) != images:
        raise ConfigError(f"Give one target, or one an image: {len(names)} for {images} images.")
    classes = model.config.classes
    for name in names:
        if name not in classes:
            raise UnknownNameError(f"The model knows no class {name!r}. {did_you_mean(name, classes)}")
    return [classes.index(name) for name in names]


def _seen(model: Classifier, image: Tensor, lungs: Tensor | None) -> Tensor:
    """Return 1 where any member sees the image, else 0."""
    settings = [member.config.preprocess for member in model.members]
    white = torch.ones_like(image)
    parts = [apply_region(white, lungs, member.region, member.lung_dilation) for member in settings]
    return torch.stack(parts).amax(0)


def _rank(heat: Tensor, seen: Tensor, noise: torch.Generator) -> Float[Tensor, "batch 1 height width"]:
    """Return the place of each pixel among those that are seen, hottest first, in [0, 1); unseen ones get 1 or more."""
    tie = torch.rand(heat.shape, generator=noise).to(heat.device)
    most = heat.flatten(1).amax(1).clamp_min(1e-12)[:, None, None]
    order = torch.where(seen > 0, heat / most + 1e-6 * tie, -1.0).flatten(1).argsort(1, descending=True)
    places = torch.arange(order.shape[1], device=heat.device, dtype=torch.float64).expand_as(order)
    rank = torch.empty_like(places).scatter(1, order, places)
    return (rank / seen.flatten(1).sum(1, keepdim=True).clamp_min(1)).view(heat.shape)[:, None]
