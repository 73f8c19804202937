"""Training as a function of plain data: what it returns, writes and refuses."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import TINY

from covidcxr import training
from covidcxr.cli import main
from covidcxr.config import ModelConfig
from covidcxr.errors import ConfigError
from covidcxr.models import ClassificationModel, EnsembleModel, SegmentationModel
from covidcxr.phantom import write_dataset
from covidcxr.training.parser import parse_words
from covidcxr.training.recipe import task_class


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("images"), 36).parent


@pytest.fixture
def config(images: Path, tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe as a config: an epoch on the images, with its checkpoints in the test's folder."""
    config = copy.deepcopy({key: TINY[key] for key in ("model", "data", "trainer")})
    config["model"]["class_path"] = task_class("classification")
    config["data"] = {"class_path": "CSVDataModule", "init_args": {"root": str(images), "batch_size": 16}}
    config["trainer"] |= {"max_epochs": 1, "logger": False, "default_root_dir": str(tmp_path)}
    return config


def test_fit_and_test_of_plain_data(config: dict[str, Any], tmp_path: Path) -> None:
    before, words = copy.deepcopy(config), list(sys.argv)
    session = training.fit({**config, "output": str(tmp_path / "model")}, record=True)
    assert (config, sys.argv) == (before, words), "the caller's config or the command line was changed"
    assert [epoch["epoch"] for epoch in session.history.epochs] == [0]
    assert json.loads((tmp_path / "model" / "history.json").read_text()) == session.history.epochs
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["max_epochs"] == 1
    model = ClassificationModel.from_pretrained(tmp_path / "model")
    assert model.config.preprocess.image_size == (32, 32)
    config["model"]["init_args"]["init_from"] = str(tmp_path / "model")
    scores = training.test({**config, "output": str(tmp_path / "scores")})
    saved = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert saved["all"]["accuracy"] == scores["all"]["accuracy"].to_dict()
    more = config["trainer"] | {"max_epochs": 2}
    resumed = {**config, "trainer": more, "ckpt_path": str(tmp_path / "checkpoints" / "last.ckpt")}
    assert [epoch["epoch"] for epoch in training.fit(resumed).history.epochs] == [0, 1]


@pytest.mark.parametrize("named", [(), ("--model", "classification")], ids=["no task", "the task"])
def test_a_saved_model_needs_no_config(
    named: tuple[str, ...], config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--model.init_from` says task and model, where nothing else does."""
    monkeypatch.chdir(tmp_path)
    saved = ClassificationModel(ModelConfig(**config["model"]["init_args"]["model"] | {"temperature": 2.5}))
    saved.save_pretrained(tmp_path / "model")
    words = ["--data", "csv", "--data.root", config["data"]["init_args"]["root"], "--model.init_from", "model"]
    parsed = parse_words([*words, *named], "test")["model"]
    assert parsed["class_path"].rpartition(".")[2] == "ClassificationTask"
    assert ModelConfig.from_dict(parsed["init_args"]["model"]) == saved.config
    assert main(["test", *words, *named, "--trainer.logger", "false", "--out", "scores"]) == 0
    assert (tmp_path / "scores" / "predictions.csv").is_file()


def test_a_saved_multitask_model_needs_no_config(tmp_path: Path) -> None:
    lungs = ModelConfig("segmentation", "residual_unet", ("lung",), "multilabel", {"depth": 1})
    labels = ModelConfig("classification", "hog", ("a", "b"), positive="a")
    SegmentationModel(lungs).save_pretrained(tmp_path / "model" / "segmenter")
    ClassificationModel(labels).save_pretrained(tmp_path / "model" / "classifier")
    words = ["--data", "csv", "--data.root", "images", "--model.init_from", str(tmp_path / "model")]
    both = parse_words([*words, "--model", "multitask"])["model"]["init_args"]
    assert ModelConfig.from_dict(both["segmentation"]) == lungs
    assert ModelConfig.from_dict(both["classification"]) == labels
    alone = parse_words([*words, "--model", "segmentation"])["model"]["init_args"]
    assert ModelConfig.from_dict(alone["model"]) == lungs


def test_an_ensemble_is_no_model_to_train(tmp_path: Path) -> None:
    member = ClassificationModel(ModelConfig("classification", "hog", ("a", "b"), positive="a"))
    EnsembleModel({"one": member, "two": member}).save_pretrained(tmp_path / "ensemble")
    with pytest.raises(ConfigError, match="names an ensemble"):
        parse_words(["--data", "csv", "--model.init_from", str(tmp_path / "ensemble")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "csv", "--data.root", "images"], r"missing: model \(--config RECIPE, .* --model.init_from FOLDER"),
        (["--data", "csv", "--data.root", "images", "--model.lr", "1"], r"missing: model \(--config RECIPE"),
        (["--data.root", "images", "--model", "classification"], r"missing: data \(--data NAME"),
    ],
)
def test_what_no_flag_says_is_asked_for(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_words(words)


def test_a_refused_wish_to_print_the_config_is_forgotten() -> None:
    words = ["--data", "csv", "--data.root", "images", "--model", "classification", "--model.model.task"]
    words += ["classification", "--model.model.network", "hog", "--model.model.classes", "[a, b]"]
    with pytest.raises(ConfigError, match="Unknown argument"):
        parse_words([*words, "--print_config", "--unknown"])
    assert parse_words(words)["data"]["init_args"]["root"] == "images"


def test_logs_lie_in_the_output_unless_a_place_is_named(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    config["output"] = "../out"
    named = training.check(config, images=False)
    assert named.trainer.default_root_dir == str(tmp_path), "what the config names wins"
    config["trainer"] |= {"default_root_dir": None, "logger": True, "limit_train_batches": 1, "limit_val_batches": 1}
    training.fit(config, record=True)
    assert list((tmp_path / "work").iterdir()) == []
    (logs,) = (tmp_path / "out" / "lightning_logs").iterdir()
    assert {"config.yaml", "checkpoints"} <= {path.name for path in logs.iterdir()}


def test_check_trains_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    session = training.check(config)
    assert session.data.geometry.image_size == (32, 32), "the data module takes its geometry from the model"  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage": 1.5}, "coverage must be between 0 and 1"),
        ({"ckpt_path": None}, "no weights to score"),
        ({"trainre": {"max_epochs": 1}}, "'trainre.max_epochs'.*Did you mean 'trainer.max_epochs'"),
    ],
)
def test_wrong_settings_are_refused(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training.test(config | changes)


def test_a_collapsed_model_is_warned_of(config: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """One answer for all images: said by fit and test, and kept beside model and scores."""
    settings = ModelConfig.from_dict(config["model"]["init_args"]["model"])
    model = ClassificationModel(settings)
    for parameter in model.network.parameters():
        torch.nn.init.zeros_(parameter)
    config["model"]["init_args"] |= {"init_from": str(model.save_pretrained(tmp_path / "zero")), "lr": 0.0}
    training.fit({**config, "output": str(tmp_path / "model")})
    (sign,) = json.loads((tmp_path / "model" / "warnings.json").read_text())[:1]
    assert "the same answer, covid19" in " ".join(json.loads((tmp_path / "model" / "warnings.json").read_text()))
    assert f"Warning: {sign}" in capsys.readouterr().out.replace("\n", " ")
    config["model"]["init_args"]["init_from"] = str(tmp_path / "model")
    training.test({**config, "output": str(tmp_path / "scores")})
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert any("the same answer, covid19" in sign for sign in scores["warnings"])
    assert "Warning: All" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:invalid value")
def test_weights_that_are_no_numbers_are_not_saved(config: dict[str, Any], tmp_path: Path) -> None:
    config["model"]["init_args"] |= {"optimizer": "sgd", "lr": 1e30, "schedule": "constant"}
    with pytest.raises(ConfigError, match="The training diverged"):
        training.fit({**config, "output": str(tmp_path / "model")})
    assert not list((tmp_path / "model").glob("*"))
