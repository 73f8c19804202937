"""Words that all rooms of the phantom share: kinds of film, and what is drawn on one."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

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
SIDES = (-1, 1)  # the film's left (the patient's right), and its right
