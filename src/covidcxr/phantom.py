"""Draws chest films whose lungs, heart and opacities are known to the pixel.

No real film may be handed on with this library, so these stand in for them: in the demo, the golden inputs of
saved models, the pictures of the documentation, and the tests. They are cartoons of anatomy, not of patients.

A film is drawn as it is exposed: every organ adds to the matter in the beam (air takes away), and the film's
curve turns the sum into grey. So ribs shine through the heart and an opacity hides the vessels behind it.
Anatomy is written in *body units* (x from the midline, y from the upper edge, 1 = the film's width or height at
zoom 1) or in *rib cages* (x from the midline, 1 = the chest wall; y from 0 at the apex to 1 at the lowest angle
of the lung). The film's left is the patient's right: side -1.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

from covidcxr.errors import ConfigError

__all__ = ["Phantom", "PhantomLabel", "PhantomView", "Sex", "draw_phantom", "draw_dataset", "write_dataset"]

PhantomLabel: TypeAlias = Literal["covid19", "pneumonia", "normal"]
PhantomView: TypeAlias = Literal["PA", "AP"]
Sex: TypeAlias = Literal["F", "M"]
Layer: TypeAlias = Float[np.ndarray, "height width"]
Outline: TypeAlias = Float[np.ndarray, "_ 2"]
Shape: TypeAlias = tuple[Outline, float]  # what to fill, and with which value in [0, 1]

LABELS: tuple[PhantomLabel, ...] = get_args(PhantomLabel)
VIEWS: tuple[PhantomView, ...] = get_args(PhantomView)
SEXES: tuple[Sex, ...] = get_args(Sex)
SOURCES = ("phantom-a", "phantom-b")
MASKS = ("lung_field", "lung", "infection")
SIDES = (-1, 1)

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
class Phantom:
    """One drawn film and the truth about it.

    Attributes:
        image: Grey in [0, 1]; bright = much matter in the beam.
        lung_field: Lungs without the parts behind heart and diaphragm, as NLM and COVID-QU-Ex draw them.
        lung: Lungs with those parts, as V7 draws them.
        heart: The heart's outline, filled.
        infection: Where there is an opacity.
        label: "covid19", "pneumonia" or "normal".
        view: "PA" (upright) or "AP" (in bed).
        seed: What the film was drawn from.
    """

    image: Float[np.ndarray, "height width"]
    lung_field: Bool[np.ndarray, "height width"]
    lung: Bool[np.ndarray, "height width"]
    heart: Bool[np.ndarray, "height width"]
    infection: Bool[np.ndarray, "height width"]
    label: PhantomLabel
    view: PhantomView
    seed: int

    @property
    def masks(self) -> dict[str, Bool[np.ndarray, "height width"]]:
        """The masks by the class names that data sets and models use."""
        return {name: getattr(self, name) for name in MASKS}


def draw_phantom(
    seed: int,
    *,
    label: PhantomLabel = "normal",
    view: PhantomView = "PA",
    size: tuple[int, int] = (512, 512),
    severity: float = 0.5,
    noise: float = 0.015,
    marker: bool = True,
    sex: Sex | None = None,
    patient_seed: int | None = None,
) -> Phantom:
    """Draw one chest film.

    The same arguments give the same bits. The same seed with another label gives the same film but for the
    opacities; at another size, the same anatomy.

    Args:
        seed: Of everything that is random, from 0 up.
        label: "covid19" = soft patches in both lungs, mostly at the edge and low; "pneumonia" = one dense,
            lobar opacity; "normal" = none.
        view: "PA", or "AP" with a wider heart, higher diaphragm, less contrast, often wires and tubes.
        size: Height and width in pixels, each from 64 up, neither more than twice the other.
        severity: How far and how dense the opacities are, in [0, 1].
        noise: Standard deviation of the film's grain at mid grey, in [0, 1].
        marker: Whether the letter that tells the sides is in the picture.
        sex: "F" or "M"; None leaves it to the seed.
        patient_seed: Seed of the person: films with one `patient_seed` and several `seed`s show one body at
            several times. None = `seed`.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check_arguments(
        size, seed=seed, patient_seed=patient_seed, label=label, view=view, sex=sex, severity=severity, noise=noise
    )
    anatomy = np.random.default_rng([0, seed if patient_seed is None else patient_seed])
    exposure, disease, grain = (np.random.default_rng([stream, seed]) for stream in (1, 2, 3))
    body = _Body.draw(anatomy, view, sex)
    film = _Film.draw(exposure, anatomy, size)
    chest, matter = _expose_chest(body, film, anatomy)
    opacity = _draw_opacity(disease, body, film, label, severity) * chest.veil
    matter += opacity * chest.air * (1.05 if label == "pneumonia" else 0.85)
    if view == "AP":
        matter += _draw_devices(exposure, body, film)
    image = _develop(matter, film, exposure, view)
    if marker:
        image = np.maximum(image, _draw_marker(exposure, film, view))
    infection = (opacity > 0.3) & chest.lung
    return Phantom(_add_grain(image, grain, noise), chest.field, chest.lung, chest.heart, infection, label, view, seed)


def draw_dataset(
    count: int, *, seed: int = 0, labels: Sequence[PhantomLabel] = LABELS, size: tuple[int, int] = (512, 512)
) -> Iterator[Phantom]:
    """Draw `count` films of as many persons, the labels in turn, view and severity at random.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check_count("count", count)
    if not labels:
        raise ConfigError(f"labels must name at least one of {', '.join(LABELS)}.")
    rng = np.random.default_rng(_check_seed("seed", seed))
    for number in range(count):
        view, severity = VIEWS[rng.integers(2)], float(rng.uniform(0.2, 1))
        film_seed = int(rng.integers(2**31))
        yield draw_phantom(film_seed, label=labels[number % len(labels)], view=view, size=size, severity=severity)


def write_dataset(
    folder: str | Path, count: int, *, seed: int = 0, size: tuple[int, int] = (256, 256), patients: int | None = None
) -> Path:
    """Write a data set of drawn films: `images/`, a folder a mask class, and `manifest.csv`, whose path comes back.

    All masks are known: an infection mask without a set pixel says that there is no opacity. Each person has one
    label and one source; source, view, sex and age say nothing about the label. The films of "phantom-b" are
    grainier and an eighth lower.

    Args:
        folder: Where to; made if it is not there.
        count: Number of films.
        seed: Of everything that is random.
        size: Height and width in pixels.
        patients: Number of persons; the first ones have a film more when `count` is not a multiple of it.
            None = two for three films.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check_count("count", count)
    patients = math.ceil(2 * count / 3) if patients is None else _check_count("patients", patients)
    rng = np.random.default_rng(_check_seed("seed", seed))
    persons = [(int(rng.integers(2**31)), SEXES[rng.integers(2)], int(rng.integers(18, 90))) for _ in range(patients)]
    folder, rows = Path(folder), list[dict[str, object]]()
    for number in range(count):
        person = number % patients
        patient_seed, sex, age = persons[person]
        source = person // len(LABELS) % len(SOURCES)
        phantom = draw_phantom(
            int(rng.integers(2**31)),
            label=LABELS[person % len(LABELS)],
            view=VIEWS[rng.integers(2)],
            size=(max(64, size[0] * 7 // 8), size[1]) if source else size,
            severity=float(rng.uniform(0.2, 1)),
            noise=0.025 if source else 0.015,
            sex=sex,
            patient_seed=patient_seed,
        )
        paths = {name: f"{name}/phantom-{number:05d}.png" for name in ("images", *MASKS)}
        for name, pixels in {"images": phantom.image, **phantom.masks}.items():
            _write_png(folder / paths[name], pixels)
        patient: dict[str, object] = {
            "patient_id": f"person-{person:05d}",
            "source": SOURCES[source],
            "sex": sex,
            "age": age,
        }
        rows.append({"path": paths.pop("images"), "label": phantom.label, "view": phantom.view, **patient, **paths})
    columns = ["path", "label", "patient_id", "source", "view", "sex", "age", *MASKS]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return folder / "manifest.csv"


@dataclass(frozen=True, slots=True)
class _Film:
    """Where the body lies on the film, and how to draw on it."""

    height: int
    width: int
    matrix: Float[np.ndarray, "2 3"]  # body units -> pixels
    waves: Float[np.ndarray, "_ 5"]  # a gentle bend of the whole body: no two alike, none symmetric

    @classmethod
    def draw(cls, exposure: np.random.Generator, anatomy: np.random.Generator, size: tuple[int, int]) -> _Film:
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
        """The film's side in pixels (of a square film of the same area)."""
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
        """Blur with a Gaussian of `blur` x the film's side."""
        sigma = blur * self.scale
        if sigma < 0.3:
            return layer
        step = max(1, int(sigma / 3))  # a wide blur needs no fine grid
        small = cv2.resize(layer, (-(-self.width // step), -(-self.height // step)), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / step)
        return _as_layer(cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_LINEAR))

    def depth(self, layer: Layer, reach: float) -> Layer:
        """Thickness of a rounded organ with this outline: 0 at its edge, nearly 1 from 2 x `reach` inwards."""
        distance = cv2.distanceTransform((layer > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        return 1 - np.exp(_as_layer(distance) * np.float32(-1 / (reach * self.scale)))

    def cloud(self, rng: np.random.Generator, *cells: int) -> Layer:
        """Smooth noise, the sum of several grains: film / `cells`, the finest last; deviation about 1."""
        noises = [rng.standard_normal((count, count), np.float32) for count in cells]
        finest = (2 * cells[-1], 2 * cells[-1])
        total = np.sum([cv2.resize(noise, finest, interpolation=cv2.INTER_CUBIC) for noise in noises], axis=0)
        total *= 1.2 / math.sqrt(len(cells))
        return _as_layer(cv2.resize(total, (self.width, self.height), interpolation=cv2.INTER_LINEAR))


@dataclass(frozen=True, slots=True)
class _Body:
    """Measures of one person, in body units where they are lengths."""

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
    def draw(cls, rng: np.random.Generator, view: PhantomView, sex: Sex | None) -> _Body:
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
        """Rib cages -> body units."""
        height = self.base - self.apex
        return np.array(cages) * [side * self.half_width, height] + [0.0, self.apex]

    def below_apex(self, side: int, points: Sequence[tuple[float, float]]) -> Outline:
        """Body units with y from the apex -> body units."""
        return np.array(points) * [side, 1.0] + [0.0, self.apex]

    def wall(self, side: int) -> Outline:
        """Inner edge of the rib cage, from the top of the lung to its lowest angle."""
        return _curve(self.at(side, WALL))

    def reach(self, y: Any) -> Any:
        """Distance from the midline to the chest wall at heights `y`."""
        wall = self.wall(1)[50:]
        return np.interp(y, wall[:, 1], wall[:, 0])

    def dome(self, side: int, share: float = 1.0) -> Outline:
        """Upper edge of the diaphragm, from the lowest angle of the lung to the midline."""
        rise = share * self.domes[side > 0] / (self.base - self.apex)
        return _curve(self.at(side, [(x, 1 - rise * y) for x, y in DOME]))


@dataclass(frozen=True, slots=True)
class _Chest:
    lung: Bool[np.ndarray, "height width"]
    field: Bool[np.ndarray, "height width"]
    heart: Bool[np.ndarray, "height width"]
    air: Float[np.ndarray, "height width"]  # its thickness, 0 to 1
    veil: Float[np.ndarray, "height width"]  # 1 within the lungs, anti-aliased


def _expose_chest(body: _Body, film: _Film, rng: np.random.Generator) -> tuple[_Chest, Layer]:
    """Return the lungs and heart, and the matter of a healthy chest."""
    heart, vessels = film.paint((_heart(body), 1.0)), film.paint((_great_vessels(body), 1.0))
    middle = np.maximum(heart, vessels)
    below = film.paint(*((_abdomen(body, side), 1.0) for side in SIDES))
    sides = [film.paint((_lung(body, side), 1.0)) for side in SIDES]
    field = _largest_part_each(np.maximum(middle, below) < 0.5, [lung > 0.5 for lung in sides])
    veil, belly, deep = np.maximum(*sides), film.soften(below, 0.0025), film.soften(below, 0.03)
    air = film.depth(veil, 0.06) * (1 - 0.85 * belly) * (1 - 0.5 * film.soften(middle, 0.003))
    organs = 0.15 * heart + 0.6 * film.depth(heart, 0.05) + 0.5 * film.depth(vessels, 0.035)
    matter = _soft_tissue(body, film, rng) * (1 + 0.4 * deep) - 1.3 * air
    matter += film.soften(organs, 0.0025) * (1 - 0.8 * deep)
    matter += _skeleton(body, film) * (1 - 0.5 * belly) * (1 - 0.3 * heart) + _lung_markings(body, film, rng) * air
    matter -= 0.35 * film.paint(*_airways(body), blur=0.005) + 0.7 * _stomach_gas(body, film, rng)
    return _Chest(veil > 0.5, field, heart > 0.5, air, veil), matter


def _lung(body: _Body, side: int) -> Outline:
    base = body.dome(side, 0.75)
    return np.vstack([body.wall(side), base[: len(base) * 4 // 5], _curve(body.at(side, INNER_EDGE))])


def _heart(body: _Body) -> Outline:
    left, right = 1.32 * body.heart_ratio, 0.68 * body.heart_ratio
    edge = [(left * x, y) for x, y in HEART_LEFT] + [(-right * x, y) for x, y in HEART_RIGHT]
    return _curve(body.at(1, edge), closed=True)


def _great_vessels(body: _Body) -> Outline:
    return _curve(body.at(1, GREAT_VESSELS), closed=True)


def _abdomen(body: _Body, side: int) -> Outline:
    return np.vstack([body.dome(side), [(0.0, 1.6), (side * 0.7, 1.6), (side * 0.7, body.base)]])


def _soft_tissue(body: _Body, film: _Film, rng: np.random.Generator) -> Layer:
    """Muscle and fat of trunk, neck, arms and breasts."""
    y, edge = body.apex, body.half_width + 0.045 + 0.05 * body.fat
    if body.view == "PA":  # arms lifted off the body
        arm = [(0.8, y + 0.2), (0.8, y + 0.4), (edge + 0.04, y + 0.36)]
    else:
        arm = [(0.56, y + 0.15), (0.58, y + 0.5), (edge + 0.02, y + 0.36)]
    flank = [(edge, 0.62), (edge + 0.02, 0.85), (edge + 0.03, 1.4)]
    half = _curve(np.vstack([body.below_apex(1, SHOULDER_LINE), arm, flank]))
    trunk = film.paint((np.vstack([half, half[::-1] * [-1, 1]]), 1.0))
    matter = (0.75 + 0.25 * body.fat) * film.depth(trunk, 0.035) + 0.85 * film.depth(trunk, 0.22)
    if body.view == "AP":
        course = np.array([(0.55, y + 0.1), (0.6, 0.6), (0.6, 1.3)])
        arms = film.paint(*((_ribbon(course * [side, 1], [0.13, 0.12, 0.1]), 1.0) for side in SIDES))
        matter = np.maximum(matter, 0.8 * film.depth(arms, 0.05))
    centres = [(side * 0.24, body.base - 0.06) for side in SIDES]
    breasts = [(_blob(rng, centre, 0.15 + 0.04 * body.breast, wobble=0.06), 1.0) for centre in centres]
    return _as_layer(matter + 0.35 * body.breast * film.paint(*breasts, blur=0.012) + 0.05 * film.cloud(rng, 5, 9))


def _skeleton(body: _Body, film: _Film) -> Layer:
    back: list[Shape] = []
    front: list[Shape] = []
    limbs: list[Shape] = []
    for side in SIDES:
        for course, widths in _ribs(body, side):
            for start in range(0, 45, 5):  # in pieces: a rib fades on its way to the front
                piece, value = slice(start, start + 6), float(np.interp(start, [0, 15, 30, 45], [0.8, 1, 0.65, 0.4]))
                (back if start < 25 else front).extend(_tube(course[piece], widths[piece], value))
        limbs += _shoulder(body, side)
        course = _curve(body.below_apex(side, CLAVICLE), 8)
        limbs += _tube(course, np.interp(np.arange(33), [0, 6, 20, 32], [0.03, 0.021, 0.019, 0.024]), 1.0)
    ribs = film.paint(*back) + film.paint(*front)  # not in one go: where they cross, both count
    bones = film.soften(0.4 * (ribs + film.paint(*limbs)), 0.0018)
    return bones + 0.33 * film.paint(*_spine(), blur=0.005)


def _ribs(body: _Body, side: int) -> Iterator[tuple[Outline, Float[np.ndarray, " _"]]]:
    """The course of each rib from the spine round the chest wall to its front end, and its width on the way."""
    across, fall = np.array(RIB).T
    for number in range(10):
        top = body.apex + (body.base - body.apex) * (0.01 + 0.09 * number)
        down = top + body.rib_slope * (0.05 + 0.0065 * number) * fall
        yield (
            _curve(np.column_stack([side * across * body.reach(down), down]), 5),
            np.interp(np.arange(46), [0, 22, 31, 45], [0.018, 0.023, 0.02, 0.028]),
        )


def _shoulder(body: _Body, side: int) -> list[Shape]:
    """Shoulder blade, clear of the lungs in PA and over them in AP, and upper arm."""
    shift = [side * (0.035 if body.view == "PA" else -0.015), 0.0]
    blade = _curve(body.below_apex(side, SHOULDER_BLADE) + shift, closed=True)
    inner = blade.mean(0) + 0.8 * (blade - blade.mean(0))
    ridge = _ribbon(body.below_apex(side, BLADE_RIDGE) + shift, [0.008, 0.014, 0.03])
    elbow = (0.75, 0.2) if body.view == "PA" else (0.6, 0.6)
    arm = _curve(body.below_apex(side, [(0.5, 0.07), (0.54, 0.13), elbow]))
    return [(blade, 0.5), (inner, 0.3), (ridge, 0.6), *_tube(arm, np.linspace(0.075, 0.04, len(arm)), 0.9)]


def _spine() -> list[Shape]:
    shapes: list[Shape] = [(_ribbon(np.array([(0.0, -0.3), (0.0, 1.4)]), [0.055, 0.09]), 0.55)]
    for y in np.arange(-0.05, 1.2, 0.066):
        half = 0.03 + 0.012 * y
        vertebra = [(-half, 0), (half, 0), (half * 0.9, 0.025), (half, 0.05), (-half, 0.05), (-half * 0.9, 0.025)]
        shapes.append((np.add(vertebra, (0.0, y)), 0.8))
        shapes += [(_ellipse((x * half * 0.7, y + 0.018), 0.006, 0.011), 1.0) for x in SIDES]
        shapes.append((_ellipse((0, y + 0.04), 0.005, 0.013), 1.0))
    return shapes


def _airways(body: _Body) -> list[Shape]:
    """Windpipe and main bronchi."""
    fork = body.apex + 0.33 * (body.base - body.apex)
    shapes: list[Shape] = [(_ribbon(np.array([(0.0, -0.3), (0.0, fork - 0.1), (-0.004, fork)]), [0.034] * 3), 1.0)]
    for side in SIDES:
        course = _curve(
            np.array([(0.0, fork - 0.01), (side * 0.045, fork + 0.043 - 0.007 * side), (side * 0.09, fork + 0.085)])
        )
        shapes.append((_ribbon(course, np.linspace(0.024, 0.012, len(course))), 0.7))
    return shapes


def _lung_markings(body: _Body, film: _Film, rng: np.random.Generator) -> Layer:
    """Vessels that branch and thin out from the hila, and the fine texture between them."""
    shapes: list[Shape] = []
    for side in SIDES:
        (hilum,) = body.at(side, [(0.2, 0.41 - 0.01 * side)])
        for angle in np.linspace(-1.4, 1.4, 9) + rng.normal(0, 0.2, 9):
            start = hilum + rng.normal(0, 0.012, 2)
            shapes += _branches(rng, start, angle, side, length=rng.uniform(0.05, 0.1), width=0.008, depth=4)
        shapes.append((_blob(rng, hilum + np.array([-0.01 * side, 0.01]), 0.03, aspect=1.8), 0.5))
    return 0.55 * film.paint(*shapes, blur=0.0015) + 0.06 * film.cloud(rng, 25, 60, 110)


def _branches(
    rng: np.random.Generator, start: Any, angle: float, side: int, *, length: float, width: float, depth: int
) -> list[Shape]:
    """A tree of bands, each with two thinner ones at its end; `angle` from the horizontal, outwards and down."""
    bend = angle + rng.normal(0, 0.3)
    middle = start + 0.5 * length * np.array([side * np.cos(angle), np.sin(angle)])
    end = middle + 0.5 * length * np.array([side * np.cos(bend), np.sin(bend)])
    band = _ribbon(np.array([start, middle, end]), [width, 0.85 * width, 0.7 * width])
    shapes = [(band, 0.12 + 0.14 * depth)]
    for way in SIDES if depth > 1 else ():
        turn, shorter = way * rng.uniform(0.15, 0.6), rng.uniform(0.65, 0.95)
        shapes += _branches(rng, end, bend + turn, side, length=length * shorter, width=0.7 * width, depth=depth - 1)
    return shapes


def _stomach_gas(body: _Body, film: _Film, rng: np.random.Generator) -> Layer:
    size = max(body.gas, 1e-4)
    centre = (0.2 + rng.normal(0, 0.02), body.base - body.domes[1] + 0.02 + size)
    return film.paint((_blob(rng, centre, size, aspect=0.6, wobble=0.15), float(body.gas > 0)), blur=0.004)


def _draw_opacity(rng: np.random.Generator, body: _Body, film: _Film, label: PhantomLabel, severity: float) -> Layer:
    """By how much opacity replaces the air, in [0, 1]."""
    if label == "normal":
        return film.paint()
    covid = label == "covid19"
    shapes = _ground_glass(rng, body, severity) if covid else _consolidation(rng, body, severity)
    soft = film.paint(*shapes, blur=0.016 if covid else 0.01)
    return np.clip(soft * (1 + 0.18 * film.cloud(rng, 14, 30, 60)), 0, 1)


def _ground_glass(rng: np.random.Generator, body: _Body, severity: float) -> list[Shape]:
    """Patches as in COVID-19: both lungs, towards the chest wall, more below than above."""
    shapes: list[Shape] = []
    for side in SIDES:
        for _ in range(1 + rng.poisson(0.5 + 3 * severity)):
            y = body.apex + (0.87 - 0.62 * rng.beta(1.6, 3)) * (body.base - body.apex)
            radius = rng.uniform(0.035, 0.06) + 0.05 * severity * rng.random()
            x = body.reach(y) * (1 - 0.75 * rng.beta(1.5, 3)) - 0.3 * radius
            patch = _blob(rng, (side * x, y), radius, aspect=rng.uniform(0.9, 1.8), wobble=0.2)
            shapes.append((patch, rng.uniform(0.5, 0.75) + 0.25 * severity))
    return shapes


def _consolidation(rng: np.random.Generator, body: _Body, severity: float) -> list[Shape]:
    """One lobe filled, as in bacterial pneumonia, often with the bronchi left as dark branches in it."""
    side = int(rng.choice(SIDES))
    hilum, centre = body.at(side, [(0.25, 0.45), (rng.uniform(0.45, 0.65), float(rng.choice([0.22, 0.62, 0.72])))])
    radius = rng.uniform(0.08, 0.1) + 0.08 * severity
    lobe = _blob(rng, centre, radius, aspect=rng.uniform(0.7, 1.1), wobble=0.15)
    lobe[:, 0] = side * np.maximum(side * lobe[:, 0], 0.01)  # never over into the other lung
    shapes: list[Shape] = [(lobe, 0.75 + 0.25 * severity)]
    if rng.random() < 0.6:
        angle = math.atan2(centre[1] - hilum[1], abs(centre[0]) - abs(hilum[0]))
        bronchi = _branches(rng, hilum, angle, side, length=0.11, width=0.012, depth=3)
        shapes += [(bronchus, 0.4) for bronchus, _ in bronchi]
    return shapes


def _draw_devices(rng: np.random.Generator, body: _Body, film: _Film) -> Layer:
    """Electrodes with their wires, and a breathing tube, each on some of the films taken in bed."""
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(0, 4))):
        pad = np.array([rng.uniform(-0.4, 0.4), rng.uniform(0.15, 0.8)])
        exit_point = np.array([math.copysign(0.6, pad[0]), rng.uniform(0.0, 0.9)])
        wire = _curve(np.array([pad, 0.6 * pad + 0.4 * exit_point + rng.normal(0, 0.06, 2), exit_point]))
        shapes += [(_ribbon(wire, np.full(len(wire), 0.004)), 0.6)]
        shapes += [(_ellipse(pad, 0.012, 0.012), 0.55), (_ellipse(pad, 0.005, 0.005), 1.0)]
    if rng.random() < 0.4:
        tube = _curve(np.array([(0.012, -0.2), (0.004, 0.1), (0.0, body.apex + 0.17)]))
        shapes.append((_ribbon(tube, np.full(len(tube), 0.006)), 0.7))
    return film.paint(*shapes, blur=0.001)


def _draw_marker(rng: np.random.Generator, film: _Film, view: PhantomView) -> Layer:
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


def _develop(matter: Layer, film: _Film, rng: np.random.Generator, view: PhantomView) -> Layer:
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
    return _as_layer(image)


def _add_grain(image: Layer, rng: np.random.Generator, noise: float) -> Layer:
    grain = cv2.GaussianBlur(rng.standard_normal(image.shape, np.float32), (0, 0), 0.6)
    noise /= 0.474  # the deviation that the blur leaves
    return _as_layer(np.clip(image + noise * grain * np.sqrt(0.5 + image), 0, 1))


def _curve(knots: Outline, count: int = 24, *, closed: bool = False) -> Outline:
    """Smooth curve through the knots (Catmull-Rom), `count` points from each to the next."""
    if closed:
        chain = np.vstack([knots[-1:], knots, knots[:2]])
    else:
        chain = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = (np.arange(count) / count)[None, :, None]
    a, b, c, d = (chain[i : len(chain) - 3 + i, None] for i in range(4))
    points = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.vstack([points.reshape(-1, 2), chain[-2:-1]])


def _ribbon(course: Outline, widths: Any) -> Outline:
    """Outline of a band along a course, with a width at each of its points."""
    along = course[1:] - course[:-1]
    along = np.concatenate([along[:1], along[1:] + along[:-1], along[-1:]])
    half = (0.5 * np.asarray(widths) / np.hypot(along[:, 0], along[:, 1]))[:, None] * along[:, ::-1] * [-1, 1]
    return np.concatenate([course + half, (course - half)[::-1]])


def _tube(course: Outline, widths: Float[np.ndarray, " _"], value: float) -> list[Shape]:
    """A bone: dense at its rims, less so within."""
    return [(_ribbon(course, widths), value), (_ribbon(course, 0.6 * widths), 0.7 * value)]


def _ellipse(centre: Any, across: float, down: float) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.column_stack([centre[0] + across * np.cos(angles), centre[1] + down * np.sin(angles)])


def _blob(
    rng: np.random.Generator, centre: Any, radius: float, *, aspect: float = 1.0, wobble: float = 0.12
) -> Outline:
    """A rounded, irregular patch; `aspect` = height over width."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = [rng.normal(0, wobble / n) * np.cos(n * angles + rng.uniform(0, 6.3)) for n in range(2, 7)]
    radii = radius * np.exp(np.sum(waves, axis=0))
    across, down = radii * np.cos(angles) / math.sqrt(aspect), radii * np.sin(angles) * math.sqrt(aspect)
    return np.column_stack([centre[0] + across, centre[1] + down])


def _largest_part_each(seen: Bool[np.ndarray, "height width"], lungs: list[Any]) -> Bool[np.ndarray, "height width"]:
    """The largest connected part of each lung that is seen: a heart that reaches the chest wall may cut off a scrap."""
    _, parts = cv2.connectedComponents((seen & np.logical_or(*lungs)).astype(np.uint8), connectivity=4)
    largest = [1 + int(np.bincount(parts[lung], minlength=2)[1:].argmax()) for lung in lungs]
    return np.asarray((parts == largest[0]) | (parts == largest[1]))


def _as_layer(values: Any) -> Layer:
    return np.asarray(values, np.float32)


def _write_png(path: Path, pixels: Shaped[np.ndarray, "height width"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.round(pixels * np.float32(255)).astype(np.uint8))[1].tobytes())


def _check_arguments(size: Any, **arguments: Any) -> None:
    for name in ("seed", "patient_seed"):
        if arguments[name] is not None:
            _check_seed(name, arguments[name])
    for name, choices in (("label", LABELS), ("view", VIEWS), ("sex", (*SEXES, None))):
        if arguments[name] not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, not {arguments[name]!r}.")
    for name in ("severity", "noise"):
        if not isinstance(arguments[name], int | float) or not 0 <= arguments[name] <= 1:
            raise ConfigError(f"{name} must be a number in [0, 1], not {arguments[name]!r}.")
    whole = isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not whole or min(size) < 64 or max(size) > 2 * min(size):
        raise ConfigError(
            f"size must be (height, width) in pixels, each from 64 up, neither more than twice the other, not {size!r}."
        )


def _check_seed(name: str, seed: object) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"{name} must be a whole number from 0 up, not {seed!r}.")
    return seed


def _check_count(name: str, count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"{name} must be a whole number from 1 up, not {count!r}.")
    return count
