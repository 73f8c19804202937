"""Anatomy: one person's measures, and where organs and bones lie.

It is written in *body units* (x from the midline, y from the upper edge, 1 = the image's width or height at zoom 1)
or in *rib cages* (x from the midline, 1 = the chest wall; y from 0 at the apex to 1 at the lowest angle of the lung).
The image's left is the patient's right: side -1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

PhantomLabel: TypeAlias = Literal["covid19", "pneumonia", "normal"]

PhantomView: TypeAlias = Literal["PA", "AP"]

Sex: TypeAlias = Literal["F", "M"]

Layer: TypeAlias = Float[np.ndarray, "height width"]

Outline: TypeAlias = Float[np.ndarray, "_ 2"]

Shape: TypeAlias = tuple[Outline, float]  # what to fill, and with which value in [0, 1]

LABELS: tuple[PhantomLabel, ...] = get_args(PhantomLabel)

VIEWS: tuple[PhantomView, ...] = get_args(PhantomView)

SEXES: tuple[Sex, ...] = get_args(Sex)

SIDES = (-1, 1)  # the image's left (the patient's right), and its right


def curve(knots: Outline, count: int = 24, *, closed: bool = False) -> Outline:
    """Draw a smooth curve through knots (Catmull-Rom).

    Args:
        knots: [knots, 2].
        count: Points from each knot to the next.
        closed: Whether the last knot is joined to the first.

    Returns:
        [points, 2].
    """
    if closed:
        chain = np.vstack([knots[-1:], knots, knots[:2]])
    else:
        chain = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = (np.arange(count) / count)[None, :, None]
    a, b, c, d = (chain[i : len(chain) - 3 + i, None] for i in range(4))
    points = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.vstack([points.reshape(-1, 2), chain[-2:-1]])


def ribbon(course: Outline, widths: Any) -> Outline:
    """Outline a band along a course.

    Args:
        course: [points, 2].
        widths: Width at each point, or one for all.

    Returns:
        [2 * points, 2].
    """
    along = course[1:] - course[:-1]
    along = np.concatenate([along[:1], along[1:] + along[:-1], along[-1:]])
    half = (0.5 * np.asarray(widths) / np.hypot(along[:, 0], along[:, 1]))[:, None] * along[:, ::-1] * [-1, 1]
    return np.concatenate([course + half, (course - half)[::-1]])


def tube(course: Outline, widths: Float[np.ndarray, " _"], value: float) -> list[Shape]:
    """Draw a bone: dense at its rims, less so within.

    Args:
        course: Its axis [points, 2].
        widths: Width at each point.
        value: Density of the rims, in [0, 1].

    Returns:
        Two shapes.
    """
    return [(ribbon(course, widths), value), (ribbon(course, 0.6 * widths), 0.7 * value)]


def ellipse(centre: Any, across: float, down: float) -> Outline:
    """Outline an upright ellipse.

    Args:
        centre: x and y.
        across: Half axis along x.
        down: Half axis along y.

    Returns:
        [24, 2].
    """
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.column_stack([centre[0] + across * np.cos(angles), centre[1] + down * np.sin(angles)])


def blob(rng: np.random.Generator, centre: Any, radius: float, *, aspect: float = 1.0, wobble: float = 0.12) -> Outline:
    """Outline a rounded, irregular patch.

    Args:
        rng: Random numbers.
        centre: x and y.
        radius: Mean radius.
        aspect: Height over width.
        wobble: How irregular it is; 0 = an ellipse.

    Returns:
        [48, 2].
    """
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = [rng.normal(0, wobble / n) * np.cos(n * angles + rng.uniform(0, 6.3)) for n in range(2, 7)]
    radii = radius * np.exp(np.sum(waves, axis=0))
    across, down = radii * np.cos(angles) / math.sqrt(aspect), radii * np.sin(angles) * math.sqrt(aspect)
    return np.column_stack([centre[0] + across, centre[1] + down])


def branches(
    rng: np.random.Generator, start: Any, angle: float, side: int, *, length: float, width: float, depth: int
) -> list[Shape]:
    """Draw a tree of bands, each with two thinner ones at its end.

    Args:
        rng: Random numbers.
        start: x and y of the root.
        angle: Direction in radians from the horizontal, outwards and down.
        side: -1 or 1.
        length: Length of the first band.
        width: Width of the first band.
        depth: Number of generations.

    Returns:
        A shape a band.
    """
    bend = angle + rng.normal(0, 0.3)
    middle = start + 0.5 * length * np.array([side * np.cos(angle), np.sin(angle)])
    end = middle + 0.5 * length * np.array([side * np.cos(bend), np.sin(bend)])
    band = ribbon(np.array([start, middle, end]), [width, 0.85 * width, 0.7 * width])
    shapes = [(band, 0.12 + 0.14 * depth)]
    for way in SIDES if depth > 1 else ():
        turn, shorter = way * rng.uniform(0.15, 0.6), rng.uniform(0.65, 0.95)
        shapes += branches(rng, end, bend + turn, side, length=length * shorter, width=0.7 * width, depth=depth - 1)
    return shapes


# fmt: off
# In rib cages:
WALL = [(0.14, 0.05), (0.26, 0.005), (0.42, 0.006), (0.63, 0.085), (0.81, 0.22), (0.92, 0.4), (0.98, 0.61),
        (1.01, 0.83), (1.0, 1.0)]

INNER_EDGE = [(0.12, 0.93), (0.09, 0.7), (0.08, 0.4), (0.1, 0.15), (0.14, 0.05)]

DOME = [(1.0, 0.0), (0.87, 0.6), (0.62, 1.0), (0.36, 0.97), (0.14, 0.7), (0.0, 0.6)]  # y = share of the dome's rise

GREAT_VESSELS = [(0.1, -0.4), (0.1, -0.1), (0.12, 0.1), (0.15, 0.2), (0.21, 0.265), (0.17, 0.33), (0.2, 0.4),
                 (0.2, 0.5), (0.12, 0.8), (0.05, 0.95), (-0.05, 0.95), (-0.1, 0.8), (-0.15, 0.6), (-0.17, 0.4),
                 (-0.16, 0.25), (-0.13, 0.1), (-0.1, -0.1), (-0.1, -0.4)]

# x = share of the heart's greatest reach to that side:
HEART_LEFT = [(0.24, 0.42), (0.5, 0.5), (0.82, 0.66), (1.0, 0.8), (0.93, 0.92), (0.5, 0.98)]

HEART_RIGHT = [(0.5, 0.97), (0.95, 0.9), (1.0, 0.74), (0.9, 0.6), (0.5, 0.45)]

# In body units, y from the apex:
SHOULDER_LINE = [(0.1, -0.5), (0.11, -0.12), (0.2, -0.05), (0.36, 0.0), (0.46, 0.06)]

SHOULDER_BLADE = [(0.35, 0.06), (0.45, 0.03), (0.475, 0.09), (0.44, 0.2), (0.405, 0.33), (0.385, 0.33), (0.365, 0.2)]

BLADE_RIDGE = [(0.34, 0.1), (0.42, 0.055), (0.485, 0.035)]

CLAVICLE = [(0.035, 0.115), (0.12, 0.1), (0.24, 0.06), (0.33, 0.032), (0.395, 0.038)]

# From the spine to the front end: share of the way to the chest wall at that height; fall, times the rib's slope:
RIB = [(0.1, 0.0), (0.3, -0.1), (0.62, 0.2), (0.85, 0.55), (0.975, 1.0), (1.005, 1.5), (0.97, 2.0), (0.84, 2.5),
       (0.66, 2.9), (0.5, 3.2)]


# fmt: on
@dataclass(frozen=True, slots=True)
class Body:
    """Measures of one person, in body units where they are lengths, and the outlines that follow from them.

    Example:
        ```python
        import numpy as np

        from covidcxr.phantom.anatomy import Body

        body = Body.draw(np.random.default_rng(0), "PA", "F")
        assert body.lung(1)[:, 0].min() > 0  # the lung on the image's right stays there
        ```
    """

    view: PhantomView
    half_width: float  # of the rib cage
    apex: float  # y of the top of the lungs
    base: float  # y of their lowest angles
    domes: tuple[float, float]  # rise of the diaphragm above `base`, by side
    heart_ratio: float  # heart : rib cage
    rib_slope: float
    fat: float
    breast: float
    gas: float  # size of the bubble in the stomach; below 0 = none

    @classmethod
    def draw(cls, rng: np.random.Generator, view: PhantomView, sex: Sex | None) -> Body:
        """Draw a person at random.

        Args:
            rng: Random numbers.
            view: "AP" has a wider heart and a higher diaphragm.
            sex: None = any.

        Returns:
            The person.
        """
        lying = view == "AP"
        base, dome = rng.uniform(0.80, 0.87) - 0.07 * lying, rng.uniform(0.07, 0.11)
        breast = rng.uniform(-0.7, 1)
        if sex is not None:
            breast = 0.3 + 0.7 * abs(breast) if sex == "F" else 0.0
        return cls(
            view=view,
            half_width=rng.uniform(0.36, 0.415),
            apex=rng.uniform(0.09, 0.14) + 0.02 * lying,
            base=base,
            domes=(dome + rng.uniform(0.0, 0.025), dome),
            heart_ratio=rng.uniform(0.41, 0.50) + 0.09 * lying,
            rib_slope=rng.uniform(0.7, 1.3),
            fat=rng.uniform(0, 1),
            breast=max(breast, 0.0),
            gas=rng.uniform(-0.03, 0.05),
        )

    def at(self, side: int, cages: Sequence[tuple[float, float]]) -> Outline:
        """Convert rib cages to body units.

        Args:
            side: -1 or 1.
            cages: x and y of points, in rib cages.

        Returns:
            [points, 2].
        """
        height = self.base - self.apex
        return np.array(cages) * [side * self.half_width, height] + [0.0, self.apex]

    def below_apex(self, side: int, points: Sequence[tuple[float, float]]) -> Outline:
        """Mirror and move points whose y is measured from the apex.

        Args:
            side: -1 or 1.
            points: x and y, in body units.

        Returns:
            [points, 2], in body units.
        """
        return np.array(points) * [side, 1.0] + [0.0, self.apex]

    def wall(self, side: int) -> Outline:
        """Draw the inner edge of the rib cage, from the top of the lung to its lowest angle.

        Args:
            side: -1 or 1.

        Returns:
            [points, 2].
        """
        return curve(self.at(side, WALL))

    def reach(self, y: Any) -> Any:
        """Return the distance from the midline to the chest wall.

        Args:
            y: Height or heights, in body units.

        Returns:
            The distances, same shape.
        """
        wall = self.wall(1)[50:]
        return np.interp(y, wall[:, 1], wall[:, 0])

    def dome(self, side: int, share: float = 1.0) -> Outline:
        """Draw the upper edge of the diaphragm, from the lowest angle of the lung to the midline.

        Args:
            side: -1 or 1.
            share: Share of the dome's rise.

        Returns:
            [points, 2].
        """
        rise = share * self.domes[side > 0] / (self.base - self.apex)
        return curve(self.at(side, [(x, 1 - rise * y) for x, y in DOME]))

    def lung(self, side: int) -> Outline:
        """Outline a whole lung, with the parts behind heart and diaphragm.

        Args:
            side: -1 or 1.

        Returns:
            [points, 2].
        """
        base = self.dome(side, 0.75)
        return np.vstack([self.wall(side), base[: len(base) * 4 // 5], curve(self.at(side, INNER_EDGE))])

    def heart(self) -> Outline:
        """Outline of the heart."""
        left, right = 1.32 * self.heart_ratio, 0.68 * self.heart_ratio
        edge = [(left * x, y) for x, y in HEART_LEFT] + [(-right * x, y) for x, y in HEART_RIGHT]
        return curve(self.at(1, edge), closed=True)

    def great_vessels(self) -> Outline:
        """Outline of the great vessels, from the neck down behind the heart."""
        return curve(self.at(1, GREAT_VESSELS), closed=True)

    def abdomen(self, side: int) -> Outline:
        """Outline what lies below the diaphragm, to the midline.

        Args:
            side: -1 or 1.

        Returns:
            [points, 2].
        """
        return np.vstack([self.dome(side), [(0.0, 1.6), (side * 0.7, 1.6), (side * 0.7, self.base)]])

    def ribs(self, side: int) -> Iterator[tuple[Outline, Float[np.ndarray, " _"]]]:
        """Draw the course of each rib from the spine round the chest wall to its front end.

        Args:
            side: -1 or 1.

        Yields:
            The course [46, 2] and its width at each point [46].
        """
        across, fall = np.array(RIB).T
        for number in range(10):
            top = self.apex + (self.base - self.apex) * (0.01 + 0.09 * number)
            down = top + self.rib_slope * (0.05 + 0.0065 * number) * fall
            yield (
                curve(np.column_stack([side * across * self.reach(down), down]), 5),
                np.interp(np.arange(46), [0, 22, 31, 45], [0.018, 0.023, 0.02, 0.028]),
            )

    def shoulder(self, side: int) -> list[Shape]:
        """Draw the shoulder blade, clear of the lungs in PA and over them in AP, and the upper arm.

        Args:
            side: -1 or 1.

        Returns:
            Their shapes.
        """
        shift = [side * (0.035 if self.view == "PA" else -0.015), 0.0]
        blade = curve(self.below_apex(side, SHOULDER_BLADE) + shift, closed=True)
        inner = blade.mean(0) + 0.8 * (blade - blade.mean(0))
        ridge = ribbon(self.below_apex(side, BLADE_RIDGE) + shift, [0.008, 0.014, 0.03])
        elbow = (0.75, 0.2) if self.view == "PA" else (0.6, 0.6)
        arm = curve(self.below_apex(side, [(0.5, 0.07), (0.54, 0.13), elbow]))
        return [(blade, 0.5), (inner, 0.3), (ridge, 0.6), *tube(arm, np.linspace(0.075, 0.04, len(arm)), 0.9)]

    def airways(self) -> list[Shape]:
        """Windpipe and main bronchi."""
        fork = self.apex + 0.33 * (self.base - self.apex)
        shapes: list[Shape] = [(ribbon(np.array([(0.0, -0.3), (0.0, fork - 0.1), (-0.004, fork)]), [0.034] * 3), 1.0)]
        for side in SIDES:
            course = curve(
                np.array([(0.0, fork - 0.01), (side * 0.045, fork + 0.043 - 0.007 * side), (side * 0.09, fork + 0.085)])
            )
            shapes.append((ribbon(course, np.linspace(0.024, 0.012, len(course))), 0.7))
        return shapes


def spine() -> list[Shape]:
    """The spine with its vertebrae, alike in everybody."""
    shapes: list[Shape] = [(ribbon(np.array([(0.0, -0.3), (0.0, 1.4)]), [0.055, 0.09]), 0.55)]
    for y in np.arange(-0.05, 1.2, 0.066):
        half = 0.03 + 0.012 * y
        vertebra = [(-half, 0), (half, 0), (half * 0.9, 0.025), (half, 0.05), (-half, 0.05), (-half * 0.9, 0.025)]
        shapes.append((np.add(vertebra, (0.0, y)), 0.8))
        shapes += [(ellipse((x * half * 0.7, y + 0.018), 0.006, 0.011), 1.0) for x in SIDES]
        shapes.append((ellipse((0, y + 0.04), 0.005, 0.013), 1.0))
    return shapes
