"""`covidcxr export`: a model or pipeline as files that run without covidcxr."""

from __future__ import annotations

import argparse
import sys

__all__ = ["add_export"]

_EXAMPLES = """examples:
  covidcxr export mini --out mini-onnx
  covidcxr export runs/mine/model --format torch --out mine-pt2 --images images/"""


def add_export(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `export`.

    Args:
        verbs: Where the verbs are added.
    """
    export = verbs.add_parser(
        "export",
        help="write a model or pipeline as ONNX or torch.export files",
        description="Write each model of a pipeline as a file that takes images of any size: preprocessing, "
        "temperature and thresholds are inside. export.json says how the files are used, and how they differ.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("model", metavar="MODEL", help="bundled name, folder or Hub repository")
    export.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="kind of file (%(default)s)")
    export.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="images or folders to compare on (drawn ones)"
    )
    export.add_argument("--out", metavar="DIR", help="a new folder for the files (runs/export-1, -2, ...)")
    export.add_argument("--json", action="store_true", help="print export.json")
    export.set_defaults(run=_export, default_out="export")


def _export(options: argparse.Namespace) -> int:
    from covidcxr.pipeline.export import EXPORT_FILE, export_pipeline
    from covidcxr.pipeline.folder import find_images
    from covidcxr.pipeline.pipeline import Pipeline
    from covidcxr.utils.plain import count_of, json_text, user_path

    pipeline = Pipeline.from_pretrained(options.model)
    images = [path for path, _ in find_images(options.images)[0]]
    result = export_pipeline(pipeline, options.out, format=options.format, images=images)
    if options.json:
        sys.stdout.write(json_text(result, indent=2) + "\n")
        return 0
    for name, facts in result["models"].items():
        sys.stdout.write(f"{name}: {facts['file']}, differs from the model by at most {facts['difference']:.1g}\n")
    compared = count_of(result["compared_on"], "image")
    sys.stdout.write(f"Compared on {compared}. How to use them: {user_path(options.out) / EXPORT_FILE}\n")
    return 0
