"""From what networks compute to what a pipeline answers: masks, and one class or the reason for none; without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.config import EnsembleConfig, ModelConfig
from covidcxr.transforms.pyramid import restore_mask
from covidcxr.types import LUNG_CLASSES

__all__ = ["Maps", "choose_class", "cut_masks", "not_finite", "thresholds_of"]

Mask: TypeAlias = Bool[np.ndarray, "height width"]
Maps: TypeAlias = Float[np.ndarray, "batch classes new_height new_width"]
"""Probabilities of masks, at a network's size."""


def not_finite(part: str) -> str:
    """Return the reason to abstain for an image of which a model computes NaN or infinity.

    Args:
        part: Name of the model's part in a pipeline, "lung_segmenter", ...

    Returns:
        The id of the reason.
    """
    return f"{part.replace('_', '-')}-not-finite"


def choose_class(
    config: ModelConfig | EnsembleConfig, probabilities: dict[str, float]
) -> tuple[str | None, tuple[str, ...]]:
    """Choose the one plausible class, or abstain with a reason.

    With thresholds in the config, a class is plausible from its threshold up (a conformal set, if the thresholds come
    from `covidcxr.evaluation.conformal_thresholds`); without any, the most probable of exclusive classes is, and of
    findings that may come together those from 0.5 up are. Where a probability is not finite, there is no class.

    Args:
        config: Mode and thresholds of the classifier.
        probabilities: By class name, calibrated.

    Returns:
        The class and no reasons, or None and the reasons.
    """
    if not all(map(math.isfinite, probabilities.values())):
        return None, (not_finite("classifier"),)
    if config.mode != "multilabel" and not config.thresholds:
        return max(probabilities, key=lambda name: probabilities[name]), ()
    plausible = [name for name, value in probabilities.items() if value >= config.thresholds.get(name, 0.5)]
    if len(plausible) == 1:
        return plausible[0], ()
    return None, ("several-answers-plausible" if plausible else "no-answer-plausible",)


def thresholds_of(config: ModelConfig) -> tuple[float, ...]:
    """Return, by class, the probability from which a pixel belongs to it (0.5 where the config says none).

    Args:
        config: Of a segmenter.

    Returns:
        In [0, 1], in the order of the classes.
    """
    return tuple(config.thresholds.get(name, 0.5) for name in config.classes)


def cut_masks(
    config: ModelConfig,
    maps: Maps,
    sizes: Sequence[tuple[int, ...]],
    clean: Callable[[Mask], Mask] | None = None,
) -> list[dict[str, Mask]]:
    """Return masks at the images' own sizes: the pixels whose probability reaches the threshold of their class.

    Args:
        config: Classes, thresholds and fit of the segmenter.
        maps: Probabilities at the network's size; changed in place where masks are cleaned.
        sizes: Height and width of each image.
        clean: Clean-up of lung masks, at the network's size.

    Returns:
        The masks of each image, by class.
    """
    thresholds = thresholds_of(config)
    masks = []
    for size, values in zip(sizes, maps, strict=True):
        for name, plane, threshold in zip(config.classes, values, thresholds, strict=True):
            if clean is not None and name in LUNG_CLASSES:
                raw = plane >= threshold
                kept = clean(raw)
                plane[raw & ~kept] = 0.0
                plane[kept & ~raw] = 1.0
        planes = zip(config.classes, values, thresholds, strict=True)
        masks.append(
            {
                name: restore_mask(plane, threshold, (size[0], size[1]), config.preprocess.fit)
                for name, plane, threshold in planes
            }
        )
    return masks
