"""COVID-CXNet's images: numbered, of all kinds of files, half of them in a table."""

from __future__ import annotations

import pytest
from fakes import write_covid_cxnet_fake, write_manifest_fake

from covidcxr.data import CovidCXNetDataModule, count_by, find_leaks
from covidcxr.errors import DatasetError


def test_images_are_found_in_the_table_by_their_numbers(tmp_path):
    module = CovidCXNetDataModule(write_covid_cxnet_fake(tmp_path), image_size=(24, 24))
    assert module.classes == ("COVID-19",)
    assert len(module.records) == 28
    for record in module.records:
        image = int(record.image_path.name[:3]) - 260
        assert record.patient_id == f"cxnet-{image * 2 // 3}"
        assert record.view == ("AP", None, "PA")[image % 3]
        assert record.age == (63.0 if image % 2 else None)
    assert {record.image_path.suffix for record in module.records} == {
        ".jpg",
        ".PNG",
        ".jpeg",
        ".webp",
        ".jfif",
        ".png",
    }
    for sample in module.train_dataset:  # all kinds can be read
        assert sample["image"].std() > 0


@pytest.mark.parametrize("place", ["chest_xray_images/covid19", "covid19", "."])
def test_where_the_images_may_lie(tmp_path, place):
    images = write_covid_cxnet_fake(tmp_path) / "chest_xray_images" / "covid19"
    images.rename(tmp_path / "films")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for image in list((tmp_path / "films").iterdir()):
        image.rename(tmp_path / place / image.name)
    assert len(CovidCXNetDataModule(tmp_path).records) == 28


def test_unknown_patients_are_told_with_their_count(tmp_path):
    module = CovidCXNetDataModule(write_covid_cxnet_fake(tmp_path, tabled=20))
    with pytest.warns(UserWarning, match="patients of 8 of 28 images"):
        records = module.records
    assert sum(record.patient_id is None for record in records) == 8
    assert count_by(records, "label") == {"COVID-19": 28}


def test_a_manifest_is_read_in_place_of_the_published_files(tmp_path):
    module = CovidCXNetDataModule(write_manifest_fake(tmp_path))
    assert count_by(module.records, "label") == {"COVID-19": 12}
    assert count_by(module.records, "source") == {"cxnet": 12}


def test_broken_copies(tmp_path):
    root = write_covid_cxnet_fake(tmp_path)
    for image in (root / "chest_xray_images" / "covid19").iterdir():
        image.unlink()
    (root / "metadata.csv").unlink()
    module = CovidCXNetDataModule(root)
    with module.collected_faults() as faults:
        assert not list(module.kept_records())
    assert len(faults) == 2
    assert all("github.com/armiro/COVID-CXNet" in fault for fault in faults)
    with pytest.raises(DatasetError, match="does not find"):
        CovidCXNetDataModule(root).setup()


@pytest.mark.real
def test_real_images(real_data):
    module = CovidCXNetDataModule(real_data, image_size=(64, 64))
    assert count_by(module.records, "label") == {"COVID-19": 120}
    assert len({record.patient_id for record in module.records}) == 120
    assert not find_leaks(module.records)
    assert module.train_dataset[0]["image"].std() > 0.05
