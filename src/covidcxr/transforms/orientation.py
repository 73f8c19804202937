"""How an image lies: turned, inverted or upright, and the classes by which a view check says it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Shaped

from covidcxr import aliases

__all__ = ["CHILD", "NOT_A_FRONTAL_IMAGE", "ORIENTATIONS", "UPRIGHT", "Orientation"]

__getattr__ = partial(aliases.find, __name__)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a picture lies. Mirroring is none of it: a mirrored chest looks like another chest.

    Attributes:
        turns: Quarter turns clockwise away from upright, 0 to 3.
        inverted: Whether bone is dark.

    Example:
        ```python
        import numpy as np
        from covidcxr.transforms.orientation import ORIENTATIONS

        turned = ORIENTATIONS["turned-90"]
        image = np.random.default_rng(0).random((30, 20))
        assert turned.lay(image).shape == (20, 30)
        assert (turned.correct(turned.lay(image)) == image).all()
        ```
    """

    turns: int = 0
    inverted: bool = False

    @property
    def name(self) -> str:
        """The class of a view check: "frontal", "inverted", "turned-90", "inverted-turned-90" (degrees clockwise)."""
        words = ["inverted"] * self.inverted + [f"turned-{90 * self.turns}"] * bool(self.turns)
        return "-".join(words) or "frontal"

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong, each by itself: "inverted", "turned-90"; empty = upright."""
        return ("inverted",) * self.inverted + (f"turned-{90 * self.turns}",) * bool(self.turns)

    def lay(self, image: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Turn and invert an upright image so that it lies like this.

        Args:
            image: Grey, 8 bits or in [0, 1].

        Returns:
            The image as it lies.
        """
        return np.ascontiguousarray(self.turn(_invert(image) if self.inverted else image))

    def correct(self, image: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Make an image that lies like this upright again.

        Args:
            image: Grey, 8 bits or in [0, 1].

        Returns:
            The upright image.
        """
        return np.ascontiguousarray(self.turn_back(_invert(image) if self.inverted else image))

    def turn(self, plane: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Turn a mask or map of the upright image so that it fits the image as it lies.

        Args:
            plane: Any values; they stay as they are.

        Returns:
            The turned plane, a view.
        """
        return np.rot90(plane, -self.turns)

    def turn_back(self, plane: Shaped[np.ndarray, "height width"]) -> Shaped[np.ndarray, "new_height new_width"]:
        """Turn a plane that lies like this upright, its values left as they are.

        Args:
            plane: Any values.

        Returns:
            The turned plane, a view.
        """
        return np.rot90(plane, self.turns)

    def lay_masks(self, masks: dict[str, Bool[np.ndarray, "_ _"]]) -> dict[str, Bool[np.ndarray, "_ _"]]:
        """Turn masks of the upright image so that they fit the image as it lies.

        Args:
            masks: By mask class.

        Returns:
            The turned masks.
        """
        return {name: np.ascontiguousarray(self.turn(mask)) for name, mask in masks.items()}

    def correct_masks(self, masks: dict[str, Bool[np.ndarray, "_ _"]]) -> dict[str, Bool[np.ndarray, "_ _"]]:
        """Turn masks of the image as it lies so that they fit the upright image.

        Args:
            masks: By mask class.

        Returns:
            The turned masks.
        """
        return {name: np.ascontiguousarray(self.turn_back(mask)) for name, mask in masks.items()}


def _invert(image: Shaped[np.ndarray, "_ _"]) -> Shaped[np.ndarray, "_ _"]:
    return np.asarray((255 if image.dtype == np.uint8 else 1) - image)


UPRIGHT = Orientation()
"""The right way round."""

ORIENTATIONS: dict[str, Orientation] = {
    orientation.name: orientation
    for orientation in (Orientation(turns, inverted) for inverted in (False, True) for turns in range(4))
}
"""All eight by their names, "frontal" first."""

NOT_A_FRONTAL_IMAGE = "not-a-frontal-film"
"""The class of a view check for all else: photographs, CT slices, lateral images, other body parts, text, noise."""

CHILD = "child"
"""The class of a view check for frontal images of children, where the other models have learnt from adults only."""
