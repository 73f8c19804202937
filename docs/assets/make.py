"""Draw the pictures of the documentation: `python docs/assets/make.py`. Phantoms only, never a real image."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from covidcxr import CSVDataModule, Pipeline
from covidcxr.data.pictures import draw_contact_sheet
from covidcxr.io.pretrained import bundled
from covidcxr.phantom import Phantom, draw_phantom, write_dataset
from covidcxr.pipeline.prediction import Prediction, as_image
from covidcxr.transforms.overlay import MASK_COLORS

FOLDER = Path(__file__).parent
SIZE = (288, 288)
NOISE = 0.004  # grain looks real, but no PNG can shrink it


def phantoms() -> list[Phantom]:
    """Draw one image a label."""
    return [
        draw_phantom(3, label="normal", view="PA", size=SIZE, noise=NOISE),
        draw_phantom(13, label="covid19", view="AP", size=SIZE, severity=1.0, noise=NOISE),
        draw_phantom(14, label="pneumonia", view="PA", size=SIZE, severity=1.0, noise=NOISE),
    ]


def truth(phantom: Phantom) -> Prediction:
    """Dress a phantom's own masks as a prediction, so that both are drawn alike."""
    return Prediction(phantom.label, phantom.label, {}, (), phantom.masks, as_image(phantom.image))


def palette() -> Image.Image:
    """Return greys for the images, and greys under each outline's colour: few enough for a small file."""
    greys = np.repeat(np.linspace(0, 255, 156)[:, None], 3, axis=1)
    shades = [greys[::12] * (1 - share) + share * np.array(MASK_COLORS["infection"]) for share in (0.3, 0.6, 1)]
    shades += [greys[::6] * 0.4 + 0.6 * np.array(MASK_COLORS[name]) for name in ("lung", "lung_field")]
    colors = np.concatenate([greys, *shades, *([color] for color in MASK_COLORS.values())])
    image = Image.new("P", (1, 1))
    image.putpalette(colors[:256].round().astype(np.uint8).tobytes())
    return image


def write(name: str, rows: list[list[Prediction]]) -> None:
    """Write the images of a list, and below them the same images with their outlines."""
    gap = np.full((SIZE[0], 8, 3), 255, np.uint8)
    bands = []
    for row in rows:
        for pictures in ([np.repeat(p.image[..., None], 3, 2) for p in row], [p.overlay() for p in row]):
            band = np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
            bands += [band, np.full((8, band.shape[1], 3), 255, np.uint8)]
    Image.fromarray(np.concatenate(bands[:-1])).quantize(palette=palette(), dither=0).save(FOLDER / name, optimize=True)


def write_contact_sheet(name: str) -> None:
    """Write the sheet that `covidcxr datasets stats` draws, of phantoms; as WebP: no PNG shrinks their grain."""
    with TemporaryDirectory() as folder:
        write_dataset(folder, 60, size=(224, 224))
        data = CSVDataModule(folder, mask_columns={name: name for name in ("lung_field", "infection")})
        draw_contact_sheet(data, title="phantoms", columns=5, tile=168).save(FOLDER / name, quality=80, method=6)


def write_heat(name: str, images: list[Prediction], methods: tuple[str, ...]) -> None:
    """Write images, and beside each what speaks for its most probable class by several methods."""
    gap = np.full((SIZE[0], 8, 3), 255, np.uint8)
    bands = []
    for image in images:
        pictures = [np.repeat(image.image[..., None], 3, 2)]
        pictures += [image.explain(method=method).overlay(image.image) for method in methods]
        band = np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
        bands += [band, np.full((8, band.shape[1], 3), 255, np.uint8)]
    Image.fromarray(np.concatenate(bands[:-1])).save(FOLDER / name, quality=80, method=6)


if __name__ == "__main__":
    images = phantoms()
    write("phantoms.png", [[truth(image) for image in images]])
    write_contact_sheet("contact-sheet.webp")
    if "mini" in bundled():
        pipeline = Pipeline.from_pretrained("mini")
        answers = [pipeline(image.image) for image in images[1:]]
        write_heat("heat.webp", answers, ("gradcam", "integrated_gradients", "occlusion"))
