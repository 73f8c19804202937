"""COVID-CT of UCSD: on a fake, on broken copies, on the genuine lists."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest
from fakes import write_covid_ct_ucsd_fake

from covidcxr.data import CovidCTDataModule, Record, count_by, find_leaks

IMAGES = "Images-processed"


def faults_of(module: CovidCTDataModule) -> list[str]:
    with module.collected_faults() as faults, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.unsplit_records()
    return faults


def records_of(root: Path) -> dict[str, Record]:
    return {record.image_path.name: record for record in CovidCTDataModule(root).unsplit_records()}


def test_every_field(tmp_path):
    root = write_covid_ct_ucsd_fake(tmp_path)
    found = records_of(root)
    name = "2020.02.10.20000011-p6-52%1.png"
    article, path = "2020.02.10.20000011", f"{IMAGES}/CT_COVID/{name}"
    assert found[name] == Record(root / path, "COVID", article, "articles", "val", image_id=path)
    assert found["PIIS0140673620300012_0%0.png"].patient_id == "PIIS0140673620300012"
    assert found["PIIS0140673620300012_1.png"].patient_id == "PIIS0140673620300012"
    path = f"{IMAGES}/CT_NonCOVID/1021.png"
    assert found["1021.png"] == Record(root / path, "NonCOVID", "medpix_patient_21", "medpix", "test", image_id=path)
    assert (found["21%0.jpg"].patient_id, found["21%0.jpg"].source) == ("crawled_patient_21", "web")
    assert Counter(record.split for record in found.values()) == {"train": 36, "val": 36, "test": 36}
    assert Counter(record.label for record in found.values()) == {"COVID": 36, "NonCOVID": 72}


def test_without_the_table_only_numbered_slices_have_no_patient(tmp_path):
    root = write_covid_ct_ucsd_fake(tmp_path)
    with_table = records_of(root)
    (root / "NonCOVID-CT-MetaInfo.csv").unlink()
    with pytest.warns(UserWarning, match=r"NonCOVID-CT-MetaInfo\.csv"):
        found = records_of(root)
    for name, record in found.items():
        expected = None if record.source == "medpix" else with_table[name].patient_id
        assert record.patient_id == expected


def test_two_columns_without_a_name(tmp_path):
    root = write_covid_ct_ucsd_fake(tmp_path)
    table = root / "NonCOVID-CT-MetaInfo.csv"
    table.write_text("".join(f"{line},\n" for line in table.read_text().splitlines()))
    assert records_of(root)["1021.png"].patient_id == "medpix_patient_21"


def test_other_places_of_lists_and_images(tmp_path):
    root = write_covid_ct_ucsd_fake(tmp_path)
    (root / "Data-split").rename(root / "datasplit")
    for label in ("COVID", "NonCOVID"):
        (root / IMAGES / f"CT_{label}").rename(root / f"CT_{label}")
    assert len(CovidCTDataModule(root).records) == 108


def test_a_percent_sign_is_never_a_code_but_may_have_become_a_line(tmp_path):
    root = write_covid_ct_ucsd_fake(tmp_path)
    folder = root / IMAGES / "CT_NonCOVID"
    (folder / "20%1.jpg").rename(folder / "20_1.jpg")
    records = CovidCTDataModule(root).unsplit_records()
    (renamed,) = [record for record in records if record.image_path.name == "20_1.jpg"]
    assert renamed.patient_id == "crawled_patient_20"
    (folder / "21%0.jpg").rename(folder / "21 0.jpg")
    (fault,) = faults_of(CovidCTDataModule(root))
    assert "21%0.jpg" in fault


def test_archives_that_are_still_packed(tmp_path):
    root = write_covid_ct_ucsd_fake(tmp_path)
    for label in ("COVID", "NonCOVID"):
        (root / IMAGES / f"CT_{label}").rename(tmp_path / f"away_{label}")
        (root / IMAGES / f"CT_{label}.zip").write_bytes(b"")
    faults = faults_of(CovidCTDataModule(root))
    assert len(faults) == 2
    for fault, label in zip(faults, ("NonCOVID", "COVID"), strict=True):
        assert f"CT_{label}.zip is still packed. Unpack it" in fault
        assert "covidcxr datasets prepare" in fault


def test_broken_copies(tmp_path):
    root = write_covid_ct_ucsd_fake(tmp_path)
    lists = root / "Data-split"
    (lists / "COVID" / "valCT_COVID.txt").unlink()
    (root / IMAGES / "CT_COVID" / "PIIS0140673620300000_1.png").unlink()
    path = lists / "NonCOVID" / "trainCT_NonCOVID.txt"
    path.write_text(path.read_text()[:-2])  # the last name is cut
    with (root / "NonCOVID-CT-MetaInfo.csv").open("a") as file:
        file.write("36,30.p\n")
    faults = faults_of(CovidCTDataModule(root))
    assert len(faults) == 3
    assert "has 2 fields, the header has 3" in faults[0]
    assert f"does not find {lists / 'COVID' / 'valCT_COVID.txt'}" in faults[1]
    assert "github.com/UCSD-AI4H/COVID-CT" in faults[1]
    assert faults[2].startswith("2 files of the data set are missing")
    assert "1005.pn" in faults[2]


def test_folders_that_are_lost_or_empty(tmp_path):
    root = write_covid_ct_ucsd_fake(tmp_path)
    for path in (root / IMAGES / "CT_COVID").iterdir():
        path.unlink()
    (root / IMAGES / "CT_NonCOVID").rename(tmp_path / "elsewhere")
    faults = faults_of(CovidCTDataModule(root))
    assert len(faults) == 2
    assert f"does not find {root / IMAGES / 'CT_NonCOVID'}" in faults[0]
    assert faults[1].startswith("36 files")


@pytest.mark.real
class TestGenuineLists:
    @pytest.fixture
    def root(self, real_data, tmp_path) -> Path:
        """The genuine lists with an empty file for each name."""
        lists = real_data / "layouts" / "covid_ct_ucsd" / "Data-split"
        for path in lists.glob("*/*.txt"):
            folder = tmp_path / IMAGES / f"CT_{path.parent.name}"
            folder.mkdir(parents=True, exist_ok=True)
            for name in path.read_text().split():
                (folder / name).touch()
        (tmp_path / "Data-split").symlink_to(lists)
        return tmp_path

    @pytest.mark.filterwarnings("ignore:There is no .*MetaInfo")
    def test_counts(self, root):
        records = CovidCTDataModule(root).unsplit_records()
        counts = {f"{split}/{label}": n for (split, label), n in Counter((r.split, r.label) for r in records).items()}
        assert counts == CovidCTDataModule.releases["2020"]
        signs = Counter(record.label for record in records if "%" in record.image_path.name)
        assert signs == {"COVID": 217, "NonCOVID": 167}
        assert count_by(records, "source") == {"articles": 349, "web": 202, "medpix": 195}
        assert len({record.patient_id for record in records if record.label == "COVID"}) == 58
        assert len({record.patient_id for record in records if record.source == "web"}) == 86

    @pytest.mark.filterwarnings("ignore:There is no .*MetaInfo")
    def test_the_official_split_leaks_three_articles(self, root):
        with pytest.warns(UserWarning, match="leaks: 3 patients"):
            records = CovidCTDataModule(root).records
        assert find_leaks(records) == {
            "2020.03.12.20034686": {"train", "test"},
            "2020.03.13.20035212": {"train", "val"},
            "2020.03.22.20040782": {"val", "test"},
        }
        assert not find_leaks(CovidCTDataModule(root, official_split=False).records)
