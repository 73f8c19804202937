"""`covidcxr audit`: shortcuts and patient leakage in a data set, before anything is trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.cli.fit import add_safe
from covidcxr.errors import ConfigError
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from covidcxr.data import CXRDataModule
    from covidcxr.evaluation.shortcuts import DataAudit

__all__ = ["add_audit"]

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
