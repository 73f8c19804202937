"""The images that a model is tested on: of a data set, a part of it, as many patients as possible."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from covidcxr.data import Record
from covidcxr.data.collection import Collection
from covidcxr.data.dataset import box_slices, fit_record
from covidcxr.errors import ConfigError, DatasetError, ImageReadError
from covidcxr.evaluation.predictions.run_pipeline import segmenter_pipeline
from covidcxr.explain import Explanation, explain_many
from covidcxr.io.image import read_image
from covidcxr.models import ClassificationModel, EnsembleModel, SegmentationModel
from covidcxr.models.base import evaluation_mode
from covidcxr.pipeline.cases import split_batches
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction
from covidcxr.types import LUNGS_OF_REGION, SplitName
from covidcxr.utils.threads import tracked

__all__ = [
    "Asked",
    "ImageSample",
    "Images",
    "as_pipeline",
    "ExplainedImage",
    "explained_images",
    "given_lungs",
    "known_classes",
]

Asked: TypeAlias = Pipeline | ClassificationModel | EnsembleModel | SegmentationModel
"""What predicts images from end to end; a classifier of a region needs the pipeline that draws its lungs."""

Images: TypeAlias = Collection | Sequence[Record | str | os.PathLike[str]]
"""A data module, of which one split counts, or images: records or paths."""


class ImageSample:
    """Images with what is known of them, read when their turn comes.

    Args:
        data: A data module, or records or paths of images.
        split: Of a data module: "train", "val" or "test"; None = all.
        max_images: Most images; None = all. They are drawn so that no patient has two before every patient has one.
        among: Ids of the images that count; None = all.
        seed: Of the draw; it depends on the images' names and not on their order.

    Attributes:
        records: The images, in the order of the data.
        failed: From image id to why an image could not be read; filled as images are read.

    Raises:
        ConfigError: If there is no image, or `max_images` is below 1.

    Example:
        ```python
        from covidcxr.evaluation.predictions.sample import ImageSample

        sample = ImageSample(["image.png"])
        (batch,) = sample.batches(8)
        record, image = batch[0]
        assert len(sample) == 1 and image.ndim == 2
        ```
    """

    def __init__(
        self,
        data: Images,
        *,
        split: SplitName | None = "test",
        max_images: int | None = None,
        among: Container[str] | None = None,
        seed: int = 0,
    ) -> None:
        self._data = data if isinstance(data, Collection) else None
        if isinstance(data, Collection):
            records = [record for record in data.records if split in (None, record.split)]
        elif isinstance(data, str | os.PathLike):
            raise ConfigError(f"Give a data module or a list of images, not one path: [{os.fspath(data)!r}].")
        else:
            records = [image if isinstance(image, Record) else Record(Path(image)) for image in data]
        records = [record for record in records if among is None or record.image_id in among]
        if not records or (max_images is not None and max_images < 1):
            raise ConfigError(f"There is no image (split={split!r}, max_films={max_images}).")
        self.records = records if max_images is None else _draw(records, max_images, seed)
        self.failed: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.records)

    def batches(self, size: int) -> Iterator[list[tuple[Record, Float[np.ndarray, "_ _"]]]]:
        """Read the images; those that cannot be read go to `failed`.

        Args:
            size: Most images in a batch.

        Yields:
            Batches of records and their images, grey in [0, 1].
        """
        read = (image for record in self.records if (image := self._read(record)) is not None)
        yield from split_batches(read, size, lambda pair: pair[1].size)

    def _read(self, record: Record) -> tuple[Record, Float[np.ndarray, "_ _"]] | None:
        try:
            image = read_image(record.image_path) if self._data is None else self._data.load_image(record)
            cut = image if record.box is None else image[box_slices(record, (image.shape[0], image.shape[1]))]
        except (ImageReadError, DatasetError) as error:
            self.failed[record.image_id] = str(error)
            return None
        return record, np.ascontiguousarray(cut)


def _draw(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Draw images in rounds, one of each patient a round."""
    rng = np.random.default_rng(seed)
    named = sorted(range(len(records)), key=lambda number: records[number].image_id)
    images: dict[str, list[int]] = {}
    for number in rng.permutation(named):
        images.setdefault(records[number].patient, []).append(int(number))
    turns = (enumerate(own) for own in images.values())
    rounds = sorted((turn, place, number) for place, own in enumerate(turns) for turn, number in own)
    return [records[number] for number in sorted(number for _, _, number in rounds[:count])]


@contextmanager
def as_pipeline(model: Asked) -> Iterator[Pipeline]:
    """Give the pipeline that predicts: the one given, or one of the model alone, which stays as it is.

    Args:
        model: A pipeline, a segmenter, or a classifier of the full image.

    Yields:
        The pipeline.

    Raises:
        ConfigError: If a classifier sees a region, for which only a pipeline can find the lungs.
    """
    if isinstance(model, Pipeline):
        yield model
        return
    with evaluation_mode(model):
        if isinstance(model, SegmentationModel):
            yield segmenter_pipeline(model)
        else:
            yield Pipeline(classifier=model)


@dataclass(frozen=True, eq=False)
class ExplainedImage:
    """An image and its heat map.

    Attributes:
        record: What is known of it.
        image: Grey, in [0, 1].
        explanation: Of the wanted class; None where there is no prediction.
        lungs: By mask class: as the pipeline draws them, else as the data set does; may be empty.

    Example:
        ```python
        from covidcxr import Pipeline
        from covidcxr.evaluation.predictions.sample import ImageSample, explained_images

        sample = ImageSample(["image.png"])
        for explained in explained_images(Pipeline.from_pretrained("mini"), sample, progress=False):
            assert explained.image.ndim == 2
        ```
    """

    record: Record
    image: Float[np.ndarray, "height width"]
    explanation: Explanation | None
    lungs: Mapping[str, Bool[np.ndarray, "height width"]]


def explained_images(
    model: Asked,
    sample: ImageSample,
    *,
    target: str | None = None,
    method: str = "gradcam",
    batch_size: int = 8,
    progress: bool = True,
) -> Iterator[ExplainedImage]:
    """Explain the images of a sample; those that cannot be read go to its `failed`.

    Args:
        model: A pipeline with a classifier, or a classifier of the full image.
        sample: The images.
        target: The class to explain; None = each image's most probable one.
        method: A name of `covidcxr.explain.METHODS`.
        batch_size: Images in a batch.
        progress: Show a progress bar on standard error.

    Yields:
        Images with their heat maps; None where there is no prediction to explain.

    Raises:
        ConfigError: If there is no classifier, or no image can be read.
        UnknownNameError: If there is no such class or method.
    """
    count = 0
    with as_pipeline(model) as pipeline:
        if pipeline.classifier is None:
            raise ConfigError("There is no classifier to explain: the pipeline has none.")
        batches = sample.batches(batch_size)
        for batch in tracked(batches, -(-len(sample) // batch_size), "batches", progress):
            predictions = [
                prediction
                for prediction in pipeline.predict([image for _, image in batch], batch_size=batch_size)
                if isinstance(prediction, Prediction)
            ]
            explained = [number for number, prediction in enumerate(predictions) if prediction.probabilities]
            orientations = [predictions[n].orientation for n in explained]
            images = [view.correct(batch[n][1]) for n, view in zip(explained, orientations, strict=True)]
            lungs = [view.correct_masks(predictions[n].masks) for n, view in zip(explained, orientations, strict=True)]
            maps = explain_many(pipeline.classifier, images, lungs, target=target, method=method, batch_size=batch_size)
            explanations = {
                n: replace(heatmap, heat=view.turn(heatmap.heat).copy())
                for n, view, heatmap in zip(explained, orientations, maps, strict=True)
            }
            for number, ((record, image), prediction) in enumerate(zip(batch, predictions, strict=True)):
                count += 1
                lung_masks = prediction.masks if pipeline.lung_segmenter is not None else given_lungs(record, image)
                yield ExplainedImage(record, image, explanations.get(number), lung_masks)
    if not count:
        raise ConfigError(f"None of {len(sample)} images can be read: {next(iter(sample.failed.values()))}")


def given_lungs(
    record: Record, image: Float[np.ndarray, "height width"]
) -> dict[str, Bool[np.ndarray, "height width"]]:
    """Read the lungs that the data set draws, at the image's size.

    Args:
        record: What is known of the image.
        image: The image.

    Returns:
        By mask class; empty where there are none, or they cannot be read.
    """
    names = [name for name in LUNGS_OF_REGION["background"] if name in record.mask_paths]
    if record.box is not None or not names:  # the image was cut, its masks are not
        return {}
    try:
        masks = fit_record(record, image, (image.shape[0], image.shape[1]), "stretch", names).masks
    except (ImageReadError, DatasetError):
        return {}
    return {name: mask > 0 for name, mask in masks.items()}


def known_classes(record: Record, classes: Sequence[str]) -> list[float]:
    """Say of each class whether an image shows it.

    Args:
        record: What is known of the image.
        classes: Names of the classes.

    Returns:
        1 or 0 a class; NaN = not known.
    """
    if record.findings:
        return [float(record.findings[name]) if name in record.findings else math.nan for name in classes]
    return [float(record.label == name) if record.label in classes else math.nan for name in classes]
