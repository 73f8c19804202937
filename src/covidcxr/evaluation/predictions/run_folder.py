"""Folders of `covidcxr recipes run` read back: rows, learning curves, configs and models of every run in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from covidcxr.data import CXRDataModule
from covidcxr.errors import ConfigError
from covidcxr.evaluation.predictions.run_pipeline import open_pipeline
from covidcxr.evaluation.predictions.table import read_rows
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.tasks.rows import predict_rows

__all__ = ["RunFolder", "read_folder"]

_PARTS = ("fold-", "without-")


@dataclass(frozen=True)
class RunFolder:
    """One run, whole or in parts (folds, held-out sources).

    Attributes:
        name: The variants that it stands for, "" if nothing was compared.
        folder: Where it lies.
        rows: Its predictions; of a run in parts those of all of them, each with its `fold`.
        histories: By part ("" = the run itself): an entry an epoch.
        models: By part: the folder of its model.
        config: What was trained on what.
    """

    name: str
    folder: Path
    rows: list[dict[str, Any]] = field(repr=False)
    histories: Mapping[str, list[dict[str, float]]] = field(repr=False)
    models: Mapping[str, Path]
    config: Mapping[str, Any] = field(repr=False)

    def pipeline_of(self, row: Mapping[str, Any]) -> Pipeline | None:
        """Load what was asked about a film: of a run in parts, the part that tested it."""
        folder = self.models.get(str(row.get("fold") or ""), self.models.get(""))
        return None if folder is None else _open(folder)

    def validation_rows(self, data: CXRDataModule) -> list[dict[str, Any]] | None:
        """Ask the classifier of a whole run about its validation films; None if there is no such thing.

        Args:
            data: What it was trained on, split alike.
        """
        if "" not in self.models or len(self.models) > 1 or not any(one.split == "val" for one in data.records):
            return None
        pipeline = _open(self.models[""])
        return None if pipeline.classifier is None else predict_rows(pipeline.classifier, data, "val")


@cache
def _open(folder: Path) -> Pipeline:
    return open_pipeline(folder, outlines=True)


def read_folder(folder: Path) -> list[RunFolder]:
    """Read the runs of a folder: of one run that one, of compared runs all that are finished.

    Args:
        folder: As `covidcxr recipes run --output FOLDER` left it.

    Raises:
        ConfigError: If it holds no predictions.
    """
    if (folder / "predictions.csv").is_file():
        return [_read(folder, "")]
    runs = [
        _read(path.parent, path.parent.name)
        for path in sorted(folder.glob("*/predictions.csv"), key=lambda path: _place(folder, path.parent.name))
    ]
    if not runs:
        raise ConfigError(
            f"{folder} holds no predictions.csv, nor does a folder in it: it must be the output of `covidcxr recipes "
            f"run`, or give a table of predictions (CSV)."
        )
    if all(run.name.startswith(_PARTS) for run in runs):
        raise ConfigError(f"{folder} holds parts of a run that is not finished: give its command again, then evaluate.")
    return [run for run in runs if not run.name.startswith(_PARTS)]


def _read(folder: Path, name: str) -> RunFolder:
    parts = {"": folder} | {path.parent.name: path.parent for path in _parts(folder)}
    histories = {
        part: json.loads((place / "model" / "history.json").read_text(encoding="utf-8"))
        for part, place in parts.items()
        if (place / "model" / "history.json").is_file()
    }
    models = {part: place / "model" for part, place in parts.items() if (place / "model").is_dir()}
    config = folder / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return RunFolder(name, folder, read_rows(folder / "predictions.csv"), histories, models, settings or {})


def _parts(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*/predictions.csv")):
        if path.parent.name.startswith(_PARTS):
            yield path


def _place(folder: Path, name: str) -> tuple[int, str]:
    """Return where a run stands: as in the comparison, those that are not in it last."""
    path = folder / "comparison.json"
    order = list(json.loads(path.read_text(encoding="utf-8")).get("runs", {})) if path.is_file() else []
    return order.index(name) if name in order else len(order), name
