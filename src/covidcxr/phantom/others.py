"""Pictures that are no frontal chest radiograph, drawn: what a view check must reject, in training and in tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
from jaxtyping import Float

from covidcxr.config.checks import check_whole
from covidcxr.errors import ConfigError
from covidcxr.phantom.anatomy import SIDES, Layer, Outline, Shape, blob, curve, ellipse, ribbon, tube
from covidcxr.phantom.draw import check_size
from covidcxr.phantom.film import Film, add_grain, as_layer, draw_marker

Rng = np.random.Generator


def _draw_ct(rng: Rng, film: Film) -> Layer:
    """An axial slice: of the chest in a lung or a soft window, of the abdomen, or of the head."""
    part = rng.choice(["lungs", "mediastinum", "abdomen", "head"])
    wide, tall = (rng.uniform(0.24, 0.32), rng.uniform(0.3, 0.4)) if part == "head" else rng.uniform(0.26, 0.46, 2)
    body = blob(rng, (0.0, 0.5), np.sqrt(wide * tall), aspect=tall / wide, wobble=0.03)
    image = 0.45 * film.paint((body, 1.0), blur=0.002)
    rim = film.paint((0.93 * (body - [0, 0.5]) + [0, 0.5], 1.0), blur=0.003)
    if part == "head":
        skull, brain = 0.93 * (body - [0, 0.5]) + [0, 0.5], 0.85 * (body - [0, 0.5]) + [0, 0.5]
        image = film.paint((body, 0.3), (skull, 1.0), (brain, 0.45), blur=0.002)
        gaps = [(blob(rng, (side * 0.04, 0.48), 0.04, aspect=2.5, wobble=0.2), 1.0) for side in SIDES]
        return as_layer(image - 0.2 * film.paint(*gaps, blur=0.004) + 0.03 * film.cloud(rng, 20, 50) * rim)
    image = image + 0.12 * rim
    holes: list[Shape] = []
    if part == "abdomen":
        holes = [(blob(rng, rng.normal((0, 0.5), 0.1), rng.uniform(0.02, 0.05)), 1.0) for _ in range(5)]
        organs = [(blob(rng, (-0.4 * wide, 0.45), 0.5 * wide, wobble=0.15), 1.0)]
        organs += [(ellipse((side * 0.45 * wide, 0.5 + 0.35 * tall), 0.05, 0.06), 1.0) for side in SIDES]
        image = image + 0.12 * film.paint(*organs, blur=0.003)
    else:
        for side in SIDES:
            lung = blob(rng, (side * 0.5 * wide, 0.5), 0.5 * np.sqrt(wide * tall) * 0.9, aspect=1.5, wobble=0.08)
            holes.append((lung, 1.0))
    air = film.paint(*holes, blur=0.002)
    vessels = [(ellipse(rng.normal((0, 0.5), (0.5 * wide, 0.3 * tall)), *rng.uniform(0.003, 0.012, 2)), 1.0)]
    vessels += [(ellipse(rng.normal((0, 0.5), (0.5 * wide, 0.3 * tall)), 0.005, 0.005), 1.0) for _ in range(40)]
    dark = rng.uniform(0.0, 0.2) if part == "lungs" else 0.0
    image = image * (1 - air) + dark * air + 0.35 * air * film.paint(*vessels) * (part == "lungs")
    return as_layer(image + film.paint(*_ct_bones(rng, wide, tall), blur=0.002) + _table(rng, film, tall))


def _ct_bones(rng: Rng, wide: float, tall: float) -> list[Shape]:
    """The vertebra, the breast bone, and ribs cut across around the trunk."""
    bones: list[Shape] = [(ellipse((0, 0.5 + 0.6 * tall), 0.06, 0.05), 0.5)]
    bones.append((ribbon(np.array([(0, 0.5 + 0.6 * tall), (0, 0.5 + 0.95 * tall)]), [0.05, 0.02]), 0.5))
    bones.append((ellipse((0, 0.5 - 0.85 * tall), 0.05, 0.015), 0.45))
    for angle in rng.uniform(0, 2 * np.pi, 14):
        arc = angle + np.linspace(0, rng.uniform(0.1, 0.3), 5)
        course = np.column_stack([0.88 * wide * np.cos(arc), 0.5 + 0.88 * tall * np.sin(arc)])
        bones.append((ribbon(course, np.full(5, 0.018)), 0.5))
    return bones


def _table(rng: Rng, film: Film, tall: float) -> Layer:
    course = np.column_stack([np.linspace(-0.4, 0.4, 9), 0.53 + tall + 0.1 * np.linspace(-1, 1, 9) ** 2 * -1 + 0.05])
    return film.paint((ribbon(course, np.full(9, 0.006)), float(rng.uniform(0, 0.5))))


def _draw_lateral(rng: Rng, film: Film) -> Layer:
    """The chest from the side: one overlapped lung between breast bone and spine, the heart low in front."""
    front, depth = float(rng.choice(SIDES)), rng.uniform(0.24, 0.33)
    way = np.array([front, 1.0])
    trunk = np.array([(0.16, -0.2), (0.3, 0.15), (1.3 * depth, 0.45), (1.25 * depth, 1.3), (-1.5 * depth, 1.3)])
    trunk = np.vstack([trunk, [(-1.55 * depth, 0.6), (-1.3 * depth, 0.2), (-0.2, -0.2)]]) * way
    matter = 1.5 * film.depth(film.paint((curve(trunk, closed=True), 1.0)), 0.12)
    lung = np.array([(0.05, 0.12), (0.6 * depth, 0.3), (depth, 0.55), (0.9 * depth, 0.78), (0.1, 0.76)])
    lung = np.vstack([lung, [(-depth, 0.95), (-1.05 * depth, 0.6), (-0.8 * depth, 0.25), (-0.2, 0.13)]]) * way
    matter -= 1.2 * film.depth(film.paint((curve(lung, closed=True), 1.0)), 0.06)
    heart = blob(rng, way * (0.4 * depth, 0.66), rng.uniform(0.1, 0.14), aspect=0.9)
    matter += 0.6 * film.depth(film.paint((heart, 1.0)), 0.05)
    spine = np.array([(-0.7 * depth, -0.1), (-1.1 * depth, 0.4), (-1.05 * depth, 0.8), (-0.8 * depth, 1.2)]) * way
    bones = _vertebrae(curve(spine), rng.uniform(0.07, 0.09))
    ahead = np.array([(0.5 * depth, 0.2), (1.0 * depth, 0.45), (1.1 * depth, 0.65)]) * way
    bones.append((ribbon(curve(ahead), np.full(49, 0.018)), 0.8))
    for y in np.linspace(0.15, 0.9, 9):
        rib = np.array([(-1.05 * depth, y), (-0.3 * depth, y + 0.06), (0.7 * depth, y + 0.2)]) * way
        bones += tube(curve(rib, 8), np.full(17, 0.018), 0.5)
    return as_layer(_developed(matter + 0.4 * film.paint(*bones, blur=0.003), rng))


def _vertebrae(course: Outline, wide: float) -> list[Shape]:
    shapes: list[Shape] = []
    for start in range(0, len(course) - 5, 5):
        shapes.append((ribbon(course[start : start + 5], np.full(5, wide)), 0.8))
        shapes.append((ribbon(course[start + 1 : start + 4], np.full(3, 0.7 * wide)), 0.55))
    return shapes


def _draw_limb(rng: Rng, film: Film) -> Layer:
    """An arm or leg: one or two long bones on each side of a joint."""
    lean, joint, thick = rng.normal(0, 0.12), rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.1)
    middle = np.array([rng.normal(0, 0.03), joint])
    ends = [_from(middle, lean * 1.2, -1.0), _from(middle, rng.normal(0, 0.25), 1.0)]
    thin, thick_end = rng.uniform(0.25, 0.6, 2).tolist()
    flesh = ribbon(curve(np.array([ends[0], middle, ends[1]])), np.linspace(thin, thick_end, 49))
    matter = 1.1 * film.depth(film.paint((flesh, 1.0)), 0.1)
    bones: list[Shape] = []
    for end in ends:
        pair = rng.random() < 0.5
        for side in SIDES if pair else (0,):
            shift = np.array([side * thick * 0.75, 0.0])
            gap = 0.02 * (end - middle)
            course = curve(np.array([middle + shift + gap, 0.5 * (middle + end) + shift, end + shift]), 12)
            width = thick * (0.7 if pair else 1.0) * (1 + 0.7 * np.exp(-np.linspace(0, 9, 25)))
            bones += tube(course, width, 1.0)
    return as_layer(_developed(matter + 0.9 * film.paint(*bones, blur=0.003), rng))


def _draw_hand(rng: Rng, film: Film) -> Layer:
    """A hand or a foot: five rays of short bones from the wrist."""
    wrist, flesh, bones = np.array([rng.normal(0, 0.04), rng.uniform(0.7, 0.8)]), list[Shape](), list[Shape]()
    flesh.append((blob(rng, _from(wrist, 0, -0.13), 0.17, aspect=1.2, wobble=0.05), 1.0))
    flesh.append((ribbon(np.array([wrist, _from(wrist, 0, 0.5)]), [0.24, 0.28]), 1.0))
    for side in SIDES:
        arm = np.array([_from(wrist, 0.05 * side, 0.06), _from(wrist, 0.07 * side, 0.6)])
        bones += tube(arm, np.array([0.08, 0.06]), 1.0)
    bones += [(blob(rng, wrist + rng.normal(0, 0.035, 2), 0.025), 0.9) for _ in range(8)]
    spread = rng.uniform(0.1, 0.28)
    for number, reach in enumerate(rng.normal([0.36, 0.52, 0.56, 0.52, 0.42], 0.02)):
        angle = (number - 2) * spread + rng.normal(0, 0.03) - (0.35 if number == 0 else 0)
        way = np.array([np.sin(angle), -np.cos(angle)])
        flesh.append((ribbon(np.array([wrist, wrist + way * (reach + 0.03)]), [0.12, 0.07]), 1.0))
        joints = np.array([0.15, 0.48, 0.72, 0.88, 1.0]) * reach
        for near, far in pairwise(joints):
            course = wrist + np.outer(np.linspace(near + 0.008, far - 0.006, 7), way)
            bones += tube(course, 0.032 + 0.016 * np.abs(np.linspace(-1, 1, 7)), 1.0)
    matter = 0.7 * film.depth(film.paint(*flesh), 0.03) + 0.9 * film.paint(*bones, blur=0.002)
    return as_layer(_developed(matter, rng))


def _draw_skull(rng: Rng, film: Film) -> Layer:
    """A head, from the front or from the side, or a row of teeth."""
    centre, size = np.array([rng.normal(0, 0.03), 0.42]), rng.uniform(0.28, 0.36)
    vault = blob(rng, centre, size, aspect=rng.uniform(0.85, 1.3), wobble=0.04)
    inner = 0.93 * (vault - centre) + centre
    side = float(rng.choice((-1, 0, 1)))
    jaw = blob(rng, _from(centre, 0.5 * side * size, 0.95 * size), 0.55 * size, aspect=0.9)
    matter = film.paint((ribbon(np.array([centre, _from(centre, -0.2 * side, 1.0)]), [0.3, 0.35]), 1.0), blur=0.01)
    matter += 0.9 * film.paint((vault, 1.0), (inner, 0.45), (jaw, 0.7), blur=0.003)
    for eye in (side,) if side else SIDES:
        matter -= 0.35 * film.paint(
            (ellipse(_from(centre, 0.42 * eye * size, 0.45 * size), 0.3 * size, 0.25 * size), 1.0)
        )
    matter -= 0.3 * film.paint((blob(rng, _from(centre, 0.7 * side * size, 0.75 * size), 0.15 * size, aspect=1.6), 1.0))
    teeth: list[Shape] = []
    for row in (0.98, 1.16):
        for x in np.linspace(-0.35, 0.35, 9):
            teeth.append((ellipse(_from(centre, (x + 0.7 * side) * size, row * size), 0.036 * size, 0.09 * size), 1.0))
    return as_layer(_developed(matter + 0.8 * film.paint(*teeth), rng))


def _draw_abdomen(rng: Rng, film: Film) -> Layer:
    """A trunk without lungs, or a pelvis: spine, iliac wings, hips, bowel gas."""
    top, wide = rng.uniform(-0.3, 0.2), rng.uniform(0.4, 0.6)
    trunk = np.array([(wide, -0.3), (0.9 * wide, 0.3), (1.05 * wide, 0.8), (wide, 1.4)])
    half = curve(trunk)
    matter = 1.6 * film.depth(film.paint((np.vstack([half, half[::-1] * [-1, 1]]), 1.0)), 0.15)
    bones = _vertebrae(curve(np.array([(0, top - 0.5), (0.01, 0.2), (0.0, top + 0.55)]), 18), 0.1)
    shift = np.array([0.0, top])
    for side in SIDES:
        way = np.array([side, 1.0])
        wing = np.array([(0.06, 0.55), (0.2, 0.4), (0.36, 0.42), (0.38, 0.55), (0.24, 0.72), (0.12, 0.75)])
        hip, leg = np.array([(0.26, 0.8), (0.36, 0.86), (0.36, 1.3)]), np.array([0.12, 0.1, 0.09])
        bones.append((curve((wing + shift) * way, closed=True), 0.8))
        bones += tube((hip + shift) * way, leg, 1.0)
        seat = np.array([(0.02, 0.95), (0.12, 0.88), (0.16, 1.0)])
        bones.append((ribbon(curve((seat + shift) * way), 0.05), 0.8))
    gas = [(blob(rng, rng.normal((0, 0.4), (0.2, 0.18)), rng.uniform(0.02, 0.07), wobble=0.25), 1.0) for _ in range(9)]
    matter += 0.6 * film.paint(*bones, blur=0.004) - 0.5 * film.paint(*gas, blur=0.004)
    return as_layer(_developed(matter + 0.06 * film.cloud(rng, 6, 14), rng))


def _draw_breast(rng: Rng, film: Film) -> Layer:
    """A mammogram: half an ellipse at one edge, with strands in it."""
    side, tall = float(rng.choice(SIDES)), rng.uniform(0.28, 0.48)
    outline = blob(rng, (0.55 * side, 0.5), rng.uniform(0.4, 0.55), aspect=2 * tall, wobble=0.04)
    body = film.depth(film.paint((outline, 1.0)), 0.08)
    return as_layer(body * (0.45 + 0.16 * film.cloud(rng, 6, 18, 50)))


def _from(point: Outline, x: float, y: float) -> Outline:
    return np.asarray(point + np.array([x, y]))


def _developed(matter: Layer, rng: Rng) -> Layer:
    return np.asarray(1 - np.exp(-np.maximum(matter, 0) * rng.uniform(0.6, 1.2)))


DRAW_BODY: dict[str, Callable[[Rng, Film], Layer]] = {
    "ct": _draw_ct,
    "lateral": _draw_lateral,
    "limb": _draw_limb,
    "hand": _draw_hand,
    "skull": _draw_skull,
    "abdomen": _draw_abdomen,
    "breast": _draw_breast,
}
"""From kind of picture to what draws it."""


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
