"""Compact copies: the same records, the same samples, whatever happens while they are made."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
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
from kill import kill_at_moments
from makers import MAKERS
from PIL import Image
from prepare_slowly import Images

from covidcxr.data import (
    CovidQUExDataModule,
    CovidxCT2DataModule,
    CSVDataModule,
    CXRDataModule,
    FolderDataModule,
    Ieee8023DataModule,
    Record,
)
from covidcxr.data.curation.integrity import check_dataset
from covidcxr.data.curation.prepare import prepare_dataset
from covidcxr.data.curation.prepared import INDEX, RECORDS, STAMP
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.io.folders import lock_folder
from covidcxr.io.image import image_size

SMALL: dict[str, Any] = {"image_size": (24, 24), "batch_size": 4, "augment": None}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_table_fake(tmp_path / "data", patients=12)


def open_table(root: Path, **settings: Any) -> CSVDataModule:
    return CSVDataModule(root, **({"mask_columns": MASK_COLUMNS} | SMALL | settings))


def assert_same_records(copy: CXRDataModule, origin: CXRDataModule) -> None:
    assert len(copy.records) == len(origin.records)
    for one, other in zip(copy.records, origin.records, strict=True):
        for field in {field.name for field in fields(Record)} - {"image_path", "mask_paths", "box"}:
            assert getattr(one, field) == getattr(other, field), field
        assert list(one.mask_paths) == list(other.mask_paths)
        assert one.box is None
        assert one.image_path.is_relative_to(copy.root)
    assert (copy.classes, copy.left_out, copy.listed) == (origin.classes, origin.left_out, origin.listed)


def assert_same_samples(copy: CXRDataModule, origin: CXRDataModule) -> None:
    for split in ("train", "val", "test"):
        one, other = getattr(copy, f"{split}_dataset"), getattr(origin, f"{split}_dataset")
        assert len(one) == len(other)
        for index in range(0, len(one), 1 + len(one) // 12):
            for key, value in one[index].items():
                if isinstance(value, torch.Tensor):
                    assert value.nan_to_num(-1).equal(other[index][key].nan_to_num(-1)), key
                else:
                    assert value == other[index][key], key


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".covidcxr."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_module_reads_its_copy(name, tmp_path):
    made = MAKERS[name](tmp_path / "data")
    settings = SMALL | made.settings | {"official_split": made.official_split}
    origin = type(made)(made.root, **settings)
    report = prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24))
    copy = type(made)(tmp_path / "copy", **settings)
    assert (report.images, report.written, report.failed) == (len(origin.records), len(origin.records), [])
    assert_same_records(copy, origin)
    assert_same_samples(copy, origin)
    assert check_dataset(copy, decode=True).faults == check_dataset(origin).faults


class TestSamples:
    @pytest.mark.parametrize("fit", ["letterbox", "stretch"])
    @pytest.mark.parametrize("size", [(24, 24), (30, 70), SIZE])
    def test_are_the_same_to_the_bit(self, table, tmp_path, fit, size):
        settings = {"image_size": size, "fit": fit, "mask_classes": ["lung", "infection"], "augment": "default"}
        origin = open_table(table, **settings)
        prepare_dataset(origin, tmp_path / "copy", image_size=size, fit=fit)
        assert_same_samples(open_table(tmp_path / "copy", **settings), origin)

    def test_odd_shapes(self, tmp_path):
        rng = np.random.default_rng(0)
        rows = [{"path": f"{i}.png", "label": "a"} for i in range(60)]
        for row in rows:
            height, width = rng.integers(1, 90, 2)
            write_image(tmp_path / "data" / row["path"], rng.integers(0, 256, (height, width), np.uint8))
        write_csv(tmp_path / "data" / "manifest.csv", rows)
        settings = {"image_size": (33, 47), "patient_column": None, "mask_columns": None}
        origin = open_table(tmp_path / "data", **settings)
        prepare_dataset(origin, tmp_path / "copy", image_size=(33, 47))
        assert_same_samples(open_table(tmp_path / "copy", **settings), origin)

    def test_boxes_are_cut_once(self, tmp_path):
        origin = CovidxCT2DataModule(write_covidx_ct2_fake(tmp_path / "data"), **SMALL)
        prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24))
        copy = CovidxCT2DataModule(tmp_path / "copy", **SMALL)
        assert_same_samples(copy, origin)
        assert image_size(copy.records[0].image_path) == (24, 19)  # of 35 x 28 pixels

    def test_regions_need_the_masks_of_the_copy(self, table, tmp_path):
        settings = {"region": "lungs", "where": {"source": ["north", "south"]}, "mask_classes": ["infection"]}
        origin = open_table(table, **settings)
        prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24))
        assert_same_samples(open_table(tmp_path / "copy", **settings), origin)

    def test_images_are_small_and_without_padding(self, table, tmp_path):
        report = prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24))
        images = [np.asarray(Image.open(path)) for path in (tmp_path / "copy" / "films").rglob("*.png")]
        assert {(image.shape, image.dtype.name) for image in images} == {((24, 19), "uint8")}
        assert report.size == sum(path.stat().st_size for path in (tmp_path / "copy").rglob("*.png"))
        masks = [Image.open(path) for path in (tmp_path / "copy" / "masks").rglob("*.png")]
        assert {mask.mode for mask in masks} == {"1"}, "one bit a pixel"
        assert {*np.unique([np.asarray(mask.convert("L")) for mask in masks])} == {0, 255}

    def test_a_copy_can_be_moved(self, table, tmp_path):
        origin = open_table(table)
        prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24))
        (tmp_path / "copy").rename(tmp_path / "moved")
        copy = open_table(tmp_path / "moved")
        assert_same_records(copy, origin)
        assert_same_samples(copy, origin)


class TestOneFileOfAll:
    """`pixels.bin`: at the copy's size no file of an image is opened."""

    SETTINGS: ClassVar[dict[str, Any]] = {"mask_classes": ["lung_field", "infection"], "augment": "default"}

    def test_samples_come_from_it_to_the_bit(self, table, tmp_path):
        settings = self.SETTINGS | {"label_map": {"other": None}, "region": "box", "where": {"source": ["north"]}}
        settings["drop_unmasked"] = True
        origin = open_table(table, **settings)
        prepare_dataset(open_table(table, where={"source": ["north"]}), tmp_path / "copy", image_size=(24, 24))
        for path in (tmp_path / "copy").rglob("*.png"):
            path.write_bytes(b"")
        copy = open_table(tmp_path / "copy", **settings)
        assert 0 < len(copy.records) < 24
        assert_same_samples(copy, origin)

    def test_samples_of_another_size_come_from_the_images(self, table, tmp_path):
        prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24))
        copy = open_table(tmp_path / "copy", image_size=(16, 16))
        assert copy.train_dataset[0]["image"].shape == (1, 16, 16)
        copy.records[0].image_path.unlink()
        (tmp_path / "copy" / "pixels.bin").unlink()
        with pytest.raises(DatasetError, match="films"):  # looks for each image again
            open_table(tmp_path / "copy").setup()

    def test_a_copy_without_it_is_read_as_before(self, table, tmp_path):
        origin = open_table(table, **self.SETTINGS)
        prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24), memory_map=False)
        assert not (tmp_path / "copy" / "pixels.bin").exists()
        index = json.loads((tmp_path / "copy" / INDEX).read_text())
        del index["stored_masks"]  # a copy of before there was such a file
        (tmp_path / "copy" / INDEX).write_text(json.dumps(index))
        assert_same_samples(open_table(tmp_path / "copy", **self.SETTINGS), origin)
        # Prepared again, it gets one.
        assert prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24)).written == 0
        assert (tmp_path / "copy" / "pixels.bin").stat().st_size == 24 * 4 * 24 * 24
        prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24), memory_map=False)
        assert not (tmp_path / "copy" / "pixels.bin").exists()

    def test_what_was_cut_is_one_error(self, table, tmp_path):
        prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24))
        with (tmp_path / "copy" / "pixels.bin").open("rb+") as file:
            file.truncate(1000)
        with pytest.raises(DatasetError, match=r"pixels\.bin cannot be used.*or remove it"):
            open_table(tmp_path / "copy").setup()
        (tmp_path / "copy" / "pixels.bin").unlink()
        assert_same_samples(open_table(tmp_path / "copy"), open_table(table))

    def test_an_image_that_was_damaged_is_written_again(self, table, tmp_path):
        prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24))
        whole = files_of(tmp_path / "copy")
        sorted((tmp_path / "copy" / "films").rglob("*.png"))[3].write_bytes(b"half")
        assert prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24)).written == 1
        assert files_of(tmp_path / "copy") == whole

    def test_masks_that_are_not_known_take_no_room(self, tmp_path):
        rows = [{"path": f"{i}.png", "label": "a", "lung": "lung.png" if i == 0 else ""} for i in range(40)]
        for row in rows:
            write_image(tmp_path / "data" / row["path"], draw_image(0))
        write_image(tmp_path / "data" / "lung.png", draw_lungs())
        write_csv(tmp_path / "data" / "manifest.csv", rows)
        settings = {"image_size": (256, 256), "patient_column": None, "mask_columns": {"lung": "lung"}}
        prepare_dataset(open_table(tmp_path / "data", **settings), tmp_path / "copy", image_size=(256, 256))
        size = (tmp_path / "copy" / "pixels.bin").stat()
        assert size.st_size == 40 * 2 * 256 * 256
        assert size.st_blocks * 512 < 40 * 1.2 * 256 * 256


class TestSettings:
    def test_labels_and_splits_are_chosen_anew(self, tmp_path):
        root = write_covid_qu_ex_fake(tmp_path / "data")
        labels = {"COVID-19": "sick", "Non-COVID": "sick"}
        prepare_dataset(
            CovidQUExDataModule(root, label_map=labels, fold=0, folds=3), tmp_path / "copy", image_size=(24, 24)
        )
        for settings in ({}, {"label_map": labels}, {"official_split": False}, {"label_map": {"Normal": None}}):
            origin = CovidQUExDataModule(root, **SMALL, **settings)
            assert_same_records(CovidQUExDataModule(tmp_path / "copy", **SMALL, **settings), origin)

    def test_classes_of_a_table(self, table, tmp_path):
        for number, settings in enumerate(
            ({"classes": ["normal", "other", "pneumonia", "covid19"]}, {"label_map": {"other": None}})
        ):
            origin = open_table(table, **settings)
            prepare_dataset(origin, tmp_path / f"{number}", image_size=(24, 24))
            copy = open_table(tmp_path / f"{number}", **settings)
            assert_same_records(copy, origin)
            assert copy.own_classes == ("covid19", "normal", "other", "pneumonia")
        folder = FolderDataModule(write_folder_fake(tmp_path / "folder"), patient_pattern="p(.+)_")
        prepare_dataset(folder, tmp_path / "c", image_size=(24, 24))
        copy = FolderDataModule(tmp_path / "c", patient_pattern="p(.+)_", label_map={"covid19": "sick"}, **SMALL)
        assert copy.classes == ("sick", "normal")

    def test_another_data_set_or_setting_is_refused(self, tmp_path):
        root = write_covid_qu_ex_fake(tmp_path / "data")
        prepare_dataset(CovidQUExDataModule(root), tmp_path / "copy", image_size=(24, 24))
        for module, message in (
            (CovidQUExDataModule(tmp_path / "copy", part="infection", **SMALL), "part='lung', not 'infection'"),
            (CovidQUExDataModule(tmp_path / "copy", views="all", **SMALL), "views='frontal', not 'all'"),
            (CovidQUExDataModule(tmp_path / "copy", drawn_masks=tmp_path, **SMALL), "drawn_masks=False, not True"),
            (Ieee8023DataModule(tmp_path / "copy", **SMALL), "prepared from CovidQUExDataModule"),
        ):
            with pytest.raises(ConfigError, match=message):
                module.setup()

    def test_a_copy_of_all_views_serves_frontal_ones_too(self, tmp_path):
        root = write_ieee8023_fake(tmp_path / "data")
        report = prepare_dataset(Ieee8023DataModule(root, views="all"), tmp_path / "copy", image_size=(24, 24))
        assert report.left_out == {"CT volume": 1}
        for views in ("frontal", "all"):
            origin = Ieee8023DataModule(root, views=views, **SMALL)
            copy = Ieee8023DataModule(tmp_path / "copy", views=views, **SMALL)
            assert_same_records(copy, origin)

    def test_geometry(self, table, tmp_path):
        prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24), fit="stretch")
        with pytest.raises(ConfigError, match='fit="stretch", not "letterbox"'):
            open_table(tmp_path / "copy")
        with pytest.warns(UserWarning, match="images are enlarged") as caught:
            open_table(tmp_path / "copy", fit="stretch", image_size=(24, 32)).setup()
        assert len(caught) == 1
        open_table(tmp_path / "copy", fit="stretch", image_size=(16, 24)).setup()
        prepare_dataset(open_table(table), tmp_path / "other", image_size=(24, 24))
        with pytest.raises(ConfigError, match='fit="letterbox", not "stretch"'):
            open_table(tmp_path / "other", fit="stretch")

    def test_drawn_masks_are_copied(self, table, tmp_path):
        for record in open_table(table).records:
            write_image(tmp_path / "drawn" / f"{record.image_id}.lung.png", draw_lungs())
        settings = {"drawn_masks": tmp_path / "drawn", "region": "lungs"}
        origin = open_table(table, **settings)
        prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24))
        for copy in (open_table(tmp_path / "copy", **settings), open_table(tmp_path / "copy", region="lungs")):
            assert_same_records(copy, origin)
            assert_same_samples(copy, origin)

    def test_a_reader_of_its_own_reads_the_origin_only(self, table, tmp_path):
        class Inverting(CSVDataModule):
            def load_image(self, record: Record) -> np.ndarray:
                return 1 - super().load_image(record)

        origin = Inverting(table, mask_columns=MASK_COLUMNS, **SMALL)
        prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24))
        assert_same_samples(Inverting(tmp_path / "copy", mask_columns=MASK_COLUMNS, **SMALL), origin)


class TestBrokenImages:
    def test_cost_an_entry_each(self, table, tmp_path):
        origin = open_table(table)
        images = [record.image_path for record in origin.records]
        masks = [path for record in origin.records[10:] for path in record.mask_paths.values()]
        images[0].write_bytes(images[0].read_bytes()[:-200])
        images[3].unlink()
        write_image(masks[0], draw_lungs((20, 30)))
        report = prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24))
        told = {failure["image_id"]: failure["error"] for failure in report.failed}
        assert len(told) == 3
        assert "cannot be decoded" in told[origin.records[0].image_id]
        assert "no file" in told[origin.records[3].image_id]
        assert (report.images, report.written, report.left_out) == (21, 21, {"cannot be read": 3})
        lines = (tmp_path / "copy" / "failed.jsonl").read_text().splitlines()
        assert (
            [json.loads(line) for line in lines] == report.failed == json.loads(json.dumps(report.to_dict()))["failed"]
        )
        copy = open_table(tmp_path / "copy")
        assert len(copy.records) == 21
        assert copy.left_out == {"cannot be read": 3}
        assert not told.keys() & {record.image_id for record in copy.records}
        # Mended, they are added, and nothing else is done again.
        write_table_fake(table, patients=12)
        report = prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24))
        assert (report.images, report.written, report.failed) == (24, 3, [])
        assert not (tmp_path / "copy" / "failed.jsonl").exists()
        assert_same_records(open_table(tmp_path / "copy"), open_table(table))

    def test_nothing_but_broken_images_is_no_copy(self, table, tmp_path):
        for path in (table / "images").rglob("*.png"):
            path.write_bytes(b"<html>")
        with pytest.raises(DatasetError, match=r"Not one of 24 images .*HTML"):
            prepare_dataset(open_table(table), tmp_path / "copy")
        assert not (tmp_path / "copy" / INDEX).exists()

    def test_broken_tables_are_mended_first(self, table, tmp_path):
        lines = (table / "manifest.csv").read_text()
        for wrong, message in ((lines.splitlines()[1], "more than once"), ("x.png,a", "Line 26")):
            (table / "manifest.csv").write_text(f"{lines}{wrong}\n")
            with pytest.raises(DatasetError, match=message):
                prepare_dataset(open_table(table), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_a_full_disk(self, table, tmp_path, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("covidcxr.data.curation.prepare.write_image", full)
            with pytest.raises(DatasetError, match=r"No space left on device\. .* goes on where it stopped"):
                prepare_dataset(open_table(table), tmp_path / "copy")
        assert prepare_dataset(open_table(table), tmp_path / "copy").images == 24


class TestPlaces:
    def test_nothing_is_written_outside(self, tmp_path):
        """Names that lead out, meet on some disk, are too long, or are an image and a folder."""
        root, far = tmp_path / "a" / "data", str(tmp_path / "a" / "elsewhere" / "far.png")
        paths = ["../beside.png", far, "in/side.png", "In/Side.png", f"{'x' * 230}.png", "a.png", "b/../../up.png"]
        for number, path in enumerate(paths):
            write_image(root / path, draw_image(number))
            write_image(root / "masks" / f"{number}.png", draw_lungs())
        rows = [{"path": path, "label": "n", "m": f"masks/{i}.png"} for i, path in enumerate(paths)]
        write_csv(root / "manifest.csv", rows)
        settings = SMALL | {"patient_column": None, "mask_columns": {"../../m": "m"}, "mask_classes": ["../../m"]}
        origin, before = CSVDataModule(root, **settings), files_of(tmp_path / "a")
        prepare_dataset(origin, tmp_path / "b" / "copy", image_size=(24, 24))
        assert files_of(tmp_path / "a") == before
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
        assert all(name.startswith("copy/") for name in files_of(tmp_path / "b"))
        copy = CSVDataModule(tmp_path / "b" / "copy", **settings)
        assert len({str(record.image_path).casefold() for record in copy.records}) == len(paths)
        assert_same_records(copy, origin)
        assert_same_samples(copy, origin)

    def test_wrong_places(self, table, tmp_path):
        prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24))
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "notes.txt").write_text("mine")
        for origin, out, message in (
            (open_table(table), table, "own folder"),
            (open_table(table), table / "images" / "copy", "own folder"),
            (open_table(table), tmp_path, "holds other files"),
            (open_table(table), tmp_path / "full", "holds other files"),
            (open_table(table, where={"source": "north"}), tmp_path / "copy", "begun with settings="),
            (open_table(tmp_path / "copy"), tmp_path / "new", "compact copy already"),
            (open_table(write_table_fake(tmp_path / "twin", patients=12)), tmp_path / "copy", "from another root"),
        ):
            with pytest.raises(ConfigError, match=message):
                prepare_dataset(origin, out, image_size=(24, 24))
        for settings, message in (
            ({"image_size": (24, 32)}, r"image_size=\[24, 24\]"),
            ({"num_workers": 0}, "from 1 up"),
        ):
            with pytest.raises(ConfigError, match=message):
                prepare_dataset(open_table(table), tmp_path / "copy", **{"image_size": (24, 24), **settings})
        assert len(open_table(tmp_path / "copy").records) == 24


class TestDamagedCopies:
    @pytest.fixture
    def copy(self, table, tmp_path) -> Path:
        prepare_dataset(open_table(table), tmp_path / "copy", image_size=(24, 24))
        return tmp_path / "copy"

    def test_index(self, copy):
        index = json.loads((copy / INDEX).read_text())
        for content, message in (
            ("{", "cannot be read"),
            ("[]", "one JSON object"),
            ("{}", "is damaged: KeyError"),
            (json.dumps(index | {"format_version": 99}), "newer covidcxr"),
        ):
            (copy / INDEX).write_text(content)
            with pytest.raises(DatasetError, match=message):
                open_table(copy)

    def test_records(self, copy):
        whole = (copy / RECORDS).read_bytes()
        lines = gzip.decompress(whole).splitlines(keepends=True)
        for content, message in (
            (whole[: len(whole) // 2], "cannot be read"),
            (b"no gzip", "cannot be read"),
            (gzip.compress(b"".join(lines[:-1])), "tells 23 images of 24"),
            (gzip.compress(b"".join([b"{}\n", *lines[1:]])), "Line 1 of .* is damaged"),
            (gzip.compress(b"".join([b'{"image_path": "a", "size": 3}\n', *lines[1:]])), "Line 1 of .* is damaged"),
        ):
            (copy / RECORDS).write_bytes(content)
            with pytest.raises(DatasetError, match=message):
                open_table(copy).setup()
        (copy / RECORDS).unlink()
        with pytest.raises(DatasetError, match="0 images of 24"):
            open_table(copy).setup()

    def test_images(self, copy):
        images = sorted((copy / "films").rglob("*.png"))
        images[0].unlink()
        with pytest.raises(DatasetError, match="1 files of the data set are missing"):
            open_table(copy).setup()


class TestInterruption:
    @pytest.fixture
    def whole(self, table, tmp_path) -> dict[str, bytes]:
        """The files of a copy that nothing interrupted."""
        prepare_dataset(Images(table), tmp_path / "whole", image_size=(24, 24))
        return files_of(tmp_path / "whole")

    def test_killed_and_resumed(self, table, tmp_path, whole):
        out = tmp_path / "copy"
        command = [
            sys.executable,
            str(Path(__file__).parents[2] / "helpers" / "prepare_slowly.py"),
            str(table),
            str(out),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            while int(run.stdout.readline()) < 5:
                pass
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL
        found = files_of(out)
        assert STAMP in found
        assert INDEX not in found
        pictures = {name for name in found if name.endswith(".png")}
        assert all(found[name] == whole[name] for name in pictures)  # whole or not there
        written = sum(name.startswith("films/") for name in pictures)
        assert 5 <= written < 24
        with pytest.raises(DatasetError, match=r"unfinished\. Run covidcxr datasets prepare again"):
            Images(out)
        (out / "films" / f".{'0' * 32}.tmp").write_bytes(b"half an image")
        report = prepare_dataset(Images(table), out, image_size=(24, 24))
        assert (report.images, report.written) == (24, 24 - written)
        assert files_of(out) == whole

    @pytest.mark.parametrize("last", [STAMP, "pixels.bin", "boxes.npy", RECORDS, INDEX])
    def test_killed_while_a_file_is_put_in_place(self, table, tmp_path, whole, monkeypatch, last):
        class Killed(BaseException):
            pass

        def replace(self: Path, target: Path) -> Path:
            if target.name == last:
                raise Killed
            return original(self, target)

        out, original = tmp_path / "copy", Path.replace
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead tidy nothing
            with pytest.raises(Killed):
                prepare_dataset(Images(table), out, image_size=(24, 24))
        assert not (out / INDEX).exists()
        assert (out / STAMP).exists() == (last != STAMP)
        report = prepare_dataset(Images(table), out, image_size=(24, 24))
        assert report.written == (24 if last == STAMP else 0)
        assert files_of(out) == whole

    def test_a_finished_copy_stays_as_it_is(self, table, tmp_path, whole):
        assert prepare_dataset(Images(table), tmp_path / "whole", image_size=(24, 24)).written == 0
        assert files_of(tmp_path / "whole") == whole
        assert STAMP not in whole

    def test_progress(self, table, tmp_path):
        told = []
        prepare_dataset(Images(table), tmp_path / "copy", progress=lambda done, total: told.append((done, total)))
        assert told == [(done, 24) for done in range(1, 25)]

    def test_two_at_once(self, table, tmp_path):
        with lock_folder(tmp_path / "copy"), pytest.raises(ConfigError, match="is in use by process"):
            prepare_dataset(Images(table), tmp_path / "copy", image_size=(24, 24))
        assert prepare_dataset(Images(table), tmp_path / "copy", image_size=(24, 24)).written == 24

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    def test_the_command_killed_at_ten_moments(self, tmp_path):
        write_folder_fake(tmp_path / "data", patients=200)
        for image in list((tmp_path / "data").rglob("p007_*.png")):
            image.write_bytes(b"\x89PNG\r\n\x1a\n no image")
        words = ["datasets", "prepare", "folder", "--root", "data", "--image-size", "24", "24", "--num-workers", "1"]
        command = [sys.executable, "-m", "covidcxr", *words]
        first = kill_at_moments([*command, "--out", "whole"], tmp_path, 0)
        assert first.returncode == 1, first.output
        whole, out = files_of(tmp_path / "whole"), tmp_path / "copy"
        written = 0

        def pictures() -> dict[str, bytes]:
            return {name: content for name, content in files_of(out).items() if name.endswith(".png")}

        def check() -> None:
            nonlocal written
            there = pictures()
            assert len(there) >= written, "a picture was lost"
            assert all(whole[name] == content for name, content in there.items()), "half a picture is taken for whole"
            assert (out / STAMP).is_file()
            assert not (out / INDEX).exists()
            written = len(there)

        def begun() -> bool:
            return out.is_dir() and len(list(out.rglob("*.png"))) > written

        end = kill_at_moments([*command, "--out", "copy"], tmp_path, 10, seed=3, seconds=0.1, begun=begun, check=check)
        assert (end.returncode, end.kills) == (1, 10), end.output
        assert 10 <= written < len(whole)
        assert files_of(out) == whole
