"""The view check before a pipeline's models: is this a frontal chest radiograph of an adult, and how does it lie?

Its model, the part `gate` of a pipeline, is a classifier of exclusive classes: "frontal", further orientations,
"not-a-frontal-film", and "child" where the other models have learnt from adults only. It sees a corrected image a
second time, so that no other model gets an image that does not look upright to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from covidcxr.errors import ConfigError
from covidcxr.transforms.postprocess import not_finite
from covidcxr.transforms.pyramid import (
    CHILD,
    NOT_A_FRONTAL_IMAGE,
    ORIENTATIONS,
    UPRIGHT,
    ImagePyramid,
    Orientation,
    Pixels,
)

if TYPE_CHECKING:
    from covidcxr.models import ClassificationModel
    from covidcxr.pipeline.cases import Case, Masks

__all__ = ["ViewCheck", "check_view_model", "check_views", "turn_cases", "view_in_words"]

Image = Pixels | ImagePyramid

_WORDS = {
    NOT_A_FRONTAL_IMAGE: "This does not look like a frontal chest radiograph.",
    CHILD: "This looks like a chest radiograph of a child. The models have learnt from adults only.",
    "film-inverted": "The image seems to be inverted, with dark bones and bright lungs, but the view check is not sure "
    "enough to correct it. Invert it and run it again.",
    "film-turned": "The image seems to lie on its side or upside down, but the view check is not sure enough to "
    "correct it. Turn it upright and run it again.",
    "inverted-corrected": "The image is inverted, with dark bones and bright lungs; the models saw it with black and "
    "white exchanged.",
}
_WORDS |= {
    f"turned-{degrees}-corrected": f"The image lies turned clockwise by {degrees} degrees; the models saw it turned "
    f"upright, and the masks fit the image as it was given."
    for degrees in (90, 180, 270)
}


@dataclass(frozen=True, slots=True)
class ViewCheck:
    """The result of the view check for one image.

    Attributes:
        orientation: How the image lies: the way in which it is to be corrected if it is accepted.
        reasons: Why it is rejected: "not-a-frontal-film", "child", "film-inverted", "film-turned", or "gate-not-finite"
            where the model computes no finite numbers; empty = accepted.

    Example:
        ```python
        from covidcxr.pipeline.view_check import ViewCheck

        accepted = ViewCheck()
        assert accepted.orientation.name == "frontal" and not accepted.reasons
        ```
    """

    orientation: Orientation = UPRIGHT
    reasons: tuple[str, ...] = ()


_REJECTED = {name: ViewCheck(reasons=(name,)) for name in (NOT_A_FRONTAL_IMAGE, CHILD)}
_NOT_FINITE = ViewCheck(reasons=(not_finite("gate"),))


def check_views(model: ClassificationModel, images: Sequence[Image]) -> list[ViewCheck]:
    """Check for each image whether it is a frontal chest radiograph, and how it lies.

    A class counts from its threshold in the model's config up, else from 0.5. An image is accepted as it is if
    "frontal" counts, or is the most probable class. If another orientation is, the model sees the corrected image too:
    the image is accepted if both results count. Else it is rejected: as no frontal image or as a child's where either
    result says so, else by how it lies.

    Args:
        model: The view check's classifier; see `check_view_model`.
        images: Grey images [height, width], 8 bits or in [0, 1], of any sizes.

    Returns:
        One result an image, in their order.
    """
    checks, askew = list[ViewCheck](), dict[int, dict[str, float]]()
    for number, probabilities in enumerate(_classify(model, images)):
        best = _most_probable(probabilities)
        if not _finite(probabilities):
            checks.append(_NOT_FINITE)
        elif best == UPRIGHT.name or _counts(model, UPRIGHT.name, probabilities):
            checks.append(ViewCheck())
        elif best in _REJECTED:
            checks.append(_REJECTED[best])
        else:
            checks.append(ViewCheck(ORIENTATIONS[best], _reasons(ORIENTATIONS[best])))
            askew[number] = probabilities
    given = ((images[number], checks[number].orientation) for number in askew)
    corrected = [way.correct(image.image if isinstance(image, ImagePyramid) else image) for image, way in given]
    for (number, before), after in zip(askew.items(), _classify(model, corrected), strict=True):
        orientation = checks[number].orientation
        if not _finite(after):
            checks[number] = _NOT_FINITE
        elif _counts(model, orientation.name, before) and _counts(model, UPRIGHT.name, after):
            checks[number] = ViewCheck(orientation)
        elif (best := _most_probable(after)) in _REJECTED:
            checks[number] = _REJECTED[best]
    return checks


def turn_cases(model: ClassificationModel | None, cases: Sequence[Case], given: Masks) -> None:
    """Reject what is no frontal chest radiograph, and turn the other images upright with their given masks.

    Args:
        model: The view check's classifier; None = every image is accepted as it lies.
        cases: The images, which are changed.
        given: Masks of the images as they lie, from somebody who has looked at them: then none is rejected.
    """
    if model is not None:
        for case, view in zip(cases, check_views(model, [case.upright for case in cases]), strict=True):
            if not view.reasons:
                case.turn_upright(view.orientation)
            elif not given:
                case.reasons = view.reasons
    for case in cases:
        case.masks = case.orientation.correct_masks(given)


def check_view_model(model: ClassificationModel) -> None:
    """Raise an error for a model that cannot do the view check.

    Args:
        model: A classifier.

    Raises:
        ConfigError: If its classes are not those of a view check, or it sees only a region of the image.
    """
    known = {*ORIENTATIONS, *_REJECTED}
    classes = set(model.config.classes)
    if model.config.mode == "multilabel" or not {UPRIGHT.name, *classes} <= known or UPRIGHT.name not in classes:
        raise ConfigError(
            f"The gate must have exclusive classes, {UPRIGHT.name!r} and any of {', '.join(sorted(known))}; it has "
            f"{', '.join(model.config.classes)}."
        )
    if model.needs_lungs:
        raise ConfigError('The gate comes before the lungs are known: its region must be "full".')


def view_in_words(name: str) -> str | None:
    """Return the sentence for a reason or a note of the view check.

    Args:
        name: An id such as "film-turned" or "inverted-corrected".

    Returns:
        The sentence; None for other ids.
    """
    return _WORDS.get(name)


def _classify(model: ClassificationModel, images: Sequence[Image]) -> list[dict[str, float]]:
    if not images:
        return []
    probabilities = model.predict_images(images, [{}] * len(images))
    return [dict(zip(model.config.classes, row, strict=True)) for row in probabilities.tolist()]


def _finite(probabilities: dict[str, float]) -> bool:
    return all(map(math.isfinite, probabilities.values()))


def _most_probable(probabilities: dict[str, float]) -> str:
    return max(probabilities, key=lambda name: probabilities[name])


def _counts(model: ClassificationModel, name: str, probabilities: dict[str, float]) -> bool:
    return probabilities[name] >= model.config.thresholds.get(name, 0.5)


def _reasons(orientation: Orientation) -> tuple[str, ...]:
    return ("film-inverted",) * orientation.inverted + ("film-turned",) * bool(orientation.turns)
