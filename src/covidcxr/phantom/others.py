"""Pictures that are no frontal chest radiograph, drawn: what a view check must reject, in training and in tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
from jaxtyping import Float

from covidcxr.config.checks import check_whole
from covidcxr.errors import ConfigError
from covidcxr.phantom.anatomy import Layer, blob
from covidcxr.phantom.draw import check_size
from covidcxr.phantom.film import Film, add_grain, as_layer, draw_marker
from covidcxr.phantom.other_bodies import DRAW_BODY

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

BODIES: tuple[str, ...] = tuple(DRAW_BODY)


def draw_other(seed: int, kind: OtherKind, *, size: tuple[int, int] = (512, 512)) -> Float[np.ndarray, "height width"]:
    """Draw one picture that is no frontal chest radiograph, in [0, 1].

    The same arguments give the same bits. One in five is inverted, and bodies lie any way.

    Args:
        seed: Of everything that is random, from 0 up.
        kind: "ct" (slices of chest, abdomen or head), "lateral" (a chest from the side), "limb", "hand" (or foot),
            "skull", "abdomen" (or pelvis), "breast"; or "text", "noise", "plain", "scene" (like a photograph),
            "texture", "shapes" (diagrams and symbols).
        size: Height and width in pixels, each from 64 up, neither more than twice the other.

    Returns:
        Grey [height, width], in [0, 1].

    Raises:
        ConfigError: If an argument is out of range.
    """
    check_whole(seed, "seed", 0)
    check_size(size)
    if kind not in OTHERS:
        raise ConfigError(f"kind must be one of {', '.join(OTHERS)}, not {kind!r}.")
    rng = np.random.default_rng([4, OTHERS.index(kind), seed])
    turns, body = (int(rng.integers(4)), True) if kind in BODIES else (0, False)
    film = Film.draw(rng, rng, (size[1], size[0]) if turns % 2 else size)
    draw: Callable[[np.random.Generator, Film], Layer] = DRAW_BODY[kind] if body else _DRAW_PICTURE[kind]
    image = np.clip(draw(rng, film), 0, 1)
    if body:
        image = _as_film(image, rng, film)
    if rng.random() < 0.2:
        image = 1 - image
    return np.ascontiguousarray(np.rot90(as_layer(image), turns))


def _as_film(image: Layer, rng: np.random.Generator, film: Film) -> Layer:
    """Narrow the beam, and give it the contrast, marker and grain of an image."""
    part = rng.uniform(0.65, 1) if rng.random() < 0.6 else 1.0
    height, width = round(film.height * part), round(film.width * part)
    top, left = (int(rng.integers(left + 1)) for left in (film.height - height, film.width - width))
    image = cv2.resize(image[top : top + height, left : left + width], (film.width, film.height))
    low, high = rng.uniform(0, 0.15), rng.uniform(0.8, 1)
    image = as_layer(low + (high - low) * image ** rng.uniform(0.6, 1.5))
    if rng.random() < 0.5:
        image = np.maximum(image, draw_marker(rng, film, "PA"))
    return add_grain(image, rng, float(rng.uniform(0, 0.03)))


Rng = np.random.Generator

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzeeetaoinsABCDEFGHIKLMNOPRST0123456789.,"))

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
)


def _draw_text(rng: Rng, film: Film) -> Layer:
    """A page, a table or a screen of letters, at times with a picture in it."""
    paper = np.full((film.height, film.width), 255, np.uint8)
    columns, font = int(rng.integers(1, 4)), int(rng.choice(_FONTS))
    tall = film.scale * rng.uniform(0.012, 0.08)
    size, pitch = cv2.getFontScaleFromHeight(font, max(1, round(tall))), tall * rng.uniform(1.5, 2.6)
    margin, ink = rng.uniform(0.02, 0.12), int(rng.integers(0, 120))
    wide = film.width * (1 - 2 * margin) / columns
    for column in range(columns):
        y, x = film.height * margin + tall, round(film.width * margin + column * wide)
        while y < film.height * (1 - margin):
            words = "".join(rng.choice(_LETTERS, int(rng.integers(3, 60))))
            fits = max(1, round(0.92 * wide / max(1, cv2.getTextSize("n", font, size, 1)[0][0])))
            words = " ".join(words[i : i + 6] for i in range(0, min(fits, len(words)), 6))
            if rng.random() < 0.92:
                cv2.putText(paper, words, (x, round(y)), font, size, ink, max(1, round(tall / 9)), cv2.LINE_AA)
            y += pitch
    page = as_layer(paper) / 255
    if rng.random() < 0.4:
        top, left = rng.integers(0, [film.height // 2, film.width // 2])
        patch = page[top : top + film.height // 3, left : left + film.width // 2]
        patch[:] = _spectrum(rng, film, 1.0)[: patch.shape[0], : patch.shape[1]]
    return page


def _draw_noise(rng: Rng, film: Film) -> Layer:
    """White or coarse noise, salt and pepper, stripes."""
    kind = rng.integers(4)
    if kind == 0:
        grey, spread = rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.4)
        return as_layer(np.clip(rng.normal(grey, spread, (film.height, film.width)), 0, 1))
    if kind == 1:
        return as_layer(rng.random((film.height, film.width)) < rng.uniform(0.05, 0.95))
    if kind == 2:
        cells = int(rng.integers(4, 60))
        return as_layer(np.clip(0.5 + rng.uniform(0.1, 0.4) * film.cloud(rng, cells), 0, 1))
    y, x = np.mgrid[: film.height, : film.width] / film.scale
    way, waves = rng.uniform(0, np.pi), rng.uniform(2, 60)
    return as_layer(0.5 + 0.5 * np.sin(2 * np.pi * waves * (x * np.cos(way) + y * np.sin(way))))


def _draw_plain(rng: Rng, film: Film) -> Layer:
    """Black, white, grey, or grey that changes from one side to the other or from the middle out."""
    y, x = np.mgrid[: film.height, : film.width] / film.scale - 0.5
    kind, first, last = rng.integers(3), *rng.random(2)
    if kind == 0:
        level = float(rng.choice([0.0, 1.0, first]))
        return as_layer(np.full((film.height, film.width), level) + rng.normal(0, 0.01) * film.cloud(rng, 3)).clip(0, 1)
    way = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + x * np.cos(way) + y * np.sin(way) if kind == 1 else np.hypot(x - first + 0.5, y) * 1.5
    return as_layer(np.clip(first + (last - first) * ramp, 0, 1))


def _draw_scene(rng: Rng, film: Film) -> Layer:
    """Something like a photograph: shaded, textured bodies that hide each other, over a ground and a sky.

    Bodies of many sizes that occlude each other share the statistics of natural scenes (dead leaves; Lee, Mumford and
    Huang, Int J Comput Vision 2001).
    """
    y = np.linspace(0, 1, film.height)[:, None]
    horizon, sky, ground = rng.uniform(0.1, 0.9), rng.random(), rng.random()
    grains = [_spectrum(rng, film, slope) for slope in (1.0, rng.uniform(0.5, 1.5))]
    image = np.where(y < horizon, sky + 0.3 * (y - horizon), ground) + 0.08 * (grains[0] - 0.5)
    image = as_layer(np.broadcast_to(image, (film.height, film.width)).copy())
    for _ in range(int(rng.integers(3, 60))):
        radius = 0.03 / rng.uniform(0.03, 1) ** 0.8
        outline = _body(rng, rng.uniform((-0.6, -0.1), (0.6, 1.1)), radius)
        mask = film.paint((outline, 1.0), blur=float(rng.choice([0.0, 0.0, 0.004])))
        way = rng.normal(0, 0.8, 2)
        shade = rng.random() + way[0] * (y - 0.5) + way[1] * (np.linspace(0, 1, film.width)[None] - 0.5)
        if rng.random() < 0.5:
            grain = np.roll(grains[rng.integers(2)], rng.integers(0, 64, 2), (0, 1))
            shade = shade + rng.uniform(0.05, 0.5) * (grain - 0.5)
        image = image * (1 - mask) + as_layer(np.clip(shade, 0, 1)) * mask
    return as_layer(np.clip(image, 0, 1))


def _body(rng: Rng, centre: object, radius: float) -> np.ndarray:
    """A smooth blob or a polygon of a few corners."""
    if rng.random() < 0.5:
        return blob(rng, centre, radius, aspect=float(np.exp(rng.normal(0, 0.6))), wobble=0.15)
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
    stretch = np.exp(rng.normal(0, 0.5, 2))
    corners = radius * stretch * np.column_stack([np.cos(angles), np.sin(angles)])
    return np.asarray(centre + corners)


def _draw_texture(rng: Rng, film: Film) -> Layer:
    """One texture from edge to edge, of any slope of its spectrum, at times in rows or cells."""
    image = _spectrum(rng, film, rng.uniform(0.3, 2.0))
    if rng.random() < 0.4:
        y, x = np.mgrid[: film.height, : film.width] / film.scale
        rows, cells = rng.uniform(2, 25, 2)
        image = image + rng.uniform(0.2, 0.6) * np.sign(np.sin(2 * np.pi * rows * y) * np.sin(2 * np.pi * cells * x))
    low, high = np.percentile(image, [1, 99])
    return as_layer(np.clip((image - low) / (high - low + 1e-6), 0, 1))


def _draw_shapes(rng: Rng, film: Film) -> Layer:
    """A diagram or a symbol: flat figures, lines and curves on a plain ground."""
    ground = float(rng.choice([0.0, 1.0, rng.random()]))
    canvas = np.full((film.height, film.width), round(255 * ground), np.uint8)
    for _ in range(int(rng.integers(1, 14))):
        points = film.place(_body(rng, rng.uniform((-0.45, 0.05), (0.45, 0.95)), rng.uniform(0.02, 0.4)))
        grey, corners = int(rng.integers(256)), np.round(points).astype(np.int32)
        if rng.random() < 0.5:
            cv2.fillPoly(canvas, [corners], grey, cv2.LINE_AA)
        else:
            thick = max(1, round(film.scale * rng.uniform(0.003, 0.04)))
            cv2.polylines(canvas, [corners], bool(rng.random() < 0.5), grey, thick, cv2.LINE_AA)
    return as_layer(canvas) / 255


def _spectrum(rng: Rng, film: Film, slope: float) -> Layer:
    """Noise whose amplitude falls with frequency to the power of `slope` (1 = as in photographs), in [0, 1]."""
    side = 1 << math.ceil(math.log2(max(film.height, film.width)))
    side = min(side, 256)  # finer grain is not seen at the sizes at which view checks work
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    size = np.hypot(rows, columns)
    size[0, 0] = np.inf
    waves = np.exp(2j * np.pi * rng.random(size.shape)) / size**slope
    noise = np.fft.irfft2(waves, (side, side))
    low, high = np.percentile(noise, [1, 99])
    noise = np.clip((noise - low) / (high - low), 0, 1).astype(np.float32)
    return as_layer(cv2.resize(noise, (film.width, film.height), interpolation=cv2.INTER_LINEAR))


_DRAW_PICTURE: dict[str, Callable[[np.random.Generator, Film], Layer]] = {
    "text": _draw_text,
    "noise": _draw_noise,
    "plain": _draw_plain,
    "scene": _draw_scene,
    "texture": _draw_texture,
    "shapes": _draw_shapes,
}
