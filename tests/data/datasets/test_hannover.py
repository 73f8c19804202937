"""Hannover's repository: patients, projections, and images from before the disease."""

from __future__ import annotations

import pytest
from fakes import write_hannover_fake, write_manifest_fake

from covidcxr.data import HannoverDataModule, count_by, find_leaks
from covidcxr.errors import DatasetError


def test_what_the_table_tells(tmp_path):
    module = HannoverDataModule(write_hannover_fake(tmp_path))
    assert module.classes == ("COVID-19",)
    assert count_by(module.records, "view") == {"AP": 13, "PA": 10}
    assert count_by(module.records, "sex") == {"F": 14, "M": 9}
    assert count_by(module.records, "source") == {"hannover": 23}
    assert len({record.patient_id for record in module.records}) == 10
    first = module.records[0]
    assert (first.patient_id, first.image_id, first.age) == ("hannover-00000000", "png/00000000.png", None)


def test_images_long_before_admission_have_no_label(tmp_path):
    module = HannoverDataModule(write_hannover_fake(tmp_path))
    unlabelled = {record.image_path.stem for record in module.records if record.label is None}
    assert unlabelled == {f"{0x21:08x}", f"{0x31:08x}"}  # 10 and 23 days before; 4 days before counts
    assert count_by(module.records, "label") == {"COVID-19": 21, "unknown": 2}


def test_a_manifest_is_read_in_place_of_the_published_files(tmp_path):
    module = HannoverDataModule(write_manifest_fake(tmp_path))
    assert count_by(module.records, "label") == {"COVID-19": 12}
    assert {record.patient_id for record in module.records} == {f"hannover-{patient}" for patient in range(6)}
    assert not count_by(module.records, "mask")
    write_hannover_fake(tmp_path)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(line for line in manifest.read_text().splitlines() if "hannover" not in line))
    assert len(HannoverDataModule(tmp_path).records) == 23  # a manifest of other data sets is none of its


def test_every_fault_of_a_broken_copy_is_told(tmp_path):
    root = write_hannover_fake(tmp_path)
    (root / "png" / f"{0x10:08x}.png").unlink()
    lines = (root / "data.csv").read_text().splitlines()
    lines[1] = lines[1].replace(",0,", ",soon,")
    (root / "data.csv").write_text("\n".join([*lines, "00000009,abc"]) + "\n")
    module = HannoverDataModule(root)
    with module.collected_faults() as faults:
        assert len(module.unsplit_records()) == 22
    assert len(faults) == 3
    assert "Line 2 of" in faults[0]
    assert "'soon'" in faults[0]
    assert "Line 25 of" in faults[1]
    assert "00000010.png" in faults[2]


def test_a_missing_table_says_where_to_get_it(tmp_path):
    (write_hannover_fake(tmp_path) / "data.csv").unlink()
    with pytest.raises(DatasetError, match=r"data\.csv.*github\.com/ml-workgroup"):
        HannoverDataModule(tmp_path).setup()
    (tmp_path / "data.csv").write_text("patient_id,image_id\n")
    with pytest.raises(DatasetError, match="no column 'sex'"):
        HannoverDataModule(tmp_path).setup()


@pytest.mark.real
def test_real_images(real_data):
    module = HannoverDataModule(real_data, image_size=(64, 64))
    assert count_by(module.records, "label") == {"COVID-19": 124}
    assert len({record.patient_id for record in module.records}) == 33
    assert count_by(module.records, "view") == {"AP": 112, "PA": 12}
    assert not find_leaks(module.records)
    assert module.train_dataset[0]["image"].std() > 0.05
