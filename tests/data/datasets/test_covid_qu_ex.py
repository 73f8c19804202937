"""COVID-QU-Ex: on a fake in the layout of the download, on broken copies, on the genuine names."""

from __future__ import annotations

import csv
import gzip
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fakes import write_covid_qu_ex_fake, write_csv
from PIL import Image

from covidcxr.data import CovidQUExDataModule, Record, count_by, find_leaks
from covidcxr.data.collection import Collection
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.data.summary import count_ages
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.evaluation.predictions import PredictionTable
from covidcxr.evaluation.shortcuts.images import _column_tables
from covidcxr.tasks.rows import add_traits

LUNG = "COVID-QU-Ex_dataset/Lung Segmentation Data/Lung Segmentation Data"
INFECTION = "COVID-QU-Ex_dataset/Infection Segmentation Data/Infection Segmentation Data"


def faults_of(module: CovidQUExDataModule) -> list[str]:
    with module.collected_faults() as faults:
        module.unsplit_records()
    return faults


def test_every_field(tmp_path):
    root = write_covid_qu_ex_fake(tmp_path)
    found = {record.image_id: record for record in CovidQUExDataModule(root).unsplit_records()}
    folder = root / LUNG / "Val" / "COVID-19"
    name = "sub-S00002_ses-E00013_run-1_bp-chest_vp-ap_cr.png"
    assert found[f"{LUNG}/Val/COVID-19/images/{name}"] == Record(
        folder / "images" / name,
        "COVID-19",
        "bimcv-S00002",
        "bimcv",
        "val",
        {"lung_field": folder / "lung masks" / name},
        view="AP",
        image_id=f"{LUNG}/Val/COVID-19/images/{name}",
    )
    capital = found[f"{LUNG}/Train/Non-COVID/images/Non_COVID (1).png"]
    assert (capital.label, capital.patient_id, capital.view) == ("Non-COVID", None, None)
    assert (capital.source, capital.age_group) == ("rsna", "adult")


@pytest.mark.parametrize(
    ("label", "name", "source", "age_group"),
    [
        ("Non-COVID", "Non_COVID (662).png", "rsna", "adult"),
        ("Non-COVID", "non_COVID (5047).png", "rsna", "adult"),
        ("Non-COVID", "non_COVID (7000).png", "unknown", None),
        ("Non-COVID", "non_COVID (10306).png", "kermany", "child"),
        ("Normal", "Normal (2108).png", "rsna", "adult"),
        ("Normal", "Normal (5000).png", "unknown", None),
        ("Normal", "Normal (9770).png", "kermany", "child"),
        ("Normal", "Normal (10233).png", "rsna", "adult"),
        ("Normal", "Normal (12000).png", "kermany", "child"),
        ("Normal", "Normal.png", "unknown", None),
        ("COVID-19", "covid_12.png", "unknown", None),
    ],
)
def test_numbers_of_files_tell_source_and_age_group(tmp_path, label, name, source, age_group):
    folder = write_covid_qu_ex_fake(tmp_path) / INFECTION / "Test" / label
    for kind in ("images", "lung masks", "infection masks"):
        shutil.copy(next((folder / kind).iterdir()), folder / kind / name)
    records = CovidQUExDataModule(tmp_path, part="infection").unsplit_records()
    record = next(record for record in records if record.image_path.name == name)
    assert (record.source, record.age_group, record.patient_id) == (source, age_group, None)


def write_origins(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    """A manifest.csv of the infection part: path below its top, source, group."""
    columns = ("path", "source", "label", "patient_id", "view", "sex", "age", "lung_mask", "infection_mask")
    lines = [
        {**dict.fromkeys(columns, ""), **dict(zip(("path", "source", "patient_id"), row, strict=True))} for row in rows
    ]
    write_csv(folder / "manifest.csv", lines)


def test_a_manifest_tells_sources_and_groups(tmp_path):
    root = write_covid_qu_ex_fake(tmp_path, doubled=False)
    top = "Infection Segmentation Data"
    rows = [
        (f"{top}/Train/COVID-19/images/covid_6.png", "bimcv", "bimcv-b1"),
        (f"{top}/Test/COVID-19/images/covid_18.png", "bimcv", "bimcv-b1"),
        (f"{top}/Val/COVID-19/images/covid_15.png", "quex_mixed", "quex_mixed-15"),
        (f"{top}/Test/Normal/images/Normal (18).png", "rsna", "rsna-n18"),
    ]
    write_origins(root / "COVID-QU-Ex_dataset", rows)
    module = CovidQUExDataModule(root, part="infection")
    with pytest.warns(UserWarning, match="1 patients are in more than one part"):
        records = {record.image_path.name: record for record in module.records}
    named = {name: (record.source, record.patient_id, record.age_group) for name, record in records.items()}
    assert named["covid_6.png"] == named["covid_18.png"] == ("bimcv", "bimcv-b1", None)
    assert named["covid_15.png"] == ("quex_mixed", "quex_mixed-15", None)
    assert named["covid_9.png"] == ("unknown", None, None)
    assert named["Normal (18).png"] == ("rsna", "rsna-n18", "adult")
    assert named["Normal (19).png"] == ("rsna", None, "adult")
    assert records["covid_6.png"].label == "COVID-19"
    assert records["covid_6.png"].mask_paths.keys() == {"lung_field", "infection"}

    known = CovidQUExDataModule(root, part="infection", official_split=False, drop_unknown_patients=True)
    kept = {record.image_path.name for record in known.records}
    assert kept == {name for name, record in records.items() if record.patient_id}
    assert {"covid_6.png", "covid_18.png"} < kept
    assert "covid_9.png" not in kept
    assert known.left_out["patient not known"] == len(records) - len(kept)
    assert not find_leaks(known.records)


def test_a_table_that_is_no_manifest_tells_nothing(tmp_path):
    root = write_covid_qu_ex_fake(tmp_path)
    write_csv(root / "manifest.csv", [{"path": "a.png", "patient_id": "1"}])
    records = CovidQUExDataModule(root, part="infection").records
    assert {record.patient_id for record in records if not record.image_path.name.startswith("sub-")} == {None}


def test_counts_and_laterals(tmp_path):
    module = CovidQUExDataModule(write_covid_qu_ex_fake(tmp_path))
    assert module.counts()["train"] == {"Non-COVID": 12, "Normal": 12, "COVID-19": 10}
    assert module.counts()["val"] == module.counts()["test"] == {"Non-COVID": 6, "Normal": 6, "COVID-19": 5}
    assert module.left_out == {"lateral": 4}
    every = CovidQUExDataModule(tmp_path, views="all")
    assert count_by(every.records, "view") == {"unknown": 60, "AP": 4, "LL": 4, "PA": 4}


@pytest.mark.parametrize("doubled", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_levels_of_folders(tmp_path, doubled, inside):
    root = write_covid_qu_ex_fake(tmp_path, doubled=doubled)
    root = root / "COVID-QU-Ex_dataset" if inside else root
    assert len(CovidQUExDataModule(root).records) == 68
    assert len(CovidQUExDataModule(root, part="infection").records) == 57


def test_infection_masks_of_the_others_are_there_and_zero(tmp_path):
    records = CovidQUExDataModule(write_covid_qu_ex_fake(tmp_path), part="infection").records
    assert all(record.mask_paths.keys() == {"lung_field", "infection"} for record in records)
    for record in records:
        drawn = np.asarray(Image.open(record.mask_paths["infection"])).any()
        assert drawn == (record.label == "COVID-19")


def test_both_parts_are_one_record_a_image(tmp_path):
    module = CovidQUExDataModule(write_covid_qu_ex_fake(tmp_path), part="both")
    with pytest.warns(UserWarning, match="3 of the 54 images that are in both parts"):
        records = module.records
    found = {record.image_path.name: record for record in records}
    assert len(found) == len(records) == 78 - 4
    torn = found["Normal (12).png"]
    assert (torn.split, torn.image_path.parent) == ("val", tmp_path / LUNG / "Val" / "Normal" / "images")
    assert torn.mask_paths["lung_field"].is_relative_to(tmp_path / LUNG)
    assert torn.mask_paths["infection"].parent == tmp_path / INFECTION / "Train" / "Normal" / "infection masks"
    assert found["Normal (0).png"].mask_paths.keys() == {"lung_field"}  # in the lung part only
    alone = found["Normal (25).png"]
    assert alone.image_path.is_relative_to(tmp_path / INFECTION)
    assert (alone.split, alone.mask_paths.keys()) == ("test", {"lung_field", "infection"})
    CovidQUExDataModule(tmp_path, part="both", official_split=False).setup()  # nothing to warn of


def test_one_part_alone_needs_no_other(tmp_path):
    shutil.rmtree(write_covid_qu_ex_fake(tmp_path) / "COVID-QU-Ex_dataset" / "Lung Segmentation Data")
    assert len(CovidQUExDataModule(tmp_path, part="infection").records) == 57
    with pytest.raises(DatasetError, match=r"does not find .*Lung Segmentation Data"):
        CovidQUExDataModule(tmp_path).setup()
    with pytest.raises(ConfigError, match="part must be one of lung, infection, both"):
        CovidQUExDataModule(tmp_path, part="lungs")


def test_all_that_is_broken_is_told_at_once(tmp_path):
    root = write_covid_qu_ex_fake(tmp_path)
    shutil.rmtree(root / LUNG / "Test" / "Normal" / "images")
    for image in (root / LUNG / "Val" / "Non-COVID" / "images").iterdir():
        image.unlink()
    (root / LUNG / "Train" / "COVID-19" / "lung masks" / "covid_0.png").unlink()
    faults = faults_of(CovidQUExDataModule(root))
    assert len(faults) == 3
    for fault, part in zip(
        faults, ("Non-COVID/images holds no image", "does not find", "1 files .*covid_0"), strict=True
    ):
        with pytest.raises(DatasetError, match=part):
            raise DatasetError(fault)


def test_a_image_whose_masks_are_left_is_missed_by_the_check_only(tmp_path):
    root = write_covid_qu_ex_fake(tmp_path)
    (root / INFECTION / "Train" / "Normal" / "images" / "Normal (7).png").unlink()
    module = CovidQUExDataModule(root, part="infection")
    faults = [fault for fault in check_dataset(module).faults if "images of the release" not in fault]
    assert len(faults) == 2
    for fault, folder in zip(faults, ("lung masks", "infection masks"), strict=True):
        assert fault.startswith(
            f"1 masks in {root / INFECTION / 'Train' / 'Normal' / folder} have no image: Normal (7)"
        )
    assert len(module.records) == 56


def test_an_empty_folder_says_where_to_get_it(tmp_path):
    assert len(faults_of(CovidQUExDataModule(tmp_path))) == 1
    with pytest.raises(DatasetError, match=r"does not find .*Lung Segmentation Data\..*anasmohammedtahir/covidqu"):
        CovidQUExDataModule(tmp_path).setup()
    (tmp_path / "Lung Segmentation Data").mkdir()
    assert len(faults_of(CovidQUExDataModule(tmp_path))) == 9


@pytest.fixture(scope="module")
def genuine(real_data, tmp_path_factory) -> Path:
    """The lung part with its genuine names, all files empty, no masks."""
    root = tmp_path_factory.mktemp("covid_qu_ex")
    top = root / "Lung Segmentation Data"
    for split in ("Train", "Val", "Test"):
        for label in CovidQUExDataModule.classes:
            (top / split / label / "images").mkdir(parents=True)
    with gzip.open(real_data / "layouts" / "covid_qu_ex" / "file_list.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            (top / row["split"].capitalize() / row["label"] / "images" / row["file_name"]).touch()
    return root


@pytest.mark.real
class TestGenuineNames:
    def test_counts_sources_views_patients(self, genuine):
        module = CovidQUExDataModule(genuine, views="all")
        records = list(module.kept_records())
        assert len(records) == 33920
        counts = Counter(f"{record.split}/{record.label}" for record in records)
        assert counts == module.releases["2021, lung part"]
        assert count_by(records, "label") == {"COVID-19": 11956, "Non-COVID": 11263, "Normal": 10701}
        assert count_by(records, "source") == {"unknown": 12475, "rsna": 9581, "bimcv": 8078, "kermany": 3786}
        assert len({record.patient_id for record in records} - {None}) == 3186
        bimcv = [record for record in records if record.source == "bimcv"]
        assert {record.label for record in bimcv} == {"COVID-19"}
        assert count_by(bimcv, "view") == {"AP": 4416, "PA": 2934, "unknown": 404, "LL": 323, "LATERAL": 1}

    def test_laterals_are_left_out_and_the_official_split_is_clean(self, genuine, monkeypatch):
        monkeypatch.setattr(Collection, "find_missing", lambda self, records: [])  # no masks here
        module = CovidQUExDataModule(genuine)
        assert not find_leaks(module.records)
        assert module.left_out == {"lateral": 324}
        assert count_by(module.records, "split") == {"train": 21715 - 194, "test": 6788 - 76, "val": 5417 - 54}

    def test_genuine_samples(self, real_data):
        module = CovidQUExDataModule(real_data / "layouts" / "covid_qu_ex", part="infection")
        with module.collected_faults() as faults:
            records = module.unsplit_records()
        assert len(faults) == 6  # Train and Val are not there
        assert Counter(record.label for record in records) == {"COVID-19": 2, "Non-COVID": 2, "Normal": 2}
        for record in records:
            drawn = np.asarray(Image.open(record.mask_paths["infection"]))
            assert drawn.any() == (record.label == "COVID-19")
            assert set(np.unique(drawn)) <= {0, 255}


def test_published_counts_of_each_part(tmp_path):
    root = write_covid_qu_ex_fake(tmp_path)
    expected = {"lung": 33_920, "infection": 5_826, "both": None}
    for part, images in expected.items():
        known = CovidQUExDataModule(root, part=part).known_releases()
        assert [sum(counts.values()) for counts in known.values()] == ([] if images is None else [images])
    report = check_dataset(CovidQUExDataModule(root, part="infection"))
    assert any("train/COVID-19: " in fault and "of 1,864 images" in fault for fault in report.faults)


@pytest.mark.real
def test_the_genuine_infection_part(real_data):
    root = real_data.parent / "data2"
    if not (root / "Infection Segmentation Data").is_dir():
        pytest.skip("the infection part is not at hand")
    module = CovidQUExDataModule(root, part="infection")
    with pytest.warns(UserWarning, match="165 patients are in more than one part"):
        records = module.records
    assert count_by(records, "age_group") == {"unknown": 2693, "adult": 2084, "child": 769}
    known = [record for record in records if record.patient_id]
    assert count_by(known, "source") == {"rsna": 2054, "bimcv": 1053, "quex_mixed": 883}
    assert {record.age_group for record in known if record.source == "rsna"} == {"adult"}
    # The rule of the numbers says the same of every image that the manifest vouches for.
    module._read_manifest = lambda top: []
    by_number = {record.image_id: record.source for record in module.unsplit_records()}
    assert all(by_number[record.image_id] == "rsna" for record in known if record.source == "rsna")


def test_age_groups_reach_statistics_rows_and_probes():
    records = [Record(Path(f"{n}.png"), age_group="child" if n % 2 else "adult") for n in range(4)]
    records += [Record(Path("4.png"), age=41.0, age_group="adult"), Record(Path("5.png"))]
    assert count_ages(records) == {"40-49": 1, "adult": 2, "child": 2, "unknown": 1}
    rows = add_traits([{"image_id": record.image_id} for record in records], records)
    assert [row["age"] for row in rows] == ["adult", "child", "adult", "child", 41.0, ""]
    labels = [{"label": "ab"[n % 2], "probability_b": 0.5} for n in range(6)]
    table = PredictionTable.read([{**row, **label} for row, label in zip(rows, labels, strict=True)])
    assert table.trait("age").tolist() == ["adult", "child", "adult", "child", "40 to 59", "not stated"]
    probe = _column_tables(records)["age"]
    assert probe.varies
    assert not np.array_equal(probe.values[0], probe.values[1], equal_nan=True)
