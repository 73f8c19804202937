"""The verbs that make a pipeline: assemble, of single models, and export, as files that run without covidcxr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.errors import ConfigError

if TYPE_CHECKING:
    from covidcxr.models import CXRModel
    from covidcxr.pipeline.severity import InfectionInterval


__all__ = ["add_assemble", "add_export"]

_PARTS = {
    "gate": ("gate", "view check"),
    "lungs": ("lung_segmenter", "lung segmenter"),
    "infection": ("infection_segmenter", "segmenter of infections or other findings"),
    "classifier": ("classifier", "classifier or ensemble"),
}
"""From the flag to the part of the pipeline, and what it is."""

_EXAMPLES = """examples:
  covidcxr assemble --classifier runs/mine/model --lungs mini --gate mini --out my-pipeline
  covidcxr assemble --lungs runs/lungs/model --infection runs/infection/model --out my-masks
  covidcxr predict images/ --model my-pipeline --out answers"""


def add_assemble(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `assemble`.

    Args:
        verbs: Where the verbs are added.
    """
    assemble = verbs.add_parser(
        "assemble",
        help="join single models, as `fit` saves them, to a pipeline",
        description="Join single models to a pipeline. Each comes from a folder, a bundled name or a Hub repository: "
        "of one model, or of a pipeline or multi-task model, whose part is taken.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, (_, what) in _PARTS.items():
        assemble.add_argument(f"--{flag}", metavar="MODEL", help=what)
    assemble.add_argument(
        "--min-lung-area",
        type=float,
        default=0.15,
        metavar="SHARE",
        help="least share of the image that the lungs must cover for a label, from 0 to 1 (%(default)s)",
    )
    assemble.add_argument(
        "--infected-interval",
        metavar="CSV",
        help="give the infected fraction an interval, from these predictions of validation images with outlined "
        "infections, as `covidcxr evaluate --split val` writes them",
    )
    assemble.add_argument(
        "--coverage", type=float, default=0.9, metavar="SHARE", help="how often that interval shall hold (%(default)s)"
    )
    assemble.add_argument("--card", metavar="FILE", help="a model card (Markdown); by default one is written")
    assemble.add_argument("--dtype", default="float32", metavar="TYPE", help="float32, or float16: half the size")
    assemble.add_argument("--out", metavar="DIR", help="a new folder for the pipeline (runs/assemble-1, -2, ...)")
    assemble.set_defaults(run=_assemble, default_out="assemble")


def _assemble(options: argparse.Namespace) -> int:
    from covidcxr.pipeline.pipeline import Pipeline
    from covidcxr.utils.plain import user_path

    out = user_path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty. Choose a new folder for the pipeline.")
    sources = {part: (getattr(options, flag), flag) for flag, (part, _) in _PARTS.items()}
    given = {part: _load(source, part, flag) for part, (source, flag) in sources.items() if source is not None}
    settings: dict[str, Any] = {"min_lung_area": options.min_lung_area}
    if options.infected_interval is not None:
        settings["infected_interval"] = _interval(options.infected_interval, options.coverage)
    if options.card is not None:
        settings["card"] = _read_card(user_path(options.card))
    pipeline = Pipeline(**settings, **given)  # type: ignore[arg-type]
    pipeline.save_pretrained(out, dtype=options.dtype)
    sys.stdout.write(f"Saved {out}: {', '.join(given)}.\n")
    return 0


def _interval(path: str, coverage: float) -> InfectionInterval:
    """Calibrate the interval of the infected fraction on a table of predictions."""
    import numpy as np

    from covidcxr.evaluation.predictions import PredictionTable
    from covidcxr.evaluation.predictions.table import read_rows
    from covidcxr.pipeline.severity import InfectionInterval

    table = PredictionTable.read(read_rows(path))
    predicted, read = table.numbers("infected_fraction"), table.numbers("reader_lungs")
    known = ~np.isnan(predicted - read)
    patients = [name or f"unknown {image}" for image, name in enumerate(table.patients) if known[image]]
    try:
        return InfectionInterval.fit(predicted[known], read[known], patients, coverage)
    except ConfigError as error:
        raise ConfigError(f"--infected-interval: {error}") from error


def _read_card(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--card: {path} cannot be read as text: {error}") from error


def _load(source: str, part: str, flag: str) -> CXRModel:
    """Load the model of a part, from a folder of its own or out of a pipeline."""
    from covidcxr.io.pretrained import fetch
    from covidcxr.models import load_model
    from covidcxr.pipeline.parts import PARTS, is_single
    from covidcxr.pipeline.pipeline import Pipeline

    folder = fetch(source)
    if is_single(folder):
        return load_model(folder, prefer="segmentation" if "SegmentationModel" in PARTS[part] else "classification")
    model = Pipeline.from_pretrained(folder).models().get(part)
    if model is None:
        raise ConfigError(f"--{flag}: the pipeline {source} has no {part}.")
    return model


_EXPORT_EXAMPLES = """examples:
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
        epilog=_EXPORT_EXAMPLES,
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
