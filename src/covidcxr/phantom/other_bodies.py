"""Pictures of bodies that are no frontal chest: CT slices, lateral chests, limbs, hands, skulls, abdomens, breasts.

Cartoons, as the chests are. Lengths are fractions of the picture; x from the midline, y from the upper edge.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from covidcxr.phantom.anatomy import SIDES, Layer, Outline, Shape, blob, curve, ellipse, ribbon, tube
from covidcxr.phantom.film import Film, as_layer

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
