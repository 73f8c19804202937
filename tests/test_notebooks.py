"""What a notebook shows: objects as tables and pictures. The notebooks of `examples/` run from top to bottom."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidcxr import ClassificationModel, FolderDataModule, ModelConfig, Pipeline
from covidcxr.evaluation import Estimate
from covidcxr.io.image import write_image
from covidcxr.phantom import draw_dataset, draw_phantom

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


class Cells(HTMLParser):
    """The texts of a table's cells, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_a_data_module_shows_its_counts_by_class_and_split(tmp_path: Path) -> None:
    for number, phantom in enumerate(draw_dataset(12, size=(64, 64))):
        (tmp_path / phantom.label).mkdir(exist_ok=True)
        write_image(tmp_path / phantom.label / f"p{number}_1.png", phantom.image)
    data = FolderDataModule(tmp_path, patient_pattern=r"(.+)_\d+\.", image_size=(32, 32))
    assert "not read yet" in repr(data)
    rows = {row[0]: [int(cell) for cell in row[1:]] for row in Cells(data._repr_html_()).rows[1:]}
    assert sum(rows["all images"]) == 12
    assert rows["all images"] == [sum(rows[name][place] for name in data.classes) for place in range(3)]
    assert rows["patients"] == rows["all images"], "one image a patient"
    assert f"train {rows['all images'][0]}" in repr(data)


def test_a_pipeline_its_models_and_a_prediction_show_themselves() -> None:
    pipeline = Pipeline.from_pretrained("mini")
    rows = Cells(pipeline._repr_html_()).rows
    assert [row[0].replace(" ", "_") for row in rows[1:]] == list(pipeline.models())
    assert all(f"{name}=" in repr(pipeline) for name in pipeline.models())
    prediction = pipeline(draw_phantom(3, size=(96, 80)).image)
    page = prediction._repr_html_()
    assert "data:image/jpeg;base64," in page
    assert "research only" in page
    shown = {row[0] for row in Cells(page).rows}
    assert prediction.probabilities.keys() <= shown
    assert len(repr(prediction)) < 500, "no array in it"


def test_a_model_tells_what_it_is_and_escapes_its_names() -> None:
    config = ModelConfig("classification", "cnn19", ("covid & flu", "well"), preprocess={"image_size": (32, 32)})
    model = ClassificationModel(config)
    assert "network: cnn19" in repr(model)
    assert "covid & flu" not in model._repr_html_()
    assert "covid &amp; flu" in model._repr_html_()


def test_an_estimate_shows_its_interval() -> None:
    assert Estimate(0.8, 0.7, 0.9, 40, 20)._repr_html_() == "<b>0.800</b> [0.700, 0.900], 40 images of 20 patients"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_output_and_opens_in_colab(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    address = f"https://colab.research.google.com/github/covidcxr/covidcxr/blob/main/examples/notebooks/{path.name}"
    assert address in "".join(notebook["cells"][0]["source"])
    assert "research only" in "".join(notebook["cells"][0]["source"]).lower()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "notebook", "display": lambda shown: shown._repr_html_()}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            exec(compile("\n".join(line for line in lines if not line.startswith("%")), path.name, "exec"), scope)
    assert all(np.isfinite(value) for value in scope.get("checked", ()))


def test_there_are_three_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first-steps", "is-my-data-set-honest", "train-on-your-folder"]
