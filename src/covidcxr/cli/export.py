"""`covidcxr export`: a model or pipeline as files that run without covidcxr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["add_export"]

_EXAMPLES = """examples:
  covidcxr export mini --out mini-onnx
  covidcxr export mini --precision int8 --calibrate images/ --out mini-int8
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
    export.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="of ONNX files: float16 halves them, int8 makes them a quarter (%(default)s)",
    )
    export.add_argument(
        "--calibrate",
        nargs="+",
        default=[],
        metavar="PATH",
        help="images or folders on which the loss of float16 or int8 is measured; half of them calibrate int8",
    )
    export.add_argument("--force", action="store_true", help="write files that lose more than is allowed")
    export.add_argument("--out", metavar="DIR", help="a new folder for the files (runs/export-1, -2, ...)")
    export.add_argument("--json", action="store_true", help="print export.json")
    export.set_defaults(run=_export, default_out="export")


def _export(options: argparse.Namespace) -> int:
    from covidcxr.pipeline.export import EXPORT_FILE, export_pipeline
    from covidcxr.pipeline.folder import find_images
    from covidcxr.pipeline.pipeline import Pipeline
    from covidcxr.utils.plain import count_of, json_text, user_path

    pipeline = Pipeline.from_pretrained(options.model)
    result = export_pipeline(
        pipeline,
        options.out,
        format=options.format,
        images=[path for path, _ in find_images(options.images)[0]],
        precision=options.precision,
        calibrate=[path for path, _ in find_images(options.calibrate)[0]],
        force=options.force,
    )
    if options.json:
        sys.stdout.write(json_text(result, indent=2) + "\n")
        return 0
    for name, facts in result["models"].items():
        sys.stdout.write(f"{name}: {facts['file']}, differs from the model by at most {facts['difference']:.1g}\n")
    for line in _loss_in_words(result.get("loss"), options.precision):
        sys.stdout.write(line + "\n")
    compared = count_of(result["compared_on"], "image")
    sys.stdout.write(f"Compared on {compared}. How to use them: {user_path(options.out) / EXPORT_FILE}\n")
    return 0


def _loss_in_words(loss: dict[str, Any] | None, precision: str) -> Iterator[str]:
    """Say what another precision costs."""
    if loss is None:
        return
    yield f"{precision} against float32, on {loss['images']} images that calibrated nothing:"
    for name, dice in loss["dice"].items():
        yield f"  Dice of {name}: mean {dice['mean']:.4f}, least {dice['least']:.4f}"
    change = loss["probability"]
    yield f"  change of a probability: mean {change['mean']:.4f}, greatest {change['greatest']:.4f}"
    yield f"  {loss['labels_changed']} other labels, {loss['reasons_changed']} other reasons for none"
