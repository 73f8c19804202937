"""COVID-19 Radiography Database: on fakes of two releases, on broken copies."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fakes import SIZE, write_radiography_fake
from openpyxl import Workbook
from PIL import Image

from covidcxr.data import Covid19RadiographyDataModule, Record, count_by
from covidcxr.errors import DatasetError

TOP = "COVID-19_Radiography_Dataset"


def faults_of(module: Covid19RadiographyDataModule) -> list[str]:
    with module.collected_faults() as faults, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.unsplit_records()
    return faults


def test_every_field(tmp_path):
    top = write_radiography_fake(tmp_path) / TOP
    found = {record.image_id: record for record in Covid19RadiographyDataModule(tmp_path).unsplit_records()}
    name = f"{TOP}/Viral Pneumonia/images/Viral Pneumonia-3.png"
    assert found[name] == Record(
        tmp_path / name,
        "Viral Pneumonia",
        source="kermany",
        mask_paths={"lung_field": top / "Viral Pneumonia" / "masks" / "Viral Pneumonia-3.png"},
        image_id=name,
    )
    labels = Counter(record.label for record in found.values())
    assert labels == dict.fromkeys(Covid19RadiographyDataModule.classes, 8)


def test_sources_are_read_from_urls_whatever_the_case_of_names(tmp_path):
    records = Covid19RadiographyDataModule(write_radiography_fake(tmp_path)).records
    sources = {record.image_path.stem: record.source for record in records}
    covid = ["sirm", "hannover", "eurorad", "covid_cxnet", "ieee8023", "bimcv", "figshare.com", "sirm"]
    assert [sources[f"COVID-{n}"] for n in range(1, 9)] == covid
    assert [sources[f"Normal-{n}"] for n in range(1, 3)] == ["rsna", "kermany"]  # NORMAL-1 in the table
    assert sources["Lung_Opacity-5"] == "rsna"


def test_masks_of_another_size_lie_on_their_images(tmp_path):
    module = Covid19RadiographyDataModule(
        write_radiography_fake(tmp_path), mask_classes=("lung_field",), image_size=SIZE, augment=None
    )
    assert np.asarray(Image.open(module.records[0].mask_paths["lung_field"])).shape == (20, 16, 3)
    sample = module.train_dataset[0]
    dark = sample["image"][0][sample["mask"][0] == 1].mean()
    assert dark < sample["image"][0][sample["mask"][0] == 0].mean() - 0.2


def test_older_releases(tmp_path):
    root = write_radiography_fake(tmp_path, old=True)
    records = Covid19RadiographyDataModule(root, label_map={"Lung_Opacity": None}).records
    assert count_by(records, "label") == {"COVID": 8, "Normal": 8, "Viral Pneumonia": 8}
    assert not any(record.mask_paths for record in records)
    found = {record.image_path.relative_to(root / TOP).as_posix(): record.source for record in records}
    assert found["COVID/COVID (2).png"] == "hannover"
    assert found["NORMAL/Normal (2).png"] == "kermany"
    assert "unknown" not in found.values()


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_levels_of_folders(tmp_path, levels):
    root = write_radiography_fake(tmp_path) / ("" if levels else TOP)
    if levels == 2:
        (root / TOP).rename(root / "inner")
        (root / TOP).mkdir()
        (root / "inner").rename(root / TOP / TOP)
    assert len(Covid19RadiographyDataModule(root).records) == 32


def test_missing_workbooks_cost_the_sources_and_one_warning(tmp_path):
    root = write_radiography_fake(tmp_path)
    for label in ("COVID", "Normal"):
        (root / TOP / f"{label}.metadata.xlsx").unlink()
    with pytest.warns(UserWarning, match="sources of the COVID, Normal images") as caught:
        records = Covid19RadiographyDataModule(root).records
    assert len(caught) == 1
    assert count_by(records, "source") == {"unknown": 16, "kermany": 8, "rsna": 8}


def test_all_that_is_broken_is_told_at_once(tmp_path):
    top = write_radiography_fake(tmp_path) / TOP
    shutil.rmtree(top / "Lung_Opacity")
    for image in (top / "Normal" / "images").iterdir():
        image.unlink()
    (top / "COVID" / "masks" / "COVID-3.png").unlink()
    (top / "Viral Pneumonia" / "images" / "Viral Pneumonia-2.png").unlink()
    (top / "COVID.metadata.xlsx").write_bytes(b"PK cut sho")
    book = Workbook()
    book.active.append(["FILE NAME", "FORMAT"])
    book.save(top / "Normal.metadata.xlsx")
    faults = faults_of(Covid19RadiographyDataModule(tmp_path))
    expected = (
        "does not find .*Lung_Opacity",
        "COVID.* no Excel file",
        "no column 'URL'",
        "holds no image",
        "1 masks in .*Viral Pneumonia/masks have no image: Viral Pneumonia-2",
        "1 files .*COVID-3",
    )
    assert len(faults) == len(expected)
    for fault, part in zip(faults, expected, strict=True):
        with pytest.raises(DatasetError, match=part):
            raise DatasetError(fault)


def test_an_empty_folder_says_where_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match=r"does not find .*COVID\. .*tawsifurrahman"):
        Covid19RadiographyDataModule(tmp_path).setup()
    assert len(faults_of(Covid19RadiographyDataModule(tmp_path))) == 3


@pytest.mark.real
def test_counts_of_the_releases(real_data):
    text = (real_data / "layouts" / "covid19_radiography" / "LAYOUT.md").read_text()
    recent = Covid19RadiographyDataModule.releases["second update, 2021"]
    for label, count in recent.items():
        assert f"| {label.removeprefix('all/')} | {count:,} |" in text
    assert sum(recent.values()) == 21165
    first = Covid19RadiographyDataModule.releases["first release"]
    assert (
        f"{first['all/COVID']} COVID-19, {first['all/Normal']:,} Normal, {first['all/Viral Pneumonia']:,} Viral" in text
    )


def test_the_root_may_be_a_relative_path(tmp_path, monkeypatch):
    write_radiography_fake(tmp_path)
    monkeypatch.chdir(tmp_path)
    records = Covid19RadiographyDataModule(Path(TOP)).records
    assert records[0].image_id == "COVID/images/COVID-1.png"
