"""Several processes give what one gives: scores, rows and weights, with uneven lengths and labels in part."""

from __future__ import annotations

import csv
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import several
from lightning.pytorch import Trainer
from torch import nn

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import CSVDataModule
from covidcxr.phantom import write_dataset
from covidcxr.tasks import ClassificationTask, MultiTask, SegmentationTask, Task
from covidcxr.tasks.processes import share_losses

pytestmark = pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")  # we count each once

CLASSES = ("covid19", "normal", "pneumonia")
SETTINGS = PreprocessConfig(image_size=(64, 64))
NETWORK = "timm:test_resnet"
ENCODER = {"encoder": "tu-test_resnet", "decoder_pyramid_channels": 32, "decoder_dropout": 0.0}


def classifier(**settings: Any) -> ClassificationTask:
    return ClassificationTask(ModelConfig("classification", NETWORK, CLASSES, preprocess=SETTINGS), **settings)


def segmenter(**settings: Any) -> SegmentationTask:
    """With a loss that is a mean over masks: a Dice over a batch is another in each process."""
    masks = ModelConfig("segmentation", "smp:fpn", ("lung",), "multilabel", dict(ENCODER), SETTINGS)
    return SegmentationTask(masks, loss="bce", **settings)


def both(**settings: Any) -> MultiTask:
    masks = ModelConfig("segmentation", "smp:fpn", ("lung",), "multilabel", dict(ENCODER), SETTINGS)
    labels = ModelConfig("classification", NETWORK, CLASSES, preprocess=SETTINGS)
    return MultiTask(masks, labels, losses={"segmentation": "bce"}, **settings)


TASKS = {"classifier": classifier, "segmenter": segmenter, "both": both}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 images: 13 to train on, 9 to validate, 4 to test; some without a label, some without a mask."""
    table = write_dataset(tmp_path_factory.mktemp("uneven"), 26, seed=3, size=(64, 64))
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["split"] = "train" if number < 13 else "val" if number < 22 else "test"
        row["patient_id"] = f"p{number}"
        row["label"] = "" if number in (0, 1, 2, 3, 15, 17) else row["label"]
        row["lung"] = "" if number in (4, 5, 14, 21) else row["lung"]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table.parent


def images(folder: Path, **settings: Any) -> CSVDataModule:
    columns = {"split_column": "split", "mask_columns": {"lung": "lung"}, "mask_classes": ("lung",), "augment": None}
    return CSVDataModule(folder, **{**columns, "batch_size": 2, "classes": CLASSES, **settings})


def trainer(folder: Path, processes: int, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    plain = {"max_epochs": 1, "enable_checkpointing": False, "default_root_dir": folder}
    return Trainer(**{**quiet, **plain, **several(processes), **settings})


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_two_processes_score_as_one(folder: Path, tmp_path: Path, kind: str, stage: str) -> None:
    """Nine validation images on two processes: the sampler repeats one, which must not count twice."""
    torch.manual_seed(0)
    task, data = TASKS[kind](), images(folder)
    logged, rows = {}, {}
    for processes in (1, 2):
        run = trainer(tmp_path, processes)
        getattr(run, stage)(task, data, verbose=False)
        logged[processes] = {name: value.item() for name, value in run.callback_metrics.items()}
        rows[processes] = task.rows
    assert logged[1].keys() == logged[2].keys()
    for name, value in logged[1].items():
        assert logged[2][name] == pytest.approx(value, abs=0.02 if name.endswith("/loss") else 1e-6, nan_ok=True), name
    assert [row["image_id"] for row in rows[1]] == [row["image_id"] for row in rows[2]]
    known = {"classifier": 7, "segmenter": 7, "both": 9} if stage == "validate" else dict.fromkeys(TASKS, 4)
    assert len(rows[2]) == known[kind]
    for one, two in zip(rows[1], rows[2], strict=True):
        assert one == pytest.approx(two, abs=1e-5, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_train_as_one_with_labels_in_part(folder: Path, tmp_path: Path, kind: str) -> None:
    """The same images a step, of which one process knows more labels than the other, and sometimes none."""
    weights = []
    for processes in (1, 2):
        torch.manual_seed(0)
        task = TASKS[kind](freeze_backbone=True, optimizer="sgd", lr=0.1, schedule="constant")
        run = trainer(tmp_path, processes, max_epochs=2)
        run.fit(task, images(folder, batch_size=4 // processes))
        weights.append({name: tensor for name, tensor in task.named_parameters() if tensor.requires_grad})
    assert any(tensor.ndim > 1 for tensor in weights[0].values())
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_a_process_without_any_label_waits_for_nobody(folder: Path, tmp_path: Path, kind: str) -> None:
    """Batches of one image, of which many are not labelled, and a validation part with one labelled image."""
    data = images(folder, batch_size=1)
    hidden = {f"p{number}" for number in range(14, 22)}
    changed = [
        replace(record, label=None, mask_paths={}) if record.patient_id in hidden else record for record in data.records
    ]
    data.records = changed
    task = TASKS[kind]()
    run = trainer(tmp_path, 2)
    run.fit(task, data)
    run = trainer(tmp_path, 2)
    run.validate(task, data, verbose=False)
    assert len(task.rows) == 1
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())


def test_losses_count_what_is_known() -> None:
    """Three known images here and one elsewhere: the gradients' mean is that of the mean over four."""
    weight = nn.Parameter(torch.tensor(2.0))
    here, elsewhere = 3 * weight, 7 * weight
    totals = torch.tensor([[here.item() * 3 + elsewhere.item(), 4.0]])
    gradients = []
    for loss, known in ((here, 3), (elsewhere, 1)):
        shared = share_losses({"model": (loss, known)}, [weight], 2, lambda _: totals)["model"]
        assert shared.item() == pytest.approx((6 * 3 + 14) / 4)
        gradients.append(torch.autograd.grad(shared, weight)[0].item())
    assert sum(gradients) / 2 == pytest.approx((3 * 3 + 7) / 4)


def test_a_process_that_knows_nothing_takes_part() -> None:
    weight, other = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))
    totals = torch.tensor([[10.0, 2.0], [0.0, 0.0]])
    losses = share_losses({"a": (None, 0), "b": (None, 0)}, [weight, other], 2, lambda _: totals)
    assert {name: loss.item() for name, loss in losses.items()} == {"a": 5.0}
    gradients = torch.autograd.grad(losses["a"], [weight, other])
    assert [gradient.abs().sum().item() for gradient in gradients] == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "plateau"])
def test_what_travels_to_a_process_pickles(folder: Path, tmp_path: Path, schedule: Any) -> None:
    """After a training, the task with its optimiser and its schedule."""
    warmup = 0.0 if schedule == "plateau" else 0.5
    task = classifier(schedule=schedule, warmup=warmup)
    run = trainer(tmp_path, 1, limit_train_batches=2, limit_val_batches=1)
    run.fit(task, images(folder))
    again = pickle.loads(pickle.dumps((task, run.optimizers, [each.scheduler for each in run.lr_scheduler_configs])))
    assert isinstance(again[0], Task)
    assert all(torch.equal(a, b) for a, b in zip(again[0].parameters(), task.parameters(), strict=True))
