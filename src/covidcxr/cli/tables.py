"""What the verbs of `covidcxr datasets` say, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from covidcxr.utils.console import screen

__all__ = [
    "print_copy",
    "print_datasets",
    "print_description",
    "print_drift",
    "print_masks",
    "print_quality",
    "print_report",
    "print_survey",
]

_MOST = 10  # images named one by one


def print_datasets(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print the data sets.

    Args:
        entries: What `list_datasets` returned, as plain data.
    """
    table = _table("name", "kind", ">images", "what it is")
    for entry in entries:
        if "error" in entry:
            table.add_row(entry["name"], "", "", f"cannot be loaded: {entry['error']}", style="red")
            continue
        classes = f"classes: {', '.join(entry['classes']) or 'as found'}"
        what = Text.assemble(entry["what"], "\n", (classes, "dim"))
        table.add_row(entry["name"], entry["modality"], _number(entry["films"]), what)
    console = screen()
    console.print(table)
    console.print(
        "Images: of the release that is read unless told otherwise, before any are left out. "
        "More: covidcxr datasets show NAME"
    )


def print_description(facts: Mapping[str, Any]) -> None:
    """Print one data set.

    Args:
        facts: What `describe_dataset` returned, as plain data.
    """
    console = screen()
    console.print(f"{facts['name']} ({facts['class']})\n", style="bold")
    for paragraph in facts["description"].split("\n\n"):
        is_code = paragraph.startswith(" ")
        console.print(f"{paragraph if is_code else ' '.join(paragraph.split())}\n", soft_wrap=is_code)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    words = {"homepage": "get it from", "layout": "root holds", "license": "licence", "citation": "cite"}
    table.add_row("pictures", facts["modality"])
    table.add_row("classes", ", ".join(facts["classes"]) or "as found")
    for key, word in words.items():
        if facts[key]:
            table.add_row(word, facts[key])
    console.print(table)
    if facts["arguments"]:
        console.print("\nIts own settings, besides those of every data set (--data.NAME VALUE):", style="bold")
        table = _table("name", "type", "default", "what it does")
        for argument in facts["arguments"]:
            default = "(needed)" if argument["required"] else _yaml(argument["default"])
            table.add_row(argument["name"], argument["type"], default, argument["what"])
        console.print(table)
    if facts["releases"]:
        console.print("\nFilms as published, before any are left out:", style="bold")
        console.print(_releases(facts["releases"]))
    if facts["caveats"]:
        console.print("\nBefore you trust a number measured on it:", style="bold")
        console.print(_listed(facts["caveats"]))


def print_report(report: Mapping[str, Any]) -> None:
    """Print a check.

    Args:
        report: What `check_dataset` returned, as plain data.
    """
    console = screen()
    if report["counts"]:
        table = _table("split/label", ">images")
        for part, images in sorted(report["counts"].items()):
            table.add_row(part, _number(images))
        console.print(table)
    if report["release"]:
        console.print(f"These are the counts of the release {report['release']}.")
    for fault in report["faults"]:
        console.print(f"fault: {fault}", style="red", soft_wrap=True)
    for note in report["notes"]:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    if report["complete"]:
        scope = "" if report["release"] else " This holds for what is listed: no expected count is known."
        console.print(f"Nothing is missing: {report['films']:,} images to use.{scope}", soft_wrap=True)
    else:
        console.print(f"{len(report['faults']):,} fault(s); {report['films']:,} images are listed to be used.")


def print_copy(report: Mapping[str, Any]) -> None:
    """Print a compact copy.

    Args:
        report: What `prepare_dataset` returned, as plain data.
    """
    console = screen()
    there = report["films"] - report["written"]
    before = f" ({there:,} of them by an earlier run)" if there else ""
    console.print(
        f"{report['films']:,} images{before}, {report['size'] / 1e6:,.1f} MB: {report['out']}", soft_wrap=True
    )
    for reason, images in report["left_out"].items():
        console.print(f"left out: {images:,} ({reason})", style="yellow")
    for failure in report["failed"][:_MOST]:
        console.print(f"cannot be read: {failure['error']}", style="red", soft_wrap=True)
    if len(report["failed"]) > _MOST:
        console.print(f"... and {len(report['failed']) - _MOST:,} more, in failed.jsonl")
    for note in report["notes"]:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    use = f"covidcxr fit --data {report['name']} --data.root {report['out']}"
    console.print(f"Use it in place of the data set, with the same settings: {use}", soft_wrap=True)


def print_masks(report: Mapping[str, Any]) -> None:
    """Print predicted masks.

    Args:
        report: What `draw_masks` returned, as plain data.
    """
    console = screen()
    console.print(f"Lung masks of {report['films']:,} images: {report['out']}", soft_wrap=True)
    console.print(
        f"The lungs of {len(report['small']):,} cover less than {report['min_lung_area']:.0%} of the image: small.csv"
    )
    for image_id, area in list(report["small"].items())[:_MOST]:
        console.print(f"  {area:6.1%}  {image_id}", soft_wrap=True)
    for reason in list(report["failed"].values())[:_MOST]:
        console.print(f"cannot be read: {reason}", style="red", soft_wrap=True)
    for note in report["notes"]:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    least = f" --data.min_lung_area {report['min_lung_area']}" if report["small"] else ""
    console.print(f"Use them: covidcxr fit --data {report['name']} ... --data.drawn_masks {report['out']}{least}")


def print_quality(report: Mapping[str, Any]) -> None:
    """Print image quality.

    Args:
        report: What `check_quality` returned, as plain data.
    """
    console = screen()
    table = _table("flag", ">images", ">share", "when")
    for flag, count in report["flags"].items():
        limit = report["limits"].get(flag)
        when = ""
        if limit:
            when = f"{limit['score'].replace('_', ' ')} {'above' if limit['high'] else 'below'} {limit['limit']:.3g}"
        table.add_row(flag, _number(count), f"{count / report['images']:.1%}", when)
    console.print(f"{report['flagged']:,} of {report['images']:,} images have a flag.", style="bold")
    if report["flags"]:
        console.print(table)
    unreadable = [image for image in report["flagged_images"] if image["error"]]
    for image in unreadable[:_MOST]:
        console.print(f"cannot be read: {image['error']}", style="red", soft_wrap=True)
    _print_notes(console, report)


def print_drift(report: Mapping[str, Any]) -> None:
    """Print a comparison of two data sets.

    Args:
        report: What `compare_data` returned, as plain data.
    """
    console = screen()
    console.print(report["verdict"], style="bold", soft_wrap=True)
    table = _table("what", *report["parts"], "difference [95 % interval]", "")
    for own in [*([report["label"]] if report["label"] else []), *report["covariates"]]:
        for value, difference in own["difference"].items():
            name = own["name"] if own["kind"] == "mean" else f"{own['name']}: {value}"
            parts = [f"{own[part][value]['value']:.3g}" for part in ("first", "second")]
            interval = f"{difference['value']:.3g} [{difference['low']:.3g}, {difference['high']:.3g}]"
            table.add_row(name.replace("_", " "), *parts, interval, "differs" if own["differs"] else "")
    console.print(table)
    _print_notes(console, report)


def _print_notes(console: Console, report: Mapping[str, Any]) -> None:
    """Print the notes of a report, and the files that were written."""
    for note in report["notes"]:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    for path in report.get("files", ()):
        console.print(f"Written: {path}", soft_wrap=True)


def print_survey(survey: Mapping[str, Any]) -> None:
    """Print a survey.

    Args:
        survey: What `survey` returned, as plain data.
    """
    console = screen()
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in survey["left_out"].items())
    console.print(f"{survey['films']:,} images" + (f"; left out: {left_out}" if left_out else ""), style="bold")
    tables = [_counts(key, survey[key], survey["films"]) for key in ("view", "sex", "age", "mask") if survey[key]]
    for name in ("split", "source"):
        console.print(_cross(name, survey))
    console.print(Columns(tables, padding=(0, 4)))
    console.print(_patients(survey["patients"]))
    if survey["pixels"]:
        console.print(_pixels(survey["pixels"]))
    if survey["notes"]:
        console.print("\nBefore you trust a number measured on it:", style="bold")
        console.print(_listed(survey["notes"]))
    for path in survey.get("pictures", ()):
        console.print(f"Picture: {path}", soft_wrap=True)


def _table(*columns: str) -> Table:
    """Return an empty table; the cells of a column called ">..." stand on the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for place, column in enumerate(columns):
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=right or place == 0)
    return table


def _counts(name: str, counts: Mapping[str, int], images: int) -> Table:
    table = _table(name, ">images", ">share")
    for value, count in counts.items():
        table.add_row(value, _number(count), f"{count / images:.0%}")
    return table


def _cross(name: str, result: Mapping[str, Any]) -> Table:
    """Return the images by label for each value of another field; the longer side goes down."""
    cells, images = (
        result[f"label_by_{name}"],
        {value: result[name].get(value, 0) for value in result[f"label_by_{name}"]},
    )
    if len(result["label"]) > len(cells):
        cells = {label: {value: counts[label] for value, counts in cells.items()} for label in result["label"]}
        return _sums("label", cells, rows=result["label"], columns=images, images=result["films"])
    return _sums(name, cells, rows=images, columns=result["label"], images=result["films"])


def _sums(
    name: str, cells: Mapping[str, Mapping[str, int]], rows: Mapping[str, int], columns: Mapping[str, int], images: int
) -> Table:
    table = _table(name, *(f">{column}" for column in columns), ">images")
    for row, counts in cells.items():
        table.add_row(row, *map(_number, counts.values()), _number(rows[row]))
    table.add_section()
    table.add_row("all", *map(_number, columns.values()), _number(images))
    return table


def _releases(releases: Mapping[str, Mapping[str, int]]) -> Table:
    """Return the published counts, a column a release."""
    table = _table("split/label", *(f">{release}" for release in releases))
    for part in dict.fromkeys(part for counts in releases.values() for part in counts):
        table.add_row(part, *(_number(counts.get(part)) for counts in releases.values()))
    table.add_section()
    table.add_row("all", *(_number(sum(counts.values())) for counts in releases.values()))
    return table


def _listed(sentences: Iterable[str]) -> Table:
    """Return sentences as a list whose lines hang."""
    table = Table.grid(padding=(0, 1))
    for sentence in sentences:
        table.add_row("-", sentence)
    return table


def _patients(patients: Mapping[str, Any]) -> str:
    parts = []
    if patients["patients"]:
        images = [int(number) for number in patients["by_films"]]
        parts.append(f"{patients['patients']:,} patients with {min(images)} to {max(images)} images each.")
    if patients["films_of_unknown_patients"]:
        parts.append(
            f"{patients['films_of_unknown_patients']:,} images do not tell their patient: each counts as a patient of "
            f"its own, and images of one patient may train and test."
        )
    return " ".join(parts)


def _pixels(pixels: Mapping[str, Any]) -> str:
    if "error" in pixels:
        return f"No mean and standard deviation: {pixels['error']}"
    images = f"{pixels['films']:,} of {pixels['training_films']:,} training images"
    size = " x ".join(map(str, pixels["image_size"]))
    return f"Grey values: mean {pixels['mean']:.4f}, standard deviation {pixels['std']:.4f} ({images}, at {size})."


def _number(count: int | None) -> str:
    return f"{count:,}" if count else ""


def _yaml(value: object) -> str:
    """Write a default as YAML would: null, true, [1, 2]."""
    import yaml

    words: str = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return words.strip().removesuffix("...").strip()
