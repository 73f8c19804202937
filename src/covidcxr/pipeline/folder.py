"""Many images from disk to disk: lines of JSON or Parquet, masks, overlays, and a contact sheet.

A run can be interrupted at any moment, and the same call goes on where it stopped: a batch is written while the next
one is computed, and its lines are on the disk before the one after that begins. A line tells the sizes of its image's
files; where one of them is missing or cut short, say by a power failure, the image is predicted again. Images that
failed are tried again. Memory does not grow with the number of images.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

from covidcxr.errors import ConfigError
from covidcxr.io.folders import RUN_FILE, lock_folder, run_folder
from covidcxr.io.pretrained import write_json
from covidcxr.pipeline.cases import BATCH_IMAGES
from covidcxr.pipeline.image_list import (
    ANSWERED,
    FAILED,
    NEW,
    SEARCHED_SUFFIXES,
    ImageList,
    digest_images,
    find_images,
    readable,
)
from covidcxr.pipeline.jobs import Job, answer_here, answer_in_processes
from covidcxr.pipeline.parts import fingerprint
from covidcxr.pipeline.pipeline import Pipeline
from covidcxr.pipeline.prediction import OverlayFormat
from covidcxr.pipeline.results import LINES, PAGES, PARTS, SHOWN_LABELS, ParquetResults, Results, summarize, write_sheet
from covidcxr.types import Backend
from covidcxr.utils.plain import json_text, user_path
from covidcxr.utils.threads import tracked

__all__ = ["ResultFormat", "digest_images", "find_images", "load_pipeline", "predict_folder", "print_summary"]

ResultFormat: TypeAlias = Literal["jsonl", "parquet"]

_SUMMARY, _PAGE, _SHARDS = "summary.json", "index.html", "shards"
_TAKEN = 256
"""Answers of a shard that are taken over at a time."""


def predict_folder(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | Pipeline = "mini",
    batch_size: int = BATCH_IMAGES,
    num_workers: int = 2,
    device: str = "cpu",
    backend: Backend = "torch",
    bits: int | None = None,
    overlays: OverlayFormat | None = "jpg",
    masks: bool = True,
    format: ResultFormat = "jsonl",  # noqa: A002 - the name of the flag
    processes: int = 1,
    shard: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict for images and write the results into a folder, which belongs to this run.

    Writes `films/NAME.json`, `.overlay.jpg` and a `.MASK.png` a mask class for each image, `predictions.jsonl` (a line
    an image), `summary.json`, and `index.html`, the contact sheet. The same call goes on where a run stopped.

    Args:
        paths: Images, folders that are searched for images, or URLs of either, as fsspec reads them.
        out: Where the results go; made if need be.
        manifest: A list of more images; see `ImageList.add_manifest`.
        root: Name the outputs by the images' paths below this folder; by default below the folder given.
        model: A pipeline, or where to load one from.
        batch_size: Batch size.
        num_workers: Data-loader threads, of each process.
        device: Where the models run.
        backend: What runs them; "onnx" needs a folder that `covidcxr export` wrote as `model`.
        bits: Bits of numbers whose type does not tell, 8 to 16; see `read_image`.
        overlays: Format of the overlays, as of `Prediction.save`; None = none.
        masks: Write the masks.
        format: "jsonl", or "parquet": files of some 1,000 images in `predictions/` that hold the masks too.
        processes: How many processes share the images; from 2 on, a script needs `if __name__ == "__main__":`.
        shard: "I/N": every N-th image from the I-th on, into `shards/I-of-N`; without it, all shards come together.
        overwrite: Remove what an earlier run wrote into the folder, and start over.
        progress: Show a progress bar on standard error.

    Returns:
        The summary: counts of images, predictions, reasons and failures, and the paths written.

    Raises:
        ConfigError: If no image was found, an argument cannot be, or the folder is of another run, in use or locked.
        DatasetError: If the manifest cannot be read.
        PretrainedError: If the model cannot be had.
    """
    if format not in ("jsonl", "parquet") or processes < 1:
        raise ConfigError(f'format must be "jsonl" or "parquet" and processes 1 or more, not {format!r}, {processes}.')
    images = _list_images(paths, manifest, root)
    pipeline = load_pipeline(model, device, backend)
    reading = (batch_size, num_workers, device, bits)
    job = Job(user_path(out), *reading, overlays, masks, format == "parquet", pipeline.backend)
    return _predict(images, pipeline, job, model, processes, shard, overwrite=overwrite, progress=progress)


def _predict(
    images: ImageList,
    pipeline: Pipeline,
    job: Job,
    model: str | os.PathLike[str] | Pipeline,
    processes: int,
    shard: str | None,
    *,
    overwrite: bool,
    progress: bool,
) -> dict[str, Any]:
    """Run `predict_folder` on a list of images."""
    settings, out = _settings(job, pipeline), job.folder
    if shard is not None:
        shard = _keep_shard(images, shard)
        settings, out = settings | {"shard": shard}, out / _SHARDS / shard
    pipeline.predict_batches([], batch_size=job.batch_size, num_workers=job.num_workers, bits=job.bits)  # checks them
    for part in _shards(out):  # none may be at work
        with lock_folder(part):
            pass
    digest = digest_images(images)
    with run_folder(out, settings | {"images": digest}, _writes(pipeline), overwrite=overwrite) as target:
        run = _Run(pipeline, replace(job, folder=target), images, settings)
        run.go(model, processes, progress)
        summary = summarize(run.results, images.left_out, target)
        write_sheet(target / _PAGE, run.results, summary)
        write_json(target / _SUMMARY, summary)
    return summary


def _list_images(
    paths: Sequence[str | os.PathLike[str]],
    manifest: str | os.PathLike[str] | None,
    root: str | os.PathLike[str] | None,
) -> ImageList:
    images = ImageList()
    images.add_paths(paths, root)
    if manifest is not None:
        images.add_manifest(manifest, root)
    if not len(images):
        places = ", ".join(map(str, [*paths, *([] if manifest is None else [manifest])]))
        suffixes = ", ".join(sorted(suffix for suffix in SEARCHED_SUFFIXES if suffix))
        raise ConfigError(f"No images found in {places} (looked for {suffixes}).")
    return images


def _keep_shard(images: ImageList, shard: str) -> str:
    """Keep the images of a shard, and return the name of its folder."""
    numbers = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"A shard is I/N, with I from 1 to N, not {shard!r}: 3/100 is the third of a hundred.")
    images.keep_shard(number, count)
    return f"{number:0{len(str(count))}}-of-{count}"


def _shards(out: Path) -> list[Path]:
    return sorted(record.parent for record in (out / _SHARDS).glob(f"*-of-*/{RUN_FILE}"))


def _settings(job: Job, pipeline: Pipeline) -> dict[str, Any]:
    """Return what decides the results; what an earlier release did not know is said where it differs only."""
    settings: dict[str, Any] = {"command": "predict", "model": fingerprint(pipeline), "bits": job.bits}
    settings |= {} if job.overlay == "jpg" else {"overlays": job.overlay or "none"}
    settings |= {} if job.masks else {"masks": False}
    return settings | ({"format": "parquet"} if job.parquet else {})


def _writes(pipeline: Pipeline) -> list[str]:
    endings = ("json", "overlay.png", "overlay.jpg", *(f"{name}.png" for name in pipeline.mask_classes))
    tables = (f"{PARTS}/*.parquet", f"{PAGES}/*.html")
    return [LINES, _SUMMARY, _PAGE, *tables, *(f"films/*.{ending}" for ending in endings)]


class _Run:
    """The images of a run, with what an earlier process of the same run has answered."""

    def __init__(self, pipeline: Pipeline, job: Job, images: ImageList, settings: dict[str, Any]) -> None:
        self._pipeline, self._job, self._images, self._settings = pipeline, job, images, settings
        self.results = self._results(job.folder)

    def go(self, model: str | os.PathLike[str] | Pipeline, processes: int, progress: bool) -> None:
        """Answer what is not answered yet."""
        images = self._images
        self.results.load(self._is_whole)
        taken = self._take_over()
        if taken:
            self.results.load(self._is_whole)
        before, left = images.count(ANSWERED), images.count(FAILED) + images.count(NEW)
        if left or taken:
            for stale in (_PAGE, _SUMMARY):  # they would outlive an interruption of this run
                (self._job.folder / stale).unlink(missing_ok=True)
        if before and progress:
            sys.stderr.write(f"{before} of {len(images)} images were answered before.\n")
        with ExitStack() as stack:
            if processes > 1 and left and isinstance(model, Pipeline):
                model = model.save_pretrained(stack.enter_context(TemporaryDirectory()))
            for _ in tracked(self._answer(model, processes), left, "images", progress):
                pass
        self.results.finish()

    def _answer(self, model: str | os.PathLike[str] | Pipeline, processes: int) -> Iterator[int]:
        # Those that failed first, apart, so that batches hold the same images as in a run that nobody interrupted.
        for state in (FAILED, NEW):
            if not self._images.count(state):
                continue
            images, append = self._images.in_state(state), self.results.append
            if processes > 1 and not isinstance(model, Pipeline):
                counts = answer_in_processes(model, self._job, images, append, processes)
            else:
                counts = answer_here(self._pipeline, self._job, images, append)
            for count in counts:
                yield from range(count)

    def _results(self, folder: Path) -> Results:
        if not self._job.parquet:
            return Results(folder, self._images)
        classifier = self._pipeline.classifier
        classes = () if classifier is None else classifier.config.classes
        return ParquetResults(folder, self._images, classes, self._pipeline.mask_classes)

    def _take_over(self) -> bool:
        """Take the answers of shards that this run does not have yet; return whether there were any."""
        taken = False
        for shard in _shards(self._job.folder):
            known = json.loads((shard / RUN_FILE).read_text(encoding="utf-8"))["settings"]
            if {**known, "shard": 0, "images": 0} != {**json.loads(json_text(self._settings)), "shard": 0, "images": 0}:
                raise ConfigError(
                    f"{shard} was written with another model or other settings. Give the same as there, or remove it."
                )
            with lock_folder(shard):
                entries = self._results(shard).full()
                while some := list(islice(entries, _TAKEN)):
                    lines = [self._line(entry, shard) for entry in some if self._is_new(entry)]
                    self.results.append(lines)
                    taken = taken or bool(lines)
        return taken

    def _is_new(self, entry: dict[str, Any]) -> bool:
        return "error" not in entry and self._images.state(entry["name"]) in (NEW, FAILED)

    def _line(self, entry: dict[str, Any], shard: Path) -> str:
        return json_text({**entry, "folder": shard.relative_to(self._job.folder).as_posix()}) + "\n"

    def _is_whole(self, entry: dict[str, Any]) -> bool:
        """Whether an image was answered, and its files are there in their sizes; 0.1.0 wrote the JSON file last."""
        if "error" in entry:
            return False
        stem = os.fspath(self._job.folder / str(entry.get("folder", "")) / "films" / entry["name"])
        sizes: dict[str, int | None] = entry.get("files") or ({} if self._job.parquet else {"json": None})
        try:
            return all(
                Path(f"{stem}.{ending}").stat().st_size == size or size is None for ending, size in sizes.items()
            )
        except (OSError, ValueError):
            return False


def load_pipeline(
    model: str | os.PathLike[str] | Pipeline, device: str = "cpu", backend: Backend = "torch"
) -> Pipeline:
    """Return a pipeline on a device.

    Args:
        model: The pipeline, or where to load it from: a bundled name, a folder, or a Hub repository.
        device: "cpu", "cuda", "cuda:1", "mps".
        backend: What runs the models; "onnx" needs a folder that `covidcxr export` wrote.

    Returns:
        The pipeline.

    Raises:
        ConfigError: If the device is not there.
        PretrainedError: If the model cannot be had.
    """
    pipeline = model if isinstance(model, Pipeline) else Pipeline.from_pretrained(model, backend=backend)
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
        console.print(readable(f"unreadable: {failure['error']}"), style="red")
    if summary["failed"] > 10:
        console.print(f"... and {summary['failed'] - 10} more, in predictions.jsonl")
    console.print(f"Page: {summary['page']}\nFor research only; not for clinical use.")
