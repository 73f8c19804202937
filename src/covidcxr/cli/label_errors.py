"""`covidcxr label-errors`: labels that are likely to be wrong, by predictions of images that trained nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.cli.evaluate import keep_data_apart, open_data_of
from covidcxr.cli.fit import add_safe
from covidcxr.errors import ConfigError
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from covidcxr.evaluation.label_errors import LabelErrors

__all__ = ["add_label_errors"]

_EXAMPLES = """examples:
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
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("path", metavar="PATH", help="predictions (CSV), or the folder of a run")
    verb.add_argument("--data", metavar="NAME", help="the data set: a name of `covidcxr datasets list`")
    verb.add_argument("--out", metavar="DIR", help="where page and tables go (runs/label-errors-1, -2, ...)")
    verb.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the patients (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples (%(default)s)")
    verb.add_argument("--json", action="store_true", help="print every number as JSON")
    add_safe(verb)
    verb.set_defaults(run=_run, default_out="label-errors", takes_more=True)
    keep_data_apart(verb)


def _run(options: argparse.Namespace) -> int:
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
