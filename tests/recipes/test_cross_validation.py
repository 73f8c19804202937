"""Cross-validation and leave-one-source-out: every image tested once, by a model trained without its patient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from covidcxr.cli import main
from covidcxr.data import CSVDataModule
from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.evaluation import read_rows, score_rows
from covidcxr.phantom import write_dataset
from covidcxr.recipes.run import Fold, PooledRun, Run, pool_rows, without_sources
from covidcxr.recipes.sweep import run_recipe
from covidcxr.training.recipe import Recipe

LABELS = ("covid19", "normal", "pneumonia")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("films"), 36, size=(64, 64)).parent


def write(path: Path, **changes: Any) -> Path:
    """A tiny recipe with other top-level keys."""
    preprocess = {"image_size": [32, 32]}
    model = {"task": "classification", "network": "timm:test_resnet", "classes": list(LABELS), "preprocess": preprocess}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    recipe = {
        "about": "A tiny classifier.",
        "model": {"class_path": "classification", "init_args": {"model": model, "loss": "cross_entropy"}},
        "data": {"class_path": "csv", "init_args": {"image_size": [32, 32], "cache": "memory"}},
        "trainer": {**trainer, "log_every_n_steps": 1},
    }
    path.write_text(yaml.safe_dump(recipe | changes, sort_keys=False))
    return path


def test_parts_lay_their_settings_over_the_config_and_change_no_other() -> None:
    config: dict[str, Any] = {"data": {"class_path": "csv", "init_args": {"image_size": [32, 32]}}}
    parts = Fold.folds(4)
    assert [part.name for part in parts] == ["fold-0", "fold-1", "fold-2", "fold-3"]
    assert parts[2].apply(config)["data"]["init_args"] == {"image_size": [32, 32], "fold": 2, "folds": 4}
    assert config["data"]["init_args"] == {"image_size": [32, 32]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"class_path": "csv", "init_args": {"hold_out_source": "phantom-a"}}, "hold_out_source is set already"),
        ({"class_path": "csv", "init_args": {"fold": 1, "folds": 3}}, "fold is set already"),
        ({"init_args": {}}, "need data.class_path"),
    ],
)
def test_images_are_not_held_out_twice(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fold.folds(3)[0].apply({"data": data})


def test_a_source_cannot_name_a_folder_elsewhere(tmp_path: Path) -> None:
    run = Run("", tmp_path / "run", {"data": {"class_path": "CSVDataModule"}})
    with pytest.raises(ConfigError, match="outside of"):
        PooledRun.of(run, [Fold("without-../../elsewhere", {"hold_out_source": "../../elsewhere"})])


def test_two_folds_are_too_few(images: Path, tmp_path: Path) -> None:
    recipe = Recipe.read(str(write(tmp_path / "tiny.yaml", masks={"model": "mini"})))
    with pytest.raises(ConfigError, match="3 or more"):
        run_recipe(recipe, tmp_path / "out", ["--data.root", str(images)], folds=2)
    assert not (tmp_path / "out").exists()  # refused before masks are predicted


def test_a_source_that_alone_shows_a_label_is_never_held_out(images: Path, tmp_path: Path) -> None:
    table = pd.read_csv(images / "manifest.csv")
    table.loc[table.label == "normal", "source"] = "normals only"
    for column in ("path", "lung"):
        table[column] = [str(images / path) for path in table[column]]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    parts, reasons = without_sources(CSVDataModule(tmp_path))
    assert [part.name for part in parts] == ["without-phantom-a", "without-phantom-b"]
    assert reasons == {"normals only": "without normals only there is no image to learn normal from"}
    table[table.label != "normal"].assign(source=table.label).to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(ConfigError, match="No source can be held out: without covid19"):
        without_sources(CSVDataModule(tmp_path))
    # Masks are in every source, and what is drawn there has no label.
    data = CSVDataModule(tmp_path, mask_columns={"lung": "lung"}, mask_classes=["lung"])
    assert len(without_sources(data, labels=False)[0]) == 2


def test_an_image_counts_where_its_own_source_is_held_out() -> None:
    parts = [Fold(f"without-{name}", {"hold_out_source": name}) for name in ("a", "b")]
    rows = [{"image_id": "1", "source": "a"}, {"image_id": "2", "source": "b"}]  # of one patient
    pooled = pool_rows((part, rows) for part in parts)
    assert [(row["image_id"], row["fold"]) for row in pooled] == [("1", "without-a"), ("2", "without-b")]


def test_folds_test_every_image_once_and_finished_ones_are_not_repeated(images: Path, tmp_path: Path) -> None:
    recipe, out = write(tmp_path / "tiny.yaml"), tmp_path / "out"
    words = ["recipes", "run", str(recipe), "--data.root", str(images), "--output", str(out), "--folds", "3"]
    assert main(words) == 0
    rows = read_rows(out / "predictions.csv")
    records = CSVDataModule(images).records
    assert sorted(row["image_id"] for row in rows) == sorted(record.image_id for record in records)
    homes: dict[str, set[str]] = {}
    for row in rows:
        homes.setdefault(row["patient_id"], set()).add(row["fold"])
    assert set(map(len, homes.values())) == {1}
    assert set().union(*homes.values()) == {"fold-0", "fold-1", "fold-2"}
    assert {"view", "sex", "age"} <= rows[0].keys()
    scores = json.loads((out / "scores.json").read_text())["all"]
    assert scores == {name: value.to_dict() for name, value in score_rows(rows).items()}
    assert scores["accuracy"]["patients"] == len(homes)
    # As a kill in the last fold leaves it: the first two are kept, the third goes on, and all are scored anew.
    for path in (out / "scores.json", out / "fold-2" / "scores.json"):
        path.unlink()
    made = {path: path.stat().st_mtime_ns for path in out.glob("fold-*/scores.json")}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert read_rows(out / "predictions.csv") == rows
    with pytest.raises(CovidCXRError, match="other settings"):
        run_recipe(Recipe.read(str(recipe)), out, ["--data.root", str(images)], folds=4)


@pytest.mark.slow
def test_each_source_is_tested_by_a_model_that_never_saw_it(images: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "tiny.yaml", compare={"loss": {"plain": {}, "focal": {"model.init_args.loss": "focal"}}})
    sweep = run_recipe(
        Recipe.read(str(recipe)), tmp_path / "out", ["--data.root", str(images)], leave_one_source_out=True
    )
    assert list(sweep.to_dict()["runs"]) == ["plain", "focal"]
    for variant in ("plain", "focal"):
        rows = read_rows(tmp_path / "out" / variant / "predictions.csv")
        assert len(rows) == 36
        assert all(row["fold"] == f"without-{row['source']}" for row in rows)
    # The lungs are painted out for each image by the model that never saw its source.
    words = ["evaluate", str(tmp_path / "out" / "plain"), "--data.root", str(images), "--ablation", "--no-gallery"]
    assert main([*words, "--resamples", "50", "--no-copies", "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["ablation"]["models"] == len({row["source"] for row in rows}) == 2
    assert report["ablation"]["images"] == 36


def test_what_has_no_parts_is_refused(images: Path, tmp_path: Path) -> None:
    ensemble = Recipe.read(str(write(tmp_path / "ensemble.yaml", ensemble={"vote": "soft"})))
    with pytest.raises(ConfigError, match="no ensemble"):
        run_recipe(ensemble, tmp_path / "out", ["--data.root", str(images)], folds=3)
    both = Recipe.read(str(write(tmp_path / "tiny.yaml")))
    with pytest.raises(ConfigError, match="one of the two"):
        run_recipe(both, tmp_path / "out", ["--data.root", str(images)], folds=3, leave_one_source_out=True)
    assert not (tmp_path / "out").exists()
