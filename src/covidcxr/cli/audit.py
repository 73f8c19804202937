"""The verbs that look for faults of data: audit, before anything is trained, and label-errors, by predictions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.cli.evaluate import keep_data_apart, open_data_of
from covidcxr.cli.fit import add_safe
from covidcxr.errors import ConfigError
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from covidcxr.data import CXRDataModule
    from covidcxr.evaluation.label_errors import LabelErrors
    from covidcxr.evaluation.shortcuts import DataAudit


__all__ = ["add_audit", "add_label_errors"]

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
