"""Training: scores, freezing, starting from saved weights, exact resume."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from forking import several
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import nn

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import CSVDataModule
from covidcxr.errors import ConfigError, PretrainedError, UnknownNameError
from covidcxr.evaluation import dice_score
from covidcxr.models import ClassificationModel, SegmentationModel
from covidcxr.phantom import write_dataset
from covidcxr.tasks import ClassificationTask, SegmentationTask, SingleTask, Task
from covidcxr.tasks.base import SingleTaskSettings, TaskSettings
from covidcxr.tasks.segmentation import mask_scores

SIZE = (64, 64)
MASKS = ("lung_field", "lung")
ENCODER = {"encoder": "tu-mobilenetv3_small_050", "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}

PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("phantoms"), 24, seed=3, size=(96, 96)).parent


def data(folder: Path, **settings: Any) -> CSVDataModule:
    masks = {name: name for name in MASKS}
    return CSVDataModule(folder, **{"image_size": SIZE, "batch_size": 4, "mask_columns": masks, **settings})


def segmenter(**settings: Any) -> ModelConfig:
    preprocess = PreprocessConfig(image_size=SIZE, **settings)
    return ModelConfig("segmentation", "smp:fpn", MASKS, "multilabel", dict(ENCODER), preprocess)


def classifier(classes: tuple[str, ...] = ("covid19", "normal", "pneumonia"), **settings: Any) -> ModelConfig:
    mode = settings.pop("mode", "multiclass")
    preprocess = PreprocessConfig(image_size=SIZE, **settings)
    return ModelConfig("classification", "timm:mobilenetv3_small_050", classes, mode, {}, preprocess)


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{"max_epochs": 1, "enable_checkpointing": False, **quiet, **settings})


def test_segmentation_trains_and_scores_every_image(phantoms: Path, tmp_path: Path) -> None:
    images = data(phantoms, mask_classes=MASKS)
    task = SegmentationTask(segmenter(), lr=1e-3)
    before = {name: tensor.clone() for name, tensor in task.model.network.named_parameters()}
    run = trainer(tmp_path)
    run.fit(task, images)
    assert any(not torch.equal(before[name], tensor) for name, tensor in task.model.network.named_parameters())
    assert {"train/loss", "val/loss", "val/dice", "val/dice_lung", "val/iou_lung_field"} <= set(run.callback_metrics)
    run.test(task, images, verbose=False)
    assert sorted(row["image_id"] for row in task.rows) == sorted(r.image_id for r in images.test_dataset.records)
    assert run.callback_metrics["test/dice_lung"].item() == pytest.approx(
        np.mean([row["dice_lung"] for row in task.rows]), abs=1e-5
    )


def test_unknown_mask_classes_are_left_out_of_loss_and_scores(phantoms: Path, tmp_path: Path) -> None:
    columns = {"lung_field": {"column": "lung_field", "where": {"source": ["phantom-a"]}}, "lung": "lung"}
    images = data(phantoms, mask_classes=MASKS, mask_columns=columns)
    task = SegmentationTask(segmenter())
    run = trainer(tmp_path)
    run.fit(task, images)
    assert torch.isfinite(run.callback_metrics["train/loss"])
    run.test(task, images, verbose=False)
    for row in task.rows:
        assert np.isnan(row["dice_lung_field"]) == (row["source"] != "phantom-a")
        assert not np.isnan(row["dice_lung"])


def test_mask_scores_agree_with_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 20, 20, generator=generator)
    target = (torch.rand(3, 2, 20, 20, generator=generator) > 0.6).float()
    target[0, 0], target[1, 1] = 0, torch.nan
    logits[0, 0] = -5
    scores = mask_scores(logits, target, (0.5, 0.3))
    drawn = logits.sigmoid().numpy() >= np.array([0.5, 0.3])[:, None, None]
    for image, plane in np.ndindex(3, 2):
        truth = target[image, plane].numpy()
        given = scores["dice"][image, plane].item()
        if np.isnan(truth).any():
            assert all(np.isnan(values[image, plane].item()) for values in scores.values())
        else:
            assert given == pytest.approx(dice_score(drawn[image, plane], truth == 1), abs=1e-6)
    assert scores["dice"][0, 0] == scores["iou"][0, 0] == 1
    assert scores["precision"][0, 0].isnan()  # both masks are empty
    assert scores["recall"][0, 0].isnan()
    hits = (drawn[2, 0] & (target[2, 0].numpy() == 1)).sum()
    assert scores["precision"][2, 0].item() == pytest.approx(hits / drawn[2, 0].sum())
    assert scores["recall"][2, 0].item() == pytest.approx(hits / target[2, 0].sum().item())


@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_classification_trains_and_scores(phantoms: Path, tmp_path: Path, mode: str) -> None:
    classes = ("normal", "covid19") if mode == "binary" else ("covid19", "normal", "pneumonia")
    settings = {"label_map": {"pneumonia": None}} if mode == "binary" else {}
    images = data(phantoms, classes=classes, **settings)
    task = ClassificationTask(classifier(classes, mode=mode))
    run = trainer(tmp_path)
    run.fit(task, images)
    assert {"train/loss", "val/loss", "val/accuracy"} <= set(run.callback_metrics)
    run.test(task, images, verbose=False)
    assert {"test/loss", "test/accuracy", "test/balanced_accuracy", "test/f1"} <= set(run.callback_metrics)
    assert len(task.rows) == len(images.test_dataset)
    for row in task.rows:
        assert sum(row[f"probability_{name}"] for name in classes) == pytest.approx(1, abs=1e-5)
    right = [max(classes, key=lambda name: row[f"probability_{name}"]) == row["label"] for row in task.rows]
    assert run.callback_metrics["test/accuracy"].item() == pytest.approx(np.mean(right))


def test_a_region_reaches_the_model_in_training(phantoms: Path, tmp_path: Path) -> None:
    images = data(phantoms, region="lungs", lung_dilation=0.05)
    task = ClassificationTask(classifier(region="lungs", lung_dilation=0.05))
    trainer(tmp_path, fast_dev_run=True).fit(task, images)
    batch = next(iter(images.val_dataloader()))
    sample = task.model.preprocess(batch["image"], batch["lung_mask"])
    blackened = (0 - task.model.mean[0]) / task.model.std[0]
    assert torch.allclose(sample[..., 0, :], blackened.expand_as(sample[..., 0, :]))


@pytest.mark.parametrize(
    ("model", "settings", "word"),
    [
        (classifier(("covid19", "normal")), {}, "classes"),
        (classifier(("normal", "covid19", "pneumonia")), {}, "same order"),
        (classifier(), {"image_size": (32, 64)}, "image_size"),
        (classifier(), {"fit": "stretch"}, "fit"),
    ],
)
def test_model_and_data_that_do_not_fit_fail_before_training(
    phantoms: Path, tmp_path: Path, model: ModelConfig, settings: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        trainer(tmp_path).fit(ClassificationTask(model), data(phantoms, **settings))


def test_segmentation_without_masks_says_what_to_do(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mask_classes"):
        trainer(tmp_path).fit(SegmentationTask(segmenter()), data(phantoms))


@pytest.mark.parametrize(
    ("settings", "error", "word"),
    [
        ({"loss": "cross_entropi"}, UnknownNameError, "cross_entropy"),
        ({"optimizer": "adamv"}, UnknownNameError, "adam"),
        ({"optimizer_args": {"beta": 1}}, ConfigError, "beta"),
        ({"init_from": "no-such-folder"}, PretrainedError, "no-such-folder"),
        ({"pretrained_backbone": "no-such.safetensors"}, PretrainedError, "no-such.safetensors"),
    ],
)
def test_wrong_settings_fail_at_once(settings: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        ClassificationTask(classifier(), **settings)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "plateau"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
def test_optimisers_and_schedules(phantoms: Path, tmp_path: Path, optimizer: Any, schedule: Any) -> None:
    warmup = 0.0 if schedule == "plateau" else 0.5
    task = ClassificationTask(classifier(), optimizer=optimizer, schedule=schedule, warmup=warmup, lr=1e-4)
    trainer(tmp_path, limit_train_batches=2, limit_val_batches=1).fit(task, data(phantoms))
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())


def test_biases_and_norms_get_no_weight_decay() -> None:
    from covidcxr.tasks.objective import build_optimizer

    groups = build_optimizer(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), "adamw", 1e-3, 0.1, None).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 1), (0.0, 3)]


def test_a_frozen_backbone_does_not_move_and_keeps_its_statistics(phantoms: Path, tmp_path: Path) -> None:
    task = ClassificationTask(classifier(), freeze_backbone=True, lr=0.1)
    before = {name: tensor.clone() for name, tensor in task.model.network.state_dict().items()}
    trainer(tmp_path).fit(task, data(phantoms))
    moved = {n for n, tensor in task.model.network.state_dict().items() if not torch.equal(before[n], tensor)}
    assert moved == {"classifier.weight", "classifier.bias"}


def fitted(folder: Path, phantoms: Path, **settings: Any) -> SegmentationTask:
    torch.manual_seed(0)
    task = SegmentationTask(segmenter(), lr=0.01, **settings)
    trainer(folder).fit(task, data(phantoms, mask_classes=MASKS))
    return task


def test_channels_last_trains_the_same(phantoms: Path, tmp_path: Path) -> None:
    plain, fast = fitted(tmp_path / "a", phantoms), fitted(tmp_path / "b", phantoms, channels_last=True)
    kernel = next(p for p in fast.model.network.parameters() if p.ndim == 4 and min(p.shape) > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    for own, other in zip(plain.model.network.parameters(), fast.model.network.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=2e-3, rtol=0)
    image = torch.rand(1, 1, 64, 64)
    saved = SegmentationModel.from_pretrained(fast.save_pretrained(tmp_path / "model"))
    torch.testing.assert_close(saved.predict(image), fast.model.predict(image))


@pytest.mark.slow  # compiles by the C++ compiler of the machine
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_and_is_saved_as_any_other(phantoms: Path, tmp_path: Path) -> None:
    config = ModelConfig(
        "classification", "cnn19", ("covid19", "normal", "pneumonia"), preprocess={"image_size": (32, 32)}
    )
    task = ClassificationTask(config, lr=0.01, compile=True)
    before = {name: tensor.clone() for name, tensor in task.model.network.state_dict().items()}
    trainer(tmp_path, limit_train_batches=2, limit_val_batches=1).fit(task, data(phantoms, image_size=(32, 32)))
    after = task.model.network.state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    image = torch.rand(1, 1, 50, 70)
    saved = ClassificationModel.from_pretrained(task.save_pretrained(tmp_path / "model"))
    torch.testing.assert_close(saved.predict(image), task.model.predict(image), atol=1e-4, rtol=0)


def test_init_from_takes_all_weights_or_all_but_the_answer(tmp_path: Path) -> None:
    saved = ClassificationModel(classifier())
    saved.save_pretrained(tmp_path)
    same = ClassificationTask(classifier(), init_from=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(same.model.parameters(), saved.parameters(), strict=True))
    other = ClassificationTask(classifier(("sick", "well")), init_from=tmp_path)
    assert torch.equal(other.model.network.conv_stem.weight, saved.network.conv_stem.weight)
    assert other.model.network.classifier.weight.shape[0] == 2
    permuted = ClassificationTask(classifier(("normal", "covid19", "pneumonia")), init_from=tmp_path)
    assert torch.equal(permuted.model.network.conv_stem.weight, saved.network.conv_stem.weight)
    assert not torch.equal(permuted.model.network.classifier.weight, saved.network.classifier.weight)
    bigger = ModelConfig("classification", "timm:mobilenetv3_small_075", saved.config.classes)
    with pytest.raises(ConfigError, match="same network"):
        ClassificationTask(bigger, init_from=tmp_path)
    with pytest.raises(ConfigError, match="same network"):
        SegmentationTask(segmenter(), init_from=tmp_path)


def test_a_classifier_starts_from_a_segmenters_encoder(tmp_path: Path) -> None:
    saved = SegmentationModel(segmenter())
    saved.save_pretrained(tmp_path)
    task = ClassificationTask(classifier(), init_from=tmp_path)
    own, given = task.model.network.state_dict(), saved.network.state_dict()
    copied = [name for name in own if f"encoder.model.{name}" in given]
    assert len(copied) == sum(name.startswith("encoder.") for name in given) > 100
    assert all(torch.equal(own[name], given[f"encoder.model.{name}"]) for name in copied)
    other = ModelConfig("classification", "timm:mobilenetv3_small_075", ("sick", "well"))
    with pytest.raises(ConfigError, match="encoder"):
        ClassificationTask(other, init_from=tmp_path)


def test_a_checkpoint_loads_without_its_first_weights(phantoms: Path, tmp_path: Path) -> None:
    saved = ClassificationModel(classifier()).save_pretrained(tmp_path / "saved")
    task = ClassificationTask(classifier(), init_from=saved, loss="focal", loss_args={"gamma": 1.0})
    run = trainer(tmp_path, fast_dev_run=True)
    run.fit(task, data(phantoms))
    run.strategy._lightning_module = task
    run.save_checkpoint(tmp_path / "last.ckpt")
    (saved / "config.json").unlink()  # init_from is not needed any more
    again = ClassificationTask.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), again.parameters(), strict=True))
    assert again.hparams["loss"] == "focal"
    reloaded = ClassificationModel.from_pretrained(again.save_pretrained(tmp_path / "model"))
    image = torch.rand(1, 1, 50, 70)
    assert torch.equal(reloaded.predict(image), task.model.predict(image))


def test_a_loss_may_be_given_as_a_module(phantoms: Path, tmp_path: Path) -> None:
    class Squared(nn.Module):
        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (logits.sigmoid() - target).square().mean()

    task = SegmentationTask(segmenter(), loss=Squared())
    run = trainer(tmp_path, enable_checkpointing=True, limit_train_batches=2)
    run.fit(task, data(phantoms, mask_classes=MASKS))
    run.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(UnknownNameError, match="Squared instance"):
        SegmentationTask.load_from_checkpoint(tmp_path / "own.ckpt")
    SegmentationTask.load_from_checkpoint(tmp_path / "own.ckpt", loss=Squared())


class StopAt(Callback):
    """Kills the process, or raises, once so many steps are done."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt("stopped by the test")


def run_training(phantoms: Path, folder: Path, *, workers: int, stop: Callback | None, resume: bool) -> dict[str, Any]:
    """Train three epochs of a classifier with dropout and augmentation, with a checkpoint after every step."""
    torch.manual_seed(0)
    model = classifier()
    model.network_args["drop_rate"] = 0.3
    task = ClassificationTask(model, lr=1e-3)
    keeper = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    steps = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    run = trainer(folder, max_epochs=3, enable_checkpointing=True, callbacks=[keeper, *([stop] if stop else [])])
    images = data(phantoms, num_workers=workers, augment="strong")
    run.fit(task, images, ckpt_path=steps[-1] if resume else None)
    return task.model.network.state_dict()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)])
def test_resume_is_bit_for_bit(phantoms: Path, tmp_path: Path, workers: int, step: int) -> None:
    whole = run_training(phantoms, tmp_path / "whole", workers=workers, stop=None, resume=False)
    (tmp_path / "parts").mkdir()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_training(phantoms, tmp_path / "parts", workers=workers, stop=StopAt(step), resume=False)
    parts = run_training(phantoms, tmp_path / "parts", workers=workers, stop=None, resume=True)
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


@pytest.mark.slow
def test_resume_after_kill_9_is_bit_for_bit(phantoms: Path, tmp_path: Path) -> None:
    whole = run_training(phantoms, tmp_path / "whole", workers=0, stop=None, resume=False)
    (tmp_path / "killed").mkdir()
    code = (
        f"import sys; from pathlib import Path; sys.path[:0] = {PATHS!r}\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_tasks import StopAt, run_training\n"
        f"run_training(Path({str(phantoms)!r}), Path({str(tmp_path / 'killed')!r}), workers=0, "
        "stop=StopAt(5, kill=True), resume=False)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = run_training(phantoms, tmp_path / "killed", workers=0, stop=None, resume=True)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_the_same_seed_gives_the_same_bits_for_any_number_of_workers(phantoms: Path, tmp_path: Path) -> None:
    runs = [run_training(phantoms, tmp_path / str(n), workers=n, stop=None, resume=False) for n in (0, 0, 2)]
    for other in runs[1:]:
        assert [name for name in runs[0] if not torch.equal(runs[0][name], other[name])] == []


def test_lightning_finds_the_batch_size_that_fits(phantoms: Path, tmp_path: Path) -> None:
    images = data(phantoms)
    assert images.batch_size == 4
    tuner = Tuner(trainer(tmp_path, limit_val_batches=0))
    found = tuner.scale_batch_size(ClassificationTask(classifier()), datamodule=images, init_val=4, max_trials=2)
    assert found == images.batch_size == 8


@pytest.mark.slow
def test_two_processes_score_every_test_image_once(phantoms: Path, tmp_path: Path) -> None:
    images = data(phantoms, mask_classes=MASKS)
    task = SegmentationTask(segmenter())
    run = trainer(tmp_path, **several(2), max_epochs=1)
    run.fit(task, images)
    single = trainer(tmp_path)
    single.test(task, images, verbose=False)
    ids = sorted(record.image_id for record in images.test_dataset.records)
    assert sorted(row["image_id"] for row in task.rows) == ids


def test_a_saved_model_is_the_trained_one(phantoms: Path, tmp_path: Path) -> None:
    task = SegmentationTask(segmenter())
    trainer(tmp_path, fast_dev_run=True).fit(task, data(phantoms, mask_classes=MASKS))
    model = SegmentationModel.from_pretrained(task.save_pretrained(tmp_path / "model"))
    image = torch.rand(2, 1, 80, 60)
    assert torch.equal(model.predict(image), task.model.predict(image))


def test_findings_are_trained_on_exclusive_classes_too(phantoms: Path, tmp_path: Path) -> None:
    task = ClassificationTask(classifier(mode="multilabel"))
    images = data(phantoms)
    run = trainer(tmp_path)
    run.fit(task, images)
    run.test(task, images, verbose=False)
    assert {"label_covid19", "label_normal", "probability_pneumonia"} <= set(task.rows[0])
    assert sum(task.rows[0][f"label_{name}"] for name in images.classes) == 1


@pytest.mark.parametrize(("settings", "owner"), [(TaskSettings, Task), (SingleTaskSettings, SingleTask)])
def test_the_types_of_keyword_arguments_are_those_of_the_constructor(settings: Any, owner: Any) -> None:
    named = [*inspect.signature(Task.__init__).parameters, *inspect.signature(owner.__init__).parameters]
    assert set(get_type_hints(settings)) == set(named) - {"self", "model", "loss", "settings"}
