"""`covidcxr evaluate`: a report of predictions, of a run's folder or of a model on a data set."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.errors import ConfigError

if TYPE_CHECKING:
    from covidcxr.evaluation.report import Evaluation

__all__ = ["add_evaluate"]

_EXAMPLES = """examples:
  covidcxr evaluate predictions.csv --out report
  covidcxr evaluate ours.csv theirs.csv --validation val.csv --prevalence 0.05 --out report
  covidcxr evaluate runs/darkcovidnet --data.root DIR --out report
  covidcxr evaluate --model mini --data csv --data.root DIR --audit --out report"""


def add_evaluate(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    verb = verbs.add_parser(
        "evaluate",
        help="an honest report: one HTML page, a JSON of every number and a model card",
        description="Write report.html (one file, no network), report.json (every number) and MODEL_CARD.md from "
        "tables of predictions, from folders of runs, or by asking a model about the films of a data set. Several "
        "tables or folders are compared with the first. Any flag --data.KEY is a setting of the data set, as for "
        "`covidcxr fit`; with it, the report also shows films, for your eyes only.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("paths", nargs="*", metavar="PATH", help="predictions (CSV) or folders of `covidcxr recipes run`")
    verb.add_argument("--out", required=True, metavar="DIR", help="where the report goes")
    verb.add_argument("--name", metavar="TEXT", help="what the report calls the model")
    verb.add_argument("--validation", metavar="CSV", help="predictions of validation films: they choose the threshold")
    verb.add_argument("--positive", metavar="CLASS", help="the class looked for (COVID-19, or the second of two)")
    verb.add_argument(
        "--sensitivity", type=float, default=0.95, metavar="F", help="wanted on validation films (%(default)s)"
    )
    verb.add_argument("--prevalence", type=float, metavar="F", help="share of the sick where it is used: PPV and NPV")
    verb.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the patients (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")
    verb.add_argument("--json", action="store_true", help="print every number as JSON")
    verb.set_defaults(run=_run, takes_more=True)


def _run(options: argparse.Namespace) -> int:
    from covidcxr.datasets.console import collect_notes
    from covidcxr.evaluation.report import evaluate_rows, write_report
    from covidcxr.evaluation.rows import read_rows

    if not options.paths:
        raise ConfigError("Say what to evaluate: predictions (CSV), folders of runs, or --model with --data.")
    with collect_notes() as notes:
        rows = read_rows(options.paths[0])
        evaluation = evaluate_rows(
            rows,
            validation=None if options.validation is None else read_rows(options.validation),
            name=options.name or Path(options.paths[0]).stem,
            positive=options.positive,
            sensitivity=options.sensitivity,
            prevalence=options.prevalence,
            resamples=options.resamples,
            seed=options.seed,
        )
        paths = write_report(evaluation, options.out)
    _say(evaluation, {name: str(path) for name, path in paths.items()}, notes, options.json)
    return 0


def command_line() -> str:
    """Return the command as it was given, for the report."""
    return shlex.join(["covidcxr", *sys.argv[1:]])


def _say(evaluation: Evaluation, paths: dict[str, Any], notes: list[str], as_json: bool) -> None:
    from covidcxr.datasets.console import screen

    console = screen()
    if as_json:
        console.file.write(json.dumps(evaluation.to_dict()) + "\n")
        return
    console.print(evaluation.verdict.sentence, style="bold", soft_wrap=True)
    for name, value in evaluation.facts:
        console.print(f"  {name:<28} {value}", soft_wrap=True)
    for note in notes:
        console.print(f"Note: {note}", soft_wrap=True)
    console.print(f"Report: {paths['html']}\nNumbers: {paths['json']}\nModel card: {paths['card']}", soft_wrap=True)
