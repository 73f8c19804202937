"""COVID-XRay-5K: on a fake in the layout of the archive, and on broken copies."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
from fakes import draw_image, write_covid_xray_5k_fake, write_image

from covidcxr.data import CovidXray5kDataModule, Record


def faults_of(module: CovidXray5kDataModule) -> list[str]:
    with module.collected_faults() as faults, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.unsplit_records()
    return faults


def test_every_field(tmp_path):
    root = write_covid_xray_5k_fake(tmp_path)
    found = {record.image_id: record for record in CovidXray5kDataModule(root).unsplit_records()}
    name = "data/train/covid/covid-19-pneumonia-3-day5.jpg"
    assert found[name] == Record(root / name, "covid", "ieee8023-1a", "ieee8023", "train", image_id=name)
    name = "data/test/non/Edema/Edema-patient00101-study1-view1_frontal.jpg"
    patient = "chexpert-patient00101"
    expected = Record(root / name, "non", patient, "chexpert", "test", view="frontal", image_id=name)
    assert found[name] == expected
    counts = Counter((record.split, record.label) for record in found.values())
    assert counts == {("train", "covid"): 16, ("train", "non"): 12, ("test", "covid"): 8, ("test", "non"): 12}


def test_validation_is_cut_from_training(tmp_path):
    module = CovidXray5kDataModule(write_covid_xray_5k_fake(tmp_path), fractions=(0.6, 0.4))
    counts = module.counts()
    assert counts["test"] == {"non": 12, "covid": 8}
    assert counts["val"].keys() == counts["train"].keys() == {"non", "covid"}
    assert module.classes == ("non", "covid")


@pytest.mark.parametrize("place", ["", "data", "data_upload_v3"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_places_and_names_of_the_folders(tmp_path, place, split):
    data = write_covid_xray_5k_fake(tmp_path / "a") / "data"
    (data / "test").rename(data / split)
    root = tmp_path / "b"
    root.mkdir()
    if place:
        data.rename(root / place)
    else:
        root.rmdir()
        data.rename(root)
    (tmp_path / "a" / "metadata.csv").rename(root / "metadata.csv")
    records = CovidXray5kDataModule(root).unsplit_records()
    assert Counter(record.split for record in records) == {"train": 28, split: 20}


def test_patients_are_guessed_from_names_without_the_table(tmp_path):
    module = CovidXray5kDataModule(write_covid_xray_5k_fake(tmp_path, metadata=False))
    with pytest.warns(UserWarning, match=r"metadata\.csv"):
        records = module.records
    patients = {record.patient_id for record in records if record.label == "covid"}
    assert patients == {f"ieee8023-covid-19-pneumonia-{number}" for number in range(12)}  # two of each are one patient


def test_the_patient_of_other_images_is_in_the_path_or_not_known(tmp_path):
    root = write_covid_xray_5k_fake(tmp_path)
    for name in ("patient00777/study1/view2_lateral.jpg", "no_finding_12.jpg"):
        write_image(root / "data" / "train" / "non" / name, draw_image(1))
    module = CovidXray5kDataModule(root)
    found = {record.image_path.name: record for record in module.unsplit_records()}
    assert found["no_finding_12.jpg"].patient_id is None
    assert "view2_lateral.jpg" not in found
    assert module.left_out == {"lateral": 1}
    lateral = next(record for record in module.read_records() if record.view == "lateral")
    assert lateral.patient_id == "chexpert-patient00777"


def test_augmented_copies_are_told_with_their_counts(tmp_path):
    module = CovidXray5kDataModule(write_covid_xray_5k_fake(tmp_path, copies=70))
    with pytest.warns(UserWarning, match="holds 86 images, 2 more than the 84 .* cut from"):
        assert len(module.records) == 48 + 70


def test_broken_copies(tmp_path):
    root = write_covid_xray_5k_fake(tmp_path)
    data = root / "data"
    for path in (data / "train" / "covid").iterdir():
        path.unlink()
    (data / "test" / "non").rename(tmp_path / "elsewhere")
    faults = faults_of(CovidXray5kDataModule(root))
    assert len(faults) == 2
    assert f"{data / 'train' / 'covid'} holds no image" in faults[0]
    assert f"does not find {data / 'test' / 'non'}" in faults[1]
    assert "github.com/shervinmin/DeepCovid" in faults[1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_that_is_lost(tmp_path, split):
    root = write_covid_xray_5k_fake(tmp_path)
    (root / "data" / split).rename(tmp_path / "elsewhere")
    (fault,) = faults_of(CovidXray5kDataModule(root))
    assert f"{split}. root is {root}" in fault


@pytest.mark.real
def test_counts_of_the_layout(real_data):
    text = (real_data / "layouts" / "covid_xray_5k" / "LAYOUT.md").read_text()
    plain, copied = (CovidXray5kDataModule.releases[name] for name in ("v3", "v3 with augmented copies"))
    assert f"| train | {plain['train/covid']} ({copied['train/covid']} after aug" in text
    assert f"tation) | {plain['train/non']:,} |" in text
    assert f"| test | {plain['test/covid']} | {plain['test/non']:,} |" in text
    assert f"Total {sum(plain.values()):,} images" in text
    assert sum(copied.values()) - sum(plain.values()) == 336


def test_a_cut_table_of_patients(tmp_path):
    root = write_covid_xray_5k_fake(tmp_path)
    with (root / "metadata.csv").open("a") as file:
        file.write("9a,COVID-19\n")
    (fault,) = faults_of(CovidXray5kDataModule(root))
    assert "has 2 fields, the header has 3" in fault
