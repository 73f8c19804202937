"""Tasks on loaders that are not ours: what is missing is said before the first step, and rows have ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.tasks import ClassificationTask, MultiTask, SegmentationTask, Task

CLASSES = ("covid19", "normal", "pneumonia")
SETTINGS = PreprocessConfig(image_size=(64, 64))
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def classifier(mode: Any = "multiclass") -> ClassificationTask:
    return ClassificationTask(ModelConfig("classification", "timm:test_resnet", CLASSES, mode, preprocess=SETTINGS))


def masks() -> ModelConfig:
    return ModelConfig("segmentation", "smp:fpn", ("lung",), "multilabel", {"encoder": "tu-test_resnet"}, SETTINGS)


def images(count: int = 6, **changes: Any) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    plain = [
        {
            "image": torch.rand(1, 64, 64, generator=generator),
            "label": number % 3,
            "mask": (torch.rand(1, 64, 64, generator=generator) > 0.5).float(),
        }
        for number in range(count)
    ]
    return [{key: value for key, value in (image | changes).items() if value is not None} for image in plain]


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, max_epochs=1, enable_checkpointing=False, **quiet, **settings)


@pytest.mark.parametrize(
    ("task", "scores"),
    [
        (classifier, {"label", "probability_normal"}),
        (lambda: SegmentationTask(masks()), {"dice_lung"}),
        (lambda: MultiTask(masks(), classifier().model.config), {"label", "dice_lung"}),
    ],
    ids=["classifier", "segmenter", "both"],
)
def test_a_plain_loader_is_trained_scored_and_predicted(task: Any, scores: set[str], tmp_path: Path) -> None:
    task, loader = task(), DataLoader(images(), batch_size=4)  # type: ignore[arg-type]
    run = trainer(tmp_path)
    run.fit(task, loader, loader)
    for stage in (run.validate, run.test):
        stage(task, loader, verbose=False)
        assert [row["image_id"] for row in task.rows] == [f"image-{number}" for number in range(6)]
        assert all(row["patient_id"] == row["image_id"] and row["source"] == "unknown" for row in task.rows)
        assert scores <= set(task.rows[0])
    rows = [row for batch in run.predict(task, loader) or [] for row in batch]
    assert [row["image_id"] for row in rows] == [f"image-{number}" for number in range(6)]
    for name, shape in (("normal", None), ("lung", (64, 64))):
        for row in rows:
            value = row.get(f"probability_{name}")
            assert value is None or (isinstance(value, float) if shape is None else value.shape == shape)


def test_given_names_are_kept(tmp_path: Path) -> None:
    named = [{**image, "image_id": f"x{number}", "patient_id": 7} for number, image in enumerate(images())]
    task = classifier()
    trainer(tmp_path).test(task, DataLoader(named, batch_size=4), verbose=False)  # type: ignore[arg-type]
    assert [(row["image_id"], row["patient_id"]) for row in task.rows] == [(f"x{number}", "7") for number in range(6)]


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (classifier, [(torch.rand(1, 64, 64), 0)] * 4, "type list.*mappings"),
        (classifier, [{"pixels": torch.rand(1, 64, 64), "label": 0}] * 4, 'no tensor "image"'),
        (classifier, images(label=None), 'no tensor "label".*from 0 to 2'),
        (classifier, images(label=3), "from 0 to 2"),
        (classifier, images(label=torch.tensor([1.0, 0.0, 0.0])), "Labels must be integers"),
        (lambda: classifier("multilabel"), images(label=torch.tensor([1.0, 0.5, 2.0])), "1, 0 or NaN"),
        (classifier, images(image=torch.rand(3, 64, 64)), r"\[batch, 1, height, width\]"),
        (classifier, images(image=torch.randint(0, 255, (1, 64, 64))), "floating-point"),
        (classifier, images(image=torch.full((1, 64, 64), 255.0)), r"in \[0, 1\], not \[255, 255\]"),
        (classifier, images(image=torch.full((1, 64, 64), torch.nan)), r"in \[0, 1\]"),
        (lambda: SegmentationTask(masks()), images(mask=None), "no masks"),
        (lambda: SegmentationTask(masks()), images(mask=torch.zeros(2, 64, 64)), "a plane for each of"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_what_is_wrong_is_said_before_the_first_step(
    task: Any, data: list[Any], message: str, stage: str, tmp_path: Path
) -> None:
    built: Task = task()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    loader: DataLoader[Any] = DataLoader(data, batch_size=2)
    with pytest.raises(ConfigError, match=message):
        getattr(trainer(tmp_path), stage)(built, loader)
    assert all(torch.equal(before[name], tensor) for name, tensor in built.state_dict().items())


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_a_training_without_end(schedule: Any, warmup: float, tmp_path: Path) -> None:
    """A schedule that needs the end says so before the first step; a constant one trains until the time is up."""
    model = ModelConfig("classification", "timm:test_resnet", CLASSES, preprocess=SETTINGS)
    task = ClassificationTask(model, schedule=schedule, warmup=warmup)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = Trainer(default_root_dir=tmp_path, max_time={"seconds": 1}, enable_checkpointing=False, **quiet)
    loader: DataLoader[Any] = DataLoader(images(), batch_size=4)  # type: ignore[arg-type]
    if schedule == "constant" and not warmup:
        run.fit(task, loader)
        assert run.global_step > 0
    else:
        with pytest.raises(ConfigError, match="max_epochs or max_steps"):
            run.fit(task, loader)
        assert run.global_step == 0


def test_a_loss_given_as_a_module(tmp_path: Path) -> None:
    """It is asked for when a checkpoint is loaded; to use the model any loss will do, with weights or without."""
    config, loader = classifier().model.config, DataLoader(images(), batch_size=4)  # type: ignore[arg-type, var-annotated]
    task = ClassificationTask(config, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])))
    run = trainer(tmp_path)
    run.fit(task, loader, loader)
    run.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(UnknownNameError, match=r"given as a module.*CrossEntropyLoss instance"):
        ClassificationTask.load_from_checkpoint(tmp_path / "own.ckpt")
    for loss in ("bce", "cross_entropy", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.ones(3))):
        again = ClassificationTask.load_from_checkpoint(tmp_path / "own.ckpt", loss=loss)
        assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), again.model.parameters(), strict=True))
        run.test(again, loader, ckpt_path=str(tmp_path / "own.ckpt"), verbose=False)
        assert len(again.rows) == 6
