"""What a model says of an image, as JSON and PNG can hold it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr.serve.worker import to_png

if TYPE_CHECKING:
    from covidcxr.pipeline.prediction import Prediction
    from covidcxr.serve.engine import ModelFacts

__all__ = [
    "infected_by_lung",
    "mask_areas",
    "mask_to_png",
    "masks_to_png",
    "png_to_mask",
    "png_to_pixels",
    "to_answer",
]

Mask = Bool[np.ndarray, "height width"]

_SMALLEST_LUNG = 0.25
"""A part of the lung mask smaller than this share of the largest is no lung of its own."""

_UNKNOWN: dict[str, float | None] = {"lungs": None, "right": None, "left": None}


def to_answer(prediction: Prediction, facts: ModelFacts) -> dict[str, Any]:
    """Return what a model says of an image, as JSON can hold it.

    Args:
        prediction: The prediction.
        facts: The model that made it.

    Returns:
        What `covidcxr.serve.schema.Answer` describes.
    """
    from covidcxr.pipeline.prediction import in_words

    probabilities = prediction.probabilities
    # A classifier without thresholds answers with its most probable class, or its findings from 0.5 up.
    least = facts.thresholds or ({} if facts.exclusive else dict.fromkeys(probabilities, 0.5))
    plausible = [name for name, value in probabilities.items() if value >= least.get(name, 0.5)]
    if facts.exclusive and not facts.thresholds:
        plausible = [prediction.label] if prediction.label else []
    masks = {name: prediction.masks[name] for name in facts.mask_classes if name in prediction.masks}
    areas = mask_areas(prediction.orientation.correct_masks(masks))  # sides are the patient's
    lungs = areas.get("lung_field", areas.get("lung"))
    infection = areas.get("infection", _UNKNOWN)
    return {
        "model": facts.name,
        "model_sha256": facts.sha256,
        "label": prediction.label,
        "probabilities": probabilities,
        "reasons": [{"id": reason, "words": in_words(reason)} for reason in prediction.reasons],
        "lung_fraction": None if lungs is None else lungs["image"],
        "infected_fraction": infection["lungs"],
        "infected_interval": prediction.infected_interval,
        "infected_by_lung": {side: infection[side] for side in ("right", "left")},
        "areas": areas,
        "masks": list(masks),
        "plausible": plausible,
        "thresholds": facts.thresholds,
        "classes": list(facts.classes),
        "notes": [in_words(note) for note in prediction.notes],
    }


def mask_areas(masks: Mapping[str, Mask]) -> dict[str, dict[str, float | None]]:
    """Return how large each mask is.

    Args:
        masks: By mask class, of one size, upright.

    Returns:
        By mask class shares in [0, 1]: `image`, of the image's area; and of findings, that is of all but lungs, the
        covered part of both lungs (`lungs`) and of the patient's `right` and `left` one. None = not known, also where
        the lungs are one piece.
    """
    from covidcxr.types import LUNG_CLASSES

    lungs = masks.get("lung_field", masks.get("lung"))
    whole = 0 if lungs is None else np.count_nonzero(lungs)
    sides = _split_lungs(lungs) if lungs is not None and masks.keys() - set(LUNG_CLASSES) else {}
    areas = {}
    for name, mask in masks.items():
        areas[name] = {"image": np.count_nonzero(mask) / mask.size, **_UNKNOWN}
        if lungs is not None and whole and name not in LUNG_CLASSES:
            areas[name]["lungs"] = np.count_nonzero(mask & lungs) / whole
            for side, (place, lung) in sides.items():
                areas[name][side] = np.count_nonzero(mask[place] & lung) / np.count_nonzero(lung)
    return areas


def _split_lungs(lungs: Mask) -> dict[str, tuple[tuple[slice, slice], Mask]]:
    """Return for "right" and "left" where the lung lies, and its mask there; nothing where there are not two."""
    import cv2

    count, parts, boxes, centres = cv2.connectedComponentsWithStats(lungs.astype(np.uint8), connectivity=4)
    if count < 3:  # part 0 is all that is no lung
        return {}
    sizes = boxes[1:, cv2.CC_STAT_AREA]
    second, first = np.argsort(sizes)[-2:]
    if sizes[second] < _SMALLEST_LUNG * sizes[first]:
        return {}
    sides = {}
    # The patient's right lung is on the left of the image.
    for side, part in zip(
        ("right", "left"), sorted((first + 1, second + 1), key=lambda at: centres[at][0]), strict=True
    ):
        left, top, width, height = boxes[part][:4]
        place = (slice(top, top + height), slice(left, left + width))
        sides[side] = (place, parts[place] == part)
    return sides


def infected_by_lung(lungs: Mask | None, infection: Mask | None) -> dict[str, float | None]:
    """Return the infected fraction of each lung, in [0, 1], by the patient's sides: the right lung is on the left.

    Args:
        lungs: Both lungs; their two largest parts are taken for them. None = not predicted.
        infection: At the same size; None = not predicted.

    Returns:
        "right" and "left"; None where it is not known, also where the lungs are one piece.
    """
    if lungs is None or infection is None:
        return {"right": None, "left": None}
    areas = mask_areas({"lung_field": lungs, "infection": infection})["infection"]
    return {side: areas[side] for side in ("right", "left")}


def mask_to_png(mask: Mask) -> bytes:
    """Return a mask as PNG.

    Args:
        mask: True inside.

    Returns:
        A PNG of 0 and 255.
    """
    return to_png(mask.astype(np.uint8) * np.uint8(255))


def png_to_pixels(png: bytes) -> UInt8[np.ndarray, "height width"]:
    """Read back what this server wrote itself.

    Args:
        png: 8-bit grey.

    Returns:
        The pixels.
    """
    from PIL.PngImagePlugin import PngImageFile  # not Image.open: it warns about size, process-wide

    return np.array(PngImageFile(io.BytesIO(png)), dtype=np.uint8)


def png_to_mask(png: bytes) -> Mask:
    """Read back a mask that this server wrote itself.

    Args:
        png: 0 and 255.

    Returns:
        True inside.
    """
    return png_to_pixels(png) > 0


def masks_to_png(masks: Mapping[str, Mask]) -> dict[str, bytes]:
    """Return masks as PNG.

    Args:
        masks: By mask class.

    Returns:
        PNGs of 0 and 255, by mask class.
    """
    return {name: mask_to_png(mask) for name, mask in masks.items()}
