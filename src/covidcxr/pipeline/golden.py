"""Golden inputs: phantoms saved beside a pipeline with the outputs that it must give anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from covidcxr.io.image import read_image, read_mask, write_mask
from covidcxr.io.pretrained import read_json, write_json
from covidcxr.phantom import PhantomLabel, PhantomView, draw_other, draw_phantom
from covidcxr.transforms.geometry import NOT_A_FRONTAL_IMAGE, ORIENTATIONS

if TYPE_CHECKING:
    from covidcxr.pipeline.pipeline import Pipeline

__all__ = ["write_golden", "check_golden"]

_PHANTOMS: tuple[tuple[PhantomLabel, PhantomView], ...] = (("normal", "PA"), ("covid19", "AP"), ("pneumonia", "PA"))
# Other processors, thread counts and library versions add up in another order; more than this is another model.
_PROBABILITY_TOLERANCE = 2e-3
_LEAST_DICE = 0.995


def write_golden(pipeline: Pipeline, folder: Path) -> None:
    """Draw phantoms into a folder, as PNG, with the pipeline's answers as JSON and masks as PNG."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number, image in enumerate(_images(gated=pipeline.gate is not None)):
        name = f"film-{number}"
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / f"{name}.png")
        prediction = pipeline(folder / f"{name}.png")
        for mask_class, mask in prediction.masks.items():
            write_mask(folder / f"{name}.{mask_class}.png", mask)
        images.append(
            {
                "name": name,
                "label": prediction.label,
                "probabilities": prediction.probabilities,
                "reasons": list(prediction.reasons),
                "notes": list(prediction.notes),
                "masks": sorted(prediction.masks),
            }
        )
    write_json(folder / "golden.json", {"films": images})


def _images(*, gated: bool) -> Iterator[Float[np.ndarray, "height width"]]:
    """Draw the images; for a gate also one that is turned, one that is inverted, and a page of text."""
    for seed, (label, view) in enumerate(_PHANTOMS):
        yield draw_phantom(seed, label=label, view=view, size=(320, 320)).image
    if gated:
        for seed, name in enumerate(("turned-90", "inverted"), len(_PHANTOMS)):
            yield ORIENTATIONS[name].lay(draw_phantom(seed, size=(320, 256)).image)
        yield draw_other(0, "text", size=(320, 256))


def check_golden(pipeline: Pipeline, folder: Path) -> list[str]:
    """Run a pipeline over its golden inputs and return what differs, in words; empty = all is as it was saved.

    Raises:
        PretrainedError: If the folder holds no golden inputs.
        ImageReadError: If one of them cannot be read.
    """
    faults = []
    for image in read_json(folder / "golden.json")["films"]:
        name = image["name"]
        prediction = pipeline(read_image(folder / f"{name}.png"))
        if "notes" in image and list(prediction.notes) != image["notes"]:
            faults.append(f"{name}: corrected are {', '.join(prediction.notes) or 'nothing'}, not {image['notes']}")
        if (NOT_A_FRONTAL_IMAGE in prediction.reasons) != (NOT_A_FRONTAL_IMAGE in image["reasons"]):
            faults.append(f"{name}: it is refused as no frontal image, or no more")
        for answer, wanted in image["probabilities"].items():
            given = prediction.probabilities.get(answer, float("nan"))
            if not abs(given - wanted) <= _PROBABILITY_TOLERANCE:
                faults.append(f"{name}: the probability of {answer} is {given:.4f}, not {wanted:.4f}")
        for mask_class in image["masks"]:
            wanted_mask = read_mask(folder / f"{name}.{mask_class}.png")
            given_mask = prediction.masks.get(mask_class, np.zeros_like(wanted_mask))
            total = int(wanted_mask.sum() + given_mask.sum())
            dice = 2 * int((wanted_mask & given_mask).sum()) / total if total else 1.0
            if dice < _LEAST_DICE:
                faults.append(f"{name}: the mask {mask_class} agrees only to a Dice of {dice:.3f}")
    return faults
