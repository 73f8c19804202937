"""The verbs for many images, from disk to disk: predict, demo and explain."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covidcxr.errors import ConfigError, CovidCXRError, UnknownNameError, did_you_mean
from covidcxr.io.folders import next_folder
from covidcxr.utils.plain import json_text

if TYPE_CHECKING:
    from covidcxr.explain import Explanation
    from covidcxr.page import Picture, Section
    from covidcxr.pipeline.pipeline import Pipeline
    from covidcxr.pipeline.prediction import Prediction


__all__ = ["add_demo", "add_explain", "add_predict", "explain_images"]


def add_predict(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `predict`.

    Args:
        verbs: Where the verbs are added.
    """
    predict = verbs.add_parser(
        "predict",
        help="predict for images: JSON lines, masks, overlays and a contact sheet",
        description="Predict for images. An image that cannot be read is one entry with its reason; the others go on. "
        "A run that was stopped goes on where it stopped with the same command.",
        epilog="examples:\n  covidcxr predict images/ extra.dcm --model mini --out predictions\n"
        "  covidcxr predict --manifest images.csv --format parquet --no-overlays --processes 8 --out predictions\n"
        "  covidcxr predict s3://bucket/images --shard 3/100 --out predictions",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.add_argument(
        "paths", nargs="*", metavar="PATH", help="images, folders that are searched for images, or URLs of either"
    )
    predict.add_argument(
        "--manifest", metavar="FILE", help="more images: a table with the column path, perhaps id; or a path a line"
    )
    predict.add_argument("--out", metavar="DIR", help="where the results go (runs/predict-1, -2, ...)")
    predict.add_argument("--root", metavar="DIR", help="name the results by the images' paths below DIR")
    overlay = predict.add_mutually_exclusive_group()
    overlay.add_argument(
        "--overlay-format",
        choices=("jpg", "png"),
        default="jpg",
        help="of the overlays: jpg, at most 1024 pixels, or png, of the image's size and slow (%(default)s)",
    )
    overlay.add_argument("--no-overlays", action="store_true", help="write no overlays")
    predict.add_argument("--no-masks", action="store_true", help="write no masks")
    predict.add_argument(
        "--format",
        choices=("jsonl", "parquet"),
        default="jsonl",
        help="of the results: lines and a file a mask, or tables that hold the masks (%(default)s)",
    )
    predict.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that share the images (%(default)s)"
    )
    predict.add_argument(
        "--shard", metavar="I/N", help="every N-th image only, from the I-th on; without it shards come together"
    )
    _add_common(predict)
    predict.set_defaults(run=_predict)


def add_demo(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `demo`.

    Args:
        verbs: Where the verbs are added.
    """
    demo = verbs.add_parser(
        "demo",
        help="run the bundled pipeline over drawn images, or over yours",
        description="Run the bundled pipeline over drawn images (phantoms), or over your own, and show the page.",
        epilog="examples:\n  covidcxr demo\n  covidcxr demo my-images/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("paths", nargs="*", metavar="PATH", help="your images or folders; none = drawn images")
    demo.add_argument(
        "--out", metavar="DIR", help="where the results go (covidcxr-demo; of your images, a new folder runs/demo-N)"
    )
    demo.add_argument("--no-open", action="store_true", help="print the page's path, do not open it")
    _add_common(demo)
    demo.set_defaults(run=_demo, root=None, overlay_format="jpg", no_overlays=False, no_masks=False)
    demo.set_defaults(manifest=None, format="jsonl", processes=1, shard=None)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help="bundled name, folder or Hub repository (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="batch size (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="data-loader threads (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    parser.add_argument(
        "--backend",
        choices=("torch", "onnx"),
        default="torch",
        help="onnx: --model is a folder of `covidcxr export`, and torch is not needed (%(default)s)",
    )
    parser.add_argument(
        "--bits", type=int, metavar="N", help="bits that 16-bit pictures really hold, if fewer (8 to 16)"
    )
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run wrote there; start over")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def _predict(options: argparse.Namespace) -> int:
    from covidcxr.pipeline.folder import print_summary

    if not options.paths and options.manifest is None:
        raise ConfigError("Name images, folders or URLs, or a --manifest.")
    if options.out is None:
        if options.shard is not None:
            raise ConfigError("Shards come together in one folder: name it by --out.")
        options.out = str(next_folder("predict"))
    summary = _write(options)
    print_summary(summary, as_json=options.json)
    return 1 if summary["failed"] else 0


def _write(options: argparse.Namespace) -> dict[str, Any]:
    from covidcxr.pipeline.folder import predict_folder

    return predict_folder(
        options.paths,
        options.out,
        manifest=options.manifest,
        root=options.root,
        model=options.model,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=options.device,
        backend=options.backend,
        bits=options.bits,
        overlays=None if options.no_overlays else options.overlay_format,
        masks=not options.no_masks,
        format=options.format,
        processes=options.processes,
        shard=options.shard,
        overwrite=options.overwrite,
    )


def _demo(options: argparse.Namespace) -> int:
    import webbrowser

    if options.out is None:
        options.out = str(next_folder("demo")) if options.paths else "covidcxr-demo"
    code = _predict(options) if options.paths else _predict_phantoms(options)
    page = (Path(options.out) / "index.html").resolve()
    if not options.no_open and sys.stdout.isatty():
        webbrowser.open(page.as_uri())
    return code


def _predict_phantoms(options: argparse.Namespace) -> int:
    """Predict for drawn images, and say beside each prediction what was drawn."""
    from covidcxr.phantom import write_dataset
    from covidcxr.pipeline.folder import print_summary
    from covidcxr.pipeline.results import write_sheet

    out = Path(options.out)
    manifest = out / "phantoms" / "manifest.csv"
    if not manifest.is_file():  # written last
        write_dataset(manifest.parent, 12)
    options.paths = [str(manifest.parent / "images")]
    summary = _write(options)
    with manifest.open(encoding="utf-8", newline="") as file:
        drawn = {row["path"].removeprefix("images/"): row["label"] for row in csv.DictReader(file)}
    entries = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    summary |= {"drawn": drawn, "labels": {entry["name"]: entry.get("label") for entry in entries}}
    write_sheet(out / "index.html", entries, summary)
    print_summary(summary, as_json=options.json)
    return 1 if summary["failed"] else 0


_EXPLAIN_EXAMPLES = """examples:
  covidcxr explain image.png --out heat
  covidcxr explain images/ --model mini --target covid19 --out heat
  covidcxr explain image.png --method occlusion --out heat"""

_SHOWN = 100
"""Images on the page: each takes some 200 kB of it. All are in the folder."""

_WRITES = (
    "explanations.json",
    "index.html",
    *(f"films/*.{ending}" for ending in ("heat.png", "heat.json", "heat-overlay.png")),
)

_WIDE = 420
"""Longer side of an image on the page, in pixels."""


def add_explain(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line.

    Args:
        verbs: Receives the parser of the verb.
    """
    explain = verbs.add_parser(
        "explain",
        help="heat maps of a classifier beside the images, as data and as one page",
        description="Draw what speaks for a class on each image. An image that cannot be read or explained is one "
        "entry with its reason; the others go on.",
        epilog=_EXPLAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("paths", nargs="+", metavar="PATH", help="images, or folders that are searched for images")
    explain.add_argument("--out", metavar="DIR", help="where the maps and the page go (runs/explain-1, -2, ...)")
    explain.add_argument("--model", default="mini", help="bundled name, folder or Hub repository (%(default)s)")
    explain.add_argument(
        "--method", default="gradcam", help="gradcam, hirescam, integrated_gradients or occlusion (%(default)s)"
    )
    explain.add_argument("--target", metavar="CLASS", help="the class to explain; by default each image's label")
    explain.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (%(default)s)")
    explain.add_argument("--overwrite", action="store_true", help="remove what an earlier run wrote there; start over")
    explain.add_argument("--json", action="store_true", help="print the summary as JSON")
    explain.set_defaults(run=_explain, default_out="explain")


def explain_images(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    model: str | Path | Pipeline = "mini",
    method: str = "gradcam",
    target: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Explain images and write maps and pictures into a folder, which belongs to this run.

    Writes `films/NAME.heat.png` (16-bit grey, white = 1), `NAME.heat.json` and `NAME.heat-overlay.png` an image,
    `explanations.json`, and `index.html` with images and maps side by side.

    Args:
        paths: Images, or folders that are searched for images.
        out: Where they go; made if need be.
        model: A pipeline with a classifier, or where to load one from.
        method: A name of `covidcxr.explain.METHODS`.
        target: The class; None = each image's label, else its most probable class.
        device: Where the models run.
        overwrite: Remove what an earlier run wrote into the folder, and start over.
        progress: Show a progress bar on standard error.

    Returns:
        The summary: an entry an image, counts, and the path of the page.

    Raises:
        ConfigError: If no image was found, the pipeline has no classifier, the device is not there, or the folder
            belongs to another run or is in use.
        UnknownNameError: If there is no such class or method.
        PretrainedError: If the model cannot be had.
    """
    from covidcxr.io.folders import run_folder
    from covidcxr.pipeline.folder import digest_images, find_images, load_pipeline
    from covidcxr.pipeline.parts import fingerprint

    images, _ = find_images(paths)
    if not images:
        raise ConfigError(f"No images found in {', '.join(map(str, paths))}.")
    pipeline = load_pipeline(model, device)
    _check(pipeline, method, target)
    settings = {"command": "explain", "model": fingerprint(pipeline), "images": digest_images(images)}
    with run_folder(out, settings | {"method": method, "target": target}, _WRITES, overwrite=overwrite) as folder:
        entries, shown = _explain_all(images, folder, pipeline, method, target, progress)
        return _write_maps(folder, entries, shown, method)


def _explain_all(
    images: Sequence[tuple[Path, str]],
    folder: Path,
    pipeline: Pipeline,
    method: str,
    target: str | None,
    progress: bool,
) -> tuple[list[dict[str, Any]], list[tuple[str, Picture, Picture]]]:
    """Write the maps; return an entry an image, and the pictures of the first ones by class."""
    from covidcxr.io.folders import fails_everywhere, path_inside
    from covidcxr.pipeline.prediction import Prediction
    from covidcxr.utils.threads import tracked

    entries = list[dict[str, Any]]()
    shown: list[tuple[str, Picture, Picture]] = []
    predictions = pipeline.predict([path for path, _ in images], batch_size=4, on_error="return")
    for (_, name), prediction in tracked(zip(images, predictions, strict=True), len(images), "images", progress):
        try:
            if not isinstance(prediction, Prediction):
                raise prediction.error
            explanation = prediction.explain(target, method)
            place = path_inside(folder / "films", name)
            explanation.save(place.parent, place.name, prediction.image)
        except (CovidCXRError, OSError) as error:  # this image's alone: settings were checked before
            if fails_everywhere(error):
                raise
            entries.append({"name": name, "error": str(error), "kind": type(error).__name__})
            continue
        entries.append({"name": name, "label": prediction.label, **explanation.to_dict(), "note": explanation.note})
        if len(shown) < _SHOWN:
            shown.append((explanation.target, *_pictures(name, prediction, explanation)))
    return entries, shown


def _write_maps(
    folder: Path, entries: list[dict[str, Any]], shown: Sequence[tuple[str, Picture, Picture]], method: str
) -> dict[str, Any]:
    """Write `explanations.json` and the page, and return the summary."""
    from covidcxr.io.pretrained import write_json
    from covidcxr.page import Page, write_html

    failed = sum("error" in entry for entry in entries)
    summary = {"films": len(entries), "failed": failed, "method": method, "page": str(folder / "index.html")}
    write_json(folder / "explanations.json", {**summary, "entries": entries})
    facts = (("Images", str(len(entries))), ("Not explained", str(failed)), ("Method", method))
    verdict = "The brighter a place, the more it speaks for the class, according to the model."
    write_html(Page("Heat maps", verdict, facts, list(_sections(shown, entries))), folder / "index.html")
    return {**summary, "entries": entries}


def _check(pipeline: Pipeline, method: str, target: str | None) -> None:
    """Raise an error for what would fail for every image."""
    from covidcxr.explain.methods import find_method

    find_method(method)
    if pipeline.classifier is None:
        raise ConfigError("There is no classifier to explain: this pipeline has none.")
    classes = pipeline.classifier.config.classes
    if target is not None and target not in classes:
        raise UnknownNameError(f"The model knows no class {target!r}. {did_you_mean(target, classes)}")


def _pictures(name: str, prediction: Prediction, explanation: Explanation) -> tuple[Picture, Picture]:
    """Return an image and its map for the page."""
    from covidcxr.page import Picture

    caption = f"{name}: {explanation.target} {explanation.probability:.0%}"
    if explanation.note:
        caption += f". {explanation.note}"
    label = f"The label is {prediction.label}." if prediction.label else "Indeterminate."
    return (
        Picture(_png(prediction.image), name, label),
        Picture(_png(explanation.overlay(prediction.image)), f"Heat map of {name} for {explanation.target}", caption),
    )


def _png(pixels: Any) -> bytes:
    import io

    from PIL import Image

    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((_WIDE, _WIDE))
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _sections(shown: Sequence[tuple[str, Picture, Picture]], entries: Sequence[dict[str, Any]]) -> Iterator[Section]:
    from covidcxr.page import Gallery, Section, Table

    for target in dict.fromkeys(name for name, _, _ in shown):
        pictures = [picture for name, image, heat in shown if name == target for picture in (image, heat)]
        yield Section(f"What speaks for {target}", "Each image, and beside it its map.", [Gallery(pictures)])
    failed = [(entry["name"], entry["error"]) for entry in entries if "error" in entry]
    if failed:
        yield Section("Not explained", "", [Table(("Image", "Why"), failed)])
    left = len(entries) - len(failed) - len(shown)
    if left > 0:
        yield Section("More images", f"{left} more maps are in the folder beside this page.")


def _explain(options: argparse.Namespace) -> int:
    from rich.console import Console

    summary = explain_images(
        options.paths,
        options.out,
        model=options.model,
        method=options.method,
        target=options.target,
        device=options.device,
        overwrite=options.overwrite,
    )
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if options.json:
        console.file.write(json_text(summary) + "\n")
    else:
        console.print(f"{summary['films']} images, {summary['failed']} of them not explained")
        for entry in summary["entries"]:
            if "error" in entry or entry["note"]:
                console.print(f"{entry['name']}: {entry.get('error') or entry['note']}")
        console.print(f"Page: {summary['page']}\nFor research only; not for clinical use.")
    return 1 if summary["failed"] else 0
