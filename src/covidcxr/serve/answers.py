"""A pipeline's answer as plain data and pictures: what is kept of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr.serve.worker import to_png

if TYPE_CHECKING:
    from covidcxr.pipeline.prediction import Prediction
    from covidcxr.serve.model_info import ModelFacts

__all__ = ["infected_by_lung", "mask_to_png", "masks_to_png", "png_to_mask", "png_to_pixels", "to_answer"]

Mask = Bool[np.ndarray, "height width"]

_SMALLEST_LUNG = 0.25
"""A part of the lung mask smaller than this share of the largest is no lung of its own."""


def to_answer(prediction: Prediction, facts: ModelFacts) -> dict[str, Any]:
    """Return all that is said of a film, as JSON can hold it."""
    from covidcxr.pipeline.prediction import in_words

    chances = prediction.probabilities
    upright = prediction.orientation.correct_masks(prediction.masks)  # sides are the patient's
    # A classifier without thresholds answers with its most probable class, or its findings from 0.5 up.
    least = facts.thresholds or ({} if facts.exclusive else dict.fromkeys(chances, 0.5))
    plausible = [name for name, value in chances.items() if value >= least.get(name, 0.5)]
    if facts.exclusive and not facts.thresholds:
        plausible = [prediction.label] if prediction.label else []
    return {
        "model": facts.name,
        "model_sha256": facts.sha256,
        "label": prediction.label,
        "probabilities": chances,
        "reasons": [{"id": reason, "words": in_words(reason)} for reason in prediction.reasons],
        "lung_fraction": prediction.lung_fraction,
        "infected_fraction": prediction.infected_fraction,
        "infected_by_lung": infected_by_lung(upright.get("lung_field", upright.get("lung")), upright.get("infection")),
        "masks": list(prediction.masks),
        "plausible": plausible,
        "thresholds": facts.thresholds,
        "classes": list(facts.classes),
        "notes": [in_words(note) for note in prediction.notes],
    }


def infected_by_lung(lungs: Mask | None, infection: Mask | None) -> dict[str, float | None]:
    """Return the infected fraction of each lung, in [0, 1], by the patient's sides: the right lung is on the left.

    Args:
        lungs: Both lungs; their two largest parts are taken for them. None = not drawn.
        infection: At the same size; None = not drawn.

    Returns:
        "right" and "left"; None where it is not known, also where the lungs are one piece.
    """
    from scipy import ndimage

    unknown: dict[str, float | None] = {"right": None, "left": None}
    if lungs is None or infection is None:
        return unknown
    parts, count = ndimage.label(lungs)
    if count < 2:
        return unknown
    areas = np.bincount(parts.ravel())[1:]
    second, first = np.argsort(areas)[-2:]
    if areas[second] < _SMALLEST_LUNG * areas[first]:
        return unknown
    columns = {part: float(np.nonzero(parts == part + 1)[1].mean()) for part in (first, second)}
    right, left = sorted(columns, key=lambda part: columns[part])
    shares = {part: float(infection[parts == part + 1].mean()) for part in (first, second)}
    return {"right": shares[right], "left": shares[left]}


def mask_to_png(mask: Mask) -> bytes:
    """Return a mask as PNG, 0 and 255."""
    return to_png(mask.astype(np.uint8) * np.uint8(255))


def png_to_pixels(png: bytes) -> UInt8[np.ndarray, "height width"]:
    """Read back what this server wrote itself."""
    from PIL.PngImagePlugin import PngImageFile  # not Image.open: it warns about size, process-wide

    return np.array(PngImageFile(io.BytesIO(png)), dtype=np.uint8)


def png_to_mask(png: bytes) -> Mask:
    """Read back a mask that this server wrote itself."""
    return png_to_pixels(png) > 0


def masks_to_png(masks: Mapping[str, Mask]) -> dict[str, bytes]:
    """Return masks as PNG, by mask class."""
    return {name: mask_to_png(mask) for name, mask in masks.items()}
