"""What a film shows beside a healthy chest: opacities, electrodes and tubes."""

from __future__ import annotations

import math

import numpy as np

from covidcxr.phantom.anatomy import Body
from covidcxr.phantom.film import Film
from covidcxr.phantom.shapes import blob, branches, curve, ellipse, ribbon
from covidcxr.phantom.types import SIDES, Layer, PhantomLabel, Shape


def draw_opacity(rng: np.random.Generator, body: Body, film: Film, label: PhantomLabel, severity: float) -> Layer:
    """By how much opacity replaces the air, in [0, 1]."""
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


def draw_devices(rng: np.random.Generator, body: Body, film: Film) -> Layer:
    """Electrodes with their wires, and a breathing tube, each on some of the films taken in bed."""
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
