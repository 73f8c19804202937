"""The predictions of a pipeline for the images of a data set: a row an image, masks and heat maps."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from covidcxr import aliases
from covidcxr.data.dataset import box_slices, check_mask_size
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, CovidCXRError, did_you_mean
from covidcxr.evaluation.metrics.agreement import image_agreement
from covidcxr.evaluation.metrics.segmentation import dice_score, iou_score, lesion_scores, precision_score, recall_score
from covidcxr.io import pretrained
from covidcxr.io.folders import replace_file
from covidcxr.io.image import read_mask
from covidcxr.models import SegmentationModel
from covidcxr.pipeline.cases import count_pixels, split_batches
from covidcxr.pipeline.parts import is_single, load_single, part_of
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.tasks.rows import add_traits
from covidcxr.transforms.geometry import hd95, nsd, resize_mask
from covidcxr.types import LUNGS_OF_REGION

if TYPE_CHECKING:
    from covidcxr.data.collection import Collection
    from covidcxr.explain import Explanation

__all__ = ["open_pipeline", "pipeline_rows", "true_masks", "write_rows", "ImageLookup", "ImageView"]

__getattr__ = partial(aliases.find, __name__)

Masks = Mapping[str, Bool[np.ndarray, "height width"]]


_SCORES = {
    "dice": dice_score,
    "iou": iou_score,
    "precision": precision_score,
    "recall": recall_score,
    "hd95": hd95,
    "nsd": nsd,
}


def open_pipeline(
    source: str | PathLike[str], *, lungs: str | PathLike[str] | SegmentationModel = "mini", outlines: bool = False
) -> Pipeline:
    """Load a pipeline, or a single model as one.

    Args:
        source: A bundled name, a folder (of a pipeline or of one model) or a Hub repository.
        lungs: Where the lungs come from for a classifier that sees a region of the image: as `source`, or a model.
        outlines: Draw the lungs beside a single classifier of the full image too, to be looked at.

    Returns:
        The pipeline.

    Raises:
        PretrainedError: If it cannot be had.
    """
    folder = pretrained.fetch(source)
    if not is_single(folder):
        return Pipeline.from_pretrained(folder)
    parts: dict[str, Any] = dict(load_single(folder))
    classifier = parts.get("classifier")
    if classifier is not None and "lung_segmenter" not in parts and (classifier.needs_lungs or outlines):
        parts["lung_segmenter"] = (
            lungs if isinstance(lungs, SegmentationModel) else Pipeline.from_pretrained(lungs).lung_segmenter
        )
    return Pipeline(**parts)


def segmenter_pipeline(model: SegmentationModel) -> Pipeline:
    """Return a pipeline of a segmenter alone.

    Args:
        model: A segmenter of lungs, of infections, or of both.

    Returns:
        The pipeline.
    """
    parts: dict[str, Any] = {part_of(model): model}
    return Pipeline(**parts)


def pipeline_rows(
    pipeline: Pipeline,
    data: Collection,
    split: str | None = "test",
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Predict the images of a split.

    An image that cannot be read costs its own prediction: its row holds the `error`.

    Args:
        pipeline: The pipeline.
        data: The images.
        split: "train", "val" or "test"; None = all images.
        batch_size: Images a batch.
        progress: Called with the numbers of finished and of all images.

    Returns:
        A row an image: `image_id`, `patient_id`, `source`, `split`, `view`, `sex`, `age`; `label`, or `label_CLASS` of
        findings; `probability_CLASS`; `answer` ("" = abstained), `plausible` and `reasons` (joined by ";");
        `dice_MASK`, `iou_MASK`, ... of the masks whose truth is known; and where a reader outlined the infection what
        `covidcxr.evaluation.metrics.agreement.image_agreement` measures, `infected_fraction` within the pipeline's
        own lungs, and with `infected_low` and `infected_high` its interval.

    Raises:
        ConfigError: If there is no such split, no image in it, or none has a label that the classifier knows.
    """
    if split not in (None, "train", "val", "test"):
        raise ConfigError(f"There is no split {split!r}. {did_you_mean(str(split), ('train', 'val', 'test', 'all'))}")
    records = [record for record in data.records if split is None or record.split == split]
    if not records:
        raise ConfigError(f"No image of {type(data).__name__} is in the split {split!r}.")
    rows: list[dict[str, Any]] = []
    for batch in split_batches(records, batch_size, lambda record: count_pixels(record.image_path)):
        rows += _predict_batch(pipeline, data, batch)
        if progress is not None:
            progress(len(rows), len(records))
    _check_labels(pipeline, rows, records)
    return add_traits(rows, records)


def _check_labels(pipeline: Pipeline, rows: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> None:
    labelled = {record.label for record in records if record.label is not None}
    if pipeline.classifier is not None and labelled and not any(row.get("label") for row in rows):
        raise ConfigError(
            f"The classifier knows {', '.join(pipeline.classifier.config.classes)}, the images are labelled "
            f"{', '.join(sorted(labelled))}: rename labels with --data.label_map '{{OLD: NEW}}'."
        )


def _predict_batch(pipeline: Pipeline, data: Collection, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    images: list[Float[np.ndarray, "height width"] | CovidCXRError] = []
    for record in records:
        try:
            images.append(_read_record(data, record))
        except CovidCXRError as error:
            images.append(error)
    read = [image for image in images if not isinstance(image, CovidCXRError)]
    predictions = pipeline.predict(read, batch_size=len(read)) if read else iter(())
    for record, image in zip(records, images, strict=True):
        row = _truth(pipeline, record)
        if isinstance(image, CovidCXRError):
            yield row | _prediction_columns(pipeline, None) | {"error": str(image)}
            continue
        prediction = next(predictions)
        assert isinstance(prediction, Prediction)
        row |= _prediction_columns(pipeline, prediction)
        try:
            true = true_masks(record, image.shape)
            row |= _mask_scores(prediction.masks, true)
            row |= image_agreement(
                prediction.orientation.correct_masks(prediction.masks), prediction.orientation.correct_masks(true)
            )
        except CovidCXRError as error:
            row["error"] = str(error)
        if "reader_lungs" in row and prediction.infected_fraction is not None:
            row["infected_fraction"] = prediction.infected_fraction
            if prediction.infected_interval is not None:
                row["infected_low"], row["infected_high"] = prediction.infected_interval
        yield row


def _truth(pipeline: Pipeline, record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": record.image_id, "patient_id": record.patient_id or ""}
    row |= {"source": record.source, "split": record.split or ""}
    classes = () if pipeline.classifier is None else pipeline.classifier.config.classes
    if pipeline.classifier is not None and pipeline.classifier.config.mode == "multilabel":
        known = record.findings or ({name: name == record.label for name in classes} if record.label else {})
        return row | {f"label_{name}": float(known[name]) if name in known else "" for name in classes}
    return row | ({"label": record.label if record.label in classes else ""} if classes else {})


def _prediction_columns(pipeline: Pipeline, prediction: Prediction | None) -> dict[str, Any]:
    """Return what the classifier predicts; nothing where the lungs that it needs were not found."""
    if pipeline.classifier is None:
        return {"reasons": ";".join(prediction.reasons)} if prediction is not None else {}
    config = pipeline.classifier.config
    probabilities = {} if prediction is None else prediction.probabilities
    row: dict[str, Any] = {f"probability_{name}": probabilities.get(name, "") for name in config.classes}
    plausible = [name for name in probabilities if probabilities[name] >= config.thresholds.get(name, 0.5)]
    if probabilities and config.mode != "multilabel" and not config.thresholds:
        plausible = [max(probabilities, key=lambda name: probabilities[name])]
    row |= {"answer": (prediction.label if prediction is not None else None) or "", "plausible": ";".join(plausible)}
    return row | {"reasons": "cannot-be-read" if prediction is None else ";".join(prediction.reasons)}


def _mask_scores(predicted: Masks, true: Masks) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, mask in true.items():
        if name not in predicted:
            continue
        scores |= {f"{kind}_{name}": float(score(predicted[name], mask)) for kind, score in _SCORES.items()}
        if name not in LUNGS_OF_REGION["lungs"]:
            sensitivity, false = lesion_scores(predicted[name], mask)
            scores |= {f"lesion_sensitivity_{name}": sensitivity, f"false_lesions_{name}": float(false)}
    return scores


def _read_record(data: Collection, record: Record) -> Float[np.ndarray, "height width"]:
    """Read an image and cut it to its box."""
    image = data.load_image(record)
    return image[box_slices(record, (image.shape[0], image.shape[1]))]


def true_masks(record: Record, size: tuple[int, int]) -> dict[str, Bool[np.ndarray, "height width"]]:
    """Read the true masks of an image at the image's size.

    Args:
        record: The image.
        size: Its height and width, those of its box where it has one.

    Returns:
        By mask class.

    Raises:
        ImageReadError: If a mask cannot be read.
        DatasetError: If a mask cannot be of this image.
    """
    masks = {}
    for name, path in record.mask_paths.items():
        mask = read_mask(path)
        if record.box is not None:
            mask = mask[box_slices(record, (mask.shape[0], mask.shape[1]))]
        check_mask_size(record, name, (mask.shape[0], mask.shape[1]), size)
        if mask.shape != tuple(size):
            mask = resize_mask(torch.from_numpy(mask).float()[None, None], size, "stretch")[0, 0].numpy() > 0.5
        masks[name] = mask
    return masks


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write rows as CSV; the file appears whole or not at all.

    Args:
        rows: A row an image; what one of them lacks is left empty.
        path: The file.

    Returns:
        The file.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replace_file(path) as draft, draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass(frozen=True, eq=False)
class ImageView:
    """An image with what is predicted and what is true.

    Attributes:
        image: Grey, in [0, 1].
        answer: What the pipeline says of it; None = there is no pipeline.
        heat: Where its classifier looked; None = nothing to explain.
        masks: The true ones.

    Example:
        ```python
        from covidcxr.data import CSVDataModule
        from covidcxr.evaluation.predictions.run_pipeline import ImageLookup

        data = CSVDataModule("phantoms")
        data.setup()
        view = ImageLookup(data).look({"image_id": data.records[0].image_id})
        assert view.image.ndim == 2 and view.prediction is None
        ```
    """

    image: Float[np.ndarray, "height width"] = field(repr=False)
    prediction: Prediction | None
    heat: Explanation | None
    masks: Mapping[str, Bool[np.ndarray, "height width"]] = field(repr=False)


class ImageLookup:
    """The images behind rows, to be looked at again.

    Args:
        data: The images.
        pipeline_of: Finds the pipeline that answered for a row; None = images are shown without answers.

    Example:
        ```python
        from covidcxr.data import CSVDataModule
        from covidcxr.evaluation.predictions.run_pipeline import ImageLookup

        data = CSVDataModule("phantoms")
        data.setup()
        assert ImageLookup(data).look({"image_id": "no such image"}) is None
        ```
    """

    def __init__(
        self, data: Collection, pipeline_of: Callable[[Mapping[str, Any]], Pipeline | None] | None = None
    ) -> None:
        self.data = data
        self._records = {record.image_id: record for record in data.records}
        self._pipeline_of = pipeline_of or (lambda row: None)

    def look(self, row: Mapping[str, Any], target: str | None = None) -> ImageView | None:
        """Open the image of a row, ask its pipeline again and explain a class.

        Args:
            row: Names the image.
            target: The class to explain.

        Returns:
            What there is to be seen; None if there is no such image or it cannot be read.
        """
        record = self._records.get(str(row["image_id"]))
        if record is None:
            return None
        try:
            image = _read_record(self.data, record)
            masks = true_masks(record, image.shape)
        except CovidCXRError:  # one bad image costs one entry of a gallery
            return None
        pipeline = self._pipeline_of(row)
        prediction = None if pipeline is None else pipeline(image)
        heat = None
        if prediction is not None and prediction.probabilities:
            try:
                heat = prediction.explain(target if target in prediction.probabilities else None)
            except ConfigError:  # a network without a layer that keeps places
                heat = None
        return ImageView(image, prediction, heat, masks)
