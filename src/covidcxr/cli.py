"""The command line: `covidcxr VERB`. The verbs are imported when they are called, so that `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from covidcxr import __version__
from covidcxr.audit_verb import add_audit
from covidcxr.datasets.verbs import add_datasets
from covidcxr.errors import CovidCXRError
from covidcxr.evaluate_verb import add_evaluate
from covidcxr.explain_verb import add_explain
from covidcxr.recipe_verbs import add_recipes
from covidcxr.serve_verb import add_feedback, add_serve
from covidcxr.tune.verbs import add_tune

__all__ = ["main"]

_TRAINING = {
    "fit": "train a model (LightningCLI: every argument of Trainer, task and data module is a flag and a YAML key)",
    "validate": "score a model on the validation films",
    "test": "score a model on the test films, with patient-clustered intervals",
}

_EPILOG = """examples:
  covidcxr demo                                        drawn films through the whole pipeline
  covidcxr predict films/ --model mini --out answers   your films: JSON lines, masks, overlays, contact sheet
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
        0 = all went well, 1 = some films could not be answered or a check failed, 2 = wrong use or an error.
    """
    # Threads of GNU OpenMP spin at barriers: on a busy machine two were measured up to 70 times slower than one. It is
    # read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in _TRAINING:  # LightningCLI has a parser of its own
        return _guarded(lambda: _train(words))
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
    _add_predict(verbs)
    _add_demo(verbs)
    for verb, purpose in _TRAINING.items():
        verbs.add_parser(verb, help=purpose, add_help=False)  # main() hands these to LightningCLI before
    add_evaluate(verbs)
    add_audit(verbs)
    add_explain(verbs)
    add_recipes(verbs)
    add_tune(verbs)
    add_serve(verbs)
    add_feedback(verbs)
    add_datasets(verbs)
    _add_doctor(verbs)
    return parser


def _add_predict(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    predict = verbs.add_parser(
        "predict",
        help="answer for films: JSON lines, masks, overlays and a contact sheet",
        description="Answer for films. A film that cannot be read is one entry with its reason; the others go on.",
        epilog="example: covidcxr predict films/ extra.dcm --model mini --out answers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument("paths", nargs="+", metavar="PATH", help="films, or folders that are searched for films")
    predict.add_argument("--out", required=True, metavar="DIR", help="where the answers go")
    predict.add_argument("--root", metavar="DIR", help="name the answers by the films' paths below DIR")
    _add_common(predict)
    predict.set_defaults(run=_predict)


def _add_demo(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = verbs.add_parser(
        "demo",
        help="see it work: drawn films, or yours, through the whole pipeline",
        description="Run the bundled pipeline over drawn films (phantoms), or over your own, and show the page.",
        epilog="examples:\n  covidcxr demo\n  covidcxr demo my-films/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("paths", nargs="*", metavar="PATH", help="your films or folders; none = drawn films")
    demo.add_argument("--out", default="covidcxr-demo", metavar="DIR", help="where the answers go (%(default)s)")
    demo.add_argument("--no-open", action="store_true", help="print the page's path, do not open it")
    _add_common(demo)
    demo.set_defaults(run=_demo, root=None)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="bundled name, folder or Hub repository (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="films a batch (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="threads that read films (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def _add_doctor(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = verbs.add_parser(
        "doctor",
        help="check this installation and the bundled weights",
        description="Check versions, plug-ins, devices, and that the bundled weights give their golden answers.",
        epilog="example: covidcxr doctor --json",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_doctor)


def _predict(options: argparse.Namespace) -> int:
    from covidcxr.batch import predict_folder, print_summary

    summary = predict_folder(
        options.paths,
        options.out,
        root=options.root,
        model=options.model,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=options.device,
    )
    print_summary(summary, as_json=options.json)
    return 1 if summary["failed"] else 0


def _demo(options: argparse.Namespace) -> int:
    import webbrowser
    from pathlib import Path

    from covidcxr.phantom import write_dataset

    if not options.paths:
        write_dataset(Path(options.out) / "phantoms", 12)
        options.paths = [str(Path(options.out) / "phantoms" / "images")]
    code = _predict(options)
    page = (Path(options.out) / "index.html").resolve()
    if not options.no_open and sys.stdout.isatty():
        webbrowser.open(page.as_uri())
    return code


def _train(words: list[str]) -> int:
    from covidcxr.training import run

    run(words)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from covidcxr.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, as_json=options.json)
    return 0 if findings["sound"] else 1
