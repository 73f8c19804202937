"""The command line: `covidcxr VERB`. Each verb imports its code when it runs, so that `--help` is fast."""

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
  covidcxr demo                                         drawn images through the whole pipeline
  covidcxr predict images/ --model mini --out answers   your images: JSON lines, masks, overlays, contact sheet
  covidcxr fit --config mini-lungs --data.root DIR      train a recipe on your data
  covidcxr fit --help                                   all settings of a training
  covidcxr audit --data darkcovidnet --data.root DIR    shortcuts and leaks of a data set
  covidcxr evaluate predictions.csv --out report        a report of predictions, a run or a pipeline
  covidcxr serve                                        a page for radiologists, and a REST service
  covidcxr datasets list                                the supported data sets, and where to get them
  covidcxr doctor                                       check your installation

For research only; not for clinical use."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Words after `covidcxr`; None = those of this process.

    Returns:
        0 = no error, 1 = some images could not be read or a check failed, 2 = wrong use or an error.
    """
    # Threads of GNU OpenMP spin at barriers: on a busy machine two were up to 70 times slower than one.
    # The variable is read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in VERBS:  # parsed by covidcxr.training.parser
        return _guarded(lambda: train(words))
    options, more = _parser().parse_known_args(words)
    if more and not getattr(options, "takes_more", False):
        _parser().error(f"unrecognized arguments: {' '.join(more)}")
    options.more = more  # flags of `covidcxr fit`
    return _guarded(lambda: options.run(options))


def _guarded(run: Callable[[], int]) -> int:
    """Print an error as one line on standard error."""
    try:
        return run()
    except CovidCXRError as error:
        print(f"covidcxr: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be created, a full disk
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
        verbs.add_parser(verb, help=purpose, add_help=False)  # listed in the help; main() runs them
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
