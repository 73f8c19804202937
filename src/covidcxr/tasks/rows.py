"""One row an image: what is known of it, what a classifier says, and the table that they are written to."""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

from covidcxr import aliases
from covidcxr.data import CXRDataModule, CXRDataset
from covidcxr.data.records import Record
from covidcxr.errors import ConfigError, did_you_mean
from covidcxr.io.folders import path_inside, replace_file
from covidcxr.io.image import write_mask
from covidcxr.io.masks import encode_mask
from covidcxr.io.tables import write_parquet
from covidcxr.models import ClassificationModel, Classifier
from covidcxr.tasks.steps import Steps
from covidcxr.types import Batch, SplitName
from covidcxr.utils.plain import json_text, user_path
from covidcxr.utils.threads import tracked

__getattr__ = partial(aliases.find, __name__)

__all__ = ["add_traits", "check_classes", "image_rows", "inputs", "labelled_images", "predict_rows", "PredictionWriter"]


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
    columns = [name for name in ("view", "sex", "age") if any(name in own for own in traits)]
    return [{**row, **{name: own.get(name, "") for name in columns}} for row, own in zip(rows, traits, strict=True)]


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
            f"alike, in the same order (classes of the model; label_map of the data, where labels mean the same)."
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


class PredictionWriter(BasePredictionWriter):
    """Writes the rows of `Trainer.predict` into one table, in the order of the data set, and masks beside or inside it.

    Every process writes the rows of its own images, a batch at a time; in the end the first one makes
    `predictions.csv` or `predictions.parquet` of them, each image once. A row holds `image_id`, `patient_id`, `source`,
    `probability_CLASS` of each label, and of each mask `fraction_CLASS`, the share of the model's input that it covers,
    in [0, 1].

    Masks are those of the model alone, at the size of its input (`data.image_size`); `covidcxr predict` cleans them and
    gives them the size of the image. With "csv" they are files `masks/IMAGE_ID.CLASS.png`, with "parquet" the column
    `mask_CLASS`, PNG of 1 bit.

    Args:
        folder: Where table and masks go, on a disk that all processes see; made if need be. An earlier table is
            replaced.
        format: "csv", or "parquet", which needs the extra `parquet`.
        masks: Write the masks.

    Raises:
        ConfigError: If there is no such format.

    Example:
        ```python
        from covidcxr.tasks import PredictionWriter

        writer = PredictionWriter("predicted", format="parquet")
        # Trainer(callbacks=[writer], devices=4).predict(task, data, return_predictions=False)
        assert writer.table.name == "predictions.parquet"
        ```
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        format: Literal["csv", "parquet"] = "csv",  # noqa: A002 - as `covidcxr predict`
        masks: bool = True,
    ) -> None:
        super().__init__("batch")
        if format not in ("csv", "parquet"):
            raise ConfigError(f'format must be "csv" or "parquet", not {format!r}.')
        self._folder, self._format, self._masks = user_path(folder), format, masks
        self.table = self._folder / f"predictions.{format}"

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a run that was stopped has left.

        Args:
            trainer: Knows the processes.
            pl_module: The task.
        """
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            for stale in self._folder.glob(".rows-*.jsonl"):
                stale.unlink()
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the rows of a batch, and its masks.

        Args:
            trainer: Knows the processes.
            pl_module: The task.
            prediction: What `predict_step` returned: a row an image.
            batch_indices: Not used: rows have ids.
            batch: Not used.
            batch_idx: Not used.
            dataloader_idx: Number of the loader.

        Raises:
            ConfigError: If the module is no task of this library.
        """
        if not isinstance(pl_module, Steps):
            raise ConfigError(
                f"PredictionWriter writes the rows of a covidcxr task, not of {type(pl_module).__name__}."
            )
        models = [model.config for model in pl_module.models.values()]
        thresholds = {name: config.thresholds.get(name, 0.5) for config in models for name in config.classes}
        rows = [self._plain(row, thresholds) for row in prediction]
        with self._part(dataloader_idx, trainer.global_rank).open("a", encoding="utf-8") as file:
            file.writelines(json_text(row) + "\n" for row in rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make one table of what all processes wrote.

        Args:
            trainer: Knows the processes.
            pl_module: The task.
        """
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            if self._format == "parquet":
                write_parquet(self.table, map(_decoded, self._rows(trainer.world_size)))
            else:
                self._write_csv(self._rows(trainer.world_size))
            for part in self._folder.glob(".rows-*.jsonl"):
                part.unlink()
        trainer.strategy.barrier()

    def _part(self, loader: int, process: int) -> Path:
        return self._folder / f".rows-{loader}-{process}.jsonl"

    def _rows(self, processes: int) -> Iterator[dict[str, Any]]:
        """Read the rows of all processes in turn, as the sampler dealt out the images."""
        loader = 0
        while any(self._part(loader, process).is_file() for process in range(processes)):
            with ExitStack() as stack:
                parts = [self._part(loader, process) for process in range(processes)]
                files = [stack.enter_context(part.open(encoding="utf-8")) for part in parts if part.is_file()]
                while files:
                    for file in list(files):
                        if line := file.readline():
                            yield json.loads(line)
                        else:
                            files.remove(file)
            loader += 1

    def _write_csv(self, rows: Iterator[dict[str, Any]]) -> None:
        first = next(rows, {})
        with replace_file(self.table) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(first))
            writer.writeheader()
            writer.writerows([first] if first else [])
            writer.writerows(rows)

    def _plain(self, row: dict[str, Any], thresholds: dict[str, float]) -> dict[str, Any]:
        """Return a row without maps, and write its masks."""
        plain: dict[str, Any] = {}
        masks: dict[str, str] = {}
        for key, value in row.items():
            if not isinstance(value, Tensor):
                plain[key] = value
                continue
            name = key.removeprefix("probability_")
            mask = (value >= thresholds[name]).numpy()
            plain[f"fraction_{name}"] = float(mask.mean())
            if self._masks and self._format == "parquet":
                masks[f"mask_{name}"] = base64.b64encode(encode_mask(mask)).decode()
            elif self._masks:
                write_mask(path_inside(self._folder / "masks", f"{row['image_id']}.{name}.png"), mask, sync=False)
        return plain | masks


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: base64.b64decode(value) if key.startswith("mask_") and value is not None else value
        for key, value in row.items()
    }
