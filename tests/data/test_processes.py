"""What travels to other processes by pickle, as spawn and forkserver do: data modules, data sets, loaders."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import MASK_COLUMNS, draw_image, write_folder_fake, write_image
from lightning.pytorch import LightningModule, Trainer
from makers import MAKERS, SMALL, make_table
from torch.utils.data import DataLoader

from covidcxr.data import CSVDataModule, CXRDataModule, CXRDataset, FeedbackDataModule, FolderDataModule
from covidcxr.data.cache import ImageCache
from covidcxr.data.curation.prepare import prepare_dataset
from covidcxr.data.datasets.folder import INDEX
from covidcxr.errors import ConfigError


def make_feedback(root: Path) -> CXRDataModule:
    films = [
        {"film": f"{i}.png", "sha256": f"{i}", "label": ("covid19", "normal")[i % 2], "patient": f"{i}", "masks": {}}
        for i in range(12)
    ]
    for i, film in enumerate(films):
        write_image(root / film["film"], draw_image(i))
    index = {"format_version": 1, "classes": ["covid19", "normal"], "films": films}
    (root / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return FeedbackDataModule(root, **SMALL)


def make_copy(root: Path) -> CXRDataModule:
    prepare_dataset(make_table(root / "origin"), root / "copy", image_size=(24, 24))
    return CSVDataModule(root / "copy", mask_columns=MASK_COLUMNS, **SMALL)


EVERY = {**MAKERS, "feedback": make_feedback, "compact copy": make_copy}


def travelled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def check_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other[name], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert other[name] == value


@pytest.fixture(params=sorted(EVERY))
def module(request: pytest.FixtureRequest, tmp_path: Path) -> CXRDataModule:
    return EVERY[request.param](tmp_path / "data")


class Idle(LightningModule):
    """Looks at batches and learns nothing."""

    def test_step(self, batch: dict[str, Any]) -> None:
        """Do nothing."""


def test_a_data_module_before_and_after_set_up(module: CXRDataModule) -> None:
    fresh = travelled(module)
    module.setup()
    for other in (fresh, travelled(module)):
        assert other.records == module.records
        assert other.classes == module.classes
        check_equal(other.test_dataset[0], module.test_dataset[0])


def test_data_sets_samplers_and_loaders(module: CXRDataModule) -> None:
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        other = travelled(loader)
        assert list(other.sampler) == list(loader.sampler)
        check_equal(next(iter(other)), next(iter(loader)))
    images = module.predict_dataloader().dataset
    check_equal(travelled(images)[0], images[0])


def test_a_data_module_that_a_trainer_used(tmp_path: Path) -> None:
    module = FolderDataModule(write_folder_fake(tmp_path / "films"), patient_pattern="p([0-9]+)_", **SMALL)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.test(Idle(), module)
    other = travelled(module)
    assert module.trainer is trainer
    assert other.trainer is None
    check_equal(other.train_dataset[1, 0], module.train_dataset[1, 0])


def test_workers_get_neither_the_data_module_nor_images_in_memory(tmp_path: Path) -> None:
    module = make_table(tmp_path)
    images = module.train_dataset
    assert b"CSVDataModule" not in pickle.dumps(images)
    kept = CXRDataset(images.records, classes=images.classes, image_size=(24, 24), cache="memory")
    empty = len(pickle.dumps(kept))
    sample = kept[0]
    assert len(pickle.dumps(kept)) == empty
    check_equal(travelled(kept)[0], sample)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_what_a_forked_worker_has_read_all_have(tmp_path: Path) -> None:
    images = make_table(tmp_path).train_dataset
    kept = CXRDataset(
        images.records, classes=images.classes, image_size=(24, 24), mask_classes=images.mask_classes, cache="memory"
    )
    settings = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork"}
    first = list(DataLoader(kept, **settings))
    for record in images.records:
        record.image_path.unlink()
    again = [kept[place] for place in range(len(kept))]  # in this process, which has read none
    for sample, in_this, by_others in zip(first, again, DataLoader(kept, **settings), strict=True):
        check_equal(in_this, sample)
        check_equal(by_others, sample)


@pytest.mark.parametrize(
    "method", [name for name in ("fork", "spawn") if name in multiprocessing.get_all_start_methods()]
)
def test_workers_map_the_file_of_a_compact_copy(tmp_path: Path, method: str) -> None:
    """None of them opens an image, and none gets the pixels of all on its way."""
    copy = make_copy(tmp_path)
    for path in copy.root.rglob("*.png"):
        path.write_bytes(b"")
    images = copy.train_dataset
    assert images.pixels(0).tobytes() not in pickle.dumps(images)
    settings = {"batch_size": None, "num_workers": 2, "multiprocessing_context": method}
    for sample, by_others in zip(images, DataLoader(images, **settings), strict=True):  # type: ignore[call-overload]
        check_equal(by_others, sample)


def test_images_beyond_the_memory_are_one_error() -> None:
    with pytest.raises(ConfigError, match=r"There is no memory for 1,000,000,000,000 images .*prepare"):
        ImageCache(10**12, (512, 512))


@pytest.mark.parametrize(
    "method", [name for name in ("spawn", "forkserver") if name in multiprocessing.get_all_start_methods()]
)
@pytest.mark.parametrize(
    "name", ["csv", *(pytest.param(name, marks=pytest.mark.slow) for name in ("combined", "gate", "torchxrayvision"))]
)
def test_workers_however_they_are_started(tmp_path: Path, name: str, method: str) -> None:
    images = MAKERS[name](tmp_path / "data").train_dataset
    context = multiprocessing.get_context(method)
    loader = DataLoader(
        images, sampler=[(1, 0), (1, 1)], batch_size=None, num_workers=1, multiprocessing_context=context
    )
    for number, sample in enumerate(loader):
        check_equal(sample, images[1, number])
