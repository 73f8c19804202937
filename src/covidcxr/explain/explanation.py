"""Where a classifier looked on one film."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from covidcxr.errors import ConfigError
from covidcxr.io.atomic import replace_file
from covidcxr.io.image import read_image
from covidcxr.io.pretrained import write_json
from covidcxr.types import ImageLike

__all__ = ["Explanation"]

_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_RAMP = np.array([(120, 0, 120), (170, 10, 110), (225, 55, 40), (250, 150, 10), (255, 240, 90)], float)
"""From violet over red to yellow: its lightness grows all the way, so it reads in grey and with any colour vision."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What on a film speaks for a class, in the eyes of a classifier. For research, not for clinical use.

    Attributes:
        heat: Evidence for the class at the film's own size, float32 in [0, 1]: the strongest place is 1. 0 where
            nothing speaks for the class and where the model does not look.
        target: The class.
        method: How it was found; a name of `covidcxr.explain.METHODS`.
        probability: What the classifier gives for the class on this film, calibrated, in [0, 1].
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
        """What is to be known of this map, in a sentence; mostly nothing."""
        return (
            f"Nothing on this film speaks for {self.target} by {self.method}: the map is empty." if self.empty else ""
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

    def overlay(self, film: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
        """Draw the map over its film, RGB: the stronger the evidence, the brighter and the less transparent.

        Args:
            film: The film that was explained, as `read_image` takes it.

        Raises:
            ConfigError: If the film has another size than the map.
            ImageReadError: If it cannot be read.
        """
        grey = read_image(film)
        if grey.shape != self.heat.shape:
            raise ConfigError(f"The map is {self.heat.shape}, but the film {grey.shape}: draw it over its own film.")
        color = np.stack([np.interp(self.heat, _STOPS, _RAMP[:, part]) for part in range(3)], axis=2)
        weight = (0.75 * np.clip(self.heat * 1.5, 0, 1))[..., None]
        picture: UInt8[np.ndarray, "height width 3"] = np.rint(
            (1 - weight) * 255 * grey[..., None] + weight * color
        ).astype(np.uint8)
        return picture

    def save(self, folder: str | os.PathLike[str], name: str, film: ImageLike | None = None) -> Path:
        """Write `NAME.heat.png` (16-bit grey, white = 1: `read_image` gives the map back) and `NAME.heat.json`.

        Args:
            folder: Made if need be.
            name: Stem of the files.
            film: With it, the picture `NAME.heat-overlay.png` is written as well.

        Returns:
            The path of the JSON file.
        """
        from PIL import Image

        target = Path(folder)
        with replace_file(target / f"{name}.heat.png") as draft:
            Image.fromarray(np.rint(self.heat * 65535).astype(np.uint16)).save(draft, format="PNG")
        if film is not None:
            with replace_file(target / f"{name}.heat-overlay.png") as draft:
                Image.fromarray(self.overlay(film)).save(draft, format="PNG")
        write_json(target / f"{name}.heat.json", self.to_dict())
        return target / f"{name}.heat.json"
