"""Films of many sizes, with their lungs, as one batch at a model's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from covidcxr.errors import ConfigError
from covidcxr.models.network import NetworkModel
from covidcxr.transforms.geometry import LUNGS_OF_REGION, fit_image, fit_mask
from covidcxr.types import Fit, Region

__all__ = ["fit_films", "lungs_of"]


def fit_films(
    model: NetworkModel,
    films: Sequence[Float[np.ndarray, "_ _"]],
    masks: Sequence[Mapping[str, Bool[np.ndarray, "_ _"]]],
    fitted: dict[tuple[tuple[int, int], Fit], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Bring films, and the lungs where the model wants them, to the model's size and device.

    Args:
        model: Its preprocessing says size, fit and region.
        films: Grey, in [0, 1].
        masks: Of each film, by mask class, at the film's size; may be empty where the region is "full".
        fitted: These very films by size and fit, from earlier calls; what is new is added. So models that want one size
            share it.

    Returns:
        Films [batch, 1, *image_size] and lungs, 0 or 1, of the same shape, or None.

    Raises:
        ConfigError: If the lungs of a film are wanted and missing.
    """
    settings = model.config.preprocess
    size, fit = settings.image_size, settings.fit
    fitted = {} if fitted is None else fitted
    if (size, fit) not in fitted:
        fitted[size, fit] = torch.cat([fit_image(torch.from_numpy(film)[None, None], size, fit) for film in films])
    images = fitted[size, fit]
    if settings.region == "full":
        return images.to(model.mean.device), None
    # torch turns bytes into floats seven times as fast as it does booleans.
    lungs = [torch.from_numpy(lungs_of(found, settings.region).view(np.uint8))[None, None].float() for found in masks]
    seen = torch.cat([fit_mask(mask, size, fit) for mask in lungs])
    return images.to(model.mean.device), seen.to(model.mean.device)


def lungs_of(masks: Mapping[str, Bool[np.ndarray, "height width"]], region: Region) -> Bool[np.ndarray, "height width"]:
    """Return the lungs that a region means: the fields to look at, all of the lungs to take away.

    Raises:
        ConfigError: If there is no mask of lungs.
    """
    for name in LUNGS_OF_REGION[region]:
        if name in masks:
            return masks[name]
    raise ConfigError(
        f'region="{region}" needs the lung mask of every film ({" or ".join(LUNGS_OF_REGION[region])}): give it, or '
        f"let a Pipeline with a lung segmenter find it."
    )
