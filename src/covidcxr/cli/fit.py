"""The verbs that train: fit, validate, test, recipes and tune."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from covidcxr.errors import ConfigError
from covidcxr.training.changes import Changes, require_search
from covidcxr.training.recipe import Recipe, allow_registered_only, recipe_file, recipe_paths
from covidcxr.utils.plain import json_text

__all__ = ["READ_SAFELY", "SAFE", "VERBS", "add_recipes", "add_safe", "add_training", "add_tune", "train"]

SAFE = "--safe"
READ_SAFELY = ("--weights_only", "true")
"""Flags that a checkpoint which a config names is read without pickled code."""

VERBS = {
    "fit": "train a model (every argument of Trainer, task and data module is a flag and a YAML key)",
    "validate": "score a model on the validation images",
    "test": "score a model on the test images, with patient-clustered intervals",
}
"""Verbs, each with its help in one line."""


_COMMON = {
    "--config": "a recipe (see covidcxr recipes list) or a YAML file; flags change its settings",
    "--data": "the data set: a name of covidcxr datasets list",
    "--data.root": "its folder; --data.KEY sets anything else of it (covidcxr datasets show NAME lists its own keys)",
    "--out": "folder for the trained model, or for the scores (runs/VERB-1, -2, ...)",
    "--model": "the task: segmentation, classification or multitask",
    "--model.model.network": "the network, as timm:resnet50 or smp:fpn",
    "--model.init_from": "a saved model to start from, or to score",
    "--model.lr": "learning rate",
    "--data.batch_size": "images in a batch",
    "--data.num_workers": "processes that read images",
    "--trainer.max_epochs": "how often every image is trained on",
    "--trainer.accelerator": "auto, cpu, gpu or mps",
    "--trainer.devices": "how many devices, or which",
    "--trainer.precision": "32-true, bf16-mixed or 16-mixed",
    "--seed_everything": "seed of everything random (0)",
    "--ckpt_path": "a checkpoint to resume from, or to score; last = this training's own in --out, if it was begun",
}
"""The settings that people change."""
_CHOSEN = "COVIDCXR_OUTPUT"
"""Variable of the environment by which the processes of one training share a folder."""
_EXAMPLES = """examples:
  covidcxr fit --config mini-classifier --data.root DIR --out my-model
  covidcxr fit --config my-recipe.yaml --trainer.max_epochs 50 --data.batch_size 64
  covidcxr test --config mini-classifier --data.root DIR --model.init_from my-model --out scores
  covidcxr fit --model.help ClassificationTask        every setting of a task; --data.help NAME: of a data set"""


def add_training(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs that train and score, for help and completion; `train` parses and runs them.

    Args:
        verbs: Where the verbs are added.
    """
    for verb, purpose in VERBS.items():
        parser = verbs.add_parser(
            verb,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}. These are the settings that people change; --help-all "
            "lists all, among them every one of Lightning's Trainer. A config is code: see --safe.",
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for flag, what in _COMMON.items():
            names = (flag, "--output") if flag == "--out" else ("-c", flag) if flag == "--config" else (flag,)
            parser.add_argument(*names, metavar="VALUE", help=what)
        parser.add_argument("--help-all", action="store_true", help="list every setting; takes some seconds")
        add_safe(parser)


def add_safe(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--safe` to a verb that reads configs; the verb calls `allow_registered_only` when it is set.

    Args:
        parser: Parser of the verb.
    """
    parser.add_argument(
        SAFE,
        action="store_true",
        help="import nothing that a config names by a dotted path, only what is registered: a config is code, so give "
        "this for one that you have not read",
    )


def train(words: Sequence[str]) -> int:
    """Run one of the verbs.

    Args:
        words: The verb and its flags.

    Returns:
        The exit code, 0; 2 where another process has ended, and the one that started this one says so.

    Raises:
        CovidCXRError: If a setting is wrong, or another process of the training has ended.
    """
    from covidcxr import training
    from covidcxr.errors import ProcessLostError
    from covidcxr.training.parser import Verb, parse_words
    from covidcxr.training.recipe import allow_registered_only
    from covidcxr.utils.console import print_line

    parent = os.getppid()
    verb: Verb = next(name for name in get_args(Verb) if name == words[0])
    flags = ["--help" if word == "--help-all" else _as_key(word) for word in words[1:]]
    if SAFE in flags:
        allow_registered_only()
        flags = [*(flag for flag in flags if flag != SAFE), *READ_SAFELY]
    config = parse_words(flags, verb)
    if config["output"] is None and config["ckpt_path"] != "last":
        config["output"] = _default_output(verb)
    if verb != "fit":
        (training.validate if verb == "validate" else training.test)(config, record=True)
        return 0
    try:
        training.fit(config, record=True)
    except ProcessLostError:
        if os.environ.get("LOCAL_RANK", "0") != "0" and _is_alive(parent):
            return 2  # who started this process says it
        raise
    print_line(f"Model: {config['output']}")
    return 0


def _is_alive(parent: int) -> bool:
    """Tell whether the process that started this one goes on; one that is killed is lost a moment before it is gone."""
    until = time.monotonic() + 0.25
    while os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.01)
    return os.getppid() == parent


def _as_key(word: str) -> str:
    """Return the flag `--out` as the key of configs that it sets."""
    return word.replace("--out", "--output", 1) if word == "--out" or word.startswith("--out=") else word


def _default_output(verb: str) -> str:
    """Return a new folder; a process that another one started, which has chosen it, gets the same."""
    from covidcxr.io.folders import next_folder

    if "LOCAL_RANK" not in os.environ or _CHOSEN not in os.environ:
        os.environ[_CHOSEN] = str(next_folder(verb))  # Lightning starts the other processes with this environment
    return os.environ[_CHOSEN]


_RECIPE_EXAMPLES = """examples:
  covidcxr recipes list
  covidcxr recipes show loan2022-lungs
  covidcxr recipes copy loan2022-lungs my-lungs.yaml
  covidcxr recipes run loan2022-lungs --data.root DIR
  covidcxr recipes run my-lungs.yaml --data.root DIR --out runs/mine --trainer.max_epochs 5
  covidcxr recipes run mini-classifier --data.root DIR --folds 5 --out runs/folds"""


def add_recipes(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its own verbs to the command line.

    Args:
        verbs: Subparsers of `covidcxr`.
    """
    recipes = verbs.add_parser(
        "recipes",
        help="published systems as configuration: list, show, copy, run",
        epilog=_RECIPE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = recipes.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = inner.add_parser("list", help="name every recipe and what it trains")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list_recipes)
    show = inner.add_parser("show", help="print the file of a recipe")
    show.add_argument("name", help="a recipe's name, or a YAML file")
    show.set_defaults(run=_show_recipe)
    copy = inner.add_parser("copy", help="copy a recipe, to change it")
    copy.add_argument("name", help="a recipe's name")
    copy.add_argument("target", nargs="?", help="where to (NAME.yaml)")
    copy.set_defaults(run=_copy_recipe)
    go = inner.add_parser(
        "run",
        help="fit and test; compared runs end in a table and a plot; finished runs are not repeated",
        description="All runs are checked before the first is trained. The same command resumes an interrupted one. "
        "All other flags are those of `covidcxr fit`, and change every run. A recipe is code: it may name any class, "
        "which is imported.",
        epilog="example: covidcxr recipes run loan2022-lungs --data.root DIR --trainer.max_epochs 5",
    )
    go.add_argument("name", help="a recipe's name, or a YAML file")
    go.add_argument(
        "--out",
        "--output",
        dest="output",
        metavar="DIR",
        help="output folder (runs/NAME, runs/NAME-folds, runs/NAME-sources)",
    )
    go.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="run only these variants")
    go.add_argument("--folds", type=int, metavar="K", help="cross-validate in K folds of patients")
    go.add_argument(
        "--leave-one-source-out",
        action="store_true",
        help="train without each source in turn and test on it: the scores to expect in a new hospital",
    )
    go.add_argument("--json", action="store_true", help="print the scores as JSON")
    add_safe(go)
    go.set_defaults(run=_run_recipe, takes_more=True)


def _list_recipes(options: argparse.Namespace) -> int:
    from covidcxr.utils.console import print_line

    recipes = [Recipe.read(name) for name in recipe_paths()]
    if options.json:
        entries = [{"name": recipe.name, "about": recipe.about, "runs": len(list(recipe.runs()))} for recipe in recipes]
        print_line(json_text(entries, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "what it trains", "runs")
    table.columns[0].no_wrap = True
    for recipe in recipes:
        table.add_row(recipe.name, recipe.about, str(recipe.count))
    Console().print(table)
    return 0


def _show_recipe(options: argparse.Namespace) -> int:
    from covidcxr.utils.console import print_line

    Recipe.read(options.name)  # raises for an unknown name or a wrong key
    print_line(recipe_file(options.name).read_text(encoding="utf-8").rstrip())
    return 0


def _copy_recipe(options: argparse.Namespace) -> int:
    from covidcxr.utils.console import print_line

    Recipe.read(options.name)
    target = Path(options.target or f"{options.name}.yaml")
    if target.exists():
        raise ConfigError(f"{target} exists already: remove it, or name another file.")
    shutil.copyfile(recipe_file(options.name), target)
    print_line(f"Copied to {target}. Run it: covidcxr recipes run {target} --data.root DIR")
    return 0


def _run_recipe(options: argparse.Namespace) -> int:
    from covidcxr.data.files import MASK_INDEX
    from covidcxr.recipes.sweep import run_recipe
    from covidcxr.utils.console import print_line

    if options.safe:
        allow_registered_only()
    recipe = Recipe.read(options.name)
    part = "-folds" if options.folds else "-sources" if options.leave_one_source_out else ""
    folder = Path(options.output or Path("runs") / f"{Path(options.name).stem}{part}")
    # With --json standard output holds nothing but JSON.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        sweep = run_recipe(
            recipe,
            folder,
            Changes.of([*options.more, *(READ_SAFELY if options.safe and "model" in recipe.config else ())]),
            options.only,
            folds=options.folds,
            leave_one_source_out=options.leave_one_source_out,
        )
    if options.json:
        print_line(json_text(sweep.to_dict(), indent=2))
    elif recipe.compare:
        sweep.print_table()
    elif sweep.runs:
        print_line(f"Model, scores and pictures: {folder}")
    else:
        print_line(f"Masks, their areas ({MASK_INDEX}) and small.csv: {folder / 'masks'}")
    return 1 if sweep.failed else 0


_TUNE_EXAMPLES = """examples:
  covidcxr tune wali2021-next --data.root DIR
  covidcxr tune my-recipe.yaml --data.root DIR --trials 50 --sampler random --out runs/mine
  covidcxr tune my-recipe.yaml --data.root DIR --storage postgresql+psycopg://USER@HOST/STUDIES"""


def add_tune(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line.

    Args:
        verbs: Subparsers of `covidcxr`.
    """
    tune = verbs.add_parser(
        "tune",
        help="search the settings under `search` of a recipe; the best trial becomes a recipe",
        description="Search the settings under `search` of a recipe by the score of the validation images; test images "
        "are not used. The same command in several terminals shares the trials between the processes; after a kill it "
        "resumes the search. All other flags are those of `covidcxr fit`, and change every trial.",
        epilog=_TUNE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tune.add_argument("name", metavar="RECIPE", help="a recipe's name, or a YAML file, with a `search`")
    tune.add_argument(
        "--trials", type=int, default=20, metavar="N", help="number of finished trials, of all processes (%(default)s)"
    )
    tune.add_argument(
        "--sampler", choices=("tpe", "random"), default="tpe", help="tpe learns from trials (%(default)s)"
    )
    tune.add_argument(
        "--pruner",
        choices=("median", "none"),
        default="median",
        help="median ends trials below the median (%(default)s)",
    )
    tune.add_argument("--storage", metavar="URL", help="database of the study (SQLite in the output folder)")
    tune.add_argument("--out", "--output", dest="output", metavar="DIR", help="output folder (runs/NAME-search)")
    tune.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the sampler (%(default)s)")
    tune.add_argument("--json", action="store_true", help="print the trials as JSON")
    add_safe(tune)
    tune.set_defaults(run=_tune, takes_more=True)


def _tune(options: argparse.Namespace) -> int:
    recipe = Recipe.read(options.name)
    require_search(recipe.search, f"the recipe {recipe.name}")  # before anything large is loaded
    from covidcxr.recipes.tune import tune
    from covidcxr.utils.console import print_line

    if options.safe:
        allow_registered_only()
    # With --json standard output holds nothing but JSON.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        findings = tune(
            recipe,
            Path(options.output or Path("runs") / f"{recipe.name}-search"),
            Changes.of([*options.more, *(READ_SAFELY if options.safe else ())]),
            trials=options.trials,
            sampler=options.sampler,
            pruner=options.pruner,
            storage=options.storage,
            seed=options.seed,
        )
    if options.json:
        print_line(json_text(findings.to_dict(), indent=2))
    else:
        findings.print_table()
    return 0 if findings.best else 1
