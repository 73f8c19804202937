"""Pictures that are no frontal chest film, drawn: what a gate must refuse, in training and in tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
from jaxtyping import Float

from covidcxr.errors import ConfigError
from covidcxr.phantom import other_bodies, other_pictures
from covidcxr.phantom.draw import check_seed, check_size
from covidcxr.phantom.film import Film, add_grain, as_layer, draw_marker
from covidcxr.phantom.types import Layer

OtherKind: TypeAlias = Literal[
    "ct",
    "lateral",
    "limb",
    "hand",
    "skull",
    "abdomen",
    "breast",
    "text",
    "noise",
    "plain",
    "scene",
    "texture",
    "shapes",
]
OTHERS: tuple[OtherKind, ...] = get_args(OtherKind)
BODIES: tuple[OtherKind, ...] = ("ct", "lateral", "limb", "hand", "skull", "abdomen", "breast")


def draw_other(seed: int, kind: OtherKind, *, size: tuple[int, int] = (512, 512)) -> Float[np.ndarray, "height width"]:
    """Draw one picture that is no frontal chest film, in [0, 1].

    The same arguments give the same bits. One in five is inverted, and bodies lie any way.

    Args:
        seed: Of everything that is random, from 0 up.
        kind: "ct" (slices of chest, abdomen or head), "lateral" (a chest from the side), "limb", "hand" (or foot),
            "skull", "abdomen" (or pelvis), "breast"; or "text", "noise", "plain", "scene" (like a photograph),
            "texture", "shapes" (diagrams and symbols).
        size: Height and width in pixels, each from 64 up, neither more than twice the other.

    Raises:
        ConfigError: If an argument is out of range.
    """
    check_seed("seed", seed)
    check_size(size)
    if kind not in OTHERS:
        raise ConfigError(f"kind must be one of {', '.join(OTHERS)}, not {kind!r}.")
    rng = np.random.default_rng([4, OTHERS.index(kind), seed])
    turns, body = (int(rng.integers(4)), True) if kind in BODIES else (0, False)
    film = Film.draw(rng, rng, (size[1], size[0]) if turns % 2 else size)
    place = other_bodies if body else other_pictures
    draw: Callable[[np.random.Generator, Film], Layer] = getattr(place, f"draw_{kind}")
    image = np.clip(draw(rng, film), 0, 1)
    if body:
        image = _as_film(image, rng, film)
    if rng.random() < 0.2:
        image = 1 - image
    return np.ascontiguousarray(np.rot90(as_layer(image), turns))


def _as_film(image: Layer, rng: np.random.Generator, film: Film) -> Layer:
    """Narrow the beam, and give it the contrast, marker and grain of a film."""
    part = rng.uniform(0.65, 1) if rng.random() < 0.6 else 1.0
    height, width = round(film.height * part), round(film.width * part)
    top, left = (int(rng.integers(left + 1)) for left in (film.height - height, film.width - width))
    image = cv2.resize(image[top : top + height, left : left + width], (film.width, film.height))
    low, high = rng.uniform(0, 0.15), rng.uniform(0.8, 1)
    image = as_layer(low + (high - low) * image ** rng.uniform(0.6, 1.5))
    if rng.random() < 0.5:
        image = np.maximum(image, draw_marker(rng, film, "PA"))
    return add_grain(image, rng, float(rng.uniform(0, 0.03)))
