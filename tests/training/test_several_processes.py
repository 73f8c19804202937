"""Training from the command line by several processes, however they are started."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from covidcxr import training
from covidcxr.errors import ConfigError
from covidcxr.phantom import write_dataset
from covidcxr.training.recipe import write_yaml

CLASSES = ["covid19", "normal", "pneumonia"]
PREPROCESS = {"image_size": [64, 64]}
LABELS = {"task": "classification", "network": "timm:test_resnet", "classes": CLASSES, "preprocess": PREPROCESS}
MASKS = {
    "task": "segmentation",
    "network": "smp:fpn",
    "classes": ["lung"],
    "mode": "multilabel",
    "network_args": {"encoder": "tu-test_resnet"},
    "preprocess": PREPROCESS,
}
TASKS: dict[str, dict[str, Any]] = {
    "classifier": {"class_path": "ClassificationTask", "init_args": {"model": LABELS}},
    "segmenter": {"class_path": "SegmentationTask", "init_args": {"model": MASKS}},
    "both": {"class_path": "MultiTask", "init_args": {"segmentation": MASKS, "classification": LABELS}},
}
COVIDCXR = [sys.executable, "-m", "covidcxr"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "covidcxr"]
SEVERAL = ["--trainer.devices", "2", "--trainer.strategy"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images: 10 to train on, 9 to validate, 4 to test; some without a label."""
    table = write_dataset(tmp_path_factory.mktemp("images"), 23, seed=5, size=(64, 64))
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["split"] = "train" if number < 10 else "val" if number < 19 else "test"
        row["patient_id"] = f"p{number}"
        row["label"] = "" if number in (1, 2, 12) else row["label"]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table.parent


def write_config(folder: Path, images: Path, kind: str) -> Path:
    arguments = {
        "root": str(images),
        "batch_size": 2,
        "split_column": "split",
        "mask_columns": {"lung": "lung"},
        "mask_classes": [] if kind == "classifier" else ["lung"],
        "classes": CLASSES,
    }
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    config = {
        "model": TASKS[kind],
        "data": {"class_path": "CSVDataModule", "init_args": arguments},
        "trainer": {"max_epochs": 2, **quiet},
    }
    return write_yaml(folder / "config.yaml", config)


def run(folder: Path, *words: str | Path, prefix: list[str] = COVIDCXR) -> str:
    done = subprocess.run(
        [*prefix, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "prefix", "strategy"),
    [
        ("classifier", COVIDCXR, "ddp"),
        ("segmenter", TORCHRUN, "ddp"),
        ("both", COVIDCXR, "ddp_fork"),
        ("classifier", COVIDCXR, "ddp_spawn"),
    ],
    ids=["ddp", "torchrun", "fork", "spawn"],
)
def test_a_training_by_two_processes_is_saved(
    kind: str, prefix: list[str], strategy: str, images: Path, tmp_path: Path
) -> None:
    """Calibrated by all labelled validation images, with the whole history, and said once."""
    config = write_config(tmp_path, images, kind)
    output = run(tmp_path, "fit", "--config", config, "--output", "model", *SEVERAL, strategy, prefix=prefix)
    assert output.count("Saved model") == 1
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [0, 1]
    if kind != "segmenter":
        assert output.count("fitted on 8 validation images") == 1
        folder = tmp_path / "model" / ("classifier" if kind == "both" else "")
        assert json.loads((folder / "config.json").read_text())["temperature"] != 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_two_processes_print_the_intervals_of_one(images: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, images, "classifier")
    training.fit(yaml.safe_load(config.read_text()) | {"output": str(tmp_path / "model")})
    words = ["validate", "--config", config, "--model.init_from", tmp_path / "model", "--output"]
    run(tmp_path, *words, "one")
    run(tmp_path, *words, "two", *SEVERAL, "ddp")
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two")]
    assert scores[0]["all"]["accuracy"]["count"] == 8
    for source, table in scores[0].items():
        for name, estimate in table.items():
            assert scores[1][source][name] == pytest.approx(estimate, abs=1e-6, nan_ok=True), (source, name)
    texts = [(tmp_path / name / "predictions.csv").read_text() for name in ("one", "two")]
    tables = [list(csv.DictReader(text.splitlines())) for text in texts]
    assert [row["image_id"] for row in tables[0]] == [row["image_id"] for row in tables[1]]


@pytest.mark.parametrize(
    ("variables", "trainer", "message"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, {}, "SLURM_NTASKS=4 .* the Trainer uses 1"),
        ({"SLURM_NTASKS": "4"}, {}, "--ntasks-per-node"),
        ({"SLURM_NTASKS": "1"}, {"devices": 2, "strategy": "ddp"}, "SLURM"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, {}, "WORLD_SIZE=2 .* the Trainer uses 1"),
    ],
)
def test_a_launchers_processes_must_be_the_trainers(
    variables: dict[str, str],
    trainer: dict[str, Any],
    message: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else each of them trains alone, into the same folder, or waits for others that never come."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = yaml.safe_load(write_config(tmp_path, images, "classifier").read_text())
    config["trainer"] |= trainer
    with pytest.raises(ConfigError, match=message):
        training.fit({**config, "output": str(tmp_path / "model")})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("variables", [{"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}])
def test_one_process_trains_in_a_job(
    variables: dict[str, str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    training.check(yaml.safe_load(write_config(tmp_path, images, "classifier").read_text()))


def test_a_logger_that_is_not_installed_is_one_line(images: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path, images, "classifier").read_text())
    logger = {"class_path": "lightning.pytorch.loggers.CometLogger", "init_args": {}}
    config["trainer"]["logger"] = logger
    with pytest.raises(ConfigError, match=r"CometLogger.*comet") as caught:
        training.check(config)
    assert "\n" not in str(caught.value)
    assert "Subtypes" not in str(caught.value)
