"""How a film may lie: the right way round, turned by quarters, with black and white exchanged, or both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

__all__ = ["NOT_A_FILM", "ORIENTATIONS", "UPRIGHT", "Orientation"]


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a picture lies. Mirroring is none of it: a mirrored chest looks like another chest.

    Attributes:
        turns: Quarter turns clockwise away from upright, 0 to 3.
        inverted: Whether bone is dark.
    """

    turns: int = 0
    inverted: bool = False

    @property
    def name(self) -> str:
        """The class of a gate: "frontal", "inverted", "turned-90", "inverted-turned-90", ... (degrees clockwise)."""
        words = ["inverted"] * self.inverted + [f"turned-{90 * self.turns}"] * bool(self.turns)
        return "-".join(words) or "frontal"

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong, each by itself: "inverted", "turned-90"; empty = upright."""
        return ("inverted",) * self.inverted + (f"turned-{90 * self.turns}",) * bool(self.turns)

    def lay(self, film: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "new_height new_width"]:
        """Turn and invert an upright film, in [0, 1], so that it lies like this."""
        return np.ascontiguousarray(self.turn(1 - film if self.inverted else film))

    def correct(self, film: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "new_height new_width"]:
        """Make a film, in [0, 1], that lies like this upright again."""
        return np.ascontiguousarray(self.turn_back(1 - film if self.inverted else film))

    def turn(self, plane: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Turn what was found on the upright film so that it fits the film as it lies."""
        return np.rot90(plane, -self.turns)

    def turn_back(self, plane: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Turn what lies like this upright, greys left as they are."""
        return np.rot90(plane, self.turns)

    def lay_masks(self, masks: dict[str, Bool[np.ndarray, "_ _"]]) -> dict[str, Bool[np.ndarray, "_ _"]]:
        """Turn masks of the upright film so that they fit the film as it lies."""
        return {name: np.ascontiguousarray(self.turn(mask)) for name, mask in masks.items()}

    def correct_masks(self, masks: dict[str, Bool[np.ndarray, "_ _"]]) -> dict[str, Bool[np.ndarray, "_ _"]]:
        """Turn masks of the film as it lies so that they fit the upright film."""
        return {name: np.ascontiguousarray(self.turn_back(mask)) for name, mask in masks.items()}


UPRIGHT = Orientation()
"""The right way round."""

ORIENTATIONS: dict[str, Orientation] = {
    way.name: way for way in (Orientation(turns, inverted) for inverted in (False, True) for turns in range(4))
}
"""All eight by their names, "frontal" first."""

NOT_A_FILM = "not-a-frontal-film"
"""The class of a gate for everything else: photographs, CT slices, lateral films, other body parts, text, noise."""
