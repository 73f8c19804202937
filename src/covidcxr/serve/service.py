"""What the server does with images, without any HTTP: decode, answer, keep, correct, judge."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr.errors import ImageReadError
from covidcxr.serve.decoder import DecodedFilm, Decoder
from covidcxr.serve.engine import Engine
from covidcxr.serve.errors import RefusalError
from covidcxr.serve.schema import CANNOT_SAY, check_prior
from covidcxr.serve.settings import Limits
from covidcxr.serve.store import Row, Store
from covidcxr.serve.worker import to_png

if TYPE_CHECKING:
    from covidcxr.pipeline.prediction import Prediction
    from covidcxr.serve.engine import ModelFacts

__all__ = ["Desk", "infected_by_lung", "mask_to_png", "masks_to_png", "png_to_mask", "png_to_pixels", "to_answer"]

_Mask_answers = Bool[np.ndarray, "height width"]


_SMALLEST_LUNG = 0.25


"""A part of the lung mask smaller than this share of the largest is no lung of its own."""


def to_answer(prediction: Prediction, facts: ModelFacts) -> dict[str, Any]:
    """Return all that is said of an image, as JSON can hold it."""
    from covidcxr.pipeline.prediction import in_words

    chances = prediction.probabilities
    upright = prediction.orientation.correct_masks(prediction.masks)  # sides are the patient's
    # A classifier without thresholds answers with its most probable class, or its findings from 0.5 up.
    least = facts.thresholds or ({} if facts.exclusive else dict.fromkeys(chances, 0.5))
    plausible = [name for name, value in chances.items() if value >= least.get(name, 0.5)]
    if facts.exclusive and not facts.thresholds:
        plausible = [prediction.label] if prediction.label else []
    return {
        "model": facts.name,
        "model_sha256": facts.sha256,
        "label": prediction.label,
        "probabilities": chances,
        "reasons": [{"id": reason, "words": in_words(reason)} for reason in prediction.reasons],
        "lung_fraction": prediction.lung_fraction,
        "infected_fraction": prediction.infected_fraction,
        "infected_by_lung": infected_by_lung(upright.get("lung_field", upright.get("lung")), upright.get("infection")),
        "masks": list(prediction.masks),
        "plausible": plausible,
        "thresholds": facts.thresholds,
        "classes": list(facts.classes),
        "notes": [in_words(note) for note in prediction.notes],
    }


def infected_by_lung(lungs: _Mask_answers | None, infection: _Mask_answers | None) -> dict[str, float | None]:
    """Return the infected fraction of each lung, in [0, 1], by the patient's sides: the right lung is on the left.

    Args:
        lungs: Both lungs; their two largest parts are taken for them. None = not drawn.
        infection: At the same size; None = not drawn.

    Returns:
        "right" and "left"; None where it is not known, also where the lungs are one piece.
    """
    from scipy import ndimage

    unknown: dict[str, float | None] = {"right": None, "left": None}
    if lungs is None or infection is None:
        return unknown
    parts, count = ndimage.label(lungs)
    if count < 2:
        return unknown
    areas = np.bincount(parts.ravel())[1:]
    second, first = np.argsort(areas)[-2:]
    if areas[second] < _SMALLEST_LUNG * areas[first]:
        return unknown
    columns = {part: float(np.nonzero(parts == part + 1)[1].mean()) for part in (first, second)}
    right, left = sorted(columns, key=lambda part: columns[part])
    shares = {part: float(infection[parts == part + 1].mean()) for part in (first, second)}
    return {"right": shares[right], "left": shares[left]}


def mask_to_png(mask: _Mask_answers) -> bytes:
    """Return a mask as PNG, 0 and 255."""
    return to_png(mask.astype(np.uint8) * np.uint8(255))


def png_to_pixels(png: bytes) -> UInt8[np.ndarray, "height width"]:
    """Read back what this server wrote itself."""
    from PIL.PngImagePlugin import PngImageFile  # not Image.open: it warns about size, process-wide

    return np.array(PngImageFile(io.BytesIO(png)), dtype=np.uint8)


def png_to_mask(png: bytes) -> _Mask_answers:
    """Read back a mask that this server wrote itself."""
    return png_to_pixels(png) > 0


def masks_to_png(masks: Mapping[str, _Mask_answers]) -> dict[str, bytes]:
    """Return masks as PNG, by mask class."""
    return {name: mask_to_png(mask) for name, mask in masks.items()}


Pixels = UInt8[np.ndarray, "height width"]


Mask = Bool[np.ndarray, "height width"]


_TURN = 0.05  # seconds after which an image of a large batch knocks again


class Desk:
    """Answers for images and keeps what readers say of them.

    Args:
        engine: Asks the models.
        decoder: Opens uploads.
        store: Keeps images.
        limits: How much is taken.
    """

    def __init__(self, engine: Engine, decoder: Decoder, store: Store, limits: Limits) -> None:
        self.engine, self.decoder, self.store, self.limits = engine, decoder, store, limits
        self._uploads = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Let an upload in, from its first byte to its answer; so many bodies lie on the disk at most.

        Raises:
            RefusalError: If as many are in as may be.
        """
        if self._uploads >= self.limits.uploads:
            raise RefusalError(503, f"The server is busy with {self._uploads} images. Ask again.", retry_after=1)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def add(self, name: str, content: bytes) -> Row:
        """Answer for an uploaded image and keep it.

        Raises:
            ImageReadError: If it cannot be read.
            RefusalError: If too much waits already, or the store is full.
        """
        film = await self._decode(name, content)
        prediction = await asyncio.wrap_future(self.engine.predict(film.pixels))
        return await asyncio.to_thread(self._keep, name, film, prediction)

    async def predict(self, name: str, content: bytes) -> dict[str, Any]:
        """Answer for an image of a large batch, of which nothing is kept; waits where the server is busy.

        Raises:
            ImageReadError: If it cannot be read.
        """
        film = await self._decode(name, content)
        while True:
            try:
                answer = self.engine.predict(film.pixels)
                break
            except RefusalError:
                await asyncio.sleep(_TURN)
        said = to_answer(await asyncio.wrap_future(answer), self.engine.facts)
        height, width = film.pixels.shape
        return {
            "name": name,
            "height": height,
            "width": width,
            "sha256": film.sha256,
            **said,
            "notes": [*film.notes, *said["notes"]],
        }

    async def film(self, film_id: str) -> Row:
        """Return an image with an answer of the model that runs now: an answer of another one is worked out anew.

        Raises:
            RefusalError: If there is no such image, or too much waits already.
        """
        row = await asyncio.to_thread(self.store.film, film_id)
        if row["answer"]["model_sha256"] == self.engine.facts.sha256:
            return row
        return await self._revise(film_id, {})

    async def correct(self, film_id: str, mask_class: str, content: bytes) -> Row:
        """Answer for an image anew, from a mask that a reader corrected.

        Raises:
            ImageReadError: If it is no mask of the image's size.
            ConfigError: If the model draws no such mask, or the mask holds no lung.
            RefusalError: If there is no such image.
        """
        row = await asyncio.to_thread(self.store.film, film_id)
        if mask_class not in self.engine.facts.mask_classes:
            raise RefusalError(404, "This model draws no such mask.")
        _, png = await self.decoder.mask(content, (row["height"], row["width"]))
        return await self._revise(film_id, {mask_class: png})

    async def uncorrect(self, film_id: str, mask_class: str) -> Row:
        """Go back to the mask that the model draws.

        Raises:
            RefusalError: If there is no such image, or its mask was not corrected.
        """
        row = await asyncio.to_thread(self.store.film, film_id)
        if mask_class not in row["corrected"]:
            raise RefusalError(404, "This mask was not corrected.")
        return await self._revise(film_id, {mask_class: None})

    async def state_prior(self, film_id: str, prior: Mapping[str, float] | None) -> Row:
        """Keep pre-test probabilities.

        Raises:
            ConfigError: If they are none.
            RefusalError: If there is no such image, or its classes are not exclusive.
        """
        if prior is not None:
            if not self.engine.facts.exclusive:
                raise RefusalError(422, "Pre-test probabilities need classes of which exactly one is true.")
            prior = check_prior(prior, self.engine.facts.classes)
        return await asyncio.to_thread(self.store.state_prior, film_id, prior)

    async def judge(self, film_id: str, label: str | None, comment: str, consent: bool) -> Row:
        """Keep a verdict; when this returns it is on the disk.

        Raises:
            RefusalError: If there is no such image or class.
        """
        row = await asyncio.to_thread(self.store.film, film_id)
        classes = row["answer"]["classes"]
        if label not in (None, CANNOT_SAY, *classes):
            raise RefusalError(422, f"A verdict is one of {', '.join(classes)}, {CANNOT_SAY!r} or null.")
        return await asyncio.to_thread(self.store.judge, film_id, label=label, comment=comment, consent=consent)

    async def heat(self, film_id: str, target: str) -> bytes:
        """Return what speaks for a class on an image, as grey PNG of the image's size.

        Raises:
            RefusalError: If there is no such image or class, or the classifier was not asked.
        """
        row = await self.film(film_id)
        if target not in self.engine.facts.classes:
            raise RefusalError(404, "The model knows no such class.")
        if not row["answer"]["probabilities"]:
            raise RefusalError(409, "The classifier was not asked about this image, so there is nothing to explain.")
        return await asyncio.to_thread(to_png, await self.heat_map(row, target))

    async def heat_map(self, row: Row, target: str) -> Pixels:
        """Draw what speaks for a class on an image, 0 to 255 at its size."""
        pixels, corrected = await asyncio.to_thread(self._load, row["id"])
        return await asyncio.wrap_future(self.engine.heat(pixels, self._usable(corrected), target))

    async def pictures(self, row: Row) -> tuple[Pixels, dict[str, Mask]]:
        """Return an image and its masks as they are now."""

        def load() -> tuple[Pixels, dict[str, Mask]]:
            masks = {name: png_to_mask(self.store.mask(row["id"], name)) for name in row["answer"]["masks"]}
            return png_to_pixels(self.store.picture(row["id"], "image")), masks

        return await asyncio.to_thread(load)

    async def _decode(self, name: str, content: bytes) -> DecodedFilm:
        try:
            return await self.decoder.film(content)
        except ImageReadError as error:
            raise ImageReadError(str(error).replace("The file", name, 1)) from error

    def _keep(self, name: str, film: DecodedFilm, prediction: Prediction) -> Row:
        answer = to_answer(prediction, self.engine.facts)
        return self.store.add(name, film, answer, masks_to_png(prediction.masks))

    async def _revise(self, film_id: str, changes: Mapping[str, bytes | None]) -> Row:
        """Answer anew from all corrected masks, of which some change or (None) go; one at a time for each image."""
        async with self._locks.setdefault(film_id, asyncio.Lock()):
            pixels, before = await asyncio.to_thread(self._load, film_id)
            corrected = {name: png for name, png in {**before, **changes}.items() if png is not None}
            masks = self._usable(corrected)
            asked = self.engine.revise(pixels, masks) if masks else self.engine.predict(pixels)
            prediction = await asyncio.wrap_future(asked)
            drawn = masks_to_png({name: mask for name, mask in prediction.masks.items() if name not in corrected})
            answer = to_answer(prediction, self.engine.facts)
            return await asyncio.to_thread(self.store.revise, film_id, answer, drawn, corrected)

    def _load(self, film_id: str) -> tuple[Pixels, dict[str, bytes]]:
        """Return an image and its corrected masks, as PNG."""
        return png_to_pixels(self.store.picture(film_id, "image")), self.store.corrected(film_id)

    def _usable(self, corrected: Mapping[str, bytes]) -> dict[str, Mask]:
        """Return the masks that this model takes; one of another model's class waits for that model."""
        known = self.engine.facts.mask_classes
        return {name: png_to_mask(png) for name, png in corrected.items() if name in known}
