"""Draw the pictures of the documentation: `python docs/assets/make.py`. Phantoms only, never a real film."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from covidcxr import Pipeline
from covidcxr.hub import bundled
from covidcxr.phantom import Phantom, draw_phantom
from covidcxr.prediction import Prediction, as_film

FOLDER = Path(__file__).parent
SIZE = (256, 256)
NOISE = 0.004  # grain looks real, but no PNG can shrink it


def phantoms() -> list[Phantom]:
    """Draw one film a label."""
    return [
        draw_phantom(3, label="normal", view="PA", size=SIZE, noise=NOISE),
        draw_phantom(13, label="covid19", view="AP", size=SIZE, severity=1.0, noise=NOISE),
        draw_phantom(14, label="pneumonia", view="PA", size=SIZE, severity=1.0, noise=NOISE),
    ]


def truth(phantom: Phantom) -> Prediction:
    """Dress a phantom's own masks as a prediction, so that both are drawn alike."""
    return Prediction(phantom.label, phantom.label, {}, (), phantom.masks, as_film(phantom.image))


def write(name: str, rows: list[list[Prediction]]) -> None:
    """Write the films of a list, and below them the same films with their outlines."""
    gap = np.full((SIZE[0], 8, 3), 255, np.uint8)
    bands = []
    for row in rows:
        for pictures in ([np.repeat(p.film[..., None], 3, 2) for p in row], [p.overlay() for p in row]):
            band = np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
            bands += [band, np.full((8, band.shape[1], 3), 255, np.uint8)]
    Image.fromarray(np.concatenate(bands[:-1])).quantize(160).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    films = phantoms()
    write("phantoms.png", [[truth(film) for film in films]])
    if "mini" in bundled():
        pipeline = Pipeline.from_pretrained("mini")
        write("answers.png", [[pipeline(film.image) for film in films]])
