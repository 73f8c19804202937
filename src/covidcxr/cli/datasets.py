"""`covidcxr datasets`: list, show, check, stats, quality, drift, masks, prepare; arguments in, tables or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from covidcxr.errors import ConfigError, DatasetError
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from covidcxr.data.curation.quality import QualityReport

__all__ = ["add_datasets"]

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_EXAMPLES = """examples:
  covidcxr datasets list
  covidcxr datasets show covid_qu_ex
  covidcxr datasets check covid_qu_ex --data.root DIR
  covidcxr datasets stats covid_qu_ex --data.root DIR --out DIR
  covidcxr datasets quality covid_qu_ex --data.root DIR --out DIR
  covidcxr datasets prepare covid_qu_ex --data.root DIR --out DIR"""


def add_datasets(verbs: Verbs) -> None:
    """Add the verb `datasets` with its own verbs to the command line.

    Args:
        verbs: Where the verbs are added.
    """
    parser = _add(verbs, "datasets", "data sets: what there is, is a copy complete, what is in it, compact copies")
    parser.epilog = _EXAMPLES
    own = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = _add(own, "list", "every data set by name", "covidcxr datasets list")
    listing.add_argument("--json", action="store_true", help="print JSON in place of words")
    listing.set_defaults(run=_list)
    show = _add(own, "show", "one data set: licence, where to get it, layout, counts", "covidcxr datasets show csv")
    _add_name(show)
    show.set_defaults(run=_show)
    _add_check(own)
    _add_stats(own)
    _add_quality(own)
    _add_drift(own)
    _add_masks(own)
    _add_prepare(own)


def _add_check(own: Verbs) -> None:
    check = _add(own, "check", "is a copy complete? all faults at once", "covidcxr datasets check csv --data.root DIR")
    check.add_argument("--decode", action="store_true", help="also open every image and mask, which takes longer")
    _add_name(check)
    _add_place(check)
    check.set_defaults(run=_check)


def _add_stats(own: Verbs) -> None:
    stats = _add(
        own, "stats", "what is in it: tables and pictures", "covidcxr datasets stats csv --data.root DIR --out DIR"
    )
    stats.add_argument("--out", metavar="DIR", help="write stats.json, contact-sheet.png and charts.png there")
    stats.add_argument("--sample", type=int, metavar="N", help="mean and std over N training images only (all)")
    stats.add_argument("--no-pixels", action="store_true", help="no mean and std: no image is opened for the tables")
    _add_name(stats)
    _add_place(stats)
    stats.set_defaults(run=_stats)


def _add_quality(own: Verbs) -> None:
    quality = _add(
        own,
        "quality",
        "the quality of its images: dark, blurred, of odd size, cut off, framed, copied, not readable",
        "covidcxr datasets quality csv --data.root DIR --out DIR",
    )
    quality.add_argument("--out", metavar="DIR", help="write quality.csv, quality.json and contact-sheet.png there")
    quality.add_argument("--no-duplicates", action="store_true", help="do not search for copies of images")
    quality.add_argument(
        "--model", metavar="NAME", help="a pipeline (mini) that finds lungs cut by the edge and inverted images (none)"
    )
    quality.add_argument("--device", default="cpu", help="cpu, cuda, mps (%(default)s)")
    _add_name(quality)
    _add_place(quality)
    quality.set_defaults(run=_quality)


def _add_drift(own: Verbs) -> None:
    drift = _add(
        own,
        "drift",
        "how two data sets differ: label shift and covariate shift",
        "covidcxr datasets drift csv --data.root DIR --other csv --other-root DIR --out DIR",
    )
    drift.add_argument("--other", required=True, metavar="NAME", help="the other data set")
    drift.add_argument("--other-root", metavar="DIR", help="its folder")
    drift.add_argument("--out", metavar="DIR", help="write drift.html and drift.json there")
    drift.add_argument("--max-images", type=int, default=2000, metavar="N", help="most images to open (%(default)s)")
    drift.add_argument("--no-pixels", action="store_true", help="open no image: tables and file headers only")
    drift.add_argument("--model", default="mini", help="the lung segmenter: bundled name, folder, Hub id (%(default)s)")
    drift.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")
    _add_name(drift)
    _add_place(drift)
    drift.set_defaults(run=_drift)


def _add_masks(own: Verbs) -> None:
    masks = _add(
        own,
        "masks",
        "draw lung masks for all images: an interrupted drawing goes on",
        "covidcxr datasets masks covidx_cxr3 --data.root DIR --out drawn",
    )
    masks.add_argument(
        "--out", metavar="DIR", help="where the masks go, for --data.drawn_masks DIR (runs/masks-1, -2, ...)"
    )
    masks.add_argument("--model", default="mini", help="a lung segmenter: bundled name, folder or Hub (%(default)s)")
    masks.add_argument(
        "--min-lung-area", type=float, default=0.15, metavar="F", help="tell images with smaller lungs (%(default)s)"
    )
    masks.add_argument("--device", default="cpu", help="cpu, cuda, mps (%(default)s)")
    _add_name(masks)
    _add_place(masks)
    masks.set_defaults(run=_masks, default_out="masks")


def _add_prepare(own: Verbs) -> None:
    prepare = _add(
        own,
        "prepare",
        "write a compact copy: resized once, for fast epochs",
        "covidcxr datasets prepare csv --data.root DIR --out COPY --image-size 256 256",
    )
    prepare.add_argument(
        "--out", metavar="DIR", help="where the copy goes; an interrupted one goes on (runs/prepare-1, -2, ...)"
    )
    prepare.add_argument(
        "--image-size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help="size of the frame (256 256)"
    )
    prepare.add_argument("--fit", choices=("letterbox", "stretch"), default="letterbox", help="how (%(default)s)")
    prepare.add_argument("--num-workers", type=int, default=2, metavar="N", help="threads that read (%(default)s)")
    prepare.add_argument(
        "--no-memory-map",
        action="store_true",
        help="leave out pixels.bin, from which samples of this size are read without decoding: a byte a pixel",
    )
    prepare.add_argument(
        "--archive", action="append", default=[], metavar="FILE", help="unpack it into --data.root first; repeatable"
    )
    _add_name(prepare)
    _add_place(prepare)
    prepare.set_defaults(run=_prepare, default_out="prepare")


def _add_name(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="the data set; covidcxr datasets list names them all")
    verb.add_argument("--json", action="store_true", help="print JSON in place of words")


def _add_place(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--data.root",
        "--root",
        dest="root",
        metavar="DIR",
        help="its folder; covidcxr datasets show NAME tells what it holds",
    )
    verb.add_argument(
        "--data.KEY",
        "--set",
        dest="set",
        action="append",
        default=[],
        metavar="VALUE",
        help="a setting of the data set, as for covidcxr fit; the value is YAML; repeatable (--set KEY=VALUE too)",
    )


def _add(verbs: Verbs, name: str, purpose: str, example: str = "") -> argparse.ArgumentParser:
    return verbs.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _list(options: argparse.Namespace) -> int:
    from covidcxr.cli.tables import print_datasets
    from covidcxr.data.summary import list_datasets

    return _say(list_datasets(), print_datasets, options)


def _show(options: argparse.Namespace) -> int:
    from covidcxr.cli.tables import print_description
    from covidcxr.data.summary import describe_dataset

    return _say(describe_dataset(options.name), print_description, options)


def _stats(options: argparse.Namespace) -> int:
    from covidcxr.cli.tables import print_survey
    from covidcxr.data.summary import survey
    from covidcxr.io.pretrained import write_json
    from covidcxr.utils.console import collect_notes, show_progress

    with collect_notes() as notes:
        data = _open(options)
        with show_progress("grey values") as progress:
            result = survey(data, pixels=not options.no_pixels, sample=options.sample, progress=progress)
    result = {"name": options.name, "root": str(data.root), **result, "notes": [*notes, *result["notes"]]}
    if options.out is not None:
        result["pictures"] = [str(path) for path in _draw(data, options.name, Path(options.out))]
        write_json(Path(options.out) / "stats.json", result)
    return _say(result, print_survey, options)


def _draw(data: Any, name: str, out: Path) -> list[Path]:
    from covidcxr.data.pictures import draw_charts, draw_contact_sheet, save_picture
    from covidcxr.utils.console import show_progress

    out.mkdir(parents=True, exist_ok=True)
    with show_progress("contact sheet") as progress:
        sheet = draw_contact_sheet(data, title=name, progress=progress)
    charts = draw_charts(data.records, title=name)
    return [save_picture(sheet, out / "contact-sheet.png"), save_picture(charts, out / "charts.png")]


def _check(options: argparse.Namespace) -> int:
    from covidcxr.cli.tables import print_report
    from covidcxr.data.curation.integrity import CheckReport, check_dataset
    from covidcxr.utils.console import collect_notes, show_progress

    with collect_notes() as notes:
        try:
            data = _open(options)
        except DatasetError as error:  # some read their table when they are built
            report = CheckReport(0, {}, {}, None, [str(error)], [])
        else:
            with show_progress("images") as progress:
                report = check_dataset(data, decode=options.decode, progress=progress)
    result = {"name": options.name, "root": options.root, **report.to_dict(), "notes": [*notes, *report.notes]}
    _say(result, print_report, options)
    return 0 if report.complete else 1


def _quality(options: argparse.Namespace) -> int:
    from covidcxr.cli.tables import print_quality
    from covidcxr.data.curation.quality import check_quality
    from covidcxr.pipeline.lung_masks import look_at
    from covidcxr.utils.console import collect_notes, show_progress

    with collect_notes() as notes:
        data = _open(options)
        look = None if options.model is None else look_at(options.model, device=options.device)
        report = check_quality(data, duplicates=not options.no_duplicates, look=look, progress=show_progress)
    result = {"name": options.name, "root": str(data.root), **report.to_dict(), "notes": notes}
    if options.out is not None:
        result["files"] = [str(path) for path in _write_quality(data, options.name, report, Path(options.out))]
    return _say(result, print_quality, options)


def _write_quality(data: Any, name: str, report: QualityReport, out: Path) -> list[Path]:
    import pandas as pd

    from covidcxr.data.pictures import draw_contact_sheet, quality_rows, save_picture
    from covidcxr.io.folders import replace_file
    from covidcxr.io.pretrained import write_json
    from covidcxr.utils.console import show_progress

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "quality.json", report.to_dict())
    with replace_file(out / "quality.csv") as draft:
        pd.DataFrame([image.row() for image in report.images]).to_csv(draft, index=False)
    files = [out / "quality.json", out / "quality.csv"]
    if rows := quality_rows(report):
        with show_progress("contact sheet") as progress:
            sheet = draw_contact_sheet(data, title=f"{name}, worst images", rows=rows, progress=progress)
        files.append(save_picture(sheet, out / "contact-sheet.png"))
    return files


def _drift(options: argparse.Namespace) -> int:
    from covidcxr.cli.tables import print_drift
    from covidcxr.data.summary import open_dataset
    from covidcxr.evaluation.shortcuts import compare_data, make_drift_page
    from covidcxr.io.pretrained import write_json
    from covidcxr.page import write_html
    from covidcxr.utils.console import collect_notes, show_progress

    with collect_notes() as notes:
        drift = compare_data(
            _open(options),
            open_dataset(options.other, options.other_root),
            names=_two_names(options),
            seed=options.seed,
            pixels=not options.no_pixels,
            segmenter=options.model,
            max_images=options.max_images,
            progress=show_progress,
        )
    result = {**drift.to_dict(), "notes": notes}
    if options.out is not None:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "drift.json", result)
        result["files"] = [str(out / "drift.json"), str(write_html(make_drift_page(drift), out / "drift.html"))]
    return _say(result, print_drift, options)


def _two_names(options: argparse.Namespace) -> tuple[str, str]:
    """Name the two data sets, by their folders where both are of one kind."""
    names = options.name, options.other
    if names[0] == names[1]:
        names = Path(options.root or names[0]).name, Path(options.other_root or names[1]).name
    return names if names[0] != names[1] else (f"{names[0]} (first)", f"{names[1]} (second)")


def _masks(options: argparse.Namespace) -> int:
    from covidcxr.cli.tables import print_masks
    from covidcxr.pipeline.lung_masks import draw_masks
    from covidcxr.utils.console import collect_notes, show_progress

    with collect_notes() as notes:
        data = _open(options)
        with show_progress("images") as progress:
            report = draw_masks(
                data,
                options.out,
                model=options.model,
                min_lung_area=options.min_lung_area,
                device=options.device,
                progress=progress,
            )
    _say({"name": options.name, "out": options.out, **report.to_dict(), "notes": notes}, print_masks, options)
    return 1 if report.failed else 0


def _prepare(options: argparse.Namespace) -> int:
    from covidcxr.cli.tables import print_copy
    from covidcxr.data.curation.prepare import prepare_dataset
    from covidcxr.io.archives import unpack
    from covidcxr.utils.console import collect_notes, show_progress

    if options.archive and options.root is None:
        raise ConfigError("--archive needs --data.root DIR: the folder to unpack into.")
    for archive in options.archive:
        with show_progress(f"unpacking {Path(archive).name}", of_bytes=True) as progress:
            unpack(archive, options.root, progress=progress)
    with collect_notes() as notes:
        data = _open(options)
        with show_progress("images") as progress:
            report = prepare_dataset(
                data,
                options.out,
                image_size=tuple(options.image_size),
                fit=options.fit,
                num_workers=options.num_workers,
                memory_map=not options.no_memory_map,
                progress=progress,
            )
    _say({"name": options.name, **report.to_dict(), "notes": notes}, print_copy, options)
    return 1 if report.failed else 0


def _open(options: argparse.Namespace) -> Any:
    from covidcxr.data.summary import open_dataset, parse_settings

    return open_dataset(options.name, options.root, parse_settings(options.set))


def _say(result: Any, in_words: Callable[[Any], None], options: argparse.Namespace) -> int:
    if options.json:
        from covidcxr.utils.console import screen

        screen().file.write(json_text(result, default=str) + "\n")
    else:
        in_words(result)
    return 0
