"""What the server does with images, without any HTTP: decode, predict, keep, correct, judge."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from jaxtyping import Bool, UInt8

from covidcxr import aliases
from covidcxr.errors import ImageReadError, RequestError
from covidcxr.serve.engine import DecodedImage, Decoder, Engine
from covidcxr.serve.schema import INDETERMINATE, Verdict, check_prior, to_json
from covidcxr.serve.settings import Limits
from covidcxr.serve.store import Row, Store
from covidcxr.serve.worker import to_png
from covidcxr.utils.plain import count_of

if TYPE_CHECKING:
    from covidcxr.pipeline.prediction import Prediction
    from covidcxr.serve.engine import ModelFacts

__getattr__ = partial(aliases.find, __name__)

__all__ = [
    "PredictionService",
    "infected_by_lung",
    "mask_areas",
    "to_answer",
]

Pixels = UInt8[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]

_RETRY_SECONDS = 0.05
"""Pause after which an image of a large batch asks for the models again."""


class PredictionService:
    """Predicts for images and keeps what readers say of them.

    Args:
        engine: Runs the models.
        decoder: Opens uploads.
        store: Keeps images.
        limits: How much is taken.

    Example:
        ```python
        from covidcxr.serve import ServeSettings, create_app
        from covidcxr.serve.service import PredictionService

        app = create_app(ServeSettings(store="store"))
        assert isinstance(app.state.service, PredictionService)
        ```
    """

    def __init__(self, engine: Engine, decoder: Decoder, store: Store, limits: Limits) -> None:
        self.engine, self.decoder, self.store, self.limits = engine, decoder, store, limits
        self._uploads = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextmanager
    def upload(self) -> Iterator[None]:
        """Count an upload, from its first byte to its response; so many bodies lie on the disk at most.

        Raises:
            RequestError: If there are as many as there may be.
        """
        if self._uploads >= self.limits.uploads:
            raise RequestError(
                503, f"The server is busy with {count_of(self._uploads, 'image')}. Try again.", retry_after=1
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def add(self, name: str, content: bytes) -> Row:
        """Predict for an uploaded image and keep it.

        Args:
            name: As the client calls it.
            content: The file.

        Returns:
            The image's row.

        Raises:
            ImageReadError: If it cannot be read.
            RequestError: If too much waits already, or the store is full.
        """
        image = await self._decode(name, content)
        prediction = await asyncio.wrap_future(self.engine.predict(image.pixels))
        return await asyncio.to_thread(self._keep, name, image, prediction)

    async def predict(self, name: str, content: bytes) -> dict[str, Any]:
        """Predict for an image of a large batch, of which nothing is kept; waits where the server is busy.

        Args:
            name: As the client calls it.
            content: The file.

        Returns:
            The answer, with the image's name, size, hash and notes.

        Raises:
            ImageReadError: If it cannot be read.
        """
        image = await self._decode(name, content)
        while True:
            try:
                prediction = self.engine.predict(image.pixels)
                break
            except RequestError:
                await asyncio.sleep(_RETRY_SECONDS)
        answer = await asyncio.to_thread(to_answer, await asyncio.wrap_future(prediction), self.engine.facts)
        height, width = image.pixels.shape
        facts = {"name": name, "height": height, "width": width, "sha256": image.sha256}
        return {**facts, **answer, "notes": [*image.notes, *answer["notes"]]}

    async def image(self, image_id: str) -> Row:
        """Return an image with an answer of the model that runs now; one of another model is made anew.

        Args:
            image_id: The image.

        Returns:
            Its row.

        Raises:
            RequestError: If there is no such image, or too much waits already.
        """
        row = await asyncio.to_thread(self.store.row, image_id)
        answer = row["answer"]
        if answer["model_sha256"] == self.engine.facts.sha256 and "areas" in answer:  # a store of 0.1.0 has none
            return row
        return await self._revise(image_id, {})

    async def correct(self, image_id: str, mask_class: str, content: bytes) -> Row:
        """Predict for an image anew, from a mask that a reader corrected.

        Args:
            image_id: The image.
            mask_class: The class of the mask.
            content: The mask as PNG.

        Returns:
            The image's row.

        Raises:
            ImageReadError: If it is no mask of the image's size.
            ConfigError: If the mask holds no lung.
            RequestError: If there is no such image, or the model predicts no such mask.
        """
        row = await asyncio.to_thread(self.store.row, image_id)
        if mask_class not in self.engine.facts.mask_classes:
            raise RequestError(404, "This model draws no such mask.")
        _, png = await self.decoder.mask(content, (row["height"], row["width"]))
        return await self._revise(image_id, {mask_class: png})

    async def uncorrect(self, image_id: str, mask_class: str) -> Row:
        """Go back to the mask that the model predicts.

        Args:
            image_id: The image.
            mask_class: The class of the mask.

        Returns:
            The image's row.

        Raises:
            RequestError: If there is no such image, or its mask was not corrected.
        """
        row = await asyncio.to_thread(self.store.row, image_id)
        if mask_class not in row["corrected"]:
            raise RequestError(404, "This mask was not corrected.")
        return await self._revise(image_id, {mask_class: None})

    async def set_prior(self, image_id: str, prior: Mapping[str, float] | None) -> Row:
        """Keep pre-test probabilities.

        Args:
            image_id: The image.
            prior: By class, in [0, 1], sum 1; None = none.

        Returns:
            The image's row.

        Raises:
            ConfigError: If they are none.
            RequestError: If there is no such image, or its classes are not exclusive.
        """
        if prior is not None:
            if not self.engine.facts.exclusive:
                raise RequestError(422, "Pre-test probabilities need classes of which exactly one is true.")
            prior = check_prior(prior, self.engine.facts.classes)
        return await asyncio.to_thread(self.store.state_prior, image_id, prior)

    async def judge(self, image_id: str, verdict: Verdict) -> Row:
        """Keep a verdict; when this returns it is on the disk.

        Args:
            image_id: The image.
            verdict: What the reader says.

        Returns:
            The image's row.

        Raises:
            RequestError: If there is no such image or class, or a verdict was given that the reader has not seen.
        """
        async with self._locks.setdefault(image_id, asyncio.Lock()):
            row = await asyncio.to_thread(self.store.row, image_id)
            classes = row["answer"]["classes"]
            if verdict.label not in (None, INDETERMINATE, *classes):
                raise RequestError(422, f"A verdict is one of {', '.join(classes)}, {INDETERMINATE!r} or null.")
            latest = row["verdict"] and row["verdict"]["saved"]
            if "replaces" in verdict.model_fields_set and verdict.replaces != latest:
                raise RequestError(
                    409, "Another reader has saved a verdict on this image meanwhile. Compare the two, then save again."
                )
            said = {name: getattr(verdict, name) for name in ("label", "comment", "consent")}
            return await asyncio.to_thread(partial(self.store.judge, image_id, **said))

    async def list_images(self, since: str | None = None) -> dict[str, Any]:
        """Return all kept images, or those that have changed since a revision.

        Args:
            since: The revision that an earlier call returned; None = never.

        Returns:
            What `covidcxr.serve.schema.Images` describes.
        """
        revision, changed = self.store.changes(since)
        rows = [] if changed == set() else await asyncio.to_thread(self.store.rows)
        images = [to_json(row) for row in rows if changed is None or row["id"] in changed]
        removed = sorted((changed or set()) - {image["id"] for image in images})
        return {"revision": revision, "complete": changed is None, "films": images, "removed": removed}

    async def heat(self, image_id: str, target: str) -> bytes:
        """Return the heat map of a class.

        Args:
            image_id: The image.
            target: The class.

        Returns:
            A grey PNG of the image's size.

        Raises:
            RequestError: If there is no such image or class, or the classifier was not run.
        """
        row = await self.image(image_id)
        if target not in self.engine.facts.classes:
            raise RequestError(404, "The model knows no such class.")
        if not row["answer"]["probabilities"]:
            raise RequestError(409, "The classifier was not run on this image, so there is nothing to explain.")
        return await asyncio.to_thread(to_png, await self.heat_map(row, target))

    async def heat_map(self, row: Row, target: str) -> Pixels:
        """Compute what speaks for a class on an image.

        Args:
            row: The image's row.
            target: The class.

        Returns:
            The heat map, 0 to 255 at the image's size.
        """
        pixels, corrected = await asyncio.to_thread(self._load, row["id"])
        return await asyncio.wrap_future(self.engine.heat(pixels, self._usable(corrected), target))

    async def pictures(self, row: Row) -> tuple[Pixels, dict[str, Mask]]:
        """Return an image and its masks as they are now.

        Args:
            row: The image's row.

        Returns:
            8-bit grey, and the masks by mask class.
        """

        def load() -> tuple[Pixels, dict[str, Mask]]:
            masks = {name: _png_to_mask(self.store.mask(row["id"], name)) for name in row["answer"]["masks"]}
            return _png_to_pixels(self.store.picture(row["id"], "image")), masks

        return await asyncio.to_thread(load)

    async def _decode(self, name: str, content: bytes) -> DecodedImage:
        try:
            return await self.decoder.image(content)
        except ImageReadError as error:
            raise ImageReadError(str(error).replace("The file", name, 1)) from error

    def _keep(self, name: str, image: DecodedImage, prediction: Prediction) -> Row:
        answer = to_answer(prediction, self.engine.facts)
        return self.store.add(name, image, answer, _masks_to_png(prediction.masks))

    async def _revise(self, image_id: str, changes: Mapping[str, bytes | None]) -> Row:
        """Predict anew from all corrected masks, of which some change or (None) go; one at a time for each image."""
        async with self._locks.setdefault(image_id, asyncio.Lock()):
            pixels, before = await asyncio.to_thread(self._load, image_id)
            corrected = {name: png for name, png in {**before, **changes}.items() if png is not None}
            masks = self._usable(corrected)
            job = self.engine.revise(pixels, masks) if masks else self.engine.predict(pixels)
            prediction = await asyncio.wrap_future(job)
            return await asyncio.to_thread(self._keep_revised, image_id, prediction, corrected)

    def _keep_revised(self, image_id: str, prediction: Prediction, corrected: Mapping[str, bytes]) -> Row:
        predicted = _masks_to_png({name: mask for name, mask in prediction.masks.items() if name not in corrected})
        return self.store.revise(image_id, to_answer(prediction, self.engine.facts), predicted, corrected)

    def _load(self, image_id: str) -> tuple[Pixels, dict[str, bytes]]:
        """Return an image and its corrected masks, as PNG."""
        return _png_to_pixels(self.store.picture(image_id, "image")), self.store.corrected(image_id)

    def _usable(self, corrected: Mapping[str, bytes]) -> dict[str, Mask]:
        """Return the masks that this model takes; one of another model's class waits for that model."""
        known = self.engine.facts.mask_classes
        return {name: _png_to_mask(png) for name, png in corrected.items() if name in known}


_SMALLEST_LUNG = 0.25
"""A part of the lung mask smaller than this share of the largest is no lung of its own."""

_UNKNOWN: dict[str, float | None] = {"lungs": None, "right": None, "left": None}


def to_answer(prediction: Prediction, facts: ModelFacts) -> dict[str, Any]:
    """Return what a model says of an image, as JSON can hold it.

    Args:
        prediction: The prediction.
        facts: The model that made it.

    Returns:
        What `covidcxr.serve.schema.Answer` describes.
    """
    from covidcxr.pipeline.prediction import in_words

    probabilities = prediction.probabilities
    # A classifier without thresholds answers with its most probable class, or its findings from 0.5 up.
    least = facts.thresholds or ({} if facts.exclusive else dict.fromkeys(probabilities, 0.5))
    plausible = [name for name, value in probabilities.items() if value >= least.get(name, 0.5)]
    if facts.exclusive and not facts.thresholds:
        plausible = [prediction.label] if prediction.label else []
    masks = {name: prediction.masks[name] for name in facts.mask_classes if name in prediction.masks}
    areas = mask_areas(prediction.orientation.correct_masks(masks))  # sides are the patient's
    lungs = areas.get("lung_field", areas.get("lung"))
    infection = areas.get("infection", _UNKNOWN)
    return {
        "model": facts.name,
        "model_sha256": facts.sha256,
        "label": prediction.label,
        "probabilities": probabilities,
        "reasons": [{"id": reason, "words": in_words(reason)} for reason in prediction.reasons],
        "lung_fraction": None if lungs is None else lungs["image"],
        "infected_fraction": infection["lungs"],
        "infected_interval": prediction.infected_interval,
        "infected_by_lung": {side: infection[side] for side in ("right", "left")},
        "areas": areas,
        "masks": list(masks),
        "plausible": plausible,
        "thresholds": facts.thresholds,
        "classes": list(facts.classes),
        "notes": [in_words(note) for note in prediction.notes],
    }


def mask_areas(masks: Mapping[str, Mask]) -> dict[str, dict[str, float | None]]:
    """Return how large each mask is.

    Args:
        masks: By mask class, of one size, upright.

    Returns:
        By mask class shares in [0, 1]: `image`, of the image's area; and of findings, that is of all but lungs, the
        covered part of both lungs (`lungs`) and of the patient's `right` and `left` one. None = not known, also where
        the lungs are one piece.
    """
    from covidcxr.types import LUNG_CLASSES

    lungs = masks.get("lung_field", masks.get("lung"))
    whole = 0 if lungs is None else np.count_nonzero(lungs)
    sides = _split_lungs(lungs) if lungs is not None and masks.keys() - set(LUNG_CLASSES) else {}
    areas = {}
    for name, mask in masks.items():
        areas[name] = {"image": np.count_nonzero(mask) / mask.size, **_UNKNOWN}
        if lungs is not None and whole and name not in LUNG_CLASSES:
            areas[name]["lungs"] = np.count_nonzero(mask & lungs) / whole
            for side, (place, lung) in sides.items():
                areas[name][side] = np.count_nonzero(mask[place] & lung) / np.count_nonzero(lung)
    return areas


def _split_lungs(lungs: Mask) -> dict[str, tuple[tuple[slice, slice], Mask]]:
    """Return for "right" and "left" where the lung lies, and its mask there; nothing where there are not two."""
    import cv2

    count, parts, boxes, centres = cv2.connectedComponentsWithStats(lungs.astype(np.uint8), connectivity=4)
    if count < 3:  # part 0 is all that is no lung
        return {}
    sizes = boxes[1:, cv2.CC_STAT_AREA]
    second, first = np.argsort(sizes)[-2:]
    if sizes[second] < _SMALLEST_LUNG * sizes[first]:
        return {}
    sides = {}
    # The patient's right lung is on the left of the image.
    for side, part in zip(
        ("right", "left"), sorted((first + 1, second + 1), key=lambda at: centres[at][0]), strict=True
    ):
        left, top, width, height = boxes[part][:4]
        place = (slice(top, top + height), slice(left, left + width))
        sides[side] = (place, parts[place] == part)
    return sides


def infected_by_lung(lungs: Mask | None, infection: Mask | None) -> dict[str, float | None]:
    """Return the infected fraction of each lung, in [0, 1], by the patient's sides: the right lung is on the left.

    Args:
        lungs: Both lungs; their two largest parts are taken for them. None = not predicted.
        infection: At the same size; None = not predicted.

    Returns:
        "right" and "left"; None where it is not known, also where the lungs are one piece.
    """
    if lungs is None or infection is None:
        return {"right": None, "left": None}
    areas = mask_areas({"lung_field": lungs, "infection": infection})["infection"]
    return {side: areas[side] for side in ("right", "left")}


def _mask_to_png(mask: Mask) -> bytes:
    """Return a mask as PNG."""
    return to_png(mask.astype(np.uint8) * np.uint8(255))


def _png_to_pixels(png: bytes) -> UInt8[np.ndarray, "height width"]:
    """Read back what this server wrote itself."""
    from PIL.PngImagePlugin import PngImageFile  # not Image.open: it warns about size, process-wide

    return np.array(PngImageFile(io.BytesIO(png)), dtype=np.uint8)


def _png_to_mask(png: bytes) -> Mask:
    """Read back a mask that this server wrote itself."""
    return _png_to_pixels(png) > 0


def _masks_to_png(masks: Mapping[str, Mask]) -> dict[str, bytes]:
    """Return masks as PNG."""
    return {name: _mask_to_png(mask) for name, mask in masks.items()}
