"""The result of a pipeline for one image."""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from covidcxr.errors import ConfigError, CovidCXRError, ImageReadError
from covidcxr.io.folders import path_inside, replace_file
from covidcxr.io.image import write_mask
from covidcxr.io.pixels import held_bits, held_bits_in_words
from covidcxr.io.pretrained import write_json
from covidcxr.pipeline.view_check import view_in_words
from covidcxr.transforms.overlay import draw_overlay
from covidcxr.transforms.postprocess import explain_reason, not_finite
from covidcxr.transforms.pyramid import UPRIGHT, Orientation, Pixels
from covidcxr.types import LUNG_CLASSES
from covidcxr.utils.plain import html_table

if TYPE_CHECKING:
    from covidcxr.explain import Explanation
    from covidcxr.models import Classifier
    from covidcxr.pipeline.onnx import OnnxModel

__all__ = ["FailedPrediction", "OverlayFormat", "Prediction", "depth_reason", "in_words"]

OverlayFormat: TypeAlias = Literal["png", "jpg"]
_LONGEST_JPEG = 1024  # pixels

_DEPTH = re.compile(r"(\d+)-bits-in-16")
_NOTEBOOK = 384
"""Longer side of the overlay in a notebook, in pixels."""
_UNDECIDED = {
    "several-answers-plausible": "More than one class is plausible; see the probabilities.",
    "no-answer-plausible": "No class is plausible; see the probabilities.",
}


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The result of a pipeline for one image. For research, not for clinical use.

    Attributes:
        image_id: The image's path or number, as given.
        label: The one plausible class; None = the model abstained (see `reasons`), or there is no classifier.
        probabilities: By class name, calibrated, in [0, 1]; empty where the classifier could not be run or gave no
            finite numbers.
        reasons: Why there is no label: ids such as "lungs-not-found"; `in_words` makes a sentence of one.
        masks: By mask class, at the image's own size: "lung_field" (lungs without the heart), "lung" (with the part
            behind heart and diaphragm), "infection", and whatever other classes the segmenters have.
        image: The image itself, 8-bit grey, for pictures.
        classifier: The model behind the label; for `explain`.
        orientation: How the image lies, if the view check found it inverted or turned; see `notes`. The models saw it
            corrected; `image` and `masks` are as it was given.
        infected_interval: Lower and upper end of the interval that shall hold the infected fraction that a reader would
            outline, in [0, 1]; None where the pipeline promises none, or the infection was corrected by somebody.

    Example:
        ```python
        from covidcxr import Pipeline
        from covidcxr.pipeline import in_words

        prediction = Pipeline.from_pretrained("mini")("image.png")
        assert prediction.label in (None, "covid19", "normal", "pneumonia")
        print(*map(in_words, prediction.reasons), prediction.finding_fractions)
        ```
    """

    image_id: str
    label: str | None
    probabilities: dict[str, float]
    reasons: tuple[str, ...]
    masks: dict[str, Bool[np.ndarray, "height width"]]
    image: UInt8[np.ndarray, "height width"] = field(repr=False)
    classifier: Classifier | OnnxModel | None = field(default=None, repr=False)
    orientation: Orientation = UPRIGHT
    infected_interval: tuple[float, float] | None = None

    def __repr__(self) -> str:
        values = {name: round(value, 3) for name, value in self.probabilities.items()}
        parts = [f"{self.image_id!r}: {self.label or 'no label'}", f"probabilities {values}" if values else ""]
        parts += [f"{name} {share:.0%} of the lungs" for name, share in self.finding_fractions.items()]
        return f"<Prediction {'; '.join(part for part in (*parts, ', '.join(self.reasons)) if part)}>"

    def _repr_html_(self) -> str:
        """Show the overlay and the probabilities in a notebook."""
        picture = Image.fromarray(self.overlay())
        picture.thumbnail((_NOTEBOOK, _NOTEBOOK))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        rows = [(name, f"{value:.1%}") for name, value in self.probabilities.items()]
        rows += [(name, f"{share:.0%} of the lungs") for name, share in self.finding_fractions.items()]
        rows += [("note", in_words(word)) for word in (*self.reasons, *self.notes)]
        data = base64.b64encode(buffer.getvalue()).decode()
        return (
            f'<div style="display:flex;gap:1em;flex-wrap:wrap"><img alt="the image with outlines" '
            f'src="data:image/jpeg;base64,{data}">'
            f"{html_table(self.label or 'no label', rows)}</div><small>For research only; not for clinical use.</small>"
        )

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
        """The same as `image`: its name in 0.1.0, which stays."""
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
        area = np.count_nonzero(lungs)  # many times as fast as `sum`
        return {name: np.count_nonzero(self.masks[name] & lungs) / area for name in self.findings}

    @property
    def lung_fraction(self) -> float | None:
        """Area of the lungs as a fraction of the image's, in [0, 1]."""
        return None if self.lung_mask is None else np.count_nonzero(self.lung_mask) / self.lung_mask.size

    @property
    def infected_fraction(self) -> float | None:
        """Area of the infection as a fraction of the lungs', in [0, 1]; None where either is not known."""
        return self.finding_fractions.get("infection")

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON; masks by their areas only, probabilities that are not finite as None."""
        classes = () if self.classifier is None else self.classifier.config.classes
        failed = not_finite("classifier") in self.reasons
        return {
            "image_id": self.image_id,
            "label": self.label,
            "probabilities": dict.fromkeys(classes) if failed else self.probabilities,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "lung_fraction": self.lung_fraction,
            "infected_fraction": self.infected_fraction,
            "infected_interval": self.infected_interval,
            "finding_fractions": self.finding_fractions,
            "height": self.image.shape[0],
            "width": self.image.shape[1],
            "mask_areas": {name: int(np.count_nonzero(mask)) for name, mask in self.masks.items()},
        }

    def overlay(self, longest: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Draw the image with the outlines of its masks, RGB; findings are tinted as well.

        Args:
            longest: Shrink image and masks first, so that the longer side has at most so many pixels.

        Returns:
            The picture, 0 to 255.
        """
        import cv2

        height, width = self.image.shape
        if longest is None or max(height, width) <= longest:
            return draw_overlay(self.image, self.masks)
        size = tuple(max(1, round(side * longest / max(height, width))) for side in (width, height))
        masks = {
            name: cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).view(np.bool_)
            for name, mask in self.masks.items()
        }
        return draw_overlay(np.asarray(cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)), masks)

    def explain(self, target: str | None = None, method: str = "gradcam") -> Explanation:
        """Show which parts of the image speak for a class, according to the classifier.

        Args:
            target: The class; by default the label, or where there is none the most probable class.
            method: A name of `covidcxr.explain.METHODS`; "integrated_gradients" and "occlusion" need the extra
                `explain`.

        Returns:
            The explanation, as the image lies.

        Raises:
            ConfigError: If there is no classifier, it is an exported file, or it could not be run because its lungs
                were not found.
            UnknownNameError: If there is no such class or method.
        """
        if self.classifier is None:
            raise ConfigError("There is no classifier to explain: the pipeline has none.")
        from covidcxr.pipeline.onnx import OnnxModel

        if isinstance(self.classifier, OnnxModel):
            raise ConfigError("An exported classifier cannot be explained: load the pipeline that was exported.")
        from covidcxr.explain import explain  # brings torch

        if not self.probabilities:
            why = " ".join(map(in_words, self.reasons))
            raise ConfigError(f"The classifier was not run on {self.image_id}, so nothing can be explained. {why}")
        target = target or self.label or max(self.probabilities, key=lambda name: self.probabilities[name])
        image = self.orientation.correct(self.image)
        masks = self.orientation.correct_masks(self.masks)
        explanation = explain(self.classifier, image, masks, target=target, method=method)
        heat = np.ascontiguousarray(self.orientation.turn(explanation.heat))
        # The probability of the image itself, not of its 8 bits.
        return replace(explanation, heat=heat, probability=self.probabilities[target])

    def save(
        self,
        folder: str | os.PathLike[str],
        name: str | None = None,
        *,
        overlay: OverlayFormat | None = "png",
        masks: bool = True,
        sync: bool = True,
    ) -> Path:
        """Write a `NAME.MASK.png` (black and white) a mask class, `NAME.overlay.png` and, last, `NAME.json`.

        Args:
            folder: Made if need be.
            name: Stem of the files; by default the stem of `image_id`.
            overlay: "png", of the image's size; "jpg", `NAME.overlay.jpg` of at most 1024 pixels a side, which takes a
                twentieth of the time; or None.
            masks: Write the masks.
            sync: Wait until each file is on the disk; see `covidcxr.io.folders.replace_file`.

        Returns:
            The path of the JSON file.

        Raises:
            ConfigError: If a file would lie outside the folder.
            OSError: If a file cannot be written.
        """
        stem = name or Path(self.image_id).stem
        for mask_class, mask in self.masks.items() if masks else ():
            write_mask(path_inside(folder, f"{stem}.{mask_class}.png"), mask, sync=sync)
        if overlay is not None:
            self.save_overlay(folder, stem, overlay, sync=sync)
        place = path_inside(folder, f"{stem}.json")
        write_json(place, self.to_dict(), sync=sync)
        return place

    def save_overlay(
        self, folder: str | os.PathLike[str], stem: str, overlay: OverlayFormat = "png", *, sync: bool = True
    ) -> Path:
        """Write the image with the outlines of its masks.

        Args:
            folder: Made if need be.
            stem: The file is `STEM.overlay.png`, or `.jpg`.
            overlay: "png", of the image's size; or "jpg", of at most 1024 pixels a side.
            sync: Wait until the file is on the disk.

        Returns:
            The path of the picture.

        Raises:
            ConfigError: If the file would lie outside the folder.
            OSError: If it cannot be written.
        """
        place = path_inside(folder, f"{stem}.overlay.{overlay}")
        picture = Image.fromarray(self.overlay(_LONGEST_JPEG if overlay == "jpg" else None))
        with replace_file(place, sync=sync) as draft:
            picture.save(draft, format="JPEG" if overlay == "jpg" else "PNG", quality=90)
        return place


@dataclass(frozen=True, slots=True)
class FailedPrediction:
    """An image that could not be read: one entry in the results, and the others go on.

    Attributes:
        image_id: The image's path or number, as given.
        error: What was wrong with it.

    Example:
        ```python
        from covidcxr import Pipeline

        (failed,) = Pipeline.from_pretrained("mini").predict(["missing.png"], on_error="return")
        assert failed.to_dict()["kind"] == "ImageReadError"
        ```
    """

    image_id: str
    error: CovidCXRError

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON."""
        kind = ImageReadError if isinstance(self.error, ImageReadError) else type(self.error)  # as in 0.1.0
        return {"image_id": self.image_id, "error": str(self.error), "kind": kind.__name__}


def in_words(reason: str) -> str:
    """Return the sentence for a reason or a note.

    Args:
        reason: One of `Prediction.reasons` or `Prediction.notes`.

    Returns:
        The sentence; an unknown id comes back as it is.
    """
    part = reason.removesuffix("-not-finite")
    if part != reason:
        part = "view check" if part == "gate" else part.replace("-", " ")
        return f"The {part} computed no finite numbers for this image: its values are too large, or damaged."
    if depth := _DEPTH.fullmatch(reason):
        return f"The image has {held_bits_in_words(int(depth[1]))}"
    return _UNDECIDED.get(reason) or view_in_words(reason) or explain_reason(reason)


def depth_reason(image: Pixels) -> tuple[str, ...]:
    """Return what an image that holds fewer bits than it has explains of an abstention.

    Args:
        image: Grey, 8 bits or in [0, 1].

    Returns:
        An id such as "12-bits-in-16"; nothing of any other image.
    """
    bits = None if image.dtype == np.uint8 else held_bits(image)
    return () if bits is None else (f"{bits}-bits-in-16",)


def as_image(image: Pixels) -> UInt8[np.ndarray, "height width"]:
    """Return an image as 8-bit grey.

    Args:
        image: Grey, 8 bits or in [0, 1].

    Returns:
        The image, 0 to 255.
    """
    import cv2

    return image if image.dtype == np.uint8 else np.asarray(cv2.convertScaleAbs(image, alpha=255), np.uint8)
