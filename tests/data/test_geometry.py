"""Image size, fit, region and dilation are said once, in the model: the data module takes them from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from covidcxr import ClassificationTask, CSVDataModule, ModelConfig, PreprocessConfig
from covidcxr.errors import ConfigError
from covidcxr.phantom import write_dataset

CLASSES = ("covid19", "normal", "pneumonia")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_dataset(folder, 24, size=(64, 64))
    return folder


def make_task(size: int) -> ClassificationTask:
    preprocess = PreprocessConfig(image_size=(size, size), fit="stretch")
    return ClassificationTask(ModelConfig("classification", "timm:test_resnet", CLASSES, preprocess=preprocess))


def make_trainer(folder: Path) -> Trainer:
    return Trainer(
        max_epochs=1,
        limit_train_batches=1,
        limit_test_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def test_a_data_module_alone_has_the_defaults(phantoms: Path) -> None:
    assert CSVDataModule(phantoms).train_dataset[0]["image"].shape == (1, 256, 256)


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_it_follows_the_model_of_each_trainer_and_so_does_its_memory(phantoms: Path, tmp_path: Path) -> None:
    data = CSVDataModule(phantoms, cache="memory", batch_size=4)
    make_trainer(tmp_path).fit(make_task(32), data)
    assert data.geometry.fit == "stretch"
    assert data.train_dataset[0]["image"].shape == (1, 32, 32)
    make_trainer(tmp_path).test(make_task(48), data, verbose=False)
    assert data.test_dataset[0]["image"].shape == (1, 48, 48)


def test_what_is_set_in_the_data_module_must_agree_with_the_model(phantoms: Path, tmp_path: Path) -> None:
    data = CSVDataModule(phantoms, image_size=(64, 64))
    with pytest.raises(ConfigError, match=r"image_size is \(32, 32\), but the data module's is \(64, 64\)"):
        make_trainer(tmp_path).fit(make_task(32), data)
    agreed = CSVDataModule(phantoms, image_size=(32, 32))
    agreed.use_geometry(make_task(32).preprocess)
    assert (agreed.geometry.image_size, agreed.geometry.fit) == ((32, 32), "stretch")
