"""Data sets, samplers and data modules, on fakes and on the real images."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import (
    FINDINGS,
    MASK_COLUMNS,
    SIZE,
    draw_image,
    draw_lungs,
    write_csv,
    write_darkcovidnet_fake,
    write_findings_fake,
    write_folder_fake,
    write_image,
    write_manifest_fake,
    write_table_fake,
)
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from makers import (
    MAKERS,
    SMALL,
    make_darkcovidnet,
    make_table,
)

from covidcxr.data import (
    CombinedDataModule,
    CSVDataModule,
    CXRDataModule,
    CXRDataset,
    DarkCovidNetDataModule,
    EpochSampler,
    FolderDataModule,
    Record,
    compute_mean_std,
    count_by,
    find_leaks,
)
from covidcxr.data.collection import has_own_reader
from covidcxr.data.datasets.csv import parse_age
from covidcxr.data.files import MASK_INDEX
from covidcxr.data.sampler import ResumableLoader, sampling_weights
from covidcxr.errors import ConfigError, DatasetError, ImageReadError
from covidcxr.io.image import write_mask
from covidcxr.registry import DATASETS
from covidcxr.transforms.augment import Augment


@pytest.fixture
def picture(tmp_path: Path) -> Record:
    """One image of 40 x 32 pixels with its lung field and a lung mask of half the size."""
    return Record(
        write_image(tmp_path / "film.png", draw_image(0)),
        "normal",
        mask_paths={
            "lung_field": write_image(tmp_path / "field.png", draw_lungs()),
            "lung": write_image(tmp_path / "lung.png", draw_lungs((20, 16))),
        },
    )


def dataset(*records: Record, **settings: object) -> CXRDataset:
    return CXRDataset(records, **({"classes": ("covid19", "normal"), "image_size": (24, 24)} | settings))


class TestDataset:
    def test_a_sample(self, picture):
        sample = dataset(picture)[0]
        assert sample["image"].shape == (1, 24, 24)
        assert sample["image"].dtype == torch.float32
        assert 0 <= sample["image"].min() < 0.4 < sample["image"].max() <= 1
        assert sample["label"] == 1
        assert sample["label"].dtype == torch.int64
        assert (sample["source"], sample["patient_id"]) == ("unknown", picture.image_id)
        assert not {"mask", "lung_mask"} & sample.keys()

    def test_a_image_of_the_right_size_comes_through_to_the_grey_level(self, picture):
        image = dataset(picture, image_size=SIZE)[0]["image"]
        np.testing.assert_array_equal((image[0] * 255).round().numpy(), draw_image(0))

    def test_letterbox_keeps_the_aspect_ratio_and_stretch_does_not(self, picture):
        image = dataset(picture)[0]["image"][0]
        assert image[:, :2].eq(0).all()
        assert image[:, 22:].eq(0).all()  # 40 x 32 becomes 24 x 19
        assert dataset(picture, fit="stretch")[0]["image"].gt(0).all()

    def test_masks_of_another_size_lie_on_their_image(self, picture):
        mask = dataset(picture, mask_classes=("lung_field", "lung"))[0]["mask"]
        both, either = (mask[0] * mask[1]).sum(), (mask[0] + mask[1]).clamp(max=1).sum()
        assert both / either > 0.75  # a shift by one pixel gives 0.71 or less
        dark = dataset(picture)[0]["image"][0][mask[0] == 1]
        assert dark.mean() < 0.5

    @pytest.mark.parametrize("size", [(100, 77), (77, 100), (60, 47)])
    def test_a_mask_covers_the_place_of_its_image_exactly(self, tmp_path, size):
        picture = write_image(tmp_path / "film.png", np.full(size, 200, np.uint8))
        rough = write_image(tmp_path / "mask.png", np.ones((size[0] // 5, size[1] // 5), dtype=bool))
        sample = dataset(Record(picture, mask_paths={"lung": rough}), mask_classes=("lung",), image_size=(64, 64))[0]
        assert sample["mask"].equal(sample["image"].gt(0).float())

    def test_unknown_masks_are_nan_planes_in_the_order_asked_for(self, picture):
        mask = dataset(picture, mask_classes=("infection", "lung"))[0]["mask"]
        assert mask.dtype == torch.float32
        assert mask[0].isnan().all()
        assert set(mask[1].unique().tolist()) == {0.0, 1.0}

    def test_a_mask_of_another_shape_is_refused(self, picture, tmp_path):
        wrong = write_image(tmp_path / "square.png", draw_lungs((32, 32)))
        with pytest.raises(DatasetError, match=r"square\.png"):
            dataset(replace(picture, mask_paths={"lung": wrong}), mask_classes=("lung",))[0]

    def test_labels(self, picture):
        assert dataset(replace(picture, label=None))[0]["label"] == -1
        with pytest.raises(DatasetError, match=r"'other' \(2\)"):
            dataset(picture, *[replace(picture, label="other")] * 2)

    def test_box(self, picture):
        boxed = replace(picture, box=(4, 2, 28, 26))
        sample = dataset(boxed, mask_classes=("lung_field",))[0]
        np.testing.assert_array_equal((sample["image"][0] * 255).round().numpy(), draw_image(0)[4:28, 2:26])
        np.testing.assert_array_equal(sample["mask"][0].numpy(), draw_lungs()[4:28, 2:26])
        with pytest.raises(DatasetError, match="beyond the image"):
            dataset(replace(picture, box=(0, 0, 41, 10)))[0]

    @pytest.mark.parametrize(("region", "inside"), [("lungs", True), ("background", False)])
    def test_regions(self, picture, region, inside):
        sample = dataset(picture, region=region, augment="strong", mask_classes=("lung",))[0]
        image, lungs = sample["image"], sample["lung_mask"]
        assert lungs.shape == (1, 24, 24)
        assert image[lungs == (0 if inside else 1)].eq(0).all()  # also after noise and brightness
        assert image[lungs == (1 if inside else 0)].gt(0).any()

    def test_region_takes_the_field_to_keep_and_the_outline_to_remove(self, picture, tmp_path):
        wide = write_image(tmp_path / "wide.png", np.ones(SIZE, dtype=bool))
        picture = replace(picture, mask_paths={**picture.mask_paths, "lung": wide})
        assert dataset(picture, region="background")[0]["image"].eq(0).all()
        assert dataset(picture, region="lungs")[0]["image"].gt(0).any()

    def test_dilation_widens_the_lungs(self, picture):
        seen = [dataset(picture, region="lungs", lung_dilation=d)[0]["image"].gt(0).sum() for d in (0.0, 0.1)]
        assert seen[1] > 1.3 * seen[0]

    def test_a_region_without_masks_is_refused_at_once(self, picture):
        with pytest.raises(DatasetError, match="1 of 2 have none"):
            dataset(picture, replace(picture, mask_paths={}), region="lungs")

    def test_memory_cache_reads_once(self, picture, monkeypatch):
        cached = dataset(picture, cache="memory", mask_classes=("lung",), augment="default")
        before = cached[3, 0]
        picture.image_path.unlink()
        after = cached[3, 0]
        assert before["image"].equal(after["image"])
        assert before["mask"].equal(after["mask"])
        with pytest.raises(ConfigError, match="cache"):
            dataset(picture, cache="disk")

    def test_a_bad_image_is_named(self, picture):
        picture.image_path.write_bytes(b"no image")
        with pytest.raises(ImageReadError, match=r"film\.png"):
            dataset(picture)[0]

    def test_augmentation_depends_on_seed_epoch_and_image_alone(self, picture):
        pictures = [picture, picture]
        images = {
            (seed, epoch, index): dataset(*pictures, augment="default", seed=seed)[epoch, index]["image"]
            for seed in (0, 1)
            for epoch in (0, 1)
            for index in (0, 1)
        }
        assert len({image.numpy().tobytes() for image in images.values()}) == 8
        again = dataset(*pictures, augment=Augment("default"))
        assert all(again[epoch, index]["image"].equal(images[0, epoch, index]) for epoch in (0, 1) for index in (0, 1))

    def test_augmentation_moves_masks_and_region_with_the_image(self, picture):
        import albumentations as alb

        flip = dataset(
            picture, augment=[alb.HorizontalFlip(p=1)], mask_classes=("lung",), region="lungs", fit="stretch"
        )[0]
        plain = dataset(picture, mask_classes=("lung",), region="lungs", fit="stretch")[0]
        for name in ("image", "mask", "lung_mask"):
            assert flip[name].equal(plain[name].flip(-1))

    def test_survives_a_process_border(self, picture):
        pictures = dataset(picture, augment="default", mask_classes=("lung",))
        assert pickle.loads(pickle.dumps(pictures))[0]["image"].equal(pictures[0]["image"])


class TestSampler:
    @pytest.mark.parametrize("length", [1, 10, 12, 13])
    @pytest.mark.parametrize("ranks", [1, 2, 3, 4])
    def test_processes_share_an_epoch(self, length, ranks):
        parts = [list(EpochSampler(range(length), num_replicas=ranks, rank=rank)) for rank in range(ranks)]
        seen = Counter(index for part in parts for _, index in part)
        assert set(seen) == set(range(length))
        assert len({len(part) for part in parts}) == 1
        if length % ranks == 0:
            assert set(seen.values()) == {1}

    def test_epochs_and_seeds_differ_and_repeat(self):
        def run(seed: int, epoch: int) -> list[int]:
            sampler = EpochSampler(range(50), seed=seed)
            sampler.set_epoch(epoch)
            pairs = list(sampler)
            assert {found for found, _ in pairs} == {epoch}
            return [index for _, index in pairs]

        orders = {(seed, epoch): run(seed, epoch) for seed in range(3) for epoch in range(3)}
        assert len({tuple(order) for order in orders.values()}) == 9
        assert run(1, 2) == orders[1, 2]

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_resumes_once(self, ranks):
        sampler = EpochSampler(range(20), num_replicas=ranks, rank=ranks - 1)
        sampler.set_epoch(3)
        whole = list(sampler)
        sampler.resume(3, 4)
        assert len(sampler) == len(whole)
        assert list(sampler) == whole[4:]
        assert list(sampler) == whole
        sampler.resume(2, 4)
        assert list(sampler) == whole  # another epoch

    def test_weights_draw_in_proportion(self):
        sampler = EpochSampler(range(4), weights=torch.tensor([0.0, 1.0, 1.0, 2.0]))
        seen: Counter[int] = Counter()
        for epoch in range(2000):
            sampler.set_epoch(epoch)
            drawn = [index for _, index in sampler]
            assert len(drawn) == 4
            seen.update(drawn)
        shares = np.array([seen[index] for index in range(4)]) / seen.total()
        np.testing.assert_allclose(shares, [0, 0.25, 0.25, 0.5], atol=0.025)  # 5 standard errors

    def test_wrong_weights(self):
        for weights in (torch.ones(3), -torch.ones(4)):
            with pytest.raises(ConfigError, match="4 numbers"):
                EpochSampler(range(4), weights=weights)

    def test_the_loader_goes_on_where_it_was(self):
        class Pairs(list):
            def __getitem__(self, pair):
                return pair

        def make() -> ResumableLoader:
            return ResumableLoader(Pairs(range(10)), batch_size=3, sampler=EpochSampler(range(10)), collate_fn=list)

        one, two = make(), make()
        batches = list(one)
        running = iter(one)
        assert [next(running), next(running)] == batches[:2]
        two.load_state_dict(one.state_dict())
        assert list(two) == batches[2:]
        two.load_state_dict({"epoch": 0, "batches": 4})  # the epoch was over
        assert list(two) == batches


class Recorder(LightningModule):
    """Learns nothing, but keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, tuple[str, ...], bytes]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch_idx, tuple(batch["image_id"]), batch["image"].numpy().tobytes()))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestResume:
    @staticmethod
    def fit(root: Path, folder: Path, workers: int, checkpoint: Path | None = None, **settings: object) -> Recorder:
        module, pictures = Recorder(), FolderDataModule(root, patient_pattern="p(.+)_", num_workers=workers, **SMALL)
        keep = [
            ModelCheckpoint(folder, "step{step}", auto_insert_metric_name=False, every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(folder, "end{epoch}", auto_insert_metric_name=False, save_top_k=-1, every_n_epochs=1),
        ]
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=keep,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **settings,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The dirpath has changed|.*many workers|.*not empty")
            trainer.fit(module, pictures, ckpt_path=checkpoint)
        return module

    def test_a_resumed_run_sees_exactly_the_rest(self, tmp_path):
        root = write_folder_fake(tmp_path / "films", patients=8)
        whole = self.fit(root, tmp_path / "a", 0).seen
        steps = len(whole) // 3
        assert steps >= 4
        assert len({step[2] for step in whole}) == len(whole)
        for name, done in [("step2", 2), (f"step{steps}", steps), (f"step{steps + 1}", steps + 1), ("end0", steps)]:
            rest = self.fit(root, tmp_path / f"from_{name}", 0, tmp_path / "a" / f"{name}.ckpt").seen
            assert rest == whole[done:], name

    def test_in_the_middle_of_an_epoch_with_workers_and_validation(self, tmp_path):
        root = write_folder_fake(tmp_path / "films", patients=8)
        whole = self.fit(root, tmp_path / "a", 0, val_check_interval=0.5).seen
        rest = self.fit(root, tmp_path / "b", 2, tmp_path / "a" / "step7.ckpt", val_check_interval=0.5).seen
        assert rest == whole[7:]


class TestEveryDataModule:
    """What holds for each data set of the registry."""

    @pytest.fixture(params=sorted(MAKERS))
    def module(self, request, tmp_path) -> CXRDataModule:
        return MAKERS[request.param](tmp_path / "data")

    def test_each_registered_one_is_tested(self):
        ours = {name for name in DATASETS if DATASETS.get(name).__module__.startswith("covidcxr.")}
        assert ours - {"feedback"} == set(MAKERS)  # feedback has tests of its own: test_feedback.py

    def test_no_patient_is_in_two_splits(self, module):
        module.setup("fit")
        assert not find_leaks(module.records)
        assert {record.split for record in module.records} == {"train", "val", "test"}
        assert len({record.image_id for record in module.records}) == len(module.records)

    def test_splits_follow_the_data_not_the_place(self, module, tmp_path, request):
        elsewhere = MAKERS[request.node.callspec.params["module"]](tmp_path / "elsewhere")
        assert [(r.image_id, r.split) for r in elsewhere.records] == [(r.image_id, r.split) for r in module.records]

    def test_loaders(self, module):
        module.setup()
        for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
            batch = next(iter(loader))
            assert batch["image"].shape[1:] == (1, 24, 24)
            assert len(batch["image_id"]) == len(batch["label"]) == len(batch["image"]) <= 4
        for split in ("test", "train", "all"):
            module.predict_split = split
            order = [name for batch in module.predict_dataloader() for name in batch["image_id"]]
            assert order == [record.image_id for record in module.records if split in ("all", record.split)]
            assert not module.predict_dataset.augment
        assert module.train_dataset.augment
        assert not module.val_dataset.augment

    def test_counts_and_weights(self, module):
        counts = module.counts()
        weights = module.class_weights()
        frequency = torch.tensor([counts["train"][name] for name in module.classes])
        if module.multilabel:
            known = (~module.train_dataset.labels.isnan()).sum(0)
            torch.testing.assert_close((weights + 1) * frequency, known.float())
            return
        assert sum(sum(part.values()) for part in counts.values()) == len(module.records)
        torch.testing.assert_close(weights * frequency, torch.full((len(frequency),), frequency.sum() / len(frequency)))

    def test_folds(self, module):
        tested: Counter[str] = Counter()
        for fold in range(3):
            part = type(module)(module.root, fold=fold, folds=3, **module.settings)
            tested.update(record.image_id for record in part.test_dataset.records)
            assert not find_leaks(part.records)
        assert tested == {record.image_id: 1 for record in module.records}

    def test_a_missing_root_says_what_to_do(self, module, tmp_path):
        with pytest.raises(DatasetError, match="does not find") as caught:
            type(module)(tmp_path / "nowhere", **module.settings).setup()
        message = str(caught.value)
        assert "nowhere" in message
        assert isinstance(module, CombinedDataModule) or module.layout in message  # whose members tell their own
        assert module.homepage in message


class TestDataModule:
    def test_readers_suit_the_machine(self, tmp_path, monkeypatch, caplog):
        images = FolderDataModule(write_folder_fake(tmp_path / "films"), patient_pattern="p(.+)_", **SMALL)
        monkeypatch.setattr("covidcxr.data.datamodule.suggested_max_num_workers", lambda devices: 16 // devices - 1)
        assert images.reading_processes == 0
        for accelerator, devices, workers in (
            (CPUAccelerator(), 4, 0),
            (MPSAccelerator(), 1, 8),
            (MPSAccelerator(), 8, 1),
        ):
            images.trainer = SimpleNamespace(
                accelerator=accelerator, num_devices=devices, world_size=devices, global_rank=0
            )
            assert images.reading_processes == workers
        with caplog.at_level(logging.INFO):
            assert images.train_dataloader().num_workers == 1
        assert "1 processes read the images of a device" in caplog.text
        images.num_workers = 2
        assert images.val_dataloader().num_workers == 2

    def test_workers_change_nothing(self, tmp_path):
        def batches(workers: int) -> list[dict[str, object]]:
            module = CSVDataModule(
                tmp_path, mask_columns=MASK_COLUMNS, mask_classes=tuple(MASK_COLUMNS), num_workers=workers, **SMALL
            )
            loader = module.train_dataloader()
            found = []
            for epoch in range(2):
                loader.sampler.set_epoch(epoch)
                found += list(loader)
            return found

        write_table_fake(tmp_path)
        alone, two = batches(0), batches(2)
        assert len(alone) == len(two) > 4
        for one, other in zip(alone, two, strict=True):
            assert one["image_id"] == other["image_id"]
            for name in ("image", "label", "mask"):
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)
        assert len({batch["image"].numpy().tobytes() for batch in alone}) == len(alone)

    def test_the_global_generator_is_left_alone(self, tmp_path):
        module = make_table(tmp_path)
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        list(module.train_dataloader())
        list(module.val_dataloader())
        assert torch.rand(1) == expected

    def test_no_image_is_opened_at_set_up(self, tmp_path):
        write_table_fake(tmp_path)
        for path in tmp_path.rglob("*.png"):
            path.write_bytes(b"")
        CSVDataModule(tmp_path).setup()

    def test_a_last_batch_of_one_is_left_out(self, tmp_path):
        module = make_table(tmp_path)
        count = len(module.train_dataset)
        module.batch_size = next(size for size in range(2, count) if count % size == 1)
        assert {len(batch["image_id"]) for batch in module.train_dataloader()} == {module.batch_size}
        module.batch_size = count + 1
        assert len(module.train_dataloader()) == 1

    @pytest.mark.parametrize("balance", ["class", "source", "class+source"])
    def test_balance(self, tmp_path, balance):
        write_table_fake(tmp_path)
        module = CSVDataModule(tmp_path, balance=balance, augment=None, **SMALL)
        pictures = module.train_dataset.records
        weights = sampling_weights(pictures, balance)
        totals: Counter[object] = Counter()
        for record, weight in zip(pictures, weights.tolist(), strict=True):
            totals[record.source if balance == "source" else record.label] += weight
        assert np.ptp(list(totals.values())) < 1e-9
        if balance == "class+source":
            for label in module.classes:
                cells: Counter[str] = Counter()
                for record, weight in zip(pictures, weights.tolist(), strict=True):
                    if record.label == label:
                        cells[record.source] += weight
                assert np.ptp(list(cells.values())) < 1e-9
        torch.testing.assert_close(module.train_dataloader().sampler.weights, weights)

    def test_label_map_merges_and_drops(self, tmp_path):
        write_table_fake(tmp_path)
        module = CSVDataModule(tmp_path, label_map={"pneumonia": "normal", "other": None})
        assert module.classes == ("covid19", "normal")
        assert count_by(module.records, "label").keys() == {"covid19", "normal"}
        fixed = DarkCovidNetDataModule(write_darkcovidnet_fake(tmp_path / "d"), label_map={"pneumonia": None})
        assert fixed.classes == ("covid19", "normal")
        assert len(fixed.records) == 42
        with pytest.raises(ConfigError, match="'pneumonia'"):
            DarkCovidNetDataModule(tmp_path / "d", label_map={"pneumnia": "x"})

    def test_hold_out_source(self, tmp_path):
        module = CSVDataModule(write_table_fake(tmp_path), hold_out_source="south")
        assert {record.source for record in module.test_dataset.records} == {"south"}
        assert "south" not in {record.source for record in module.train_dataset.records + module.val_dataset.records}

    def test_the_split_does_not_hang_on_the_seed_of_training(self, tmp_path):
        write_table_fake(tmp_path)
        splits = [
            [record.split for record in CSVDataModule(tmp_path, **seeds).records]
            for seeds in ({}, {"seed": 1}, {"split_seed": 1})
        ]
        assert splits[0] == splits[1] != splits[2]

    def test_unlabelled_images(self, tmp_path):
        write_table_fake(tmp_path)
        text = (tmp_path / "manifest.csv").read_text().replace(",other,", ",,")
        (tmp_path / "manifest.csv").write_text(text)
        kept, dropped = CSVDataModule(tmp_path), CSVDataModule(tmp_path, drop_unlabelled=True)
        assert kept.classes == dropped.classes == ("covid19", "normal", "pneumonia")
        assert count_by(kept.records, "label")["unknown"] > 0
        assert "unknown" not in count_by(dropped.records, "label")
        assert -1 in kept.train_dataset.labels
        kept.class_weights()

    def test_a_leaking_official_split_is_told_with_its_count(self, tmp_path):
        write_folder_fake(tmp_path, splits=("train", "test"), patients=3)
        module = FolderDataModule(tmp_path, patient_pattern="p[a-z]+([0-9]+)_")
        with pytest.warns(UserWarning, match="leaks: 6 patients"):
            assert len(module.records) == 24

    def test_missing_files_are_counted_and_named(self, tmp_path):
        write_table_fake(tmp_path)
        for path in sorted((tmp_path / "images" / "north").glob("*"))[:7]:
            path.unlink()
        with pytest.raises(DatasetError, match=r"^7 files .*north00_0\.png.* and 2 more"):
            CSVDataModule(tmp_path).setup()

    def test_drawn_masks_serve_images_that_have_none(self, tmp_path):
        root, drawn = write_table_fake(tmp_path / "data"), tmp_path / "drawn"
        with pytest.raises(DatasetError, match="no folder of predicted masks"):
            CSVDataModule(root, drawn_masks=drawn).setup()
        for record in CSVDataModule(root).records:
            write_image(drawn / f"{record.image_id}.lung.png", draw_lungs())
        module = CSVDataModule(root, drawn_masks=drawn, mask_columns=MASK_COLUMNS, region="lungs", **SMALL)
        module.setup()
        for record in module.records:
            name = {"north": "lung_field", "south": "lung", "east": "lung"}[record.source]
            assert record.mask_paths.keys() - {"infection"} == {name}
            assert record.mask_paths[name].is_relative_to(drawn) == (record.source == "east")
        next(iter(module.train_dataloader()))

    def test_a_mask_class_that_no_image_has(self, tmp_path):
        module = CSVDataModule(write_table_fake(tmp_path), mask_columns=MASK_COLUMNS, mask_classes=["lung_feild"])
        with pytest.raises(DatasetError, match="Did you mean 'lung_field'"):
            module.setup()

    def test_nothing_to_train_on(self, tmp_path):
        module = CSVDataModule(write_table_fake(tmp_path), fractions=(0.0, 0.5))
        with pytest.raises(DatasetError, match="for training"):
            module.train_dataloader()
        with pytest.raises(DatasetError, match="covid19"):
            module.class_weights()

    @pytest.mark.parametrize(
        "settings",
        [
            {"fold": 1},
            {"fold": 0, "folds": 3, "hold_out_source": "north"},
            {"balance": "classes"},
            {"batch_size": 0},
            {"image_size": (4, 4)},
            {"region": "lung"},
            {"augment": "defualt"},
            {"label_map": {"covid": "covid19"}},
        ],
    )
    def test_wrong_settings(self, tmp_path, settings):
        with pytest.raises(ConfigError):
            FolderDataModule(write_folder_fake(tmp_path, patients=1), **settings)

    def test_a_data_set_of_ones_own_takes_a_few_lines(self, tmp_path):
        class Mine(CXRDataModule):
            classes = ("a", "b")

            def read_records(self):
                return [Record(self.root / f"{i}.png", "ab"[i % 2], f"p{i}") for i in range(20)]

        for i in range(20):
            write_image(tmp_path / f"{i}.png", draw_image(i))
        assert Mine(tmp_path).counts()["train"] == {"a": 7, "b": 7}


class TestCSV:
    def test_two_conventions_in_one_column_become_two_classes(self, tmp_path):
        module = make_table(tmp_path)
        for record in module.records:
            wanted = {"north": "lung_field", "south": "lung", "east": None}[record.source]
            assert record.mask_paths.keys() - {"infection"} == ({wanted} if wanted else set())
        assert count_by(module.records, "mask")["infection"] == 6
        assert module.records[0].patient_id == "north-0"
        assert (module.records[0].view, module.records[0].sex, module.records[0].age) == ("PA", "F", 40.0)

    def test_split_does_not_depend_on_what_is_left_out(self, tmp_path):
        root = write_table_fake(tmp_path)
        barred = {"test_only": {"source": "south"}}
        splits = {record.image_id: record.split for record in CSVDataModule(root, **barred).records}
        assert set(splits.values()) == {"train", "val", "test"}
        for filters in ({"exclude": {"label": "other"}}, {"where": {"source": "north"}}, {"views": "all"}):
            kept = CSVDataModule(root, **barred, **filters).records
            assert {record.image_id: record.split for record in kept}.items() <= splits.items()

    def test_rows_that_only_test(self, tmp_path):
        root = write_table_fake(tmp_path)
        plain = CSVDataModule(root).records
        barred = {record.patient for record in plain if record.source == "north"}
        module = CSVDataModule(root, test_only={"source": "north"})
        assert {record.split for record in module.records if record.patient in barred} == {"test"}
        others = {record.image_id: record.split for record in plain if record.patient not in barred}
        assert others
        assert others.items() <= {record.image_id: record.split for record in module.records}.items()
        for pooled in ({"folds": 3, "fold": 0}, {"hold_out_source": "south"}):
            split = CSVDataModule(root, **pooled).records
            kept = CSVDataModule(root, test_only={"source": "north"}, **pooled).records
            assert kept == [record for record in split if record.patient not in barred or record.split == "test"]

    def test_masks_known_to_be_empty_train_only(self, tmp_path):
        root = write_table_fake(tmp_path)
        column = {"column": "infection_mask", "empty": {"label": "normal"}}
        module = CSVDataModule(root, mask_columns={"infection": column}, mask_classes=["infection"])
        bare = [r for r in module.records if r.label == "normal" and r.split == "train" and not r.mask_paths]
        assert bare
        assert {r.image_id for r in module.records if r.empty_masks} == {r.image_id for r in bare}
        place = module.train_dataset.records.index(bare[0])
        assert module.train_dataset[place]["mask"].eq(0).all()
        settings = {"mask_columns": {"infection": column}, "mask_classes": ["infection"], "drop_unmasked": True}
        kept = CSVDataModule(root, **settings).train_dataset.records
        assert {"infection"} == {name for r in kept for name in (*r.mask_paths, *r.empty_masks)}
        assert all(r.mask_paths or r.empty_masks for r in kept)
        with pytest.raises(ConfigError, match="drop_unmasked needs mask_classes"):
            CSVDataModule(root, drop_unmasked=True)
        with pytest.raises(DatasetError, match="has 'norml'"):
            CSVDataModule(root, mask_columns={"infection": {**column, "empty": {"label": "norml"}}})

    def test_drawn_masks_for_training_only(self, tmp_path):
        root = write_table_fake(tmp_path / "root")
        pictures = CSVDataModule(root).records
        for record in pictures:
            write_mask(tmp_path / "drawn" / f"{record.image_id}.lung.png", np.ones((4, 4), bool))
        settings = {"drawn_masks": tmp_path / "drawn", "drawn_masks_for": "train"}
        for record in CSVDataModule(root, **settings).records:
            assert ("lung" in record.mask_paths) == (record.split == "train")
        for record in CSVDataModule(root, mask_columns={"infection": "infection_mask"}, **settings).records:
            assert "lung" in record.mask_paths or record.split != "train"
        areas = {record.image_id: 0.01 for record in pictures}
        (tmp_path / "drawn" / MASK_INDEX).write_text(json.dumps({"areas": areas}))
        own = {"lung_field": "infection_mask"}  # images with a lung mask of their own are not judged by drawn ones
        kept = CSVDataModule(root, **settings, mask_columns=own, min_lung_area=0.1).records
        assert kept
        assert all("lung_field" in record.mask_paths for record in kept)
        with pytest.raises(ConfigError, match="drawn_masks_for must be one of all, train"):
            CSVDataModule(root, drawn_masks_for="test")

    def test_where_and_exclude(self, tmp_path):
        write_table_fake(tmp_path)
        module = CSVDataModule(
            tmp_path, where={"source": ["north", "south"]}, exclude={"label": "other", "infection_mask": [""]}
        )
        assert count_by(module.records, "source").keys() <= {"north", "south"}
        assert "other" not in module.classes
        assert 0 < len(module.records) < 6

    def test_a_star_stands_for_any_text(self, tmp_path):
        module = CSVDataModule(write_table_fake(tmp_path), where={"source": "*th"}, exclude={"label": ["co*", "other"]})
        assert count_by(module.records, "source").keys() == {"north", "south"}
        assert module.classes == ("normal", "pneumonia")
        with pytest.raises(DatasetError, match=r"'w\*'"):
            CSVDataModule(tmp_path, where={"source": "w*"})

    @pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t.csv.gz", "t.parquet", "bom.csv"])
    def test_formats_give_the_same_records(self, tmp_path, name):
        expected = CSVDataModule(write_table_fake(tmp_path)).records
        text = (tmp_path / "manifest.csv").read_text(encoding="utf-8")
        path = tmp_path / name
        if name == "t.parquet":
            import pyarrow.csv
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "manifest.csv"), path)
        elif name == "t.csv.gz":
            import gzip

            path.write_bytes(gzip.compress(text.encode()))
        else:
            delimiter = {"t.csv": ",", "t.tsv": "\t", "t.txt": ";", "bom.csv": ","}[name]
            mark = "\ufeff" if name == "bom.csv" else ""
            path.write_text(mark + text.replace(",", delimiter), encoding="utf-8")
        assert CSVDataModule(tmp_path, table=name).records == expected

    def test_official_split_column(self, tmp_path):
        write_table_fake(tmp_path)
        lines = (tmp_path / "manifest.csv").read_text().splitlines()
        names = ["Train", "valid", "Test"]
        # By patient: the fourth field holds the patient's number.
        numbers = [int(line.split(",")[3].strip().split("-")[1]) for line in lines[1:]]
        table = [lines[0] + ",split", *(f"{line},{names[n % 3]}" for line, n in zip(lines[1:], numbers, strict=True))]
        (tmp_path / "s.csv").write_text("\n".join(table))
        records = CSVDataModule(tmp_path, table="s.csv").records
        assert [record.split for record in records] == [["train", "val", "test"][number % 3] for number in numbers]
        assert (
            CSVDataModule(tmp_path, table="s.csv", split_column=None).counts()
            != CSVDataModule(tmp_path, table="s.csv").counts()
        )
        (tmp_path / "s.csv").write_text("\n".join(table).replace("valid", "holdout"))
        with pytest.raises(DatasetError, match=r"Line 3 of .*'holdout'"):
            CSVDataModule(tmp_path, table="s.csv").setup()

    @pytest.mark.parametrize(
        ("settings", "error", "match"),
        [
            ({"table": "manifets.csv"}, DatasetError, r"manifets\.csv"),
            ({"path_column": "file"}, DatasetError, "no column 'file'"),
            ({"label_column": "lable"}, DatasetError, "Did you mean 'label'"),
            ({"mask_columns": {"lung": "lungmask"}}, DatasetError, "Did you mean 'lung_mask'"),
            ({"mask_columns": {"lung": {"colum": "lung_mask"}}}, ConfigError, "Did you mean 'column'"),
            ({"mask_columns": {"lung": {"where": {}}}}, ConfigError, "must say its column"),
            ({"mask_columns": {"lung": {"column": "lung_mask", "where": {"source": "nort"}}}}, DatasetError, "'north'"),
            ({"where": {"source": ["nowhere"]}}, DatasetError, "'nowhere'"),
            ({"where": {"soruce": ["north"]}}, DatasetError, "Did you mean 'source'"),
            ({"where": {"source": "north"}, "exclude": {"source": "north"}}, DatasetError, "finds no image"),
            ({"classes": ["covid19"]}, DatasetError, "label_map"),
        ],
    )
    def test_clear_errors(self, tmp_path, settings, error, match):
        write_table_fake(tmp_path)
        with pytest.raises(error, match=match):
            CSVDataModule(tmp_path, **settings).setup()

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("", "is empty"),
            ("path,label,patient_id\n", "finds no image"),
            ("path,label,patient_id\na.png,x,1\nb.png,x\n", "Line 3 .* 2 fields"),
            ('path,label,patient_id\na.png,"x,1\n', "cannot be read"),
            ("path,label,patient_id\na.png,x,1\na.png,x,1\n", r"more than once: a\.png"),
            ("path,label,patient_id\n,x,1\n", "Line 2 .* names no image"),
            ("path,label,label,patient_id\na.png,x,x,1\n", "one name"),
        ],
    )
    def test_damaged_tables(self, tmp_path, text, match):
        write_image(tmp_path / "a.png", draw_image(0))
        (tmp_path / "manifest.csv").write_text(text)
        with pytest.raises(DatasetError, match=match):
            CSVDataModule(tmp_path).setup()

    def test_other_encodings_and_kinds(self, tmp_path):
        (tmp_path / "latin.csv").write_bytes("path,label,patient_id\nä.png,x,1\n".encode("latin-1"))
        (tmp_path / "no.parquet").write_bytes(b"no table")
        for name, match in (("latin.csv", "UTF-8"), ("no.parquet", "no Parquet")):
            with pytest.raises(DatasetError, match=match):
                CSVDataModule(tmp_path, table=name)

    def test_ages(self):
        given = ["63", "50+", "early 40s", "058Y", "0.5", "", "unknown"]
        assert [parse_age(text) for text in given] == [63, 50, 40, 58, 0.5, None, None]

    def test_every_setting_is_a_key_of_a_config_file(self, tmp_path):
        import jsonargparse
        import yaml

        write_table_fake(tmp_path)
        given = {
            "root": str(tmp_path),
            "mask_columns": MASK_COLUMNS,
            "image_size": [32, 32],
            "exclude": {"label": ["other"]},
        }
        given |= {"label_map": {"pneumonia": None}, "fold": 1, "folds": 3, "augment": "light", "cache": "memory"}
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(CXRDataModule, "data")
        text = yaml.safe_dump({"data": {"class_path": "covidcxr.data.datasets.csv.CSVDataModule", "init_args": given}})
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # renamed in jsonargparse 4.5x
        module = instantiate(parser.parse_string(text)).data
        assert module.classes == ("covid19", "normal")
        assert module.geometry.image_size == (32, 32)
        assert module.folds == 3


def make_findings(root: Path, **settings: object) -> CSVDataModule:
    return CSVDataModule(write_findings_fake(root), table="findings.csv", label_columns=FINDINGS, **settings, **SMALL)


class TestFindings:
    """Classes that are not exclusive."""

    def test_words_of_a_table(self, tmp_path):
        module = make_findings(tmp_path)
        assert module.classes == FINDINGS
        assert module.multilabel
        assert [dict(record.findings) for record in module.records[:4]] == [
            {"Edema": True, "Fracture": True},
            {"Edema": False, "Fracture": False, "Pneumonia": True},
            {"Fracture": False, "Pneumonia": False},
            {"Fracture": False},
        ]
        assert {record.label for record in module.records} == {None}
        assert count_by(module.records, "label") == {"Pneumonia": 13, "Edema": 10, "Fracture": 8}
        whole, part = count_by(module.records, "label"), module.counts()["train"]
        assert all(abs(part[name] - 0.7 * count) <= 2 for name, count in whole.items())

    def test_samples_tell_each_class_by_itself(self, tmp_path):
        pictures = make_findings(tmp_path, fractions=(1.0, 0.0), augment=None).train_dataset
        expected = torch.tensor([[1, 1, torch.nan], [0, 0, 1], [torch.nan, 0, 0], [torch.nan, 0, torch.nan]])
        found = torch.stack([pictures[index]["label"] for index in range(4)])
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        pictures[0]["label"][:] = 7  # a sample's own copy
        torch.testing.assert_close(pictures[0]["label"], expected[0], equal_nan=True)

    def test_all_splits_agree(self, tmp_path):
        rows = [
            {"path": f"{picture}.png", "patient_id": f"{picture}", "split": "train", "Edema": "1"}
            for picture in range(6)
        ]
        rows += [
            {"path": f"{picture}.png", "patient_id": f"{picture}", "split": "test", "Edema": ""}
            for picture in range(6, 9)
        ]
        for picture, row in enumerate(rows):
            write_image(tmp_path / row["path"], draw_image(picture))
        write_csv(tmp_path / "manifest.csv", rows)
        module = CSVDataModule(tmp_path, label_columns=["Edema"], drop_unlabelled=False)
        assert not any(record.findings for record in module.test_dataset.records)
        assert module.test_dataset[0]["label"].isnan().tolist() == [True]
        dropped = CSVDataModule(tmp_path, label_columns=["Edema"], drop_unlabelled=True)
        assert (len(dropped.records), dropped.left_out) == (6, {"no label": 3})

    def test_weights_balance_the_loss(self, tmp_path):
        from covidcxr.losses import BCELoss

        module = make_findings(tmp_path)
        labels, weights = module.train_dataset.labels, module.class_weights()
        assert (weights > 0).all()
        # With the weights, saying "even" about everything is the best that a constant can do.
        logits = torch.zeros(labels.shape, requires_grad=True)
        BCELoss(pos_weight=weights.tolist())(logits, labels).backward()
        torch.testing.assert_close(logits.grad.sum(0), torch.zeros(len(FINDINGS)), atol=1e-6, rtol=0)
        module.train_dataset.labels[:, 0] = 0
        with pytest.raises(DatasetError, match="Edema"):
            module.class_weights()

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"balance": "class"}, "source"),
            ({"balance": "class+source"}, "source"),
            ({"label_map": {"Edema": "x"}}, "may"),
        ],
    )
    def test_what_needs_exclusive_classes(self, tmp_path, settings, match):
        with pytest.raises(ConfigError, match=match):
            make_findings(tmp_path, **settings).setup()
        make_findings(tmp_path, balance="source").train_dataloader()

    def test_other_words_are_refused_with_their_line(self, tmp_path):
        table = write_findings_fake(tmp_path) / "findings.csv"
        table.write_text(
            table.read_text().replace("02.png,1,,0", "02.png,1,maybe,0").replace("04.png,2,1.0", "04.png,2,2")
        )
        module = CSVDataModule(tmp_path, table="findings.csv", label_columns=FINDINGS)
        with module.collected_faults() as faults:
            assert len(list(module.kept_records())) == 38
        assert [fault.split(": ")[0] for fault in faults] == [f"Line {line} of {table}" for line in (4, 6)]
        assert "'maybe' in 'Edema' is no finding" in faults[0]

    def test_unknown_names(self, tmp_path):
        with pytest.raises(DatasetError, match="Did you mean 'Edema'"):
            CSVDataModule(write_findings_fake(tmp_path), table="findings.csv", label_columns=["Edma"])
        with pytest.raises(DatasetError, match="finding 'Edema', which is no class"):
            make_findings(tmp_path, classes=("Edemas", "Fracture", "Pneumonia")).setup()
        wide = make_findings(tmp_path, classes=("Mass", *FINDINGS))
        assert wide.train_dataset.labels[:, 0].isnan().all()

    def test_a_label_among_findings_is_refused(self, picture):
        shown = replace(picture, label=None, findings={"covid19": True})
        assert dataset(shown)[0]["label"].tolist()[0] == 1.0
        with pytest.raises(DatasetError, match=r"findings=\{'normal': True\}"):
            dataset(shown, picture)

    def test_findings_survive_a_process_border(self, picture):
        shown = replace(picture, label=None, findings={"covid19": True})
        assert pickle.loads(pickle.dumps(shown)) == shown != replace(picture, label=None)
        assert len({shown, shown}) == 1
        with pytest.raises(ConfigError, match="cannot be counted"):
            count_by([shown], "findings")


class TestFolder:
    def test_official_splits(self, tmp_path):
        write_folder_fake(tmp_path, splits=("Train", "valid", "test"), patients=2)
        module = FolderDataModule(tmp_path, patient_pattern="p(.+)_")
        assert module.classes == ("covid19", "normal")
        assert count_by(module.records, "split") == {"test": 8, "train": 8, "val": 8}
        assert {r.image_id.split("/")[0] for r in module.records if r.split == "val"} == {"valid"}

    def test_only_images_count(self, tmp_path):
        write_folder_fake(tmp_path, patients=2)
        (tmp_path / ".git").mkdir()
        names = {record.image_path.name for record in FolderDataModule(tmp_path, patient_pattern="p(.+)_").records}
        assert all(name.endswith(".png") and not name.startswith(".") for name in names)
        assert len(names) == 8

    def test_unknown_patients_are_told_once(self, tmp_path):
        module = FolderDataModule(write_folder_fake(tmp_path))
        with pytest.warns(UserWarning, match="patient_pattern") as caught:
            module.setup()
        assert len(caught) == 1
        module.setup()  # a second warning would be an error
        assert all(record.patient_id is None for record in module.records)

    def test_source_pattern(self, tmp_path):
        module = FolderDataModule(write_folder_fake(tmp_path), patient_pattern="p(.+)_", source_pattern="_([01])")
        assert count_by(module.records, "source") == {"0": 20, "1": 20}

    @pytest.mark.parametrize(
        "pattern", [r"(?:x(\d+)|p(\d+))_", r"(x\d+)?", r"p()\d", "( *)", r"(?P<patient>x\d)?p(\d+)"]
    )
    def test_a_pattern_that_fits_without_naming_a_patient(self, tmp_path, pattern):
        write_folder_fake(tmp_path, patients=2)
        with pytest.raises(DatasetError, match=r"4 file names in .*covid19 without telling the patient: p.*\.png"):
            FolderDataModule(tmp_path, patient_pattern=pattern).setup()

    def test_groups_by_name(self, tmp_path):
        pattern = r"(p)(?P<patient>\d+)_(?P<source>\d)"
        module = FolderDataModule(write_folder_fake(tmp_path), patient_pattern=pattern, source_pattern=pattern)
        assert count_by(module.records, "source") == {"0": 20, "1": 20}
        assert len({record.patient_id for record in module.records}) == 20
        assert not find_leaks(module.records)

    @staticmethod
    def nest(root: Path, *, loose: bool = False) -> Path:
        """`CLASS/PATIENT/DAY/1.png`, beside what systems leave behind; loose = also images in the class folders."""
        if loose:
            write_folder_fake(root, patients=2)
        for place, name in enumerate(("covid19", "normal")):
            for patient in range(5):
                for inner in (f"p{place}{patient}", f"p{place}{patient}/day 2", ".hidden", "__MACOSX"):
                    write_image(root / name / inner / "1.png", draw_image(patient))
        write_image(root / "__MACOSX" / "covid19" / "1.png", draw_image(0))
        return root

    def test_a_folder_a_patient(self, tmp_path):
        module = FolderDataModule(self.nest(tmp_path), subfolders=True, patient_pattern="([^/]+)/")
        assert module.classes == ("covid19", "normal")
        assert count_by(module.records, "patient_id") == {
            f"p{place}{number}": 2 for place in (0, 1) for number in range(5)
        }
        assert not find_leaks(module.records)

    def test_folders_below_classes_do_not_vanish_in_silence(self, tmp_path):
        with pytest.raises(DatasetError, match=r"holds no image\. 10 lie in folders below it: set subfolders=True"):
            FolderDataModule(self.nest(tmp_path / "nested"), patient_pattern="(.+)").setup()
        root = self.nest(tmp_path / "mixed", loose=True)
        write_image(root / "overview.png", draw_image(0))
        with pytest.warns(UserWarning, match="are ignored") as caught:
            records = FolderDataModule(root, patient_pattern="(.+)_").records
        told = [str(warning.message) for warning in caught]
        assert len(records) == 8
        assert told[0].startswith("1 images")
        assert "no class folder and are ignored: overview.png" in told[0]
        assert told[1].startswith("20 images")
        assert "covid19 (10), normal (10). subfolders=True reads them" in told[1]

    def test_a_link_that_leads_back(self, tmp_path):
        root = self.nest(tmp_path)
        (root / "normal" / "p10" / "all").symlink_to(root / "normal")
        assert len(FolderDataModule(root, subfolders=True, patient_pattern="([^/]+)/").records) == 20

    def test_clear_errors(self, tmp_path):
        write_folder_fake(tmp_path, patients=2)
        for pattern, error, match in (
            ("p(", ConfigError, "no regular expression"),
            ("p[0-9]+", ConfigError, "group"),
            ("q(.+)_", DatasetError, "4 file names"),
        ):
            with pytest.raises(error, match=match):
                FolderDataModule(tmp_path, patient_pattern=pattern).setup()
        (tmp_path / "empty").mkdir()
        with pytest.raises(DatasetError, match="holds no image"):
            FolderDataModule(tmp_path, patient_pattern="p(.+)_").setup()
        with pytest.raises(DatasetError, match="no class folder"):
            FolderDataModule(tmp_path / "empty")


class TestDarkCovidNet:
    def test_published_folders(self, tmp_path):
        module = make_darkcovidnet(tmp_path)
        assert count_by(module.records, "label") == {"normal": 30, "pneumonia": 30, "covid19": 12}
        assert count_by(module.records, "source") == {"nih": 60, "ieee8023": 12}
        assert len({r.patient_id for r in module.records if r.source == "nih"}) == 20
        assert len({r.patient_id for r in module.records if r.source == "ieee8023"}) == 3

    def test_without_the_patients_of_the_other_collection(self, tmp_path):
        module = DarkCovidNetDataModule(write_darkcovidnet_fake(tmp_path, metadata=False))
        with pytest.warns(UserWarning, match=r"metadata\.csv"):
            records = module.records
        assert len({r.patient_id for r in records if r.source == "ieee8023"}) == 6  # by the names of the series

    def test_root_may_be_the_folder_itself(self, tmp_path):
        write_darkcovidnet_fake(tmp_path)
        (tmp_path / "metadata.csv").rename(tmp_path / "X-Ray Image DataSet" / "metadata.csv")
        assert len(DarkCovidNetDataModule(tmp_path / "X-Ray Image DataSet").records) == 72

    def test_tables_in_place_of_folders(self, tmp_path):
        module = DarkCovidNetDataModule(write_manifest_fake(tmp_path))
        assert count_by(module.records, "label") == {"covid19": 8, "normal": 6, "pneumonia": 6}
        assert count_by(module.records, "source") == {"nih": 12, "ieee8023": 8}
        assert count_by(module.records, "mask") == {"lung": 8, "infection": 4}
        subset = tmp_path / "darkcovidnet_subset.csv"
        subset.write_text(subset.read_text() + "images/nih/none.jpg,normal\n")
        with pytest.raises(DatasetError, match=r"1 images .* does not list: .*none\.jpg"):
            DarkCovidNetDataModule(tmp_path).setup()

    def test_an_empty_class(self, tmp_path):
        for picture in (write_darkcovidnet_fake(tmp_path) / "X-Ray Image DataSet" / "Pneumonia").iterdir():
            picture.unlink()
        with pytest.raises(DatasetError, match="Pneumonia holds no image"):
            DarkCovidNetDataModule(tmp_path).setup()

    def test_a_missing_class(self, tmp_path):
        write_darkcovidnet_fake(tmp_path)
        (tmp_path / "X-Ray Image DataSet" / "Pneumonia").rename(tmp_path / "Pneumonia")
        with pytest.raises(DatasetError, match=r"github\.com/muhammedtalo"):
            DarkCovidNetDataModule(tmp_path).setup()


class TestStatistics:
    def test_mean_and_std_leave_out_the_frame(self, tmp_path):
        module = CSVDataModule(write_table_fake(tmp_path), image_size=SIZE, augment="strong")
        pixels = np.stack([np.asarray(draw_of(record.image_path)) for record in module.train_dataset.records]) / 255
        np.testing.assert_allclose(compute_mean_std(module), (pixels.mean(), pixels.std()), atol=1e-12)
        wide = CSVDataModule(tmp_path, image_size=(40, 200), augment="strong")
        np.testing.assert_allclose(compute_mean_std(wide), (pixels.mean(), pixels.std()), atol=1e-12)

    def test_nothing_to_compute_from(self, tmp_path):
        with pytest.raises(DatasetError, match="no training image"):
            compute_mean_std(CSVDataModule(write_table_fake(tmp_path), fractions=(0.0, 0.5)))


def draw_of(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path))


def test_records_load_neither_torch_nor_lightning():
    code = """
        import sys
        from covidcxr.data import Record, assign_splits, count_by, find_leaks, k_folds
        print([name for name in ("torch", "lightning", "numpy", "pandas", "cv2") if name in sys.modules])
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_all_public_names_are_there():
    import covidcxr.data

    assert all(getattr(covidcxr.data, name) for name in covidcxr.data.__all__)
    assert set(covidcxr.data.__all__) == set(dir(covidcxr.data))
    with pytest.raises(AttributeError, match="Recrod"):
        _ = covidcxr.data.Recrod


@pytest.mark.real
class TestRealImages:
    MASKS = {  # noqa: RUF012
        "lung_field": {"column": "lung_mask", "where": {"source": ["montgomery", "shenzhen"]}},
        "lung": {"column": "lung_mask", "where": {"source": ["ieee8023"]}},
        "infection": "infection_mask",
    }

    def test_manifest(self, real_data):
        module = CSVDataModule(real_data, mask_columns=self.MASKS, mask_classes=tuple(self.MASKS))
        module.setup()
        assert len(module.records) == 1486
        assert len({record.patient_id for record in module.records}) == 1045
        assert count_by(module.records, "mask") == {"lung": 231, "lung_field": 103 + 120, "infection": 64}
        assert not find_leaks(module.records)
        for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            whole, part = count_by(module.records, "label"), module.counts("label")[split]
            assert all(abs(part[value] / count - share) < 0.04 for value, count in whole.items())
        sample = module.train_dataset[0]
        assert sample["image"].std() > 0.05

    def test_every_source_can_be_held_out(self, real_data):
        for source in ("nih", "hannover"):
            module = CSVDataModule(real_data, hold_out_source=source, exclude={"label": "other"})
            assert {record.source for record in module.train_dataset.records}.isdisjoint({source})
            assert source in {record.source for record in module.test_dataset.records}
            assert not find_leaks(module.records)

    def test_lung_regions(self, real_data):
        module = CSVDataModule(
            real_data, mask_columns=self.MASKS, exclude={"lung_mask": ""}, region="lungs", image_size=(64, 64)
        )
        assert len(module.records) == 454
        sample = module.val_dataset[0]
        assert 0.05 < sample["lung_mask"].mean() < 0.7
        assert sample["image"][sample["lung_mask"] == 0].eq(0).all()

    def test_darkcovidnet(self, real_data):
        module = DarkCovidNetDataModule(real_data, folds=5, fold=0)
        assert count_by(module.records, "label") == {"pneumonia": 375, "normal": 374, "covid19": 80}
        assert count_by(module.records, "source") == {"nih": 749, "ieee8023": 80}
        assert not find_leaks(module.records)
        assert len(module.test_dataset) == pytest.approx(829 / 5, abs=3)


def test_a_reader_under_its_old_name_is_used(tmp_path: Path) -> None:
    class OldReader(FolderDataModule):
        def read_film(self, record):
            return 1 - super().read_film(record)

    root = write_folder_fake(tmp_path / "images")
    pattern = r"(.+)_\d\."
    old, plain = (kind(root, patient_pattern=pattern) for kind in (OldReader, FolderDataModule))
    record = old.records[0]
    assert np.array_equal(old.load_image(record), 1 - plain.load_image(record))
    assert np.array_equal(plain.read_film(record), plain.load_image(record))
    assert has_own_reader(old)
    assert not has_own_reader(plain)


class TestAugmentedCopies:
    def make(self, tmp_path: Path, **settings: object) -> CSVDataModule:
        return CSVDataModule(write_table_fake(tmp_path), image_size=(48, 48), augment="strong", **settings)  # type: ignore[arg-type]

    def test_they_alone_are_augmented_alike_in_every_epoch(self, tmp_path: Path) -> None:
        plain, data = self.make(tmp_path), self.make(tmp_path, augmented_copies={"normal": 7})
        images, bare = (
            data.train_dataset,
            CXRDataset(plain.train_dataset.records, classes=plain.classes, image_size=(48, 48)),
        )
        assert len(images) == len(bare) + 7
        assert Counter(record.label for record in images.records[-7:]) == {"normal": 7}
        for place in range(len(bare)):
            assert torch.equal(images[3, place]["image"], bare[place]["image"])
        originals = {record.image_id: place for place, record in enumerate(bare.records)}
        changed = 0
        for place in range(len(bare), len(images)):
            sample = images[0, place]
            assert torch.equal(sample["image"], images[5, place]["image"])
            changed += not torch.equal(sample["image"], bare[originals[sample["image_id"]]]["image"])
        assert changed >= 6
        assert len({images[0, place]["image"].numpy().tobytes() for place in range(len(bare), len(images))}) == 7
        for part in ("val_dataset", "test_dataset"):
            assert len(getattr(data, part)) == len(getattr(plain, part))

    def test_wrong_ones_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"'norml'.*Did you mean 'normal'"):
            self.make(tmp_path, augmented_copies={"norml": 7}).setup()
        with pytest.raises(ConfigError, match="augmented_copies needs"):
            self.make(tmp_path, augmented_copies={"normal": -1})
        with pytest.raises(ConfigError, match="augmented_copies needs"):
            CSVDataModule(tmp_path, augment=None, augmented_copies={"normal": 1})
