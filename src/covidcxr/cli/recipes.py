"""`covidcxr recipes list | show | copy | run`."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from covidcxr.cli.fit import READ_SAFELY, add_safe
from covidcxr.errors import ConfigError
from covidcxr.training.changes import Changes, require_search
from covidcxr.training.recipe import Recipe, allow_registered_only, recipe_file, recipe_paths
from covidcxr.utils.plain import json_text

__all__ = ["add_recipes", "add_tune"]

_EXAMPLES = """examples:
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
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = recipes.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = inner.add_parser("list", help="name every recipe and what it trains")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)
    show = inner.add_parser("show", help="print the file of a recipe")
    show.add_argument("name", help="a recipe's name, or a YAML file")
    show.set_defaults(run=_show)
    copy = inner.add_parser("copy", help="copy a recipe, to change it")
    copy.add_argument("name", help="a recipe's name")
    copy.add_argument("target", nargs="?", help="where to (NAME.yaml)")
    copy.set_defaults(run=_copy)
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
    go.set_defaults(run=_run, takes_more=True)


def _list(options: argparse.Namespace) -> int:
    recipes = [Recipe.read(name) for name in recipe_paths()]
    if options.json:
        entries = [{"name": recipe.name, "about": recipe.about, "runs": len(list(recipe.runs()))} for recipe in recipes]
        _print(json_text(entries, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "what it trains", "runs")
    table.columns[0].no_wrap = True
    for recipe in recipes:
        table.add_row(recipe.name, recipe.about, str(recipe.count))
    Console().print(table)
    return 0


def _show(options: argparse.Namespace) -> int:
    Recipe.read(options.name)  # raises for an unknown name or a wrong key
    _print(recipe_file(options.name).read_text(encoding="utf-8").rstrip())
    return 0


def _copy(options: argparse.Namespace) -> int:
    Recipe.read(options.name)
    target = Path(options.target or f"{options.name}.yaml")
    if target.exists():
        raise ConfigError(f"{target} exists already: remove it, or name another file.")
    shutil.copyfile(recipe_file(options.name), target)
    _print(f"Copied to {target}. Run it: covidcxr recipes run {target} --data.root DIR")
    return 0


def _run(options: argparse.Namespace) -> int:
    from covidcxr.data.files import MASK_INDEX
    from covidcxr.recipes.sweep import run_recipe

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
        _print(json_text(sweep.to_dict(), indent=2))
    elif recipe.compare:
        sweep.print_table()
    elif sweep.runs:
        _print(f"Model, scores and pictures: {folder}")
    else:
        _print(f"Masks, their areas ({MASK_INDEX}) and small.csv: {folder / 'masks'}")
    return 1 if sweep.failed else 0


def _print(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True, markup=False).print(text)


_EPILOG = """examples:
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
        epilog=_EPILOG,
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
        from covidcxr.utils.console import print_line

        print_line(json_text(findings.to_dict(), indent=2))
    else:
        findings.print_table()
    return 0 if findings.best else 1
