"""Curves, bands and patches: outlines of which organs, bones and opacities are made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from covidcxr.phantom.types import SIDES, Outline, Shape


def curve(knots: Outline, count: int = 24, *, closed: bool = False) -> Outline:
    """Smooth curve through the knots (Catmull-Rom), `count` points from each to the next."""
    if closed:
        chain = np.vstack([knots[-1:], knots, knots[:2]])
    else:
        chain = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = (np.arange(count) / count)[None, :, None]
    a, b, c, d = (chain[i : len(chain) - 3 + i, None] for i in range(4))
    points = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.vstack([points.reshape(-1, 2), chain[-2:-1]])


def ribbon(course: Outline, widths: Any) -> Outline:
    """Outline of a band along a course, with a width at each of its points."""
    along = course[1:] - course[:-1]
    along = np.concatenate([along[:1], along[1:] + along[:-1], along[-1:]])
    half = (0.5 * np.asarray(widths) / np.hypot(along[:, 0], along[:, 1]))[:, None] * along[:, ::-1] * [-1, 1]
    return np.concatenate([course + half, (course - half)[::-1]])


def tube(course: Outline, widths: Float[np.ndarray, " _"], value: float) -> list[Shape]:
    """A bone: dense at its rims, less so within."""
    return [(ribbon(course, widths), value), (ribbon(course, 0.6 * widths), 0.7 * value)]


def ellipse(centre: Any, across: float, down: float) -> Outline:
    """An upright ellipse; `across` and `down` = its half axes."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.column_stack([centre[0] + across * np.cos(angles), centre[1] + down * np.sin(angles)])


def blob(rng: np.random.Generator, centre: Any, radius: float, *, aspect: float = 1.0, wobble: float = 0.12) -> Outline:
    """A rounded, irregular patch; `aspect` = height over width."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = [rng.normal(0, wobble / n) * np.cos(n * angles + rng.uniform(0, 6.3)) for n in range(2, 7)]
    radii = radius * np.exp(np.sum(waves, axis=0))
    across, down = radii * np.cos(angles) / math.sqrt(aspect), radii * np.sin(angles) * math.sqrt(aspect)
    return np.column_stack([centre[0] + across, centre[1] + down])


def branches(
    rng: np.random.Generator, start: Any, angle: float, side: int, *, length: float, width: float, depth: int
) -> list[Shape]:
    """A tree of bands, each with two thinner ones at its end; `angle` from the horizontal, outwards and down."""
    bend = angle + rng.normal(0, 0.3)
    middle = start + 0.5 * length * np.array([side * np.cos(angle), np.sin(angle)])
    end = middle + 0.5 * length * np.array([side * np.cos(bend), np.sin(bend)])
    band = ribbon(np.array([start, middle, end]), [width, 0.85 * width, 0.7 * width])
    shapes = [(band, 0.12 + 0.14 * depth)]
    for way in SIDES if depth > 1 else ():
        turn, shorter = way * rng.uniform(0.15, 0.6), rng.uniform(0.65, 0.95)
        shapes += branches(rng, end, bend + turn, side, length=length * shorter, width=0.7 * width, depth=depth - 1)
    return shapes
