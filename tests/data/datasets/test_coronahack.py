"""CoronaHack: on a fake in the layout of the download, on broken copies, on the genuine table."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest
from fakes import write_coronahack_fake

from covidcxr.data import CoronaHackDataModule, Record, count_by, find_leaks
from covidcxr.data.collection import Collection
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.errors import ConfigError, DatasetError

FOLDER = "Coronahack-Chest-XRay-Dataset"
TABLE = "Chest_xray_Corona_Metadata.csv"


def faults_of(module: CoronaHackDataModule) -> list[str]:
    with module.collected_faults() as faults:
        module.unsplit_records()
    return faults


def test_every_field(tmp_path):
    root = write_coronahack_fake(tmp_path)
    records = CoronaHackDataModule(root, official_split=False).read_records()
    found = {record.image_path.name: record for record in records}
    image = root / FOLDER / FOLDER / "test" / "person1_virus_2.jpeg"
    assert found[image.name] == Record(image, "Pneumonia", "kermany-person1_virus", "kermany", "test")
    image = root / FOLDER / FOLDER / "train" / "covid-19-pneumonia-3-day5.jpg"
    assert found[image.name] == Record(image, "COVID-19", "ieee8023-1", "ieee8023", "train")
    assert found["covid-19-pneumonia-faint.JPG"].label == "COVID-19"
    assert found["IM-0011-0001.jpeg"].patient_id == "kermany-IM-0011"
    assert found["NORMAL2-IM-0011-0001-0002.jpeg"].patient_id == "kermany-NORMAL2-IM-0011"
    assert "unlisted.jpeg" not in found
    assert len(found) == 79


@pytest.mark.parametrize(
    ("labels", "classes", "counts"),
    [
        ("covid", ("Normal", "Pneumonia", "COVID-19"), {"Normal": 25, "Pneumonia": 39, "COVID-19": 15}),
        ("binary", ("Normal", "Pneumonia"), {"Normal": 25, "Pneumonia": 54}),
        (
            "detailed",
            ("Normal", "virus", "bacteria", "COVID-19", "SARS", "Streptococcus", "ARDS"),
            {"Normal": 25, "virus": 24, "bacteria": 12, "COVID-19": 15, "SARS": 1, "Streptococcus": 1, "ARDS": 1},
        ),
    ],
)
def test_labels(tmp_path, labels, classes, counts):
    module = CoronaHackDataModule(write_coronahack_fake(tmp_path), labels=labels, official_split=False)
    assert module.classes == classes
    assert count_by(module.records, "label") == counts
    module.setup()


@pytest.mark.parametrize(("labels", "release"), [("covid", "2020"), ("binary", "2020, labels=binary")])
def test_a_copy_is_compared_with_the_labels_that_are_asked_for(tmp_path, labels, release):
    module = CoronaHackDataModule(write_coronahack_fake(tmp_path), labels=labels, official_split=False)
    (fault,) = [fault for fault in check_dataset(module).faults if fault.startswith("test/Pneumonia")]
    assert fault == f"test/Pneumonia: 11 of 390 images of the release {release}."
    assert module.known_releases().keys() == {release}


def test_what_the_official_test_images_lack_is_told(tmp_path):
    root = write_coronahack_fake(tmp_path)
    with pytest.warns(UserWarning, match=r"hold no COVID-19: .*official_split=False"):
        records = CoronaHackDataModule(root).records
    assert count_by(records, "split")["test"] == 18
    assert not find_leaks(records)  # child 1 of virus, in test, is another than child 1 of bacteria, in train
    with pytest.warns(UserWarning, match="COVID-19, SARS, Streptococcus, ARDS"):
        CoronaHackDataModule(root, labels="detailed").setup()
    for quiet in (
        {"labels": "binary"},
        {"official_split": False},
        {"folds": 3, "fold": 0},
        {"hold_out_source": "ieee8023"},
        {"label_map": {"COVID-19": None}},
        {"label_map": {"COVID-19": "Pneumonia"}},
    ):
        CoronaHackDataModule(root, **quiet).setup()


def test_patients_of_the_ieee8023_images(tmp_path):
    root = write_coronahack_fake(tmp_path, metadata=False)
    with pytest.warns(UserWarning, match=r"metadata\.csv"):
        guessed = CoronaHackDataModule(root, labels="binary").records
    patients = {record.patient_id for record in guessed if "pneumonia-3-" in record.image_path.name}
    assert patients == {"ieee8023-covid-19-pneumonia-3"}


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_levels_of_folders(tmp_path, levels):
    root = write_coronahack_fake(tmp_path)
    top = root / FOLDER / FOLDER
    if levels < 2:
        for split in ("train", "test"):
            (top / split).rename((root / FOLDER if levels else root) / split)
    assert len(CoronaHackDataModule(root, labels="binary").records) == 79


def test_settings(tmp_path):
    with pytest.raises(ConfigError, match="labels must be one of covid, binary, detailed"):
        CoronaHackDataModule(tmp_path, labels="covid19")
    module = CoronaHackDataModule(tmp_path, labels="binary", label_map={"Pneumonia": "ill"})
    assert (module.classes, module.settings) == (("Normal", "ill"), {"labels": "binary"})


def test_all_that_is_broken_is_told_at_once(tmp_path):
    root = write_coronahack_fake(tmp_path)
    (root / FOLDER / FOLDER / "train" / "IM-0011-0001.jpeg").unlink()
    lines = (root / TABLE).read_text().splitlines()
    lines[3] = lines[3].replace("TRAIN", "HOLDOUT")
    lines[4] = lines[4].replace("Normal", "")
    (root / TABLE).write_text("\n".join([*lines, "900,person9"]))
    faults = faults_of(CoronaHackDataModule(root, labels="binary"))
    assert len(faults) == 4
    for fault, part in zip(
        faults, ("Line 4 .*'HOLDOUT'", "Line 5 .*neither", "Line 81 .* 2 fields", "1 files"), strict=True
    ):
        with pytest.raises(DatasetError, match=part):
            raise DatasetError(fault)


def test_what_is_missing_says_where_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match=rf"does not find .*{TABLE}.*praveengovi"):
        CoronaHackDataModule(tmp_path).setup()
    assert len(faults_of(CoronaHackDataModule(tmp_path))) == 1
    shutil.rmtree(write_coronahack_fake(tmp_path) / FOLDER / FOLDER / "train")
    with pytest.raises(DatasetError, match=r"does not find .*train\."):
        CoronaHackDataModule(tmp_path, labels="binary").setup()
    (tmp_path / TABLE).write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="no column 'X_ray_image_name'"):
        CoronaHackDataModule(tmp_path).setup()


@pytest.mark.real
class TestGenuineTable:
    @pytest.fixture
    def root(self, real_data, tmp_path, monkeypatch) -> Path:
        (tmp_path / TABLE).symlink_to(real_data / "layouts" / "coronahack" / TABLE)
        (tmp_path / "train").mkdir()
        monkeypatch.setattr(Collection, "find_missing", lambda self, records: [])  # there are no images
        return tmp_path

    @pytest.mark.filterwarnings("ignore:The patients of the COVID-19 images", "ignore:The official test images")
    @pytest.mark.parametrize(
        ("labels", "release"),
        [("covid", "2020"), ("binary", "2020, labels=binary"), ("detailed", "2020, labels=detailed")],
    )
    def test_counts(self, root, labels, release):
        module = CoronaHackDataModule(root, labels=labels)
        records = list(module.kept_records())
        assert len(records) == 5910
        assert Counter(f"{record.split}/{record.label}" for record in records) == module.releases[release]

    def test_patients_and_sources(self, root):
        module = CoronaHackDataModule(root)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            records = module.records
        assert len(caught) == 2  # patients of ieee8023 are guessed, no COVID-19 is tested; nobody is in two splits
        assert not find_leaks(records)
        assert count_by(records, "source") == {"kermany": 5840, "ieee8023": 70}
        kinds = Counter(
            "".join(letter for letter in patient.removeprefix("kermany-") if not letter.isdigit())
            for patient in {record.patient_id for record in records if record.source == "kermany"}
        )
        assert kinds == {"person_virus": 1216, "person_bacteria": 1430, "IM-": 583, "NORMAL-IM-": 853}
        assert count_by(records, "split")["test"] == 624

    def test_numbers_alone_would_join_children(self, root):
        """That virus and bacteria count their children each by itself is what `_KERMANY` rests on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            records = [r for r in CoronaHackDataModule(root).kept_records() if "person" in (r.patient_id or "")]
        images: dict[str, list[tuple[int, int]]] = {"virus": [], "bacteria": []}
        for record in records:
            number, kind, image = record.image_path.stem.removeprefix("person").split("_")[:3]
            images[kind].append((int(number), int(image)))
        for numbered in images.values():
            in_order = [image for _, image in sorted(numbered)]
            assert in_order == sorted(in_order)  # within a kind images are numbered in the order of the children
        virus, bacteria = ({number for number, _ in numbered} for numbered in images.values())
        chance = sum(
            len(virus & window) * len(bacteria & window) / 20
            for window in (set(range(start, start + 20)) for start in range(1, 1700, 20))
        )
        assert len(virus & bacteria) == 979
        assert chance == pytest.approx(979, abs=2)
