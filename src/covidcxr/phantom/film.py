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
    """Where the body lies on the film, and how to draw on it."""

    height: int
    width: int
    matrix: Float[np.ndarray, "2 3"]  # body units -> pixels
    waves: Float[np.ndarray, "_ 5"]  # a gentle bend of the whole body: no two alike, none symmetric

    @classmethod
    def draw(cls, exposure: np.random.Generator, anatomy: np.random.Generator, size: tuple[int, int]) -> Film:
        """Lay a body on a film of `size` (height, width), a little askew, and bend it a little."""
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
        """Body units -> pixels."""
        bent = points + np.sin(points @ self.waves[:, :2].T + self.waves[:, 2]) @ self.waves[:, 3:]
        return np.asarray(bent @ self.matrix[:, :2].T + self.matrix[:, 2])

    def paint(self, *shapes: Shape, blur: float = 0.0) -> Layer:
        """Fill outlines with their values, later over earlier, edges anti-aliased; then soften."""
        canvas = np.zeros((self.height, self.width), np.uint8)
        ends = np.cumsum([len(outline) for outline, _ in shapes])
        corners = self.place(np.vstack([np.zeros((0, 2)), *(outline for outline, _ in shapes)]))
        corners = np.round(corners * 16).astype(np.int32)  # sixteenths of a pixel
        for end, (outline, value) in zip(ends, shapes, strict=True):
            cv2.fillPoly(canvas, [corners[end - len(outline) : end]], round(255 * value), cv2.LINE_AA, 4)
        return self.soften(canvas.astype(np.float32) / 255, blur)

    def soften(self, layer: Layer, blur: float) -> Layer:
        """Blur with a Gaussian of `blur` x the image's side."""
        sigma = blur * self.scale
        if sigma < 0.3:
            return layer
        step = max(1, int(sigma / 3))  # a wide blur needs no fine grid
        small = cv2.resize(layer, (-(-self.width // step), -(-self.height // step)), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / step)
        return as_layer(cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_LINEAR))

    def depth(self, layer: Layer, reach: float) -> Layer:
        """Thickness of a rounded organ with this outline: 0 at its edge, nearly 1 from 2 x `reach` inwards."""
        distance = cv2.distanceTransform((layer > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        return 1 - np.exp(as_layer(distance) * np.float32(-1 / (reach * self.scale)))

    def cloud(self, rng: np.random.Generator, *cells: int) -> Layer:
        """Smooth noise, the sum of several grains: film / `cells`, the finest last; deviation about 1."""
        noises = [rng.standard_normal((count, count), np.float32) for count in cells]
        finest = (2 * cells[-1], 2 * cells[-1])
        total = np.sum([cv2.resize(noise, finest, interpolation=cv2.INTER_CUBIC) for noise in noises], axis=0)
        total *= 1.2 / math.sqrt(len(cells))
        return as_layer(cv2.resize(total, (self.width, self.height), interpolation=cv2.INTER_LINEAR))


def draw_marker(rng: np.random.Generator, film: Film, view: PhantomView) -> Layer:
    """The lead letter that tells the sides, on the side that it names."""
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
    """Turn matter into grey as a film and its viewer do; some beams are narrower than the film."""
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
    """Add the image's grain, of deviation `noise` at mid grey and more where it is bright."""
    grain = cv2.GaussianBlur(rng.standard_normal(image.shape, np.float32), (0, 0), 0.6)
    noise /= 0.474  # the deviation that the blur leaves
    return as_layer(np.clip(image + noise * grain * np.sqrt(0.5 + image), 0, 1))


def as_layer(values: Any) -> Layer:
    """The values as float32, which numpy and OpenCV do not always keep."""
    return np.asarray(values, np.float32)
