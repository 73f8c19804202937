"""One encoder, masks and labels: what is shared, what each image teaches, what is saved."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import write_covid_qu_ex_fake
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from covidcxr.cli.fit import train
from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import CSVDataModule
from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.evaluation import score_rows
from covidcxr.evaluation.plots import draw_run
from covidcxr.models import ClassificationModel, SegmentationModel
from covidcxr.phantom import write_dataset
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.recipes.sweep import run_recipe
from covidcxr.tasks import ClassificationTask, MultiTask, SegmentationTask
from covidcxr.training import session as training
from covidcxr.training.recipe import Recipe
from covidcxr.types import Batch

SIZE = (32, 32)
MASKS = ("lung_field", "infection")
CLASSES = ("covid19", "normal", "pneumonia")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which every third has no label, and every fourth no masks."""
    table = write_dataset(tmp_path_factory.mktemp("phantoms"), 40, seed=5, size=(64, 64))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row |= {"label": ""} if number % 3 == 2 else {}
        row |= dict.fromkeys(MASKS, "") if number % 4 == 3 else {}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table.parent


def data(folder: Path, **settings: Any) -> CSVDataModule:
    settings = {"mask_columns": {name: name for name in MASKS}, "mask_classes": MASKS, "classes": CLASSES, **settings}
    # The seed by which two patients of each class test.
    return CSVDataModule(
        folder, **{"image_size": SIZE, "batch_size": 8, "cache": "memory", "split_seed": 1, **settings}
    )


def configs(name: str = "test_resnet", network: str = "smp:fpn", **settings: Any) -> tuple[ModelConfig, ModelConfig]:
    preprocess = PreprocessConfig(image_size=settings.pop("image_size", SIZE))
    arguments = {"encoder": f"tu-{name}", **settings.pop("arguments", {})}
    return (
        ModelConfig("segmentation", network, MASKS, "multilabel", arguments, preprocess),
        ModelConfig("classification", f"timm:{name}", CLASSES, network_args=settings, preprocess=preprocess),
    )


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{"max_epochs": 1, "enable_checkpointing": False, **quiet, **settings})


def batch(known_labels: bool = True, known_masks: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(4, 2, *SIZE, generator=generator) > 0.5).float()
    return Batch(
        image=torch.rand(4, 1, *SIZE, generator=generator),
        label=torch.tensor([0, 1, -1, 2] if known_labels else [-1] * 4),
        mask=mask if known_masks else mask * torch.nan,
        image_id=["a", "b", "c", "d"],
        source=["here"] * 4,
        patient_id=["a", "b", "c", "d"],
    )


def step(task: MultiTask, images: Batch) -> dict[str, torch.Tensor]:
    """The losses of a training step, without a trainer."""
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    task._trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    return task.training_step(images, 0) or {}


def gradients(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


class TestSharing:
    @pytest.mark.parametrize(
        "settings",
        [
            {"name": "test_resnet"},
            {"name": "test_convnext", "drop_path_rate": 0.1},
            {"name": "mobilenetv3_small_050"},
            {"network": "smp:unet", "arguments": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}},
        ],
    )
    def test_each_model_alone_gives_the_same_bits(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        task = MultiTask(*configs(**settings, drop_rate=0.1)).eval()
        with torch.no_grad():
            for tensor in task.state_dict().values():  # no layer is at its first values, batch norms included
                if tensor.is_floating_point():
                    tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)))
            images = torch.rand(2, 1, 50, 60)
            logits = task(images)
            folder = task.save_pretrained(tmp_path)
            segmenter = SegmentationModel.from_pretrained(folder / "segmenter")
            classifier = ClassificationModel.from_pretrained(folder)
            assert torch.equal(segmenter(images), logits["segmentation"])
            assert torch.equal(classifier(images), logits["classification"])
        assert logits["classification"].std() > 0

    def test_the_encoder_is_computed_once_and_has_one_set_of_parameters(self) -> None:
        task = MultiTask(*configs())
        calls: list[str] = []
        task.classifier.network.bn1.register_forward_hook(lambda *_: calls.append("bn1"))
        task(batch()["image"])
        assert calls == ["bn1"]
        encoder = task.segmenter.network.encoder
        for moved in (task, task.to("meta").to_empty(device="cpu")):
            assert set(encoder.parameters()) < set(moved.classifier.network.parameters())
            assert set(encoder.buffers()) <= set(moved.classifier.network.buffers())
        groups = task.configure_optimizers()["optimizer"].param_groups
        optimised = [parameter for group in groups for parameter in group["params"]]
        assert len(optimised) == len(set(optimised)) == len(list(task.parameters()))
        own = SegmentationModel(task.segmenter.config), ClassificationModel(task.classifier.config)
        numbers = [sum(p.numel() for p in part.parameters()) for part in (*own, own[0].network.encoder)]
        assert sum(p.numel() for p in optimised) == numbers[0] + numbers[1] - numbers[2]

    @pytest.mark.parametrize(
        "settings",
        [
            {"network": "smp:deeplabv3plus", "image_size": (64, 64)},  # widens the encoder's convolutions
            {"act_layer": "silu"},
            {"output_stride": 16},
            {"name": "legacy_xception", "image_size": (64, 64)},  # timm hooks into it in place of cutting it
        ],
    )
    def test_encoders_that_are_not_the_same_are_refused(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="cannot share an encoder"):
            MultiTask(*configs(**settings))

    def test_pretrained_weights_reach_the_encoder(self, tmp_path: Path) -> None:
        saved = ClassificationModel(configs()[1])
        saved.save_pretrained(tmp_path)
        task = MultiTask(*configs(), pretrained_backbone=str(tmp_path / "model.safetensors"))
        encoder = task.segmenter.network.encoder.model
        assert torch.equal(encoder.layer1[0].conv1.weight, saved.network.layer1[0].conv1.weight)
        assert not torch.equal(task.classifier.network.fc.weight, saved.network.fc.weight)


class TestLearning:
    @pytest.mark.parametrize(("labels", "masks"), [(True, True), (True, False), (False, True), (False, False)])
    def test_each_image_teaches_what_is_known_of_it(self, labels: bool, masks: bool) -> None:
        task = MultiTask(*configs())
        losses = step(task, batch(labels, masks))
        known = {"loss": labels or masks, "loss_classification": labels, "loss_segmentation": masks}
        assert losses.keys() == {name for name, there in known.items() if there}
        if losses:
            losses["loss"].backward()
        assert gradients(task.classifier.network.fc) is labels
        assert gradients(task.segmenter.network.decoder) is masks
        assert gradients(task.segmenter.network.encoder) is (labels or masks)

    def test_losses_are_those_of_the_two_tasks_weighted_by_name(self) -> None:
        masks, labels = configs()
        task = MultiTask(
            masks,
            labels,
            losses={"classification": "focal"},
            loss_args={"classification": {"gamma": 1.0}, "segmentation": {"weights": [1.0, 0.5]}},
            weights={"segmentation": 0.3, "classification": 2.0},
        ).eval()
        losses = step(task, batch())
        alone = SegmentationTask(masks, loss_args={"weights": [1.0, 0.5]})
        other = ClassificationTask(labels, loss="focal", loss_args={"gamma": 1.0})
        for single, model in ((alone, task.segmenter), (other, task.classifier)):
            single.model.network.load_state_dict(model.network.state_dict())
            single.eval()
        first, second = step(alone, batch())["loss"], step(other, batch())["loss"]  # type: ignore[arg-type]
        torch.testing.assert_close(losses["loss_segmentation"], first)
        torch.testing.assert_close(losses["loss_classification"], second)
        torch.testing.assert_close(losses["loss"], 0.3 * first + 2 * second)

    def test_a_frozen_encoder_does_not_move(self, phantoms: Path, tmp_path: Path) -> None:
        task = MultiTask(*configs(), freeze_backbone=True, lr=0.1)
        before = {name: tensor.clone() for name, tensor in task.state_dict().items() if "network" in name}
        trainer(tmp_path).fit(task, data(phantoms))
        moved = {name for name in before if not torch.equal(before[name], task.state_dict()[name])}
        assert {"classifier.network.fc.weight", "segmenter.network.segmentation_head.0.weight"} <= moved
        heads = ("classifier.network.fc.", "segmenter.network.decoder.", "segmenter.network.segmentation_head.")
        assert all(name.startswith(heads) for name in moved)

    def test_the_monitored_score_is_the_mean_of_dice_and_area(self, phantoms: Path, tmp_path: Path) -> None:
        task = MultiTask(*configs())
        run = trainer(tmp_path)
        run.fit(task, data(phantoms))
        logged = run.callback_metrics
        assert task.monitor in logged
        assert logged["val/score"] == pytest.approx((logged["val/dice"] + logged["val/auroc"]).item() / 2)
        assert {"train/accuracy", "val/f1", "val/dice_infection", "val/loss_segmentation"} <= logged.keys()
        run = trainer(tmp_path)
        (alone,) = run.validate(task, data(phantoms, label_map=dict.fromkeys(CLASSES[1:], "covid19")), verbose=False)
        assert math.isnan(alone["val/auroc"])
        assert alone["val/score"] == alone["val/dice"] > 0

    def test_resume_is_bit_for_bit(self, phantoms: Path, tmp_path: Path) -> None:
        class Stop(Callback):
            def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
                if trainer.global_step == 3:
                    raise KeyboardInterrupt("stopped by the test")

        def train(folder: Path, *callbacks: Callback, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
            torch.manual_seed(0)
            task = MultiTask(*configs(drop_rate=0.3))
            keeper = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
            run = trainer(folder, max_epochs=2, enable_checkpointing=True, callbacks=[keeper, *callbacks])
            run.fit(task, data(phantoms, batch_size=10), ckpt_path=ckpt_path)
            return task.state_dict()

        whole = train(tmp_path / "whole")
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(tmp_path / "parts", Stop())
        parts = train(tmp_path / "parts", ckpt_path=tmp_path / "parts" / "step=2.ckpt")
        assert whole.keys() == parts.keys()
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


class TestStarting:
    def test_from_both_models_or_from_one(self, tmp_path: Path) -> None:
        saved = MultiTask(*configs())
        saved.save_pretrained(tmp_path)
        expected = saved.state_dict()
        heads = {"segmenter": "segmentation_head.0.weight", "classifier": "fc.weight"}
        for source, parts in (("", heads), ("segmenter", ["segmenter"]), ("classifier", ["classifier"])):
            state = MultiTask(*configs(), init_from=tmp_path / source).state_dict()
            assert all(torch.equal(state[name], expected[name]) for name in state if ".encoder." in name)
            same = {
                part
                for part, head in heads.items()
                if torch.equal(*(s[f"{part}.network.{head}"] for s in (state, expected)))
            }
            assert same == set(parts)

    def test_a_classifier_starts_from_an_encoder_that_spells_its_layers_otherwise(self, tmp_path: Path) -> None:
        masks, labels = configs("test_convnext")
        saved = SegmentationModel(masks)
        task = ClassificationTask(labels, init_from=saved.save_pretrained(tmp_path))
        theirs = saved.network.encoder.model.stages_3.downsample[1].weight
        assert torch.equal(task.model.network.stages[3].downsample[1].weight, theirs)

    def test_two_encoders_are_not_mixed(self, tmp_path: Path) -> None:
        masks, labels = configs()
        SegmentationModel(masks).save_pretrained(tmp_path / "segmenter")
        ClassificationModel(labels).save_pretrained(tmp_path / "classifier")
        with pytest.raises(ConfigError, match="an encoder each"):
            MultiTask(masks, labels, init_from=tmp_path)

    def test_a_checkpoint_holds_all_settings(self, phantoms: Path, tmp_path: Path) -> None:
        task = MultiTask(*configs(), losses={"classification": "focal"}, weights={"segmentation": 0.5})
        run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=1)
        run.fit(task, data(phantoms))
        run.save_checkpoint(tmp_path / "last.ckpt")
        again = MultiTask.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
        assert all(torch.equal(a, b) for a, b in zip(task.parameters(), again.parameters(), strict=True))
        assert again.weights == {"segmentation": 0.5, "classification": 1.0}
        assert again.hparams["losses"] == {"segmentation": "dice+bce", "classification": "focal"}

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"losses": {"clasification": "focal"}}, ConfigError, "Did you mean 'classification'"),
            ({"weights": {"segmentaton": 1}}, ConfigError, "Did you mean 'segmentation'"),
            ({"loss_args": {"masks": {}}}, ConfigError, "'masks' in loss_args"),
            ({"weights": {"segmentation": -1}}, ConfigError, "from 0 up"),
            ({"losses": {"classification": "focla"}}, UnknownNameError, "Did you mean 'focal'"),
            ({"optimizer": "adamv"}, UnknownNameError, "adam"),
        ],
    )
    def test_wrong_settings_fail_at_once(self, settings: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            MultiTask(*configs(), **settings)

    @pytest.mark.parametrize(
        ("segmentation", "classification", "message"),
        [
            ({"network_args": {"encoder": "resnet18"}}, {}, "tu-NAME"),
            ({}, {"network": "timm:test_convnext"}, "tu-NAME"),
            ({}, {"network": "cnn19"}, "tu-NAME"),
            ({}, {"preprocess": {"image_size": SIZE, "fit": "stretch"}}, "preprocess.fit is letterbox"),
            ({}, {"classes": ["infection", "none"]}, "'infection' names a mask and a label"),
        ],
    )
    def test_models_that_do_not_fit(
        self, segmentation: dict[str, Any], classification: dict[str, Any], message: str
    ) -> None:
        masks, labels = (config.to_dict() for config in configs())
        with pytest.raises(ConfigError, match=message):
            MultiTask(masks | segmentation, labels | classification)  # type: ignore[arg-type]

    def test_data_that_do_not_fit(self, phantoms: Path) -> None:
        task = MultiTask(*configs())
        task.check_data(data(phantoms))
        for settings, word in (({"mask_classes": ()}, "mask_classes"), ({"classes": CLASSES[::-1]}, "same order")):
            with pytest.raises(ConfigError, match=word):
                task.check_data(data(phantoms, **settings))


WORDS = [
    *("--model", "multitask", "--data", "csv", "--data.image_size", "[32,32]", "--data.batch_size", "8"),
    *(
        "--data.split_seed",
        "1",
        "--data.cache",
        "memory",
        "--data.mask_classes",
        json.dumps(MASKS),
        "--data.classes",
        json.dumps(CLASSES),
    ),
    *("--data.mask_columns", json.dumps({name: name for name in MASKS}), "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--trainer.logger", "false"),
]


@pytest.fixture(scope="module")
def folder(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ as fit left it, and beside it what test wrote."""
    folder = tmp_path_factory.mktemp("run")
    masks, labels = (json.dumps(config.to_dict()) for config in configs())
    words = [*WORDS, "--data.root", str(phantoms), "--trainer.default_root_dir", str(folder)]
    words += ["--model.segmentation", masks, "--model.classification", labels, "--model.lr", "0.01"]
    extra = ["--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1", "--compute_mean_std", "true"]
    train(["fit", *words, *extra, "--coverage", "0.8", "--output", str(folder / "model")])
    tested = ["--model.init_from", str(folder / "model"), "--compute_mean_std", "true", "--output", str(folder)]
    train(["test", *words, *tested])
    return folder


class TestCommandLine:
    def test_scores_of_both_have_intervals(self, folder: Path, phantoms: Path) -> None:
        scores = json.loads((folder / "scores.json").read_text())["all"]
        images = data(phantoms).test_dataset.records
        labelled = sum(image.label is not None for image in images)
        masked = sum("lung_field" in image.mask_paths for image in images)
        assert 0 < labelled < len(images)
        assert 0 < masked < len(images)
        assert (scores["accuracy"]["count"], scores["dice_lung_field"]["count"]) == (labelled, masked)
        for name in ("accuracy", "auroc_covid19", "dice_lung_field", "iou_infection"):
            assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
        with (folder / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert sorted(row["image_id"] for row in rows) == sorted(image.image_id for image in images)
        assert sum(bool(row["label"]) for row in rows) == labelled
        assert sum(bool(row["dice_infection"]) for row in rows) == masked

    def test_the_saved_pipeline_scores_alike(self, folder: Path, phantoms: Path, tmp_path: Path) -> None:
        pipeline = Pipeline.from_pretrained(folder / "model")
        assert set(pipeline.models()) == {"lung_segmenter", "classifier"}
        scores = json.loads((folder / "scores.json").read_text())["all"]
        for part, kind in (("lung_segmenter", SegmentationTask), ("classifier", ClassificationTask)):
            task = kind(pipeline.models()[part].config, init_from=folder / "model")
            trainer(tmp_path).test(task, data(phantoms), verbose=False)
            alone = score_rows(task.rows)
            assert alone
            for name, score in alone.items():
                assert scores[name]["value"] == (None if math.isnan(score.value) else pytest.approx(score.value)), name
        config = pipeline.models()["classifier"].config
        assert config.temperature != 1
        assert config.thresholds
        assert config.preprocess.mean != (0.5,)
        assert config.preprocess == pipeline.models()["lung_segmenter"].config.preprocess
        image = next((phantoms / "images").iterdir())
        prediction = pipeline(image)
        assert set(prediction.masks) == set(MASKS)

    def test_images_without_a_label_are_in_no_picture(self, folder: Path) -> None:
        draw_run(folder)
        assert all((folder / f"{name}.png").is_file() for name in ("learning_curves", "confusion", "roc"))

    def test_the_curves_have_every_loss(self, folder: Path) -> None:
        epochs = json.loads((folder / "model" / "history.json").read_text())
        assert [epoch["epoch"] for epoch in epochs] == [0, 1]
        for stage in ("train", "val"):
            assert all(f"{stage}/{name}" in epochs[1] for name in ("loss", "loss_segmentation", "loss_classification"))
        assert "val/score" in epochs[1]
        for epoch in epochs:  # means over the epoch, of which every batch has some labels and some masks
            parts = epoch["train/loss_segmentation"] + epoch["train/loss_classification"]
            assert epoch["train/loss"] == pytest.approx(parts, rel=1e-5)


def test_a_segmenter_of_other_findings_is_saved_as_a_pipeline(tmp_path: Path) -> None:
    masks, labels = (config.to_dict() for config in configs())
    task = MultiTask(masks | {"classes": ["heart", "trachea"]}, labels)  # type: ignore[arg-type]
    assert training.save_models(task, tmp_path) == tmp_path
    pipeline = Pipeline.from_pretrained(tmp_path)
    assert pipeline.infection_segmenter is not None
    assert pipeline.infection_segmenter.config == task.segmenter.config
    assert pipeline.classifier is not None
    assert pipeline.classifier.config == task.classifier.config


@pytest.mark.filterwarnings("ignore:3 of the 54 images that are in both parts")
def test_the_recipe_runs(tmp_path: Path) -> None:
    images = write_covid_qu_ex_fake(tmp_path / "films")
    network = {"network_args": {"encoder": "tu-test_resnet"}}
    words = ["--data.root", str(images), "--data.image_size", "[32,32]", "--trainer.max_epochs", "1"]
    words += ["--model.segmentation.network_args", json.dumps(network["network_args"])]
    words += ["--model.classification.network", "timm:test_resnet", "--model.pretrained_backbone", "false"]
    for part in ("segmentation", "classification"):
        words += [f"--model.{part}.preprocess.image_size", "[32,32]"]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1"]
    comparison = run_recipe(Recipe.read("das2021-multitask"), tmp_path / "run", words)
    assert {"macro_auroc", "dice_lung_field", "dice_infection"} <= comparison.runs[0].scores().keys()
    assert (tmp_path / "run" / "roc.png").is_file()
    assert Pipeline.from_pretrained(tmp_path / "run" / "model").classifier is not None
