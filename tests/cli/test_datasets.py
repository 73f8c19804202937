"""`covidcxr datasets` as a user meets it."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections import Counter
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import MASK_COLUMNS, write_image, write_table_fake
from PIL import Image

from covidcxr import registry
from covidcxr.cli import main
from covidcxr.data import CSVDataModule, Record, compute_mean_std
from covidcxr.data.collection import Collection
from covidcxr.data.datamodule import CXRDataModule
from covidcxr.data.pictures import choose_images, draw_charts, draw_contact_sheet
from covidcxr.data.summary import (
    constructor_parameters,
    count_ages,
    labels_shown,
    open_dataset,
    parse_settings,
    survey,
    what_the_source_tells,
)
from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.registry import DATASETS
from covidcxr.transforms.overlay import MASK_COLORS

SIZES = "image_size=[32, 32]"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of 24 patients from three sources, some with masks."""
    return write_table_fake(tmp_path_factory.mktemp("table"))


@pytest.fixture
def rows(table: Path) -> list[dict[str, str]]:
    with (table / "manifest.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def masks() -> str:
    return f"mask_columns={json.dumps(MASK_COLUMNS)}"


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> Any:
    """What a verb prints as JSON."""
    assert main(["datasets", *map(str, words), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_list_names_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    entries = {entry["name"]: entry for entry in said(capsys, "list")}
    assert tuple(entries) == DATASETS.names()
    assert all(entry["what"].endswith(".") and "\n" not in entry["what"] for entry in entries.values())
    assert {entry["modality"] for entry in entries.values()} == {"X-ray", "CT"}
    for name, entry in entries.items():
        releases = getattr(DATASETS.get(name), "releases", {})
        assert entry["films"] == (sum(releases[entry["release"]].values()) if releases else None)
    assert main(["datasets", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in entries)


def test_list_survives_what_other_packages_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cxr_broken.py").write_text("raise RuntimeError('no licence\\nfound')")
    monkeypatch.syspath_prepend(tmp_path)
    group = DATASETS.group
    points = [EntryPoint("gone", "cxr_gone:Films", group), EntryPoint("broken", "cxr_broken:Films", group)]
    monkeypatch.setattr(registry, "installed_points", lambda group: points)
    entries = {entry["name"]: entry for entry in said(capsys, "list")}
    assert "cxr_gone" in entries["gone"]["error"]
    assert entries["broken"]["error"] == "no licence found"
    assert "error" not in entries["csv"]
    assert main(["datasets", "list"]) == 0
    assert "cannot be loaded: no licence found" in capsys.readouterr().out


@pytest.mark.parametrize("name", DATASETS.names())
def test_show_tells_all(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts = said(capsys, "show", name)
    assert [argument["name"] for argument in facts["arguments"] if not argument["what"]] == []
    entry = DATASETS.get(name)
    assert {argument["name"] for argument in facts["arguments"]} == {
        key for key in constructor_parameters(entry) if key not in constructor_parameters(CXRDataModule)
    }
    assert "Args:" not in facts["description"]
    assert main(["datasets", "show", name]) == 0
    printed = capsys.readouterr().out
    for part in ("homepage", "license", "citation", "layout"):
        assert getattr(entry, part) in printed
    for word in (*facts["caveats"], *facts["classes"], *facts["releases"]):
        assert word in printed


def test_show_of_an_unknown_name_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "show", "darkcovdnet"]) == 2
    assert capsys.readouterr().err == ("covidcxr: There is no data set 'darkcovdnet'. Did you mean 'darkcovidnet'?\n")


@pytest.mark.parametrize("verb", ["check", "stats"])
@pytest.mark.parametrize("name", ["darkcovidnet", "hannover"])
def test_a_missing_folder_is_where_to_get_it_and_where_to_put_it(
    verb: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "nowhere"
    assert main(["datasets", verb, name, "--root", str(root)]) in (1, 2)
    printed = "".join(capsys.readouterr())
    entry: Any = DATASETS.get(name)
    assert str(entry(root).not_found(root)) in printed
    assert f"Get it from {entry.homepage}" in printed


def test_check_finds_nothing_wrong_with_a_whole_copy(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "csv", "--root", table, "--set", masks()]
    report = said(capsys, *words, "--decode")
    assert report["complete"]
    assert report["faults"] == []
    assert report["films"] == 48
    assert main(["datasets", *map(str, words)]) == 0
    assert "Nothing is missing: 48 images to use. This holds for what is listed: no expected count is known." in (
        capsys.readouterr().out
    )


def test_check_lists_all_faults_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_table_fake(tmp_path, patients=12)
    gone, cut = sorted((root / "images" / "north").iterdir())[:2]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:200])
    mask = sorted((root / "lungs").iterdir())[-1]
    write_image(mask, np.zeros((8, 40), bool))
    with (root / "manifest.csv").open("a", encoding="utf-8") as file:
        file.write("images/north/last.p")
    words = ["check", "csv", "--root", root, "--set", masks()]
    report = said(capsys, *words, "--decode", code=1)
    assert not report["complete"]
    for fault in (gone.name, cut.name, mask.name, "has 1 fields"):
        assert sum(fault in message for message in report["faults"]) == 1
    assert main(["datasets", *map(str, words)]) == 1
    printed = capsys.readouterr().out
    assert gone.name in printed
    assert "Nothing is missing" not in printed


def test_prepare_writes_a_copy_that_is_the_same_data_set(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    words = ["prepare", "csv", "--root", table, "--out", copy, "--image-size", "32", "32", "--set", masks()]
    report = said(capsys, *words)
    assert (report["films"], report["written"], report["failed"]) == (48, 48, [])
    settings: dict[str, Any] = {"mask_columns": MASK_COLUMNS, "image_size": (32, 32)}
    ours, theirs = (
        [(image.image_id, image.label, image.patient_id, image.source, image.split) for image in data.records]
        for data in (CSVDataModule(copy, **settings), CSVDataModule(table, **settings))
    )
    assert ours == theirs
    assert main(["datasets", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "48 images (48 of them by an earlier run)" in printed
    assert f"covidcxr fit --data csv --data.root {copy}" in printed
    assert said(capsys, "check", "csv", "--root", copy, "--set", masks(), "--set", SIZES)["complete"]


def test_prepare_unpacks_first_and_names_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_table_fake(tmp_path / "whole", patients=6)
    bad = next((whole / "images" / "south").iterdir())
    bad.write_bytes(b"no image")
    archive = shutil.make_archive(str(tmp_path / "films"), "zip", whole)
    words = ["prepare", "csv", "--root", tmp_path / "root", "--out", tmp_path / "copy", "--archive", archive]
    report = said(capsys, *words, code=1)
    assert report["films"] == 11
    assert bad.name in report["failed"][0]["error"]
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("../outside.txt", "no")
    words[-1] = str(tmp_path / "evil.zip")
    assert main(["datasets", *map(str, words)]) == 2
    assert "outside" in capsys.readouterr().err
    assert not (tmp_path / "outside.txt").exists()


def test_stats_count_what_the_table_says(
    table: Path, rows: list[dict[str, str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["stats", "csv", "--root", table, "--set", masks(), "--set", SIZES, "--out", out]
    found = said(capsys, *words)
    assert found["films"] == len(rows)
    for name in ("label", "source", "view", "sex"):
        assert found[name] == Counter(row[name] for row in rows)
    assert found["age"] == {"40-49": len(rows)}
    crossed = Counter((row["source"], row["label"]) for row in rows)
    assert {
        (source, label): n for source, labels in found["label_by_source"].items() for label, n in labels.items() if n
    } == crossed
    assert {split: sum(labels.values()) for split, labels in found["label_by_split"].items()} == found["split"]
    images = Counter(row["patient_id"] for row in rows)
    assert found["patients"]["patients"] == len(images)
    assert found["patients"]["by_films"] == {str(k): n for k, n in Counter(images.values()).items()}
    assert found["mask"]["infection"] == sum(bool(row["infection_mask"]) for row in rows)
    data = CSVDataModule(table, image_size=(32, 32), mask_columns=MASK_COLUMNS)
    assert [found["pixels"]["mean"], found["pixels"]["std"]] == pytest.approx(compute_mean_std(data))
    assert json.loads((out / "stats.json").read_text()) == found
    assert [Path(path).name for path in found["pictures"]] == ["contact-sheet.png", "charts.png"]
    for path in found["pictures"]:
        picture = Image.open(path).convert("RGB")
        assert picture.getpixel((0, 0)) == (255, 255, 255)
        assert picture.width > 500


def test_stats_as_words(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "stats", "csv", "--root", str(table), "--sample", "4", "--set", SIZES]) == 0
    printed = capsys.readouterr().out
    assert "24 patients with 1 to 3 images each." in printed
    assert "4 of 34 training images, at 32 x 32" in printed
    assert "Guessing by the source" in printed


def test_counting_opens_no_image(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Collection, "load_image", refuse)
    assert said(capsys, "stats", "csv", "--root", table, "--no-pixels")["pixels"] is None


def test_a_image_that_cannot_be_read_costs_the_mean_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_table_fake(tmp_path / "table", patients=6)
    for image in (root / "images").rglob("*.png"):
        image.write_bytes(b"no image")
    found = said(capsys, "stats", "csv", "--root", root, "--out", tmp_path / "out")
    assert found["films"] == 12
    assert ".png" in found["pixels"]["error"]
    assert Path(found["pictures"][0]).is_file()


def test_a_sample_is_drawn_alike_and_whole_at_most(table: Path) -> None:
    data = CSVDataModule(table, image_size=(32, 32))
    told: list[tuple[int, int]] = []
    some = compute_mean_std(data, sample=5, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 5) for done in range(1, 6)]
    assert some == compute_mean_std(data, sample=5)
    assert some != compute_mean_std(data, sample=5, seed=1)
    assert compute_mean_std(data, sample=10_000) == compute_mean_std(data)
    with pytest.raises(ConfigError, match="sample"):
        compute_mean_std(data, sample=0)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("view=all", "'view'. Did you mean 'views'?"),
        ("tabel=x.csv", "Did you mean 'table'?"),
        ("views=alle", "views must be 'frontal' | 'all', not 'alle'."),
        ("fold=first", "fold must be int | None, not 'first'."),
        ("label_map=covid", "label_map must be Mapping[str, str | None] | None"),
        ("label_map={covid: null}", "label_map names the label 'covid'. Did you mean 'covid19'?"),
        ("views", "--set takes KEY=VALUE"),
        ("label_map={other: null", "label_map must be Mapping"),
    ],
)
def test_a_wrong_setting_is_one_line(pair: str, message: str, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "stats", "csv", "--root", str(table), "--no-pixels", "--set", pair]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_settings_are_what_fit_takes(table: Path) -> None:
    assert parse_settings(["part=infection", "label_map={other: null}", "where=a=b"]) == {
        "part": "infection",
        "label_map": "{other: null}",
        "where": "a=b",
    }
    with pytest.raises(ConfigError, match="twice"):
        parse_settings(["fold=1", "fold=2"])
    data = open_dataset("csv", str(table), parse_settings(["label_map={other: null}", "image_size=[64, 32]"]))
    assert data.classes == ("covid19", "normal", "pneumonia")
    assert data.geometry.image_size == (64, 32)
    assert vars(open_dataset("covidx_cxr3", str(table), {"version": "5"}))["version"] == "5"  # not the number
    with pytest.raises(ConfigError, match=r"needs --data\.root DIR"):
        open_dataset("csv", None)
    with pytest.raises(UnknownNameError, match="'csv'"):
        open_dataset("cvs", str(table))


def test_words_say_when_the_source_tells_the_label() -> None:
    assert what_the_source_tells({"a": {"x": 3, "y": 1}, "b": {"x": 1, "y": 3}})[0].startswith("Guessing")
    apart = what_the_source_tells({"a": {"x": 8, "y": 0}, "b": {"x": 0, "y": 2, "unknown": 5}})
    assert apart[0] == "Every image of a is of class x."
    assert apart[1] == "Every image of b is of class y."
    assert apart[2] == "No source holds both x and y: the source alone tells these two apart."
    assert apart[3].startswith("Guessing by the source, without looking at it, is right for 100.0 %")
    assert 'always guessing "x" for 80.0 %' in apart[3]
    (one,) = what_the_source_tells({"a": {"x": 3, "y": 1}})
    assert "one source" in one
    assert what_the_source_tells({"a": {"x": 3}, "b": {"x": 1}}) == []  # one class: nothing to tell


def test_findings_that_come_together_are_counted_each(table: Path) -> None:
    both = Record("a.png", findings={"x": True, "y": True})  # type: ignore[arg-type]
    none = Record("b.png", findings={"x": False})  # type: ignore[arg-type]
    assert labels_shown(both) == ("x", "y")
    assert labels_shown(none) == ("none of these",)
    assert labels_shown(Record("c.png")) == ("unknown",)  # type: ignore[arg-type]
    rows = {row.label: row.count for row in choose_images([both, none], ("x", "y"))}
    assert rows == {"x": 1, "y": 1, "none of these": 1}


def test_ages_are_counted_in_bands_without_a_gap() -> None:
    images = [Record(f"{age}.png", age=age) for age in (3, 9.5, 31, 102, None)]  # type: ignore[arg-type]
    bands = count_ages(images)
    assert list(bands)[:2] == ["0-9", "10-19"]
    assert (bands["0-9"], bands["10-19"], bands["30-39"], bands["90+"], bands["unknown"]) == (2, 0, 1, 1, 1)
    assert sum(bands.values()) == 5


def test_images_of_a_sheet_are_of_different_patients_and_drawn_alike(table: Path) -> None:
    data = CSVDataModule(table)
    rows = choose_images(data.records, data.classes, columns=3)
    assert [row.label for row in rows] == sorted([row.label for row in rows], key=data.classes.index)
    assert sum(row.count for row in rows) == len(data.records)
    for row in rows:
        patients = {image.patient for image in row.images}
        assert len(patients) == min(row.patients, 3)
        assert len(row.images) == min(row.count, 3)
        assert {(image.label, image.source) for image in row.images} == {(row.label, row.source)}
    assert rows == choose_images(data.records, data.classes, columns=3)
    assert rows != choose_images(data.records, data.classes, columns=3, seed=1)


def test_small_sources_share_a_row() -> None:
    images = [Record(f"{n}-{m}.png", "x", source=f"s{n}") for n in range(7) for m in range(7 - n)]  # type: ignore[arg-type]
    rows = choose_images(images, ("x",), sources=4)
    assert [(row.source, row.count) for row in rows] == [("s0", 7), ("s1", 6), ("s2", 5), ("4 more sources", 10)]


def test_a_sheet_shows_outlines_and_what_cannot_be_read(tmp_path: Path) -> None:
    root = write_table_fake(tmp_path, patients=12)
    plain = draw_contact_sheet(CSVDataModule(root), title="fakes", columns=4, tile=96)
    data = CSVDataModule(root, mask_columns=MASK_COLUMNS)
    sheet = draw_contact_sheet(data, title="fakes", columns=4, tile=96)
    assert sheet.size == plain.size
    for name in ("lung_field", "lung"):
        near = [
            np.abs(np.asarray(picture)[120:].astype(int) - MASK_COLORS[name]).max(-1) < 40 for picture in (sheet, plain)
        ]
        assert near[0].sum() > 100  # below the key
        assert not near[1].any()
    for image in (root / "images" / "east").iterdir():
        image.write_bytes(b"no image")
    assert draw_contact_sheet(data, title="fakes", columns=4, tile=96).size == sheet.size


def test_bars_are_as_long_as_the_counts() -> None:
    images = [Record(f"{n}.png", "x" if n < 30 else "y", source="s", age=40) for n in range(40)]  # type: ignore[arg-type]
    picture = np.asarray(draw_charts(images, title="t").convert("RGB"))
    blue = (picture == np.array((0, 114, 178))).all(-1).sum(1)
    long, short = sorted({int(width) for width in blue if width > 60}, reverse=True)[:2]
    assert long / short == pytest.approx(3, rel=0.02)


def test_a_survey_follows_the_classes_and_their_renaming(table: Path) -> None:
    data = CSVDataModule(table, label_map={"pneumonia": "ill", "other": "ill"})
    found = survey(data, pixels=False)
    assert list(found["label"]) == list(data.classes) == ["covid19", "normal", "ill"]
