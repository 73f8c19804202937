"""The gate before a pipeline's models: is this a frontal chest radiograph, and does it lie the right way round?

A gate is a classifier of exclusive classes: "frontal", further orientations, "not-a-frontal-film". It is asked a second
time about what it corrected, so that no other model sees an image that does not look upright to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from covidcxr.errors import ConfigError
from covidcxr.models import ClassificationModel
from covidcxr.models.network import fit_images
from covidcxr.transforms.geometry import NOT_A_FRONTAL_IMAGE, ORIENTATIONS, UPRIGHT, Orientation

__all__ = ["Admission", "admit", "check_gate", "in_words_of_gate"]

Image = Float[np.ndarray, "height width"]

_WORDS = {
    NOT_A_FRONTAL_IMAGE: "This does not look like a frontal chest radiograph.",
    "film-inverted": "The image seems to be inverted, with dark bones and bright lungs, but not surely enough to be "
    "corrected. Invert it and ask again.",
    "film-turned": "The image seems to lie on its side or upside down, but not surely enough to be "
    "corrected. Turn it upright and ask again.",
    "inverted-corrected": "The image is inverted, with dark bones and bright lungs; what was found was found with black "
    "and white exchanged.",
}
_WORDS |= {
    f"turned-{degrees}-corrected": f"The image lies turned clockwise by {degrees} degrees; what was found was found on "
    f"the image turned upright, and the masks fit the image as it was given."
    for degrees in (90, 180, 270)
}


@dataclass(frozen=True, slots=True)
class Admission:
    """What a gate says of one image.

    Attributes:
        orientation: How an admitted image lies: the way in which it is to be corrected.
        reasons: Why it is refused: "not-a-frontal-film", "film-inverted", "film-turned"; empty = admitted.
    """

    orientation: Orientation = UPRIGHT
    reasons: tuple[str, ...] = ()


_NO_FRONTAL_IMAGE = Admission(reasons=(NOT_A_FRONTAL_IMAGE,))


def admit(gate: ClassificationModel, images: Sequence[Image]) -> list[Admission]:
    """Say of each image whether it may pass, and how it lies.

    A class counts from its threshold in the gate's config up, else from 0.5. An image passes as it is if "frontal"
    counts, or is the most probable class. If another orientation is, the gate is asked again about the image corrected:
    it passes if both answers count. Else it is refused: as no image where either answer says so, else by how it lies.

    Args:
        gate: The model.
        images: Grey, in [0, 1], of any size.
    """
    admissions, askew = list[Admission](), dict[int, dict[str, float]]()
    for number, chances in enumerate(_ask(gate, images)):
        best = _most_probable(chances)
        if best == UPRIGHT.name or _counts(gate, UPRIGHT.name, chances):
            admissions.append(Admission())
        elif best == NOT_A_FRONTAL_IMAGE:
            admissions.append(_NO_FRONTAL_IMAGE)
        else:
            admissions.append(Admission(ORIENTATIONS[best], _named(ORIENTATIONS[best])))
            askew[number] = chances
    corrected = [admissions[number].orientation.correct(images[number]) for number in askew]
    for (number, before), after in zip(askew.items(), _ask(gate, corrected), strict=True):
        way = admissions[number].orientation
        if _counts(gate, way.name, before) and _counts(gate, UPRIGHT.name, after):
            admissions[number] = Admission(way)
        elif _most_probable(after) == NOT_A_FRONTAL_IMAGE:
            admissions[number] = _NO_FRONTAL_IMAGE
    return admissions


def check_gate(gate: ClassificationModel) -> None:
    """Refuse a model that cannot be a gate.

    Raises:
        ConfigError: If its classes are not those of a gate, or it sees a region of the image only.
    """
    known = {*ORIENTATIONS, NOT_A_FRONTAL_IMAGE}
    classes = set(gate.config.classes)
    if gate.config.mode == "multilabel" or not {UPRIGHT.name, *classes} <= known or UPRIGHT.name not in classes:
        raise ConfigError(
            f"The gate must have exclusive classes, {UPRIGHT.name!r} and any of {', '.join(sorted(known))}; it has "
            f"{', '.join(gate.config.classes)}."
        )
    if gate.needs_lungs:
        raise ConfigError('The gate comes before the lungs are known: its region must be "full".')


def in_words_of_gate(name: str) -> str | None:
    """Return the sentence for a reason of a refusal, or for a note of a correction; None for other ids."""
    return _WORDS.get(name)


def _ask(gate: ClassificationModel, images: Sequence[Image]) -> list[dict[str, float]]:
    if not images:
        return []
    answers = gate.predict(*fit_images(gate, images, [{}] * len(images)))
    return [dict(zip(gate.config.classes, row, strict=True)) for row in answers.tolist()]


def _most_probable(chances: dict[str, float]) -> str:
    return max(chances, key=lambda name: chances[name])


def _counts(gate: ClassificationModel, name: str, chances: dict[str, float]) -> bool:
    return chances[name] >= gate.config.thresholds.get(name, 0.5)


def _named(way: Orientation) -> tuple[str, ...]:
    return ("film-inverted",) * way.inverted + ("film-turned",) * bool(way.turns)
