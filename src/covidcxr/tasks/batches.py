"""What a task needs of a batch, whoever made the loader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from covidcxr.errors import ConfigError
from covidcxr.types import Batch

__all__ = ["check_images", "name_images", "select_images"]

_NAMES = ("image_id", "patient_id", "source")


def check_images(batch: object) -> None:
    """Check that a batch holds grey images, and say what it must hold.

    Args:
        batch: What a loader gave.

    Raises:
        ConfigError: If it is no mapping, has no images, or they are no grey images in [0, 1].
    """
    if not isinstance(batch, dict):
        raise ConfigError(
            f"The loader gives batches of type {type(batch).__name__}, but a task needs mappings, as `Sample` and "
            f'`Batch` of covidcxr.types say: {{"image": ..., "label": ...}} for a classifier, {{"image": ..., '
            f'"mask": ...}} for a segmenter. Let the data set return dicts.'
        )
    image = batch.get("image")
    if not isinstance(image, Tensor):
        raise ConfigError(f'The batch has no tensor "image"; its keys are {sorted(map(str, batch))}.')
    if image.ndim != 4 or image.shape[1] != 1 or not image.is_floating_point():
        raise ConfigError(
            f"Images must be floating-point tensors [batch, 1, height, width], not {image.dtype} {tuple(image.shape)}."
        )
    low, high = (image.amin().item(), image.amax().item()) if image.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ConfigError(
            f"Images must be grey values in [0, 1], not [{low:.3g}, {high:.3g}]: divide by the largest possible value, "
            f"and leave normalisation to the model."
        )


def name_images(batch: Batch, places: Sequence[int]) -> Batch:
    """Give names to images whose loader gives none.

    Args:
        batch: The images.
        places: Place of each in its data set.

    Returns:
        The same batch with `image_id`, `patient_id` (each image is a patient of its own) and `source`.

    Raises:
        ConfigError: If it names another number of images than it has.
    """
    named = cast(dict[str, Any], dict(batch))
    made = [f"image-{place}" for place in places]
    ids = _names(named, "image_id", made)
    named["image_id"] = ids
    named["patient_id"] = _names(named, "patient_id", ids)
    named["source"] = _names(named, "source", ["unknown"] * len(made))
    return cast(Batch, named)


def _names(batch: dict[str, Any], key: str, made: list[str]) -> list[str]:
    names = batch.get(key)
    if names is None:
        return made
    names = names.tolist() if isinstance(names, Tensor) else list(names)
    if len(names) != len(made):
        raise ConfigError(f"The batch has {len(made)} images, but {len(names)} entries of {key!r}.")
    return [str(name) for name in names]


def select_images(batch: Batch, places: Sequence[int]) -> Batch:
    """Return some images of a batch.

    Args:
        batch: The images.
        places: Which, by their places in the batch.

    Returns:
        What `Batch` says of them; other keys are left out.
    """
    if list(places) == list(range(len(batch["image"]))):
        return batch
    values = {key: value for key, value in batch.items() if key in Batch.__annotations__}
    picked = {
        key: value[torch.tensor(places, dtype=torch.long, device=value.device)]
        if isinstance(value, Tensor)
        else [cast(Sequence[str], value)[place] for place in places]
        for key, value in values.items()
    }
    return cast(Batch, picked)
