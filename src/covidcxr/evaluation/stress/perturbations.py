"""Small changes of an image that leave its content as it is.

All work on images as float [height, width] in [0, 1], in units of the image's own size, so that they mean the same for
any scanner. All randomness follows from the seed and the image's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import cv2
import numpy as np
from jaxtyping import Bool, Float

from covidcxr.errors import ConfigError, UnknownNameError, did_you_mean

__all__ = ["PERTURBATIONS", "Perturbation", "find_perturbations"]

Image = Float[np.ndarray, "_ _"]  # changed images may be of another size

_GRAIN = 512
"""Noise is drawn on a grid of at most so many cells along the longer side: on an image of 3,000 pixels, noise of single
pixels would vanish when the image is resized for the network."""

_CANVAS = 1024
"""Letters are drawn on an image of this longer side."""


@dataclass(frozen=True)
class Perturbation:
    """A named change of an image.

    Attributes:
        name: Kind of change ("rotation").
        strength: How much, as text ("5 degrees").
        change: From an image in [0, 1] and a random generator to the changed image in [0, 1], of any size.
        moves: Whether it moves the content: then masks are moved in the same way before they are compared.

    Example:
        ```python
        import numpy as np

        from covidcxr.evaluation.stress.perturbations import Perturbation

        darker = Perturbation("half as bright", "", lambda image, rng: image / 2)
        assert darker(np.ones((8, 8), np.float32)).max() == 0.5
        ```
    """

    name: str
    strength: str
    change: Callable[[Image, np.random.Generator], Image]
    moves: bool = False

    @property
    def title(self) -> str:
        """Name and strength."""
        return f"{self.name}, {self.strength}" if self.strength else self.name

    def __call__(self, image: Image, *, image_id: str = "", seed: int = 0) -> Image:
        """Return the changed image; the given one stays as it is.

        Args:
            image: Of shape [height, width], in [0, 1].
            image_id: Name of the image; random changes differ between images.
            seed: Seed of random changes.

        Returns:
            The changed image, float32 in [0, 1], of any size.

        Raises:
            ConfigError: If the change does not return an image.
        """
        key = f"{seed}/{self.title}/{image_id}".encode("utf-8", "surrogateescape")
        rng = np.random.default_rng(int.from_bytes(blake2b(key, digest_size=8).digest(), "little"))
        changed = np.asarray(self.change(image.copy(), rng))
        if changed.ndim != 2 or changed.size == 0 or not np.isfinite(changed).all():
            raise ConfigError(f"The perturbation {self.title!r} gave no image but an array of shape {changed.shape}.")
        return np.asarray(np.clip(changed, 0, 1), np.float32)

    def move(self, mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
        """Return a mask of the image as it lies on the changed image.

        Args:
            mask: A mask of the image before.

        Returns:
            The mask itself, or moved where the perturbation moves the content.
        """
        return self(mask.astype(np.float32)) >= 0.5 if self.moves else mask


def _rotate(image: Image, rng: np.random.Generator, *, degrees: float) -> Image:
    height, width = image.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _contrast(image: Image, rng: np.random.Generator, *, factor: float) -> Image:
    return np.asarray(image.mean() + factor * (image - image.mean()))


def _gamma(image: Image, rng: np.random.Generator, *, power: float) -> Image:
    return image**power


def _brighten(image: Image, rng: np.random.Generator, *, step: float) -> Image:
    return image + step


def _noise(image: Image, rng: np.random.Generator, *, deviation: float) -> Image:
    height, width = image.shape
    shrink = min(1.0, _GRAIN / max(image.shape))
    cells = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    grain = rng.standard_normal(cells, np.float32)
    return np.asarray(image + deviation * cv2.resize(grain, (width, height), interpolation=cv2.INTER_NEAREST))


def _blur(image: Image, rng: np.random.Generator, *, fraction: float) -> Image:
    return cv2.GaussianBlur(image, (0, 0), max(fraction * max(image.shape), 1e-3), borderType=cv2.BORDER_REPLICATE)


def _jpeg(image: Image, rng: np.random.Generator, *, quality: int) -> Image:
    grey = np.rint(image * 255).astype(np.uint8)
    _, code = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), np.float32) / 255


def _shrink(image: Image, rng: np.random.Generator, *, side: int) -> Image:
    """Resize the longer side to so many pixels and back; a smaller image stays as it is."""
    height, width = image.shape
    scale = side / max(image.shape)
    if scale >= 1:
        return image
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))


def _invert(image: Image, rng: np.random.Generator) -> Image:
    return 1 - image


def _frame(image: Image, rng: np.random.Generator, *, fraction: float, grey: float) -> Image:
    wide = max(1, round(fraction * max(image.shape)))
    image[:wide] = image[-wide:] = grey
    image[:, :wide] = image[:, -wide:] = grey
    return image


def _letter(image: Image, rng: np.random.Generator, *, text: str, left: bool) -> Image:
    """Write white letters of 6 % of the longer side over an upper corner."""
    scale = _CANVAS / max(image.shape)  # drawn large: letters of a few pixels would lose their strokes
    height, width = (max(1, round(side * scale)) for side in image.shape)
    tall, margin, font = round(0.06 * _CANVAS), round(0.03 * _CANVAS), cv2.FONT_HERSHEY_SIMPLEX
    thick = round(tall / 4)
    size = cv2.getFontScaleFromHeight(font, tall, thick)
    (wide, _), _ = cv2.getTextSize(text, font, size, thick)
    canvas = np.zeros((height, width), np.uint8)
    place = (margin if left else width - margin - wide, margin + tall)
    cv2.putText(canvas, text, place, font, size, 255, thick, cv2.LINE_AA)
    cover = np.asarray(cv2.resize(canvas, image.shape[::-1], interpolation=cv2.INTER_AREA), np.float32) / 255
    return np.asarray(image + cover * (1 - image))


def _crop(image: Image, rng: np.random.Generator, *, fraction: float) -> Image:
    rows, columns = (round(fraction * side) for side in image.shape)
    return image[rows : image.shape[0] - rows, columns : image.shape[1] - columns]


def _flip(image: Image, rng: np.random.Generator) -> Image:
    return image[:, ::-1].copy()


def _table() -> dict[str, tuple[Perturbation, ...]]:
    make = Perturbation
    turns = [make("rotation", f"{d:+} degrees", partial(_rotate, degrees=d), True) for d in (-10, -5, 5, 10)]
    contrasts = [make("contrast", f"x {f}", partial(_contrast, factor=f)) for f in (0.7, 1.3)]
    gammas = [make("gamma", str(p), partial(_gamma, power=p)) for p in (0.7, 1.4)]
    steps = [make("brightness", f"{s:+.0%}", partial(_brighten, step=s)) for s in (-0.1, 0.1)]
    noises = [make("noise", f"{d:.0%}", partial(_noise, deviation=d)) for d in (0.02, 0.05)]
    blurs = [make("blur", f"{f:.1%} of the side", partial(_blur, fraction=f)) for f in (0.002, 0.005)]
    jpegs = [make("JPEG", f"quality {q}", partial(_jpeg, quality=q)) for q in (75, 40, 20)]
    sizes = [make("fewer pixels", f"{s} along the side", partial(_shrink, side=s)) for s in (256, 128)]
    greys, places = (("black", 0.0), ("white", 1.0)), (("R", True), ("L", False), ("AP", False))
    frames = [make("frame", f"3% {word}", partial(_frame, fraction=0.03, grey=grey)) for word, grey in greys]
    letters = [make("letter", text, partial(_letter, text=text, left=left)) for text, left in places]
    others = [make("inversion", "", _invert), make("crop", "5%", partial(_crop, fraction=0.05), True)]
    others.append(make("mirror image", "", _flip, True))
    table: dict[str, tuple[Perturbation, ...]] = {}
    for change in (*turns, *contrasts, *gammas, *steps, *noises, *blurs, *jpegs, *sizes, *frames, *letters, *others):
        table[change.name] = (*table.get(change.name, ()), change)
    return table


PERTURBATIONS = _table()
"""By kind, from weak to strong."""


def find_perturbations(names: Sequence[str | Perturbation] | None = None) -> tuple[Perturbation, ...]:
    """Return perturbations by the names of their kinds.

    Args:
        names: Names of kinds in `PERTURBATIONS`, or your own perturbations; None = all of `PERTURBATIONS`.

    Returns:
        The perturbations, every strength of a kind.

    Raises:
        UnknownNameError: If there is no such kind.
        ConfigError: If two have the same name and strength, or there is none.
    """
    changes: list[Perturbation] = []
    for name in PERTURBATIONS if names is None else names:
        if isinstance(name, str) and name not in PERTURBATIONS:
            raise UnknownNameError(f"There is no perturbation {name!r}. {did_you_mean(name, PERTURBATIONS)}")
        changes += PERTURBATIONS[name] if isinstance(name, str) else (name,)
    titles = [change.title for change in changes]
    if len(set(titles)) != len(titles) or not titles:
        raise ConfigError(f"Each perturbation needs a name and strength of its own, and there must be one: {titles}.")
    return tuple(changes)
