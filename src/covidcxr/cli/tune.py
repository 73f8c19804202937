"""`covidcxr tune`: prints a line for each trial and a table, or JSON."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from covidcxr.cli.fit import READ_SAFELY, add_safe
from covidcxr.training.recipe import Recipe, allow_registered_only
from covidcxr.training.search_space import require_search
from covidcxr.utils.plain import json_text

__all__ = ["add_tune"]

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
            [*options.more, *(READ_SAFELY if options.safe else ())],
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
