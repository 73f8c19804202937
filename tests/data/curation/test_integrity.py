"""Checking a copy of a data set: every fault at once, none where there is none."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fakes import (
    MASK_COLUMNS,
    SIZE,
    draw_image,
    draw_lungs,
    write_covid_qu_ex_fake,
    write_covidx_ct2_fake,
    write_csv,
    write_folder_fake,
    write_ieee8023_fake,
    write_image,
    write_table_fake,
)
from makers import MAKERS

from covidcxr.data import CovidQUExDataModule, CovidxCT2DataModule, CSVDataModule, FolderDataModule, Ieee8023DataModule
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.errors import DatasetError
from covidcxr.utils.threads import map_threads


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Images of three classes, masks of two kinds."""
    return write_table_fake(tmp_path / "data")


def open_table(root: Path, **settings: object) -> CSVDataModule:
    return CSVDataModule(root, **({"mask_columns": MASK_COLUMNS} | settings))


def cut_short(path: Path) -> None:
    """Keep the header of a picture, and lose a part of its pixels."""
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_sound_copy_has_no_fault_but_its_size(name, tmp_path):
    module = MAKERS[name](tmp_path / "data")
    report = check_dataset(module, decode=True)
    assert [fault for fault in report.faults if "images of the release" not in fault] == []
    assert report.images == len(module.records)
    assert report.left_out == dict(module.left_out)
    assert report.release is None
    assert report.complete == (not module.releases)
    if not module.multilabel:
        assert sum(report.counts.values()) == len(list(module.read_records()))
    assert json.loads(json.dumps(report.to_dict()))["films"] == report.images


def test_every_fault_of_a_table_at_once(table):
    lines = (table / "manifest.csv").read_text().splitlines()
    images = sorted(path for path in (table / "images").rglob("*.png"))
    masks = sorted(path for path in (table / "lungs").iterdir())
    images[0].unlink()
    masks[3].unlink()
    images[5].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    images[6].write_bytes(b"")
    masks[8].write_bytes(b"<html>")
    write_image(masks[9], draw_lungs((20, 30)))
    lines += [lines[3], lines[5].replace(",", "", 1), lines[6][:30]]
    (table / "manifest.csv").write_text("\n".join(lines))
    faults = check_dataset(open_table(table, classes=["covid19", "pneumonia", "normal"])).faults
    expected = [
        f"Line 51 of {table / 'manifest.csv'} has 8 fields",
        f"Line 52 of {table / 'manifest.csv'} has 3 fields",
        "1 images are listed more than once: images/south/south01_1.png",
        f"2 files of the data set are missing (1 images, 1 masks): {images[0]}, {masks[3]}",
        "Images have labels that are no classes: 'other' (12)",
        f"'{images[5]}' is no image but a Git LFS pointer",
        f"'{images[6]}' is empty",
        f"'{masks[8]}' is no image but text",
        f"The mask {masks[9]} is 20 x 30 pixels",
    ]
    assert len(faults) == len(expected)
    for part in expected:
        assert sum(part in fault for fault in faults) == 1, part
    with pytest.raises(DatasetError, match="Line 51"):  # a data module that is used stops at the first
        open_table(table).setup()


def test_every_fault_of_a_published_data_set_at_once(tmp_path):
    root = write_covid_qu_ex_fake(tmp_path, doubled=False)
    top = root / "COVID-QU-Ex_dataset" / "Lung Segmentation Data"
    for path in (top / "Val" / "Normal" / "images").iterdir():
        path.unlink()
    (top / "Test" / "Non-COVID" / "images").rename(top / "away")
    masks = sorted((top / "Train" / "Normal" / "lung masks").iterdir())
    masks[0].unlink()
    write_image(masks[1], np.ones((40, 40), bool))
    images = sorted((top / "Train" / "Normal" / "images").iterdir())
    images[2].unlink()
    images[2].symlink_to("/nowhere/film.png")
    report = check_dataset(CovidQUExDataModule(root))
    assert [fault.split(". ")[0] for fault in report.faults if "images of the release" not in fault] == [
        f"{top / 'Val' / 'Normal' / 'images'} holds no image",
        f"CovidQUExDataModule does not find {top / 'Test' / 'Non-COVID' / 'images'}",
        f"2 files of the data set are missing (1 images, 1 masks): {images[2]}, {masks[0]}",
        f"The mask {masks[1]} is 40 x 40 pixels, its image {images[1]} 40 x 32: they do not show the same part",
    ]
    assert not report.complete
    assert "kaggle.com" in report.faults[1]


class TestCounts:
    @pytest.fixture
    def module(self, table) -> CSVDataModule:
        module = open_table(table, label_map={"other": None}, views="all")
        complete = Counter({f"all/{label}": 12 for label in ("covid19", "pneumonia", "normal", "other")})
        module.releases = {"old": complete - Counter({"all/other": 9}), "new": complete}
        return module

    def test_a_complete_copy_is_its_release(self, module):
        report = check_dataset(module)
        assert (report.release, report.faults, report.complete) == ("new", [], True)
        assert report.counts == dict(module.releases["new"])
        assert (report.images, report.left_out) == (36, {"label other": 12})
        assert "Images left out: 12 (label other)." in report.notes

    def test_what_lacks_of_the_nearest_release(self, module, table):
        lines = (table / "manifest.csv").read_text().splitlines()
        (table / "manifest.csv").write_text("\n".join(lines[:2] + lines[4:] + [lines[1].replace("covid19", "flu")]))
        report = check_dataset(module)
        assert report.release is None
        assert report.faults[:2] == [
            "1 images are listed more than once: images/north/north00_0.png. List each image once.",
            "all/covid19: 10 of 12 images of the release new.",
        ]
        assert "all/flu: 1 of 0 images of the release new." in report.faults

    def test_splits_count_where_the_release_has_them(self, module, table):
        rows = [
            {"path": f"{i}.png", "label": "ab"[i % 2], "patient_id": str(i), "split": ("train", "test")[i > 5]}
            for i in range(9)
        ]
        for row in rows:
            write_image(table / row["path"], draw_image(0))
        write_csv(table / "split.csv", rows)
        module = open_table(table, table="split.csv", mask_columns=None)
        module.releases = {"1": {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 1}, "2": {"all/a": 5, "all/b": 5}}
        assert check_dataset(module).release == "1"
        module.releases = {"2": {"all/a": 5, "all/b": 5}}
        assert check_dataset(module).faults == ["all/b: 4 of 5 images of the release 2."]


class TestNotes:
    def test_leaks_and_patients(self, table):
        rows = [
            {"path": f"{i}.png", "patient_id": f"p{i // 2}" * (i > 5), "split": ("train", "test")[i % 2]}
            for i in range(20)
        ]
        for row in rows:
            write_image(table / row["path"], draw_image(0))
        write_csv(table / "split.csv", rows)
        settings = {"table": "split.csv", "mask_columns": None, "label_column": None}
        report = check_dataset(open_table(table, **settings))
        assert report.complete
        assert any("leaks: 7 patients" in note for note in report.notes)
        assert any("patients of 6 of 20 images are not known" in note for note in report.notes)
        assert not any(
            "leaks" in note for note in check_dataset(open_table(table, official_split=False, **settings)).notes
        )

    def test_warnings_of_the_reader(self, tmp_path):
        report = check_dataset(FolderDataModule(write_folder_fake(tmp_path / "data")))
        assert any("give patient_pattern" in note for note in report.notes)
        assert report.complete

    def test_what_is_left_out(self, tmp_path):
        report = check_dataset(Ieee8023DataModule(write_ieee8023_fake(tmp_path)))
        assert report.left_out == {"lateral": 6, "unknown view": 12, "CT slice": 2, "CT volume": 1}
        assert "Images left out: 12 (unknown view), 6 (lateral), 2 (CT slice), 1 (CT volume)." in report.notes
        assert sum(report.counts.values()) == report.images + 20


class TestFiles:
    def test_only_decoding_finds_what_is_cut_short(self, table):
        image, mask = table / "images/north/north00_0.png", table / "lungs/north03_0.png"
        cut_short(image)
        write_image(mask, draw_image(0))  # an image in place of its mask
        assert check_dataset(open_table(table)).complete
        faults = check_dataset(open_table(table), decode=True).faults
        assert [str(path) in fault for path, fault in zip((image, mask), faults, strict=True)] == [True, True]

    def test_boxes_and_masks_are_compared_with_the_image(self, tmp_path):
        root = write_covidx_ct2_fake(tmp_path)
        write_image(
            root / "2A_images" / "CP_0_3112_0032.png", draw_image(0, (39, 30))
        )  # its box ends at column 30, row 39
        write_image(root / "2A_images" / "NCP_0_2577_0116.png", draw_image(0, (39, 29)))
        (fault,) = [fault for fault in check_dataset(CovidxCT2DataModule(root)).faults if "release" not in fault]
        assert fault.startswith(
            f"The box (4, 2, 39, 30) of {root / '2A_images' / 'NCP_0_2577_0116.png'} reaches beyond"
        )

    def test_no_image_is_decoded_for_headers(self, table, monkeypatch):
        monkeypatch.setattr("covidcxr.data.collection.read_image", None)
        monkeypatch.setattr("covidcxr.data.curation.integrity.read_mask", None)
        told = []
        assert check_dataset(open_table(table), progress=lambda done, total: told.append((done, total))).complete
        assert told == [(done, 48) for done in range(1, 49)]

    @pytest.mark.parametrize("damage", ["cut short", "flipped"])
    def test_a_packed_table_that_is_damaged(self, table, damage):
        packed = gzip.compress(b"\n".join((table / "manifest.csv").read_bytes().splitlines() * 50), mtime=0)
        half = len(packed) // 2
        broken = packed[:half] + (b"" if damage == "cut short" else bytes([packed[half] ^ 255]) + packed[half + 1 :])
        (table / "manifest.csv.gz").write_bytes(packed)
        module = open_table(table, table="manifest.csv.gz", mask_columns=None)
        (table / "manifest.csv.gz").write_bytes(broken)
        faults = check_dataset(module).faults
        assert any(f"{table / 'manifest.csv.gz'}, after line" in fault for fault in faults)

    @pytest.mark.parametrize("gone", ["root", "images"])
    def test_no_data_set_at_all(self, tmp_path, gone):
        root = tmp_path / "data"
        if gone == "films":
            root.mkdir()
        report = check_dataset(CovidQUExDataModule(root))
        (fault,) = report.faults
        assert "does not find" in fault
        assert "kaggle.com" in fault
        assert (report.images, report.counts, report.complete) == (0, {}, False)


class TestDrawnMasks:
    def test_the_output_of_predict_is_understood(self, table):
        for record in open_table(table).records:
            write_image(table / "out" / "films" / f"{record.image_id}.lung.png", draw_lungs(SIZE))
        for folder in ("out", "out/films"):
            module = open_table(table, drawn_masks=table / folder)
            assert {*module.records[0].mask_paths} <= {"lung_field", "infection"}  # has one of its own
            assert all(record.mask_paths.keys() & {"lung", "lung_field"} for record in module.records)

    def test_a_folder_without_one_fitting_mask_is_refused(self, table):
        write_image(table / "out" / "films" / "other.png.lung.png", draw_lungs())
        with pytest.raises(DatasetError, match="for none of 24 images") as caught:
            open_table(table, drawn_masks=table / "out").setup()
        assert str(table / "out" / "films") in str(caught.value)
        report = check_dataset(open_table(table, drawn_masks=table / "nowhere", where={"source": ["north", "east"]}))
        assert ["no folder of predicted masks" in fault for fault in report.faults] == [True]
        assert report.images == 32  # the rest was looked at all the same

    def test_images_that_have_masks_need_none(self, table):
        (table / "out").mkdir()
        settings = {"where": {"source": "north"}, "mask_columns": {"lung_field": "lung_mask"}}
        assert check_dataset(open_table(table, drawn_masks=table / "out", **settings)).complete


class TestThreads:
    def test_results_come_in_order_and_few_wait(self):
        begun = []

        def work(item: int) -> int:
            begun.append(item)
            return item * item

        results = map_threads(work, range(1000), threads=3)
        assert [next(results) for _ in range(10)] == [n * n for n in range(10)]
        assert len(begun) < 40
        assert list(results) == [n * n for n in range(10, 1000)]

    def test_an_error_stops_it(self):
        begun = []

        def work(item: int) -> None:
            begun.append(item)
            if item == 5:
                raise DatasetError("five")

        with pytest.raises(DatasetError, match="five"):
            list(map_threads(work, range(1000), threads=2))
        assert len(begun) < 40
