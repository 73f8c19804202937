"""COVIDx: on fakes of the download and of the repository, on broken copies, on the genuine label files."""

from __future__ import annotations

import gzip
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from fakes import draw_image, write_covidx_cxr3_fake, write_image

from covidcxr.data import CovidxCXR3DataModule, Record, count_by, find_leaks
from covidcxr.data.collection import Collection
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.data.records import projection
from covidcxr.errors import DatasetError

REPOSITORY = "{split}_COVIDx9B.txt"


def faults_of(module: CovidxCXR3DataModule) -> list[str]:
    with module.collected_faults() as faults:
        module.unsplit_records()
    return faults


def write_lines(root: Path, name: str, *lines: str) -> Path:
    """Write a label file and the images that it names."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{line}\n" for line in lines))
    split = "train" if "train" in name else "test"
    for number, line in enumerate(lines):
        image = next(field for field in line.split()[::-1] if "." in field)
        write_image(root / split / image, draw_image(number))
    return root


def test_every_field(tmp_path):
    root = write_covidx_cxr3_fake(tmp_path)
    found = {record.image_path.name: record for record in CovidxCXR3DataModule(root).unsplit_records()}
    name = "A100003-01-03-1901-NA-CHEST_AP_PORT-60204-6.000000-AP-93499-1-1.jpg"
    expected = Record(
        root / "train" / name,
        "positive",
        "stonybrook-A100003",
        "stonybrook",
        "train",
        view="AP",
        image_id=f"train/{name}",
    )
    assert found[name] == expected
    assert found["COVID(12).png"].patient_id == "sirm-COVID 12"  # a blank in the patient
    assert found["00000001-66c8.png"].source == "rsna"  # rnsa in the file
    assert found["00000001-66c8.png"].patient_id == "rsna-00000001-66c8"
    assert found["sub-S90000_ses-E90001_run-1_bp-chest_vp-pa_dx-corrected.png"].view == "PA"
    assert found["90000_2_1.PNG"].view is None
    assert found["MIDRC-RICORD-1C-SITE2-000002-21444-0.png"].split == "test"


def test_validation_is_cut_from_training_by_patient(tmp_path):
    module = CovidxCXR3DataModule(write_covidx_cxr3_fake(tmp_path))
    counts = module.counts()
    assert counts["test"] == {"negative": 6, "positive": 6}
    assert sum(counts["val"].values()) > 0
    assert sum(counts["train"].values()) + sum(counts["val"].values()) == 41
    assert not find_leaks(module.records)
    both = [record for record in module.records if record.patient_id == "cohen-900"]
    assert {record.label for record in both} == {"negative", "positive"}
    assert len({record.split for record in both}) == 1


def test_images_that_cxr3_left_out_may_be_absent(tmp_path):
    module = CovidxCXR3DataModule(write_covidx_cxr3_fake(tmp_path, labels=REPOSITORY))
    assert len(module.records) == 53
    assert module.left_out == {"abdomen": 2, "lateral": 1}
    with pytest.raises(DatasetError, match=r"^3 files"):
        CovidxCXR3DataModule(tmp_path, views="all").setup()


def test_mislabelled_images_are_left_out_on_demand(tmp_path):
    module = CovidxCXR3DataModule(write_covidx_cxr3_fake(tmp_path), drop_mislabelled=True)
    names = {record.image_path.name for record in module.records}
    assert not names & {"0a1b2c3d.jpg", "4e5f6071.jpg"}
    assert "8293a4b5.jpg" in names  # positive
    assert module.left_out == {"Hannover COVID-19 image, labelled otherwise": 2}
    whole = CovidxCXR3DataModule(tmp_path)
    assert len(list(whole.kept_records())) == len(names) + 2
    assert module.listed == whole.listed  # the copy is no less complete for it


@pytest.mark.parametrize(
    ("labels", "version"),
    [
        ("{split}.txt", "9B"),
        ("{split}_COVIDx9B.txt", "9B"),
        ("labels/{split}_COVIDx8B.txt", "8B"),
        ("labels/{split}_COVIDx_CXR-3B.txt", "CXR-3B"),
        ("{split}_COVIDx6.txt", "6"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_places_of_the_label_files(tmp_path, labels, version, packed):
    root = write_covidx_cxr3_fake(tmp_path, labels=labels)
    for split in ("train", "test") if packed else ():
        path = root / labels.format(split=split)
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    module = CovidxCXR3DataModule(root, version=version)
    assert len(module.records) == 53
    assert module.classes == ("negative", "positive")


def test_the_named_version_comes_before_the_copy_of_kaggle(tmp_path):
    write_covidx_cxr3_fake(tmp_path)
    write_lines(tmp_path, "labels/train_COVIDx9A.txt", "1 a.png normal rsna", "2 b.png COVID-19 cohen")
    write_lines(tmp_path, "labels/test_COVIDx9A.txt", "3 c.png pneumonia rsna")
    module = CovidxCXR3DataModule(tmp_path, version="9A")
    assert module.classes == ("normal", "pneumonia", "COVID-19")
    assert [record.label for record in module.unsplit_records()] == ["normal", "COVID-19", "pneumonia"]
    renamed = CovidxCXR3DataModule(tmp_path, version="9A", label_map={"pneumonia": "normal"})
    assert renamed.classes == ("normal", "COVID-19")
    assert Counter(record.label for record in renamed.unsplit_records()) == {"normal": 2, "COVID-19": 1}


def test_the_first_versions_tell_no_source(tmp_path):
    write_lines(tmp_path, "train_COVIDx2.txt", "4 a.jpg COVID-19", "5 1 b.jpg pneumonia cohen")
    write_lines(tmp_path, "test_COVIDx2.txt", "6 c.png normal")
    module = CovidxCXR3DataModule(tmp_path, version="2")
    assert module.classes == ("normal", "pneumonia", "COVID-19")
    found = [(record.patient_id, record.source, record.label) for record in module.unsplit_records()]
    assert found == [
        ("unknown-4", "unknown", "COVID-19"),
        ("cohen-5 1", "cohen", "pneumonia"),
        ("unknown-6", "unknown", "normal"),
    ]


def test_validation_images_of_a_later_download_are_used(tmp_path):
    root = write_covidx_cxr3_fake(tmp_path)
    lines = (root / "train.txt").read_text().splitlines()
    (root / "val.txt").write_text("\n".join(lines[:10]))
    (root / "val").mkdir()
    for line in lines[:10]:
        (root / "train" / line.split()[1]).rename(root / "val" / line.split()[1])
    (root / "train.txt").write_text("\n".join(lines[20:]))
    module = CovidxCXR3DataModule(root, version="CXR-4")
    assert count_by(module.records, "split") == {"train": 21, "test": 12, "val": 10}
    assert check_dataset(module).complete  # no counts are known of it
    (root / "val.txt").rename(root / "val_COVIDx9A.txt")  # the list of another version
    assert count_by(CovidxCXR3DataModule(root).unsplit_records(), "split") == {"train": 21, "test": 12}


@pytest.mark.parametrize(
    ("version", "releases"),
    [
        ("9B", {"COVIDx9B (repository)", "CXR-3 (Kaggle)"}),
        ("CXR-3A", {"CXR-3A"}),
        ("7B", {"COVIDx7B"}),
        ("5", set()),
    ],
)
def test_a_copy_is_compared_with_the_version_that_is_asked_for(tmp_path, version, releases):
    module = CovidxCXR3DataModule(tmp_path, version=version)
    assert module.known_releases().keys() == releases
    labels = {key.partition("/")[2] for counts in module.known_releases().values() for key in counts}
    assert labels == (set(module.classes) if releases else set())


@pytest.mark.parametrize(
    "line",
    [
        "A1 A1-01-03-19",
        "A1 a.png",
        "A1 a.png posi",
        "A1 a.png positive",
        "a.png positive cohen",
        "A1 a.png COVID-19 cohen",
    ],
)
def test_a_truncated_line(tmp_path, line):
    root = write_covidx_cxr3_fake(tmp_path)
    with (root / "train.txt").open("a") as file:
        file.write(line)
    with pytest.raises(
        DatasetError, match=r"^Line 42 of .*train\.txt is not PATIENT FILE LABEL SOURCE.*negative, positive"
    ):
        CovidxCXR3DataModule(root).setup()
    faults = faults_of(CovidxCXR3DataModule(root))
    assert len(faults) == 1


def test_all_that_is_broken_is_told_at_once(tmp_path):
    root = write_covidx_cxr3_fake(tmp_path)
    (root / "test.txt").unlink()
    (root / "train" / "COVID(12).png").unlink()
    with (root / "train.txt").open("a") as file:
        file.write("904 90000_2_1.PNG negative cohen\n")  # a second time
        file.write("A1 a.png pos")
    faults = faults_of(CovidxCXR3DataModule(root))
    assert [fault.split(" ")[0] for fault in faults] == ["CovidxCXR3DataModule", "Line", "1", "1"]
    assert "does not find" in faults[0]
    assert "test_COVIDx9B.txt" in faults[0]
    assert "90000_2_1.PNG" in faults[2]
    assert "COVID(12).png" in faults[3]


def test_an_empty_folder_says_where_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match=r"does not find .*train_COVIDx9B\.txt.*andyczhao/covidx-cxr2"):
        CovidxCXR3DataModule(tmp_path).setup()
    assert len(faults_of(CovidxCXR3DataModule(tmp_path))) == 2


@pytest.fixture(scope="module")
def genuine(real_data, tmp_path_factory) -> Path:
    """The genuine label files, without images."""
    root = tmp_path_factory.mktemp("covidx_cxr3")
    for name in ("train_COVIDx9B.txt.gz", "test_COVIDx9B.txt"):
        (root / name).symlink_to(real_data / "layouts" / "covidx_cxr3" / name)
    return root


@pytest.fixture(scope="module")
def every(genuine) -> list[Record]:
    return list(CovidxCXR3DataModule(genuine, views="all").kept_records())


@pytest.fixture(scope="module")
def frontal(every) -> list[Record]:
    return [record for record in every if projection(record.view) == "frontal"]


@pytest.mark.real
class TestGenuineLabelFiles:
    def test_counts_of_the_repository(self, every):
        counts = Counter(f"{record.split}/{record.label}" for record in every)
        assert counts == CovidxCXR3DataModule.releases["COVIDx9B (repository)"]
        assert counts["train/negative"] + counts["train/positive"] == 30482

    def test_names_tell_the_496_images_that_cxr3_left_out_and_no_other(self, every, frontal, real_data):
        assert len(frontal) == 29986 + 400
        assert Counter(f"{r.split}/{r.label}" for r in frontal) == CovidxCXR3DataModule.releases["CXR-3 (Kaggle)"]
        left_out = {record.image_path.name for record in every} - {record.image_path.name for record in frontal}
        removed = real_data / "layouts" / "covidx_cxr3" / "not_in_cxr3.txt.gz"
        assert left_out == set(gzip.decompress(removed.read_bytes()).decode().split())

    def test_patients(self, frontal):
        labels: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for record in frontal:
            labels[record.split][record.patient_id].add(record.label)
        found = {split: Counter(label for own in known.values() for label in own) for split, known in labels.items()}
        assert found["train"] == {"negative": 13850, "positive": 2808}
        assert found["test"] == {"negative": 200, "positive": 178}
        assert (len(labels["train"]), len(labels["test"])) == (16648, 378)
        both = {patient for patient, own in labels["train"].items() if len(own) == 2}
        assert Counter(patient.split("-")[0] for patient in both) == {"cohen": 7, "actmed": 3}

    def test_sources_and_views(self, frontal):
        records = [record for record in frontal if record.split == "train"]
        assert Counter((record.source, record.label) for record in records) == {
            ("rsna", "negative"): 13389 + 199,
            ("cohen", "negative"): 297,
            ("cohen", "positive"): 270,
            ("actmed", "negative"): 107,
            ("actmed", "positive"): 25,
            ("fig1", "positive"): 24,
            ("bimcv", "positive"): 200,
            ("ricord", "positive"): 896,
            ("sirm", "positive"): 943,
            ("stonybrook", "positive"): 13636,
        }
        assert count_by(records, "view") == {"unknown": 16150, "AP": 13617, "PA": 219}
        stony_brook = count_by([record for record in records if record.source == "stonybrook"], "view")
        assert stony_brook == {"AP": 13592, "PA": 44}

    def test_the_split_is_clean_and_mislabelled_images_are_counted(self, genuine, monkeypatch):
        monkeypatch.setattr(Collection, "find_missing", lambda self, records: [])  # there are no images
        module = CovidxCXR3DataModule(genuine, drop_mislabelled=True)
        assert not find_leaks(module.records)
        assert module.left_out == {"Hannover COVID-19 image, labelled otherwise": 84, "abdomen": 487, "lateral": 9}
        counts = module.counts()
        assert counts["test"] == {"negative": 200, "positive": 200}
        for label, whole in (("negative", 13992 - 84), ("positive", 15994)):
            assert counts["train"][label] + counts["val"][label] == whole
            assert counts["val"][label] / whole == pytest.approx(0.15 / 0.85, abs=0.005)
