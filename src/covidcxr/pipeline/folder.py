"""Many images from disk to disk: JSON lines, masks, overlays, and a contact sheet (one HTML page)."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from covidcxr.data.files import IMAGE_SUFFIXES
from covidcxr.errors import ConfigError
from covidcxr.io.atomic import replace_file
from covidcxr.io.folders import RUN_FILE, fails_everywhere, path_inside, run_folder
from covidcxr.io.pretrained import write_json
from covidcxr.pipeline.batches import BATCH_IMAGES
from covidcxr.pipeline.contact_sheet import SHOWN_LABELS, write_sheet
from covidcxr.pipeline.parts import fingerprint
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import FailedPrediction, OverlayFormat, Prediction
from covidcxr.utils.plain import json_text, user_path
from covidcxr.utils.threads import tracked

__all__ = ["digest_images", "find_images", "load_pipeline", "predict_folder", "print_summary"]

SEARCHED_SUFFIXES = IMAGE_SUFFIXES | {""}  # DICOM files often have none
_LINES, _SUMMARY, _PAGE = "predictions.jsonl", "summary.json", "index.html"
_RESULTS = {RUN_FILE, _LINES, _SUMMARY, _PAGE, "explanations.json"}
"""What we write beside `films`; a folder with `RUN_FILE`, or with a table of 0.1.0, is one of ours."""


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
    numbers: dict[str, int] = {}  # by name as a disk sees it that knows neither upper case nor how an accent is made
    left_out: Counter[str] = Counter()
    for given in map(Path, paths):
        is_folder = os.path.isdir(given)  # noqa: PTH112 - Path.is_dir raises where a folder above is locked
        for path in _files_below(given) if is_folder else [given]:
            below = _below(path, root if root is not None else given if is_folder else path.parent)
            if is_folder and (path.suffix.lower() not in SEARCHED_SUFFIXES or path.name.startswith(".")):
                left_out[path.suffix.lower() or path.name] += 1
                continue
            images.append((path, _unique(below, numbers)))
    return images, left_out


def _unique(below: Path, numbers: dict[str, int]) -> str:
    """Return a name that no image before has: the path itself, or with a number before its ending."""
    name = below.as_posix()
    first = _as_on_disk(name)
    while _as_on_disk(name) in numbers:
        numbers[first] += 1
        name = f"{below.with_suffix('').as_posix()}-{numbers[first]}{below.suffix}"
    numbers[_as_on_disk(name)] = 1
    return name


def _as_on_disk(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _files_below(folder: Path) -> list[Path]:
    """List all files, through links too; a folder that cannot be opened is listed itself, so that it is reported."""
    files: list[Path] = []
    seen: set[str] = set()

    def report(error: OSError) -> None:
        files.append(Path(error.filename))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=report):
        if {RUN_FILE, _LINES, "explanations.json"} & set(names):  # what an earlier run of ours wrote is no image
            folders[:] = [name for name in folders if name != "films"]
            names = [name for name in names if name not in _RESULTS and not name.startswith(".")]
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        files.extend(Path(place, name) for name in names)
    return sorted(files)


def _below(path: Path, root: str | os.PathLike[str]) -> Path:
    try:
        below = Path(os.path.abspath(path)).relative_to(os.path.abspath(user_path(root)))  # noqa: PTH100 - Path keeps the ..
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
    batch_size: int = BATCH_IMAGES,
    num_workers: int = 2,
    device: str = "cpu",
    bits: int | None = None,
    overlays: OverlayFormat | None = "jpg",
    masks: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict for images and write the results into a folder, which belongs to this run.

    Writes `films/NAME.json`, `.overlay.jpg` and a `.MASK.png` a mask class for each image, `predictions.jsonl` (a line
    an image), `summary.json`, and `index.html`, the contact sheet. It can be interrupted at any moment, and the same
    call goes on where it stopped: a batch is written while the next one is computed, and its lines are on the disk
    before the one after that begins. A line tells the sizes of its image's files; where one of them is missing or cut
    short, say by a power failure, the image is predicted again. Images that failed are tried again.

    Args:
        paths: Images, or folders that are searched for images.
        out: Where the results go; made if need be.
        root: Name the outputs by the images' paths below this folder; by default below the folder given.
        model: A pipeline, or where to load one from.
        batch_size: Batch size.
        num_workers: Data-loader threads.
        device: Where the models run.
        bits: Bits of numbers whose type does not tell, 8 to 16; see `read_image`.
        overlays: Format of the overlays, as of `Prediction.save`; None = none.
        masks: Write the masks.
        overwrite: Remove what an earlier run wrote into the folder, and start over.
        progress: Show a progress bar on standard error.

    Returns:
        The summary: counts of images, predictions, reasons and failures, and the paths written.

    Raises:
        ConfigError: If no image was found, the device is not there, or the folder is of another run, in use or locked.
        PretrainedError: If the model cannot be had.
    """
    images, left_out = find_images(paths, root)
    if not images:
        raise ConfigError(f"No images found in {', '.join(map(str, paths))} (looked for {_suffixes()}).")
    pipeline = load_pipeline(model, device)
    settings = {"command": "predict", "model": fingerprint(pipeline), "images": digest_images(images), "bits": bits}
    settings |= {} if overlays == "jpg" else {"overlays": overlays or "none"}  # a run of an earlier release goes on
    settings |= {} if masks else {"masks": False}
    endings = ("json", "overlay.png", "overlay.jpg", *(f"{name}.png" for name in pipeline.mask_classes))
    writes = [_LINES, _SUMMARY, _PAGE, *(f"films/*.{ending}" for ending in endings)]
    with run_folder(out, settings, writes, overwrite=overwrite) as target:
        reading = {"batch_size": batch_size, "num_workers": num_workers, "bits": bits}
        run = _Run(pipeline, target, images, reading, {"overlay": overlays, "masks": masks})
        entries = run.go(progress)
        write_sheet(target / _PAGE, entries, summary := _summary(entries, left_out, target))
        write_json(target / _SUMMARY, summary)
    return summary


def digest_images(images: Sequence[tuple[Path, str]]) -> str:
    """Return what tells one list of images from another: paths, names, sizes and times of the files.

    Args:
        images: What `find_images` returned.

    Returns:
        32 hexadecimal digits.
    """
    digest = blake2b(digest_size=16)
    for path, name in images:
        try:
            state = path.stat()
            facts = f"{state.st_size} {state.st_mtime_ns}"
        except (OSError, ValueError):
            facts = ""
        digest.update(b"\0".join((os.fsencode(path), name.encode(), facts.encode(), b"")))
    return digest.hexdigest()


class _Run:
    """The images of a run, with what an earlier process of the same run has answered."""

    def __init__(
        self,
        pipeline: Pipeline,
        target: Path,
        images: Sequence[tuple[Path, str]],
        reading: dict[str, Any],
        saving: dict[str, Any],
    ) -> None:
        self._pipeline, self._target, self._images = pipeline, target, images
        self._reading, self._saving = reading, saving
        self._lines = target / _LINES

    def go(self, progress: bool) -> list[dict[str, Any]]:
        """Answer what is not answered yet, and return the entries of all images, in their order."""
        known = _read_lines(self._lines)
        entries = {name: known[name] for _, name in self._images if self._is_whole(name, known.get(name))}
        failed = [image for image in self._images if image[1] in known and image[1] not in entries]
        # Apart from these, so that batches hold the same images as in a run that nobody interrupted.
        new = [image for image in self._images if image[1] not in known]
        if failed or new:
            for stale in (_PAGE, _SUMMARY):  # they would outlive an interruption of this run
                (self._target / stale).unlink(missing_ok=True)
        if entries and progress:
            sys.stderr.write(f"{len(entries)} of {len(self._images)} images were answered before.\n")
        self._rewrite(entries)
        answers = (entry for part in (failed, new) for entry in self._answer(part))
        for entry in tracked(answers, len(failed) + len(new), "images", progress):
            entries[entry["name"]] = entry
        ordered = {name: entries[name] for _, name in self._images}
        if list(ordered) != list(entries):
            self._rewrite(ordered)
        return list(ordered.values())

    def _is_whole(self, name: str, entry: dict[str, Any] | None) -> bool:
        """Whether an image was answered, and its files are there in their sizes; 0.1.0 wrote the JSON file last."""
        if entry is None or "error" in entry:
            return False
        stem = os.fspath(self._target / "films" / name)
        sizes: dict[str, int | None] = entry.get("files") or {"json": None}
        try:
            return all(
                Path(f"{stem}.{ending}").stat().st_size == size or size is None for ending, size in sizes.items()
            )
        except OSError:
            return False

    def _rewrite(self, entries: dict[str, dict[str, Any]]) -> None:
        """Write lines anew, unless the file holds just these."""
        content = "".join(f"{json_text(entry)}\n" for entry in entries.values()).encode()
        if not self._lines.is_file() or self._lines.read_bytes() != content:
            with replace_file(self._lines) as draft:
                draft.write_bytes(content)

    def _answer(self, images: Sequence[tuple[Path, str]]) -> Iterator[dict[str, Any]]:
        """Predict for images; a batch is written while the next one is computed, and no more than one waits."""
        names = iter([name for _, name in images])
        with ThreadPoolExecutor(1) as writer:
            writing: Future[list[str]] | None = None
            for batch in self._pipeline.predict_batches([path for path, _ in images], **self._reading):
                named = deque((next(names), prediction) for prediction in batch)
                batch.clear()
                if writing is not None:
                    yield from map(json.loads, writing.result())
                writing = writer.submit(self._write, named)
                del named
            if writing is not None:
                yield from map(json.loads, writing.result())

    def _write(self, predictions: deque[tuple[str, Prediction | FailedPrediction]]) -> list[str]:
        """Write the files of a batch, then its lines, which are on the disk when they are returned."""
        lines = []
        while predictions:  # each goes when it is written
            lines.append(json_text(self._save(*predictions.popleft())) + "\n")
        with self._lines.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        return lines

    def _save(self, name: str, prediction: Prediction | FailedPrediction) -> dict[str, Any]:
        """Write the files of an image, and return its line."""
        if isinstance(prediction, Prediction):
            try:
                place = path_inside(self._target / "films", name)
                prediction.save(place.parent, place.name, sync=False, **self._saving)
                sizes = {ending: Path(f"{place}.{ending}").stat().st_size for ending in self._endings(prediction)}
            except (ConfigError, OSError) as error:  # a name too long for this disk must not cost the other images
                if fails_everywhere(error):
                    raise
                words = f"The prediction cannot be written: {error}"
                return {"name": name, "error": words, "kind": type(error).__name__}
            return {"name": name, **prediction.to_dict(), "files": sizes}
        return {"name": name, **prediction.to_dict()}

    def _endings(self, prediction: Prediction) -> list[str]:
        """What `Prediction.save` writes of an image."""
        overlay = self._saving["overlay"]
        return [
            *(f"{name}.png" for name in (prediction.masks if self._saving["masks"] else ())),
            *([f"overlay.{overlay}"] if overlay else []),
            "json",
        ]


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of whole lines by name; the last line may be half, if its process was killed."""
    entries: dict[str, dict[str, Any]] = {}
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError, TypeError, KeyError):
                    entry: Any = json.loads(line) if line.endswith(b"\n") else None
                    entries[entry["name"]] = entry
    return entries


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
        console.file.write(json_text(summary) + "\n")
        return
    console.print(f"{summary['films']} images, {summary['failed']} of them unreadable")
    for label, count in summary["answers"].items():
        console.print(f"  {SHOWN_LABELS.get(label, label):<14} {count}")
    if drawn := summary.get("drawn"):
        right = sum(drawn[name] == label for name, label in summary["labels"].items())
        console.print(f"The images are drawn (phantoms), no radiographs: {right} of {len(drawn)} labels are as drawn.")
        console.print("The weights learned from radiographs: on drawn images the labels show only that all runs.")
        for name, label in summary["labels"].items():
            console.print(f"  {name}: drawn as {drawn[name]}, predicted {label or SHOWN_LABELS['cannot say']}")
    for failure in summary["failures"][:10]:
        console.print(_readable(f"unreadable: {failure['error']}"), style="red")
    if len(summary["failures"]) > 10:
        console.print(f"... and {len(summary['failures']) - 10} more, in predictions.jsonl")
    console.print(f"Page: {summary['page']}\nFor research only; not for clinical use.")


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
