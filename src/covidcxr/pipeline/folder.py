"""Many images from disk to disk: JSON lines, masks, overlays, a contact sheet."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covidcxr.data.files import IMAGE_SUFFIXES
from covidcxr.errors import ConfigError
from covidcxr.io.atomic import replace_file
from covidcxr.page import STYLE
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import Prediction, in_words
from covidcxr.transforms.overlay import MASK_COLORS
from covidcxr.utils.threads import tracked

__all__ = ["find_images", "load_pipeline", "predict_folder", "print_summary", "write_sheet"]

_STYLE = """
.key i { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin: 0 .3em 0 .9em; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 1rem; margin-top: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.card img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; }
.card div { padding: .6rem .8rem .8rem; }
.name { font-size: .8rem; color: var(--dim); overflow-wrap: anywhere; }
.answer { font-weight: 600; font-size: 1.05rem; } .doubt { color: var(--doubt); } .bad { color: var(--bad); }
.row { display: grid; grid-template-columns: 6.5rem 1fr 3rem; gap: .5rem; align-items: center; font-size: .85rem; }
.row b { font-weight: 400; } .row span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.bar { height: .5rem; border-radius: 3px; background: var(--line); }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--bar); }
"""


def write_sheet(path: Path, entries: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write the page; its pictures are the overlays in `films/` beside it.

    Args:
        path: Where to write.
        entries: One an image: its `name` and what `Prediction.to_dict` or `FailedPrediction.to_dict` gave.
        summary: What `covidcxr.batch.predict_folder` counts.
    """
    cards = "\n".join(_failure(entry) if "error" in entry else _card(entry) for entry in entries)
    counts = ", ".join(f"{count} {escape(label)}" for label, count in summary["answers"].items()) or "no answers"
    used = {name for entry in entries for name in entry.get("mask_areas", {})}
    key = "".join(
        f'<i style="background:rgb{color}"></i>{escape(name.replace("_", " "))}'
        for name, color in MASK_COLORS.items()
        if name in used
    )
    left_out = ", ".join(f"{count} {escape(suffix)}" for suffix, count in summary["left_out"].items())
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        '<link rel="icon" href="data:,">',
        f"<title>covidcxr: {summary['films']} images</title><style>{STYLE}{_STYLE}</style></head><body>",
        f"<h1>{summary['films']} images</h1><p>{counts}; {summary['failed']} unreadable</p>",
        f'<p class="dim">Left out, no images: {left_out}</p>' if left_out else "",
        f'<p class="key dim">Outlines:{key}</p>' if key else "",
        '<p class="notice">For research only, not for clinical use. A probability is what this model says after '
        "calibration on its own data; on images from elsewhere it can be wrong and sure.</p>",
        f'<main class="grid">{cards}</main></body></html>',
    ]
    with replace_file(path) as temporary:
        page = "\n".join(line for line in lines if line) + "\n"
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _card(entry: dict[str, Any]) -> str:
    name = entry["name"]
    picture = escape(quote(f"films/{name}.overlay.png"), quote=True)
    rows = "".join(
        f'<p class="row"><b>{escape(label)}</b><span class="bar"><i style="width:{value:.1%}"></i></span>'
        f"<span>{value:.0%}</span></p>"
        for label, value in entry["probabilities"].items()
    )
    said = [*entry["reasons"], *entry["notes"]]
    doubts = "".join(f'<p class="doubt">{escape(in_words(word))}</p>' for word in said)
    parts = (("lung_fraction", "lungs {:.0%} of the image"), ("infected_fraction", "infected {:.0%} of the lungs"))
    areas = [words.format(entry[part]) for part, words in parts if entry[part] is not None]
    answer = escape(entry["label"] or ("cannot say" if entry["probabilities"] or entry["reasons"] else ""))
    return (
        f'<article class="card"><img loading="lazy" src="{picture}" alt="{escape(name, quote=True)} with outlines">'
        f'<div><p class="name">{escape(name)}</p><p class="answer{"" if entry["label"] else " doubt"}">{answer}</p>'
        f'{rows}{doubts}<p class="name">{escape("; ".join(areas))}</p></div></article>'
    )


def _failure(entry: dict[str, Any]) -> str:
    return (
        f'<article class="card"><div><p class="name">{escape(entry["name"])}</p>'
        f'<p class="answer bad">unreadable</p><p>{escape(entry["error"])}</p></div></article>'
    )


SEARCHED_SUFFIXES = IMAGE_SUFFIXES | {""}  # DICOM files often have none


def find_images(
    paths: Sequence[str | os.PathLike[str]], root: str | os.PathLike[str] | None = None
) -> tuple[list[tuple[Path, str]], Counter[str]]:
    """List the images that paths mean: files as they are, folders with all images below them, sorted.

    Args:
        paths: Files and folders. A file that is missing or no image is kept: reading it will say what is wrong.
        root: Name the answers by the images' paths below this folder; by default below the folder given in `paths`.

    Returns:
        Each image's path with a name for its answers, made unique, and how many files of which suffix were left out
        because they are no images.

    Raises:
        ConfigError: If an image does not lie below `root`.
    """
    images: list[tuple[Path, str]] = []
    names: set[str] = set()
    left_out: Counter[str] = Counter()
    for given in map(Path, paths):
        is_folder = os.path.isdir(given)  # noqa: PTH112 - Path.is_dir raises where a folder above is locked
        for path in _files_below(given) if is_folder else [given]:
            below = _below(path, root if root is not None else given if is_folder else path.parent)
            if is_folder and (path.suffix.lower() not in SEARCHED_SUFFIXES or path.name.startswith(".")):
                left_out[path.suffix.lower() or path.name] += 1
                continue
            name, number = below.as_posix(), 2
            while name in names:
                name, number = f"{below.with_suffix('').as_posix()}-{number}{below.suffix}", number + 1
            names.add(name)
            images.append((path, name))
    return images, left_out


def _files_below(folder: Path) -> list[Path]:
    """List all files, through links too; a folder that cannot be opened is listed itself, so that it is reported."""
    found: list[Path] = []
    seen: set[str] = set()

    def report(error: OSError) -> None:
        found.append(Path(error.filename))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=report):
        if {"predictions.jsonl", "explanations.json"} & set(names) and "films" in folders:
            folders.remove("films")  # our own masks, maps and overlays of an earlier run are no images
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        found.extend(Path(place, name) for name in names)
    return sorted(found)


def _below(path: Path, root: str | os.PathLike[str]) -> Path:
    try:
        below = Path(os.path.abspath(path)).relative_to(os.path.abspath(root))  # noqa: PTH100 - Path keeps the ..
    except ValueError as error:
        raise ConfigError(f"{path} does not lie below the root {os.fspath(root)}.") from error
    return Path(_readable(str(below)))


def _readable(text: str) -> str:
    """Return a file's name as text that can be written: bytes that are no UTF-8 are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def predict_folder(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | Pipeline = "mini",
    batch_size: int = 16,
    num_workers: int = 2,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Answer for images and write the answers into a folder.

    Writes `predictions.jsonl` (a line an image, as they are answered), `films/NAME.json`, `.overlay.png` and a
    `.MASK.png` a mask class for each image, `summary.json`, and `index.html`, the contact sheet.

    Args:
        paths: Images, or folders that are searched for images.
        out: Where the answers go; made if need be.
        root: Name the answers by the images' paths below this folder; by default below the folder given.
        model: A pipeline, or where to load one from.
        batch_size: Images a batch.
        num_workers: Threads that read images.
        device: Where the models run.
        progress: Show a progress bar on standard error.

    Returns:
        The summary: counts of images, answers, doubts and failures, and the paths written.

    Raises:
        ConfigError: If no image was found, or the device is not there.
        PretrainedError: If the model cannot be had.
    """
    images, left_out = find_images(paths, root)
    if not images:
        raise ConfigError(f"No images found in {', '.join(map(str, paths))} (looked for {_suffixes()}).")
    pipeline = load_pipeline(model, device)
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    for stale in ("index.html", "summary.json"):  # of an earlier run: they would outlive an interruption of this one
        (target / stale).unlink(missing_ok=True)
    entries = []
    answers = pipeline.predict(
        [path for path, _ in images], batch_size=batch_size, num_workers=num_workers, on_error="return"
    )
    with (target / "predictions.jsonl").open("w", encoding="utf-8") as lines:
        for (_, name), answer in tracked(zip(images, answers, strict=True), len(images), "images", progress):
            entry = {"name": name, **answer.to_dict()}
            if isinstance(answer, Prediction):
                place = target / "films" / name
                try:
                    answer.save(place.parent, place.name)
                except OSError as error:  # a name too long for this disk must not cost the other images
                    entry = {"name": name, "error": f"The answers cannot be written: {error}", "kind": "OSError"}
            lines.write(json.dumps(entry) + "\n")
            entries.append(entry)
    summary = _summary(entries, left_out, target)
    write_sheet(target / "index.html", entries, summary)
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def load_pipeline(model: str | os.PathLike[str] | Pipeline, device: str = "cpu") -> Pipeline:
    """Return a pipeline, or load it from where it is said to be, on a device.

    Raises:
        ConfigError: If the device is not there.
        PretrainedError: If the model cannot be had.
    """
    pipeline = model if isinstance(model, Pipeline) else Pipeline.from_pretrained(model)
    try:
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise ConfigError(f"The device {device!r} cannot be used ({str(error).splitlines()[0]}).") from error


def print_summary(summary: dict[str, Any], *, as_json: bool = False) -> None:
    """Print what `predict_folder` returned, for people or as JSON."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)  # an image may be called "[red].png"
    if as_json:
        console.file.write(json.dumps(summary) + "\n")
        return
    console.print(f"{summary['films']} images, {summary['failed']} of them unreadable")
    for label, count in summary["answers"].items():
        console.print(f"  {label:<14} {count}")
    for failure in summary["failures"][:10]:
        console.print(_readable(f"unreadable: {failure['error']}"), style="red")
    if len(summary["failures"]) > 10:
        console.print(f"... and {len(summary['failures']) - 10} more, in predictions.jsonl")
    console.print(f"Page: {summary['page']}\nFor research only; not for clinical use.")


def _summary(entries: list[dict[str, Any]], left_out: Counter[str], target: Path) -> dict[str, Any]:
    answered = [entry for entry in entries if "error" not in entry]
    answers = Counter(entry["label"] or ("cannot say" if entry["probabilities"] else "no answer") for entry in answered)
    reasons = Counter(reason for entry in answered for reason in entry["reasons"])
    failures = [{"name": entry["name"], "error": entry["error"]} for entry in entries if "error" in entry]
    return {
        "films": len(entries),
        "failed": len(failures),
        "answers": dict(answers.most_common()),
        "reasons": dict(reasons.most_common()),
        "notes": dict(Counter(note for entry in answered for note in entry["notes"]).most_common()),
        "failures": failures,
        "left_out": dict(left_out),
        "page": str((target / "index.html").resolve()),
        "predictions": str((target / "predictions.jsonl").resolve()),
    }


def _suffixes() -> str:
    return ", ".join(sorted(suffix for suffix in SEARCHED_SUFFIXES if suffix))
