"""Several data sets as one, and copies of one image among them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import write_covidx_ct2_fake, write_csv, write_folder_fake, write_image, write_table_fake

from covidcxr.data import (
    CombinedDataModule,
    CovidxCT2DataModule,
    CSVDataModule,
    DuplicateGroup,
    FolderDataModule,
    Record,
    count_by,
    find_duplicates,
    find_leaks,
    find_shared_images,
)
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.data.curation.near_duplicates import sketch
from covidcxr.errors import ConfigError, DatasetError, UnknownNameError
from covidcxr.io.image import read_image
from covidcxr.phantom import draw_phantom
from covidcxr.training.parser import open_data

MEMBERS: dict[str, Any] = {
    "ward": {
        "name": "folder",
        "root": "ward",
        "patient_pattern": "p([0-9]+)_",
        "label_map": {"sick": "covid19", "well": "normal"},
    },
    "city": {"name": "csv", "root": "city", "label_map": {"other": None}},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder_fake(tmp_path / "ward", ("sick", "well"), patients=6)
    write_table_fake(tmp_path / "city")
    return tmp_path


def image(seed: int) -> np.ndarray:
    return (draw_phantom(seed, size=(300, 260)).image * 255).astype(np.uint8)


def write_images(folder: Path, images: dict[str, np.ndarray], split: dict[str, str] | None = None) -> Path:
    rows = [
        {"path": name, "label": "a", "patient_id": name.split("_")[0], "split": (split or {}).get(name, "")}
        for name in images
    ]
    for name, pixels in images.items():
        write_image(folder / name, pixels)
    write_csv(folder / "manifest.csv", rows)
    return folder


class TestCombined:
    def test_labels_are_aligned_and_sources_kept(self, root: Path) -> None:
        whole = CombinedDataModule(root, datasets=MEMBERS, duplicates="ignore")
        assert whole.classes == ("covid19", "normal", "pneumonia")
        alone = [
            FolderDataModule(root / "ward", patient_pattern="p([0-9]+)_", label_map=MEMBERS["ward"]["label_map"]),
            CSVDataModule(root / "city", label_map={"other": None}),
        ]
        assert len(whole.records) == sum(len(one.records) for one in alone)
        expected = {f"{name}/{r.image_id}" for name, one in zip(MEMBERS, alone, strict=True) for r in one.records}
        assert {record.image_id for record in whole.records} == expected
        assert count_by(whole.records, "source").keys() == {"ward", "north", "south", "east"}
        assert all(record.patient_id.startswith(("ward/", "city/")) for record in whole.records)
        assert whole.left_out == {"city: label other": 12}
        assert not find_leaks(whole.records)
        batch = next(iter(whole.test_dataloader()))
        assert set(batch["label"].tolist()) <= {0, 1, 2}

    def test_members_may_be_instances(self, root: Path) -> None:
        ward = FolderDataModule(root / "ward", patient_pattern="p([0-9]+)_")
        whole = CombinedDataModule(datasets={"ward": ward}, duplicates="ignore")
        assert len(whole.records) == 24
        np.testing.assert_array_equal(whole.load_image(whole.records[0]), read_image(root / whole.records[0].image_id))

    def test_from_yaml(self, root: Path) -> None:
        data = {"class_path": "covidcxr.data.datasets.combined.CombinedDataModule"}
        data |= {"init_args": {"datasets": MEMBERS, "duplicates": "ignore", "image_size": [24, 24]}}
        module = open_data({"data": data}, ["--data.root", str(root)])
        assert isinstance(module, CombinedDataModule)
        assert module.geometry.image_size == (24, 24)
        assert len(module.records) == 24 + 36

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"name": "foldr"}, UnknownNameError, "Did you mean 'folder'"),
            ({"image_size": [8, 8]}, ConfigError, "'image_size' of the member ward is a setting of the whole"),
            ({"patient": "x"}, ConfigError, "member ward .*patient"),
            ({"root": None}, ConfigError, "must say its data set and its folder"),
        ],
    )
    def test_wrong_members(self, root: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
        member = {key: value for key, value in (MEMBERS["ward"] | changes).items() if value is not None}
        with pytest.raises(error, match=message):
            CombinedDataModule(root, datasets={"ward": member})

    def test_slices_of_a_ct_are_not_left_out(self, tmp_path: Path) -> None:
        write_covidx_ct2_fake(tmp_path / "ct")
        member = {"name": "covidx_ct2", "root": "ct"}
        whole = CombinedDataModule(tmp_path, datasets={"ct": member}, duplicates="ignore")
        assert len(whole.records) == len(CovidxCT2DataModule(tmp_path / "ct").records)

    def test_a_label_that_is_no_class(self, root: Path) -> None:
        with pytest.raises(DatasetError, match="'pneumonia' of city"):
            CombinedDataModule(root, datasets=MEMBERS, classes=["covid19", "normal"])
        ordered = CombinedDataModule(root, datasets=MEMBERS, classes=["normal", "pneumonia", "covid19"])
        assert ordered.classes == ("normal", "pneumonia", "covid19")

    def test_wrong_settings(self, root: Path) -> None:
        with pytest.raises(ConfigError, match="duplicates must be"):
            CombinedDataModule(root, datasets=MEMBERS, duplicates="reject")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="at least one"):
            CombinedDataModule(root, datasets={})

    def test_faults_of_all_members_are_collected(self, root: Path) -> None:
        next((root / "ward" / "sick").glob("*.png")).unlink()
        (root / "city" / "images" / "north" / "north00_0.png").unlink()
        whole = CombinedDataModule(root, datasets=MEMBERS, duplicates="ignore")
        with whole.collected_faults() as faults:
            whole.unsplit_records()
        assert any(fault.startswith("city: ") and "north00_0.png" in fault for fault in faults)


class TestCopies:
    """One image in two collections: as it is, and resized."""

    @pytest.fixture
    def twins(self, tmp_path: Path) -> Path:
        import cv2

        shared = image(0)
        first = {"p1_0.png": shared} | {f"p{n}_0.png": image(n) for n in range(2, 6)}
        second = {"q1_0.png": cv2.resize(shared, (200, 230)), "q2_0.png": image(2)}
        second |= {f"q{n}_0.png": image(n + 10) for n in range(3, 6)}
        write_images(tmp_path / "one", first, dict.fromkeys(first, "train"))
        write_images(tmp_path / "two", second, dict.fromkeys(second, "test"))
        return tmp_path

    @staticmethod
    def combined(root: Path, **settings: Any) -> CombinedDataModule:
        members = {name: {"name": "csv", "root": name} for name in ("one", "two")}
        return CombinedDataModule(root, datasets=members, **settings)

    def test_a_image_in_two_splits_is_refused(self, twins: Path) -> None:
        with pytest.raises(DatasetError, match=r"2 images are there several times.*one/p1_0\.png = two/q1_0\.png"):
            _ = self.combined(twins).records
        with pytest.raises(DatasetError, match=r"1 images are there several times.*one/p2_0\.png = two/q2_0\.png"):
            _ = self.combined(twins, near_duplicates=False).records
        assert len(self.combined(twins, duplicates="ignore").records) == 10

    def test_the_check_tells_of_them(self, twins: Path) -> None:
        (fault,) = check_dataset(self.combined(twins)).faults
        assert "2 images are there several times, in different splits" in fault
        assert check_dataset(self.combined(twins, duplicates="ignore")).complete

    def test_group_keeps_the_test_copy_of_official_splits(self, twins: Path) -> None:
        whole = self.combined(twins, duplicates="group")
        with pytest.warns(UserWarning, match="2 images are left out"):
            names = {record.image_id for record in whole.records}
        assert {"two/q1_0.png", "two/q2_0.png"} <= names
        assert not {"one/p1_0.png", "one/p2_0.png"} & names
        assert whole.left_out == {"copy of an image in another official split": 2}

    def test_group_makes_one_patient_of_those_who_share_a_image(self, twins: Path) -> None:
        whole = self.combined(twins, duplicates="group", official_split=False, fractions=(0.5, 0.2))
        assert len(whole.records) == 10
        splits = {record.image_id: record.split for record in whole.records}
        assert splits["one/p1_0.png"] == splits["two/q1_0.png"]
        assert splits["one/p2_0.png"] == splits["two/q2_0.png"]
        assert not find_leaks(whole.records)

    def test_folds_set_official_splits_aside(self, twins: Path) -> None:
        whole = self.combined(twins, duplicates="group", fold=0, folds=3)
        assert len(whole.records) == 10
        splits = {record.image_id: record.split for record in whole.records}
        assert splits["one/p1_0.png"] == splits["two/q1_0.png"]

    def test_drop_links_the_patients_of_copies(self, twins: Path) -> None:
        write_images(
            twins / "two",
            {"q1_0.png": image(0), "q1_1.png": image(50), "q9_0.png": image(51)},
            {"q1_0.png": "test", "q1_1.png": "test", "q9_0.png": "test"},
        )
        whole = self.combined(twins, duplicates="drop", official_split=False)
        patients = {record.image_id: record.patient_id for record in whole.records}
        assert "two/q1_0.png" not in patients
        assert patients["two/q1_1.png"] == patients["one/p1_0.png"]

    def test_a_folder_that_takes_nothing(self, twins: Path) -> None:
        (twins / "file").write_text("no folder")
        whole = self.combined(twins, duplicates="drop", fingerprints=twins / "file")
        with pytest.warns(UserWarning, match="cannot be kept"):
            assert len(whole.records) == 8

    def test_drop_keeps_the_first(self, twins: Path) -> None:
        whole = self.combined(twins, duplicates="drop")
        assert len(whole.records) == 8
        assert whole.left_out == {"copy of another image": 2}

    def test_fingerprints_are_kept_and_damage_is_survived(self, twins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = twins / ".covidcxr-fingerprints"
        records = self.combined(twins, duplicates="ignore").unsplit_records()
        first = find_duplicates(records, cache=kept)
        file = next(kept.glob("*.npz"))
        sketched: list[int] = []

        def count(*image: Any) -> Any:
            sketched.append(1)
            return sketch(*image)

        monkeypatch.setattr("covidcxr.data.curation.duplicates.sketch", count)
        assert find_duplicates(records, cache=kept) == first
        assert not sketched
        write_image(twins / "one" / "p5_0.png", image(99))
        find_duplicates(records, cache=kept)
        assert len(sketched) == 1, "only the image that was altered"
        file.write_bytes(file.read_bytes()[:500])
        assert find_duplicates(records, cache=kept) == find_duplicates(records)


class TestFindDuplicates:
    def test_kinds_and_what_cannot_be_read(self, tmp_path: Path) -> None:
        first = write_image(tmp_path / "a.png", image(1))
        (tmp_path / "b.png").write_bytes(first.read_bytes())
        write_image(tmp_path / "c.bmp", image(1))
        write_image(tmp_path / "d.png", image(2)[:, ::-1])
        write_image(tmp_path / "e.png", 255 - image(2))
        write_image(tmp_path / "f.png", image(3))
        (tmp_path / "g.png").write_bytes(b"no image")
        records = [Record(path, image_id=path.name) for path in sorted(tmp_path.iterdir())]
        found = find_duplicates(records)
        assert found.groups == (
            DuplicateGroup(("a.png", "b.png", "c.bmp"), "pixels"),
            DuplicateGroup(("d.png", "e.png"), "near"),
        )
        assert list(found.failed) == ["g.png"]
        assert find_duplicates(records, near=False).groups == found.groups[:1]
        assert find_duplicates(records[:2], near=False).groups == (DuplicateGroup(("a.png", "b.png"), "bytes"),)
        torn = [replace(record, split="test" if record.image_id == "e.png" else "train") for record in records]
        assert [group.image_ids for group in find_shared_images(torn)] == [("d.png", "e.png")]

    def test_a_image_and_its_copy_alone(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png", image(1))
        write_image(tmp_path / "b.png", image(1)[20:-10, 15:-5])
        found = find_duplicates([Record(path, image_id=path.name) for path in sorted(tmp_path.iterdir())])
        assert found.groups == (DuplicateGroup(("a.png", "b.png"), "near"),)

    @pytest.mark.parametrize("damage", ["JPEG 10", "blur", "noise"])
    def test_strongly_damaged_copies_are_found_and_no_others(self, damage: str) -> None:
        def spoil(pixels: np.ndarray) -> np.ndarray:
            if damage == "JPEG 10":
                return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], 0)
            if damage == "blur":
                return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 3))
            return (pixels + np.random.default_rng(0).normal(0, 15, pixels.shape)).clip(0, 255).astype(np.uint8)

        images = {f"{number}": image(number) for number in range(4)}
        images |= {f"{name} again": spoil(pixels) for name, pixels in list(images.items())[:2]}
        records = [Record(Path("nowhere"), image_id=name) for name in images]
        found = find_duplicates(records, read=lambda record: images[record.image_id].astype(np.float32) / 255)
        assert [group.image_ids for group in found] == [("0", "0 again"), ("1", "1 again")]

    def test_nothing_to_compare(self) -> None:
        assert len(find_duplicates([])) == 0

    def test_flat_images_are_no_copies_of_others(self, tmp_path: Path) -> None:
        write_image(tmp_path / "black.png", np.zeros((64, 64), np.uint8))
        write_image(tmp_path / "grey.png", np.full((64, 48), 90, np.uint8))
        write_image(tmp_path / "film.png", image(1))
        assert len(find_duplicates([Record(path) for path in sorted(tmp_path.iterdir())])) == 0

    @pytest.mark.real
    @pytest.mark.slow
    def test_images_of_one_patient_are_no_copies(self, real_data: Path) -> None:
        records = CSVDataModule(real_data, where={"source": "hannover"}, augment=None).unsplit_records()
        assert len(records) == 124
        assert len(find_duplicates(records)) == 0

    @pytest.mark.real
    @pytest.mark.slow
    def test_originals_are_found_beside_their_small_copies(self, real_data: Path) -> None:
        records = CSVDataModule(real_data, augment=None).unsplit_records()
        names = {row["original_name"]: row["path"] for row in _rows(real_data / "manifest.csv")}
        pairs = {path: names[path.name] for path in (real_data / "originals").iterdir() if path.name in names}
        assert len(pairs) >= 5
        chosen = [record for record in records if record.image_id in pairs.values()]
        found = find_duplicates([*chosen, *(Record(path, image_id=path.name) for path in pairs)])
        groups = {frozenset(group.image_ids) for group in found}
        assert groups == {frozenset((small, path.name)) for path, small in pairs.items()}


def _rows(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_settings_can_be_written_as_json(root: Path) -> None:
    json.dumps(CombinedDataModule(root, datasets=MEMBERS, duplicates="ignore").settings)
