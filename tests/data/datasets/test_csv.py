"""Tables as people write them: missing values as text, joined labels, tables from Windows, and DataFrames."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pytest
from fakes import draw_image, draw_lungs, write_csv, write_image, write_table_fake

from covidcxr.data import CSVDataModule, CXRDataModule, find_leaks
from covidcxr.data.collection import Collection, CollectionSettings, DataSettings
from covidcxr.data.curation.prepare import prepare_dataset
from covidcxr.errors import ConfigError, DatasetError
from covidcxr.evaluation import read_rows
from covidcxr.evaluation.report import evaluate_rows
from covidcxr.io.tables import MISSING, Table, is_missing

WORDS = ("nan", "NaN", "None", "<NA>", "NULL", "null", "N/A", "n/a", "NA", "#N/A", "NaT", "", "  ", "-", "?")
ROW = {"path": "a.png", "label": "normal", "patient_id": "1", "source": "north", "split": "train", "view": "PA"}
ROW |= {"sex": "F", "age": "50", "lung_mask": "m.png"}


def make_table(root: Path, rows: list[dict[str, str]], **settings: Any) -> CSVDataModule:
    """A table and its images: rows that differ from `ROW`, each with an image of its own."""
    rows = [ROW | {"path": f"{place}.png"} | row for place, row in enumerate(rows)]
    for place, row in enumerate(rows):
        write_image(root / f"{place}.png", draw_image(place))
        write_image(root / "m.png", draw_lungs())
        assert row
    write_csv(root / "manifest.csv", rows)
    return CSVDataModule(root, image_size=(24, 24), mask_columns={"lung": "lung_mask"}, **settings)


def test_one_function_decides():
    assert all(is_missing(word) and is_missing(f" {word.upper()} ") for word in MISSING)
    assert not any(map(is_missing, ("normal", "0", "nano", "Nan Hai", "unknown", "non", "covid19")))


class TestMissing:
    @pytest.mark.parametrize("word", WORDS)
    def test_in_any_column(self, tmp_path, word):
        known = dict.fromkeys(("label", "patient_id", "source", "split", "view", "sex", "age", "lung_mask"), word)
        record, other = make_table(tmp_path, [known, {}], fractions=(1.0, 0.0)).unsplit_records()
        assert (record.label, record.patient_id, record.source, record.split) == (None, None, "unknown", None)
        assert (record.view, record.sex, record.age, dict(record.mask_paths)) == (None, None, None, {})
        assert other.mask_paths.keys() == {"lung"}

    def test_a_row_without_an_image(self, tmp_path):
        with pytest.raises(DatasetError, match=r"Line 3 .* names no image"):
            make_table(tmp_path, [{}, {"path": "NaN"}]).setup()

    def test_classes_and_patients(self, tmp_path):
        rows = [
            {"label": ("covid19", "normal", "nan")[i % 3], "patient_id": ("nan", f"p{i // 2}")[i % 2]}
            for i in range(24)
        ]
        data = make_table(tmp_path, [row | {"split": ""} for row in rows])
        assert data.classes == ("covid19", "normal")
        assert len({record.patient for record in data.records}) == 24  # not twelve images of one patient "nan"

    def test_a_class_that_is_named_so(self, tmp_path):
        rows = [{"label": label} for label in ("None", "none", "covid19", "nan")]
        assert make_table(tmp_path, rows).classes == ("covid19",)
        named = make_table(tmp_path, rows, classes=("covid19", "None"))
        assert [record.label for record in named.records] == ["None", None, "covid19", None]
        mapped = make_table(tmp_path, rows, label_map={"None": "normal"})
        assert mapped.classes == ("normal", "covid19")

    def test_other_words(self, tmp_path):
        data = make_table(tmp_path, [{"label": label} for label in ("NA", "Unbekannt", "")], missing=["unbekannt"])
        assert [record.label for record in data.records] == ["NA", None, None]

    @pytest.mark.parametrize("word", WORDS)
    def test_findings(self, tmp_path, word):
        write_image(tmp_path / "a.png", draw_image(0))
        write_csv(
            tmp_path / "t.csv", [{"path": "a.png", "patient_id": "1", "Edema": word, "Mass": "True", "Hernia": "0"}]
        )
        data = CSVDataModule(tmp_path, table="t.csv", label_columns=("Edema", "Mass", "Hernia"))
        assert data.records[0].findings == {"Mass": True, "Hernia": False}

    def test_filters_know_it_too(self, tmp_path):
        rows = [{"source": "nan"}, {"source": "north"}, {"source": ""}]
        assert len(make_table(tmp_path, rows, where={"source": "NaN"}).records) == 2
        assert len(make_table(tmp_path, rows, exclude={"source": [""]}).records) == 1

    def test_plus_and_minus_are_said(self, tmp_path):
        rows = [{"label": "+"}, {"label": "-"}]
        with pytest.raises(DatasetError, match="Name both in classes"):
            make_table(tmp_path, rows)
        assert make_table(tmp_path, rows, classes=("-", "+")).records[1].label == "-"


class TestJoinedLabels:
    ROWS = ("Effusion|Mass", "No Finding", "Mass", "nan", "Hernia | Effusion")

    def make(self, root: Path, *labels: str, **settings: Any) -> CSVDataModule:
        return make_table(root, [{"label": label} for label in labels or self.ROWS], **settings)

    def test_several_findings_of_an_image(self, tmp_path):
        data = self.make(tmp_path, label_separator="|")
        assert data.multilabel
        assert data.classes == ("Effusion", "Hernia", "Mass")
        shown = [{name for name, value in record.findings.items() if value} for record in data.records]
        assert shown == [{"Effusion", "Mass"}, set(), {"Mass"}, set(), {"Hernia", "Effusion"}]
        known = data.train_dataset.labels.isnan().any(1).logical_not().tolist()
        assert known == [True, True, True, False, True]

    def test_some_of_the_classes(self, tmp_path):
        data = self.make(tmp_path, label_separator="|", classes=["Mass"], no_finding="no finding")
        assert [dict(record.findings) for record in data.records][:2] == [{"Mass": True}, {"Mass": False}]
        with pytest.raises(DatasetError, match="Did you mean 'Mass'"):
            self.make(tmp_path, label_separator="|", classes=["Mas"])

    def test_without_the_setting_it_is_asked_for(self, tmp_path):
        with pytest.raises(DatasetError, match=r'2 labels .* label_separator="\|"'):
            self.make(tmp_path)
        assert self.make(tmp_path, "a|b", "c", classes=("a|b", "c")).classes == ("a|b", "c")

    def test_contradictions(self, tmp_path):
        with pytest.raises(DatasetError, match=r"Line 2 .*'Mass\|No Finding'"):
            self.make(tmp_path, "Mass|No Finding", "Mass", label_separator="|").setup()
        with pytest.raises(ConfigError, match="label_separator"):
            self.make(tmp_path, label_separator=" ")


class TestFromWindows:
    @pytest.mark.parametrize("path", ["images\\a.png", "images/a.png", "images\\ward\\..\\a.png", ".\\images/a.png"])
    def test_backslashes(self, tmp_path, path):
        write_image(tmp_path / "images" / "a.png", draw_image(0))
        (tmp_path / "images" / "ward").mkdir()
        write_image(tmp_path / "masks" / "m.png", draw_lungs())
        data = make_table(tmp_path, [{"path": path, "lung_mask": "masks\\m.png"}], fractions=(1.0, 0.0))
        assert data.train_dataset[0]["image"].shape == (1, 24, 24)
        assert data.records[0].mask_paths["lung"] == tmp_path / "masks" / "m.png"

    def test_a_name_with_a_backslash_is_a_name(self, tmp_path):
        write_image(tmp_path / "odd\\name.png", draw_image(0))
        assert make_table(tmp_path, [{"path": "odd\\name.png"}]).records[0].image_path.name == "odd\\name.png"

    @pytest.mark.parametrize("path", ["C:\\films\\a.png", "D:/films/a.png", "\\\\server\\share\\a.png"])
    def test_paths_of_another_computer(self, tmp_path, path):
        with pytest.raises(DatasetError, match=r"Line 2 .* Windows computer\. Write paths relative to"):
            make_table(tmp_path, [{"path": path}]).setup()

    @pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
    @pytest.mark.parametrize(
        ("start", "encoding"), [("", "utf-8"), ("", "utf-8-sig"), ("", "utf-16"), ("sep={}\r\n", "utf-8")]
    )
    def test_how_spreadsheets_save(self, tmp_path, separator, start, encoding):
        write_image(tmp_path / "1.png", draw_image(0))
        lines = ["path,label,patient_id", "1.png,größer,p1", ""]
        text = "\r\n".join(lines).replace(",", separator)
        (tmp_path / "t.txt").write_bytes((start.format(separator) + text).encode(encoding))
        record = CSVDataModule(tmp_path, table="t.txt").records[0]
        assert (record.label, record.patient_id) == ("größer", "p1")

    def test_commas_in_a_quoted_header(self, tmp_path):
        (tmp_path / "t.csv").write_text('path;label;"a, b, c, d";patient_id\n1.png;x;;1\n', encoding="utf-8")
        assert Table(tmp_path / "t.csv").columns == ("path", "label", "a, b, c, d", "patient_id")


class TestDataFrame:
    def test_is_as_its_file(self, tmp_path):
        write_table_fake(tmp_path)
        frame = pd.read_csv(tmp_path / "manifest.csv")
        frame["patient_id"] = [None, *range(1, len(frame))]  # a column with a gap holds 1.0 for 1
        frame.astype({"patient_id": "Int64"}).to_csv(tmp_path / "manifest.csv", index=False)
        masks = {"infection": "infection_mask"}
        data = CSVDataModule(tmp_path, table=frame, mask_columns=masks)
        assert data.records == CSVDataModule(tmp_path, mask_columns=masks).records
        assert not find_leaks(data.records)
        assert pickle.loads(pickle.dumps(data)).records == data.records

    def test_missing_values_and_paths(self, tmp_path):
        write_image(tmp_path / "a.png", draw_image(0))
        frame = pd.DataFrame({"path": [Path("a.png")], "label": pd.Categorical(["x"]), "patient_id": [pd.NA]})
        frame["age"], frame["split"], frame["sex"] = [float("nan")], [pd.NaT], [None]
        record = CSVDataModule(tmp_path, table=frame, missing=()).records[0]
        assert (record.label, record.patient_id, record.age, record.sex) == ("x", None, None, None)

    def test_a_compact_copy_of_it(self, tmp_path):
        frame = pd.read_csv(write_table_fake(tmp_path / "origin") / "manifest.csv")
        origin = CSVDataModule(tmp_path / "origin", table=frame)
        prepare_dataset(origin, tmp_path / "copy", image_size=(24, 24))
        assert len(CSVDataModule(tmp_path / "copy", table=frame).records) == len(origin.records)
        with pytest.raises(ConfigError, match="table="):
            assert CSVDataModule(tmp_path / "copy", table=frame.iloc[1:]).records

    def test_clear_errors(self, tmp_path):
        frame = pd.DataFrame({"path": ["a.png", None], "label": "x", "patient_id": "1"})
        with pytest.raises(DatasetError, match="Row 1 of the DataFrame: it names no image"):
            CSVDataModule(tmp_path, table=frame).setup()
        with pytest.raises(DatasetError, match="the DataFrame has no column 'finding'"):
            CSVDataModule(tmp_path, table=frame, label_column="finding")
        with pytest.raises(ConfigError, match="a file or a pandas DataFrame, not a dict"):
            CSVDataModule(tmp_path, table={"path": ["a.png"]})

    def test_predictions(self, tmp_path):
        rows = [
            {"image_id": f"{i}", "patient_id": i // 2, "label": "ab"[i % 2], "probability_a": 0.3, "probability_b": 0.7}
            for i in range(8)
        ]
        frame = pd.DataFrame(rows)
        frame.loc[0, "label"] = None
        frame.to_csv(tmp_path / "p.csv", index=False)
        assert read_rows(frame) == read_rows(tmp_path / "p.csv")
        one, other = (evaluate_rows(given, positive="a", resamples=20).to_dict() for given in (frame, read_rows(frame)))
        assert one["classes"] == other["classes"]


class TestSettings:
    @pytest.mark.parametrize(("settings", "owner"), [(CollectionSettings, Collection), (DataSettings, CXRDataModule)])
    def test_the_types_of_keyword_arguments_are_those_of_the_constructor(self, settings, owner):
        named = [*inspect.signature(Collection.__init__).parameters, *inspect.signature(owner.__init__).parameters]
        assert set(get_type_hints(settings)) == set(named) - {"self", "root", "base"}

    @pytest.mark.slow
    def test_a_type_checker_finds_a_misspelt_one(self, tmp_path):
        pytest.importorskip("mypy", reason="mypy comes with the extra dev")
        text = 'from covidcxr.data import {0}\n{0}("films", {1}=1)\n'
        tried = {("CSVDataModule", "batch_sise"), ("FolderDataModule", "split_sed"), ("CovidQUExDataModule", "fold_")}
        for name, key in tried:
            (tmp_path / f"{key}.py").write_text(text.format(name, key))
        of_tasks = {
            ("ClassificationTask", "leraning_rate"),
            ("SegmentationTask", "optimiser"),
            ("MultiTask", "warm_up"),
        }
        for name, key in of_tasks:
            (tmp_path / f"{key}.py").write_text(f"from covidcxr import {name}\n{name}(None, {key}=1)\n")
        tried |= of_tasks
        command = [sys.executable, "-m", "mypy", *map(str, tmp_path.glob("*.py"))]
        root = Path(__file__).parents[3]  # with the project's settings, and what mypy keeps of its own modules
        said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root).stdout
        assert all(f'Unexpected keyword argument "{key}"' in said for _, key in tried), said
