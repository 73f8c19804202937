"""`PredictionWriter`: one table of `Trainer.predict`, each image once, from one process or several."""

from __future__ import annotations

import csv
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from forking import several
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import CSVDataModule
from covidcxr.errors import ConfigError
from covidcxr.io import read_mask
from covidcxr.phantom import write_dataset
from covidcxr.tasks import ClassificationTask, MultiTask, PredictionWriter, SegmentationTask, Task

CLASSES = ("covid19", "normal", "pneumonia")
SETTINGS = PreprocessConfig(image_size=(64, 64))
ENCODER = {"encoder": "tu-test_resnet", "decoder_pyramid_channels": 32, "decoder_dropout": 0.0}
LABELS = ModelConfig("classification", "timm:test_resnet", CLASSES, preprocess=SETTINGS)
MASKS = ModelConfig(
    "segmentation", "smp:fpn", ("lung",), "multilabel", dict(ENCODER), SETTINGS, thresholds={"lung": 0.4}
)
TASKS = {
    "labels": lambda: ClassificationTask(LABELS),
    "masks": lambda: SegmentationTask(MASKS),
    "both": lambda: MultiTask(MASKS, LABELS),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CSVDataModule:
    """Seven images, which do not come out even; one has neither label nor mask."""
    table = write_dataset(tmp_path_factory.mktemp("seven"), 7, seed=3, size=(64, 64))
    lines = read_csv(table)
    lines[2] |= {"label": "", "lung": ""}
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    columns: dict[str, Any] = {"mask_columns": {"lung": "lung"}, "mask_classes": ("lung",), "classes": CLASSES}
    return CSVDataModule(table.parent, batch_size=2, predict_split="all", **columns)


def predict(task: Task, data: CSVDataModule, writer: PredictionWriter, processes: int = 1, **settings: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[writer], enable_checkpointing=False, **{**quiet, **several(processes)})
    return trainer.predict(task, data, **settings)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", TASKS)
def test_the_table_holds_what_predict_gives(data: CSVDataModule, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    task = TASKS[kind]()
    batches = predict(task, data, PredictionWriter(tmp_path / "csv"))
    predict(task, data, PredictionWriter(tmp_path / "parquet", format="parquet"), return_predictions=False)
    given = [row for batch in batches for row in batch]
    lines = read_csv(tmp_path / "csv" / "predictions.csv")
    rows = pyarrow.parquet.read_table(tmp_path / "parquet" / "predictions.parquet").to_pylist()
    assert [row["image_id"] for row in given] == [record.image_id for record in data.predict_dataset.records]
    assert len(given) == len(lines) == len(rows) == 7
    for mine, line, row in zip(given, lines, rows, strict=True):
        assert mine["image_id"] == line["image_id"] == row["image_id"]
        assert mine["patient_id"] == line["patient_id"] == row["patient_id"]
        for name in CLASSES if kind != "masks" else ():
            assert mine[f"probability_{name}"] == float(line[f"probability_{name}"]) == row[f"probability_{name}"]
        if kind != "labels":
            mask = (mine["probability_lung"] >= 0.4).numpy()
            assert (read_mask(tmp_path / "csv" / "masks" / f"{mine['image_id']}.lung.png") == mask).all()
            assert (np.asarray(Image.open(BytesIO(row["mask_lung"]))) == mask).all()
            assert float(line["fraction_lung"]) == row["fraction_lung"] == mask.mean()
    assert {path.name for path in (tmp_path / "parquet").iterdir()} == {"predictions.parquet"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_two_processes_write_each_image_once_and_in_order(data: CSVDataModule, tmp_path: Path, form: Any) -> None:
    torch.manual_seed(0)
    task = TASKS["both"]()
    tables = []
    for processes in (1, 2):
        writer = PredictionWriter(tmp_path / str(processes), format=form)
        predict(task, data, writer, processes, return_predictions=False)
        tables.append(read_csv(writer.table) if form == "csv" else pyarrow.parquet.read_table(writer.table).to_pylist())
    assert [row["image_id"] for row in tables[0]] == [row["image_id"] for row in tables[1]]
    assert len({row["image_id"] for row in tables[1]}) == len(tables[1]) == 7
    for one, two in zip(*tables, strict=True):
        assert float(one["probability_normal"]) == pytest.approx(float(two["probability_normal"]), abs=1e-5)
    names = [sorted(path.name for path in (tmp_path / count).rglob("*.png")) for count in "12"]
    assert names[0] == names[1]
    assert not list((tmp_path / "2").glob(".rows*"))


def test_rows_of_a_run_that_was_stopped_do_not_come_twice(data: CSVDataModule, tmp_path: Path) -> None:
    (tmp_path / ".rows-0-0.jsonl").write_text('{"image_id": "old"}\n')
    (tmp_path / ".rows-0-5.jsonl").write_text('{"image_id": "old"}\n')
    predict(TASKS["labels"](), data, PredictionWriter(tmp_path))
    assert len(read_csv(tmp_path / "predictions.csv")) == 7
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv"}


def test_faults(data: CSVDataModule, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format must be"):
        PredictionWriter(tmp_path, format="xml")  # type: ignore[arg-type]

    class Foreign(LightningModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return []

    with pytest.raises(ConfigError, match="not of Foreign"):
        predict(Foreign(), data, PredictionWriter(tmp_path))  # type: ignore[arg-type]
