"""Recipes: what they say, how they run, what a kill in the middle leaves."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from kill import kill_at_moments
from tiny import TINY

from covidcxr.aliases import RECIPES
from covidcxr.cli import main
from covidcxr.data import CSVDataModule, compute_mean_std
from covidcxr.data.files import MASK_INDEX
from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError
from covidcxr.models import ClassificationModel, EnsembleModel, load_model
from covidcxr.phantom import write_dataset
from covidcxr.recipes.run import Run
from covidcxr.recipes.sweep import headline_scores, run_recipe
from covidcxr.training.changes import Changes
from covidcxr.training.recipe import Recipe, recipe_paths


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("films"), 36).parent


def write(path: Path, **changes: Any) -> Path:
    """The tiny recipe with other top-level keys; None takes one out."""
    data = {key: value for key, value in (TINY | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


class TestRecipe:
    @pytest.mark.parametrize("name", sorted(recipe_paths()))
    def test_each_bundled_one_can_be_read_and_says_what_it_is(self, name: str) -> None:
        recipe = Recipe.read(name)
        assert recipe.about.endswith(".")
        assert len(dict(recipe.runs())) == recipe.count >= 1

    @pytest.mark.parametrize(("old", "name"), RECIPES.items())
    def test_an_old_name_still_leads_to_it(self, old: str, name: str) -> None:
        assert Recipe.read(old) == Recipe.read(name)
        assert old not in recipe_paths()

    def test_runs_are_all_combinations(self, tmp_path: Path) -> None:
        runs = dict(Recipe.read(str(write(tmp_path / "tiny.yaml"))).runs())
        assert list(runs) == ["plain+slow", "plain+fast", "focal+slow", "focal+fast"]
        losses = [config["model"]["init_args"]["loss"] for config in runs.values()]
        assert losses == ["cross_entropy", "cross_entropy", "focal", "focal"]
        assert [config["model"]["init_args"]["lr"] for config in runs.values()] == [0.001, 0.01] * 2

    def test_names_become_classes(self, tmp_path: Path) -> None:
        config = Recipe.read(str(write(tmp_path / "tiny.yaml"))).base()
        assert config["data"]["class_path"] == "covidcxr.data.datasets.csv.CSVDataModule"
        assert config["model"]["class_path"] == "ClassificationTask"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"data": {"class_path": "csvv"}}, "data.class_path .*'csvv'.*Did you mean 'csv'"),
            ({"model": {"class_path": "clasification"}, "compare": None}, "Did you mean 'classification'"),
            ({"compare": {"loss": {"a": {"modle.init_args.loss": "x"}}}}, "'modle.init_args.loss'.*'model'"),
            ({"compare": {"loss": {"a/b": {}}}}, "'a/b'"),
            ({"compare": ["loss"]}, "compare in"),
            ({"compare": {"loss": {"a": ["focal"]}}}, "variant 'a'.*must map"),
            ({"comparee": {}}, "'comparee'.*Did you mean 'compare'"),
            ({"masks": "mini"}, "masks of the recipe tiny must map"),
        ],
    )
    def test_wrong_keys_are_refused_with_the_nearest(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            list(Recipe.read(str(write(tmp_path / "tiny.yaml", **changes))).runs())

    def test_a_base_is_changed_key_by_key_but_another_class_whole(self, tmp_path: Path) -> None:
        base = write(tmp_path / "tiny.yaml")
        changes = dict.fromkeys(TINY) | {
            "base": str(base),
            "model": {"init_args": {"lr": 0.5}},
            "data": {"class_path": "folder", "init_args": {"batch_size": 2}},
        }
        changed = write(tmp_path / "mine.yaml", **changes)
        recipe = Recipe.read(str(changed))
        assert (recipe.name, recipe.about, recipe.count) == ("mine", "A tiny classifier.", 4)
        assert recipe.config["model"]["init_args"] == {**TINY["model"]["init_args"], "lr": 0.5}
        assert recipe.config["data"]["init_args"] == {"batch_size": 2}
        assert recipe.config["trainer"] == TINY["trainer"]

    def test_an_unknown_recipe(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'mini-lungs'"):
            Recipe.read("mini-lung")

    def test_no_yaml(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("model: [")
        with pytest.raises(ConfigError, match="no YAML"):
            Recipe.read(str(tmp_path / "a.yaml"))


class TestRun:
    @pytest.mark.slow
    def test_a_comparison_ends_in_one_table_and_one_plot(self, tmp_path: Path, images: Path, capsys: Any) -> None:
        recipe, out = write(tmp_path / "tiny.yaml"), tmp_path / "out"
        words = [
            "recipes",
            "run",
            str(recipe),
            "--data.root",
            str(images),
            "--output",
            str(out),
            "--trainer.max_epochs",
        ]
        assert main([*words, "1", "--only", "slow"]) == 0
        assert not (out / "plain+fast").exists()
        made = {path: path.stat().st_mtime_ns for path in out.glob("*slow/scores.json")}
        (out / "plain+slow" / "checkpoints").mkdir()  # killed when it was about to draw
        (out / "plain+slow" / "roc.png").unlink()
        assert len(made) == 2
        assert main([*words, "1"]) == 0
        assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished run was repeated"
        table = json.loads((out / "comparison.json").read_text())
        assert list(table["runs"]) == ["plain+slow", "plain+fast", "focal+slow", "focal+fast"]
        for name, entry in table["runs"].items():
            assert entry["variants"] == dict(zip(("loss", "lr"), name.split("+"), strict=True))
            score = entry["scores"]["accuracy"]
            assert score["low"] <= score["value"] <= score["high"]
            assert entry["scores"] == json.loads((out / name / "scores.json").read_text())["all"]
            for picture in ("learning_curves", "confusion", "roc", "precision_recall"):
                assert (out / name / f"{picture}.png").stat().st_size > 5000
            epochs = json.loads((out / name / "model" / "history.json").read_text())
            assert [epoch["epoch"] for epoch in epochs] == [0]
            assert {"train/loss", "train/accuracy", "train/f1", "val/loss", "val/accuracy"} <= epochs[0].keys()
        lines = (out / "comparison.md").read_text().splitlines()
        assert len(lines) == 6
        assert f"{table['runs']['focal+fast']['scores']['accuracy']['value']:.3f}" in lines[-1]
        assert (out / "comparison.png").stat().st_size > 5000
        capsys.readouterr()
        assert main([*words, "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == table
        with pytest.raises(CovidCXRError, match="other settings"):
            run_recipe(Recipe.read(str(recipe)), out, ["--data.root", str(images), "--trainer.max_epochs", "3"])

    @pytest.mark.parametrize(
        ("variant", "message"),
        [
            ({"model.init_args.loss": "focla"}, "focla.*Did you mean 'focal'"),
            ({"model.init_args.los": "focal"}, "'los'.*Did you mean 'loss'"),
            ({"model.init_args.model.network": "timm:resnet81"}, "resnet81"),
            ({"data.init_args.image_size": [40, 40]}, "image_size"),
            ({"data.init_args.table": "manifset.csv"}, "manifset.csv"),
            ({"data.class_path": "foldr"}, "Did you mean 'folder'"),
            ({"trainer.max_epochs": "three"}, "max_epochs"),
            ({"trainer.max_epoch": 3}, "'trainer.max_epoch'.*Did you mean 'trainer.max_epochs'"),
            ({"trainer.accelerator": "gpuu"}, "trainer refused.*gpuu"),
            ({"trainer.logger": {"class_path": "CSVLoger"}}, "'CSVLoger'.*trainer.logger.*'CSVLogger'"),
            ({"model.init_args.optimizer": "adamm"}, "optimizer.*'adamm'. Did you mean 'adam'"),
            ({"model.init_args.optimizer_args": {"eppps": 1}}, "'eppps'.*Did you mean 'eps'"),
            ({"model.init_args.model.network_args": {"drop_rat": 1}}, "'drop_rat'.*Did you mean 'drop_rate'"),
            ({"model.init_args.model.preprocess.regio": "lungs"}, "preprocess.regio'.*preprocess.region'"),
            ({"model.class_path": "covidcxr.tasks.ClasificationTask"}, "Did you mean 'ClassificationTask'"),
            ({"model.init_args.init_from": "nowhere"}, "init_from: 'nowhere' is no folder"),
            ({"coverage": 9}, "coverage must be between 0 and 1"),
        ],
    )
    def test_the_last_run_is_checked_before_the_first_is_trained(
        self, tmp_path: Path, images: Path, variant: dict[str, Any], message: str
    ) -> None:
        path = write(tmp_path / "tiny.yaml", compare={"it": {"good": {}, "bad": variant}})
        with pytest.raises(CovidCXRError, match=message):
            run_recipe(Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(images)])
        assert not list(tmp_path.glob("out/*/model"))
        assert not list(tmp_path.glob("out/*/checkpoints"))

    def test_a_flag_is_written_whole(self, tmp_path: Path, images: Path) -> None:
        path = write(tmp_path / "tiny.yaml", compare=None)
        with pytest.raises(ConfigError, match=r"Did you mean 'trainer\.max_epochs'"):
            run_recipe(
                Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(images), "--trainer.max_epoch", "1"]
            )

    def test_images_that_are_not_there(self, tmp_path: Path) -> None:
        path = write(tmp_path / "tiny.yaml", compare=None)
        with pytest.raises(CovidCXRError, match="does not find"):
            run_recipe(Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(tmp_path / "nowhere")])

    def test_what_failed_its_check_can_be_corrected_in_the_same_folder(self, tmp_path: Path, images: Path) -> None:
        path, out = write(tmp_path / "tiny.yaml", compare=None), tmp_path / "out"
        words = ["--data.root", str(images), "--trainer.max_epochs"]
        with pytest.raises(CovidCXRError, match="max_epochs"):
            run_recipe(Recipe.read(str(path)), out, [*words, "one"])
        run_recipe(Recipe.read(str(path)), out, [*words, "1"])
        assert (out / "scores.json").is_file()

    def test_normalisation_by_the_training_images(self, tmp_path: Path, images: Path) -> None:
        trainer = TINY["trainer"] | {"max_epochs": 1}
        path = write(tmp_path / "tiny.yaml", compare=None, compute_mean_std=True, trainer=trainer)
        run_recipe(Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(images)])
        model = ClassificationModel.from_pretrained(tmp_path / "out" / "model")
        mean, std = compute_mean_std(CSVDataModule(images, image_size=(32, 32)))
        assert (model.config.preprocess.mean, model.config.preprocess.std) == ((mean,), (std,))
        assert model.mean.item() == pytest.approx(mean)

    def test_one_run_that_goes_wrong_does_not_stop_the_others(self, tmp_path: Path, images: Path) -> None:
        # Passes every check, and fails in the first step: a loss that no number comes out of.
        compare = {"lr": {"wild": {"trainer.detect_anomaly": True, "model.init_args.lr": 1e30}, "good": {}}}
        path = write(tmp_path / "tiny.yaml", compare=compare)
        sweep = run_recipe(Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(images)])
        assert list(sweep.failed) == ["wild"]
        assert list(sweep.to_dict()["runs"]) == ["good"]

    def test_a_resumed_run_is_tested_with_its_best_weights(self, tmp_path: Path, images: Path) -> None:
        recipe = Recipe.read(str(write(tmp_path / "tiny.yaml", compare=None)))
        _, config = next(recipe.runs())
        words = (
            "--data.root",
            str(images),
            "--trainer.max_epochs",
            "8",
            "--model.lr",
            "0",
        )  # what is learnt soon stands
        run = Run("", tmp_path / "out", config, Changes.of(words))
        run.fit()
        (tmp_path / "out" / "model" / "history.json").unlink()  # killed before all was saved
        path = tmp_path / "out" / "checkpoints" / "last.ckpt"
        last = torch.load(path, weights_only=True)
        assert last["epoch"] == 7
        assert len(list(path.parent.iterdir())) == 2
        assert not (path.parent / "best-epoch=7.ckpt").exists()
        last["state_dict"] = {name: torch.zeros_like(value) for name, value in last["state_dict"].items()}
        torch.save(last, path)
        run.go()
        model = load_model(tmp_path / "out" / "model")
        assert model.network.fc.weight.any()  # type: ignore[operator, union-attr]
        rows = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("image_id")
        image = CSVDataModule(images, image_size=(32, 32)).test_dataset[0]
        columns = [f"probability_{name}" for name in model.config.classes]
        answer = model.predict(image["image"][None])[0].tolist()
        assert answer == pytest.approx(rows.loc[image["image_id"], columns].tolist(), abs=1e-6)
        record = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
        assert record == run.settings
        assert (record["trainer"]["max_epochs"], record["model"]["init_args"]["lr"]) == (8, 0)

    @pytest.mark.slow
    def test_killed_at_ten_moments_it_loses_and_repeats_nothing(self, tmp_path: Path, images: Path) -> None:
        recipe = write(tmp_path / "tiny.yaml", trainer=TINY["trainer"] | {"max_epochs": 4})
        words = [sys.executable, "-m", "covidcxr", "recipes", "run", str(recipe), "--data.root", str(images)]
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        start = time.monotonic()
        undisturbed = kill_at_moments([*words, "--output", str(whole)], tmp_path, 0)
        assert undisturbed.returncode == 0, undisturbed.output
        seconds = (time.monotonic() - start) / 2
        finished: dict[Path, int] = {}

        def check() -> None:
            for path in killed.glob("*/scores.json"):
                changed = path.stat().st_mtime_ns
                assert finished.setdefault(path, changed) == changed, f"{path.parent.name} was finished, and ran again"

        end = kill_at_moments([*words, "--output", str(killed)], tmp_path, 10, seed=1, seconds=seconds, check=check)
        assert end.returncode == 0, end.output
        assert end.kills
        check()
        # Bit for bit the trainings of an undisturbed command.
        for path in (*whole.glob("*/model/history.json"), *whole.glob("*/predictions.csv")):
            assert (killed / path.relative_to(whole)).read_text() == path.read_text(), path
        for path in whole.glob("*/model/model.safetensors"):
            assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
        runs = json.loads((killed / "comparison.json").read_text())["runs"]
        assert list(runs) == list(json.loads((whole / "comparison.json").read_text())["runs"])


class TestSteps:
    def test_masks_are_predicted_before_the_runs_and_small_lungs_left_out(self, tmp_path: Path, images: Path) -> None:
        text = (images / "manifest.csv").read_text().replace("lung_field,lung,", "field,whole,")
        (images / "bare.csv").write_text(text)
        path = write(
            tmp_path / "tiny.yaml",
            masks={"model": "mini", "min_lung_area": 0.25},
            compare={
                "region": {
                    "full": {},
                    "lungs": {"data.init_args.region": "lungs", "model.init_args.model.preprocess.region": "lungs"},
                }
            },
        )
        words = ["--data.root", str(images), "--data.table", "bare.csv", "--trainer.max_epochs", "1"]
        run_recipe(Recipe.read(str(path)), tmp_path / "out", words)
        index = json.loads((tmp_path / "out" / "masks" / MASK_INDEX).read_text())
        assert len(index["areas"]) == 36
        small = {name for name, area in index["areas"].items() if area < 0.25}
        assert 0 < len(small) < 36
        lines = (tmp_path / "out" / "masks" / "small.csv").read_text().splitlines()
        assert {line.split(",")[0] for line in lines[1:]} == small
        data = CSVDataModule(images, table="bare.csv", drawn_masks=tmp_path / "out" / "masks", min_lung_area=0.25)
        assert {record.image_id for record in data.records} == set(index["areas"]) - small
        assert data.left_out == {"lungs below 25% of the image": len(small)}
        counts = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
        tested = sum(record.split == "test" for record in data.records)
        assert {run: entry["scores"]["accuracy"]["count"] for run, entry in counts.items()} == {
            "full": tested,
            "lungs": tested,
        }

    def test_masks_alone(self, tmp_path: Path, images: Path, capsys: Any) -> None:
        path = write(tmp_path / "only.yaml", model=None, compare=None, trainer=None, masks={"model": "mini"})
        words = ["recipes", "run", str(path), "--data.root", str(images), "--output", str(tmp_path / "out")]
        assert main(words) == 0
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "masks").rglob("*.png")}
        assert len(made) == 72
        assert main(words) == 0, "again"
        assert {path: path.stat().st_mtime_ns for path in made} == made, "masks were predicted twice"
        other = write(tmp_path / "only.yaml", model=None, compare=None, trainer=None, masks={"postprocess": []})
        with pytest.raises(ConfigError, match="another model or other steps"):
            run_recipe(Recipe.read(str(other)), tmp_path / "out", ["--data.root", str(images)])
        verb = ["datasets", "masks", "csv", "--root", str(images), "--out", str(tmp_path / "verb"), "--json"]
        capsys.readouterr()
        assert main(verb) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["films"], report["failed"]) == (36, {})
        assert main(verb[:-1]) == 0
        assert "--data.drawn_masks" in capsys.readouterr().out
        wrong = write(tmp_path / "wrong.yaml", model=None, masks={"modle": "mini"})
        with pytest.raises(ConfigError, match="Did you mean 'model'"):
            run_recipe(Recipe.read(str(wrong)), tmp_path / "out", ["--data.root", str(images)])

    def test_members_and_boosted_trees_vote(self, tmp_path: Path, images: Path) -> None:
        boosting = {"network_args": {"backbone": "timm:test_resnet", "stages": 3, "depth": 2}, "learning_rate": 0.2}
        path = write(
            tmp_path / "tiny.yaml",
            compare={"loss": {"plain": {}}, "lr": {"slow": {}, "0.01": {"model.init_args.lr": 0.01}}},
            ensemble={"vote": "soft", "boosting": boosting},
            coverage=0.9,
        )
        words = ["--data.root", str(images), "--trainer.max_epochs", "1"]
        recipe = Recipe.read(str(path))
        sweep = run_recipe(recipe, tmp_path / "out", words)
        assert list(sweep.to_dict()["runs"]) == ["plain+slow", "plain+0.01", "boosting", "ensemble"]
        model = load_model(tmp_path / "out" / "ensemble" / "model")
        assert isinstance(model, EnsembleModel)
        assert model.config.thresholds
        assert list(model.config.members) == ["plain-slow", "plain-0-01", "boosting"]
        rows = pd.read_csv(tmp_path / "out" / "ensemble" / "predictions.csv").set_index("image_id")
        data = CSVDataModule(images, image_size=(32, 32))
        image = data.test_dataset[0]
        answer = model.predict(image["image"][None])[0]
        columns = [f"probability_{name}" for name in model.config.classes]
        assert answer.tolist() == pytest.approx(rows.loc[image["image_id"], columns].tolist(), abs=1e-5)
        made = (tmp_path / "out" / "ensemble" / "scores.json").stat().st_mtime_ns
        run_recipe(Recipe.read(str(path)), tmp_path / "out", words)
        assert (tmp_path / "out" / "ensemble" / "scores.json").stat().st_mtime_ns == made
        changed = write(tmp_path / "tiny.yaml", compare=recipe.compare, ensemble={"vote": "hard"}, coverage=0.9)
        with pytest.raises(ConfigError, match="ensemble holds a run with other settings"):
            run_recipe(Recipe.read(str(changed)), tmp_path / "out", words)

    @pytest.mark.parametrize(
        ("ensemble", "message"),
        [
            ({"boosting": {"learning_rat": 1}}, "Did you mean 'learning_rate'"),
            ({"vote": "sotf"}, "'sotf'.*Did you mean 'soft'"),
            ({"boosting": {"subsample": 7}}, r"ensemble.boosting.subsample .*\(0, 1\], not 7"),
            ({"boosting": "trees"}, "ensemble.boosting .*must map"),
            ({"boosting": {"network_args": {"backbone": "timm:test_resnett"}}}, "Did you mean 'test_resnet'"),
            (
                {"boosting": {"network_args": {"backbone": "timm:test_resnet"}, "pretrained_backbone": "no.pth"}},
                "ensemble.boosting: .*no such file",
            ),
            ({"vote": "hard"}, "two members or more, not 1"),
        ],
    )
    def test_a_wrong_ensemble_is_refused_before_any_training(
        self, tmp_path: Path, images: Path, ensemble: dict[str, Any], message: str
    ) -> None:
        path = write(tmp_path / "tiny.yaml", compare=None, ensemble=ensemble)
        with pytest.raises(CovidCXRError, match=message):
            run_recipe(Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(images)])
        assert not list(tmp_path.glob("out/**/model"))

    def test_a_variant_keeps_off_the_folder_of_the_ensemble(self, tmp_path: Path, images: Path) -> None:
        path = write(tmp_path / "tiny.yaml", compare={"it": {"ensemble": {}, "b": {}}}, ensemble={"vote": "soft"})
        with pytest.raises(ConfigError, match="may not be named 'ensemble'"):
            run_recipe(Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(images)])

    def test_other_classes_are_refused_before_masks_are_predicted(self, tmp_path: Path, images: Path) -> None:
        path = write(tmp_path / "tiny.yaml", compare=None, masks={"model": "mini"})
        with pytest.raises(ConfigError, match=r"the data module's labels are .* in the same order"):
            run_recipe(
                Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(images), "--data.classes", "[b, a]"]
            )
        assert not (tmp_path / "out" / "masks").exists()

    def test_a_wrong_network_is_refused_before_masks_are_predicted(self, tmp_path: Path, images: Path) -> None:
        variant = {"model.init_args.model.network": "timm:resnet5"}
        path = write(tmp_path / "tiny.yaml", compare={"it": {"good": {}, "bad": variant}}, masks={"model": "mini"})
        with pytest.raises(CovidCXRError, match="Did you mean 'resnet50'"):
            run_recipe(Recipe.read(str(path)), tmp_path / "out", ["--data.root", str(images)])
        assert not (tmp_path / "out" / "masks").exists()


def test_two_classes_are_shown_by_the_positive_one() -> None:
    names = ["accuracy", *(f"{score}_{c}" for c in ("no", "yes") for score in ("auroc", "f1", "precision"))]
    names += [f"{score}_{c}" for c in ("no", "yes") for score in ("sensitivity", "specificity")]
    two = [*names, "balanced_accuracy", "macro_f1"]
    of_yes = [f"{score}_yes" for score in ("sensitivity", "specificity", "precision", "f1", "auroc")]
    assert headline_scores([{"scores": dict.fromkeys(two)}], "yes") == ["accuracy", *of_yes]
    three = [*two, "sensitivity_maybe"]
    assert headline_scores([{"scores": dict.fromkeys(three)}]) == ["accuracy", "balanced_accuracy", "macro_f1"]


def test_list_show_and_copy(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == sorted(recipe_paths())
    assert main(["recipes", "show", "mini-lungs"]) == 0
    assert capsys.readouterr().out.strip() == recipe_paths()["mini-lungs"].read_text().strip()
    assert main(["recipes", "copy", "mini-lungs"]) == 0
    assert (tmp_path / "mini-lungs.yaml").read_text() == recipe_paths()["mini-lungs"].read_text()
    assert main(["recipes", "copy", "mini-lungs"]) == 2, "a file is never overwritten"
    assert main(["recipes", "run", "mini-lung", "--data.root", "x"]) == 2
    assert "Did you mean 'mini-lungs'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recipes", "list", "--data.root", "x"])
