"""Writes what `Trainer.predict` gives, batch by batch and from every process, as one table with masks."""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from covidcxr.errors import ConfigError
from covidcxr.io.atomic import replace_file
from covidcxr.io.folders import path_inside
from covidcxr.io.image import write_mask
from covidcxr.io.masks import encode_mask
from covidcxr.io.tables import write_parquet
from covidcxr.tasks.steps import Steps
from covidcxr.utils.plain import json_text, user_path

__all__ = ["PredictionWriter"]


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
