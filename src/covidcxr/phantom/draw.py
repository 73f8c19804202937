"""One image and the truth about it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

from covidcxr.config.checks import check_whole
from covidcxr.errors import ConfigError
from covidcxr.phantom.anatomy import (
    CLAVICLE,
    LABELS,
    SEXES,
    SHOULDER_LINE,
    SIDES,
    VIEWS,
    Body,
    Layer,
    PhantomLabel,
    PhantomView,
    Sex,
    Shape,
    blob,
    branches,
    curve,
    ellipse,
    ribbon,
    spine,
    tube,
)
from covidcxr.phantom.film import Film, add_grain, as_layer, develop, draw_marker
from covidcxr.utils.plain import is_number, user_path


@dataclass(frozen=True, slots=True)
class Chest:
    """Lungs and heart on an image.

    Attributes:
        lung: Whole lungs.
        field: Lungs without the parts behind heart and diaphragm.
        heart: The heart.
        air: Thickness of the air, in [0, 1].
        veil: 1 within the lungs, anti-aliased.

    Example:
        ```python
        import numpy as np

        from covidcxr.phantom.anatomy import Body
        from covidcxr.phantom.draw import _expose_chest
        from covidcxr.phantom.film import Film

        rng = np.random.default_rng(0)
        chest, matter = _expose_chest(Body.draw(rng, "PA", None), Film.draw(rng, rng, (64, 64)), rng)
        assert chest.lung.sum() > chest.field.sum() > 0
        ```
    """

    lung: Bool[np.ndarray, "height width"]
    field: Bool[np.ndarray, "height width"]
    heart: Bool[np.ndarray, "height width"]
    air: Float[np.ndarray, "height width"]
    veil: Float[np.ndarray, "height width"]


def _expose_chest(body: Body, film: Film, rng: np.random.Generator) -> tuple[Chest, Layer]:
    """Expose a healthy chest."""
    heart, vessels = film.paint((body.heart(), 1.0)), film.paint((body.great_vessels(), 1.0))
    middle = np.maximum(heart, vessels)
    below = film.paint(*((body.abdomen(side), 1.0) for side in SIDES))
    sides = [film.paint((body.lung(side), 1.0)) for side in SIDES]
    field = _largest_part_each(np.maximum(middle, below) < 0.5, [lung > 0.5 for lung in sides])
    veil, belly, deep = np.maximum(*sides), film.soften(below, 0.0025), film.soften(below, 0.03)
    air = film.depth(veil, 0.06) * (1 - 0.85 * belly) * (1 - 0.5 * film.soften(middle, 0.003))
    organs = 0.15 * heart + 0.6 * film.depth(heart, 0.05) + 0.5 * film.depth(vessels, 0.035)
    matter = _soft_tissue(body, film, rng) * (1 + 0.4 * deep) - 1.3 * air
    matter += film.soften(organs, 0.0025) * (1 - 0.8 * deep)
    matter += _skeleton(body, film) * (1 - 0.5 * belly) * (1 - 0.3 * heart) + _lung_markings(body, film, rng) * air
    matter -= 0.35 * film.paint(*body.airways(), blur=0.005) + 0.7 * _stomach_gas(body, film, rng)
    return Chest(veil > 0.5, field, heart > 0.5, air, veil), matter


def _soft_tissue(body: Body, film: Film, rng: np.random.Generator) -> Layer:
    """Muscle and fat of trunk, neck, arms and breasts."""
    y, edge = body.apex, body.half_width + 0.045 + 0.05 * body.fat
    if body.view == "PA":  # arms lifted off the body
        arm = [(0.8, y + 0.2), (0.8, y + 0.4), (edge + 0.04, y + 0.36)]
    else:
        arm = [(0.56, y + 0.15), (0.58, y + 0.5), (edge + 0.02, y + 0.36)]
    flank = [(edge, 0.62), (edge + 0.02, 0.85), (edge + 0.03, 1.4)]
    half = curve(np.vstack([body.below_apex(1, SHOULDER_LINE), arm, flank]))
    trunk = film.paint((np.vstack([half, half[::-1] * [-1, 1]]), 1.0))
    matter = (0.75 + 0.25 * body.fat) * film.depth(trunk, 0.035) + 0.85 * film.depth(trunk, 0.22)
    if body.view == "AP":
        course = np.array([(0.55, y + 0.1), (0.6, 0.6), (0.6, 1.3)])
        arms = film.paint(*((ribbon(course * [side, 1], [0.13, 0.12, 0.1]), 1.0) for side in SIDES))
        matter = np.maximum(matter, 0.8 * film.depth(arms, 0.05))
    centres = [(side * 0.24, body.base - 0.06) for side in SIDES]
    breasts = [(blob(rng, centre, 0.15 + 0.04 * body.breast, wobble=0.06), 1.0) for centre in centres]
    return as_layer(matter + 0.35 * body.breast * film.paint(*breasts, blur=0.012) + 0.05 * film.cloud(rng, 5, 9))


def _skeleton(body: Body, film: Film) -> Layer:
    back: list[Shape] = []
    front: list[Shape] = []
    limbs: list[Shape] = []
    for side in SIDES:
        for course, widths in body.ribs(side):
            for start in range(0, 45, 5):  # in pieces: a rib fades on its way to the front
                piece, value = slice(start, start + 6), float(np.interp(start, [0, 15, 30, 45], [0.8, 1, 0.65, 0.4]))
                (back if start < 25 else front).extend(tube(course[piece], widths[piece], value))
        limbs += body.shoulder(side)
        course = curve(body.below_apex(side, CLAVICLE), 8)
        limbs += tube(course, np.interp(np.arange(33), [0, 6, 20, 32], [0.03, 0.021, 0.019, 0.024]), 1.0)
    ribs = film.paint(*back) + film.paint(*front)  # not in one go: where they cross, both count
    bones = film.soften(0.4 * (ribs + film.paint(*limbs)), 0.0018)
    return bones + 0.33 * film.paint(*spine(), blur=0.005)


def _lung_markings(body: Body, film: Film, rng: np.random.Generator) -> Layer:
    """Vessels that branch and thin out from the hila, and the fine texture between them."""
    shapes: list[Shape] = []
    for side in SIDES:
        (hilum,) = body.at(side, [(0.2, 0.41 - 0.01 * side)])
        for angle in np.linspace(-1.4, 1.4, 9) + rng.normal(0, 0.2, 9):
            start = hilum + rng.normal(0, 0.012, 2)
            shapes += branches(rng, start, angle, side, length=rng.uniform(0.05, 0.1), width=0.008, depth=4)
        shapes.append((blob(rng, hilum + np.array([-0.01 * side, 0.01]), 0.03, aspect=1.8), 0.5))
    return 0.55 * film.paint(*shapes, blur=0.0015) + 0.06 * film.cloud(rng, 25, 60, 110)


def _stomach_gas(body: Body, film: Film, rng: np.random.Generator) -> Layer:
    size = max(body.gas, 1e-4)
    centre = (0.2 + rng.normal(0, 0.02), body.base - body.domes[1] + 0.02 + size)
    return film.paint((blob(rng, centre, size, aspect=0.6, wobble=0.15), float(body.gas > 0)), blur=0.004)


def _largest_part_each(seen: Bool[np.ndarray, "height width"], lungs: list[Any]) -> Bool[np.ndarray, "height width"]:
    """The largest connected part of each lung that is seen: a heart that reaches the chest wall may cut off a scrap."""
    _, parts = cv2.connectedComponents((seen & np.logical_or(*lungs)).astype(np.uint8), connectivity=4)
    largest = [1 + int(np.bincount(parts[lung], minlength=2)[1:].argmax()) for lung in lungs]
    return np.asarray((parts == largest[0]) | (parts == largest[1]))


def _draw_opacity(rng: np.random.Generator, body: Body, film: Film, label: PhantomLabel, severity: float) -> Layer:
    """Draw by how much opacity replaces the air."""
    if label == "normal":
        return film.paint()
    covid = label == "covid19"
    shapes = _ground_glass(rng, body, severity) if covid else _consolidation(rng, body, severity)
    soft = film.paint(*shapes, blur=0.016 if covid else 0.01)
    return np.clip(soft * (1 + 0.18 * film.cloud(rng, 14, 30, 60)), 0, 1)


def _ground_glass(rng: np.random.Generator, body: Body, severity: float) -> list[Shape]:
    """Patches as in COVID-19: both lungs, towards the chest wall, more below than above."""
    shapes: list[Shape] = []
    for side in SIDES:
        for _ in range(1 + rng.poisson(0.5 + 3 * severity)):
            y = body.apex + (0.87 - 0.62 * rng.beta(1.6, 3)) * (body.base - body.apex)
            radius = rng.uniform(0.035, 0.06) + 0.05 * severity * rng.random()
            x = body.reach(y) * (1 - 0.75 * rng.beta(1.5, 3)) - 0.3 * radius
            patch = blob(rng, (side * x, y), radius, aspect=rng.uniform(0.9, 1.8), wobble=0.2)
            shapes.append((patch, rng.uniform(0.5, 0.75) + 0.25 * severity))
    return shapes


def _consolidation(rng: np.random.Generator, body: Body, severity: float) -> list[Shape]:
    """One lobe filled, as in bacterial pneumonia, often with the bronchi left as dark branches in it."""
    side = int(rng.choice(SIDES))
    hilum, centre = body.at(side, [(0.25, 0.45), (rng.uniform(0.45, 0.65), float(rng.choice([0.22, 0.62, 0.72])))])
    radius = rng.uniform(0.08, 0.1) + 0.08 * severity
    lobe = blob(rng, centre, radius, aspect=rng.uniform(0.7, 1.1), wobble=0.15)
    lobe[:, 0] = side * np.maximum(side * lobe[:, 0], 0.01)  # never over into the other lung
    shapes: list[Shape] = [(lobe, 0.75 + 0.25 * severity)]
    if rng.random() < 0.6:
        angle = math.atan2(centre[1] - hilum[1], abs(centre[0]) - abs(hilum[0]))
        bronchi = branches(rng, hilum, angle, side, length=0.11, width=0.012, depth=3)
        shapes += [(bronchus, 0.4) for bronchus, _ in bronchi]
    return shapes


def _draw_devices(rng: np.random.Generator, body: Body, film: Film) -> Layer:
    """Draw electrodes with their wires, and a breathing tube, each on some of the images taken in bed."""
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(0, 4))):
        pad = np.array([rng.uniform(-0.4, 0.4), rng.uniform(0.15, 0.8)])
        exit_point = np.array([math.copysign(0.6, pad[0]), rng.uniform(0.0, 0.9)])
        wire = curve(np.array([pad, 0.6 * pad + 0.4 * exit_point + rng.normal(0, 0.06, 2), exit_point]))
        shapes += [(ribbon(wire, np.full(len(wire), 0.004)), 0.6)]
        shapes += [(ellipse(pad, 0.012, 0.012), 0.55), (ellipse(pad, 0.005, 0.005), 1.0)]
    if rng.random() < 0.4:
        tube = curve(np.array([(0.012, -0.2), (0.004, 0.1), (0.0, body.apex + 0.17)]))
        shapes.append((ribbon(tube, np.full(len(tube), 0.006)), 0.7))
    return film.paint(*shapes, blur=0.001)


MASKS = ("lung_field", "lung", "infection")


@dataclass(frozen=True, slots=True)
class Phantom:
    """One drawn image and the truth about it.

    Attributes:
        image: Grey in [0, 1]; bright = much matter in the beam.
        lung_field: Lungs without the parts behind heart and diaphragm, as NLM and COVID-QU-Ex draw them.
        lung: Lungs with those parts, as V7 draws them.
        heart: The heart's outline, filled.
        infection: Where there is an opacity.
        label: "covid19", "pneumonia" or "normal".
        view: "PA" (upright) or "AP" (in bed).
        seed: What the image was drawn from.

    Example:
        ```python
        from covidcxr.phantom import draw_phantom

        phantom = draw_phantom(7, label="covid19", size=(64, 64))
        assert phantom.image.shape == (64, 64) and phantom.infection.any()
        ```
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
    """Draw one chest radiograph.

    The same arguments give the same bits. The same seed with another label gives the same image but for the
    opacities; at another size, the same anatomy.

    Args:
        seed: Of everything that is random, from 0 up.
        label: "covid19" = soft patches in both lungs, mostly at the edge and low; "pneumonia" = one dense,
            lobar opacity; "normal" = none.
        view: "PA", or "AP" with a wider heart, higher diaphragm, less contrast, often wires and tubes.
        size: Height and width in pixels, each from 64 up, neither more than twice the other.
        severity: How far and how dense the opacities are, in [0, 1].
        noise: Standard deviation of the image's grain at mid grey, in [0, 1].
        marker: Whether the letter that marks the sides is in the picture.
        sex: "F" or "M"; None leaves it to the seed.
        patient_seed: Seed of the person: images with one `patient_seed` and several `seed`s show one body at
            several times. None = `seed`.

    Returns:
        The image and its masks.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check_arguments(
        size, seed=seed, patient_seed=patient_seed, label=label, view=view, sex=sex, severity=severity, noise=noise
    )
    anatomy = np.random.default_rng([0, seed if patient_seed is None else patient_seed])
    exposure, disease, grain = (np.random.default_rng([stream, seed]) for stream in (1, 2, 3))
    body = Body.draw(anatomy, view, sex)
    film = Film.draw(exposure, anatomy, size)
    chest, matter = _expose_chest(body, film, anatomy)
    opacity = _draw_opacity(disease, body, film, label, severity) * chest.veil
    matter += opacity * chest.air * (1.05 if label == "pneumonia" else 0.85)
    if view == "AP":
        matter += _draw_devices(exposure, body, film)
    image = develop(matter, film, exposure, view)
    if marker:
        image = np.maximum(image, draw_marker(exposure, film, view))
    infection = (opacity > 0.3) & chest.lung
    return Phantom(add_grain(image, grain, noise), chest.field, chest.lung, chest.heart, infection, label, view, seed)


def _check_arguments(size: Any, **arguments: Any) -> None:
    for name in ("seed", "patient_seed"):
        if arguments[name] is not None:
            check_whole(arguments[name], name, 0)
    for name, choices in (("label", LABELS), ("view", VIEWS), ("sex", (*SEXES, None))):
        if arguments[name] not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, not {arguments[name]!r}.")
    for name in ("severity", "noise"):
        if not is_number(arguments[name]) or not 0 <= arguments[name] <= 1:
            raise ConfigError(f"{name} must be a number in [0, 1], not {arguments[name]!r}.")
    check_size(size)


def check_size(size: Any) -> None:
    """Check the size of an image to draw.

    Args:
        size: Height and width in pixels.

    Raises:
        ConfigError: If it is out of range.
    """
    whole = isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, Integral) for side in size)
    if not whole or min(size) < 64 or max(size) > 2 * min(size):
        raise ConfigError(
            f"size must be (height, width) in pixels, each from 64 up, neither more than twice the other, not {size!r}."
        )


SOURCES = ("phantom-a", "phantom-b")


def draw_dataset(
    count: int, *, seed: int = 0, labels: Sequence[PhantomLabel] = LABELS, size: tuple[int, int] = (512, 512)
) -> Iterator[Phantom]:
    """Draw images of as many persons, the labels in turn, view and severity at random.

    Args:
        count: Number of images.
        seed: Of everything that is random.
        labels: The labels, in turn.
        size: Height and width in pixels.

    Yields:
        The images.

    Raises:
        ConfigError: If an argument is out of range.
    """
    count = check_whole(count, "count", 1)
    if not labels:
        raise ConfigError(f"labels must name at least one of {', '.join(LABELS)}.")
    rng = np.random.default_rng(check_whole(seed, "seed", 0))
    for number in range(count):
        view, severity = VIEWS[rng.integers(2)], float(rng.uniform(0.2, 1))
        image_seed = int(rng.integers(2**31))
        yield draw_phantom(image_seed, label=labels[number % len(labels)], view=view, size=size, severity=severity)


def write_dataset(
    folder: str | Path, count: int, *, seed: int = 0, size: tuple[int, int] = (256, 256), patients: int | None = None
) -> Path:
    """Write a data set of drawn images: `images/`, a folder a mask class, and `manifest.csv`, whose path comes back.

    All masks are known: an infection mask without a set pixel says that there is no opacity. Each person has one
    label and one source; source, view, sex and age say nothing about the label. The images of "phantom-b" are
    grainier and an eighth lower.

    Args:
        folder: Where to; made if it is not there.
        count: Number of images.
        seed: Of everything that is random.
        size: Height and width in pixels.
        patients: Number of persons; the first ones have an image more when `count` is not a multiple of it.
            None = two for three images.

    Returns:
        The path of `manifest.csv`.

    Raises:
        ConfigError: If an argument is out of range.
    """
    count = check_whole(count, "count", 1)
    patients = math.ceil(2 * count / 3) if patients is None else check_whole(patients, "patients", 1)
    rng = np.random.default_rng(check_whole(seed, "seed", 0))
    persons = [(int(rng.integers(2**31)), SEXES[rng.integers(2)], int(rng.integers(18, 90))) for _ in range(patients)]
    folder, rows = user_path(folder), list[dict[str, object]]()
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


def _write_png(path: Path, pixels: Shaped[np.ndarray, "height width"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.round(pixels * np.float32(255)).astype(np.uint8))[1].tobytes())
