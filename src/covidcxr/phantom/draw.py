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
from covidcxr.phantom.anatomy import LABELS, SEXES, VIEWS, Body, PhantomLabel, PhantomView, Sex
from covidcxr.phantom.chest import draw_devices, draw_opacity, expose_chest
from covidcxr.phantom.film import Film, add_grain, develop, draw_marker
from covidcxr.utils.plain import is_number, user_path

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
    chest, matter = expose_chest(body, film, anatomy)
    opacity = draw_opacity(disease, body, film, label, severity) * chest.veil
    matter += opacity * chest.air * (1.05 if label == "pneumonia" else 0.85)
    if view == "AP":
        matter += draw_devices(exposure, body, film)
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
        film_seed = int(rng.integers(2**31))
        yield draw_phantom(film_seed, label=labels[number % len(labels)], view=view, size=size, severity=severity)


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
