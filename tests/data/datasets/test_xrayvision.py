"""The adapter of TorchXRayVision's data sets, on made folders."""

from __future__ import annotations

import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import write_csv, write_image, write_xrv_chexpert_fake, write_xrv_covid_fake
from lightning.pytorch import Trainer

from covidcxr.config import ModelConfig, PreprocessConfig
from covidcxr.data import XRayVisionDataModule, count_by, find_leaks
from covidcxr.errors import ConfigError, DatasetError, ImageReadError, UnknownNameError
from covidcxr.evaluation import score_rows
from covidcxr.io.image import read_image
from covidcxr.tasks import ClassificationTask

COVID = {"dataset": "COVID19_Dataset", "dataset_args": {"imgpath": "images", "csvpath": "metadata.csv"}}
CHEXPERT = {
    "dataset": "CheX_Dataset",
    "dataset_args": {"imgpath": ".", "csvpath": "train.csv", "views": ["*"], "unique_patients": False},
}
SMALL = {"image_size": (24, 24), "batch_size": 4}


@pytest.fixture
def xrv():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchxrayvision

    return torchxrayvision.datasets


def covid(xrv, root: Path, **settings: object):
    write_xrv_covid_fake(root)
    return xrv.COVID19_Dataset(str(root / "images"), str(root / "metadata.csv"), **settings)


def chexpert(xrv, root: Path):
    write_xrv_chexpert_fake(root)
    return xrv.CheX_Dataset(str(root), str(root / "train.csv"), views=["*"], unique_patients=False)


def truth(dataset, classes: tuple[str, ...]) -> np.ndarray:
    """Their own labels, in the order of our classes."""
    return dataset.labels[:, [list(dataset.pathologies).index(name) for name in classes]]


class TestByName:
    def test_what_it_tells(self, tmp_path):
        module = XRayVisionDataModule(write_xrv_covid_fake(tmp_path), **COVID)
        assert module.classes == ("Bacterial", "COVID-19", "No Finding", "Pneumonia", "Viral")
        record = next(record for record in module.records if record.image_id == "COVID19_Dataset/film-01-0.png")
        assert (record.patient_id, record.source) == ("COVID19_Dataset-1a", "COVID19_Dataset")
        assert (record.view, record.sex, record.age) == ("PA", "M", 40.0)
        assert record.image_path == tmp_path / "images" / "film-01-0.png"
        assert record.label is None
        assert record.findings.keys() == set(module.classes)
        assert {name for name, shown in record.findings.items() if shown} == {"Pneumonia", "Viral", "COVID-19"}
        assert module.multilabel
        assert not find_leaks(module.records)

    def test_views_are_theirs_and_ours(self, tmp_path):
        root = write_xrv_covid_fake(tmp_path)
        every = COVID | {"dataset_args": {**COVID["dataset_args"], "views": ["*"]}}
        frontal, all_views = XRayVisionDataModule(root, **every), XRayVisionDataModule(root, views="all", **every)
        assert count_by(frontal.records, "view").keys() == {"AP", "PA"}
        assert frontal.left_out == {"lateral": len(all_views.records) - len(frontal.records)}

    def test_labels_that_are_not_known_are_nan(self, tmp_path, xrv):
        module = XRayVisionDataModule(write_xrv_chexpert_fake(tmp_path), **CHEXPERT)
        images = module._dataset("all")
        assert (len(images), images.labels.dtype, images[0]["label"].shape) == (21, torch.float32, (13,))
        dataset = xrv.CheX_Dataset(str(tmp_path), str(tmp_path / "train.csv"), views=["*"], unique_patients=False)
        np.testing.assert_array_equal(images.labels.numpy(), truth(dataset, module.classes))
        assert 0.1 < images.labels.isnan().float().mean() < 0.95
        assert {record.sex for record in images.records} == {"F"}
        assert {record.age for record in images.records} == {60.0}

    def test_global_random_states_are_left_alone(self, tmp_path):
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)
        torch.manual_seed(7)
        expected = np.random.random(), random.random(), torch.rand(1)  # noqa: NPY002
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)
        torch.manual_seed(7)
        module = XRayVisionDataModule(write_xrv_covid_fake(tmp_path), **COVID)
        list(module.val_dataloader())
        assert (np.random.random(), random.random(), torch.rand(1)) == expected  # noqa: NPY002

    def test_its_import_silences_nothing(self, tmp_path):
        XRayVisionDataModule(write_xrv_covid_fake(tmp_path), **COVID)
        with pytest.warns(UserWarning, match="heard"):
            warnings.warn("heard", stacklevel=1)

    @pytest.mark.parametrize(
        ("settings", "error", "match"),
        [
            ({"dataset": "COVID19Dataset"}, UnknownNameError, "Did you mean 'COVID19_Dataset'"),
            ({"dataset": "MergeDataset"}, UnknownNameError, "no data set 'MergeDataset'"),
            ({"dataset_args": {"imgpath": "images"}}, ConfigError, "needs dataset_args: csvpath"),
            ({"dataset_args": {"imgpath": "i", "csvpth": "m"}}, ConfigError, "Did you mean 'csvpath'"),
            ({"dataset_args": {"imgpath": "images", "csvpath": "meta.csv"}}, DatasetError, "valid metadata"),
            ({"root": "nowhere"}, DatasetError, "dataset_args"),
        ],
    )
    def test_wrong_settings(self, tmp_path, settings, error, match):
        write_xrv_covid_fake(tmp_path)
        root = tmp_path / settings.pop("root", "")
        with pytest.raises(error, match=match):
            XRayVisionDataModule(root, **(COVID | settings))

    @pytest.mark.parametrize("settings", [{"label_map": {"Viral": "COVID-19"}}, {"balance": "class"}])
    def test_what_needs_exclusive_classes(self, tmp_path, settings):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            XRayVisionDataModule(write_xrv_covid_fake(tmp_path), **COVID, **settings).setup()


class TestInstances:
    def test_pictures_are_the_files_own(self, tmp_path, xrv):
        dataset = covid(xrv, tmp_path)
        assert dataset[0]["img"].min() < -500  # theirs are in [-1024, 1024]
        module = XRayVisionDataModule(dataset=dataset)
        for record in module.records:
            picture = module.load_image(record)
            assert picture.dtype == np.float32
            np.testing.assert_allclose(picture, read_image(record.image_path), atol=1e-4)

    def test_merged_cut_down_and_relabelled_ones(self, tmp_path, xrv):
        one, two = covid(xrv, tmp_path / "a"), chexpert(xrv, tmp_path / "b")
        names = ["COVID-19", "", "Pneumonia", "Edema"]  # "" = an output of a model that has no name
        for dataset in (one, two):
            xrv.relabel_dataset(names, dataset, silent=True)
        merged = xrv.MergeDataset([one, two])
        cut = xrv.SubsetDataset(merged, [1, len(one) + 2, 4, len(one), len(one) + 3])
        module = XRayVisionDataModule(dataset=cut, fractions=(1.0, 0.0), augment=None, **SMALL)
        assert module.classes == ("COVID-19", "Pneumonia", "Edema")
        assert [record.source for record in module.records] == [
            *("COVID19_Dataset", "CheX_Dataset", "COVID19_Dataset"),
            *("CheX_Dataset", "CheX_Dataset"),
        ]
        images = module.train_dataset
        np.testing.assert_array_equal(images.labels.numpy(), truth(cut, module.classes))
        for index, record in enumerate(module.records):
            unit = (cut[index]["img"][0] + 1024) / 2048
            np.testing.assert_allclose(module.load_image(record), unit, atol=1e-6)
            if record.source == "COVID19_Dataset":
                np.testing.assert_allclose(read_image(record.image_path), unit, atol=1e-4)
        assert {record.patient_id for record in module.records if record.source == "CheX_Dataset"} <= {
            f"CheX_Dataset-{patient:05d}" for patient in range(14)
        }

    def test_a_image_that_is_listed_twice_counts_once(self, tmp_path, xrv):
        both = xrv.FilterDataset(covid(xrv, tmp_path), ["COVID-19", "Viral"])
        module = XRayVisionDataModule(dataset=both)
        assert len(module.records) == len(both) // 2
        assert module.left_out == {"listed again": len(both) // 2}
        assert all(record.findings["Viral"] for record in module.records)

    def test_covariate_shift(self, tmp_path, xrv):
        one, two = covid(xrv, tmp_path / "a"), chexpert(xrv, tmp_path / "b")
        flags = [dataset.labels[:, list(dataset.pathologies).index("Pneumonia")] > 0 for dataset in (one,)]
        flags.append(np.arange(len(two)) % 2 == 0)
        shifted = xrv.CovariateDataset(one, flags[0], two, flags[1], ratio=0.75)
        module = XRayVisionDataModule(dataset=shifted)
        for record in module.records:
            place = module._places[record.image_id]
            assert record.findings == {"Custom": bool(shifted.labels[place, 0])}
            assert record.source == ("CheX_Dataset" if shifted.site[place] else "COVID19_Dataset")
            unit = (shifted[place]["img"][0] + 1024) / 2048
            np.testing.assert_allclose(module.load_image(record), unit, atol=1e-6)

    def test_workers_change_nothing(self, tmp_path, xrv):
        dataset = chexpert(xrv, tmp_path)
        alone, two = (
            list(XRayVisionDataModule(dataset=dataset, num_workers=n, **SMALL).train_dataloader()) for n in (0, 2)
        )
        for one, other in zip(alone, two, strict=True):
            assert one["image_id"] == other["image_id"]
            assert one["image"].equal(other["image"])
            torch.testing.assert_close(one["label"], other["label"], rtol=0, atol=0, equal_nan=True)

    def test_survives_a_process_border(self, tmp_path, xrv):
        images = XRayVisionDataModule(dataset=chexpert(xrv, tmp_path), **SMALL).val_dataset
        assert pickle.loads(pickle.dumps(images))[0]["image"].equal(images[0]["image"])

    def test_random_changes_are_refused(self, tmp_path, xrv):
        dataset = xrv.SubsetDataset(covid(xrv, tmp_path, data_aug=lambda image: image), [0, 1])
        with pytest.raises(ConfigError, match="data_aug"):
            XRayVisionDataModule(dataset=dataset)
        with pytest.raises(ConfigError, match=r"not \[1, 2\]"):
            XRayVisionDataModule(dataset=[1, 2])
        with pytest.raises(ConfigError, match="by its name"):
            XRayVisionDataModule(dataset=dataset, dataset_args={"imgpath": "x"})

    @pytest.mark.parametrize(
        ("transform", "match"),
        [
            (lambda image: (image + 1024) / 2048, r"\[0\.\d+, 0\.\d+\]"),
            (lambda image: (image + 1024) / 2048 * 255, r"-1024, 1024"),
            (lambda image: image * 2, r"-1024, 1024"),
            (lambda image: image * np.nan, r"-1024, 1024"),
            (lambda image: image[0], "shape"),
            (lambda image: 1 // 0, "film-00-0"),
        ],
    )
    def test_a_wrong_range_is_an_error(self, tmp_path, xrv, transform, match):
        module = XRayVisionDataModule(dataset=covid(xrv, tmp_path, transform=transform))
        with pytest.raises(ImageReadError, match=match):
            module.load_image(module.records[0])

    def test_their_own_transforms_are_fine(self, tmp_path, xrv):
        module = XRayVisionDataModule(dataset=covid(xrv, tmp_path, transform=xrv.XRayCenterCrop()))
        assert module.load_image(module.records[0]).shape == (32, 32)

    def test_a_image_that_is_not_there_is_named(self, tmp_path, xrv):
        module = XRayVisionDataModule(dataset=covid(xrv, tmp_path))
        records = module.records
        records[0].image_path.unlink()
        with pytest.raises(ImageReadError, match=records[0].image_id):
            module.load_image(records[0])

    def test_unknown_patients_are_told(self, tmp_path, xrv):
        for patient in range(12):
            write_image(tmp_path / "CXR_png" / f"MCUCXR_{patient:04d}_{patient % 2}.png", np.full((9, 9), 20, np.uint8))
        module = XRayVisionDataModule(dataset=xrv.NLMTB_Dataset(str(tmp_path)))
        with pytest.warns(UserWarning, match="NLMTB_Dataset tells no patients"):
            assert count_by(module.records, "label") == {"Tuberculosis": 6}
        assert module.records[0].image_path == tmp_path / "CXR_png" / "MCUCXR_0000_0.png"

    def test_grades_are_no_findings(self, tmp_path, xrv):
        columns = ("Subject_ID", "Exam_DateTime", "Total GEOGRAPHIC", "Total OPACITY")
        row = dict(zip(columns, ("A1", "20200401_1", "3", "5"), strict=True))
        rows = [row | {f"{name}.1": row[name] for name in columns[2:]} for _ in range(3)]
        text = write_csv(tmp_path / "m.csv", rows).read_text()
        (tmp_path / "m.csv").write_text("a first line\n" + text)
        dataset = xrv.StonyBrookCOVID_Dataset(str(tmp_path), str(tmp_path / "m.csv"))
        with pytest.raises(DatasetError, match="'Geographic Extent' is a grade"):
            XRayVisionDataModule(dataset=dataset).setup()


def test_a_network_learns_from_findings_with_gaps(tmp_path):
    module = XRayVisionDataModule(
        write_xrv_chexpert_fake(tmp_path), image_size=(64, 64), batch_size=4, num_workers=0, **CHEXPERT
    )
    preprocess = PreprocessConfig(image_size=(64, 64))
    network = {"network": "timm:resnet10t", "classes": module.classes, "mode": "multilabel", "preprocess": preprocess}
    task = ClassificationTask(ModelConfig("classification", **network))
    before = {name: value.clone() for name, value in task.named_parameters()}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
    )
    trainer.fit(task, module)
    assert all(value.isfinite().all() for value in task.parameters())
    assert any(not value.equal(before[name]) for name, value in task.named_parameters())
    assert trainer.callback_metrics["train/loss"].isfinite()
    trainer.test(task, module, verbose=False)
    scores = score_rows(task.rows, resamples=10)
    assert scores.keys() >= {f"auroc_{name}" for name in module.classes}
    known = {row["image_id"]: row["label_Edema"] for row in task.rows}
    for record in module.test_dataset.records:
        shown = record.findings.get("Edema")
        assert np.isnan(known[record.image_id]) if shown is None else known[record.image_id] == shown


@pytest.mark.slow
def test_the_genuine_table_of_nih(tmp_path):
    """The table that TorchXRayVision brings along: counts as published (Wang 2017)."""
    arguments = {"imgpath": ".", "views": ["*"], "unique_patients": False}
    module = XRayVisionDataModule(tmp_path, dataset="NIH_Dataset", dataset_args=arguments)
    assert len(module.records) == 112_120
    assert len({record.patient_id for record in module.records}) == 30_805
    counts = count_by(module.records, "label")
    assert (counts["Infiltration"], counts["Effusion"], counts["Hernia"]) == (19_894, 13_317, 227)
    assert not find_leaks(module.records)
    train = module.counts()["train"]
    assert all(abs(train[name] / count - 0.7) < 0.01 for name, count in counts.items())
