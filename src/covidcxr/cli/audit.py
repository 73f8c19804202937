"""The verbs that ask whether data serve: audit and label-errors for faults, plan for how many patients are needed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.cli.evaluate import keep_data_apart, open_data_of
from covidcxr.cli.fit import add_safe
from covidcxr.errors import ConfigError
from covidcxr.utils.plain import count_of, field_values, json_text

if TYPE_CHECKING:
    from covidcxr.data import CXRDataModule
    from covidcxr.evaluation.label_errors import LabelErrors
    from covidcxr.evaluation.metrics.sample_size import SampleSize, StudyDesign
    from covidcxr.evaluation.shortcuts import DataAudit


__all__ = ["add_audit", "add_label_errors", "add_plan"]

_EXAMPLES = """examples:
  covidcxr audit --data darkcovidnet --data.root DIR
  covidcxr audit --data csv --data.root DIR --data.label_map '{"other": null}' --out audit/mine
  covidcxr audit --config mini-lungs --data.root DIR --no-pixels --json"""


def add_audit(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line.

    Args:
        verbs: Receives the parser of the verb.
    """
    audit = verbs.add_parser(
        "audit",
        help="before training: shortcut probes of a data set, and patient leakage between splits",
        description="Probe a data set for shortcuts and leakage. No GPU and no training is needed. Any flag --data.KEY "
        "is a setting of the data set, as for `covidcxr fit`.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    audit.add_argument("--data", metavar="NAME", help="the data set: a name of `covidcxr datasets list`")
    audit.add_argument("--config", metavar="RECIPE", help="a recipe or YAML file whose data set is audited")
    audit.add_argument("--out", metavar="DIR", help="folder for audit.html and audit.json (audit/NAME)")
    audit.add_argument("--folds", type=int, default=5, metavar="N", help="folds of the cross-validation (%(default)s)")
    audit.add_argument("--seed", type=int, default=0, metavar="N", help="seeds folds and probes (%(default)s)")
    audit.add_argument(
        "--max-images", "--max-films", type=int, default=2000, metavar="N", help="most images to open (%(default)s)"
    )
    audit.add_argument("--no-pixels", action="store_true", help="open no image: tables and file headers only")
    audit.add_argument("--no-duplicates", action="store_true", help="do not search for duplicate images")
    audit.add_argument(
        "--model",
        default="mini",
        help="the lung segmenter, for images without masks: bundled name, folder, Hub id (%(default)s)",
    )
    audit.add_argument("--json", action="store_true", help="print everything as JSON")
    add_safe(audit)
    audit.set_defaults(run=_audit, takes_more=True)


def _audit(options: argparse.Namespace) -> int:
    from covidcxr.evaluation.shortcuts import audit_data
    from covidcxr.evaluation.shortcuts.report import make_page
    from covidcxr.io.pretrained import write_json
    from covidcxr.page import write_html
    from covidcxr.utils.console import collect_notes, screen, show_progress

    with collect_notes() as notes:
        data, name = _open(options)
        out = Path(options.out or Path("audit") / name)
        audit = audit_data(
            data,
            name=name,
            folds=options.folds,
            seed=options.seed,
            pixels=not options.no_pixels,
            duplicates=not options.no_duplicates,
            segmenter=options.model,
            max_images=options.max_images,
            cache=out,
            progress=show_progress,
        )
    audit.notes.extend(notes)
    write_json(out / "audit.json", audit.to_dict())
    page = write_html(make_page(audit), out / "audit.html")
    if options.json:
        screen().file.write(json_text(audit.to_dict()) + "\n")
    else:
        _print(audit, page)
    return 0


def _open(options: argparse.Namespace) -> tuple[CXRDataModule, str]:
    """Build the data module of the options, and name it."""
    from covidcxr.training.parser import open_data
    from covidcxr.training.recipe import Recipe, allow_registered_only, data_class

    if options.safe:
        allow_registered_only()
    if unknown := [word for word in options.more if word.startswith("--") and not word.startswith("--data.")]:
        raise ConfigError(f"covidcxr audit has no option {', '.join(unknown)}; see covidcxr audit --help.")
    config: dict[str, Any] = {}
    if options.config is not None:
        config = Recipe.read(options.config).base().get("data", {})
    if options.data is not None:
        path = data_class(options.data)
        kept = config if config.get("class_path") == path else {}
        config = {**kept, "class_path": path}
    if "class_path" not in config:
        raise ConfigError("Name a data set: --data NAME (see covidcxr datasets list) or --config RECIPE.")
    return open_data({"data": config}, options.more), options.data or Path(options.config).stem


def _print(audit: DataAudit, page: Path) -> None:
    """Show verdict, findings and a short table."""
    from rich.table import Table

    from covidcxr.evaluation.shortcuts.verdict import figure
    from covidcxr.utils.console import screen

    console = screen()
    console.print(audit.verdict, style="bold", soft_wrap=True)
    for finding in audit.findings:
        console.print(f"- {finding}", soft_wrap=True)
    for target in audit.targets:
        title = f"Shortcut probes: {target.name}"
        table = Table("input", "AUROC", "best class", "", title=title, title_justify="left", box=None)
        for score in target.probes:
            name, auroc = score.best
            best = f"{name} {auroc.value:.2f}" if len(score.by_class) > 2 else ""
            sees_lungs = "above chance; sees the lungs too" if score.above_chance else ""
            table.add_row(score.probe.title, figure(score.auroc), best, "stands out" if score.alarm else sees_lungs)
        console.print(table)
    for note in audit.notes:
        console.print(f"Note: {note}", soft_wrap=True)
    console.print(f"Report: {page}", soft_wrap=True)


_LABEL_EXAMPLES = """examples:
  covidcxr recipes run darkcovidnet --data.root DIR --folds 5 --output runs/folds
  covidcxr label-errors runs/folds --data.root DIR --out label-errors
  covidcxr label-errors predictions.csv"""


def add_label_errors(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line.

    Args:
        verbs: Receives the parser of the verb.
    """
    verb = verbs.add_parser(
        "label-errors",
        help="labels that are likely to be wrong, by predictions of a cross-validation",
        description="Estimate how many labels are wrong, and rank the images by how little their label fits (confident "
        "learning). Writes label-errors.html, label-errors.json and label-errors.csv. The model must not have trained "
        "on the images: give a run in folds, or predictions of test images. Any flag --data.KEY is a setting of the "
        "data set; with it the page shows the images.",
        epilog=_LABEL_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("path", metavar="PATH", help="predictions (CSV), or the folder of a run")
    verb.add_argument("--data", metavar="NAME", help="the data set: a name of `covidcxr datasets list`")
    verb.add_argument("--out", metavar="DIR", help="where page and tables go (runs/label-errors-1, -2, ...)")
    verb.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the patients (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples (%(default)s)")
    verb.add_argument("--json", action="store_true", help="print every number as JSON")
    add_safe(verb)
    verb.set_defaults(run=_label_errors, default_out="label-errors", takes_more=True)
    keep_data_apart(verb)


def _label_errors(options: argparse.Namespace) -> int:
    import pandas as pd

    from covidcxr.evaluation.label_errors import find_label_errors
    from covidcxr.evaluation.predictions.run_pipeline import ImageLookup
    from covidcxr.evaluation.predictions.table import read_folder, read_rows
    from covidcxr.evaluation.report.errors import label_error_page
    from covidcxr.io.folders import replace_file
    from covidcxr.io.pretrained import write_json
    from covidcxr.page import write_html
    from covidcxr.utils.console import collect_notes, show_status

    path, config = Path(options.path), {}
    with collect_notes() as notes:
        if path.is_dir():
            runs = read_folder(path)
            if len(runs) > 1:
                raise ConfigError(f"{path} holds several runs: name the folder of one of them.")
            rows, config = runs[0].rows, dict(runs[0].config.get("data") or {})
        else:
            rows = read_rows(path)
        data = None
        if options.data is not None or any(word.startswith("--data.") for word in options.more):
            data, _ = open_data_of(options, config)
        pooled = all(row.get("fold") for row in rows)
        trained = [] if data is None or pooled else [r.image_id for r in data.records if r.split == "train"]
        with show_status("label errors"):
            results = find_label_errors(rows, trained=trained, resamples=options.resamples, seed=options.seed)
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        page = label_error_page(results, path.stem, None if data is None else ImageLookup(data))
    result = {"targets": [errors.to_dict() for errors in results], "notes": notes}
    write_json(out / "label-errors.json", result)
    images = [image.to_dict() for errors in results for image in errors.images]
    with replace_file(out / "label-errors.csv") as draft:
        pd.DataFrame(images).to_csv(draft, index=False)
    _say(results, result, write_html(page, out / "label-errors.html"), options.json)
    return 0


def _say(results: tuple[LabelErrors, ...], result: dict[str, Any], page: Path, as_json: bool) -> None:
    from rich.table import Table

    from covidcxr.evaluation.report.errors import label_error_verdict
    from covidcxr.utils.console import screen

    console = screen()
    if as_json:
        console.file.write(json_text(result) + "\n")
        return
    for errors in results:
        console.print(label_error_verdict(errors), style="bold", soft_wrap=True)
        for note in errors.notes:
            console.print(f"Note: {note}", style="yellow", soft_wrap=True)
        table = Table("image", "label", "rather", "margin", box=None)
        for image in errors.suspects[:10]:
            table.add_row(image.image_id, image.label, image.suggested, f"{image.margin:.2f}")
        if errors.suspects:
            console.print(table)
    for note in result["notes"]:
        console.print(f"Note: {note}", soft_wrap=True)
    console.print(f"Report: {page}", soft_wrap=True)


_PLAN_EXAMPLES = """examples:
  covidcxr plan --sensitivity 0.9 --within 0.05 --prevalence 0.2
  covidcxr plan --sensitivity 0.9 --specificity 0.8 --within 0.05 --prevalence 0.2 --images-per-patient 1.8 --icc 0.5
  covidcxr plan --auroc 0.85 --within 0.05 --within-slope 0.2 --prevalence 0.2 --abstention 0.1
  covidcxr plan --dice 0.9 --sd 0.06 --failures 0.02 --within 0.02
  covidcxr plan --sensitivity 0.9 --prevalence 0.2 --patients 300"""

_SCORES = ("sensitivity", "specificity", "accuracy", "auroc", "dice")
_CALIBRATED = {"slope": 1.0, "intercept": 0.0}


def add_plan(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line.

    Args:
        verbs: Where the verbs are added.
    """
    verb = verbs.add_parser(
        "plan",
        help="how many patients a study needs for a wanted precision",
        description="Say how many patients a test needs for the 95 % interval that `covidcxr evaluate` will print to "
        "reach no farther than wanted; or with --patients, what intervals so many let expect.",
        epilog=_PLAN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scores = verb.add_argument_group("scores, as high as they are expected to be")
    for name in _SCORES:
        scores.add_argument(f"--{name}", type=float, metavar="F", help=f"expected {name}, in (0, 1)")
    scores.add_argument("--within", type=float, metavar="F", help="how far their intervals may reach to either side")
    for name in _CALIBRATED:
        words = f"the same of the calibration {name} of a calibrated model; needs --auroc"
        scores.add_argument(f"--within-{name}", type=float, metavar="F", help=words)
    scores.add_argument("--patients", type=int, metavar="N", help="the other way round: the intervals of N patients")
    study = verb.add_argument_group("the study")
    flags = {
        "prevalence": (None, "share of patients with the class"),
        "images-per-patient": (1.0, "on average (%(default)s)"),
        "spread": (0.0, "of images per patient: standard deviation / mean (%(default)s)"),
        "icc": (0.5, "how alike images of a patient are, 0 to 1 (%(default)s)"),
        "abstention": (0.0, "share of patients whom the model gives no answer (%(default)s)"),
        "sd": (None, "standard deviation of the Dice of images that do not fail"),
        "failures": (0.0, "share of images on which the mask fails (%(default)s)"),
        "confidence": (0.95, "of the intervals (%(default)s)"),
    }
    for flag, (default, words) in flags.items():
        study.add_argument(f"--{flag}", type=float, default=default, metavar="F", help=words)
    verb.add_argument("--json", action="store_true", help="print every number as JSON")
    verb.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from covidcxr.evaluation.metrics.sample_size import StudyDesign

    design = StudyDesign(**{name: getattr(options, name) for name in StudyDesign.__dataclass_fields__})
    expected = {name: value for name in _SCORES if (value := getattr(options, name)) is not None}
    if options.patients is not None:
        expected |= _CALIBRATED if options.auroc is not None and options.prevalence is not None else {}
        sizes = [design.expect(name, value, options.patients) for name, value in expected.items()]
    else:
        wanted = {} if options.within is None else dict.fromkeys(expected, options.within)
        wanted |= {name: reach for name in _CALIBRATED if (reach := getattr(options, f"within_{name}")) is not None}
        if expected and not wanted:
            raise ConfigError(
                "Say how far an interval may reach: --within 0.05; or how many there are: --patients 300."
            )
        expected |= _CALIBRATED
        sizes = [design.patients_for(name, expected[name], reach) for name, reach in wanted.items()]
    if not sizes:
        raise ConfigError(f"Say which score is planned for: {', '.join(f'--{name}' for name in _SCORES)}.")
    _say_plan(sizes, design, options)
    return 0


def _say_plan(sizes: list[SampleSize], design: StudyDesign, options: argparse.Namespace) -> None:
    from rich.table import Table

    from covidcxr.evaluation.metrics.scores import format_interval
    from covidcxr.utils.console import screen

    patients = max(size.patients for size in sizes)
    if options.json:
        plan = {"patients": patients, "scores": [size.to_dict() for size in sizes], "design": field_values(design)}
        sys.stdout.write(json_text(plan) + "\n")
        return
    table = Table("score", "expected [interval]", "patients", "with the class", "images")
    for size in sizes:
        positives = "-" if size.positives is None else f"{size.positives:,}"
        value = format_interval(size.value, size.low, size.high)
        table.add_row(size.score, value, f"{size.patients:,}", positives, f"{size.images:,}")
    console = screen()
    console.print(table)
    for size in sizes:
        if size.note:
            console.print(f"No interval of {size.score}: {size.note}.", soft_wrap=True)
    if options.patients is None:
        lost = f", {design.abstention:.0%} of whom get no answer" if design.abstention else ""
        console.print(f"Plan {count_of(patients, 'patient')}{lost}.", style="bold", soft_wrap=True)
