"""Many images from disk to disk: JSON lines, masks, overlays, and a contact sheet (one HTML page)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from covidcxr.data.files import IMAGE_SUFFIXES
from covidcxr.errors import ConfigError
from covidcxr.io.atomic import replace_file
from covidcxr.page import STYLE, load_template
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import FailedPrediction, Prediction, in_words
from covidcxr.transforms.overlay import mask_colors
from covidcxr.utils.threads import tracked

__all__ = ["find_images", "load_pipeline", "predict_folder", "print_summary", "write_sheet"]

SEARCHED_SUFFIXES = IMAGE_SUFFIXES | {""}  # DICOM files often have none
_SHOWN = {"cannot say": "indeterminate"}
"""Labels of the summary that people read under another name."""


def find_images(
    paths: Sequence[str | os.PathLike[str]], root: str | os.PathLike[str] | None = None
) -> tuple[list[tuple[Path, str]], Counter[str]]:
    """List the images that paths mean: files as they are, folders with all images below them, sorted.

    Args:
        paths: Files and folders. A file that is missing or no image is kept: reading it will say what is wrong.
        root: Name the outputs by the images' paths below this folder; by default below the folder given in `paths`.

    Returns:
        Each image's path with a name for its outputs, made unique, and how many files of which suffix were left out
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
    files: list[Path] = []
    seen: set[str] = set()

    def report(error: OSError) -> None:
        files.append(Path(error.filename))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=report):
        if {"predictions.jsonl", "explanations.json"} & set(names) and "films" in folders:
            folders.remove("films")  # our own masks, maps and overlays of an earlier run are no images
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        files.extend(Path(place, name) for name in names)
    return sorted(files)


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
    bits: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict for images and write the results into a folder.

    Writes `predictions.jsonl` (a line an image, as they are predicted), `films/NAME.json`, `.overlay.png` and a
    `.MASK.png` a mask class for each image, `summary.json`, and `index.html`, the contact sheet.

    Args:
        paths: Images, or folders that are searched for images.
        out: Where the results go; made if need be.
        root: Name the outputs by the images' paths below this folder; by default below the folder given.
        model: A pipeline, or where to load one from.
        batch_size: Batch size.
        num_workers: Data-loader threads.
        device: Where the models run.
        bits: Bits of numbers whose type does not tell, 8 to 16; see `read_image`.
        progress: Show a progress bar on standard error.

    Returns:
        The summary: counts of images, predictions, reasons and failures, and the paths written.

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
    predictions = pipeline.predict(
        [path for path, _ in images], batch_size=batch_size, num_workers=num_workers, on_error="return", bits=bits
    )
    with (target / "predictions.jsonl").open("w", encoding="utf-8") as lines:
        for (_, name), prediction in tracked(zip(images, predictions, strict=True), len(images), "images", progress):
            entries.append({"name": name, **_written(prediction, target / "films" / name)})
            lines.write(json.dumps(entries[-1]) + "\n")
    summary = _summary(entries, left_out, target)
    write_sheet(target / "index.html", entries, summary)
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _written(prediction: Prediction | FailedPrediction, place: Path) -> dict[str, Any]:
    """Write a prediction's files and return what the list says of it."""
    if isinstance(prediction, Prediction):
        try:
            prediction.save(place.parent, place.name)
        except OSError as error:  # a name too long for this disk must not cost the other images
            return {"error": f"The prediction cannot be written: {error}", "kind": "OSError"}
    return prediction.to_dict()


def load_pipeline(model: str | os.PathLike[str] | Pipeline, device: str = "cpu") -> Pipeline:
    """Return a pipeline on a device.

    Args:
        model: The pipeline, or where to load it from: a bundled name, a folder, or a Hub repository.
        device: "cpu", "cuda", "cuda:1", "mps".

    Returns:
        The pipeline.

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
    """Print what `predict_folder` returned.

    Args:
        summary: The summary.
        as_json: As one line of JSON instead of text.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)  # an image may be called "[red].png"
    if as_json:
        console.file.write(json.dumps(summary) + "\n")
        return
    console.print(f"{summary['films']} images, {summary['failed']} of them unreadable")
    for label, count in summary["answers"].items():
        console.print(f"  {_SHOWN.get(label, label):<14} {count}")
    for failure in summary["failures"][:10]:
        console.print(_readable(f"unreadable: {failure['error']}"), style="red")
    if len(summary["failures"]) > 10:
        console.print(f"... and {len(summary['failures']) - 10} more, in predictions.jsonl")
    console.print(f"Page: {summary['page']}\nFor research only; not for clinical use.")


def write_sheet(path: Path, entries: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write the contact sheet; its pictures are the overlays in `films/` beside it.

    Args:
        path: The HTML file.
        entries: For each image its `name` and what `Prediction.to_dict` or `FailedPrediction.to_dict` returned.
        summary: What `predict_folder` returns.
    """
    from markupsafe import Markup

    classes = dict.fromkeys(name for entry in entries for name in entry.get("mask_areas", {}))
    counts = (f"{count} {_SHOWN.get(label, label)}" for label, count in summary["answers"].items())
    page = load_template("contact_sheet.html.jinja").render(
        style=Markup(STYLE),
        summary=summary,
        counts=", ".join(counts),
        left_out=", ".join(f"{count} {suffix}" for suffix, count in summary["left_out"].items()),
        colors={name.replace("_", " "): color for name, color in mask_colors(classes).items()},
        cards=[
            {"name": entry["name"], "error": entry["error"]} if "error" in entry else _card(entry) for entry in entries
        ],
    )
    with replace_file(path) as temporary:
        temporary.write_text(f"{page}\n", encoding="utf-8", errors="backslashreplace")


def _card(entry: dict[str, Any]) -> dict[str, Any]:
    """Return what the contact sheet shows of a prediction."""
    areas = [] if entry["lung_fraction"] is None else [f"lungs {entry['lung_fraction']:.0%} of the image"]
    shares = entry["finding_fractions"].items()
    undecided = _SHOWN["cannot say"] if entry["probabilities"] or entry["reasons"] else ""
    return {
        "name": entry["name"],
        "picture": quote(f"films/{entry['name']}.overlay.png"),
        "label": entry["label"],
        "result": entry["label"] or undecided,
        "probabilities": entry["probabilities"],
        "sentences": [in_words(word) for word in (*entry["reasons"], *entry["notes"])],
        "areas": "; ".join([*areas, *(f"{name.replace('_', ' ')} {share:.0%} of the lungs" for name, share in shares)]),
    }


def _summary(entries: list[dict[str, Any]], left_out: Counter[str], target: Path) -> dict[str, Any]:
    read = [entry for entry in entries if "error" not in entry]
    labels = Counter(entry["label"] or ("cannot say" if entry["probabilities"] else "no answer") for entry in read)
    failures = [{"name": entry["name"], "error": entry["error"]} for entry in entries if "error" in entry]
    return {
        "films": len(entries),
        "failed": len(failures),
        "answers": dict(labels.most_common()),
        "reasons": dict(Counter(reason for entry in read for reason in entry["reasons"]).most_common()),
        "notes": dict(Counter(note for entry in read for note in entry["notes"]).most_common()),
        "failures": failures,
        "left_out": dict(left_out),
        "page": str((target / "index.html").resolve()),
        "predictions": str((target / "predictions.jsonl").resolve()),
    }


def _suffixes() -> str:
    return ", ".join(sorted(suffix for suffix in SEARCHED_SUFFIXES if suffix))
