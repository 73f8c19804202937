"""What the command line and YAML files may say to recipes: everything is known, or an error."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY

from covidcxr.cli import main
from covidcxr.data.files import MASK_INDEX
from covidcxr.errors import ConfigError
from covidcxr.evaluation.predictions.table import read_folder
from covidcxr.evaluation.report.provenance import run_facts
from covidcxr.phantom import write_dataset
from covidcxr.recipes.sweep import run_recipe
from covidcxr.recipes.tune import tune
from covidcxr.training.parser import parse_words, read_settings
from covidcxr.training.recipe import Recipe

MASKS: dict[str, Any] = {
    "data": {"class_path": "csv"},
    "masks": {"model": "mini", "postprocess": ["remove_small_objects"], "min_lung_area": 0.15},
}
ONE = {key: value for key, value in TINY.items() if key != "compare"}
ENSEMBLE = {**TINY, "ensemble": {"vote": "soft"}}
SEARCH = {**ONE, "search": {"lr": {"key": "model.init_args.lr", "low": 0.001, "high": 0.1}}}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("images"), 18).parent


def write(path: Path, recipe: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


class TestUnknownFlags:
    @pytest.mark.parametrize(
        ("verb", "recipe", "more"),
        [
            (("recipes", "run"), MASKS, ()),
            (("recipes", "run"), ONE, ()),
            (("recipes", "run"), TINY, ()),
            (("recipes", "run"), TINY, ("--only", "slow")),
            (("recipes", "run"), ONE, ("--folds", "3")),
            (("recipes", "run"), ONE, ("--leave-one-source-out",)),
            (("recipes", "run"), ENSEMBLE, ()),
            (("recipes", "run"), {**ONE, "masks": MASKS["masks"]}, ()),
            (("tune",), SEARCH, ()),
        ],
    )
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("--bogus.flag", "7"), "bogus.flag"),
            (("--data.tabel", "x.csv"), "Did you mean 'table'"),
            (("7",), "7"),
        ],
    )
    def test_each_is_an_error_before_anything_is_done(
        self,
        tmp_path: Path,
        images: Path,
        capsys: Any,
        verb: tuple[str, ...],
        recipe: dict[str, Any],
        more: tuple[str, ...],
        flags: tuple[str, ...],
        message: str,
    ) -> None:
        path, out = write(tmp_path / "mine.yaml", recipe), tmp_path / "out"
        words = [*verb, path, "--data.root", str(images), *flags, "--output", str(out), *more]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert not list(tmp_path.rglob("*.png"))
        assert not list(tmp_path.rglob("model"))

    def test_flags_of_masks_are_known(self, tmp_path: Path, images: Path, capsys: Any) -> None:
        path, out = write(tmp_path / "mine.yaml", MASKS), tmp_path / "out"
        words = ["recipes", "run", path, "--data.root", str(images), "--output", str(out)]
        assert main([*words, "--masks.modle", "mini"]) == 2
        assert "Did you mean 'masks.model'" in capsys.readouterr().err
        assert main([*words, "--masks.model", "nowhere"]) == 2
        assert "'nowhere' is no folder" in capsys.readouterr().err
        assert main([*words, "--masks.min_lung_area", "0.25", "--data.views", "all"]) == 0
        assert str(out / "masks") in capsys.readouterr().out
        record = yaml.safe_load((out / "config.yaml").read_text())
        assert record["masks"] == {**MASKS["masks"], "min_lung_area": 0.25}
        assert record["data"]["init_args"]["views"] == "all"
        areas = json.loads((out / "masks" / MASK_INDEX).read_text())["areas"]
        again = ["recipes", "run", str(out / "config.yaml"), "--output", str(tmp_path / "again"), "--json"]
        assert main(again) == 0, "the record is what ran"
        assert json.loads(capsys.readouterr().out)["masks"]["small"].keys() == {
            name for name, area in areas.items() if area < 0.25
        }
        assert (tmp_path / "again" / "masks" / "small.csv").read_text() == (out / "masks" / "small.csv").read_text()

    @pytest.mark.parametrize(
        ("changes", "only", "message"),
        [
            ({"masks": None}, (), "has nothing to run"),
            ({"data": None}, (), "has nothing to run"),
            ({"trainer": {"max_epochs": 3}}, (), "no use for trainer"),
            ({"compare": {"lr": {"slow": {}}}}, (), "no use for compare"),
            ({"ensemble": {"vote": "soft"}}, (), "no use for ensemble"),
            ({}, ("slow",), "no use for --only slow"),
        ],
    )
    def test_a_recipe_without_a_model_says_what_it_cannot_use(
        self, tmp_path: Path, images: Path, changes: dict[str, Any], only: tuple[str, ...], message: str
    ) -> None:
        recipe = {key: value for key, value in {**MASKS, **changes}.items() if value is not None}
        path = write(tmp_path / "mine.yaml", recipe)
        with pytest.raises(ConfigError, match=message):
            run_recipe(Recipe.read(path), tmp_path / "out", ["--data.root", str(images)], only)
        assert not (tmp_path / "out").exists()

    def test_an_ensemble_that_is_not_made_is_read_too(self, tmp_path: Path, images: Path) -> None:
        path = write(tmp_path / "mine.yaml", {**TINY, "ensemble": {"vote": "sotf"}})
        with pytest.raises(ConfigError, match=r"Did you mean 'soft'"):
            run_recipe(Recipe.read(path), tmp_path / "out", ["--data.root", str(images)], ["slow"])


KEYS = [
    "bogus",
    "trainer.bogus",
    "model.bogus",
    "model.init_args.bogus",
    "model.init_args.model.bogus",
    "model.init_args.model.preprocess.bogus",
    "data.bogus",
    "data.init_args.bogus",
    "trainer.logger.bogus",
    "trainer.logger.init_args.bogus",
    "trainer.callbacks.0.bogus",
    "trainer.callbacks.0.init_args.bogus",
]


def config_with(key: str, value: object) -> dict[str, Any]:
    """The tiny config with a logger, a callback and another key."""
    config = copy.deepcopy(ONE)
    config["trainer"]["logger"] = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}
    config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": {}}]
    *parents, last = key.split(".")
    table: Any = config
    for parent in parents:
        table = table[int(parent) if parent.isdigit() else parent]
    table[last] = value
    return config


class TestUnknownKeys:
    @pytest.mark.parametrize("value", [{}, {"deep": {}}, None, 7], ids=str)
    @pytest.mark.parametrize("key", KEYS)
    def test_each_is_an_error_in_a_file(self, tmp_path: Path, images: Path, key: str, value: object) -> None:
        path = write(tmp_path / "mine.yaml", config_with(key, value))
        with pytest.raises(ConfigError, match="bogus"):
            parse_words(["--config", path, "--data.root", str(images)])
        with pytest.raises(ConfigError, match="bogus"):
            run_recipe(Recipe.read(path), tmp_path / "out", ["--data.root", str(images)])

    @pytest.mark.parametrize("key", [key for key in KEYS if key != "bogus"])
    def test_each_is_an_error_in_a_variant_and_in_a_search(self, tmp_path: Path, images: Path, key: str) -> None:
        key = key.partition(".0.")[0]
        if key == "trainer.callbacks":
            key += ".bogus"
        changes = {key: {}}
        compared = write(
            tmp_path / "mine.yaml", {**config_with("seed_everything", 0), "compare": {"it": {"a": changes}}}
        )
        with pytest.raises(ConfigError, match=r"bogus|callbacks"):
            run_recipe(Recipe.read(compared), tmp_path / "out", ["--data.root", str(images)])
        search = {"it": {"values": {"a": changes, "b": {}}}}
        searched = write(tmp_path / "mine.yaml", {**config_with("seed_everything", 0), "search": search})
        with pytest.raises(ConfigError, match=r"bogus|callbacks"):
            tune(Recipe.read(searched), tmp_path / "out", ["--data.root", str(images)], trials=1)

    @pytest.mark.parametrize("key", KEYS)
    def test_each_is_an_error_in_plain_data(self, images: Path, key: str) -> None:
        config = config_with(key, {})
        config["model"]["class_path"], config["data"]["class_path"] = "ClassificationTask", "CSVDataModule"
        config["data"]["init_args"]["root"] = str(images)
        config.pop("about")
        before = copy.deepcopy(config)
        with pytest.raises(ConfigError, match="bogus"):
            read_settings(config)
        assert config == before

    @pytest.mark.parametrize(
        "flag",
        [
            ("--trainer", "{bogus: {}}"),
            ("--model.model", "{bogus: {}}"),
            ("--model.model.preprocess={bogus: {}}",),
            ("--model.init_args", "{bogus: {}}"),
            ("--model.bogus", "{}"),
            ("--trainer.logger", "{class_path: CSVLogger, init_args: {save_dir: x, bogus: {}}}"),
            ("--trainer.callbacks+", "{class_path: ModelCheckpoint, init_args: {bogus: {}}}"),
        ],
    )
    def test_each_is_an_error_in_the_table_of_a_flag(self, tmp_path: Path, images: Path, flag: tuple[str, ...]) -> None:
        path = write(tmp_path / "mine.yaml", ONE)
        with pytest.raises(ConfigError, match="bogus"):
            parse_words(["--config", path, "--data.root", str(images), *flag])

    def test_empty_tables_that_are_known_are_taken(self, tmp_path: Path, images: Path) -> None:
        config = config_with("model.init_args.optimizer_args", {})
        config["data"]["init_args"]["label_map"] = {}
        config["trainer"]["logger"]["init_args"]["prefix"] = ""
        path = write(tmp_path / "mine.yaml", config)
        flags = ("--trainer.callbacks+", "{class_path: EarlyStopping, init_args: {monitor: val/loss}}")
        settings = parse_words(["--config", path, "--data.root", str(images), *flags])
        assert [entry["class_path"].rpartition(".")[2] for entry in settings["trainer"]["callbacks"]] == [
            "ModelCheckpoint",
            "EarlyStopping",
        ]

    def test_the_name_of_a_recipe_s_own_key_is_no_flag(self, capsys: Any) -> None:
        assert main(["fit", "--about", "x"]) == 2
        assert "Did you mean" not in capsys.readouterr().err


def test_the_record_of_a_run_trains_the_same_bits(tmp_path: Path, images: Path) -> None:
    path, run, again = write(tmp_path / "mine.yaml", ONE), tmp_path / "run", tmp_path / "again"
    words = ["--data.root", str(images), "--model.lr", "0.02", "--data.batch_size", "5", "--trainer.max_epochs", "1"]
    run_recipe(Recipe.read(path), run, words)
    before = (run / "config.yaml").read_bytes()
    record = yaml.safe_load(before)
    assert record["model"]["init_args"]["lr"] == 0.02
    assert record["data"]["init_args"]["batch_size"] == 5
    place = ["--output", str(again), "--trainer.default_root_dir", str(again), "--trainer.logger", "false"]
    assert main(["fit", "--config", str(run / "config.yaml"), *place]) == 0
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (run / "model" / weights).read_bytes()
    assert (run / "config.yaml").read_bytes() == before


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the config.yaml of every folder of a sweep, by its path."""
    return {
        path.parent.relative_to(folder).as_posix(): yaml.safe_load(path.read_text())
        for path in folder.rglob("config.yaml")
    }


WORDS = ["--model.lr", "0.02", "--data.batch_size", "5", "--trainer.max_epochs", "1"]


def assert_as_overridden(record: dict[str, Any]) -> None:
    assert record["data"]["init_args"]["batch_size"] == 5
    assert record["model"]["init_args"]["lr"] == 0.02
    assert record["trainer"]["max_epochs"] == 1


def test_the_record_of_every_fold_and_of_their_pool_holds_the_overrides(tmp_path: Path, images: Path) -> None:
    words = ["--data.root", str(images), *WORDS]
    run_recipe(Recipe.read(write(tmp_path / "mine.yaml", ONE)), tmp_path / "out", words, folds=3)
    found = records(tmp_path / "out")
    assert set(found) == {".", "fold-0", "fold-1", "fold-2"}
    for record in found.values():
        assert_as_overridden(record)
    for fold in ("fold-0", "fold-1", "fold-2"):
        saved = json.loads((tmp_path / "out" / fold / "model" / "config.json").read_text())
        assert saved["preprocess"]["image_size"] == [32, 32]
        epochs = json.loads((tmp_path / "out" / fold / "model" / "history.json").read_text())
        assert len(epochs) == 1, "what the record says is what ran"


def test_the_records_of_a_sweep_and_its_ensemble_hold_the_overrides(tmp_path: Path, images: Path) -> None:
    recipe = {
        **ONE,
        "compare": {"loss": {"plain": {}, "focal": {"model.init_args.loss": "focal"}}},
        "ensemble": {
            "vote": "soft",
            "boosting": {"network_args": {"backbone": "timm:test_resnet", "stages": 2, "depth": 1}},
        },
    }
    words = ["--data.root", str(images), *WORDS]
    run_recipe(Recipe.read(write(tmp_path / "mine.yaml", recipe)), tmp_path / "out", words)
    found = records(tmp_path / "out")
    assert set(found) == {"plain", "focal", "boosting", "ensemble"}
    assert_as_overridden(found["plain"])
    assert_as_overridden(found["focal"])
    assert found["focal"]["model"]["init_args"]["loss"] == "focal"
    for step in ("boosting", "ensemble"):
        assert found[step]["data"]["init_args"]["batch_size"] == 5
    assert found["boosting"]["boosting"]["network_args"]["depth"] == 1
    assert found["ensemble"]["ensemble"] == {"vote": "soft", "members": ["plain", "focal", "boosting"]}
    (run,) = read_folder(tmp_path / "out" / "ensemble")
    facts = run_facts(run)
    assert json.loads(facts["model"])["ensemble"]["members"] == ["plain", "focal", "boosting"]
    assert json.loads(facts["trained on"])["init_args"]["batch_size"] == 5


def test_the_best_trial_is_written_with_the_overrides(tmp_path: Path, images: Path) -> None:
    pytest.importorskip("optuna")
    recipe = Recipe.read(write(tmp_path / "mine.yaml", SEARCH))
    words = ["--data.root", str(images), "--data.batch_size", "5", "--trainer.max_epochs", "1"]
    findings = tune(recipe, tmp_path / "out", words, trials=1)
    assert findings.best is not None
    best = Recipe.read(str(tmp_path / "out" / "best.yaml")).config
    trial = records(tmp_path / "out")["trials/0000"]
    for record in (best, trial):
        assert record["data"]["init_args"]["batch_size"] == 5
        assert record["trainer"]["max_epochs"] == 1
        assert record["model"]["init_args"]["lr"] == findings.best["parameters"]["lr"]
    assert "root" not in best["data"]["init_args"], "the folder of the data is the reader's own"


def test_a_model_card_shows_what_ran(tmp_path: Path, images: Path) -> None:
    run_recipe(Recipe.read(write(tmp_path / "mine.yaml", ONE)), tmp_path / "run", ["--data.root", str(images), *WORDS])
    out = tmp_path / "report"
    assert (
        main(["evaluate", str(tmp_path / "run"), "--positive", "covid19", "--out", str(out), "--resamples", "100"]) == 0
    )
    (card,) = out.glob("*.md")
    text = card.read_text()
    assert '"lr": 0.02' in text
    assert '"batch_size": 5' in text
    assert "[32, 32]" in text
