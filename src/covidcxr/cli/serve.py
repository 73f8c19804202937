"""The verbs `serve` and `feedback`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from covidcxr.errors import ConfigError
from covidcxr.utils.plain import json_text

__all__ = ["add_feedback", "add_serve"]

_SERVE = """examples:
  covidcxr serve
  covidcxr serve --model my-pipeline --store /srv/images --port 8080
  COVIDCXR_TOKEN=... covidcxr serve --host 0.0.0.0 --allow-host images.example.org"""


_FEEDBACK = """examples:
  covidcxr feedback covidcxr-store --out feedback
  covidcxr fit --config mini-classifier --data feedback --data.root feedback --data.drawn_masks feedback/drawn \\
               --model.init_from mini --out mine"""


def add_serve(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line.

    Args:
        verbs: Where verbs are added.
    """
    serve = verbs.add_parser(
        "serve",
        help="a page for radiologists: images, masks, predictions, corrections and verdicts; and the same as REST",
        description="Serve a page to look at images, correct masks, give pre-test probabilities and give verdicts, "
        "and a REST interface. It listens to this machine alone unless it is told otherwise, and then needs a token.",
        epilog=_SERVE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("--model", default="mini", help="bundled name, folder or Hub repository (%(default)s)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on; 0 = a free one (%(default)s)")
    serve.add_argument(
        "--token", help="what every call must bring; better given as COVIDCXR_TOKEN, which no process list shows"
    )
    serve.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name of this server"
    )
    serve.add_argument(
        "--store",
        default="covidcxr-store",
        metavar="WHERE",
        help="folder, or postgresql+psycopg://USER@HOST/NAME, of images and verdicts (%(default)s)",
    )
    serve.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    serve.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        default="torch",
        help="onnx: --model is a folder of `covidcxr export`; there are no heat maps then (%(default)s)",
    )
    serve.add_argument("--workers", type=int, default=2, metavar="N", help="processes that decode images (%(default)s)")
    serve.add_argument(
        "--max-megapixels", type=float, metavar="N", help="height times width of an image, at most, in millions (40)"
    )
    serve.add_argument("--keep-identifiers", action="store_true", help="store the patient and study ids of DICOM files")
    serve.set_defaults(run=_serve)


def add_feedback(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `feedback` to the command line.

    Args:
        verbs: Where verbs are added.
    """
    feedback = verbs.add_parser(
        "feedback",
        help="export what readers said on the page, as a data set for `covidcxr fit --data feedback`",
        description="Write the images whose readers agreed that they may train models into a new folder, with "
        "verdicts, corrected masks and the model's own, and without file names, comments and DICOM identifiers.",
        epilog=_FEEDBACK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    feedback.add_argument("store", metavar="STORE", help="folder or database URL, as of `covidcxr serve --store`")
    feedback.add_argument("--out", metavar="DIR", help="a new folder for the export (runs/feedback-1, -2, ...)")
    feedback.add_argument("--json", action="store_true", help="print the counts as JSON")
    feedback.set_defaults(run=_feedback, default_out="feedback")


def _serve(options: argparse.Namespace) -> int:
    try:
        from covidcxr.serve.server import serve
        from covidcxr.serve.settings import Limits, ServeSettings
    except ModuleNotFoundError as error:
        raise ConfigError(f'covidcxr serve needs {error.name}: pip install "covidcxr[serve]"') from error
    serve(
        ServeSettings(
            model=options.model,
            host=options.host,
            port=options.port,
            token=options.token or os.environ.get("COVIDCXR_TOKEN") or None,
            store=options.store,
            hosts=tuple(options.allow_host),
            device=options.device,
            backend=options.backend,
            workers=options.workers,
            keep_identifiers=options.keep_identifiers,
            limits=Limits() if options.max_megapixels is None else Limits.for_megapixels(options.max_megapixels),
        )
    )
    return 0


def _feedback(options: argparse.Namespace) -> int:
    try:
        from covidcxr.serve.report import export_feedback
        from covidcxr.serve.store import Store
    except ModuleNotFoundError as error:
        raise ConfigError(f'covidcxr feedback needs {error.name}: pip install "covidcxr[serve]"') from error
    is_folder = "://" not in options.store
    if is_folder and not Path(options.store, "store.sqlite").is_file():
        raise ConfigError(f"There is no store in {options.store}: give what `covidcxr serve --store` was given.")
    store = Store(options.store)
    try:
        counts = export_feedback(store, options.out)
    finally:
        store.close()
    words = f"{counts['films']} images, {counts['labels']} with a label, {counts['corrected_masks']} corrected masks"
    sys.stdout.write(f"{json_text(counts) if options.json else words}\n")
    return 0
