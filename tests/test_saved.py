"""What covidcxr 0.1.0 (commit b4ca5c4) saved still loads: see saved/README.md.

Each test works on a copy, from inside its folder, with the relative paths with which the things were made.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from covidcxr import (
    ClassificationModel,
    CSVDataModule,
    EnsembleModel,
    Pipeline,
    SegmentationModel,
    SegmentationTask,
    read_image,
    read_mask,
)
from covidcxr.cli import main
from covidcxr.evaluation.shortcuts.probes import PROBES
from covidcxr.registry import DATASETS

SAVED = Path(__file__).with_name("saved")
CLASSES = ("covid19", "normal", "pneumonia")
MASK_COLUMNS = {"lung_field": "lung_field", "lung": "lung", "infection": "infection"}
ABSOLUTE = re.compile(r"(?<![\w./:~-])/(work|root|home|Users|mnt|tmp)/\w")
OF_PHANTOMS = ("--data.root", "phantoms")


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all saved things, which is the working directory, too."""
    folder = tmp_path / "saved"
    shutil.copytree(SAVED, folder)
    monkeypatch.chdir(folder)
    return folder


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def run(*words: str | Path) -> None:
    """Run a command, which must succeed."""
    assert main([str(word) for word in words]) == 0


def without_intervals(value: Any) -> Any:
    """Remove the ends of all intervals from plain data."""
    if isinstance(value, dict):
        return {key: without_intervals(content) for key, content in value.items() if key not in ("low", "high")}
    return [without_intervals(content) for content in value] if isinstance(value, list) else value


def times_of(folder: str | Path, pattern: str = "**/*") -> dict[Path, int]:
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob(pattern) if path.is_file()}


def assert_near(value: Any, saved_value: Any, tolerance: float = 1e-5, where: str = "") -> None:
    """Compare plain data: numbers up to a tolerance, all else exactly. What is new in `value` is no fault."""
    if isinstance(saved_value, dict):
        assert saved_value.keys() <= value.keys(), where
        for key, content in saved_value.items():
            assert_near(value[key], content, tolerance, f"{where}.{key}")
    elif isinstance(saved_value, list):
        assert len(value) == len(saved_value), where
        for number, content in enumerate(saved_value):
            assert_near(value[number], content, tolerance, f"{where}[{number}]")
    elif isinstance(saved_value, float):
        assert value == pytest.approx(saved_value, abs=tolerance, nan_ok=True), where
    elif isinstance(saved_value, str) and " " in saved_value:  # a sentence: its words may improve, its figures may not
        assert re.findall(r"\d+", value) == re.findall(r"\d+", saved_value), where
    else:
        assert value == saved_value, where


# What is kept


def test_the_saved_things_are_small_and_name_no_path_of_a_machine() -> None:
    files = [path for path in SAVED.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    texts = {path: content for path in files if b"\0" not in (content := path.read_bytes())}
    faults = [path.name for path, content in texts.items() if ABSOLUTE.search(content.decode("utf-8", "replace"))]
    assert faults == []


# Models


def test_a_pipeline_says_what_it_said(saved: Path) -> None:
    pipeline = Pipeline.from_pretrained("pipeline")
    assert list(pipeline.models()) == ["gate", "lung_segmenter", "infection_segmenter", "classifier"]
    expected = read_json("pipeline/expected.json")
    assert {note for answer in expected.values() for note in answer["notes"]} == {
        "turned-90-corrected",
        "inverted-corrected",
    }
    for name, answer in expected.items():
        prediction = pipeline(read_image(name))
        assert prediction.label == answer["label"], name
        assert prediction.probabilities == pytest.approx(answer["probabilities"], abs=1e-5), name
        assert (list(prediction.reasons), list(prediction.notes)) == (answer["reasons"], answer["notes"]), name
        areas = {mask_class: int(mask.sum()) for mask_class, mask in prediction.masks.items()}
        assert areas == pytest.approx(answer["areas"], rel=0.01), name


def test_a_pipeline_gives_its_golden_answers(saved: Path) -> None:
    from covidcxr.golden import check_golden  # inner

    pipeline = Pipeline.from_pretrained("pipeline")
    assert len(read_json("pipeline/golden/golden.json")["films"]) == 6
    assert check_golden(pipeline, saved / "pipeline" / "golden") == []


def test_a_pipeline_saved_again_is_the_same(saved: Path) -> None:
    Pipeline.from_pretrained("pipeline").save_pretrained("again", dtype="float16")
    for path in sorted(Path("pipeline").rglob("model.safetensors")):
        assert Path("again", *path.parts[1:]).read_bytes() == path.read_bytes(), path
    for path in (Path("pipeline/pipeline.json"), *Path("pipeline").rglob("config.json")):
        assert_near(read_json(Path("again", *path.parts[1:])), read_json(path))


def test_an_ensemble_says_what_it_said(saved: Path) -> None:
    ensemble = EnsembleModel.from_pretrained("ensemble")
    assert dict(ensemble.config.members) == {"linear": 1.0, "small": 2.0, "boosted": 1.0}
    pipeline = Pipeline(classifier=ensemble)
    for name, probabilities in read_json("ensemble/expected.json").items():
        assert pipeline(read_image(Path("phantoms") / name)).probabilities == pytest.approx(probabilities, abs=1e-4)
    for name in ensemble.config.members:
        assert ClassificationModel.from_pretrained(f"ensemble/members/{name}").config.classes == CLASSES


def test_the_two_models_of_a_multitask_training(saved: Path) -> None:
    assert SegmentationModel.from_pretrained("multitask").config.classes == ("infection",)
    assert ClassificationModel.from_pretrained("multitask").config.classes == CLASSES


def test_a_checkpoint(saved: Path) -> None:
    task = SegmentationTask.load_from_checkpoint("fit/last.pt", map_location="cpu", weights_only=True)
    assert task.hparams["lr"] == 0.03
    model, best = next(iter(task.models.values())), SegmentationModel.from_pretrained("fit/model")
    assert model.config == best.config
    assert model.network.state_dict().keys() == best.network.state_dict().keys()
    image = torch.from_numpy(read_image("phantoms/images/phantom-00000.png"))[None, None]
    lungs = model.predict(image)[0, 0].numpy() > 0.5
    truth = read_mask("phantoms/lung_field/phantom-00000.png")
    assert 2 * (lungs & truth).sum() / (lungs.sum() + truth.sum()) > 0.8


# Data sets


def test_a_prepared_copy_has_the_images_of_its_origin(saved: Path) -> None:
    settings: dict[str, Any] = {"mask_columns": MASK_COLUMNS, "mask_classes": tuple(MASK_COLUMNS), "augment": None}
    copy = CSVDataModule("prepared", image_size=(32, 32), **settings)
    origin = CSVDataModule("phantoms", image_size=(32, 32), **settings)
    assert len(copy.records) == 24
    for record, original in zip(copy.records, origin.records, strict=True):
        assert (record.image_id, record.label, record.patient) == (original.image_id, original.label, original.patient)
        assert (record.split, record.source, record.sex) == (original.split, original.source, original.sex)
    for part in ("train_dataset", "val_dataset", "test_dataset"):
        for sample, original in zip(getattr(copy, part), getattr(origin, part), strict=True):
            # 0.1.0 rounded to 8 bits after it had resized floats; now bytes are resized.
            torch.testing.assert_close(sample["image"], original["image"], atol=1.01 / 255, rtol=0)
            assert torch.equal(sample["mask"], original["mask"])


def test_a_prepared_copy_is_not_prepared_from_again(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "prepare", "csv", "--root", "prepared", "--out", "new"]) == 2
    assert "compact copy already" in capsys.readouterr().err


def test_drawn_masks_go_on_and_are_accepted(saved: Path) -> None:
    before = times_of("masks", "images/*.png")
    index, stamp = read_json("masks/covidcxr-masks.json"), Path("masks/covidcxr-masks-settings.json").read_text()
    run("datasets", "masks", "csv", "--root", "phantoms", "--model", "pipeline", "--out", "masks")
    assert times_of("masks", "images/*.png") == before, "a mask was drawn again"
    assert_near(read_json("masks/covidcxr-masks.json"), index)
    assert json.loads(stamp) == read_json("masks/covidcxr-masks-settings.json")
    data = CSVDataModule("phantoms", mask_columns={}, drawn_masks="masks", region="lungs", min_lung_area=0.05)
    assert len(data.records) == 24
    assert all("masks" in record.mask_paths["lung_field"].parts for record in data.records)
    assert data.test_dataset[0]["image"].max() > 0


def test_answers_are_given_again_and_serve_as_drawn_masks(saved: Path) -> None:
    saved_lines = [json.loads(line) for line in Path("answers/predictions.jsonl").read_text().splitlines()]
    paths = [f"phantoms/{line['name']}" for line in saved_lines]
    assert read_json("answers/summary.json")["films"] == len(paths) == 2
    run("predict", *paths, "--root", "phantoms", "--model", "pipeline", "--out", "again", "--num-workers", "0")
    lines = [json.loads(line) for line in Path("again/predictions.jsonl").read_text().splitlines()]
    for line, saved_line in zip(lines, saved_lines, strict=True):
        assert_near(line, saved_line)
        assert_near(read_json(f"again/films/{line['name']}.json"), read_json(f"answers/films/{line['name']}.json"))
    data = CSVDataModule("phantoms", mask_columns={}, drawn_masks="answers/films")
    drawn = {record.image_id: record.mask_paths["lung"] for record in data.records if "lung" in record.mask_paths}
    assert sorted(drawn) == [line["name"] for line in saved_lines]
    for line in saved_lines:
        assert int(read_mask(drawn[line["name"]]).sum()) == line["mask_areas"]["lung"]


# Runs


def test_a_finished_run_is_not_repeated(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("recipes", "run", "recipes/tiny.yaml", *OF_PHANTOMS, "--output", "run", "--model.lr", "0.005")
    before = times_of("run/model") | times_of("run", "scores.json")
    run(*words, "--json")
    assert times_of("run/model") | times_of("run", "scores.json") == before, "the finished run was repeated"
    assert Path("run/roc.png").stat().st_size > 5000, "its pictures, which are not kept here, were not drawn anew"
    other = [*words[:-1], "0.006"]
    assert main(other) == 2
    assert "other settings" in capsys.readouterr().err


def test_finished_runs_are_not_repeated_and_compared_again(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, table = (
        times_of("sweep", "*/model/*") | times_of("sweep", "*/scores.json"),
        read_json("sweep/comparison.json"),
    )
    capsys.readouterr()
    run("recipes", "run", "recipes/sweep.yaml", *OF_PHANTOMS, "--output", "sweep", "--json")
    assert json.loads(capsys.readouterr().out) == read_json("sweep/comparison.json") == table
    assert times_of("sweep", "*/model/*") | times_of("sweep", "*/scores.json") == before, "a finished run was repeated"


@pytest.mark.parametrize("model", ["run/model", "sweep/plain/model", "sweep/focal/model"])
def test_the_model_of_a_run_gives_the_predictions_of_its_table(saved: Path, model: str) -> None:
    network = ClassificationModel.from_pretrained(model)
    data = CSVDataModule("phantoms", image_size=(32, 32), augment=None)
    with (Path(model).parent / "predictions.csv").open(newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    samples = list(data.test_dataset)
    assert sorted(rows) == sorted(sample["image_id"] for sample in samples)
    for sample in samples:
        answer = network.predict(sample["image"][None])[0].tolist()
        columns = [float(rows[sample["image_id"]][f"probability_{name}"]) for name in network.config.classes]
        assert answer == pytest.approx(columns, abs=1e-5)


def test_the_config_of_a_run_is_accepted(saved: Path) -> None:
    place = ("--trainer.logger", "false", "--trainer.default_root_dir", "elsewhere")
    run("fit", "--config", "run/config.yaml", *OF_PHANTOMS, *place, "--trainer.fast_dev_run", "true")
    start = ("--model.init_from", "run/model", "--output", "tested")
    run("test", "--config", "run/config.yaml", *OF_PHANTOMS, *place, *start)
    # Intervals of few patients are others since; the scores are not.
    assert_near(without_intervals(read_json("tested/scores.json")), without_intervals(read_json("run/scores.json")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_training_goes_on_from_its_checkpoint(saved: Path) -> None:
    shutil.copy("fit/last.pt", "last.ckpt")
    place = ("--trainer.default_root_dir", "more", "--output", "more/model", "--trainer.max_epochs", "21")
    run("fit", "--config", "fit/config.yaml", *place, "--ckpt_path", "last.ckpt")
    epochs, before = read_json("more/model/history.json"), read_json("fit/model/history.json")
    assert [epoch["epoch"] for epoch in epochs] == list(range(21))
    assert_near(epochs[:20], before)


def test_the_masks_of_a_segmenter_are_scored(saved: Path) -> None:
    place = ("--trainer.default_root_dir", "tested", "--output", "tested")
    run("test", "--config", "fit/config.yaml", *place, "--model.init_from", "fit/model")
    scores = read_json("tested/scores.json")["all"]
    assert scores["dice_lung_field"]["value"] > 0.8


# Reports


@pytest.mark.slow
def test_a_run_is_evaluated_to_the_same_numbers(saved: Path) -> None:
    run("evaluate", "run", "--out", "again", "--name", "tiny", "--resamples", "200", "--positive", "covid19")
    report, before = read_json("again/report.json"), read_json("evaluation/report.json")
    for name in ("films", "patients", "positive", "classes", "reliability", "point", "groups", "learning"):
        assert_near(without_intervals(report[name]), without_intervals(before[name]), where=name)
    assert report["lineage"]["data"] == before["lineage"]["data"]
    assert report["lineage"]["model"]["sha256 of the weights"] == before["lineage"]["model"]["sha256 of the weights"]


def test_runs_are_evaluated(saved: Path) -> None:
    run("evaluate", "sweep", "--out", "report", *OF_PHANTOMS, "--no-gallery", "--resamples", "20")
    report = read_json("report/report.json")
    assert report["films"] == 4
    assert "learning" in report


@pytest.mark.slow
def test_an_audit_gives_the_same_numbers(saved: Path) -> None:
    words = ("--data", "csv", *OF_PHANTOMS, "--model", "pipeline", "--folds", "3")
    run("audit", *words, "--out", "again")
    audit, before = read_json("again/audit.json"), read_json("audit/audit.json")
    probes = {score["probe"] for target in before["questions"] for score in target["probes"]}
    for target in (*audit["questions"], audit["sources"]):  # there are new probes, and an alarm depends on their number
        for scores in (target["probes"], target["official_test"], *target["within"].values()):
            scores[:] = [score for score in scores if score["probe"] in probes]
    # Forests have grown leaner since: their scores are near, not equal; all others are what they were.
    forests = {probe.name for probe in PROBES if probe.model == "forest"}
    for result in (audit, before):
        for target in (*result["questions"], result["sources"]):
            for scores in (target["probes"], target["official_test"], *target["within"].values()):
                own = [score for score in scores if score["probe"] in forests]
                scores[:] = [score for score in scores if score["probe"] not in forests]
                result.setdefault("forests", []).append(own)
    assert_near(without_intervals(audit["forests"]), without_intervals(before["forests"]), 0.02)
    for name in ("films", "patients", "questions", "sources"):
        assert_near(without_intervals(audit[name]), without_intervals(before[name]), where=name)


# The search


def test_a_finished_study_gets_no_further_trial(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    before, trials, best = times_of("study/trials"), read_json("study/trials.json"), Path("study/best.yaml").read_text()
    capsys.readouterr()
    run("tune", "recipes/search.yaml", *OF_PHANTOMS, "--output", "study", "--trials", "2", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found == read_json("study/trials.json")
    assert_near(found, trials, tolerance=0)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "complete"]
    assert times_of("study/trials") == before, "a trial was trained"
    now, then = yaml.safe_load(Path("study/best.yaml").read_text()), yaml.safe_load(best)
    assert now.pop("about").startswith(then.pop("about").partition(" films ")[0].rpartition(",")[0])
    assert now == then
    place = ("--trainer.logger", "false", "--trainer.default_root_dir", "tested", "--output", "tested")
    model = f"study/trials/{found['best']['trial']:04d}/model"
    run("test", "--config", "study/best.yaml", *OF_PHANTOMS, "--model.init_from", model, *place)
    assert read_json("tested/scores.json")["all"]["accuracy"]["count"] == 4


@pytest.mark.slow
def test_a_study_goes_on(saved: Path) -> None:
    pytest.importorskip("optuna")
    trials = read_json("study/trials.json")["trials"]
    run("tune", "recipes/search.yaml", *OF_PHANTOMS, "--output", "study", "--trials", "3")
    found = read_json("study/trials.json")["trials"]
    assert len(found) == 3
    assert_near(found[:2], trials, tolerance=0)


# The server


def test_a_store_opens(saved: Path) -> None:
    pytest.importorskip("sqlalchemy")
    from covidcxr.serve import Store  # inner

    store = Store("store")
    try:
        (row,) = store.films()
        assert (row["name"], row["height"], row["width"], row["corrected"]) == ("drawn.png", 64, 64, ["lung_field"])
        assert (row["verdict"]["label"], row["verdict"]["comment"]) == ("normal", "drawn, not a patient")
        assert row["prior"] == {"covid19": 0.5, "normal": 0.3, "pneumonia": 0.2}
        drawn = read_image("phantoms/images/phantom-00003.png")
        assert np.array_equal(read_image(store.picture(row["id"], "image")), drawn)
        Path("corrected.png").write_bytes(store.mask(row["id"], "lung_field"))
        answer = Pipeline.from_pretrained("pipeline").revise(drawn, {"lung_field": read_mask("corrected.png")})
        assert row["answer"]["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)
        store.judge(row["id"], label="covid19", comment="", consent=True)
        assert store.film(row["id"])["verdict"]["label"] == "covid19"
    finally:
        store.close()


def test_a_store_is_exported_as_it_was(saved: Path) -> None:
    pytest.importorskip("sqlalchemy")
    run("feedback", "store", "--out", "exported")
    assert_near(read_json("exported/feedback.json"), read_json("feedback/feedback.json"))
    names = sorted(path.relative_to("feedback") for path in Path("feedback").rglob("*.png"))
    assert len(names) == 4
    for name in names:
        assert Path("exported", name).read_bytes() == Path("feedback", name).read_bytes(), name


def test_exported_feedback_is_a_data_set(saved: Path) -> None:
    settings: dict[str, Any] = {"region": "lungs", "image_size": (32, 32), "fractions": (1.0, 0.0), "augment": None}
    data = DATASETS.get("feedback")("feedback", drawn_masks="feedback/drawn", **settings)
    (record,) = data.records
    assert (record.label, list(record.mask_paths)) == ("normal", ["lung_field"])
    assert "masks" in record.mask_paths["lung_field"].parts
    assert not read_mask(record.mask_paths["lung_field"])[:16].any(), "it is not the corrected mask"
    assert data.train_dataset[0]["image"].shape == (1, 32, 32)
