"""One film and the truth about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError
from covidcxr.phantom.anatomy import Body
from covidcxr.phantom.chest import expose_chest
from covidcxr.phantom.film import Film, add_grain, develop, draw_marker
from covidcxr.phantom.findings import draw_devices, draw_opacity
from covidcxr.phantom.types import LABELS, SEXES, VIEWS, PhantomLabel, PhantomView, Sex

MASKS = ("lung_field", "lung", "infection")


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
            check_seed(name, arguments[name])
    for name, choices in (("label", LABELS), ("view", VIEWS), ("sex", (*SEXES, None))):
        if arguments[name] not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, not {arguments[name]!r}.")
    for name in ("severity", "noise"):
        if not isinstance(arguments[name], int | float) or not 0 <= arguments[name] <= 1:
            raise ConfigError(f"{name} must be a number in [0, 1], not {arguments[name]!r}.")
    check_size(size)


def check_size(size: Any) -> None:
    """Raise a ConfigError unless `size` is a height and width that can be drawn."""
    whole = isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not whole or min(size) < 64 or max(size) > 2 * min(size):
        raise ConfigError(
            f"size must be (height, width) in pixels, each from 64 up, neither more than twice the other, not {size!r}."
        )


def check_seed(name: str, seed: object) -> int:
    """Return the seed, or raise a ConfigError that calls it `name`."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"{name} must be a whole number from 0 up, not {seed!r}.")
    return seed
