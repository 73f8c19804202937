"""Training from the command line by several processes, however they are started."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import shard_model
import torch
import yaml
from safetensors.torch import load_file

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
        ("both", COVIDCXR, "ddp_spawn"),
    ],
    ids=["ddp", "torchrun", "spawn"],
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


class Training:
    """A training by two processes that is killed in parts."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.last = folder, folder / "model" / "checkpoints" / "last.ckpt"
        words = ["fit", "--config", str(config), "--out", "model", "--ckpt_path", "last", *SEVERAL, "ddp"]
        self.begun = self.last.stat().st_mtime_ns if self.last.exists() else 0
        self.log = folder / f"log-{self.begun}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*COVIDCXR, *words], cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    def wait_for_an_epoch(self) -> list[int]:
        """Return the ids of both processes when an epoch of this training is saved."""
        until = time.monotonic() + 120
        while not self.last.exists() or self.last.stat().st_mtime_ns == self.begun:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.01)
        first = self.process.pid
        return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]

    def end(self, code: int | None = None) -> str:
        """Return what both said; neither may still be there."""
        self.process.wait(120)
        assert code in (None, self.process.returncode), self.log.read_text()
        return self.log.read_text()


def is_running(process: int) -> bool:
    """Return whether there is such a process, and not only its exit code that nobody has asked for."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes by /proc, as on Linux")
def test_a_process_that_is_killed_ends_the_others_and_the_same_command_resumes(images: Path, tmp_path: Path) -> None:
    """With one message and no traceback, whichever of them is killed; no epoch is trained twice."""
    config = write_config(tmp_path, images, "classifier")
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["max_epochs"] = 16
    write_yaml(config, settings)
    for victim in (1, 0):
        training = Training(tmp_path, config)
        processes = training.wait_for_an_epoch()
        assert len(processes) == 2
        os.kill(processes[victim], signal.SIGKILL)
        training.end()
        until = time.monotonic() + 60
        while is_running(processes[1]):
            assert time.monotonic() < until, "the other process goes on alone"
            time.sleep(0.05)
        output = training.log.read_text()
        assert training.process.returncode, "no success"
        assert output.count("Another of the 2 processes") + output.count("Forcefully terminating") == 1, output
        assert "Traceback" not in output
        assert not (tmp_path / "model" / "history.json").exists()
    resumed = Training(tmp_path, config)
    assert "Restored all states" in resumed.end(0)
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == list(range(16))


@pytest.mark.slow
def test_a_model_that_is_split_over_processes_learns_the_same(tmp_path: Path) -> None:
    """FSDP2 on two CPU processes, each with half of the weights and of the batch."""
    script = Path(shard_model.__file__)
    run(tmp_path, "weights.safetensors", prefix=[*TORCHRUN[:-2], str(script)])
    split = load_file(tmp_path / "weights.safetensors")
    held = int(split.pop("held"))
    model = shard_model.make_model()
    start = {name: each.clone() for name, each in model.named_parameters()}
    shard_model.train(model, shard_model.IMAGES, shard_model.LABELS)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(split[name], weight.detach(), rtol=1e-4, atol=1e-6)
    assert any((split[name] - weight).abs().max() > 1e-3 for name, weight in start.items()), "nothing was learnt"
    assert held < 0.6 * sum(weight.numel() for weight in start.values())


def test_fsdp_on_the_cpu_is_refused_in_one_line(images: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path, images, "classifier").read_text())
    config["trainer"] |= {"devices": 2, "strategy": "fsdp"}
    with pytest.raises(ConfigError, match=r"fsdp.*requires a GPU"):
        training.fit(config)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_last_goes_on_where_the_training_of_its_folder_stopped(images: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path, images, "classifier").read_text())
    config |= {"output": str(tmp_path / "model"), "ckpt_path": "last"}
    config["trainer"]["max_epochs"] = 1
    first = training.fit(config)
    assert (tmp_path / "model" / "checkpoints" / "last.ckpt").is_file()
    config["trainer"]["max_epochs"] = 2
    second = training.fit(config)
    assert second.trainer.global_step == 2 * first.trainer.global_step
    assert [entry["epoch"] for entry in json.loads((tmp_path / "model" / "history.json").read_text())] == [0, 1]
    with pytest.raises(ConfigError, match="name it by --out"):
        training.fit(config | {"output": None})


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
