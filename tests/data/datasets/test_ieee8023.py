"""The ieee8023 collection: on a fake, on broken copies, on the genuine table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fakes import IEEE8023_FINDINGS, write_ieee8023_fake

from covidcxr.data import Ieee8023DataModule, Record, count_by
from covidcxr.errors import ConfigError, DatasetError

LABELS = ("COVID-19", "COVID-19", "Pneumonia", "Pneumonia", "No Finding", "other", None, "Pneumonia")


def by_name(module: Ieee8023DataModule) -> dict[str, Record]:
    return {record.image_path.name: record for record in module.unsplit_records()}


def faults_of(module: Ieee8023DataModule) -> list[str]:
    with module.collected_faults() as faults:
        module.unsplit_records()
    return faults


def test_every_field(tmp_path):
    root = write_ieee8023_fake(tmp_path)
    found = by_name(Ieee8023DataModule(root))
    assert found["1-s2.0-S000.pdf-fig0.png"] == Record(
        root / "images/1-s2.0-S000.pdf-fig0.png",
        "COVID-19",
        "ieee8023-0a",
        "hannover",
        view="PA",
        sex="F",
        image_id="images/1-s2.0-S000.pdf-fig0.png",
    )
    other = found["1-s2.0-S001.pdf-fig1.png"]
    assert (other.patient_id, other.source, other.view) == ("ieee8023-0b", "ieee8023", "AP Supine")
    assert (other.sex, other.age, other.split, other.mask_paths) == ("M", 65, None, {})


@pytest.mark.parametrize("later", [False, True])
def test_findings_of_all_snapshots_become_the_same_classes(tmp_path, later):
    found = by_name(Ieee8023DataModule(write_ieee8023_fake(tmp_path, later=later)))
    assert [found[f"1-s2.0-S{patient:03d}.pdf-fig0.png"].label for patient in range(8)] == list(LABELS)
    assert len(LABELS) == len(IEEE8023_FINDINGS)


def test_views(tmp_path):
    module = Ieee8023DataModule(write_ieee8023_fake(tmp_path))
    assert count_by(module.records, "view") == {"PA": 32, "AP": 7, "AP Supine": 7}
    # The volume is no image; "?" and "" are unknown views.
    assert module.left_out == {"lateral": 6, "unknown view": 12, "CT slice": 2, "CT volume": 1}
    everything = Ieee8023DataModule(tmp_path, views="all")
    assert len(everything.records) == 66
    assert {"CT Axial", "CT Coronal", "unknown"} < count_by(everything.records, "view").keys()
    assert everything.left_out == {"CT volume": 1}


def test_machine_masks_are_used_on_demand(tmp_path):
    root = write_ieee8023_fake(tmp_path)
    records = by_name(Ieee8023DataModule(root, machine_masks=True)).values()
    assert Counter(len(record.mask_paths) for record in records) == {1: 5, 0: 41}  # the sixth is a lateral's
    for record in records:
        expected = root / "annotations" / "lungVAE-masks" / f"{record.image_path.stem}_mask.png"
        assert record.mask_paths == ({"lung_field": expected} if expected.is_file() else {})


def test_images_of_another_day(tmp_path):
    root = write_ieee8023_fake(tmp_path)
    for path in sorted((root / "images").glob("*fig0*"))[:3]:
        path.unlink()
    with pytest.raises(DatasetError, match=r"^3 files .*1-s2\.0-S000\.pdf-fig0\.png"):
        Ieee8023DataModule(root).setup()
    module = Ieee8023DataModule(root, missing="skip")
    assert len(module.records) == 43
    assert module.left_out["listed, not there"] == 3
    with pytest.raises(ConfigError, match="refuse"):
        Ieee8023DataModule(root, missing="ignore")


def test_broken_copies(tmp_path):
    root = write_ieee8023_fake(tmp_path)
    table = root / "metadata.csv"
    whole = table.read_text()
    (root / "images" / "1-s2.0-S001.pdf-fig0.png").unlink()
    table.write_text(whole.replace("1-s2.0-S002.pdf-fig0.png", "") + "16c,0,M,65,COVID-19,Y\n")
    line = whole.count("\n") + 1
    faults = faults_of(Ieee8023DataModule(root))
    assert len(faults) == 3
    assert "Line 6 of" in faults[0]
    assert "names no image" in faults[0]
    assert f"Line {line} of {table} has 6 fields, the header has 29" in faults[1]
    assert faults[2].startswith("1 files of the data set are missing")
    table.write_text(whole[: whole.index('"Wuhan') + 4])
    assert "cannot be read" in "".join(faults_of(Ieee8023DataModule(root)))


@pytest.mark.parametrize(
    ("lost", "settings"),
    [("metadata.csv", {}), ("images", {"missing": "skip"}), ("annotations", {"machine_masks": True})],
)
def test_what_is_lost_is_told_with_the_remedy(tmp_path, lost, settings):
    root = write_ieee8023_fake(tmp_path)
    (root / lost).rename(tmp_path / "elsewhere")
    (fault,) = faults_of(Ieee8023DataModule(root, **settings))
    assert f"does not find {root / lost}" in fault
    assert "github.com/ieee8023" in fault


def test_an_empty_folder_of_images_is_one_fault(tmp_path):
    root = write_ieee8023_fake(tmp_path)
    for path in (root / "images").iterdir():
        path.unlink()
    (fault,) = faults_of(Ieee8023DataModule(root))
    assert fault.startswith("46 files")


@pytest.mark.real
class TestGenuineTable:
    @staticmethod
    def records(real_data: Path, **settings: object) -> tuple[list[Record], Counter[str]]:
        module = Ieee8023DataModule(real_data / "layouts" / "ieee8023_covid_chestxray", **settings)
        return list(module.kept_records()), module.left_out

    def test_frontal_radiographs(self, real_data):
        images, left_out = self.records(real_data)
        assert len(images) == 578
        assert left_out == {"CT slice": 63, "CT volume": 21, "lateral": 57, "unknown view": 39}
        # 571 of them could be obtained: 6 of COVID-19 and 1 of pneumonia could not.
        expected = {"COVID-19": 423 + 6, "Pneumonia": 80 + 1, "unknown": 50 + 1, "No Finding": 13, "other": 4}
        assert count_by(images, "label") == expected
        assert count_by(images, "view") == {"PA": 303, "AP Supine": 157, "AP": 118}
        assert count_by(images, "source") == {"ieee8023": 474, "hannover": 104}
        assert len({image.patient_id for image in images}) == 344

    def test_all_images(self, real_data):
        images, left_out = self.records(real_data, views="all")
        assert (len(images), left_out) == (737, {"CT volume": 21})
        views = {"PA": 303, "AP Supine": 157, "AP": 118, "L": 57, "CT Axial": 68 - 21, "unknown": 39, "CT Coronal": 16}
        assert count_by(images, "view") == views
        assert count_by(images, "sex") == {"M": 420, "F": 248, "unknown": 69}
        patients = {image.patient_id for image in images}
        assert {"ieee8023-311a", "ieee8023-311b"} < patients
        assert len(patients) == 387 - 17  # of whom only a volume is listed
        (release,) = Ieee8023DataModule.releases.values()
        assert {f"all/{label}": count for label, count in count_by(images, "label").items()} == release
