"""COVIDx CT: on a fake with every kind of name, on broken copies, on genuine lines."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest
from fakes import write_covidx_ct2_fake

from covidcxr.data import CovidxCT2DataModule, Record, count_by, find_leaks
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.errors import ConfigError


def faults_of(module: CovidxCT2DataModule) -> list[str]:
    with module.collected_faults() as faults:
        module.unsplit_records()
    return faults


def test_every_field(tmp_path):
    root = write_covidx_ct2_fake(tmp_path)
    module = CovidxCT2DataModule(root)
    found = {record.image_path.name: record for record in module.unsplit_records()}
    name = "NCP_0_2577_0116.png"
    assert found[name] == Record(
        root / "2A_images" / name,
        "COVID-19",
        "NCP_0",
        "cncb",
        "train",
        view="Axial",
        sex="F",
        age=77,
        box=(4, 2, 39, 30),  # the file says xmin ymin xmax ymax: 2 4 30 39
        image_id=f"2A_images/{name}",
    )
    assert (found["137covid_patient100_SR_4_IM00024.png"].sex, found["CP_10_3112_0032.png"].sex) == ("M", None)
    assert Counter(record.split for record in found.values()) == {"train": 33, "val": 33, "test": 33}
    assert not module.left_out  # slices of a CT module are no images to leave out


@pytest.mark.parametrize(
    ("name", "source", "patient"),
    [
        ("Normal_0_780_0024.png", "cncb", "Normal_0"),
        ("CP_0_3112_0032.png", "cncb", "CP_0"),
        ("normalcd3_patient0_SR_2_IM00029.png", "covid-ctset", "patient0"),
        ("137covid_patient100_SR_4_IM00024.png", "covid-ctset", "patient100"),
        ("coronacases_000-0095.png", "coronacases", "coronacases_000"),
        ("radiopaedia_0_85703_0-0003.png", "radiopaedia", "radiopaedia_0_85703"),
        ("radiopaedia-0-30-1-0005.png", "radiopaedia", "radiopaedia-0"),
        ("LIDC-IDRI-0000-1.3.6.1.4.1.14519.5.2.1.6279.6001.0000-0104.png", "lidc-idri", "LIDC-IDRI-0000"),
        # Two scans of one patient: the challenge took its own from the collection at TCIA.
        ("volume-covid19-A-0000_1_ct-0020.png", "covid-19-20", "volume-covid19-A-0000"),
        ("volume-covid19-A-0000-0021.png", "tcia", "volume-covid19-A-0000"),
    ],
)
def test_names_tell_source_and_patient(tmp_path, name, source, patient):
    records = CovidxCT2DataModule(write_covidx_ct2_fake(tmp_path)).unsplit_records()
    record = next(record for record in records if record.image_path.name == name)
    assert (record.source, record.patient_id) == (source, patient)


def test_a_new_kind_of_name_is_grouped_by_scan(tmp_path):
    root = write_covidx_ct2_fake(tmp_path)
    path = root / "train_COVIDx_CT-2A.txt"
    path.write_text(path.read_text() + "ward_7_3_0001.png 2 0 0 9 9\nHUST-Patient12-0001.png 2 0 0 9 9\n")
    with (module := CovidxCT2DataModule(root)).collected_faults():
        found = {record.image_path.name: record for record in module.read_records()}
    assert (found["ward_7_3_0001.png"].source, found["ward_7_3_0001.png"].patient_id) == ("unknown", "ward_7_3")
    assert found["HUST-Patient12-0001.png"].source == "ictcf"


def test_a_box_beyond_512_pixels_is_cut_out(tmp_path):
    module = CovidxCT2DataModule(write_covidx_ct2_fake(tmp_path), image_size=(32, 32), augment=None)
    names = [record.image_path.name for record in module.val_dataset.records]
    place = names.index("CP_10_3112_0032.png")
    assert module.val_dataset.records[place].box == (20, 10, 540, 600)
    assert module.val_dataset[place]["image"].shape == (1, 32, 32)


def test_versions(tmp_path):
    root = write_covidx_ct2_fake(tmp_path, version="3A")
    for split in ("train", "val"):
        path = root / f"{split}_COVIDx_CT-3A.txt"
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert len(CovidxCT2DataModule(root, version="3A").records) == 99
    (root / "3A_images").rename(root / "images")  # as the first release lay on the disk
    for path in root.glob("*.txt*"):
        path.rename(root / path.name.replace("_CT-3A", "-CT"))
    (root / "train_COVIDx-CT.txt.gz").unlink()
    (root / "train_COVIDx-CT.txt").write_text("NCP_0_2577_0116.png 2 2 4 30 39\n")
    faults = faults_of(CovidxCT2DataModule(root, version="1"))
    assert [fault.split(". ")[0] for fault in faults] == [
        f"CovidxCT2DataModule does not find {root / 'val_COVIDx_CT-1.txt'}"
    ]
    with pytest.raises(ConfigError, match="3A"):
        CovidxCT2DataModule(root, version="4")


def test_broken_copies(tmp_path):
    root = write_covidx_ct2_fake(tmp_path)
    (root / "test_COVIDx_CT-2A.txt").unlink()
    (root / "2A_images" / "CP_0_3112_0032.png").unlink()
    path = root / "train_COVIDx_CT-2A.txt"
    wrong = ["NCP_1_2_0003.png 2 0 13", "NCP_1_2_0004.png 3 0 0 9 9", "NCP_1_2_0005.png 2 9 0 9 9"]
    path.write_text(path.read_text() + "\n".join(wrong))
    faults = faults_of(CovidxCT2DataModule(root))
    assert len(faults) == 5  # the third box is empty
    assert f"Line 34 of {path} is not NAME CLASS XMIN YMIN XMAX YMAX: {wrong[0]!r}" in faults[0]
    assert "Line 35" in faults[1]
    assert "Line 36" in faults[2]
    assert f"does not find {root / 'test_COVIDx_CT-2A.txt'}" in faults[3]
    assert "kaggle.com/datasets/hgunraj/covidxct" in faults[3]
    assert faults[4].startswith("1 files of the data set are missing")


def test_an_empty_folder_of_images_is_one_fault(tmp_path):
    root = write_covidx_ct2_fake(tmp_path)
    for path in (root / "2A_images").iterdir():
        path.unlink()
    (fault,) = faults_of(CovidxCT2DataModule(root))
    assert fault.startswith("99 files")


def test_published_counts():
    whole = {name: sum(counts.values()) for name, counts in CovidxCT2DataModule.releases.items()}
    assert whole == {"1": 104_009, "2A": 194_922, "2B": 201_103, "3A": 425_024, "3B": 431_205}
    assert CovidxCT2DataModule.releases["2A"]["test/COVID-19"] == 6018


def test_a_copy_is_compared_with_the_version_that_is_asked_for(tmp_path):
    root = write_covidx_ct2_fake(tmp_path)
    faults = check_dataset(CovidxCT2DataModule(root)).faults
    assert len(faults) == 9
    assert "train/COVID-19: 21 of 82,286 images of the release 2A." in faults
    assert CovidxCT2DataModule(root, version="3B").known_releases().keys() == {"3B"}


@pytest.mark.real
def test_counts_of_the_layout(real_data):
    text = (real_data / "layouts" / "covidx_ct2" / "LAYOUT.md").read_text()
    for version in ("2A", "2B"):
        counts = CovidxCT2DataModule.releases[version]
        for split in ("train", "val", "test"):
            own = [counts[f"{split}/{label}"] for label in ("Normal", "Pneumonia", "COVID-19")]
            name = f"train {version}" if split == "train" else split
            assert f"| {name} | {' | '.join(f'{count:,}' for count in (*own, sum(own)))} |" in text


@pytest.mark.real
def test_genuine_lines(real_data, tmp_path):
    for split in ("val", "test"):
        sample = real_data / "layouts" / "covidx_ct2" / f"{split}_COVIDx_CT-2A.sample.txt"
        (tmp_path / f"{split}_COVIDx_CT-2A.txt").write_bytes(sample.read_bytes())
    module = CovidxCT2DataModule(tmp_path)
    with module.collected_faults() as faults:
        records = list(module.read_records())
    assert len(faults) == 1  # the list of training slices is not there
    assert count_by(records, "split") == {"test": 100, "val": 100}
    assert count_by(records, "label") == {"COVID-19": 82, "Normal": 82, "Pneumonia": 36}
    sources = {"cncb": 98, "covid-ctset": 43, "covid-19-20": 18, "radiopaedia": 16, "lidc-idri": 13, "coronacases": 12}
    assert count_by(records, "source") == sources
    assert len({record.patient_id for record in records}) == 144
    assert not find_leaks(records)
    beyond = [record for record in records if record.box and max(record.box) > 512]
    assert count_by(beyond, "split") == {"test": 10, "val": 9}
