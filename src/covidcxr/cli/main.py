"""The command line: `covidcxr VERB`. The verbs are imported when they are called, so that `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from covidcxr import __version__
from covidcxr.cli.audit import add_audit
from covidcxr.cli.datasets import add_datasets
from covidcxr.cli.doctor import add_doctor
from covidcxr.cli.evaluate import add_evaluate
from covidcxr.cli.explain import add_explain
from covidcxr.cli.fit import VERBS, train
from covidcxr.cli.predict import add_demo, add_predict
from covidcxr.cli.recipes import add_recipes
from covidcxr.cli.serve import add_feedback, add_serve
from covidcxr.cli.tune import add_tune
from covidcxr.errors import CovidCXRError

__all__ = ["main"]

_EPILOG = """examples:
  covidcxr demo                                        drawn images through the whole pipeline
  covidcxr predict films/ --model mini --out answers   your images: JSON lines, masks, overlays, contact sheet
  covidcxr fit --config mini-lungs --data.root DIR     a recipe on your data
  covidcxr fit --help                                  all settings of a training
  covidcxr audit --data darkcovidnet --data.root DIR   what these data give away without a lung being looked at
  covidcxr evaluate predictions.csv --out report       an honest report of predictions, a run or a pipeline
  covidcxr serve                                       a page for radiologists, and REST
  covidcxr datasets list                               the data sets that it reads, and where to get them
  covidcxr doctor                                      is this installation sound?

For research only; not for clinical use."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: What follows `covidcxr`; by default that of this process.

    Returns:
        0 = all went well, 1 = some images could not be answered or a check failed, 2 = wrong use or an error.
    """
    # Threads of GNU OpenMP spin at barriers: on a busy machine two were measured up to 70 times slower than one. It is
    # read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in VERBS:  # they have a parser of their own
        return _guarded(lambda: train(words))
    options, more = _parser().parse_known_args(words)
    if more and not getattr(options, "takes_more", False):
        _parser().error(f"unrecognized arguments: {' '.join(more)}")
    options.more = more  # flags of `covidcxr fit`
    return _guarded(lambda: options.run(options))


def _guarded(run: Callable[[], int]) -> int:
    """Turn our own errors into one clear line."""
    try:
        return run()
    except CovidCXRError as error:
        print(f"covidcxr: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be made, a full disk
        print(f"covidcxr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("covidcxr: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="covidcxr",
        description="Honest deep learning on chest X-rays.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"covidcxr {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    add_predict(verbs)
    add_demo(verbs)
    for verb, purpose in VERBS.items():
        verbs.add_parser(verb, help=purpose, add_help=False)  # main() hands these on before
    add_evaluate(verbs)
    add_audit(verbs)
    add_explain(verbs)
    add_recipes(verbs)
    add_tune(verbs)
    add_serve(verbs)
    add_feedback(verbs)
    add_datasets(verbs)
    add_doctor(verbs)
    return parser
