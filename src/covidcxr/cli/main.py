"""The command line: `covidcxr VERB`. Each verb imports its code when it runs, so that `--help` is fast."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from covidcxr import __version__
from covidcxr.cli.assemble import add_assemble
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
from covidcxr.errors import CovidCXRError, NameClashError, UnknownNameError
from covidcxr.utils.plain import user_path

__all__ = ["main"]

_HOME = re.compile(r"^(--[\w.-]+=)?(~[/\\].*)$")
"""A path below the home folder, also in `--data.root=~/images`, where shells leave it to us."""

_EPILOG = """examples:
  covidcxr demo                                         drawn images through the whole pipeline
  covidcxr predict images/ --model mini --out answers   your images: JSON lines, masks, overlays, contact sheet
  covidcxr fit --config mini-lungs --data.root DIR      train a recipe on your data
  covidcxr fit --help                                   all settings of a training
  covidcxr assemble --classifier MODEL --lungs mini ... your models as a pipeline
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
    words = [_HOME.sub(_at_home, word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if words and words[0] in VERBS:  # parsed by covidcxr.training.parser
        return _guarded(lambda: train(words))
    return _guarded(lambda: _run_verb(words))


def _at_home(match: re.Match[str]) -> str:
    return f"{match[1] or ''}{user_path(match[2])}"


def _run_verb(words: list[str]) -> int:
    parser = _parser(words)
    options, more = parser.parse_known_args(words)
    if more and not getattr(options, "takes_more", False):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    options.more = more  # flags of `covidcxr fit`
    code: int = options.run(options)
    return code


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


def _parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
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
    add_assemble(verbs)
    add_evaluate(verbs)
    add_audit(verbs)
    add_explain(verbs)
    add_recipes(verbs)
    add_tune(verbs)
    add_serve(verbs)
    add_feedback(verbs)
    add_datasets(verbs)
    add_doctor(verbs)
    if not words or words[0] not in verbs.choices:  # --help, or a verb of another package
        _add_installed(verbs, words[0] if words and not words[0].startswith("-") else None)
    return parser


def _add_installed(verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str | None) -> None:
    """Add verbs of other packages: entry points of the group `covidcxr.verbs`, functions like those called above.

    Args:
        verbs: Where they are added.
        name: The verb to run; None = all of them, for the list of verbs.

    Raises:
        NameClashError: If one has the name of a verb that is there already.
        UnknownNameError: If the verb to run cannot be loaded.
    """
    for point in entry_points(group="covidcxr.verbs"):
        if name not in (None, point.name):
            continue
        package = point.dist.name if point.dist else "an installed package"
        if point.name in verbs.choices:
            raise NameClashError(
                f"The verb {point.name!r} of {package} ({point.value}) is taken. Rename it there, or uninstall "
                f"{package}."
            )
        try:
            point.load()(verbs)
        except (ImportError, AttributeError) as error:
            fault = f"{point.value} of {package} cannot be loaded: {error}"
            if name is not None:
                raise UnknownNameError(f"The verb {name!r}: {fault}. Repair or uninstall that package.") from error
            verbs.add_parser(point.name, help=fault)
