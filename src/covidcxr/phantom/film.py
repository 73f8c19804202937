"""The film: where the body lies on it, how it is painted on, and how matter becomes grey."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from covidcxr.phantom.anatomy import SIDES, Layer, Outline, PhantomView, Shape


@dataclass(frozen=True, slots=True)
class Film:
    """Where the body lies on the film, and how to draw on it.

    Attributes:
        height: Height in pixels.
        width: Width in pixels.
        matrix: From body units to pixels [2, 3].
        waves: A gentle bend of the whole body [waves, 5]: no two bodies are alike, and none is symmetric.

    Example:
        ```python
        import numpy as np

        from covidcxr.phantom.film import Film

        rng = np.random.default_rng(0)
        film = Film.draw(rng, rng, (64, 64))
        square = np.array([(-0.1, 0.4), (0.1, 0.4), (0.1, 0.6), (-0.1, 0.6)])
        assert film.paint((square, 1.0)).max() == 1
        ```
    """

    height: int
    width: int
    matrix: Float[np.ndarray, "2 3"]
    waves: Float[np.ndarray, "_ 5"]

    @classmethod
    def draw(cls, exposure: np.random.Generator, anatomy: np.random.Generator, size: tuple[int, int]) -> Film:
        """Lay a body on a film, a little askew, and bend it a little.

        Args:
            exposure: Random numbers of this exposure.
            anatomy: Random numbers of this person.
            size: Height and width in pixels.

        Returns:
            The film.
        """
        zoom, angle = exposure.uniform(0.93, 1.08), exposure.normal(0, 0.02)
        shift = np.array([0.5, 0.53]) + exposure.normal(0, 0.012, 2)
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        pixels = np.diag([float(size[1]), float(size[0])])
        corner = pixels @ (shift - turn @ [0, 0.5]) - 0.5  # OpenCV counts from the centre of a pixel
        matrix = np.column_stack([pixels @ turn, corner])
        bends = anatomy.normal(0, 2.2 * np.pi, (4, 2)), anatomy.uniform(0, 6.3, 4), anatomy.normal(0, 0.006, (4, 2))
        return cls(*size, matrix, np.column_stack(bends))

    @property
    def scale(self) -> float:
        """The image's side in pixels (of a square film of the same area)."""
        return math.sqrt(self.height * self.width)

    def place(self, points: Outline) -> Outline:
        """Convert body units to pixels.

        Args:
            points: [points, 2], x and y in body units.

        Returns:
            [points, 2], x and y in pixels.
        """
        bent = points + np.sin(points @ self.waves[:, :2].T + self.waves[:, 2]) @ self.waves[:, 3:]
        return np.asarray(bent @ self.matrix[:, :2].T + self.matrix[:, 2])

    def paint(self, *shapes: Shape, blur: float = 0.0) -> Layer:
        """Fill outlines with their values, later over earlier, edges anti-aliased; then blur.

        Args:
            shapes: Outlines in body units, each with its value in [0, 1].
            blur: Standard deviation of the blur, as a fraction of the image's side.

        Returns:
            [height, width], in [0, 1].
        """
        canvas = np.zeros((self.height, self.width), np.uint8)
        ends = np.cumsum([len(outline) for outline, _ in shapes])
        corners = self.place(np.vstack([np.zeros((0, 2)), *(outline for outline, _ in shapes)]))
        corners = np.round(corners * 16).astype(np.int32)  # sixteenths of a pixel
        for end, (outline, value) in zip(ends, shapes, strict=True):
            cv2.fillPoly(canvas, [corners[end - len(outline) : end]], round(255 * value), cv2.LINE_AA, 4)
        return self.soften(canvas.astype(np.float32) / 255, blur)

    def soften(self, layer: Layer, blur: float) -> Layer:
        """Blur a layer with a Gaussian.

        Args:
            layer: [height, width].
            blur: Standard deviation, as a fraction of the image's side.

        Returns:
            [height, width].
        """
        sigma = blur * self.scale
        if sigma < 0.3:
            return layer
        step = max(1, int(sigma / 3))  # a wide blur needs no fine grid
        small = cv2.resize(layer, (-(-self.width // step), -(-self.height // step)), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / step)
        return as_layer(cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_LINEAR))

    def depth(self, layer: Layer, reach: float) -> Layer:
        """Compute the thickness of a rounded organ: 0 at its edge, nearly 1 from 2 x `reach` inwards.

        Args:
            layer: Its outline, filled: above 0.5 inside.
            reach: A length, as a fraction of the image's side.

        Returns:
            [height, width], in [0, 1).
        """
        distance = cv2.distanceTransform((layer > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        return 1 - np.exp(as_layer(distance) * np.float32(-1 / (reach * self.scale)))

    def cloud(self, rng: np.random.Generator, *cells: int) -> Layer:
        """Draw smooth noise, the sum of several grains, with a standard deviation of about 1.

        Args:
            rng: Random numbers.
            cells: Grains per side of the image, the finest last.

        Returns:
            [height, width].
        """
        noises = [rng.standard_normal((count, count), np.float32) for count in cells]
        finest = (2 * cells[-1], 2 * cells[-1])
        total = np.sum([cv2.resize(noise, finest, interpolation=cv2.INTER_CUBIC) for noise in noises], axis=0)
        total *= 1.2 / math.sqrt(len(cells))
        return as_layer(cv2.resize(total, (self.width, self.height), interpolation=cv2.INTER_LINEAR))


def draw_marker(rng: np.random.Generator, film: Film, view: PhantomView) -> Layer:
    """Draw the lead letter that marks the sides, on the side that it names.

    Args:
        rng: Random numbers.
        film: The film.
        view: "AP" may stand beside the letter.

    Returns:
        [height, width], in [0, 1].
    """
    side, canvas = int(rng.choice(SIDES)), np.zeros((film.height, film.width), np.uint8)
    text = ("R" if side < 0 else "L") + (" AP" if view == "AP" and rng.random() < 0.5 else "")
    tall, font = film.scale * rng.uniform(0.03, 0.045), cv2.FONT_HERSHEY_SIMPLEX
    size = cv2.getFontScaleFromHeight(font, max(1, round(tall)))
    wide = cv2.getTextSize(text, font, size, 1)[0][0]
    margin = film.width * rng.uniform(0.04, 0.08)
    corner = (round(margin if side < 0 else film.width - margin - wide), round(film.height * rng.uniform(0.06, 0.12)))
    cv2.putText(canvas, text, corner, font, size, 255, max(1, round(tall / 6)), cv2.LINE_AA)
    return film.soften(canvas.astype(np.float32) / 255, 0.0008) * np.float32(rng.uniform(0.85, 1))


def develop(matter: Layer, film: Film, rng: np.random.Generator, view: PhantomView) -> Layer:
    """Turn matter into grey as a film and its viewer do; some beams are narrower than the film.

    Args:
        matter: Matter in the beam [height, width].
        film: The film.
        rng: Random numbers.
        view: "AP" has less contrast.

    Returns:
        Grey [height, width], in [0, 1].
    """
    gain = rng.uniform(0.5, 0.9)
    grey = np.minimum((1 - np.exp(np.maximum(matter, 0) * -gain)) / (1 - math.exp(-2.9 * gain)), 1)
    low, high = (rng.uniform(0, 0.05), rng.uniform(0.92, 1))
    if view == "AP":
        low, high = 4 * low, high - 0.1
    image = low + (high - low) * grey ** rng.uniform(0.9, 1.4)
    if rng.random() < 0.4:
        x, y = 0.5 - rng.uniform(0.0, 0.06, 2)
        beam = np.array([(-x, 0.5 - y), (x, 0.5 - y), (x, 0.5 + y), (-x, 0.5 + y)])
        image = image * film.paint((beam, 1.0), blur=0.001)
    return as_layer(image)


def add_grain(image: Layer, rng: np.random.Generator, noise: float) -> Layer:
    """Add the image's grain.

    Args:
        image: Grey [height, width], in [0, 1].
        rng: Random numbers.
        noise: Standard deviation at mid grey; it is larger where the image is bright.

    Returns:
        Grey [height, width], in [0, 1].
    """
    grain = cv2.GaussianBlur(rng.standard_normal(image.shape, np.float32), (0, 0), 0.6)
    noise /= 0.474  # the deviation that the blur leaves
    return as_layer(np.clip(image + noise * grain * np.sqrt(0.5 + image), 0, 1))


def as_layer(values: Any) -> Layer:
    """Convert to float32, which NumPy and OpenCV do not always keep.

    Args:
        values: [height, width].

    Returns:
        The same values as float32.
    """
    return np.asarray(values, np.float32)
