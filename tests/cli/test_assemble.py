"""Single models, as `fit` saves them: predicted with, served, wrapped, and joined to a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import CLASSES, tiny_classifier, tiny_gate, tiny_segmenter

from covidcxr import EnsembleModel, Pipeline
from covidcxr.cli.main import main
from covidcxr.errors import ConfigError
from covidcxr.evaluation.predictions.run_pipeline import open_pipeline


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of single models, and an image."""
    monkeypatch.chdir(tmp_path)
    tiny_segmenter("lung_field", "lung").save_pretrained("lungs")
    tiny_segmenter("infection", "effusion").save_pretrained("infection")
    tiny_segmenter("lung_field", "infection").save_pretrained("both")
    tiny_classifier().save_pretrained("classifier")
    tiny_classifier(region="lungs").save_pretrained("regional")
    tiny_gate().save_pretrained("gate")
    EnsembleModel({"a": tiny_classifier(), "b": tiny_classifier()}).save_pretrained("ensemble")
    tiny_segmenter("infection").save_pretrained("multitask/segmenter")
    tiny_classifier().save_pretrained("multitask/classifier")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40), np.uint8)).save("film.png")
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "parts", "masks"),
    [
        ("lungs", ["lung_segmenter"], {"lung_field", "lung"}),
        ("infection", ["infection_segmenter"], {"infection", "effusion"}),
        ("both", ["infection_segmenter"], {"lung_field", "infection"}),
        ("classifier", ["classifier"], set()),
        ("ensemble", ["classifier"], set()),
        ("multitask", ["infection_segmenter", "classifier"], {"infection"}),
    ],
)
def test_a_single_model_is_predicted_with(folder: str, parts: list[str], masks: set[str], models: Path) -> None:
    pipeline = Pipeline.from_pretrained(folder)
    assert list(pipeline.models()) == parts
    assert list(open_pipeline(folder).models()) == parts
    assert main(["predict", "film.png", "--model", folder, "--out", "out", "--num-workers", "0"]) == 0
    (answer,) = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert answer["mask_areas"].keys() == masks
    assert (answer["label"] in CLASSES) == ("classifier" in parts)
    wrapped = Pipeline.from_pretrained(pipeline.save_pretrained("wrapped"))
    assert list(wrapped.models()) == parts


def test_a_classifier_of_a_region_says_how_it_gets_its_lungs(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline.from_pretrained("regional")
    command = str(caught.value).rpartition("Join the two: ")[2]
    assert command == "covidcxr assemble --classifier regional --lungs mini --out FOLDER"
    assert main([*command.replace("--lungs mini", "--lungs lungs").split()[1:-1], "joined"]) == 0
    assert capsys.readouterr().out == "Saved joined: lung_segmenter, classifier.\n"
    assert list(Pipeline.from_pretrained("joined").models()) == ["lung_segmenter", "classifier"]


def test_all_parts_are_joined_from_models_and_pipelines(models: Path) -> None:
    words = ["--gate", "gate", "--lungs", "lungs", "--infection", "multitask", "--classifier", "ensemble"]
    assert main(["assemble", *words, "--min-lung-area", "0.2", "--dtype", "float16", "--out", "first"]) == 0
    first = Pipeline.from_pretrained("first")
    assert list(first.models()) == ["gate", "lung_segmenter", "infection_segmenter", "classifier"]
    assert (first.min_lung_area, first.mask_classes) == (0.2, ("lung_field", "lung", "infection"))
    words = ["--gate", "first", "--lungs", "first", "--infection", "first", "--classifier", "regional"]
    assert main(["assemble", *words, "--out", "second"]) == 0
    assert Pipeline.from_pretrained("second")("film.png").reasons


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one model"),
        (["--lungs", "infection"], "lung_segmenter must draw"),
        (["--classifier", "lungs"], "must be a ClassificationModel or EnsembleModel"),
        (["--gate", "classifier"], "exclusive classes, 'frontal'"),
        (["--classifier", "regional"], "needs a lung_segmenter"),
        (["--classifier", "missing"], "no folder"),
        (["--classifier", "film.png"], "is a file"),
        (["--lungs", "lungs", "--min-lung-area", "2"], "min_lung_area"),
        (["--lungs", "lungs", "--dtype", "int8"], "dtype"),
    ],
)
def test_what_cannot_be_joined_is_one_line(
    words: list[str], message: str, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["assemble", *words, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out/pipeline.json").exists()


def test_a_part_that_a_pipeline_has_not_and_a_folder_that_is_taken(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["assemble", "--lungs", "lungs", "--out", "first"]) == 0
    assert main(["assemble", "--classifier", "first", "--out", "second"]) == 2
    assert "--classifier: the pipeline first has no classifier" in capsys.readouterr().err
    assert main(["assemble", "--lungs", "lungs", "--out", "first"]) == 2
    assert "first is not empty" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["assemble", "--help"])
    assert capsys.readouterr().out.count("covidcxr assemble --") == 2
