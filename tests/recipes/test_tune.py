"""The search: what a recipe may leave open, what a study finds, what several processes and a kill make of it."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
import yaml
from fakes import write_radiography_fake
from kill import kill_at_moments
from lightning.pytorch.trainer.states import TrainerFn
from tiny import TINY

import covidcxr.recipes.study
import covidcxr.recipes.tune
from covidcxr.cli import main
from covidcxr.data import CSVDataModule
from covidcxr.errors import ConfigError, CovidCXRError
from covidcxr.models import ClassificationModel
from covidcxr.phantom import write_dataset
from covidcxr.recipes.run import Run
from covidcxr.recipes.study import NumberedSampler, Objective, Reporter, fail_dead, open_study
from covidcxr.recipes.tune import Findings, tune
from covidcxr.training.changes import Changes, Choice, Number, read_search
from covidcxr.training.recipe import Recipe

ask = pytest.mark.filterwarnings("ignore:Heartbeat of storage")  # of a trial that no process runs

Row = dict[str, Any]
LR = {"key": "model.init_args.lr", "low": 0.0001, "high": 0.1, "log": True}
SEARCH = {
    "lr": LR,
    "loss": {"key": "model.init_args.loss", "values": ["cross_entropy", "focal"]},
    "optimizer": {"values": {"adamw": {}, "sgd": {"model.init_args.optimizer": "sgd"}}},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("films"), 36).parent


def write(path: Path, search: Any = SEARCH, **changes: Any) -> Path:
    """The tiny recipe, to be searched."""
    data = TINY | {"compare": {}, "search": search, "trainer": TINY["trainer"] | {"max_epochs": 2}} | changes
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def read(path: Path, search: Any = SEARCH, **changes: Any) -> Recipe:
    return Recipe.read(str(write(path / "tiny.yaml", search, **changes)))


# --- what a recipe may leave open -----------------------------------------------------------------------------------


class TestSearch:
    def test_values_numbers_and_sets_of_changes(self) -> None:
        search = read_search(
            {
                "size": {"keys": ["a.size", "b.size"], "values": [[32, 32], [64, 64]]},
                "lr": {"key": "a.lr", "low": 1, "high": 2},
                "epochs": {"key": "t.epochs", "low": 5, "high": 20, "int": True, "step": 5},
                "network": {"values": {"small": None, "large": {"a.network": "x", "a.lr2": 3}}},
            },
            "x",
        )
        size, lr, epochs, network = search.values()
        assert isinstance(size, Choice)
        assert dict(size.changes("[64, 64]")) == {"a.size": [64, 64], "b.size": [64, 64]}
        assert lr == Number("lr", ("a.lr",), 1.0, 2.0)
        assert epochs == Number("epochs", ("t.epochs",), 5, 20, whole=True, step=5)
        assert dict(network.changes("small")) == {}
        assert dict(network.changes("large")) == {"a.network": "x", "a.lr2": 3}
        assert set(network.keys) == {"a.network", "a.lr2"}

    @pytest.mark.parametrize("number", range(5))
    def test_what_is_drawn_is_in_reach(self, number: int) -> None:
        search = read_search(
            {
                "lr": {"key": "a", "low": 0.001, "high": 0.1, "log": True},
                "epochs": {"key": "b", "low": 5, "high": 20, "int": True, "step": 5},
                "loss": {"key": "c", "values": ["one", "two"]},
            },
            "x",
        )
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        lr, epochs, loss = (parameter.suggest(study.ask()) for parameter in search.values())
        assert 0.001 <= lr <= 0.1
        assert epochs in (5, 10, 15, 20)
        assert type(epochs) is int
        assert loss in ("one", "two")

    def test_probes_meet_every_value_and_both_ends(self) -> None:
        search = read_search({**SEARCH, "epochs": {"key": "e", "low": 1, "high": 3, "int": True}}, "x")
        probes = [{name: parameter.probe(number) for name, parameter in search.items()} for number in range(2)]
        assert [probe["loss"] for probe in probes] == ["cross_entropy", "focal"]
        assert [probe["optimizer"] for probe in probes] == ["adamw", "sgd"]
        assert [probe["epochs"] for probe in probes] == [1, 3]
        assert 0.0001 < probes[0]["lr"] < 0.001 < 0.09 < probes[1]["lr"] < 0.1

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"kye": "a", "values": [1]}, "'kye'.*Did you mean 'key'"),
            ({"key": "a", "lwo": 1, "high": 2}, "'lwo'.*Did you mean 'low'"),
            ({"key": "a"}, "either values, or low and high"),
            ({"key": "a", "values": [1], "low": 0}, "either values, or low and high"),
            ({"values": [1, 2]}, "needs key"),
            ({"key": "a", "keys": ["b"], "values": [1, 2]}, "needs key"),
            ({"key": "a", "values": []}, "must be a list"),
            ({"key": "a", "values": [1, 1]}, "twice"),
            ({"key": "a", "values": {"x": {}}}, "a key too many"),
            ({"values": {"x": 3}}, "dotted keys"),
            ({"key": "a", "low": "1e-4", "high": 1}, "low .*'1e-4'.*point"),
            ({"key": "a", "low": 1, "high": float("inf")}, "high .*inf"),
            ({"key": "a", "low": 2, "high": 1}, "low below high"),
            ({"key": "a", "low": 1}, "low and high"),
            ({"key": "a", "low": 0, "high": 1, "log": True}, "log .*low above 0"),
            ({"key": "a", "low": 1, "high": 2, "log": "yes"}, "log .*true or false"),
            ({"key": "a", "low": 1, "high": 2.5, "int": True}, "high .*whole"),
            ({"key": "a", "low": 1, "high": 10, "int": True, "step": 4}, "step .*lead from low to high"),
        ],
    )
    def test_wrong_entries_are_refused(self, entry: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            read_search({"it": entry}, "x")

    def test_a_step_of_a_tenth_leads_to_one(self) -> None:
        assert isinstance(read_search({"it": {"key": "a", "low": 0.1, "high": 1, "step": 0.1}}, "x")["it"], Number)

    def test_two_parameters_of_one_key(self) -> None:
        with pytest.raises(ConfigError, match=r"'a' and 'b'.* both change 'x\.y'"):
            read_search({name: {"key": "x.y", "values": [1, 2]} for name in "ab"}, "x")

    def test_a_recipe_takes_values_and_a_base_hands_its_search_on(self, tmp_path: Path) -> None:
        base = read(tmp_path)
        (tmp_path / "mine.yaml").write_text(f"base: {tmp_path / 'tiny.yaml'}\n")
        assert Recipe.read(str(tmp_path / "mine.yaml")).search == base.search
        changed = base.with_values({"lr": 0.05, "loss": "focal", "optimizer": "sgd"})
        assert changed.search == {}
        settings = changed.config["model"]["init_args"]
        assert (settings["lr"], settings["loss"], settings["optimizer"]) == (0.05, "focal", "sgd")
        assert base.config["model"]["init_args"]["loss"] == "cross_entropy", "the recipe itself was changed"


def test_wali2021_next_can_be_searched(tmp_path: Path) -> None:
    recipe, root = Recipe.read("wali2021-next"), write_radiography_fake(tmp_path / "data")
    assert (recipe.compare, list(recipe.search)) == ({}, ["optimizer", "lr", "weight_decay", "augment", "network"])
    words = ["--data.root", str(root), "--trainer.accelerator", "cpu", "--model.pretrained_backbone", "false"]
    for number in range(3):
        values = {name: parameter.probe(number) for name, parameter in recipe.search.items()}
        with torch.device("meta"):  # the real networks, without their memory
            Run("", tmp_path / str(number), recipe.with_values(values).base(), Changes.of(words)).check()


# --- one process ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blind(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, of which those of the test cannot be read."""
    root = shutil.copytree(images, tmp_path_factory.mktemp("blind") / "films")
    data = CSVDataModule(root, image_size=(32, 32))
    tests = [record for record in data.records if record.split == "test"]
    assert tests
    for record in tests:
        record.image_path.write_text("no image")
    return root


@pytest.fixture(scope="module")
def out(blind: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of four trials from the command line."""
    folder = tmp_path_factory.mktemp("search")
    words = ["tune", str(write(folder / "tiny.yaml")), "--data.root", str(blind), "--trials", "4"]
    assert main([*words, "--output", str(folder / "out")]) == 0
    return folder / "out"


def rows_of(out: Path) -> list[Row]:
    rows: list[Row] = json.loads((out / "trials.json").read_text())["trials"]
    return rows


class TestSearched:
    def test_each_trial_keeps_what_it_was(self, out: Path) -> None:
        rows = rows_of(out)
        assert [(row["trial"], row["state"], row["epochs"]) for row in rows] == [(n, "complete", 2) for n in range(4)]
        for row in rows:
            folder = out / "trials" / f"{row['trial']:04d}"
            epochs = json.loads((folder / "history.json").read_text())
            assert row["value"] == max(epoch["val/auroc"] for epoch in epochs)
            settings = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
            assert (settings["lr"], settings["loss"]) == (row["parameters"]["lr"], row["parameters"]["loss"])
            assert settings.get("optimizer", "adamw") == row["parameters"]["optimizer"]
            assert not (folder / "checkpoints").exists()
        with (out / "trials.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert [float(line["lr"]) for line in table] == [row["parameters"]["lr"] for row in rows]
        assert len({line["lr"] for line in table}) == 4

    def test_the_best_trial_becomes_a_recipe_and_keeps_its_model(self, out: Path) -> None:
        best = max(rows_of(out), key=lambda row: (row["value"], -row["trial"]))
        assert json.loads((out / "trials.json").read_text())["best"] == best
        recipe = Recipe.read(str(out / "best.yaml"))
        assert recipe.search == {}
        assert recipe.config["model"]["init_args"]["lr"] == best["parameters"]["lr"]
        assert recipe.config["data"] == TINY["data"]
        assert f"trial {best['trial']}" in recipe.about
        assert str(out.parent) not in (out / "best.yaml").read_text()
        kept = [path.parent.name for path in out.glob("trials/*/model")]
        assert kept == [f"{best['trial']:04d}"]
        ClassificationModel.from_pretrained(out / "trials" / kept[0] / "model")

    def test_the_images_of_the_test_were_not_touched_and_a_command_does_so(
        self, out: Path, images: Path, blind: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        assert not [*out.rglob("scores.json"), *out.rglob("predictions.csv")]
        words = ["tune", str(out.parent / "tiny.yaml"), "--data.root", str(blind), "--trials", "4"]
        before = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/history.json")}
        assert main([*words, "--output", str(out)]) == 0
        assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished trial was repeated"
        printed = capsys.readouterr().out
        assert "4 complete" in printed
        command = shlex.split(printed.split("once:")[1])
        assert command[:2] == ["covidcxr", "test"]
        monkeypatch.chdir(tmp_path)
        assert main([word.replace(str(blind), str(images)) for word in command[1:]]) == 0
        assert (out / "test" / "scores.json").is_file()
        assert not list(tmp_path.iterdir()), "something was left where the command was given"

    def test_pictures(self, out: Path) -> None:
        for name in ("course", "slices"):
            assert (out / f"{name}.png").stat().st_size > 5000
        assert not (out / "importances.png").exists(), "four trials tell nothing of importance"

    def test_the_same_seed_gives_the_same_trials(self, out: Path, blind: Path, tmp_path: Path) -> None:
        recipe = Recipe.read(str(out.parent / "tiny.yaml"))
        again = tune(recipe, tmp_path / "again", ["--data.root", str(blind)], trials=2).rows
        assert [(row["parameters"], row["value"]) for row in again] == [
            (row["parameters"], row["value"]) for row in rows_of(out)[:2]
        ]

    def test_json_is_all_that_is_printed(self, out: Path, blind: Path, capsys: Any) -> None:
        words = ["tune", str(out.parent / "tiny.yaml"), "--data.root", str(blind), "--trials", "4", "--json"]
        assert main([*words, "--output", str(out)]) == 0
        assert json.loads(capsys.readouterr().out) == json.loads((out / "trials.json").read_text())

    def test_a_folder_with_another_search(self, out: Path, blind: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="other settings"):
            tune(read(tmp_path, {"lr": LR}), out, ["--data.root", str(blind)], trials=4)


class TestBefore:
    """Wrong settings are reported before anything is trained."""

    @pytest.mark.parametrize(
        ("search", "message"),
        [
            (
                {"loss": {"key": "model.init_args.los", "values": ["focal", "cross_entropy"]}},
                "'los'.*Did you mean 'loss'",
            ),
            ({"loss": {"key": "modle.init_args.loss", "values": ["focal"]}}, "'modle'.*Did you mean 'model'"),
            ({"loss": {"key": "model.init_args.loss", "values": ["focal", "focla"]}}, "focla.*Did you mean 'focal'"),
            ({"network": {"values": {"a": {}, "b": {"model.init_args.model.network": "timm:resnet81"}}}}, "resnet81"),
            ({"epochs": {"key": "trainer.max_epochs", "low": 1, "high": 3}}, "max_epochs"),
        ],
    )
    def test_the_last_value_is_checked(self, tmp_path: Path, images: Path, search: Any, message: str) -> None:
        with pytest.raises(CovidCXRError, match=message):
            tune(read(tmp_path, search), tmp_path / "out", ["--data.root", str(images)])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("changes", "words", "trials", "message"),
        [
            ({"search": {}}, [], 1, "no `search`"),
            ({"compare": TINY["compare"]}, [], 1, "`compare`.*set `compare: {}`"),
            ({}, ["--model.lr", "0.1"], 1, "lr is what the search 'lr'"),
            ({}, ["--model.init_args.lr=0.1"], 1, "lr is what the search 'lr'"),
            ({}, [], 0, "--trials"),
        ],
    )
    def test_what_contradicts_itself(
        self, tmp_path: Path, changes: Any, words: list[str], trials: int, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            tune(read(tmp_path, **changes), tmp_path / "out", words, trials=trials)

    def test_without_optuna(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r'pip install "covidcxr\[tune\]"'):
            tune(read(tmp_path), tmp_path / "out")

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("nonsense", "no URL"),
            ("nonesuch://me:secret@here/db", "not a supported kind of database"),
            ("mssql+pymssql://me:secret@here/db", "driver that is not installed"),
            ("sqlite:////nowhere/at/all/study.db", "cannot be opened"),
        ],
    )
    def test_a_database_that_cannot_be_had(self, url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        with pytest.raises(ConfigError, match=message) as error:
            open_study(url, "x", "tpe", "median", 0)
        assert "secret" not in str(error.value)


# --- how trials end, without training -------------------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Trainings that only leave a score: from the number of a trial to what it raises, or its scores."""
    ends: dict[int, Any] = {}

    def fit(self: Objective, run: Run, reporter: Reporter) -> None:
        (run.folder / "model").mkdir(parents=True)
        end = ends.get(reporter.trial.number, [run.config["model"]["init_args"]["lr"]])
        if isinstance(end, BaseException):
            raise end
        task = SimpleNamespace(monitor="val/auroc")
        for epoch, value in enumerate(end):
            trainer = SimpleNamespace(
                sanity_checking=False,
                state=SimpleNamespace(fn=TrainerFn.FITTING),
                current_epoch=epoch,
                callback_metrics={"val/auroc": torch.tensor(value)},
            )
            reporter.on_validation_end(trainer, task)  # type: ignore[arg-type]

    monkeypatch.setattr(Objective, "_fit", fit)
    monkeypatch.setattr(covidcxr.recipes.tune, "_check", lambda recipe, words: None)
    monkeypatch.setattr(Findings, "draw", lambda self: None)
    return ends


class TestEnds:
    def test_one_that_goes_wrong_counts_and_does_not_stop_the_others(self, tmp_path: Path, pretend: Any) -> None:
        pretend[1] = RuntimeError("out of memory")
        findings = tune(read(tmp_path), tmp_path / "out", trials=3)
        assert [row["state"] for row in findings.rows] == ["complete", "failed", "complete"]
        assert findings.rows[1]["error"] == "RuntimeError: out of memory"
        assert sorted(path.name for path in (tmp_path / "out" / "trials").iterdir()) == ["0000", "0002"]

    def test_one_without_a_score_says_so(self, tmp_path: Path, pretend: Any) -> None:
        pretend[0] = [float("nan"), float("nan")]
        findings = tune(read(tmp_path), tmp_path / "out", trials=1)
        assert "validation image" in findings.rows[0]["error"]
        assert findings.best is None
        assert not (tmp_path / "out" / "best.yaml").exists()

    def test_one_below_the_median_is_pruned_but_not_in_its_first_epoch(self, tmp_path: Path, pretend: Any) -> None:
        pretend.update({number: [0.7, 0.8, 0.9] for number in range(5)})
        pretend[5], pretend[6], pretend[7] = [0.1, 0.2, 0.3], [0.1, 0.9, 0.95], [0.0, 0.0]
        findings = tune(read(tmp_path), tmp_path / "out", trials=7)
        assert [row["state"] for row in findings.rows] == ["complete"] * 5 + ["pruned", "complete"]
        assert (findings.rows[5]["epochs"], findings.rows[5]["value"]) == (2, pytest.approx(0.2))
        assert not (tmp_path / "out" / "trials" / "0005").exists()
        assert findings.best == findings.rows[6]
        unpruned = tune(read(tmp_path), findings.folder, trials=8, pruner="none")  # the last one is the worst of all
        assert unpruned.rows[7]["state"] == "complete"

    def test_of_equals_the_earliest_is_best(self, tmp_path: Path, pretend: Any) -> None:
        pretend.update({0: [0.2], 1: [0.5], 2: [0.5]})
        findings = tune(read(tmp_path), tmp_path / "out", trials=3)
        assert findings.best is not None
        assert findings.best["trial"] == 1
        assert [path.parent.name for path in (tmp_path / "out").glob("trials/*/model")] == ["0001"]

    @pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(1), OSError("the disk is full")])
    def test_one_that_was_stopped_is_run_again_as_it_was(
        self, tmp_path: Path, pretend: Any, end: BaseException
    ) -> None:
        pretend[1] = end
        with pytest.raises(OSError if isinstance(end, OSError) else KeyboardInterrupt):
            tune(read(tmp_path), tmp_path / "out", trials=3)
        rows = tune(read(tmp_path), tmp_path / "out", trials=3).rows
        assert [row["state"] for row in rows] == ["complete", "killed", "complete", "complete"]
        assert rows[2]["parameters"] == rows[1]["parameters"]
        assert rows[2]["retry_of"] == 1
        pretend.clear()
        undisturbed = tune(read(tmp_path), tmp_path / "whole", trials=4).rows
        assert rows[3]["parameters"] == undisturbed[3]["parameters"]

    def test_sanity_checks_and_calibration_report_nothing(self) -> None:
        reporter = Reporter(optuna.create_study().ask())
        for sanity, stage in ((True, TrainerFn.FITTING), (False, TrainerFn.VALIDATING)):
            trainer = SimpleNamespace(sanity_checking=sanity, state=SimpleNamespace(fn=stage))
            reporter.on_validation_end(trainer, None)  # type: ignore[arg-type]
        assert reporter.values == []

    @ask
    def test_a_place_that_is_taken_is_not_taken_twice(self, tmp_path: Path, pretend: Any) -> None:
        findings = tune(read(tmp_path), tmp_path / "out", trials=2)
        objective = Objective(findings.recipe, findings.folder, (), 2)
        with pytest.raises(RuntimeError, match="claimed the last trial"):
            objective(findings.study.ask())
        assert len(findings.rows) == 2, "a claim that came too late is shown as a trial"

    @ask
    def test_the_last_trial_of_another_process_is_waited_for(
        self, tmp_path: Path, pretend: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        findings = tune(read(tmp_path), tmp_path / "out", trials=1)
        theirs = findings.study.ask()
        for parameter in findings.recipe.search.values():
            parameter.suggest(theirs)
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                findings.study.tell(theirs, 0.99)

        monkeypatch.setattr(covidcxr.recipes.tune.time, "sleep", sleep)
        rows = tune(read(tmp_path), tmp_path / "out", trials=2).rows
        assert [row["value"] for row in rows][1:] == [0.99]
        assert len(waited) == 3

    @ask
    def test_one_killed_while_it_drew_is_failed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        study = open_study(f"sqlite:///{tmp_path / 'study.db'}", "x", "random", "none", 0)
        study.ask()
        drawn = study.ask()
        drawn.suggest_float("lr", 0, 1)
        fail_dead(study, 1)
        assert {trial.state.name for trial in study.trials} == {"RUNNING"}, "failed before its time"
        monkeypatch.setattr(covidcxr.recipes.study, "HEARTBEAT", 0)
        fail_dead(study, 1)
        assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING"]


class TestStudy:
    @pytest.mark.parametrize("kind", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
    def test_draws_depend_on_seed_and_number_alone(self, kind: Any) -> None:
        def draw(study: optuna.Study) -> float:
            return study.ask().suggest_float("lr", 0, 1)

        whole = optuna.create_study(sampler=NumberedSampler(kind, 0))
        expected = [draw(whole) for _ in range(4)]
        assert len(set(expected)) == 4
        shared = optuna.create_study(sampler=NumberedSampler(kind, 0))
        drawn = []
        for _ in range(4):
            shared.sampler = NumberedSampler(kind, 0)  # another process, or this one after a kill
            drawn.append(draw(shared))
        assert drawn == expected
        assert draw(optuna.create_study(sampler=NumberedSampler(kind, 1))) not in expected

    @ask
    def test_tpe_learns(self, tmp_path: Path) -> None:
        study = open_study(f"sqlite:///{tmp_path / 'study.db'}", "x", "tpe", "none", 0)
        for _ in range(30):
            trial = study.ask()
            study.tell(trial, -abs(trial.suggest_float("x", 0, 1) - 0.7))
        late = [trial.params["x"] for trial in study.trials[15:]]
        assert sum(abs(x - 0.7) < 0.2 for x in late) > 10, "no better than chance, which gives 6"

    def test_importances_name_what_mattered(self, tmp_path: Path) -> None:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        findings = Findings(read(tmp_path), tmp_path, (), 50, study)
        for number in range(50):
            trial = study.ask()
            values = {name: parameter.suggest(trial) for name, parameter in findings.recipe.search.items()}
            study.tell(trial, -abs(values["lr"] - 0.05))
            if number == 6:
                assert findings.importances() == {}
        importances = findings.importances()
        assert max(importances, key=importances.__getitem__) == "lr"
        assert sum(importances.values()) == pytest.approx(1)
        findings.draw()
        assert (tmp_path / "importances.png").stat().st_size > 5000


# --- several processes ----------------------------------------------------------------------------------------------

# The command line, with signs of life every second.
COMMAND = """
import sys
import covidcxr.recipes.study
covidcxr.recipes.study.HEARTBEAT = 1
from covidcxr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(recipe: Path, images: Path, out: Path, trials: int) -> subprocess.Popen[str]:
    words = ["tune", str(recipe), "--data.root", str(images), "--output", str(out), "--trials", str(trials)]
    command = [sys.executable, "-c", COMMAND, *words, "--sampler", "random"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def check_shared(out: Path, trials: int) -> list[Row]:
    """None lost, none repeated, one model kept."""
    rows = rows_of(out)
    finished = [row for row in rows if row["state"] in ("complete", "pruned")]
    assert len(finished) == trials
    assert {row["state"] for row in rows} <= {"complete", "pruned", "killed"}
    assert len({row["parameters"]["lr"] for row in finished}) == trials
    best = json.loads((out / "trials.json").read_text())["best"]
    assert [path.parent.name for path in out.glob("trials/*/model")] == [f"{best['trial']:04d}"]
    assert not list(out.rglob("*.tmp"))
    return rows


@pytest.mark.slow
def test_two_processes_share_the_trials(tmp_path: Path, images: Path) -> None:
    recipe, out = write(tmp_path / "tiny.yaml"), tmp_path / "out"
    both = [start(recipe, images, out, 8) for _ in range(2)]
    output = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    rows = check_shared(out, 8)
    assert [row["trial"] for row in rows] == list(range(8))
    lines = [line.split(":")[0] for text in output for line in text.splitlines() if line.startswith("Trial ")]
    assert sorted(lines) == sorted(f"Trial {number}" for number in range(8)), "one was run twice, or not at all"
    assert all("Trial " in text for text in output), "one process did nothing"
    alone = tune(Recipe.read(str(recipe)), tmp_path / "alone", ["--data.root", str(images)], trials=8, sampler="random")
    assert [row["parameters"] for row in alone.rows] == [row["parameters"] for row in rows]


def wait_for_training(out: Path, process: subprocess.Popen[str], count: int, beside: set[str]) -> set[str]:
    """Wait until so many trials are under way that were not so before, and return the names of their folders."""
    while process.poll() is None:
        names = {path.parent.parent.name for path in out.glob("trials/*/checkpoints/last.ckpt")} - beside
        if len(names) >= count:
            return names
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_and_repeats_nothing(tmp_path: Path, images: Path) -> None:
    recipe = write(tmp_path / "tiny.yaml", trainer=TINY["trainer"] | {"max_epochs": 15})
    out = tmp_path / "out"
    first, second = (start(recipe, images, out, 8) for _ in range(2))
    both = wait_for_training(out, first, 2, set())
    first.kill()
    first.communicate()
    wait_for_training(out, second, 1, both)
    second.kill()
    second.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/history.json")}
    assert before
    last = start(recipe, images, out, 8)
    output = last.communicate()[0]
    assert last.returncode == 0, output
    rows = check_shared(out, 8)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished trial was repeated"
    assert Counter(row["state"] for row in rows)["killed"] == 2, rows
    retried = {row["retry_of"]: row for row in rows if row["retry_of"] is not None}
    for row in rows:
        if row["state"] == "killed":
            assert retried[row["trial"]]["parameters"] == row["parameters"]


@pytest.mark.slow
def test_killed_at_ten_moments_it_loses_and_repeats_nothing(tmp_path: Path, images: Path) -> None:
    recipe = write(tmp_path / "tiny.yaml", trainer=TINY["trainer"] | {"max_epochs": 4})
    words = ["tune", str(recipe), "--data.root", str(images), "--trials", "6", "--sampler", "random", "--output"]
    command = [sys.executable, "-c", COMMAND, *words]
    begin = time.monotonic()
    whole = kill_at_moments([*command, str(tmp_path / "whole")], tmp_path, 0)
    assert whole.returncode == 0, whole.output
    seconds = (time.monotonic() - begin) / 2
    histories: dict[Path, int] = {}

    def check() -> None:
        for path in (tmp_path / "killed").glob("trials/*/history.json"):
            changed = path.stat().st_mtime_ns
            assert histories.setdefault(path, changed) == changed, (
                f"trial {path.parent.name} was finished, and ran again"
            )

    end = kill_at_moments([*command, str(tmp_path / "killed")], tmp_path, 10, seed=2, seconds=seconds, check=check)
    assert end.returncode == 0, end.output
    assert end.kills
    check()
    finished = [row for row in rows_of(tmp_path / "killed") if row["state"] in ("complete", "pruned")]
    assert len(finished) == 6
    assert len({row["parameters"]["lr"] for row in finished}) == 6
    undisturbed = {row["parameters"]["lr"]: row for row in rows_of(tmp_path / "whole") if row["state"] == "complete"}
    same = [row for row in finished if row["state"] == "complete" and row["parameters"]["lr"] in undisturbed]
    assert same
    assert all(row["value"] == undisturbed[row["parameters"]["lr"]]["value"] for row in same)
