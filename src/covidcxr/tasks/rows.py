"""One row an image: what is known of it, and what a classifier says."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

from covidcxr import aliases
from covidcxr.data import CXRDataModule, CXRDataset
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.models import ClassificationModel, Classifier
from covidcxr.types import Batch, SplitName
from covidcxr.utils.threads import tracked

__all__ = ["add_traits", "check_classes", "image_rows", "inputs", "labelled_images", "predict_rows"]

__getattr__ = partial(aliases.find, __name__)


def predict_rows(
    model: Classifier, data: CXRDataModule, split: SplitName = "test", *, progress: bool = True
) -> list[dict[str, Any]]:
    """Run a classifier or an ensemble on the labelled images of a split.

    Every member gets the images at its own size and region, whatever the data module's; nothing is augmented.

    Args:
        model: Runs on the device that it is on; see `torch.nn.Module.to`.
        data: The images; their lung masks cut the regions.
        split: "train", "val" or "test".
        progress: Show a progress bar on standard error.

    Returns:
        Rows as in `Task.rows`, for `covidcxr.evaluation.score_rows` and `calibrate`.

    Raises:
        ConfigError: If the data module has other classes than the model, or there is no such split.
        DatasetError: If an image lacks the lung mask that a region needs.
        ImageReadError: If an image cannot be read.
    """
    classes = model.config.classes
    check_classes(classes, data)
    loaders = {_geometry(member): labelled_images(data, split, member) for member in model.members}
    rows: list[dict[str, Any]] = []
    first = next(iter(loaders.values()))
    for batches in tracked(zip(*loaders.values(), strict=True), len(first), "batches", progress):
        shown = dict(zip(loaders, batches, strict=True))
        answers = [member.predict(*inputs(member, shown[_geometry(member)])).cpu() for member in model.members]
        label = batches[0]["label"]
        if model.config.mode == "multilabel" and not label.is_floating_point():
            label = one_hot(label, len(classes)).float()  # a data module of exclusive classes: the others are absent
        rows += image_rows(batches[0], range(len(label)), label, model.combine(answers), classes)
    return rows


def image_rows(
    batch: Batch, places: Iterable[int], labels: Tensor, probabilities: Tensor, classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield one row an image.

    Args:
        batch: Names the images.
        places: Which images of the batch the rows are of.
        labels: Of these images, one row each, as in `Sample`.
        probabilities: Of these images, [images, classes].
        classes: Names of the classes.

    Yields:
        A row an image: image_id, patient_id, source, its label or labels, and `probability_CLASS`.
    """
    for image, label, chances in zip(places, labels, probabilities.tolist(), strict=True):
        row: dict[str, Any] = {"image_id": batch["image_id"][image], "patient_id": batch["patient_id"][image]}
        row |= {"source": batch["source"][image]}
        if label.is_floating_point():
            row |= {f"label_{name}": value for name, value in zip(classes, label.tolist(), strict=True)}
        else:
            row["label"] = classes[int(label)]
        yield row | {f"probability_{name}": value for name, value in zip(classes, chances, strict=True)}


def add_traits(rows: Iterable[Mapping[str, Any]], records: Iterable[Record]) -> list[dict[str, Any]]:
    """Write beside each row what the records tell of its image: `view`, `sex` and `age`, where any image has them.

    Where the age in years is not known, `age` is the age group, "adult" or "child".

    Args:
        rows: A row an image, with `image_id`.
        records: The images of the data set.

    Returns:
        New rows; what is not known is "".
    """
    rows = list(rows)
    known = {record.image_id: record for record in records}
    images = [known.get(str(row["image_id"])) for row in rows]
    traits = [_traits(image) for image in images]
    told = [name for name in ("view", "sex", "age") if any(name in own for own in traits)]
    return [{**row, **{name: own.get(name, "") for name in told}} for row, own in zip(rows, traits, strict=True)]


def _traits(image: Record | None) -> dict[str, Any]:
    """Return what is known of an image; its age group where the age in years is not."""
    if image is None:
        return {}
    age = image.age_group if image.age is None else image.age
    values = {"view": image.view, "sex": image.sex, "age": age}
    return {name: value for name, value in values.items() if value is not None}


def labelled_images(data: CXRDataModule, split: SplitName, model: ClassificationModel) -> DataLoader[Any]:
    """Load the labelled images of a split, in order and not augmented, at the size and region of a model.

    Args:
        data: The images.
        split: "train", "val" or "test".
        model: Its preprocessing places the images.

    Returns:
        A loader of batches.

    Raises:
        ConfigError: If there is no such split.
        DatasetError: If an image lacks the lung mask that the region needs.
    """
    if split not in get_args(SplitName):
        raise ConfigError(f"There is no split {split!r}. {did_you_mean(split, get_args(SplitName))}")
    images: CXRDataset = getattr(data, f"{split}_dataset")
    labelled = ~images.labels.isnan().all(1) if images.multilabel else images.labels >= 0
    settings = model.config.preprocess
    seen = CXRDataset(
        (record for record, known in zip(images.records, labelled.tolist(), strict=True) if known),
        classes=images.classes,
        multilabel=images.multilabel,
        image_size=settings.image_size,
        fit=settings.fit,
        region=settings.region,
        lung_dilation=settings.lung_dilation,
        read=data.load_image,
    )
    return DataLoader(seen, batch_size=data.batch_size, num_workers=data.reading_processes, generator=torch.Generator())


def check_classes(classes: Sequence[str], data: object) -> None:
    """Compare a model's classes with those of a data module.

    Args:
        classes: The model's classes.
        data: The data module; None, or one without classes, is not compared.

    Raises:
        ConfigError: If both name classes and these differ.
    """
    theirs = getattr(data, "classes", None)
    if theirs and tuple(theirs) != tuple(classes):
        raise ConfigError(
            f"The model's classes are {list(classes)}, but the data module's labels are {list(theirs)}: set both "
            f"alike, in the same order."
        )


def inputs(model: ClassificationModel, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return the inputs of a model, on its device.

    Args:
        model: The model.
        batch: The images.

    Returns:
        Images [batch, 1, height, width], and their lungs where the model needs them, else None.
    """
    lungs = batch.get("lung_mask") if model.needs_lungs else None
    device = model.mean.device
    return batch["image"].to(device), None if lungs is None else lungs.to(device)


def _geometry(model: ClassificationModel) -> Hashable:
    """Return what an image's look depends on before it is normalised: members that share it share their images."""
    settings = model.config.preprocess
    return settings.image_size, settings.fit, settings.region, settings.lung_dilation
