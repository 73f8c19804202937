"""Predicted lung masks for a data set that has none: segmented, cleaned, stored, and measured.

covidcxr datasets masks covidx_cxr3 --data.root DIR --model mini --out drawn
covidcxr fit ... --data.drawn_masks drawn --data.min_lung_area 0.15
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from covidcxr.data.collection import Collection
from covidcxr.data.curation.quality import Look
from covidcxr.data.files import MASK_INDEX
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, ImageReadError
from covidcxr.io.folders import lock_folder, path_inside, remove_drafts, replace_file
from covidcxr.io.image import read_mask, write_mask
from covidcxr.io.pretrained import read_json, write_json
from covidcxr.models import SegmentationModel
from covidcxr.pipeline.cases import BATCH_IMAGES, count_pixels, split_batches
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction, in_words
from covidcxr.transforms.postprocess import PostProcess
from covidcxr.types import LUNG_CLASSES
from covidcxr.utils.plain import field_values, is_number, user_path

__all__ = ["MaskReport", "draw_masks", "look_at"]

Image: TypeAlias = Float[np.ndarray, "_ _"]

_STAMP = "covidcxr-masks-settings.json"


@dataclass(frozen=True)
class MaskReport:
    """What was predicted for a data set.

    Attributes:
        images: Number of images with masks.
        areas: From image id to the area of the lungs, a fraction of the image's.
        small: The images whose lungs are smaller than `min_lung_area`, smallest first.
        failed: From image id to why the image could not be read or segmented.
        min_lung_area: The least area, a fraction of the image's.

    Example:
        ```python
        from covidcxr.pipeline.lung_masks import MaskReport

        report = MaskReport(2, {"a": 0.3, "b": 0.1}, small={"b": 0.1}, failed={}, min_lung_area=0.15)
        assert report.to_dict()["small"] == {"b": 0.1}
        ```
    """

    images: int
    areas: dict[str, float]
    small: dict[str, float]
    failed: dict[str, str]
    min_lung_area: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without the areas of all images, which stand in the folder's index."""
        return {key: value for key, value in field_values(self).items() if key != "areas"}


def draw_masks(
    collection: Collection,
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | SegmentationModel = "mini",
    postprocess: Sequence[str | Mapping[str, Any]] | None = None,
    min_lung_area: float = 0.15,
    batch_size: int = BATCH_IMAGES,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> MaskReport:
    """Predict the lungs of every image of a data set, for the predicted masks of a data module on the same images.

    Writes `IMAGE_ID.CLASS.png` (black and white, the image's size) a class, an index with the area of every image, and
    `small.csv`, the images below `min_lung_area`. It can be interrupted: images whose masks are there are not
    segmented again. An image that cannot be read costs one entry of the report.

    Args:
        collection: The data set.
        out: Where the masks go; made if need be.
        model: A lung segmenter, or where to load one from.
        postprocess: Clean-up steps; by default the two largest parts, holes filled.
        min_lung_area: Images whose lungs cover less of the image are reported, in [0, 1).
        batch_size: Batch size.
        device: Where the model runs.
        progress: Called with the images done and their number.

    Returns:
        The report.

    Raises:
        ConfigError: If a setting is wrong, or `out` holds masks predicted with others.
        DatasetError: If the data set is not there.
        PretrainedError: If the model cannot be had.
    """
    _check_settings(min_lung_area, batch_size)
    segmenter = model if isinstance(model, SegmentationModel) else SegmentationModel.from_pretrained(model)
    classes = _lung_classes(segmenter)
    steps = PostProcess() if postprocess is None else PostProcess(postprocess)
    target = user_path(out)
    settings = {"weights": _fingerprint(segmenter), "postprocess": steps.to_config(), "classes": classes}
    pipeline = Pipeline(lung_segmenter=segmenter, postprocess=steps).to(device)
    records = collection.unsplit_records()
    areas: dict[str, float] = {}
    failed: dict[str, str] = {}
    with lock_folder(target):
        _claim(target, settings)
        for batch in split_batches(records, batch_size, lambda record: count_pixels(record.image_path)):
            images = list(_images_without_masks(collection, batch, target, classes, areas, failed))
            predictions = pipeline.predict([image for _, image in images], batch_size=batch_size)
            for (record, _), prediction in zip(images, predictions, strict=True):
                assert isinstance(prediction, Prediction)
                if prediction.masks:
                    areas[record.image_id] = _write_masks(target, record, prediction, classes)
                else:  # what the segmenter computed is not finite
                    failed[record.image_id] = " ".join(map(in_words, prediction.reasons))
            if progress:
                progress(len(areas) + len(failed), len(records))
        return _report(target, records, areas, failed, min_lung_area)


def look_at(
    model: str | os.PathLike[str] | Pipeline = "mini", *, device: str = "cpu"
) -> Callable[[Sequence[Image]], list[Look]]:
    """Return what finds lungs on images and says how they lie, for `covidcxr.data.curation.quality.check_quality`.

    Args:
        model: A pipeline with a lung segmenter, with a view check or without one; or where to load it from.
        device: Where it runs.

    Returns:
        A function of images, in [0, 1].

    Raises:
        ConfigError: If it has neither a lung segmenter nor a view check.
        PretrainedError: If it cannot be loaded.
    """
    loaded = model if isinstance(model, Pipeline) else Pipeline.from_pretrained(model)
    if loaded.lung_segmenter is None and loaded.gate is None:
        raise ConfigError(f"{model} has neither a lung segmenter nor a view check: name a pipeline that has one.")
    pipeline = Pipeline(gate=loaded.gate, lung_segmenter=loaded.lung_segmenter, postprocess=loaded.postprocess)
    pipeline.to(device)

    def look(images: Sequence[Image]) -> list[Look]:
        predictions = pipeline.predict(images, batch_size=len(images))
        return [_seen(prediction) for prediction in predictions if isinstance(prediction, Prediction)]

    return look


def _seen(prediction: Prediction) -> Look:
    words = (*prediction.reasons, *prediction.notes)
    flags = {"inverted": "inverted", "turned": "turned", "not-a-frontal": "not frontal"}
    named = tuple(flag for part, flag in flags.items() if any(part in word for word in words))
    lungs = next((prediction.masks[name] for name in LUNG_CLASSES if name in prediction.masks), None)
    return Look(None if "lungs-not-found" in prediction.reasons else lungs, named)


def _lung_classes(segmenter: SegmentationModel) -> list[str]:
    classes = [name for name in LUNG_CLASSES if name in segmenter.config.classes]
    if not classes:
        raise ConfigError(f"The segmenter predicts {', '.join(segmenter.config.classes)}, which are no lungs.")
    return classes


def _report(
    target: Path, records: Sequence[Record], areas: dict[str, float], failed: dict[str, str], min_lung_area: float
) -> MaskReport:
    small = {name: area for name, area in sorted(areas.items(), key=lambda item: item[1]) if area < min_lung_area}
    _write_small(target / "small.csv", small, {record.image_id: record for record in records})
    write_json(target / MASK_INDEX, {"format_version": 1, "areas": areas, "failed": failed})
    return MaskReport(len(areas), areas, small, failed, min_lung_area)


def _check_settings(min_lung_area: object, batch_size: int) -> None:
    if not is_number(min_lung_area) or not 0 <= min_lung_area < 1:  # a recipe may hold anything
        raise ConfigError(f"min_lung_area must be in [0, 1), not {min_lung_area!r}.")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be 1 or more, not {batch_size}.")


def _images_without_masks(
    collection: Collection,
    records: Sequence[Record],
    target: Path,
    classes: Sequence[str],
    areas: dict[str, float],
    failed: dict[str, str],
) -> Iterator[tuple[Record, Image]]:
    """Yield records without masks and their images; note the area of masks that are there, and what failed."""
    for record in records:
        try:
            path_inside(target, record.image_id)
        except ConfigError:  # its masks would be written outside `out`
            failed[record.image_id] = f"{record.image_id} lies outside the data set's folder: choose a root above it."
            continue
        try:
            if all(_mask_path(target, record, name).is_file() for name in classes):
                areas[record.image_id] = float(read_mask(_mask_path(target, record, classes[0])).mean())
            else:
                yield record, collection.load_image(record)
        except ImageReadError as error:
            failed[record.image_id] = str(error)


def _write_masks(target: Path, record: Record, prediction: Prediction, classes: Sequence[str]) -> float:
    """Write the masks of an image and return the area of the first one, which is written last."""
    for name in reversed(classes):
        write_mask(_mask_path(target, record, name), prediction.masks[name])
    return float(prediction.masks[classes[0]].mean())


def _mask_path(target: Path, record: Record, name: str) -> Path:
    return path_inside(target, f"{record.image_id}.{name}.png")


def _claim(target: Path, settings: dict[str, Any]) -> None:
    """Raise an error for a folder of masks that another model or other steps predicted: they would be mixed up."""
    stamp = target / _STAMP
    if stamp.is_file() and read_json(stamp) != json.loads(json.dumps(settings)):
        raise ConfigError(
            f"{target} holds masks drawn with another model or other steps. Remove it, or choose another."
        )
    remove_drafts(target)
    write_json(stamp, settings)


def _fingerprint(model: SegmentationModel) -> str:
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()


def _write_small(path: Path, small: dict[str, float], records: dict[str, Record]) -> None:
    with replace_file(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "label", "source", "lung_area"])
        writer.writerows(
            [name, records[name].label or "", records[name].source, f"{area:.4f}"] for name, area in small.items()
        )
