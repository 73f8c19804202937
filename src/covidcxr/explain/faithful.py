"""Faithfulness of heat maps: how the probability changes when what a map marks is removed from the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean
from covidcxr.explain.methods import smooth
from covidcxr.models import Classifier
from covidcxr.transforms.geometry import apply_region

__all__ = ["CURVES", "Faithfulness", "faithfulness"]

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
        values: np.ndarray = getattr(self, curve)
        return np.asarray(np.trapezoid(values, self.fractions, axis=1))

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
