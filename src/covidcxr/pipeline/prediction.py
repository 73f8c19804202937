"""What a pipeline says of one image."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.explain import Explanation, explain
from covidcxr.io.image import write_mask
from covidcxr.io.pretrained import write_json
from covidcxr.models import Classifier
from covidcxr.pipeline.view_check import in_words_of_gate
from covidcxr.transforms.geometry import LUNG_CLASSES, UPRIGHT, Orientation
from covidcxr.transforms.overlay import draw_overlay
from covidcxr.transforms.postprocess import explain_reason

__all__ = ["Prediction", "FailedPrediction", "in_words"]

_DOUBTS = {
    "several-answers-plausible": "More than one answer is plausible; see the probabilities.",
    "no-answer-plausible": "No answer is plausible; see the probabilities.",
}


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The answer of a pipeline for one image. For research, not for clinical use.

    Attributes:
        image_id: The image's path or number, as given.
        label: The one plausible class, or None = cannot say (see `reasons`), or no classifier.
        probabilities: By class name, calibrated; empty where the classifier could not be asked.
        reasons: Why it cannot say: ids such as "lungs-not-found"; `in_words` makes a sentence of one.
        masks: By mask class, at the image's own size: "lung_field" (lungs without the heart), "lung" (with the part
            behind heart and diaphragm), "infection".
        image: The image itself, 8-bit grey, for pictures.
        classifier: What was asked; for `explain`.
        orientation: How the image lies, if a gate found it inverted or turned; see `notes`. It was corrected before
            anything was found on it, and `image` and `masks` are as it was given.
    """

    image_id: str
    label: str | None
    probabilities: dict[str, float]
    reasons: tuple[str, ...]
    masks: dict[str, Bool[np.ndarray, "height width"]]
    image: UInt8[np.ndarray, "height width"] = field(repr=False)
    classifier: Classifier | None = field(default=None, repr=False)
    orientation: Orientation = UPRIGHT

    @property
    def notes(self) -> tuple[str, ...]:
        """What was corrected: ids such as "inverted-corrected", "turned-90-corrected"; `in_words` makes a sentence."""
        return tuple(f"{fault}-corrected" for fault in self.orientation.faults)

    @property
    def lung_mask(self) -> Bool[np.ndarray, "height width"] | None:
        """The lung fields where the model draws them, else the whole lungs; None without a lung segmenter."""
        return self.masks.get("lung_field", self.masks.get("lung"))

    @property
    def infection_mask(self) -> Bool[np.ndarray, "height width"] | None:
        """The infected part of the lungs; None without an infection segmenter."""
        return self.masks.get("infection")

    @property
    def film(self) -> UInt8[np.ndarray, "height width"]:
        """The image, under its name in 0.1.0."""
        return self.image

    @property
    def findings(self) -> tuple[str, ...]:
        """The mask classes that are no lungs: "infection" and whatever else the segmenters draw."""
        return tuple(name for name in self.masks if name not in LUNG_CLASSES)

    @property
    def finding_fractions(self) -> dict[str, float]:
        """Area of each finding within the lungs as a fraction of theirs, in [0, 1]; empty where no lungs are known."""
        lungs = self.lung_mask
        if lungs is None or not lungs.any():
            return {}
        return {name: float((self.masks[name] & lungs).sum() / lungs.sum()) for name in self.findings}

    @property
    def lung_fraction(self) -> float | None:
        """Area of the lungs as a fraction of the image's, in [0, 1]."""
        return None if self.lung_mask is None else float(self.lung_mask.mean())

    @property
    def infected_fraction(self) -> float | None:
        """Area of the infection as a fraction of the lungs', in [0, 1]; None where either is not known."""
        return self.finding_fractions.get("infection")

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON; masks by their areas only."""
        return {
            "image_id": self.image_id,
            "label": self.label,
            "probabilities": self.probabilities,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "lung_fraction": self.lung_fraction,
            "infected_fraction": self.infected_fraction,
            "finding_fractions": self.finding_fractions,
            "height": self.image.shape[0],
            "width": self.image.shape[1],
            "mask_areas": {name: int(mask.sum()) for name, mask in self.masks.items()},
        }

    def overlay(self) -> UInt8[np.ndarray, "height width 3"]:
        """Draw the image with the outlines of its masks, RGB; findings are tinted as well."""
        return draw_overlay(self.image, self.masks)

    def explain(self, target: str | None = None, method: str = "gradcam") -> Explanation:
        """Show what on the image speaks for a class, in the eyes of the classifier.

        Args:
            target: The class; by default the answer, or where there is none the most probable class.
            method: A name of `covidcxr.explain.METHODS`; "integrated_gradients" and "occlusion" need the extra
                `explain`.

        Raises:
            ConfigError: If there is no classifier, or it could not be asked because its lungs were not found.
            UnknownNameError: If there is no such class or method.
        """
        if self.classifier is None:
            raise ConfigError("There is no classifier to explain: the pipeline that answered has none.")
        if not self.probabilities:
            why = " ".join(map(in_words, self.reasons))
            raise ConfigError(f"The classifier was not asked about {self.image_id}, so nothing can be explained. {why}")
        chances = self.probabilities
        target = target or self.label or max(chances, key=lambda name: chances[name])
        image = self.orientation.correct(self.image.astype(np.float32) / 255)
        found = explain(
            self.classifier, image, self.orientation.correct_masks(self.masks), target=target, method=method
        )
        heat = np.ascontiguousarray(self.orientation.turn(found.heat))
        return replace(found, heat=heat, probability=chances[target])  # of the image itself, not of its 8 bits

    def save(self, folder: str | os.PathLike[str], name: str | None = None) -> Path:
        """Write `NAME.json`, `NAME.overlay.png` and one `NAME.MASK.png` (0 or 255) a mask class.

        Args:
            folder: Made if need be.
            name: Stem of the files; by default the stem of `image_id`.

        Returns:
            The path of the JSON file.
        """
        from PIL import Image

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        stem = name or Path(self.image_id).stem
        for mask_class, mask in self.masks.items():
            write_mask(target / f"{stem}.{mask_class}.png", mask)
        Image.fromarray(self.overlay()).save(target / f"{stem}.overlay.png")
        write_json(target / f"{stem}.json", self.to_dict())
        return target / f"{stem}.json"


@dataclass(frozen=True, slots=True)
class FailedPrediction:
    """An image that could not be read or answered: one entry in the report, the others go on.

    Attributes:
        image_id: The image's path or number, as given.
        error: What was wrong with it.
    """

    image_id: str
    error: CovidCXRError

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON."""
        return {"image_id": self.image_id, "error": str(self.error), "kind": type(self.error).__name__}


def in_words(reason: str) -> str:
    """Return the sentence for one of `Prediction.reasons` or `Prediction.notes`."""
    return _DOUBTS.get(reason) or in_words_of_gate(reason) or explain_reason(reason)


def as_image(image: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Return an image in [0, 1] as 8-bit grey."""
    import cv2

    return np.asarray(cv2.convertScaleAbs(image, alpha=255), np.uint8)
