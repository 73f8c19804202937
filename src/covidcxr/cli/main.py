"""The command line: `covidcxr VERB`. Each verb imports its code when it runs, so that `--help` is fast."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, NoReturn

from covidcxr import __version__
from covidcxr.cli.assemble import add_assemble, add_export
from covidcxr.cli.audit import add_audit, add_label_errors, add_plan
from covidcxr.cli.benchmark import add_benchmark
from covidcxr.cli.datasets import add_datasets
from covidcxr.cli.doctor import add_doctor
from covidcxr.cli.evaluate import add_evaluate
from covidcxr.cli.fit import VERBS, add_recipes, add_training, add_tune, train
from covidcxr.cli.predict import add_demo, add_explain, add_predict
from covidcxr.cli.serve import add_feedback, add_serve
from covidcxr.errors import CovidCXRError, NameClashError, UnknownNameError, did_you_mean
from covidcxr.utils.plain import user_path

__all__ = ["main", "add_completion"]

_HOME = re.compile(r"^(--[\w.-]+=)?(~[/\\].*)$")
"""A path below the home folder, also in `--data.root=~/images`, where shells leave it to us."""

_EPILOG = """examples:
  covidcxr demo                                         drawn images through the whole pipeline
  covidcxr predict images/ --model mini --out answers   your images: JSON lines, masks, overlays, contact sheet
  covidcxr fit --config mini-lungs --data.root DIR      train a recipe on your data
  covidcxr fit --help                                   the settings that people change; --help-all: all
  covidcxr assemble --classifier MODEL --lungs mini ... your models as a pipeline
  covidcxr audit --data darkcovidnet --data.root DIR    shortcuts and leaks of a data set
  covidcxr label-errors runs/folds --data.root DIR      labels that are likely to be wrong
  covidcxr evaluate predictions.csv --out report        a report of predictions, a run or a pipeline
  covidcxr plan --sensitivity 0.9 --within 0.05 ...     how many patients a test needs
  covidcxr serve                                        a page for radiologists, and a REST service
  covidcxr datasets list                                the supported data sets, and where to get them
  covidcxr doctor                                       check your installation

Every verb takes --quiet (results and errors only) and --verbose (the traceback of an error, and log messages).
--data.root DIR and --data.KEY VALUE are settings of a data set, in every verb that reads one.

For research only; not for clinical use."""

_ONE_DATA_SET = ("check", "stats", "quality", "drift", "masks", "prepare")
"""Verbs of `covidcxr datasets` that open a data set."""
_CHOICE = re.compile(r"argument (\S+): invalid choice: ['\"]?(.*?)['\"]? \(choose from")


class _Parser(argparse.ArgumentParser):
    """Says the nearest verb, flag or choice, as other errors of unknown names do."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.set_defaults(parser=self)  # the parser of the innermost verb is the one that stays

    def error(self, message: str) -> NoReturn:
        """End the process with the message in one line."""
        if match := _CHOICE.match(message):
            for action in self._actions:
                if action.choices and match[1] in (action.metavar, action.dest, "/".join(action.option_strings)):
                    kind = "verb" if match[1] == "VERB" else f"choice of {match[1]}"
                    message = f"There is no {kind} {match[2]!r}. {did_you_mean(match[2], map(str, action.choices))}"
        self.exit(2, f"{self.prog}: {message}\nHelp: {self.prog} --help\n")

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """End the process because of flags that there are not."""
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), "")
        known = [name for name in self._option_string_actions if name.startswith("--")]
        nearest = f"There is no flag {flag}. {did_you_mean(flag, known)}"
        self.error(nearest if flag else f"unrecognized arguments: {' '.join(words)}")


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
    words, quiet, verbose = _take_loudness(words)
    words = list(_spell_data(words))
    trains = words[:1] and words[0] in VERBS and not {"-h", "--help"}.intersection(words)
    with _loudness(quiet, verbose):
        if trains:  # parsed by covidcxr.training.parser
            return _guarded(lambda: train(words), verbose)
        return _guarded(lambda: _run_verb(words), verbose)


def _at_home(match: re.Match[str]) -> str:
    return f"{match[1] or ''}{user_path(match[2])}"


def _take_loudness(words: Sequence[str]) -> tuple[list[str], bool, bool]:
    """Take `--quiet` and `--verbose` out of the words; `--verbose VALUE` is a setting of validate and test."""
    kept: list[str] = []
    loud: set[str] = set()
    for word, following in zip(words, [*words, ""][1:], strict=True):
        has_value = following.lower() in ("true", "false", "null")
        if word in ("-q", "--quiet", "--verbose") and not has_value:
            loud.add(word.lstrip("-")[0])
        else:
            kept.append(word)
    return kept, "q" in loud, "v" in loud


@contextmanager
def _loudness(quiet: bool, verbose: bool) -> Iterator[None]:
    """Keep back progress and warnings, or let log messages through."""
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if not quiet:
        yield
        return
    import warnings

    from covidcxr.utils.threads import QUIET

    token = QUIET.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        QUIET.reset(token)


def _spell_data(words: Sequence[str]) -> Iterator[str]:
    """Spell the settings of a data set as the verb reads them: all verbs take `--data.KEY`, `--root` and `--set`."""
    opens_one = words[:1] == ["datasets"] and words[1:2] and words[1] in _ONE_DATA_SET
    takes_data = words[:1] and words[0] in (*VERBS, "audit", "evaluate", "label-errors", "recipes", "tune")
    before = ""
    for word in words:
        key, equals, value = word.removeprefix("--data.").partition("=")
        if opens_one and word.startswith("--data.") and key != "root":
            before = "" if equals else f"{key}="
            yield "--set"
            if equals:
                yield f"{key}={value}"
            continue
        if takes_data and before == "--set" and "=" in word:
            yield f"--data.{word}"
        elif takes_data and word.startswith("--set="):
            yield f"--data.{word.removeprefix('--set=')}"
        elif takes_data and (word == "--root" or word.startswith("--root=")):
            yield f"--data.{word.removeprefix('--')}"
        elif not (takes_data and word == "--set"):
            yield f"{before}{word}" if before.endswith("=") else word
        before = word if word == "--set" else ""


def _run_verb(words: list[str]) -> int:
    parser = _parser(words)
    options, more = parser.parse_known_args(words)
    if more and not getattr(options, "takes_more", False):
        options.parser.refuse(more)
    options.more = more  # flags of `covidcxr fit`
    if options.out is None and getattr(options, "default_out", None):
        from covidcxr.io.folders import next_folder

        options.out = str(next_folder(options.default_out))
    code: int = options.run(options)
    return code


def _guarded(run: Callable[[], int], verbose: bool = False) -> int:
    """Print an error as one line on standard error, after its traceback where that is wanted."""
    try:
        return run()
    except (CovidCXRError, OSError) as error:  # OSError: a folder that cannot be created, a full disk
        if verbose:
            traceback.print_exc()
        print(f"covidcxr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("covidcxr: stopped", file=sys.stderr)
        return 130


def _parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="covidcxr",
        description="Honest deep learning on chest X-rays.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"covidcxr {__version__}")
    parser.set_defaults(out="")  # of verbs that write nothing
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    add_predict(verbs)
    add_demo(verbs)
    add_training(verbs)
    add_assemble(verbs)
    add_evaluate(verbs)
    add_plan(verbs)
    add_audit(verbs)
    add_label_errors(verbs)
    add_explain(verbs)
    add_export(verbs)
    add_recipes(verbs)
    add_tune(verbs)
    add_serve(verbs)
    add_feedback(verbs)
    add_datasets(verbs)
    add_doctor(verbs)
    add_benchmark(verbs)
    add_completion(verbs)
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


_EXAMPLES = """examples:
  covidcxr completion bash > ~/.local/share/bash-completion/completions/covidcxr
  covidcxr completion zsh > ~/.zfunc/_covidcxr        # a folder of $fpath, before compinit
  covidcxr completion tcsh > ~/.covidcxr.tcsh         # and `source` it in ~/.tcshrc"""


def add_completion(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `completion`; it completes the verbs that are added before it.

    Args:
        verbs: Where the verbs are added.
    """
    completion = verbs.add_parser(
        "completion",
        help="a script for the shell that completes verbs and flags",
        description="Print a script that completes the verbs and flags of covidcxr in your shell.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="bash, zsh or tcsh")
    completion.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    sys.stdout.write(shtab.complete(_parser(["completion"]), shell=options.shell) + "\n")
    return 0
